"""Small label maps with everything that real ones surprise a loss with, and random network outputs to go with them."""

from collections.abc import Callable

import pytest
import torch

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Batch, Outputs
from partseg.systems.clipseg.decoder import DecoderAttention
from partseg.systems.part_clipseg.network import PartClipSegOutputs
from partseg.vocabulary.names import Vocabulary

GRID = (4, 5)
CELL = 4
HEIGHT, WIDTH = GRID[0] * CELL, GRID[1] * CELL
HEADS, HEAD_DIM = 2, 3


@pytest.fixture
def vocabulary() -> Vocabulary:
    """Three objects; "head" belongs to two of them."""
    return Vocabulary.from_mapping(
        {"dog": ["head", "leg", "tail"], "cat": ["head", "eye"], "car": ["wheel", "door"]}, name="toy"
    )


def _image(vocabulary: Vocabulary, generator: torch.Generator, objects: tuple[int, ...]) -> tuple:
    """Blocks of objects side by side; inside each, blocks of its parts, of no part, and one absent part."""
    obj = torch.full((HEIGHT, WIDTH), BACKGROUND_LABEL, dtype=torch.int32)
    part = torch.full((HEIGHT, WIDTH), IGNORE_LABEL, dtype=torch.int32)
    obj[:3, :3] = IGNORE_LABEL
    width = WIDTH // len(objects)
    for i, o in enumerate(objects):
        left = i * width
        obj[2:-1, left + 1 : left + width] = o
        classes = vocabulary.parts_of_object(o)
        for c in classes[: max(2, len(classes) - 1)]:
            top = 2 + int(torch.randint(0, 8, (), generator=generator))
            start = left + 1 + int(torch.randint(0, max(1, width - 4), (), generator=generator))
            part[top : top + 5, start : start + 3] = int(c)
    part[obj >= BACKGROUND_LABEL] = IGNORE_LABEL
    return obj, part


def _make(vocabulary: Vocabulary, name: str) -> Batch:
    generator = torch.Generator().manual_seed(3)
    first, second = _image(vocabulary, generator, (0, 1)), _image(vocabulary, generator, (2,))
    third = _image(vocabulary, generator, (0, 1, 2))
    everything = torch.full_like(first[0], IGNORE_LABEL)
    if name == "several_objects":
        images = [first, second, third]
    elif name == "one_image":
        images = [third]
    elif name == "vanishing_part":  # one pixel that is not the first of its cell: gone under nearest
        first[1][first[1] == 1] = IGNORE_LABEL
        first[0][6, 6], first[1][6, 6] = 0, 1
        images = [first, second]
    elif name == "fills_the_frame":
        part = torch.full_like(first[0], 5)
        part[:, 8:] = 6
        images = [(torch.full_like(part, 2), part)]
    elif name == "label_on_background":  # labelled where the object map says that there is nothing
        first[1][:2, 6:12], first[0][:2, 6:12] = 1, BACKGROUND_LABEL
        images = [first, second]
    elif name == "no_parts":
        images = [(first[0], everything), (torch.full_like(everything, BACKGROUND_LABEL), everything)]
    elif name == "one_without_parts":
        images = [(first[0], everything), third]
    elif name == "all_ignored":
        images = [(everything, everything), (everything, everything)]
    else:
        raise KeyError(name)
    return Batch(
        images=torch.zeros(len(images), 3, HEIGHT, WIDTH, dtype=torch.uint8),
        object_part=torch.stack([part for _, part in images]),
        object=torch.stack([obj for obj, _ in images]),
        names=tuple(f"image_{i}" for i in range(len(images))),
        vocabulary=vocabulary,
    )


CASES = (
    "several_objects",
    "one_image",
    "vanishing_part",
    "fills_the_frame",
    "label_on_background",
    "no_parts",
    "one_without_parts",
    "all_ignored",
)


@pytest.fixture(params=CASES)
def batch(request: pytest.FixtureRequest, vocabulary: Vocabulary) -> Batch:
    return _make(vocabulary, request.param)


@pytest.fixture
def make_batch(vocabulary: Vocabulary) -> Callable[[str], Batch]:
    return lambda name: _make(vocabulary, name)


@pytest.fixture
def make_outputs(vocabulary: Vocabulary) -> Callable[..., Outputs]:
    """Random leaf tensors in float64; attention of decoder layers 1 and 2, peaked enough to cross the threshold."""

    def make(batch: Batch, seed: int = 0) -> Outputs:
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

        num_images, (height, width) = len(batch), batch.object.shape[-2:]
        tokens = (len(batch), vocabulary.num_parts + vocabulary.num_objects + 1, HEADS, 1 + GRID[0] * GRID[1], HEAD_DIM)
        return PartClipSegOutputs(
            object_part=leaf(num_images, len(vocabulary) + 1, height, width),
            object=leaf(num_images, vocabulary.num_objects + 1, height, width),
            part=leaf(num_images, vocabulary.num_parts, height, width),
            attention={n: DecoderAttention(leaf(*tokens), leaf(*tokens), scale=0.9, grid=GRID) for n in (1, 2)},
        )

    return make


@pytest.fixture
def leaves() -> Callable[[Outputs], dict[str, torch.Tensor]]:
    """All tensors of the outputs that can receive a gradient, by name."""

    def collect(outputs: Outputs) -> dict[str, torch.Tensor]:
        found = {"object_part": outputs.object_part, "object": outputs.object, "part": outputs.part}
        for layer, attention in outputs.attention.items():
            found |= {f"query{layer}": attention.query, f"key{layer}": attention.key}
        return found

    return collect


@pytest.fixture
def gradients(leaves: Callable) -> Callable[[torch.Tensor, Outputs], dict[str, torch.Tensor]]:
    """Gradient of a scalar with respect to every leaf; zeros where it is not reached."""

    def compute(value: torch.Tensor, outputs: Outputs) -> dict[str, torch.Tensor]:
        named = leaves(outputs)
        if not value.requires_grad:
            return {name: torch.zeros_like(leaf) for name, leaf in named.items()}
        grads = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(named.items(), grads, strict=True)
        }

    return compute
