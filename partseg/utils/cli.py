"""The command line of a tool that reads a config: Hydra's (`-m` sweeps, `--cfg job`), with our messages."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from partseg.utils import config, experiments
from partseg.utils.errors import debugging, one_line, without_debug


def cli(
    config_name: str, *, place: Callable[[DictConfig], Any] | None = None, needs: Sequence[str] = ()
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorator of a tool's main: Hydra's command line (`-m` sweeps, `--cfg job`), with our messages for mistakes.

    Every job of a sweep is composed before the first one starts; `place(config)` is what no two of them may share.
    A job says its end in one line, which the function may return; a sweep goes on after an error, repeats all lines at
    its end and fails if one did. Without a choice of any of the groups `needs` the usage is shown and nothing starts.
    """

    def decorate(function: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def job(values: DictConfig, sweep: Sweep) -> None:
            failed = False
            try:
                end = function(config.finish(values, list(HydraConfig.get().overrides.task)))
            except (ValueError, KeyError, OSError, ImportError, FloatingPointError, MemoryError) as error:
                if debugging():
                    raise
                if HydraConfig.get().mode is RunMode.RUN:
                    sys.exit(f"error: {one_line(error)}")
                if _runs_elsewhere():
                    raise
                end, failed = f"error: {one_line(error)}", True
            if sweep.jobs:
                sweep.ended(HydraConfig.get().job.num, end or "done", failed=failed)

        def main() -> None:
            _answer_detectron2(sys.argv[1:])
            experiments.register(config.config_dirs())
            sys.argv[1:] = without_debug(sys.argv[1:])
            if debugging():
                os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                sys.argv[1:] = config.spelled_out(config_name, sys.argv[1:])
            except ValueError as error:
                sys.exit(f"error: {error}")
            args = get_args_parser().parse_args()
            asks = args.cfg or args.help or args.hydra_help or args.info or args.shell_completion
            _refuse_sweep_in_group(args.multirun)
            try:
                jobs = config.jobs(args.overrides, multirun=args.multirun)
                _check_all(jobs, args.config_name or config_name, place=place, asks=bool(asks))
            except ValueError as error:
                sys.exit(f"error: {error}")
            if needs and not asks and not any(re.match(rf"\+?({'|'.join(needs)})=", o) for o in args.overrides):
                print((sys.modules[function.__module__].__doc__ or "").strip(), file=sys.stderr)  # noqa: T201
                sys.exit(f"error: nothing was chosen to {config_name}: give {', '.join(f'{n}=' for n in needs)}")
            sys.argv += config.search_path()
            sweep = Sweep(jobs if args.multirun and not asks else ())

            def one(values: DictConfig) -> None:
                job(values, sweep)

            hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name=config_name)(one)()
            if sweep.failed():
                sys.exit(1)

        return main

    return decorate


@dataclass
class Sweep:
    """What became of every job of `-m`: a line when it ends, and all of them at the end."""

    jobs: Sequence[Sequence[str]] = ()
    """Overrides of each."""
    lines: list[str] = field(default_factory=list)
    num_failed: int = 0

    def ended(self, number: int, end: str, *, failed: bool) -> None:
        """Job `number`, from 0, is over."""
        shared = set.intersection(*map(set, self.jobs)) if len(self.jobs) > 1 else set()
        own = " ".join(override for override in self.jobs[number] if override not in shared)
        self.lines.append(" ".join(f"job {number + 1} of {len(self.jobs)}, {own}: {end}".split()))
        self.num_failed += failed
        print(self.lines[-1], file=sys.stderr if failed else sys.stdout, flush=True)

    def failed(self) -> bool:
        """Whether a job failed; prints all lines again."""
        if len(self.lines) > 1:
            verdict = f"{self.num_failed} failed" if self.num_failed else "all finished"
            print(f"{len(self.lines)} jobs, {verdict}:", *self.lines, sep="\n  ", flush=True)  # noqa: T201
        return self.num_failed > 0


def _runs_elsewhere() -> bool:
    """Whether a job is another program's (the submitit launcher), which learns of an error only if it is raised."""
    return "basic" not in HydraConfig.get().launcher._target_.lower()


DETECTRON2_FLAGS = {
    "--config-file": "experiment=<name>, or your own YAML files with --config-dir <folder>",
    "--num-gpus": "launch.num_gpus=<N>",
    "--eval-only": "another command: partseg eval ckpt=<run directory>",
    "--resume": "resume=auto, which is the default: the same command goes on",
}


def _answer_detectron2(arguments: Sequence[str]) -> None:
    """Exit with the override that does the same where somebody types a flag of detectron2's programs."""
    found = dict.fromkeys(flag for a in arguments if (flag := a.partition("=")[0]) in DETECTRON2_FLAGS)
    if found:
        sys.exit(
            "error: " + "; ".join(f"{flag} is detectron2's, here it is {DETECTRON2_FLAGS[flag]}" for flag in found)
        )


def _check_all(
    jobs: Sequence[Sequence[str]], config_name: str, *, place: Callable[[DictConfig], Any] | None, asks: bool
) -> None:
    """ValueError where a job cannot be composed, lacks a value, or would share its place with another."""
    configs = [config.compose(config_name, overrides) for overrides in jobs]
    if not asks:
        _refuse_missing(configs)
    if place is not None:
        _refuse_shared_place(list(map(place, configs)))


def _refuse_missing(configs: Sequence[DictConfig]) -> None:
    missing = sorted({str(key) for each in configs for key in each if OmegaConf.is_missing(each, key)})
    if missing:
        raise ValueError(f"missing arguments: {', '.join(f'{key}=...' for key in missing)}")


def _refuse_shared_place(places: Sequence[Any]) -> None:
    shared = sorted({str(place) for place in places if places.count(place) > 1})
    if shared:
        raise ValueError(
            f"several of the {len(places)} jobs of this sweep would share {', '.join(shared)}: one trains, the others "
            "find it finished. Leave out name=, so that each gets its own, or put the swept key in: name='x_${seed}'"
        )


def _refuse_sweep_in_group(multirun: bool) -> None:
    if multirun and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.exit(
            "error: -m starts one run after another and cannot work inside torchrun (WORLD_SIZE > 1); "
            "drop torchrun and give launch.num_gpus=N instead"
        )
