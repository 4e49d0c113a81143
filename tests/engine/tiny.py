"""A network, images and a run small enough for tests of the engine. Also a script, so that tests can start and kill it:

python tests/engine/tiny.py output=<folder> iterations=10 launch.num_processes=2 ...
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from partseg.data.dataset import PartSegDataset
from partseg.data.loader import build_train_loader
from partseg.engine import checkpoint
from partseg.engine.checkpoint import Checkpoints, load, restore
from partseg.engine.hooks import CheckpointHook, LogHook, Run
from partseg.engine.launch import exit_for_requeue, launch
from partseg.engine.optim import adamw, poly
from partseg.engine.trainer import Trainer
from partseg.engine.writers import JsonlWriter
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj
from partseg.geometry import InputSpec
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.losses.criterion import Criterion
from partseg.losses.pixel import ObjectBCE, ObjectPartBCE
from partseg.prediction import DenseScores, Prediction
from partseg.structures import Batch, Outputs, Record, Sample
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary

SIZE = 16
DEFAULTS = {
    "output": "???",
    "iterations": 10,
    "batch_size": 4,
    "accumulation": 1,
    "num_workers": 0,
    "every": 5,  # steps between checkpoints
    "kill_in_save": None,  # iteration whose checkpoint is cut in half by SIGKILL
    "fail_rank": None,  # rank that raises at iteration 3
    "kill_worker": False,  # a data worker dies at its tenth sample
    "step_seconds": 0.0,
    "launch": {"num_gpus": 0, "num_processes": 1},
}


def vocabulary() -> Vocabulary:
    """Five object-parts of two objects."""
    return Vocabulary.from_mapping({"dog": ["head", "tail", "leg"], "car": ["wheel", "door"]}, name="tiny")


@dataclass(frozen=True)
class TinyPrompts:
    """Which rows of the class vectors are asked for."""

    object_part: torch.Tensor

    def subset(self, kept: np.ndarray) -> "TinyPrompts":
        return TinyPrompts(self.object_part[torch.from_numpy(kept)])


class TinyNet(nn.Module):
    """Two convolutions and a vector per class."""

    input = InputSpec((SIZE, SIZE))
    weight_layouts = ()

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.classes = nn.Embedding(8, 8)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def encode_text(self, words) -> TinyPrompts:
        return TinyPrompts(torch.arange(len(words)))

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> Outputs:
        logits = self.logits(batch.images)
        parts, objects = len(batch.vocabulary) + 1, batch.vocabulary.num_objects + 1
        return Outputs(object_part=logits[:, :parts], object=logits[:, :objects])

    def predict(self, images, prompts, *, sizes, regions=None, given=None) -> list[Prediction]:
        rows = torch.cat([prompts.object_part, torch.tensor([len(vocabulary())])])
        return [DenseScores(x[rows], None, size) for x, size in zip(self.logits(images), sizes, strict=True)]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images.float() / 255 * self.frozen[:, None, None])
        return torch.einsum("bdhw,cd->bchw", features, self.classes.weight)


class RandomMapper:
    """Images and labels from `rng` alone; the share of labelled pixels differs widely between samples."""

    def __init__(self, *, kill_worker: bool = False) -> None:
        self.kill_worker = kill_worker

    def __call__(self, record: Record, *, label_vocabulary, vocabulary, rng: np.random.Generator) -> Sample:
        if self.kill_worker and torch.utils.data.get_worker_info() is not None and int(record.image_id) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        part = rng.integers(0, len(vocabulary), (SIZE, SIZE)).astype(np.int32)
        obj = vocabulary.object_of[part].astype(np.int32)
        unknown = rng.random((SIZE, SIZE)) < rng.random()
        part[unknown], obj[unknown] = IGNORE_LABEL, BACKGROUND_LABEL
        image = torch.from_numpy(rng.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8))
        image[0] = torch.from_numpy(np.where(unknown, 0, part * 40 + 40).astype(np.uint8))
        return Sample(image, torch.from_numpy(part), torch.from_numpy(obj), record.image_id, record.file_name)


def dataset(num: int = 20, *, kill_worker: bool = False) -> PartSegDataset:
    """Random images, the same ones for the same draw."""
    records = [Record(image_id=str(i), file_name=f"{i}.jpg") for i in range(num)]
    mapper = RandomMapper(kill_worker=kill_worker)
    return PartSegDataset(records, label_vocabulary=vocabulary(), vocabulary=vocabulary(), mapper=mapper, seed=7)


def criterion() -> Criterion:
    """Two terms with different counts."""
    part = {"weight": 1.0, "term": ObjectPartBCE()}
    return Criterion(terms={"object_part": part, "object": {"weight": 0.5, "term": ObjectBCE()}})


def trainer(*, start: int = 0, hooks=(), model: nn.Module | None = None, **options) -> Trainer:
    """A trainer on the tiny parts; `options` are DEFAULTS entries or Trainer arguments."""
    run = {**DEFAULTS, **{k: options.pop(k) for k in list(options) if k in DEFAULTS}}
    torch.manual_seed(0)
    model = TinyNet() if model is None else model
    loader = build_train_loader(
        dataset(kill_worker=run["kill_worker"]),
        batch_size=run["batch_size"],
        accumulation=run["accumulation"],
        num_workers=run["num_workers"],
        seed=7,
        start_iter=start,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return Trainer(
        model,
        criterion=options.pop("criterion", None) or criterion(),
        optimizer=options.pop("optimizer", None) or adamw(model, lr=1e-2, weight_decay=1e-2),
        schedule=lambda iteration: poly(iteration, iterations=run["iterations"]),
        loader=options.pop("loader", loader),
        vocabulary=vocabulary(),
        iterations=run["iterations"],
        accumulation=run["accumulation"],
        hooks=hooks,
        **{"clip_norm": 1.0, **options},
    )


def run_of(directory: Path, *, start: int = 0, iterations: int = 10, evaluate=dict, **options) -> Run:
    """What hooks get; `evaluate` gives the scores of a model."""
    writers = [JsonlWriter(directory, start=start, iterations=iterations)] if distributed.is_main() else []
    checkpoints = Checkpoints(directory / "checkpoints", config={}, keep=2, metrics=["toy/score"])
    scoring = {"predictor": Predictor(), "evaluators": {"toy": PixelEvaluator(OracleObj())}}
    options |= {"samples": dataset(), "vocabulary": vocabulary(), **scoring}
    evaluated = lambda model: SimpleNamespace(scores=partial(evaluate, model))  # noqa: E731
    return Run(directory, checkpoints, writers, evaluated, **options)


class Trouble:
    """A hook that makes what tests ask for go wrong."""

    def __init__(self, cfg) -> None:
        self.cfg = cfg

    def before_train(self, trainer) -> None:
        if self.cfg.kill_in_save is not None:
            write = torch.save

            def half(state, file) -> None:
                if state["iteration"] != self.cfg.kill_in_save:
                    return write(state, file)
                write(state, file)
                file.truncate(file.tell() // 2)
                file.flush()
                return os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.torch.save = half

    def after_step(self, trainer) -> None:
        time.sleep(self.cfg.step_seconds)
        (Path(self.cfg.output) / f"alive_{distributed.rank()}").write_text(f"{os.getpid()} {trainer.iteration}")
        if self.cfg.fail_rank == distributed.rank() and trainer.iteration == 3:
            raise ValueError("made to fail")

    def after_train(self, trainer) -> None:
        torch.save(trainer.model.state_dict(), Path(self.cfg.output) / f"weights_{distributed.rank()}.pt")


def train(cfg) -> bool:
    """One process of a run in cfg.output, resumed if it holds a checkpoint."""
    directory = Path(cfg.output)
    directory.mkdir(parents=True, exist_ok=True)
    state = load(directory) if (directory / "checkpoints" / "latest.pt").exists() else None
    start = state["iteration"] if state else 0
    run = run_of(directory, start=start, iterations=cfg.iterations)
    hooks = [Trouble(cfg), LogHook(run, every=1), CheckpointHook(run, every=cfg.every)]
    options = {k: cfg[k] for k in ("iterations", "batch_size", "accumulation", "num_workers", "kill_worker")}
    built = trainer(start=start, hooks=hooks, **options)
    if state:
        restore(state, model=built.model, optimizer=built.optimizer, vocabulary=built.vocabulary)
    complete = built.train(start)
    for writer in run.writers:
        writer.close()
    return complete


if __name__ == "__main__":
    config = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_dotlist(sys.argv[1:]))
    if not launch(train, config):
        exit_for_requeue()
