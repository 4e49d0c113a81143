"""One pass over a data set: each image goes through the network once and serves every evaluator.

Called by tools/eval_net.py and by the training loop's evaluation hook.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from partseg.evaluation import summary
from partseg.evaluation.evaluator import Counts, Evaluator
from partseg.evaluation.labels import ScoreReader
from partseg.evaluation.predictor import Predictor, PreparedPredictor
from partseg.structures import EvalBatch, Sample, Scores
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary

OnLabels = Callable[[Sample, dict[str, Tensor]], None]
"""Called after each image with the predicted label map (0..K-1, K background) of each evaluator."""


@dataclass(frozen=True)
class Evaluation:
    """Counts per evaluator, summed over processes; seconds are sums over processes, memory is the largest of them."""

    counts: dict[str, Counts]
    num_images: int
    network_seconds: float
    postprocess_seconds: float
    loading_seconds: float
    peak_memory_bytes: int
    peak_device_memory_bytes: int


def evaluate(
    model: nn.Module,
    loader: Iterable[EvalBatch],
    *,
    vocabulary: Vocabulary,
    predictor: Predictor,
    evaluators: Mapping[str, Evaluator],
) -> dict[str, float | None]:
    """Scores in percent with keys like `oracle_obj/mIoU_unseen`; None where a score is not defined (nothing unseen)."""
    evaluation = run(model, loader, vocabulary=vocabulary, predictor=predictor, evaluators=evaluators)
    return summary.flat(evaluation.counts, vocabulary)


def run(
    model: nn.Module,
    loader: Iterable[EvalBatch],
    *,
    vocabulary: Vocabulary,
    predictor: Predictor,
    evaluators: Mapping[str, Evaluator],
    on_labels: OnLabels | None = None,
) -> Evaluation:
    """Run every image of `loader` (this process's share) once through the network and count for all evaluators.

    The model is in eval mode meanwhile and gets its mode back. Every process must call it.
    """
    _check(predictor, evaluators)
    training = model.training
    device = next(model.parameters()).device
    for evaluator in evaluators.values():
        evaluator.reset(vocabulary, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model.eval()
    try:
        seconds, num_images = _loop(model, loader, vocabulary, predictor, evaluators, on_labels)
    finally:
        model.train(training)
    totals = distributed.reduce_sum(torch.tensor([*seconds, num_images], dtype=torch.float64)).tolist()
    memory = [_peak_memory(), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0]
    peaks = [max(values) for values in zip(*distributed.gather_objects(memory))]
    return Evaluation(
        counts={name: evaluator.evaluate() for name, evaluator in evaluators.items()},
        num_images=round(totals[3]),
        network_seconds=totals[0],
        postprocess_seconds=totals[1],
        loading_seconds=totals[2],
        peak_memory_bytes=peaks[0],
        peak_device_memory_bytes=peaks[1],
    )


def _loop(
    model: nn.Module,
    loader: Iterable[EvalBatch],
    vocabulary: Vocabulary,
    predictor: Predictor,
    evaluators: Mapping[str, Evaluator],
    on_labels: OnLabels | None,
) -> tuple[tuple[float, float, float], int]:
    """(network, post-processing, loading) seconds and the number of images."""
    prepared = predictor.prepare(model, vocabulary)
    network = postprocess = loading = 0.0
    num_images = 0
    mark = _clock()
    for batch in loader:
        loaded = _clock()
        scores = _scores(prepared, batch)
        predicted = _clock(scores[0].object_part.device)
        for sample, score in zip(batch.samples, scores):
            sample = _on_device(sample, score.object_part.device)
            labels = process_image(score, sample, evaluators, class_chunk=predictor.class_chunk)
            if on_labels is not None:
                on_labels(sample, labels)
            num_images += 1
        done = _clock(scores[0].object_part.device)
        loading, network, postprocess = (
            loading + loaded - mark,
            network + predicted - loaded,
            postprocess + done - predicted,
        )
        mark = done
    return (network, postprocess, loading), num_images


@torch.inference_mode()
def process_image(
    scores: Scores, sample: Sample, evaluators: Mapping[str, Evaluator], *, class_chunk: int | None = None
) -> dict[str, Tensor]:
    """Count one image for every evaluator and return the label maps by evaluator name."""
    reader = ScoreReader(scores, class_chunk=class_chunk)
    try:
        choices = {name: evaluator.choose(reader, sample) for name, evaluator in evaluators.items()}
        chosen = iter(reader.choose([choice for choice in choices.values() if choice is not None]))
        labels = {name: reader.object_parts if choice is None else next(chosen) for name, choice in choices.items()}
    except ValueError as error:
        raise ValueError(f"image {sample.name!r}: {error}") from error
    for name, evaluator in evaluators.items():
        evaluator.process(labels[name], sample)
    return labels


def _scores(prepared: PreparedPredictor, batch: EvalBatch) -> list[Scores]:
    sizes = [(sample.object_part.shape[0], sample.object_part.shape[1]) for sample in batch.samples]
    objects = None
    if prepared.predictor.prompts == "present":
        count = prepared.vocabulary.num_objects
        ids = torch.cat([sample.object.flatten() for sample in batch.samples]).unique().tolist()
        objects = [i for i in ids if i < count]
    return prepared(batch.images, sizes, objects=objects)


def _check(predictor: Predictor, evaluators: Mapping[str, Evaluator]) -> None:
    if not evaluators:
        raise ValueError("there is nothing to evaluate: the config group `evaluator` is empty")
    blind = sorted(name for name, evaluator in evaluators.items() if not evaluator.protocol.given_objects)
    if predictor.prompts == "present" and blind:
        raise ValueError(
            f"predictor.prompts=present tells the network which objects there are; evaluators {blind} must not know; "
            "use predictor.prompts=all or keep only protocols that are given the objects"
        )


def _on_device(sample: Sample, device: torch.device) -> Sample:
    """Label maps of the sample on `device`; the image stays."""
    if sample.object_part.device == device:
        return sample
    owner, foreign = sample.num_owner, sample.num_foreign
    return replace(
        sample,
        object_part=sample.object_part.to(device, non_blocking=True),
        object=sample.object.to(device, non_blocking=True),
        num_owner=None if owner is None else owner.to(device, non_blocking=True),
        num_foreign=None if foreign is None else foreign.to(device, non_blocking=True),
    )


def _clock(device: torch.device | None = None) -> float:
    """Seconds; waits for the device's work first, so that each part gets its own."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
