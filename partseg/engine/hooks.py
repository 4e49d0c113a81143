"""What happens around the steps: logging, checkpoints, evaluation, pictures, profiles. Order is that of the YAML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from partseg.data.dataset import PartSegDataset
from partseg.data.io import read_image, upright
from partseg.engine.checkpoint import Checkpoints
from partseg.engine.trainer import Hook, Step, Trainer
from partseg.engine.writers import LOG, Writer, evaluated
from partseg.evaluation.evaluator import Answer, Evaluator
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor, device_of
from partseg.evaluation.runner import Evaluation, on_device, predict_batch, told_objects
from partseg.photo_prediction import shrunk
from partseg.structures import EvalBatch, Sample
from partseg.utils import devices, distributed
from partseg.utils.visualize import overlay, save_png, tile
from partseg.vocabulary.names import Vocabulary


@dataclass(frozen=True)
class Run:
    """What hooks may use beside the trainer. `writers` is empty on all ranks but 0."""

    directory: Path
    checkpoints: Checkpoints
    writers: Sequence[Writer]
    evaluate: Callable[[nn.Module], Evaluation]
    """A model on the validation split; all ranks call it together and all get the result."""
    samples: PartSegDataset
    """Validation split, for pictures."""
    vocabulary: Vocabulary
    """The validation split's vocabulary."""
    predictor: Predictor
    evaluators: Mapping[str, Evaluator]
    write_results: Callable[[Evaluation, Path], None] | None = None
    """Takes the last evaluation and its checkpoint, on rank 0."""


class LogHook(Hook):
    """Reports means over the last `every` steps: loss, its terms, lr, gradient norm, speed, wait for data."""

    def __init__(self, run: Run, *, every: int) -> None:
        self.run = run
        self.every = _positive(every)
        self.steps: list[Step] = []
        self.first = 1

    def before_train(self, trainer: Trainer) -> None:
        """Start peak memory at zero."""
        self.first = trainer.iteration + 1
        if trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)

    def after_step(self, trainer: Trainer) -> None:
        """Collect; reduce and report every `every` steps."""
        assert trainer.last is not None
        self.steps.append(trainer.last)
        if trainer.iteration == self.first:
            LOG.info("start: first step, %.1f s, %.1f of it for data", trainer.last.seconds, trainer.last.data_seconds)
        for writer in self.run.writers:
            writer.progress(trainer.iteration)
        if trainer.iteration % self.every == 0 or trainer.iteration == trainer.iterations:
            values = self.summary(trainer)
            _check_gradients(values["train/grad_norm"], trainer=trainer, steps=len(self.steps))
            self.steps.clear()
            for writer in self.run.writers:
                writer.scalars(values, iteration=trainer.iteration)

    def summary(self, trainer: Trainer) -> dict[str, float]:
        """Means over the collected steps, summed over processes where a value is a share of a global one."""
        count = len(self.steps)
        names = ["loss", *self.steps[-1].terms]
        shares = [torch.stack([s.loss for s in self.steps]).sum()]
        shares += [torch.stack([s.terms[name] for s in self.steps]).sum() for name in self.steps[-1].terms]
        seconds, data = sum(s.seconds for s in self.steps), sum(s.data_seconds for s in self.steps)
        images = sum(s.num_images for s in self.steps)
        timing = torch.tensor([seconds, data, images], dtype=torch.float64, device=trainer.device)
        total = distributed.reduce_sum(torch.cat([torch.stack(shares).double(), timing])).tolist()
        values = {f"train/{name}": value / count for name, value in zip(names, total)}
        seconds, data, images = total[-3:]
        seconds_per_step = seconds / count / distributed.world_size()
        values |= {
            "train/lr": self.steps[-1].lr,
            "train/grad_norm": float(torch.stack([s.grad_norm for s in self.steps]).mean()),
            "train/seconds_per_step": seconds_per_step,
            "train/images_per_second": images / count / seconds_per_step,
            "train/data_share": data / seconds,
        }
        on_gpu = trainer.device.type == "cuda"
        most = torch.cuda.max_memory_allocated(trainer.device) if on_gpu else devices.peak_memory()
        values["train/memory_gib"] = most / 2**30
        return values


class CheckpointHook(Hook):
    """Saves every `every` steps, at the end and on a stop request."""

    def __init__(self, run: Run, *, every: int) -> None:
        self.run = run
        self.every = _positive(every)
        self.saved_at: int | None = None

    def before_train(self, trainer: Trainer) -> None:
        """The iteration resumed from is on the disk already."""
        self.saved_at = trainer.iteration

    def after_step(self, trainer: Trainer) -> None:
        """Save when due."""
        if trainer.iteration % self.every == 0:
            self.save(trainer)

    def after_train(self, trainer: Trainer) -> None:
        """Save what is not on the disk yet."""
        if trainer.iteration != self.saved_at:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint."""
        self.saved_at = trainer.iteration
        _check_weights(trainer)
        if distributed.is_main():
            save_checkpoint(self.run.checkpoints, trainer)


class EvalHook(Hook):
    """Scores the validation split every `every` steps and at the end, and keeps the best checkpoint.

    An evaluation is done once metrics.jsonl has it, which is written last. One that is due at the iteration resumed
    from and not done, because of a kill or a stop request, comes before the first step.
    """

    def __init__(self, run: Run, *, every: int) -> None:
        self.run = run
        self.every = _positive(every)

    def before_train(self, trainer: Trainer) -> None:
        """Evaluate what is owed."""
        if self.due(trainer) and trainer.iteration not in distributed.from_main(lambda: evaluated(self.run.directory)):
            self.score(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Evaluate when due; a stop request comes first."""
        if self.due(trainer) and not trainer.stopping:
            self.score(trainer)

    def due(self, trainer: Trainer) -> bool:
        """Does the schedule evaluate at this iteration?"""
        return trainer.iteration > 0 and (
            trainer.iteration % self.every == 0 or trainer.iteration == trainer.iterations
        )

    def score(self, trainer: Trainer) -> None:
        """Evaluate, keep the best, then report."""
        _check_weights(trainer)
        evaluation = self.run.evaluate(evaluated_model(trainer))
        scores = evaluation.scores()
        unknown = [metric for metric in self.run.checkpoints.metrics if metric not in scores]
        if unknown:
            raise KeyError(f"best.metrics {unknown} are not among the scores {sorted(scores)}")
        if distributed.is_main():
            self.keep_best(trainer, scores)
            if self.run.write_results is not None and trainer.iteration == trainer.iterations:
                self.run.write_results(evaluation, _saved(self.run.checkpoints, trainer))
        for writer in self.run.writers:
            writer.scalars({k: v for k, v in scores.items() if v is not None}, iteration=trainer.iteration)

    def keep_best(self, trainer: Trainer, scores: Mapping[str, float | None]) -> None:
        """Offer this iteration's checkpoint as the best one of each metric."""
        checkpoints = self.run.checkpoints
        defined: dict[str, float] = {}
        used: dict[str, str] = {}
        for metric in checkpoints.metrics:
            # where no class is unseen there is no harmonic mean, and the mean says it all
            used[metric] = metric if scores[metric] is not None else metric.removesuffix("_harmonic")
            if (score := scores.get(used[metric])) is None:
                LOG.warning("best.metrics: %s is not defined on this data; no best by it", metric)
            else:
                defined[metric] = score
        if not defined:
            return
        path = _saved(checkpoints, trainer)
        for metric in checkpoints.offer_best(path, iteration=trainer.iteration, scores=defined, used=used):
            LOG.info("best %s so far: %.4g at iteration %d", used[metric], defined[metric], trainer.iteration)


class VisualizeHook(Hook):
    """Draws a few validation images every `every` steps: photo, truth, and the labels that each evaluator scores."""

    def __init__(self, run: Run, *, every: int, num_images: int = 4, max_side: int = 400) -> None:
        self.run = run
        self.every = _positive(every)
        self.num_images = num_images
        self.max_side = max_side

    def before_train(self, trainer: Trainer) -> None:
        """Draw what a killed run still owes."""
        if trainer.iteration and not self.path(trainer).is_file():
            self.after_step(trainer)

    def path(self, trainer: Trainer) -> Path:
        """File of this iteration's picture."""
        return self.run.directory / "pictures" / f"iter_{trainer.iteration:07d}.png"

    def after_step(self, trainer: Trainer) -> None:
        """Draw when due, on rank 0."""
        if trainer.iteration % self.every or trainer.stopping:
            return
        _check_weights(trainer)
        if not distributed.is_main():
            return
        samples = [self.run.samples[i] for i in range(min(self.num_images, len(self.run.samples)))]
        rows = self.rows(evaluated_model(trainer), samples)
        scored = [name for name, each in self.run.evaluators.items() if isinstance(each, PixelEvaluator)]
        captions = ["photo", "truth", *scored] * len(rows)
        picture = tile([p for row in rows for p in row], columns=len(rows[0]), captions=captions)
        save_png(picture, self.path(trainer))
        for writer in self.run.writers:
            writer.image("pictures", picture, iteration=trainer.iteration)

    def rows(self, model: nn.Module, samples: Sequence[Sample]) -> list[list[np.ndarray]]:
        """Photo, truth and one picture per evaluator that scores labels, for each sample."""
        training, names = model.training, self.run.vocabulary.object_parts
        model.eval()
        try:
            found = [{"truth": sample.object_part, **predicted_labels(model, sample, self.run)} for sample in samples]
        finally:
            model.train(training)
        rows = []
        for sample, labels in zip(samples, found):
            photo = np.asarray(upright(read_image(sample.file_name)))
            shown = [shrunk(photo, each.cpu().numpy(), self.max_side) for each in labels.values()]
            rows.append([shown[0][0], *(overlay(image, each, names) for image, each in shown)])
        return rows


def predicted_labels(model: nn.Module, sample: Sample, run: Run) -> dict[str, Tensor]:
    """The label map of each evaluator that scores one, made as the runner makes it but not counted."""
    device = device_of(model)
    prepared = run.predictor.prepare(model, run.vocabulary)
    labels: dict[str, Tensor] = {}
    for name, evaluator in run.evaluators.items():
        if not isinstance(evaluator, PixelEvaluator):
            continue
        told = told_objects(model, run.predictor, {name: evaluator})
        prediction = predict_batch(prepared, EvalBatch(sample.image[None], (sample,)), told=told)[0]
        answer = Answer(prediction, run.vocabulary, class_chunk=run.predictor.class_chunk)
        labels[name] = evaluator.protocol.labels(answer.labels, on_device(sample, device), run.vocabulary)
    return labels


def evaluated_model(trainer: Trainer) -> nn.Module:
    """The model whose scores count: the averaged weights where there are any."""
    return trainer.model if trainer.ema is None else trainer.ema.module


class ProfileHook(Hook):
    """Traces `steps` steps after `start` with torch.profiler, on rank 0: profile/trace.json and a table in log.txt."""

    def __init__(self, run: Run, *, start: int, steps: int) -> None:
        self.run = run
        self.start = start
        self.steps = steps
        self.profiler: torch.profiler.profile | None = None

    def after_step(self, trainer: Trainer) -> None:
        """Start, stop and write."""
        if trainer.iteration == self.start and distributed.is_main():
            self.profiler = torch.profiler.profile(record_shapes=True, profile_memory=True)
            self.profiler.start()
        elif self.profiler is not None and trainer.iteration >= self.start + self.steps:
            self.profiler.stop()
            folder = self.run.directory / "profile"
            folder.mkdir(exist_ok=True)
            self.profiler.export_chrome_trace(str(folder / "trace.json"))
            key = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
            LOG.info("profile of %d steps\n%s", self.steps, self.profiler.key_averages().table(key, row_limit=25))
            self.profiler = None


def save_checkpoint(checkpoints: Checkpoints, trainer: Trainer) -> Path:
    """The trainer's state as a checkpoint of this iteration."""
    return checkpoints.save(
        trainer.model,
        optimizer=trainer.optimizer,
        iteration=trainer.iteration,
        vocabulary=trainer.vocabulary,
        ema=trainer.ema,
        scaler=trainer.scaler,
    )


def _saved(checkpoints: Checkpoints, trainer: Trainer) -> Path:
    """This iteration's checkpoint, saved now where none was due."""
    path = checkpoints.path(trainer.iteration)
    return path if path.is_file() else save_checkpoint(checkpoints, trainer)


def _positive(every: int) -> int:
    if every < 1:
        raise ValueError(
            f"every={every} in the config group hooks: it must be 1 or more; hooks.<name>=null leaves it out"
        )
    return every


def _check_gradients(norm: float, *, trainer: Trainer, steps: int) -> None:
    if not math.isfinite(norm):
        last = trainer.iteration - 1
        where = f"iteration {last}" if steps == 1 else f"one of the iterations {trainer.iteration - steps} to {last}"
        raise FloatingPointError(
            f"the gradient norm is {norm} at {where}; nothing was saved, the last checkpoint is intact: resume with a "
            "lower optimizer.lr or train.precision=fp32"
        )


@torch.no_grad()
def _check_weights(trainer: Trainer) -> None:
    """What is not finite is neither scored nor saved. All ranks hold the same weights and so stop together."""
    if trainer.last is not None:
        _check_gradients(float(trainer.last.grad_norm), trainer=trainer, steps=1)
    weights = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    averages = {} if trainer.ema is None else {f"average of {n}": p for n, p in trainer.ema.state_dict().items()}
    # a sum keeps NaN and infinity: 8 ms for the 27 million trained weights of paper size, whose checkpoint takes 2 s
    sums = {name: value.sum() for name, value in {**weights, **averages}.items()}
    if not torch.stack(list(sums.values())).isfinite().all():
        broken = [name for name, value in sums.items() if not value.isfinite()]
        raise FloatingPointError(
            f"weights are not finite after iteration {trainer.iteration - 1} ({', '.join(broken[:3])}; {len(broken)} "
            "in all); nothing was saved, the last checkpoint is intact: resume with a lower optimizer.lr"
        )
