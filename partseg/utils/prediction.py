"""What a prediction gives back: the label map, and segments, pictures and files made from it on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8, UInt16
from PIL import Image
from pycocotools import mask as coco_mask

from partseg.labels import IGNORE_LABEL
from partseg.utils import visualize
from partseg.utils.files import json_bytes, write_atomic
from partseg.vocabulary.names import Vocabulary

BACKGROUND = "background"
COCO_INFO = {"description": "parts predicted by partseg"}
_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Segment:
    """All pixels of one object-part class in one image.

    `rle` is COCO's compressed run-length encoding with text counts; `box` is left, top, width, height in pixels;
    `score` is the mean probability of the class over its pixels, None unless scores were asked for.
    """

    name: str
    label: int
    area: int
    box: tuple[int, int, int, int]
    rle: dict[str, object]
    score: float | None = None

    def mask(self) -> np.ndarray:
        """bool [h, w]."""
        return coco_mask.decode(self.rle).astype(bool)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Label map of one photo: 0..K-1 are object-parts, K is background, so `names[labels[y, x]]` names a pixel.

    `logits` [K+1, H, W] at network size are kept on request; `attention` maps the name of each part that was found to
    where the network looked for it (token grid, mean over the part's pixels).
    """

    labels: Int[np.ndarray, "h w"]
    image: UInt8[np.ndarray, "h w 3"]
    vocabulary: Vocabulary
    name: str
    source: str
    protocol: str
    notes: tuple[str, ...] = ()
    logits: Float[np.ndarray, "K+1 H W"] | None = None
    attention: Mapping[str, Float[np.ndarray, "rows columns"]] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Display names ("dog's head") in label order, background last."""
        return (*self.vocabulary.object_parts, BACKGROUND)

    @cached_property
    def found(self) -> tuple[int, ...]:
        """Object-part labels that occur, ascending."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        return tuple(np.flatnonzero(counts[:-1]).tolist())

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """One segment per object-part found, largest first."""
        return tuple(sorted((self._segment(label) for label in self.found), key=lambda s: (-s.area, s.label)))

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
        """Overlay with the legend of the parts found at its right."""
        shown = self.overlay(alpha=alpha, max_side=max_side)
        names = [segment.name for segment in self.segments] or ["nothing found"]
        rows = max(1, shown.shape[0] // 20)
        legend = visualize.legend(names, columns=-(-len(names) // rows), font_size=14)
        sheet = Image.new("RGB", (shown.shape[1] + legend.shape[1], max(shown.shape[0], legend.shape[0])), "white")
        sheet.paste(Image.fromarray(shown), (0, 0))
        sheet.paste(Image.fromarray(legend), (shown.shape[1], 0))
        return np.asarray(sheet)

    def file_labels(self) -> UInt16[np.ndarray, "h w"]:
        """uint16 ids as tools/eval_net.py stores them: background is 65535, whatever the number of classes."""
        return np.where(self.labels == len(self.vocabulary), IGNORE_LABEL, self.labels).astype(np.uint16)

    def to_dict(self) -> dict[str, object]:
        """Everything but pixels, ready for JSON: size, words, notes, and the segments as COCO annotations."""
        return {
            "image": self.source,
            "height": self.labels.shape[0],
            "width": self.labels.shape[1],
            "protocol": self.protocol,
            "notes": list(self.notes),
            "names": list(self.names),
            "segments": [
                {
                    "name": s.name,
                    "label": s.label,
                    "area": s.area,
                    "bbox": list(s.box),
                    "segmentation": s.rle,
                    **({} if s.score is None else {"score": round(s.score, 4)}),
                }
                for s in self.segments
            ],
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

    def without_pixels(self) -> Prediction:
        """A copy that holds segments, names and notes but no pictures: a few kilobytes, to be kept by the thousand."""
        empty = replace(
            self, labels=np.broadcast_to(np.int32(0), self.labels.shape), image=_NO_IMAGE, logits=None, attention={}
        )
        empty.__dict__.update(segments=self.segments, found=self.found)
        return empty

    def attention_picture(self, *, max_side: int = 320, columns: int = 4) -> UInt8[np.ndarray, "h w 3"]:
        """Contact sheet of the attention behind each part found, over the darkened photo."""
        if not self.attention:
            raise ValueError(
                f"{self.name}: no attention was kept; call predict(..., attention=True), or nothing was found"
            )
        image, _ = shrunk(self.image, self.labels, max_side)
        cells = [heat_picture(image, heat) for heat in self.attention.values()]
        return visualize.tile(cells, columns=columns, captions=list(self.attention))

    def _segment(self, label: int) -> Segment:
        mask = self.labels == label
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left = int(rows[0]), int(columns[0])
        rle = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        score = None if self.logits is None else float(self.score_map(self.names[label])[mask].mean())
        return Segment(
            name=self.names[label],
            label=label,
            area=int(mask.sum()),
            box=(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1),
            rle={"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
            score=score,
        )


def heat_picture(image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "r c"]) -> UInt8[np.ndarray, "h w 3"]:
    """The darkened photo, lit in warm colour where `heat` is high (stretched to its own range)."""
    low, high = float(heat.min()), float(heat.max())
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    size = (image.shape[1], image.shape[0])
    weight = np.asarray(Image.fromarray((255 * scaled).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)) / 255
    warm = np.stack([255 * np.minimum(1, 2 * weight), 255 * weight**1.5, 60 * weight**3], -1)
    return np.rint(np.clip(0.45 * image + 0.75 * warm, 0, 255)).astype(np.uint8)


def shrunk(image: np.ndarray, labels: np.ndarray, max_side: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Photo (antialiased) and labels (nearest) with their longer side at most `max_side`."""
    height, width = labels.shape
    if max_side is None or max(height, width) <= max_side:
        return image, labels
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rows, columns = ((2 * np.arange(n) + 1) * full // (2 * n) for n, full in ((size[1], height), (size[0], width)))
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(small), labels[rows][:, columns]


def coco_document(predictions: Sequence[Prediction], vocabulary: Vocabulary) -> dict[str, object]:
    """A COCO file's content: ids count from 1, categories are in label order with the object as their group."""
    categories = [
        {"id": k + 1, "name": name, "supercategory": owner}
        for k, (name, (owner, _)) in enumerate(zip(vocabulary.object_parts, vocabulary.pairs))
    ]
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, prediction in enumerate(predictions, 1):
        height, width = prediction.labels.shape
        images.append({"id": number, "file_name": prediction.source, "height": height, "width": width})
        for segment in prediction.segments:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": segment.label + 1,
                    "segmentation": segment.rle,
                    "area": segment.area,
                    "bbox": list(segment.box),
                    "iscrowd": 0,
                    **({} if segment.score is None else {"score": round(segment.score, 4)}),
                }
            )
    return {"info": COCO_INFO, "images": images, "categories": categories, "annotations": annotations}
