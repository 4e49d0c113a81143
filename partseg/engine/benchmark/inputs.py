"""Made-up inputs with labels like real ones: several objects per image, each cut into its parts. No files are read."""

from __future__ import annotations

import numpy as np
import torch

from partseg.data.labels import instances_of_maps
from partseg.geometry import InputSpec, Size
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Batch, PhraseMask, Sample, collate
from partseg.vocabulary.names import Vocabulary

OBJECTS_PER_IMAGE = 3
LARGEST_PARTS = 6
"""Parts drawn per object: with three objects an image shows 10 to 18 classes, as in Pascal-Part-116."""


def random_sample(
    vocabulary: Vocabulary,
    *,
    input: InputSpec,
    label_size: Size | None = None,
    instances: bool = False,
    phrases: bool = False,
    seed: int = 0,
) -> Sample:
    """Noise as image; three ellipses, cut into the parts of their object, and a void strip as labels.

    Without `label_size` labels are at network size, as in training. `instances` and `phrases` (one) are made from them.
    """
    rng = np.random.default_rng(seed)
    size = input.geometry(*(label_size or input.size)).size
    height, width = label_size or size
    object_part = np.full((height, width), IGNORE_LABEL, np.int32)
    objects = np.full((height, width), BACKGROUND_LABEL, np.int32)
    count = min(OBJECTS_PER_IMAGE, vocabulary.num_objects)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    for object_id in rng.choice(vocabulary.num_objects, count, replace=False):
        center, radius = rng.uniform(0.25, 0.75, 2), rng.uniform(0.15, 0.35, 2)
        inside = ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 < 1
        parts = rng.permutation(vocabulary.parts_of_object(int(object_id)))[:LARGEST_PARTS]
        seeds = center + rng.uniform(-0.7, 0.7, (len(parts), 2)) * radius
        nearest = np.argmin([(y - sy) ** 2 + (x - sx) ** 2 for sy, sx in seeds], axis=0)
        objects[inside] = object_id
        object_part[inside] = parts[nearest[inside]]
    objects[: height // 50] = IGNORE_LABEL
    object_part[: height // 50] = IGNORE_LABEL
    image = rng.integers(0, 256, (3, *size), dtype=np.uint8)
    name = f"random {seed}"
    some = int(rng.choice(object_part[object_part != IGNORE_LABEL]))
    phrase = PhraseMask(vocabulary.prompts("object_part")[some], torch.from_numpy(object_part == some), some)
    return Sample(
        image=torch.from_numpy(image),
        object_part=torch.from_numpy(object_part),
        object=torch.from_numpy(objects),
        name=name,
        file_name=name,
        instances=instances_of_maps(object_part, objects, vocabulary) if instances else None,
        phrases=(phrase,) if phrases else (),
        given=torch.from_numpy(objects) if input.needs_object else None,
        photo=torch.from_numpy(image),
    )


def random_batch(vocabulary: Vocabulary, *, batch_size: int, input: InputSpec, seed: int = 0) -> Batch:
    """A training batch of `random_sample`s with everything that some system may train on."""
    samples = [
        random_sample(vocabulary, input=input, instances=True, phrases=True, seed=seed * batch_size + i)
        for i in range(batch_size)
    ]
    return collate(samples, vocabulary=vocabulary, source="random")
