"""One pass over a data set: each image goes through the network once and serves every evaluator.

Called by tools/eval_net.py and by the training loop's evaluation hook.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from partseg.evaluation.evaluator import Answer, Evaluator, Objects, Result
from partseg.evaluation.object_first import predict_objects_first
from partseg.evaluation.predictor import Predictor, PreparedPredictor, device_of
from partseg.geometry import Region
from partseg.prediction import Prediction, Segments
from partseg.structures import EvalBatch, Sample
from partseg.utils import devices, distributed
from partseg.utils.devices import autocast
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases

NOTHING: tuple[Objects, ...] = ("none",)
OnLabels = Callable[[Sample, dict[str, Tensor]], None]
"""Called after each image with the predicted label map (0..K-1, K background) of each evaluator that scores one."""


@dataclass(frozen=True)
class Evaluation:
    """Results per evaluator, over all processes; seconds are sums over processes, memory is the largest of them."""

    results: dict[str, Result]
    num_images: int
    network_seconds: float
    postprocess_seconds: float
    loading_seconds: float
    peak_memory_bytes: int
    peak_device_memory_bytes: int

    def scores(self) -> dict[str, float | None]:
        """All scores of all evaluators in percent, keys like `oracle_obj/mIoU_unseen`; None: not defined."""
        return {f"{name}/{key}": v for name, result in self.results.items() for key, v in result.scores().items()}


def evaluate(
    model: nn.Module,
    loader: Iterable[EvalBatch],
    *,
    vocabulary: Vocabulary,
    predictor: Predictor,
    evaluators: Mapping[str, Evaluator],
) -> dict[str, float | None]:
    """`Evaluation.scores` of one `run`."""
    return run(model, loader, vocabulary=vocabulary, predictor=predictor, evaluators=evaluators).scores()


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
    told = told_objects(model, predictor, evaluators)
    training = model.training
    device = device_of(model)
    for evaluator in evaluators.values():
        evaluator.reset(vocabulary, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model.eval()
    try:
        seconds, num_images = _loop(model, loader, vocabulary, predictor, evaluators, told, on_labels)
    finally:
        model.train(training)
    distributed.at("the end of an evaluation")
    totals = distributed.reduce_sum(torch.tensor([*seconds, num_images], dtype=torch.float64)).tolist()
    memory = [devices.peak_memory(), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0]
    peaks = [max(values) for values in zip(*distributed.gather_objects(memory))]
    return Evaluation(
        results={name: evaluator.evaluate() for name, evaluator in evaluators.items()},
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
    told: Collection[Objects],
    on_labels: OnLabels | None,
) -> tuple[tuple[float, float, float], int]:
    """(network, post-processing, loading) seconds and the number of images."""
    named = {name: e for name, e in evaluators.items() if e.words == "vocabulary"}
    referring = {name: e for name, e in evaluators.items() if e.words == "phrases"}
    nameless = {name: e for name, e in evaluators.items() if e.words == "nothing"}
    prepared = predictor.prepare(model, vocabulary) if named else None
    device = device_of(model)
    network = postprocess = loading = 0.0
    num_images = 0
    mark = _clock()
    for batch in loader:
        distributed.at(f"image {num_images + 1} of its share of an evaluation")
        loaded = _clock()
        found = [] if prepared is None else predict_batch(prepared, batch, told=told)
        masks = [_predict_phrases(model, predictor, sample) for sample in batch.samples] if referring else []
        regions = _propose(model, predictor, batch) if nameless else []
        predicted = _clock(device)
        for i, sample in enumerate(batch.samples):
            sample = on_device(sample, device)
            labels = {}
            if named:
                labels = process_image(Answer(found[i], vocabulary, class_chunk=predictor.class_chunk), sample, named)
            if referring and sample.phrases:
                process_image(Answer(masks[i], vocabulary), sample, referring)
            if nameless:
                process_image(Answer(regions[i], vocabulary), sample, nameless)
            if on_labels is not None:
                on_labels(sample, labels)
            num_images += 1
        done = _clock(device)
        loading, network, postprocess = (
            loading + loaded - mark,
            network + predicted - loaded,
            postprocess + done - predicted,
        )
        mark = done
    return (network, postprocess, loading), num_images


def predict_batch(
    prepared: PreparedPredictor, batch: EvalBatch, *, told: Collection[Objects] = NOTHING
) -> list[Prediction]:
    """Predictions of a batch about the vocabulary, and what is told of the objects, for whoever is told them."""
    if prepared.predictor.object_first:
        return list(predict_objects_first(prepared, batch, told=told))
    given = None
    (kind,) = told
    if kind != "none":
        given = [sample.object if kind == "truth" else sample.given for sample in batch.samples]
    return prepared(
        batch.images,
        [sample.size for sample in batch.samples],
        regions=None if all(s.region is None for s in batch.samples) else [whole_or_region(s) for s in batch.samples],
        given=given,
    )


def whole_or_region(sample: Sample) -> Region:
    """Where the photo lies in the sample's image."""
    return sample.region or (0, 0, sample.image.shape[1], sample.image.shape[2])


@torch.inference_mode()
def process_image(answer: Answer, sample: Sample, evaluators: Mapping[str, Evaluator]) -> dict[str, Tensor]:
    """Count one image for every evaluator; the label maps that they scored, by evaluator name."""
    try:
        scored = {name: evaluator.process(answer, sample) for name, evaluator in evaluators.items()}
    except (ValueError, TypeError) as error:
        raise type(error)(f"image {sample.name!r}: {error}") from error
    return {name: labels for name, labels in scored.items() if labels is not None}


def on_device(sample: Sample, device: torch.device) -> Sample:
    """Label maps of the sample on `device`; the image and the instances stay."""
    if sample.object_part.device == device:
        return sample
    return replace(
        sample,
        object_part=sample.object_part.to(device, non_blocking=True),
        object=sample.object.to(device, non_blocking=True),
        num_owner=None if sample.num_owner is None else sample.num_owner.to(device, non_blocking=True),
        num_foreign=None if sample.num_foreign is None else sample.num_foreign.to(device, non_blocking=True),
        given=None if sample.given is None else sample.given.to(device, non_blocking=True),
    )


def _predict_phrases(model: nn.Module, predictor: Predictor, sample: Sample) -> Any:
    """Masks of the image's own phrases, None where it has none."""
    if not sample.phrases:
        return None
    prepared = predictor.prepare(model, Phrases(tuple(phrase.text for phrase in sample.phrases)))
    return prepared(sample.image[None], [sample.size], regions=[whole_or_region(sample)])[0]


@torch.inference_mode()
def _propose(model: nn.Module, predictor: Predictor, batch: EvalBatch) -> list[Segments]:
    """Regions of each image of a batch that are proposed before anything is named; TypeError for other systems."""
    if not hasattr(model, "propose"):
        raise TypeError(f"{type(model).__name__} proposes no regions: choose another evaluator than proposals")
    places = [whole_or_region(sample) for sample in batch.samples]
    device = device_of(model)
    with autocast(device, predictor.precision):
        return model.propose(batch.images.to(device), sizes=[s.size for s in batch.samples], regions=places)  # type: ignore[operator]


def told_objects(model: nn.Module, predictor: Predictor, evaluators: Mapping[str, Evaluator]) -> frozenset[Objects]:
    """What of the objects the network is told: one of `Objects`, or with `predictor.object_first` one or more.

    ValueError where an evaluator must not know, or knows another.
    """
    if not evaluators:
        raise ValueError("there is nothing to evaluate: the config group `evaluator` is empty")
    needs_object = bool(model.input.needs_object)  # type: ignore[union-attr]
    known = {name: evaluator.objects for name, evaluator in evaluators.items()}
    if predictor.object_first:  # every protocol reads the cut-outs of the objects that it may know
        return frozenset(known.values())
    if predictor.prompts != "present" and not needs_object:
        return frozenset({"none"})
    who = f"{type(model).__name__} is told" if needs_object else "predictor.prompts=present tells the network"
    blind = sorted(name for name, objects in known.items() if objects == "none")
    if blind:
        other = "another system" if needs_object else "predictor.prompts=all"
        raise ValueError(
            f"{who} which objects there are; evaluators {blind} must not know: use {other} or keep only evaluators "
            "that are given the objects"
        )
    if len(set(known.values())) > 1:
        raise ValueError(f"{who} the objects; evaluators {known} disagree on whose: run them one after the other")
    return frozenset(known.values())


def _clock(device: torch.device | None = None) -> float:
    """Seconds; waits for the device's work first, so that each part gets its own."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
