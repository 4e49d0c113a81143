"""A hundred kills at random instants change nothing: neither weights nor records nor what is the best.

Processes are forked from this one, which has imported everything, so that a start costs a second; the kills are real.
"""

import ctypes
import multiprocessing
import random
import signal
import time
from collections import Counter

import pytest

from partseg.engine.checkpoint import Checkpoints, load, newest
from partseg.evaluation import results
from partseg.utils.config import compose

KILLS = 100
KILLS_PER_RUN = 12  # then the run may finish
PHASES = ("start", "step", "save", "evaluation", "best")
SECONDS = {"start": 1.5, "step": 0.2, "save": 0.4, "evaluation": 0.4, "best": 0.02}
"""About how long each phase lasts: the instant within it is drawn from so much time."""


class Watch:
    """What the forked process does, in memory that this one shares: how often it has entered each phase."""

    def __init__(self) -> None:
        self.entries = multiprocessing.RawArray(ctypes.c_int, len(PHASES))

    def enter(self, phase: str):
        """An action for `patch_in`."""

        def count(*_, **__):
            self.entries[PHASES.index(phase)] += 1

        return count

    def wait(self, process, phase: str, count: int) -> None:
        """Until the phase is entered for the `count`-th time, or the process has ended."""
        while process.is_alive() and self.entries[PHASES.index(phase)] < count:
            time.sleep(0.001)

    def reset(self) -> None:
        for index in range(len(PHASES)):
            self.entries[index] = 0


def linked(state):
    """Without the checkpoints that no link names: SIGTERM saves one more, which is then among the last three."""
    targets = {state[name] for name in state if isinstance(state[name], str)}
    kept = {name: value for name, value in state.items() if not name.startswith("iter_") or name in targets}
    return {**kept, "names": [name for name in state["names"] if "iter_" not in name or "pictures" in name]}


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_hundred_kills_change_nothing(tools, overrides, start, tmp_path, patch_in, state_of, capsys):
    def settings(name):
        more = ["train.iterations=30", "hooks.checkpoint.every=3", "hooks.evaluate.every=6", "hooks.visualize.every=10"]
        protocols = ["evaluator=default", "best.metrics=[oracle_obj/mIoU,pred_all/mIoU]"]
        return [*overrides(tmp_path), *more, *protocols, f"name={name}"]

    train_net, eval_net = tools("train_net"), tools("eval_net")
    train_net.train(compose("train", settings("whole")))
    eval_net.evaluate(compose("eval", [*settings("whole"), f"ckpt={tmp_path / 'whole'}"]))
    whole, scores = linked(state_of(tmp_path / "whole")), results.read(tmp_path / "whole")["protocols"]

    watch, rng, hits, signals = Watch(), random.Random(0), Counter(), Counter()
    for owner, name, phase in (
        (train_net, "train", "start"),
        (train_net.Trainer, "step", "step"),
        (Checkpoints, "save", "save"),
        (train_net.runner, "run", "evaluation"),
        (Checkpoints, "offer_best", "best"),
    ):
        patch_in(owner, name, watch.enter(phase))

    started, run = time.monotonic(), 0
    while sum(hits.values()) < KILLS:
        run += 1
        directory, kills, complete = tmp_path / f"run_{run}", 0, False
        while not complete:
            watch.reset()
            program = start(train_net.main, settings(directory.name))
            if kills < KILLS_PER_RUN:
                phase, number = rng.choice(PHASES), rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
                watch.wait(program.process, phase, 1 if phase == "start" else rng.randint(1, 3))
                time.sleep(rng.uniform(0, SECONDS[phase]))
                program.kill(number)
            code = program.wait()
            assert code in (0, 85, -signal.SIGKILL, -signal.SIGTERM), program.output
            complete = code == 0
            if not complete:
                kills += 1
                hits[phase] += 1
                signals[number.name] += 1
            found = newest(directory / "checkpoints")
            assert found is None or load(found)["iteration"] <= 30  # whole, at any time
        eval_net.evaluate(compose("eval", [*settings(directory.name), f"ckpt={directory}"]))
        assert results.read(directory)["protocols"] == scores
        assert linked(state_of(directory)) == whole, f"run_{run} after {kills} kills"
    minutes = (time.monotonic() - started) / 60
    summary = (
        f"{sum(hits.values())} kills ({dict(signals)}) of {run} runs, by phase {dict(hits)}, {minutes:.1f} minutes"
    )
    assert min(hits[phase] for phase in PHASES) >= 5, summary
    with capsys.disabled():
        print(f"\n{summary}")
