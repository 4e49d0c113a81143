"""Three optimiser steps of a small network under the full criterion, for test_ranks.py."""

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.losses.criterion import Criterion
from partseg.structures import Batch
from partseg.systems.clipseg.decoder import DecoderAttention
from partseg.systems.part_clipseg.network import PartClipSegOutputs
from partseg.utils import distributed
from partseg.utils.config import config_dir, instantiate
from partseg.vocabulary.names import Vocabulary

GRID, SIZE, IMAGES, STEPS = (4, 4), 16, 4, 3
VOCABULARY = Vocabulary.from_mapping({"dog": ["head", "leg", "tail"], "car": ["wheel", "door"]})


class Network(nn.Module):
    """Prompts x cells from the images' cell means; queries and keys of one decoder layer; two kinds of logits."""

    def __init__(self) -> None:
        super().__init__()
        prompts = VOCABULARY.num_parts + VOCABULARY.num_objects + 1
        generator = torch.Generator().manual_seed(0)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.prompt, self.query, self.key = parameter(prompts, 6), parameter(2, 6, 3), parameter(2, 6, 3)
        self.pair = parameter(len(VOCABULARY) + 1, prompts)

    def forward(self, images: torch.Tensor) -> PartClipSegOutputs:
        """Images [B 3 H W] in 0..255."""
        cells = nn.functional.adaptive_avg_pool2d(images.double() / 255, GRID).flatten(2)
        cells = torch.cat([cells, cells.sin()], 1).transpose(1, 2)
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], 1)[:, None] + self.prompt[:, None]
        query, key = (torch.einsum("betc,hcd->behtd", tokens, w) for w in (self.query, self.key))
        maps = (query * key).sum((2, 4))[:, :, 1:].unflatten(-1, GRID)
        logits = nn.functional.interpolate(maps, size=(SIZE, SIZE), mode="bilinear")
        parts = VOCABULARY.num_parts
        return PartClipSegOutputs(
            object_part=torch.einsum("ke,behw->bkhw", self.pair, logits),
            object=logits[:, parts:],
            part=logits[:, :parts],
            attention={2: DecoderAttention(query, key, scale=0.5, grid=GRID)},
        )


def images_of_step(step: int) -> Batch:
    """Four images: most labelled pixels, objects and background lie in the first half."""
    generator = torch.Generator().manual_seed(step)
    part = torch.full((IMAGES, SIZE, SIZE), IGNORE_LABEL, dtype=torch.int32)
    obj = torch.full_like(part, BACKGROUND_LABEL)
    obj[0, :, :8], obj[0, :, 8:] = 0, 1
    part[0, 1:7, 0:6], part[0, 7:12, 2:8], part[0, 3:9, 9:14], part[0, 9:15, 10:16] = 0, 1, 3, 4
    obj[1, 4:, 4:], part[1, 5:9, 5:9], part[1, 9:15, 6:13] = 0, 0, 2
    obj[2], part[2, 2 + step, 3:5] = IGNORE_LABEL, 4
    obj[2, 2 + step, 3:5] = 1
    obj[3, :1] = IGNORE_LABEL
    pixels = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return Batch(pixels, part, obj, tuple("abcd"), VOCABULARY)


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    index = slice(start, stop)
    return Batch(batch.images[index], batch.object_part[index], batch.object[index], batch.names[index], VOCABULARY)


def train(criterion: Criterion, accumulation: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the steps and the weights after them."""
    rank, world = distributed.rank(), distributed.world_size()
    network = Network()
    model = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    share = IMAGES // (world * accumulation)
    losses = []
    for step in range(STEPS):
        whole = images_of_step(step)
        first = rank * accumulation
        parts = [_slice(whole, (first + i) * share, (first + i + 1) * share) for i in range(accumulation)]
        local = [criterion.counts(part) for part in parts]
        counts = {key: distributed.reduce_sum(sum(count[key] for count in local)) for key in local[0]}
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for part in parts:
            loss, _ = criterion(model(part.images), part, counts)
            (loss * world).backward()  # DDP averages over ranks
            total += loss.detach()
        optimizer.step()
        losses.append(distributed.reduce_sum(total).item())
    return losses, network.state_dict()


def run_all(kinds: tuple[tuple[str, int], ...] = (("global", 1), ("global", 2), ("process", 1))) -> dict[tuple, dict]:
    """Losses and weights by (processes, normalisation, micro-batches)."""
    results = {}
    for normalise, accumulation in kinds:
        node = OmegaConf.load(config_dir() / "criterion" / "partclipseg.yaml")
        node.normalise = normalise
        losses, weights = train(instantiate(node), accumulation)
        results[distributed.world_size(), normalise, accumulation] = {"losses": losses, "weights": weights}
    return results
