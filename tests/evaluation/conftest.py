"""A small vocabulary, a network whose logits are whole numbers (exact in any order of sums), and hand-made samples."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partseg.data.loader import collate_eval
from partseg.geometry import InputSpec
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.prediction import DenseScores
from partseg.structures import EvalBatch, Sample
from partseg.vocabulary.names import Vocabulary


@pytest.fixture
def vocabulary() -> Vocabulary:
    """3 objects, 8 object-parts; the bird is unseen."""
    return Vocabulary(
        pairs=(
            ("dog", "head"),
            ("dog", "leg"),
            ("dog", "tail"),
            ("car", "wheel"),
            ("car", "door"),
            ("bird", "head"),
            ("bird", "wing"),
            ("bird", "tail"),
        ),
        label_objects=("bird", "car", "chair", "dog"),
        unseen_objects=("bird",),
        name="small",
    )


@dataclass(frozen=True)
class Prompts:
    """Features of the names of a vocabulary."""

    vocabulary: Vocabulary
    encode: object

    def subset(self, kept):
        return Prompts(self.vocabulary.subset(kept), self.encode)

    @property
    def pairs(self):
        words = self.vocabulary
        objects, parts = self.encode(words.objects), self.encode(words.parts)
        pairs = objects[torch.tensor(words.object_of)] * 2 + parts[torch.tensor(words.part_of)]
        return torch.cat([pairs, self.encode(["nothing"])])

    @property
    def objects(self):
        return torch.cat([self.encode(self.vocabulary.objects), self.encode(["nothing"])])


class WholeNumberModel(nn.Module):
    """Logits are products of small integers: the same for any batch size, any subset of prompts and any machine."""

    input = InputSpec((16, 16))
    weight_layouts: Sequence[str] = ()

    def __init__(self, *, object_head: bool = True, channels: int = 5) -> None:
        super().__init__()
        weight = torch.randint(-3, 4, (channels, 3, 3, 3), generator=torch.Generator().manual_seed(7)).float()
        self.weight = nn.Parameter(weight)
        self.object_head = object_head
        self.num_encoded = 0
        self.num_images = 0

    def encode_text(self, words: Vocabulary) -> Prompts:
        """Features from a hash of each name."""
        self.num_encoded += 1
        return Prompts(words, self._features)

    def predict(self, images, prompts, *, sizes, regions=None, given=None):
        """Scores at half the image's size."""
        assert regions is None
        self.num_images += len(images)
        pixels = (images.float() / 32).floor()
        features = F.conv2d(pixels, self.weight, padding=1, stride=2)
        logits, objects = (torch.einsum("kd,bdhw->bkhw", x, features) for x in (prompts.pairs, prompts.objects))
        return [DenseScores(x, o if self.object_head else None, size) for x, o, size in zip(logits, objects, sizes)]

    def _features(self, names):
        rows = [
            np.random.default_rng(zlib.crc32(name.encode())).integers(-3, 4, self.weight.shape[0]) for name in names
        ]
        return torch.from_numpy(np.stack(rows)).float().to(self.weight.device)


@pytest.fixture
def model() -> WholeNumberModel:
    """With an object head."""
    return WholeNumberModel()


def make_sample(object_part, objects, *, name="image", num_owner=None, num_foreign=None, image=None) -> Sample:
    """Label maps from nested lists; K and O ids, None for IGNORE_LABEL, -1 for background."""

    def tensor(rows):
        values = [[IGNORE_LABEL if v is None else BACKGROUND_LABEL if v == -1 else v for v in row] for row in rows]
        return torch.tensor(values, dtype=torch.int32)

    def counts(rows):
        return None if rows is None else torch.tensor(rows, dtype=torch.uint8)

    return Sample(
        image=torch.zeros(3, 8, 8, dtype=torch.uint8) if image is None else image,
        object_part=tensor(object_part),
        object=tensor(objects),
        name=name,
        file_name=f"{name}.jpg",
        num_owner=counts(num_owner),
        num_foreign=counts(num_foreign),
    )


def random_sample(vocabulary, generator, *, size=None, name="image") -> Sample:
    """Coarse random regions with consistent labels, unlabelled parts, background and void; sizes differ."""
    height, width = size or torch.randint(9, 40, (2,), generator=generator).tolist()
    objects = torch.randint(-2, vocabulary.num_objects, (4, 4), generator=generator).float()
    objects = F.interpolate(objects[None, None], size=(height, width))[0, 0].int()
    choice = torch.rand(height, width, generator=generator)
    parts = torch.full((height, width), IGNORE_LABEL, dtype=torch.int32)
    for object_id in range(vocabulary.num_objects):
        ids = torch.from_numpy(vocabulary.parts_of_object(object_id)).int()
        picked = ids[(choice * len(ids)).long()]
        parts = torch.where(
            (objects == object_id) & (torch.rand(height, width, generator=generator) < 0.8), picked, parts
        )
    objects = torch.where(objects == -1, BACKGROUND_LABEL, torch.where(objects == -2, IGNORE_LABEL, objects))
    image = torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)
    return Sample(image=image, object_part=parts, object=objects.int(), name=name, file_name=f"{name}.jpg")


def batches(samples, batch_size) -> list[EvalBatch]:
    """What the loader yields."""
    groups = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
    return [collate_eval(group) for group in groups]


@pytest.fixture
def samples_of(vocabulary):
    """Function: count -> random samples."""
    return lambda count: [
        random_sample(vocabulary, torch.Generator().manual_seed(i), name=f"image_{i}") for i in range(count)
    ]


@pytest.fixture
def sample():
    """Function that makes one sample from lists."""
    return make_sample


@pytest.fixture
def batched():
    """Function: samples, batch size -> batches."""
    return batches


@pytest.fixture
def headless_model():
    """Without an object head, like CLIPSeg."""
    return WholeNumberModel(object_head=False)
