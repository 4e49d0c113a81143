"""The parser on photos: which base picture, which boxes, whose parts; and what is written of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import nms

from partseg.data import io
from partseg.data.dataset import PartSegDataset
from partseg.data.origin import ORIGIN
from partseg.geometry import InputSpec, to_tensor
from partseg.prediction import Segments
from partseg.structures import INSTANCE_LEVELS, Record
from partseg.systems.vlpart import detect
from partseg.systems.vlpart.dino import Descriptors, Dino
from partseg.systems.vlpart.names import Names
from partseg.systems.vlpart.network import VlPart
from partseg.systems.vlpart.transfer import PseudoPart, nearest, parse
from partseg.utils.archive import load_tensors
from partseg.vocabulary.names import Vocabulary

TOP, NMS, MOST = 512, 0.3, 100
"""Proposals that are refined, overlap that is suppressed, and boxes that are kept for snapping."""

OWN_SCORE = 0.7
"""Least score of the detector's own parts."""


class Parser:
    """A detector, DINO, and the single-object pictures of a data set with instances of parts.

    `seen` are the objects that the detector was trained on. Descriptors of base pictures are made when one is the
    nearest for the first time, CLS tokens of all of them at once.
    """

    def __init__(
        self, detector: VlPart, dino: Dino, base: PartSegDataset, *, seen: Vocabulary, short_side: int = 224
    ) -> None:
        self.detector = detector
        self.dino = dino
        self.input = InputSpec((short_side, 3 * short_side), "short_edge")
        self.base = base.subset([i for i, record in enumerate(base.records) if _shows_one_object(record)] or [0])
        if not _shows_one_object(self.base.records[0]):
            raise ValueError(f"no picture of {base.name!r} shows a single annotated object; the parser needs some")
        self.seen = seen
        self.names: Names = detector.encode_text(seen)
        self._describe_base = lru_cache(maxsize=256)(lambda i: self.describe(io.read_image(self._path(i))))
        self.tokens = torch.stack([self.describe(io.read_image(self._path(i))).cls for i in range(len(self.base))])

    def _path(self, index: int) -> str:
        return self.base.records[index].file_name

    def describe(self, photo: Image.Image) -> Descriptors:
        """DINO's descriptors of a photo."""
        picture = self.input.geometry(photo.height, photo.width).image(photo)
        return self.dino(to_tensor(picture).to(self.detector.image_mean.device))

    def __call__(self, photo: Image.Image, *, owner: str, vocabulary: Vocabulary) -> list[PseudoPart]:
        """Parts of the object that the photo is known to show, called by `vocabulary`."""
        if owner in self.seen.objects:
            return self._own(photo, owner, vocabulary)
        query = self.describe(photo)
        index = nearest(query.cls, self.tokens)
        instances = self.base[index].instances
        assert instances is not None
        parts = instances.select((instances.level == INSTANCE_LEVELS.index("object_part")) & instances.has_mask)
        return parse(
            query,
            self._describe_base(index),
            masks=parts.masks.to(query.keys.device),
            parts=[self.base.vocabulary.pairs[label][1] for label in parts.label.tolist()],
            detections=self.boxes(photo),
            owner=owner,
            vocabulary=vocabulary,
            size=(photo.height, photo.width),
        )

    def _own(self, photo: Image.Image, owner: str, vocabulary: Vocabulary) -> list[PseudoPart]:
        """The detector's parts of an object that it knows."""
        image, region = self._view(photo)
        size = (photo.height, photo.width)
        (found,) = self.detector.predict(image, self.names, sizes=[size], regions=[region])
        assert isinstance(found, Segments)
        labels = {pair: i for i, pair in enumerate(vocabulary.pairs)}
        parts = []
        for i in np.flatnonzero((found.level == 0) & (found.scores > OWN_SCORE)):
            pair = self.seen.pairs[found.label[i]]
            if pair[0] == owner and pair in labels:
                mask = coco_mask.decode(found.rles[i]).astype(bool)
                parts.append(PseudoPart(labels[pair], found.boxes[i], float(found.scores[i]), mask))
        return parts

    def boxes(self, photo: Image.Image) -> Float[Tensor, "M 4"]:
        """The detector's refined boxes at the photo's size, whatever they are called, best first."""
        image, region = self._view(photo)
        pictures, sizes = self.detector.normalised(image, [region])
        features = self.detector.backbone(pictures)
        proposals = self.detector.rpn(features, sizes)
        boxes, rows, logits = [each[:TOP] for each in proposals.boxes], self.names.rows, []
        for stage in range(len(self.detector.heads.stages)):
            found = self.detector.heads.run(stage, features, boxes, rows)
            logits.append(found.logits)
            boxes = self.detector.heads.refined(stage, found, sizes)
        scores = detect.mean_chances(logits)[:, :-1].amax(1)
        kept = nms(boxes[0], scores, NMS)[:MOST]
        scale = torch.tensor([photo.width / sizes[0][1], photo.height / sizes[0][0]]).repeat(2)
        return boxes[0][kept].cpu() * scale

    def _view(self, photo: Image.Image) -> tuple[Tensor, tuple[int, int, int, int]]:
        geometry = self.detector.input.geometry(photo.height, photo.width)
        image = to_tensor(geometry.image(photo))[None].to(self.detector.image_mean.device)
        return image, geometry.region


def _shows_one_object(record: Record) -> bool:
    return len(record.of_level("object")) == 1 and bool(record.of_level("object_part"))


def load_dino(path: Path) -> Dino:
    """DINO with weights from a file; ValueError names tensors that differ, FileNotFoundError an absent file."""
    dino = Dino()
    if str(path) == "random":
        return dino
    if not path.is_file():
        raise FileNotFoundError(f"no weights dino={path}; fetch DINO's ViT-S/8 (timm: vit_small_patch8_224.dino)")
    loaded = load_tensors(path)
    state: dict[str, Any] = loaded.get("model", loaded) if isinstance(loaded, dict) else {}
    missing, unexpected = dino.net.load_state_dict(state, strict=False)
    unexpected = [name for name in unexpected if not name.startswith("head.")]
    if missing or unexpected:
        raise ValueError(f"{path} is no DINO ViT-S/8: it lacks {missing[:3]} and has {unexpected[:3]} besides")
    return dino


def document(
    found: Sequence[tuple[Record, Image.Image, list[PseudoPart]]], vocabulary: Vocabulary, *, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """COCO content of one shard, with its origin; photos without a part are left out."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record, photo, parts in found:
        if not parts:
            continue
        path = str(Path(record.file_name).absolute())
        images.append({"id": len(images) + 1, "file_name": path, "height": photo.height, "width": photo.width})
        for part in parts:
            left, top, right, bottom = (float(value) for value in part.box)
            entry = {
                "id": len(annotations) + 1,
                "image_id": len(images),
                "category_id": part.label + 1,
                "bbox": [left, top, right - left, bottom - top],
                "score": round(part.score, 4),
            }
            if part.mask is not None:
                rle = coco_mask.encode(np.asfortranarray(part.mask, np.uint8))
                entry["mask"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
            annotations.append(entry)
    categories = [{"id": k, "name": f"{owner}:{part}"} for k, (owner, part) in enumerate(vocabulary.pairs, 1)]
    info = {ORIGIN: dict(origin)}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}
