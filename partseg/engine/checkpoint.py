"""Checkpoints of a run: whole or absent, `latest` moved last, refused for another vocabulary.

`checkpoints/` holds iter_0001000.pt files (the last few and the best ones), best.json, and the links latest.pt and
best_<evaluator>.pt, which follow from them. One file is {format, iteration, model, optimizer, config, vocabulary} and
`scaler` where fp16 is. Where weights are averaged, `model` holds the averages, which are what is scored, for whoever
reads no more than that; `ema` holds them and their count, `trained` the weights that training goes on from.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partseg.engine.described import from_detectron2
from partseg.engine.ema import COUNT, Ema
from partseg.utils import targets
from partseg.utils.archive import load_tensors
from partseg.utils.config import instantiate, renamed, stored
from partseg.utils.errors import ForeignFileError
from partseg.utils.files import json_bytes, link_to, sha256_of, sync_folder, write_atomic
from partseg.vocabulary.names import Vocabulary
from partseg.weights.load import LoadReport, load_weights

LOG = logging.getLogger(__name__)
FORMAT = "partseg-1"
KEYS = {"format", "iteration", "model", "optimizer", "config", "vocabulary"}
START = {"pretrained": None, "spread_text": False}
"""What a network is built without when its weights come from a checkpoint: it reads, fetches and writes nothing."""


class Checkpoints:
    """The `checkpoints/` folder of one run. Only rank 0 writes.

    `keep` is the number of last checkpoints kept beside the best ones. Each of `metrics` (`<evaluator>/<score>`) keeps
    its own best checkpoint, so that one training serves every protocol. `synthetic`: it is trained on drawings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        keep: int = 3,
        metrics: Sequence[str] = (),
        synthetic: bool = False,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint must be kept, or a killed run cannot resume")
        if len({metric.split("/")[0] for metric in metrics}) < len(metrics):
            raise ValueError(f"best.metrics={list(metrics)} names an evaluator twice; give one score of each evaluator")
        self.folder = Path(folder)
        self.config = dict(config)
        self.keep = keep
        self.metrics = tuple(metrics)
        self.synthetic = synthetic

    @property
    def latest(self) -> Path:
        """Link to the newest complete checkpoint."""
        return self.folder / "latest.pt"

    def path(self, iteration: int) -> Path:
        """File of one iteration."""
        return self.folder / f"iter_{iteration:07d}.pt"

    def save(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        iteration: int,
        vocabulary: Vocabulary,
        ema: Ema | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Path:
        """Write iter_<iteration>.pt, move `latest.pt`, then delete what is no longer kept.

        OSError when the disk is full or read-only; the previous checkpoints are untouched then.
        """
        state: dict[str, Any] = {
            "format": FORMAT,
            "iteration": iteration,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "config": self.config,
            "vocabulary": vocabulary.to_dict(),
            "synthetic": self.synthetic,
        }
        if ema is not None:
            averages = {name: value for name, value in ema.state_dict().items() if name != COUNT}
            state["ema"] = ema.state_dict()
            state["trained"] = {name: state["model"][name] for name in averages}
            state["model"] = {**state["model"], **averages}
        if scaler is not None and scaler.is_enabled():
            state["scaler"] = scaler.state_dict()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(iteration)
        _write(state, path)
        link_to(self.latest, path)
        self._prune()
        return path

    def offer_best(
        self, path: Path, *, iteration: int, scores: Mapping[str, float], used: Mapping[str, str] | None = None
    ) -> list[str]:
        """Make `path` the best of every metric whose score (`used` may name another) is; returns these metrics."""
        best, used = self.best(), used or {}
        better = [m for m in self.metrics if m in scores and (m not in best or scores[m] > best[m]["value"])]
        if better:
            entry = {"iteration": iteration, "file": path.name}
            self._set_best(best | {m: {"value": scores[m], "score": used.get(m, m), **entry} for m in better})
            self._prune()
        return better

    def repair(self, iteration: int) -> None:
        """Before a run goes on from `iteration`: links that a kill or a copy left behind follow their files again.

        A best checkpoint of a later iteration belongs to what is run again now and is forgotten, like one without file.
        """
        if not self.latest.is_file() and self.path(iteration).is_file():
            link_to(self.latest, self.path(iteration))
        best = self.best()
        for metric, entry in best.items():
            link, path = self._best_link(metric), self.folder / entry["file"]
            if link.is_file() and not link.is_symlink() and not path.is_file():  # a copy of the links' content alone
                link.replace(path)
        kept = {m: e for m, e in best.items() if e["iteration"] <= iteration and (self.folder / e["file"]).is_file()}
        for metric in sorted(set(best) - set(kept)):
            LOG.warning("the best checkpoint by %s, %s, is not part of this run any more", metric, best[metric]["file"])
        if best:
            self._set_best(kept)

    def best(self) -> dict[str, dict[str, Any]]:
        """metric -> {value, score, iteration, file} of its best checkpoint, for the present metrics that have one."""
        path = self.folder / "best.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {metric: record[metric] for metric in self.metrics if metric in record}

    def _set_best(self, best: Mapping[str, Mapping[str, Any]]) -> None:
        write_atomic(self.folder / "best.json", json_bytes(best, indent=1), durable=True)
        for metric, entry in best.items():
            link_to(self._best_link(metric), self.folder / entry["file"])

    def _best_link(self, metric: str) -> Path:
        return self.folder / f"best_{metric.split('/')[0]}.pt"

    def _prune(self) -> None:
        kept = {self.latest.resolve().name, *(entry["file"] for entry in self.best().values())}
        for path in sorted(self.folder.glob("iter_*.pt"))[: -self.keep]:
            if path.name not in kept:
                path.unlink()
        for path in self.folder.glob(".*.part"):  # left by a kill in the middle of a save
            path.unlink()


def load(path: str | Path) -> dict[str, Any]:
    """One of our checkpoints on the CPU; `path` is the file, its run directory or its `checkpoints/` folder.

    Tensors and plain containers only: loading runs no code. ValueError for damaged or foreign files.
    """
    path = resolve(path)
    try:
        state = load_tensors(path)
        if (named := from_detectron2(state)) is not None:
            state = {"format": FORMAT, **named}
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not set(state) >= KEYS:
        raise ForeignFileError(
            f"{path} is not a checkpoint of partseg ({FORMAT}); public weights go through partseg.load or init_from="
        )
    try:
        targets.check_plain(state["config"], what="config")
        targets.check_plain(state["vocabulary"], what="vocabulary")
        _check_entries(state)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return state


def resolve(path: str | Path) -> Path:
    """The checkpoint file that a user means: a file, or the newest one of a run directory of ours or of detectron2."""
    path = Path(path)
    found = path if path.is_file() else newest(path) or newest(path / "checkpoints") or _last_of_detectron2(path)
    if found is None:
        raise FileNotFoundError(f"no checkpoint at {path}: give a .pt file or a run directory with checkpoints/")
    return found


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in a `checkpoints/` folder: latest.pt, or the last file where a copy lost the links."""
    latest = folder / "latest.pt"
    return latest if latest.is_file() else max(folder.glob("iter_*.pt"), default=None)


def _last_of_detectron2(folder: Path) -> Path | None:
    note = folder / "last_checkpoint"  # a text file with the name of another
    found = folder / note.read_text(encoding="utf-8").strip() if note.is_file() else None
    return found if found is not None and found.is_file() else None


def last_iteration(directory: Path) -> int:
    """Iteration of a run's newest checkpoint, 0 without one."""
    found = newest(directory / "checkpoints")
    digits = "0" if found is None else found.resolve().stem.removeprefix("iter_")
    # a copy may have made files of links
    return int(digits) if digits.isdigit() or found is None else int(load(found)["iteration"])


def restore(
    state: Mapping[str, Any],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    vocabulary: Vocabulary,
    ema: Ema | None = None,
) -> int:
    """Put a loaded checkpoint into the objects of a run and return its iteration.

    Hyper-parameters stay those of the run: base learning rates are never taken from a file. ValueError for a checkpoint
    of another vocabulary, model or optimizer.
    """
    saved = _vocabulary(state)
    if saved.key != vocabulary.key:
        raise ValueError(
            f"the checkpoint was trained on vocabulary {saved.name!r} ({len(saved)} object-parts), this run uses "
            f"{vocabulary.name!r} ({len(vocabulary)} object-parts){saved.first_difference(vocabulary)}. "
            "Resuming would mix them: start a new run with init_from=<checkpoint> resume=never, or another name="
        )
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        model.load_state_dict({**state["model"], **state.get("trained", {})})
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the checkpoint does not fit this run's model or optimizer: {' '.join(str(error).split())[:300]}. Give "
            "the settings that it was trained with, or start a new run with init_from=<checkpoint> and another name="
        ) from error
    for group, own in zip(optimizer.param_groups, settings):
        group.update(own)
    if ema is not None:
        if "ema" not in state:
            raise ValueError("train.ema_decay is set, but the checkpoint has no averaged weights; set it to null")
        ema.load_state_dict(state["ema"])
    return int(state["iteration"])


def init_from(model: nn.Module, source: str) -> LoadReport:
    """Start weights from a public checkpoint (file or hub name), or from a checkpoint or run directory of ours."""
    return load_weights(model, str(resolve(source)) if Path(source).exists() else source)


def load_model(path: str | Path, *, plugins: Sequence[str] = ()) -> tuple[nn.Module, Vocabulary, dict[str, Any]]:
    """(model in eval mode on the CPU, training vocabulary, resolved config) of a checkpoint.

    The averaged weights are taken where there are any. The file may be a stranger's: only its config's `model` is
    built, of classes that configs/model names or that lie in `plugins`, and no other file is read or written.
    `plugins` are modules of yours, and files (a CLIP config) that the network may read. ValueError for all else.
    """
    state = load(path)
    return *built(state, path=resolve(path), plugins=plugins), state["config"]


def built(state: Mapping[str, Any], *, path: Path, plugins: Sequence[str] = ()) -> tuple[nn.Module, Vocabulary]:
    """`load_model` of what `load` gave; `path` is for messages."""
    try:
        model, vocabulary = _network(state, plugins), _vocabulary(state)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {' '.join(str(text).split())}") from error
    return model.eval(), vocabulary


def digest(path: str | Path) -> str:
    """sha256 of the checkpoint file, as recorded in results.json."""
    return sha256_of(resolve(path).resolve())


def _check_entries(state: Mapping[str, Any]) -> None:
    """ValueError unless every entry is of its kind, so that nobody after this runs into a text among tensors."""
    mappings = dict.fromkeys(("model", "ema", "trained", "optimizer", "config"), Mapping)
    kinds: dict[str, Any] = {"iteration": int, **mappings}
    for key, kind in kinds.items():
        if key in state and not isinstance(state[key], kind):
            raise ValueError(f"its {key!r} is a {type(state[key]).__name__}")
    for key in ("model", "ema", "trained"):
        entries = state.get(key, {}).items()
        wrong = [n for n, value in entries if not isinstance(value, torch.Tensor) or not isinstance(n, str)]
        if wrong:
            raise ValueError(f"its {key!r} has entries that are no named tensors: {wrong[:3]}")


def _network(state: Mapping[str, Any], plugins: Sequence[str]) -> nn.Module:
    node = renamed(without_start(state["config"].get("model")))
    config = stored(node, group="model", plugins=plugins)
    targets.check_no_files(node, group="model", plugins=plugins)
    weights = {**state["model"], **{name: x for name, x in state.get("ema", {}).items() if name != COUNT}}
    if not plugins:  # whose classes may not build without memory
        with torch.device("meta"):  # sizes that the weights do not have take no memory; 0.2 s at paper size
            _check_fit(instantiate(config), weights)
    model = instantiate(config)
    _check_fit(model, weights)
    model.load_state_dict(weights)
    return model


def without_start(node: Any) -> Any:
    """A network's config node with START in it."""
    if isinstance(node, Mapping):
        return {key: START[key] if key in START else without_start(value) for key, value in node.items()}
    return [without_start(each) for each in node] if isinstance(node, list | tuple) else node


def _check_fit(model: object, weights: Mapping[str, torch.Tensor]) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"config key 'model' builds a {type(model).__name__}, which is no network")
    own = model.state_dict()
    wrong = [n for n in {**own, **weights} if n not in own or n not in weights or own[n].shape != weights[n].shape]
    if wrong:
        raise ValueError(f"its weights are not those of its config: {len(wrong)} tensors differ, {sorted(wrong)[:3]}")


def _vocabulary(state: Mapping[str, Any]) -> Vocabulary:
    try:
        return Vocabulary.from_dict(state["vocabulary"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the checkpoint's vocabulary is damaged: {type(error).__name__}: {error}") from error


def _write(state: Mapping[str, Any], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"cannot write checkpoint {path}: {error}. The previous checkpoint is intact: free space, start again"
        ) from error
    temporary.replace(path)
    sync_folder(path.parent)
