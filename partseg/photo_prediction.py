"""What a photo's prediction gives back: the label map, and segments, pictures and files made from it on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from PIL import Image
from pycocotools import mask as coco_mask

from partseg.labels import IGNORE_LABEL, resize_labels
from partseg.prediction import Segments
from partseg.structures import INSTANCE_LEVELS, InstanceLevel
from partseg.system import Words
from partseg.utils import visualize
from partseg.utils.files import json_bytes, write_atomic
from partseg.utils.heat import heat_picture, heat_scale, with_heat_bar
from partseg.vocabulary.names import Vocabulary

BACKGROUND = "background"
COCO_INFO = {"description": "parts predicted by partseg"}
FEWEST_ROWS = 12
"""Lines of a legend before it gets a second column, beside a photo that is not as high."""

_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Segment:
    """All pixels of one class in one image, or of one instance where the system finds instances, or of a phrase.

    `rle` is COCO's compressed run-length encoding with text counts; `box` is left, top, width, height in pixels;
    `score` is the instance's, or the mean probability of the class over its pixels, None unless scores were asked for.
    `label` is the class's position, or that of an object in `label_objects`; -1 for segments without a class. `parent`
    is the position of a part's object among the photo's segments.
    """

    name: str
    label: int
    area: int
    box: tuple[int, int, int, int]
    rle: dict[str, object]
    score: float | None = None
    level: InstanceLevel = "object_part"
    parent: int | None = None

    def mask(self) -> np.ndarray:
        """bool [h, w]."""
        return coco_mask.decode(self.rle).astype(bool)


@dataclass(frozen=True, eq=False)
class PhotoPrediction:
    """Label map of one photo: 0..K-1 are `classes`, K is background, so `names[labels[y, x]]` names a pixel.

    `classes` are the object-parts of the vocabulary, the phrases, or "segment 1" and so on where a system names
    nothing. `instances` are the segments of systems that find instances or masks of phrases, which may overlap.
    `logits` [K+1, H, W] at network size are kept on request; `attention` maps the name of each part that was found to
    where the network looked for it (token grid, mean over the part's pixels). `caution` is what the model must say of
    itself wherever it is shown (it was trained on drawings).
    """

    labels: Int[np.ndarray, "h w"]
    image: UInt8[np.ndarray, "h w 3"]
    words: Words
    classes: tuple[str, ...]
    name: str
    source: str
    protocol: str
    notes: tuple[str, ...] = ()
    instances: tuple[Segment, ...] | None = None
    logits: Float[np.ndarray, "K+1 H W"] | None = None
    attention: Mapping[str, Float[np.ndarray, "rows columns"]] = field(default_factory=dict)
    caution: str = ""

    @property
    def vocabulary(self) -> Vocabulary:
        """The words, where they are a vocabulary; TypeError for phrases."""
        if not isinstance(self.words, Vocabulary):
            raise TypeError(f"{self.name} was predicted for phrases, not for a vocabulary")
        return self.words

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Display names ("dog's head") in label order, background last."""
        return (*self.classes, BACKGROUND)

    @cached_property
    def found(self) -> tuple[int, ...]:
        """Labels that occur, ascending."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        return tuple(np.flatnonzero(counts[:-1]).tolist())

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The instances, best first, or one segment per class found, largest first."""
        if self.instances is not None:
            return self.instances
        return tuple(sorted((self._segment(label) for label in self.found), key=lambda s: (-s.area, s.label)))

    def by_instance(self) -> tuple[Int[np.ndarray, "h w"], tuple[str, ...]]:
        """Label map and names ("car's wheel 2 (0.81)") of single instances: parts over objects, better ones on top.

        Those of the classes where the system finds no instances, or has no names for them.
        """
        named = self.instances or ()
        if not named or any(s.label < 0 for s in named) or not isinstance(self.words, Vocabulary):
            return self.labels, self.classes
        numbers = [sum(other.name == s.name for other in named[:i]) + 1 for i, s in enumerate(named)]
        labels = np.full(self.labels.shape, len(named), np.int32)
        for i in sorted(
            range(len(named)), key=lambda i: (named[i].level == "object_part", -i)
        ):  # best first in `named`
            labels[named[i].mask()] = i
        return labels, tuple(f"{s.name} {n} ({s.score or 0:.2f})" for s, n in zip(named, numbers))

    @property
    def masks(self) -> Bool[np.ndarray, "N h w"]:
        """The masks of `segments`, in their order."""
        return np.stack([s.mask() for s in self.segments]) if self.segments else np.zeros((0, *self.labels.shape), bool)

    @property
    def boxes(self) -> Int[np.ndarray, "N 4"]:
        """Left, top, right, bottom (the last two exclusive) of `segments`, in pixels."""
        boxes = np.array([s.box for s in self.segments], np.int64).reshape(-1, 4)
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)

    @property
    def scores(self) -> Float[np.ndarray, " N"]:
        """The scores of `segments`; ValueError where none were kept."""
        values = [s.score for s in self.segments]
        if None in values:
            raise ValueError("scores were not kept; call predict(..., return_scores=True)")
        return np.array(values, np.float64)

    def score_map(self, name: str) -> Float[np.ndarray, "h w"]:
        """Probability of one class ("dog's head" or "background") at every pixel of the photo, float32."""
        if self.logits is None:
            raise ValueError("scores were not kept; call predict(..., return_scores=True)")
        if name not in self.names:
            raise KeyError(f"{name!r} is not a class of this prediction; it has {list(self.names)}")
        logits = torch.from_numpy(self.logits[self.names.index(name)])[None, None]
        full = F.interpolate(logits, size=self.labels.shape, mode="bilinear", align_corners=False)
        return full[0, 0].sigmoid().numpy()

    def overlay(self, *, alpha: float = 0.55, max_side: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """The photo with its parts in colour, shrunk to `max_side` pixels where it is larger."""
        image, labels = shrunk(self.image, self.labels, max_side)
        return visualize.overlay(image, labels, self.names[:-1], alpha=alpha)

    def picture(self, *, alpha: float = 0.55, max_side: int | None = 1600) -> UInt8[np.ndarray, "h w 3"]:
        """Overlay with names on the parts, the legend of those found at its right, and the model's caution below."""
        image, labels = shrunk(self.image, self.labels, max_side)
        shown = visualize.overlay(image, labels, self.names[:-1], alpha=alpha)
        shown = visualize.named(shown, labels, self.names[:-1])
        names = [self.names[label] for label in self.found] or ["nothing found"]
        rows = max(FEWEST_ROWS, shown.shape[0] // 20)
        colors = visualize.palette(self.names[:-1])
        shown_colors = [colors[label] for label in self.found] or [(255, 255, 255)]
        legend = visualize.legend(names, columns=-(-len(names) // rows), font_size=14, colors=shown_colors)
        sheet = Image.new("RGB", (shown.shape[1] + legend.shape[1], max(shown.shape[0], legend.shape[0])), "white")
        sheet.paste(Image.fromarray(shown), (0, 0))
        sheet.paste(Image.fromarray(legend), (shown.shape[1], 0))
        return visualize.captioned(np.asarray(sheet), self.caution) if self.caution else np.asarray(sheet)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return visualize.png_bytes(self.picture(max_side=900))

    def file_labels(self) -> UInt16[np.ndarray, "h w"]:
        """uint16 ids as tools/eval_net.py stores them: background is 65535, whatever the number of classes."""
        return np.where(self.labels == len(self.classes), IGNORE_LABEL, self.labels).astype(np.uint16)

    def to_dict(self) -> dict[str, object]:
        """Everything but pixels, ready for JSON: size, words, notes, and the segments as COCO annotations."""
        return {
            "image": self.source,
            "height": self.labels.shape[0],
            "width": self.labels.shape[1],
            "protocol": self.protocol,
            "notes": [*self.notes, *([self.caution] if self.caution else [])],
            "names": list(self.names),
            "segments": [{"name": s.name, "label": s.label, **_annotation(s)} for s in self.segments],
        }

    def save(self, folder: str | Path, *, stem: str | None = None, max_side: int | None = 1600) -> list[Path]:
        """Write `<stem>.png` (with legend), `<stem>_labels.png` (see `file_labels`) and `<stem>.json`; their paths.

        ValueError where one of them would replace the photo itself.
        """
        folder, stem = Path(folder), stem or self.name
        paths = [folder / f"{stem}.png", folder / f"{stem}_labels.png", folder / f"{stem}.json"]
        if any(path.exists() and Path(self.source).exists() and path.samefile(self.source) for path in paths):
            raise ValueError(f"the result would replace the photo {self.source}; give another folder, or stem=")
        visualize.save_png(self.picture(max_side=max_side), paths[0])
        visualize.save_png(self.file_labels(), paths[1])
        write_atomic(paths[2], json_bytes(self.to_dict(), indent=1))
        return paths

    def without_pixels(self) -> PhotoPrediction:
        """A copy that holds segments, names and notes but no pictures: a few kilobytes, to be kept by the thousand."""
        empty = replace(
            self, labels=np.broadcast_to(np.int32(0), self.labels.shape), image=_NO_IMAGE, logits=None, attention={}
        )
        empty.__dict__.update(segments=self.segments, found=self.found)
        return empty

    def attention_picture(self, *, max_side: int = 320, columns: int = 4) -> UInt8[np.ndarray, "h w 3"]:
        """Contact sheet of the attention behind each part found, over the darkened photo, with the bar of its scale."""
        if not self.attention:
            raise ValueError(
                f"{self.name}: no attention was kept; call predict(..., attention=True), or nothing was found"
            )
        image, _ = shrunk(self.image, self.labels, max_side)
        scale = heat_scale(list(self.attention.values()))
        cells = [heat_picture(image, heat, scale=scale) for heat in self.attention.values()]
        sheet = visualize.tile(cells, columns=columns, captions=list(self.attention))
        return with_heat_bar(sheet, scale)

    def _segment(self, label: int) -> Segment:
        mask = self.labels == label
        score = None if self.logits is None else float(self.score_map(self.names[label])[mask].mean())
        return segment_of_mask(mask, name=self.names[label], label=label, score=score)


def shrunk(image: np.ndarray, labels: np.ndarray, max_side: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Photo (antialiased) and labels (nearest) with their longer side at most `max_side`."""
    height, width = labels.shape
    if max_side is None or max(height, width) <= max_side:
        return image, labels
    scale = max_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(small), resize_labels(labels, size)


def segments_of(found: Segments, vocabulary: Vocabulary) -> tuple[Segment, ...]:
    """Instances with their names, best first; those without a class are called "segment 1" and so on."""
    levels: list[InstanceLevel] = [INSTANCE_LEVELS[i] for i in found.level.tolist()]
    names = {"object_part": vocabulary.object_parts, "object": vocabulary.label_objects}
    areas = found.areas
    numbers = np.cumsum(found.label < 0)
    segments = []
    for i, (level, label, rle) in enumerate(zip(levels, found.label.tolist(), found.rles)):
        left, top, right, bottom = (round(float(value)) for value in found.boxes[i])
        segments.append(
            Segment(
                name=f"segment {numbers[i]}" if label < 0 else names[level][label],
                label=label,
                area=int(areas[i]),
                box=(left, top, right - left, bottom - top),
                rle=_text_rle(rle),
                score=float(found.scores[i]),
                level=level,
                parent=int(found.parent[i]) if found.parent[i] >= 0 else None,
            )
        )
    return tuple(segments)


def segment_of_mask(mask: np.ndarray, *, name: str, label: int, score: float | None = None) -> Segment:
    """A segment of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return Segment(
        name=name,
        label=label,
        area=int(mask.sum()),
        box=(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1),
        rle=_text_rle(coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))),
        score=score,
    )


def coco_document(predictions: Sequence[PhotoPrediction], words: Words) -> dict[str, Any]:
    """A COCO file's content: ids count from 1; object-parts (with their object as group) or phrases, then objects.

    Segments without a class are of category 0, "part", and phrases are written beside the category, too.
    data/coco_style.py reads objects and object-parts as labels.
    """
    if isinstance(words, Vocabulary):
        owners = [owner for owner, _ in words.pairs]
        names = [*zip(words.object_parts, owners), *((name, name) for name in words.label_objects)]
        first_object = len(words) + 1
    else:
        names, first_object = [(text, "phrase") for text in words.texts], 0
    categories: list[dict[str, Any]] = [
        {"id": k, "name": name, "supercategory": group} for k, (name, group) in enumerate(names, 1)
    ]
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, prediction in enumerate(predictions, 1):
        height, width = prediction.labels.shape
        images.append({"id": number, "file_name": prediction.source, "height": height, "width": width})
        first = len(annotations) + 1
        for segment in prediction.segments:
            category = segment.label + (first_object if segment.level == "object" else 1)
            parent = {} if segment.parent is None else {"parent_id": first + segment.parent}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 0 if segment.label < 0 else category,
                    **_annotation(segment),
                    "iscrowd": 0,
                    **parent,
                }
            )
    if any(annotation["category_id"] == 0 for annotation in annotations):
        categories.insert(0, {"id": 0, "name": "part", "supercategory": "part"})
    cautions = sorted({p.caution for p in predictions if p.caution})
    info = COCO_INFO | ({"caution": "; ".join(cautions)} if cautions else {})
    return {"info": info, "images": images, "categories": categories, "annotations": annotations}


def _annotation(segment: Segment) -> dict[str, object]:
    """The entries of a COCO annotation that say where a segment is."""
    score = {} if segment.score is None else {"score": round(segment.score, 4)}
    return {"segmentation": segment.rle, "area": segment.area, "bbox": list(segment.box), **score}


def _text_rle(rle: Mapping[str, Any]) -> dict[str, object]:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
