"""A small vocabulary, a network whose logits are whole numbers (exact in any order of sums), and hand-made samples."""

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import EvalBatch, Outputs, Sample, TextFeatures, stack_images
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


class WholeNumberModel(nn.Module):
    """Logits are products of small integers: the same for any batch size, any subset of prompts and any machine."""

    def __init__(self, *, object_head: bool = True, channels: int = 5) -> None:
        super().__init__()
        weight = torch.randint(-3, 4, (channels, 3, 3, 3), generator=torch.Generator().manual_seed(7)).float()
        self.weight = nn.Parameter(weight)
        self.object_head = object_head
        self.num_encoded = 0
        self.num_images = 0

    def encode_text(self, vocabulary: Vocabulary) -> TextFeatures:
        """Features from a hash of each name."""
        self.num_encoded += 1
        return TextFeatures(
            background=self._features(["nothing"]),
            part=self._features(vocabulary.parts),
            object=self._features(vocabulary.objects),
        )

    def forward(self, images, vocabulary, *, text=None, attention_layers=(), part_masks=True):
        """Outputs at half the image's size."""
        assert text is not None
        self.num_images += len(images)
        pixels = (images.float() / 32).floor()
        features = F.conv2d(pixels, self.weight, padding=1, stride=2)
        pairs = text.object[torch.tensor(vocabulary.object_of)] * 2 + text.part[torch.tensor(vocabulary.part_of)]
        logits = torch.einsum("kd,bdhw->bkhw", torch.cat([pairs, text.background]), features)
        objects = torch.einsum("kd,bdhw->bkhw", torch.cat([text.object, text.background]), features)
        return Outputs(object_part=logits, object=objects if self.object_head else None)

    def _features(self, names):
        rows = [
            np.random.default_rng(zlib.crc32(name.encode())).integers(-3, 4, self.weight.shape[0]) for name in names
        ]
        return torch.from_numpy(np.stack(rows)).float()


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


def batches(samples, batch_size):
    """What the loader yields."""
    groups = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
    return [EvalBatch(images=stack_images(group), samples=tuple(group)) for group in groups]


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
