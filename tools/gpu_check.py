"""One verdict on a machine with GPUs; scripts/gpu_check.sh installs what it needs and starts it.

python tools/gpu_check.py output=output/gpu_check
python tools/gpu_check.py device=cpu only=overfit          the same steps at tiny size, without a GPU

Steps that would start after `minutes` are left out.

Every step is a process with a time limit of its own; gpu_check.json and gpu_check.md are written after each, so that
nothing is lost when a later one fails. Exit code 1 where a step failed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from partseg.engine.benchmark import agreement
from partseg.engine.benchmark.inputs import random_sample
from partseg.engine.benchmark.measure import Case, training_step, vocabulary_of
from partseg.engine.benchmark.steps import EvaluateImage
from partseg.engine.benchmark.timing import Clock
from partseg.engine.checkpoint import last_iteration
from partseg.engine.launch import device_of
from partseg.utils import env
from partseg.utils.arguments import run
from partseg.utils.config import compose, config_dir, instantiate
from partseg.utils.files import json_bytes, write_atomic

ROOT = Path(__file__).resolve().parents[1]
BATCHES, CLASSES = (1, 8, 32), (116, 234, 1000)


@dataclass(frozen=True)
class Step:
    """One part of the check: a function of this file, run in a process of its own for at most `seconds`."""

    name: str
    seconds: int
    arguments: tuple[str, ...] = ()


def steps(device: str) -> Iterator[Step]:
    """All parts, in order: what is cheap and tells most comes first."""
    models = sorted(path.stem for path in (config_dir() / "model").glob("*_tiny.yaml"))
    yield Step("tests", 240)
    for model in models:
        yield Step("errors", 120, (model,))
    yield Step("overfit", 60)
    yield Step("resume", 120)
    yield Step("processes", 120)
    batches, classes = (BATCHES, CLASSES) if device == "cuda" else ((1,), (20,))
    for kind in ("train", "evaluate"):
        for count in classes:
            for batch in batches if kind == "train" else (1,):
                yield Step(kind, 60, (str(batch), str(count)))
    for model in models:
        yield Step("compiled", 180, (model,))


# What the steps do; each returns its figures and raises when it failed ------------------------------------------------
def tests(device: torch.device, output: Path) -> dict[str, Any]:
    """The tests that need a GPU."""
    if device.type != "cuda":
        return {"skipped": "they need a GPU"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu or multi_gpu", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:])
    return {"pytest": done.stdout.strip().splitlines()[-1]}


def errors(device: torch.device, output: Path, model: str) -> dict[str, Any]:
    """Relative errors of a step in every arithmetic."""
    figures = agreement.agreement(model, device=device)
    if wrong := agreement.wrong(figures):
        raise RuntimeError(f"errors above {agreement.LIMITS}: {wrong}")
    return figures


def compiled(device: torch.device, output: Path, model: str) -> dict[str, Any]:
    """Relative errors of a compiled step."""
    figures = agreement.compiled(model, device=device)
    if wrong := agreement.wrong(figures):
        raise RuntimeError(f"errors above {agreement.LIMITS}: {wrong}")
    return figures


def overfit(device: torch.device, output: Path) -> dict[str, Any]:
    """Two pictures are learned."""
    figures = agreement.overfit("part_clipseg_tiny", device=device, steps=60 if device.type == "cuda" else 8)
    if figures["last_loss"] > figures["first_loss"] * (0.5 if device.type == "cuda" else 1):
        raise RuntimeError(f"the loss did not fall: {figures}")
    return figures


def resume(device: torch.device, output: Path) -> dict[str, Any]:
    """A run that is killed after its first checkpoint ends where it should."""
    command = [*_toy_run(output, device), "name=resume", "hooks.checkpoint.every=2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not last_iteration(output / "resume"):
        time.sleep(0.02)
    killed_at = last_iteration(output / "resume")
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return {"killed_at": killed_at, "ended_at": last_iteration(output / "resume")}


def processes(device: torch.device, output: Path) -> dict[str, Any]:
    """The losses of several processes are those of one."""
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    if count < 2:
        return {"skipped": "there is one GPU"}
    losses = []
    for number in (1, count):
        key = "launch.num_gpus" if device.type == "cuda" else "launch.num_processes"
        settings = [f"name=on{number}", f"{key}={number}", f"train.batch_size={2 * count}"]  # a multiple of any number
        subprocess.run([*_toy_run(output, device), *settings], cwd=ROOT, check=True)
        lines = (output / f"on{number}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([value for line in lines if (value := json.loads(line).get("train/loss")) is not None])
    difference = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    if difference > 1e-3:
        raise RuntimeError(f"losses of {count} processes differ by {difference:.2g} from those of one: {losses}")
    return {"processes": count, "largest_difference": difference}


def train(device: torch.device, output: Path, batch: str, classes: str) -> dict[str, Any]:
    """A training step at paper size in bf16."""
    config = _bench(device)
    config.train.precision = "bf16"
    step = training_step(config, Case(int(batch), int(classes)))
    return _speed(step, device, images=int(batch))


def evaluate(device: torch.device, output: Path, batch: str, classes: str) -> dict[str, Any]:
    """One image through the network and all protocols, in fp32."""
    config = _bench(device)
    vocabulary = vocabulary_of(config, int(classes), training=False)
    model = instantiate(config.model).to(device)
    image = EvaluateImage(
        model,
        predictor=instantiate(config.predictor),
        evaluators=instantiate(config.evaluator),
        sample=random_sample(vocabulary, input=model.input, label_size=(375, 500)),
        vocabulary=vocabulary,
        clock=Clock(device),
    )
    return _speed(image, device, images=1)


DO: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f for f in (tests, errors, overfit, resume, processes, train, evaluate, compiled)
}


def _speed(work: Callable[[], object], device: torch.device, *, images: int) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    used = agreement.utilisation(work, device=device)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    rate = agreement.product_rate(device, "bf16" if device.type == "cuda" else "fp32")
    return {
        "images_per_second": images / used["seconds"],
        "GiB": memory,
        "share_of_peak": used["flops"] / used["seconds"] / rate,
        "waits": used["waits"],
        "seconds_per_step": used["seconds"],
    }


def _bench(device: torch.device) -> Any:
    model = "part_clipseg" if device.type == "cuda" else "part_clipseg_tiny"
    gpus = "null" if device.type == "cuda" else "0"
    return compose(
        "benchmark", ["experiment=part_clipseg_pascal_part_116", f"model={model}", f"launch.num_gpus={gpus}"]
    )


def _toy_run(output: Path, device: torch.device) -> list[str]:
    data = output / "data"
    if not data.is_dir():
        draw = [sys.executable, "datasets/draw_toy.py", "--root", str(data / "ToyPascalPart116")]
        small = ["--num-train", "16", "--num-val", "4", "--size", "64"]
        subprocess.run([*draw, *small], cwd=ROOT, check=True, capture_output=True)
    never = [f"hooks.{name}.every=100000" for name in ("evaluate", "visualize", "checkpoint")]
    return [
        *(sys.executable, "tools/train_net.py", "experiment=toy_part_clipseg", "best.metrics=[]", "hooks.log.every=1"),
        *(f"data_root={data}", f"output_root={output}", "train.iterations=8", *never),
        *(["launch.num_gpus=0"] if device.type == "cpu" else []),
    ]


@dataclass(frozen=True)
class Options:
    """`only` are the steps to run, by name; `step` and its arguments are how this program calls itself."""

    device: str = "cuda"
    output: Path = Path("output/gpu_check")
    minutes: float = 10.0
    only: tuple[str, ...] = ()
    step: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.device not in ("cuda", "cpu"):
            raise ValueError(f"device={self.device} is not cuda or cpu")
        if unknown := [name for name in (*self.only, *self.step[:1]) if name not in DO]:
            raise ValueError(f"there is no step {', '.join(unknown)}; there are {', '.join(sorted(DO))}")


# The plan, its files and its end --------------------------------------------------------------------------------------
def check(chosen: Sequence[Step], *, device: str, output: Path, minutes: float) -> dict[str, Any]:
    """Run the steps one after another; the result so far is on the disk after each."""
    end = time.monotonic() + 60 * minutes
    result: dict[str, Any] = {
        "device": device,
        "machine": f"{_name(device)}, torch {torch.__version__}",
        "environment": env.report(),
        "steps": [],
    }
    for step in chosen:
        start = time.monotonic()
        entry: dict[str, Any] = {"step": " ".join([step.name, *step.arguments])}
        limit = step.seconds * (1 if device == "cuda" else 5)  # tests share their CPU with others
        if start >= end:
            entry |= {"state": "left out", "why": f"{minutes} minutes are over"}
        else:
            entry |= _run(step, device=device, output=output, seconds=min(limit, end - start))
            if entry["state"] == "too long":
                over = time.monotonic() >= end and end - start < limit
                entry |= {"state": "left out", "why": f"{minutes} minutes are over"} if over else {"state": "failed"}
        entry["seconds"] = round(time.monotonic() - start, 1)
        result["steps"].append(entry)
        print(f"{entry['step']}: {entry['state']} in {entry['seconds']} s {entry.get('why', '')}", flush=True)
        write_atomic(output / "gpu_check.json", json_bytes(result, indent=1))
        write_atomic(output / "gpu_check.md", "\n".join([*table(result), ""]).encode())
    return result


def _run(step: Step, *, device: str, output: Path, seconds: float) -> dict[str, Any]:
    """State, figures and the reason of a failure; the step's processes end with it."""
    words = [f"step={word}" for word in (step.name, *step.arguments)]
    command = [sys.executable, __file__, f"device={device}", f"output={output}", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"state": "too long", "why": f"it took longer than {seconds:.0f} s"}
    if process.returncode:
        lines = error.strip().splitlines() or [f"exit code {process.returncode}"]
        return {"state": "failed", "why": lines[-1][:300]}
    figures = json.loads(out.strip().splitlines()[-1])
    return {"state": "left out" if "skipped" in figures else "passed", "figures": figures}


def table(result: dict[str, Any]) -> Iterator[str]:
    """The Markdown table: where it was measured and how it ended, then a line per step."""
    states = Counter(entry["state"] for entry in result["steps"])
    yield f"{result['machine']}: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}"
    yield ""
    yield "| step | state | seconds | figures |"
    yield "|---|---|---|---|"
    for entry in result["steps"]:
        figures = entry.get("figures", {"": entry.get("why", "")})
        shown = ", ".join(f"{name} {_shown(value)}".strip() for name, value in figures.items())
        yield f"| {entry['step']} | {entry['state']} | {entry['seconds']} | {shown} |"


def _name(device: str) -> str:
    """The GPUs, or that there is a CPU only."""
    if device != "cuda":
        return "CPU, at tiny size"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_shown(each)}" for name, each in value.items()) + ")"
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)


def main(options: Options) -> int:
    """Exit code 0 where every step passed, or there is nothing to check."""
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no usable GPU on this machine: nothing was checked (device=cpu runs the steps at tiny size)")
        return 0
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if options.step:
        name, *arguments = options.step
        config = compose("train", [f"launch.num_gpus={'null' if options.device == 'cuda' else 0}"])
        print(json.dumps(DO[name](device_of(config), output, *arguments)))
        return 0
    chosen = [step for step in steps(options.device) if not options.only or step.name in options.only]
    result = check(chosen, device=options.device, output=output, minutes=options.minutes)
    print(f"{output / 'gpu_check.md'}, {output / 'gpu_check.json'}")
    return int(any(entry["state"] == "failed" for entry in result["steps"]))


if __name__ == "__main__":
    sys.exit(run(main, Options, __doc__))
