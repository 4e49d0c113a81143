"""Object first: find the objects, cut each out of the photo, look for its own parts there, paste them back.

The inference of HOPS (CVPR 2026) for any system with dense scores, trained as it is. Every protocol gets the cut-outs
of the objects that it may know: found, annotated, or those of some segmenter. docs/systems/object_first.md says more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from partseg.evaluation.evaluator import Objects
from partseg.evaluation.labels import ScoreReader
from partseg.evaluation.predictor import PreparedPredictor
from partseg.geometry import InputSpec, Region, Size, to_tensor
from partseg.labels import resize_labels
from partseg.prediction import Crop, DenseScores, Look, ObjectFirstScores, Prediction, boxes_of
from partseg.structures import EvalBatch, Sample
from partseg.vocabulary.names import Vocabulary

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two exclusive."""


@dataclass(frozen=True)
class _View:
    """One object's cut-out as the network sees it. `place` is (image, object map of the image)."""

    place: tuple[int, int]
    object_id: int
    box: Box
    image: UInt8[Tensor, "3 H W"]
    region: Region

    @property
    def size(self) -> Size:
        """Height and width of the box."""
        return self.box[3] - self.box[1], self.box[2] - self.box[0]


def predict_objects_first(
    prepared: PreparedPredictor, batch: EvalBatch, *, told: Collection[Objects]
) -> list[ObjectFirstScores]:
    """Predictions of a batch; `told` are the object maps that protocols will ask about, "none" the system's own.

    ValueError for systems without dense scores, and for samples without their photo.
    """
    words = prepared.words
    assert isinstance(words, Vocabulary)
    device = next(prepared.model.parameters()).device
    maps = [[_told(sample, kind).to(device) for kind in sorted(told) if kind != "none"] for sample in batch.samples]
    find = "none" in told
    if find:
        for own, found in zip(maps, _found(prepared, batch), strict=True):
            own.insert(0, found)
    views = [
        view
        for i, (sample, own) in enumerate(zip(batch.samples, maps))
        for j, objects in enumerate(own)
        for view in _views(prepared, sample, objects, (i, j), words.num_objects)
    ]
    crops: dict[tuple[int, int], dict[int, Crop]] = {(i, j): {} for i, own in enumerate(maps) for j in range(len(own))}
    for view, scores in _run(prepared, views, at_once=len(batch)):
        crops[view.place][view.object_id] = Crop(view.box, scores)
    predictions = []
    for i, (sample, own) in enumerate(zip(batch.samples, maps)):
        looks = tuple(Look(objects, crops[i, j]) for j, objects in enumerate(own))
        predictions.append(ObjectFirstScores(looks[0] if find else None, looks[1:] if find else looks, sample.size))
    return predictions


def _told(sample: Sample, kind: Objects) -> Int[Tensor, "h w"]:
    objects = sample.object if kind == "truth" else sample.given
    if objects is None:
        raise ValueError(f"image {sample.name!r} has no objects of a segmenter: set eval.objects=<folder>")
    return objects


def _found(prepared: PreparedPredictor, batch: EvalBatch) -> list[Int[Tensor, "h w"]]:
    """Objects that the system finds in the whole photos; one that predicts none owns the best object-part's."""
    assert isinstance(prepared.words, Vocabulary)
    owner = torch.as_tensor(np.append(prepared.words.object_of, prepared.words.num_objects), dtype=torch.int32)
    regions = None
    if any(sample.region is not None for sample in batch.samples):
        regions = [sample.region or (0, 0, *batch.images.shape[-2:]) for sample in batch.samples]
    found = []
    for prediction in prepared(batch.images, [sample.size for sample in batch.samples], regions=regions):
        reader = ScoreReader(_dense(prediction).cropped(), class_chunk=prepared.predictor.class_chunk)
        if reader.has_objects:
            found.append(reader.objects)
        else:
            found.append(owner.to(reader.object_parts.device)[reader.object_parts.long()])
    return found


def _dense(prediction: Prediction) -> DenseScores:
    if not isinstance(prediction, DenseScores):
        raise ValueError(
            f"predictor.object_first is for systems that give dense scores, this one gives "
            f"{type(prediction).__name__}; use predictor.object_first=false"
        )
    return prediction


def _views(
    prepared: PreparedPredictor, sample: Sample, objects: Int[Tensor, "h w"], place: tuple[int, int], num_objects: int
) -> list[_View]:
    """The cut-out of every object in a map."""
    ids = [each for each in objects.unique().tolist() if each < num_objects]
    if not ids:
        return []
    if sample.photo is None:
        raise ValueError("predictor.object_first cuts objects out of the photo: keep it, EvalMapper(photo=True)")
    photo = sample.photo.permute(1, 2, 0).numpy()
    spec: InputSpec = prepared.model.input  # type: ignore[assignment]
    options = prepared.predictor
    masks = torch.stack([objects == each for each in ids])
    views = []
    for each, mask, tight in zip(ids, masks, boxes_of(masks).astype(int).tolist()):
        box = grown((tight[0], tight[1], tight[2], tight[3]), options.crop_margin, sample.size)
        inside = resize_labels(mask.cpu().numpy(), photo.shape[:2]) if options.mask_crops else None
        left, top, right, bottom = scaled(box, sample.size, photo.shape[:2])
        cut = photo[top:bottom, left:right]
        if inside is not None:
            cut = cut * inside[top:bottom, left:right, None]
        geometry = spec.geometry(*cut.shape[:2])
        image = to_tensor(geometry.image(Image.fromarray(np.ascontiguousarray(cut))))
        views.append(_View(place, each, box, image, geometry.region))
    return views


def _run(prepared: PreparedPredictor, views: Sequence[_View], *, at_once: int) -> list[tuple[_View, DenseScores]]:
    """Scores of every view; those of one object, over all photos of the batch, go through the network together."""
    key = lambda view: (view.object_id, *view.image.shape)  # noqa: E731
    done = []
    for (object_id, *_), group in groupby(sorted(views, key=key), key):
        same = list(group)
        for start in range(0, len(same), at_once):
            some = same[start : start + at_once]
            images = torch.stack([view.image for view in some])
            whole = all(view.region == (0, 0, *images.shape[-2:]) for view in some)
            regions = None if whole else [view.region for view in some]
            found = prepared.of_object(object_id, images, [view.size for view in some], regions=regions)
            done += [(view, _dense(each)) for view, each in zip(some, found, strict=True)]
    return done


def grown(box: Box, margin: float, size: Size) -> Box:
    """A box with `margin` of its sides more on each side, cut to a picture of `size`."""
    left, top, right, bottom = box
    more, higher = round(margin * (right - left)), round(margin * (bottom - top))
    return max(0, left - more), max(0, top - higher), min(size[1], right + more), min(size[0], bottom + higher)


def scaled(box: Box, size: Size, other: Size) -> Box:
    """The smallest box of whole pixels in a picture of size `other` that covers a box in one of `size`."""
    left, top, right, bottom = box
    (height, width), (rows, columns) = size, other
    return left * columns // width, top * rows // height, -(-right * columns // width), -(-bottom * rows // height)
