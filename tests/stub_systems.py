"""The smallest system of each kind, as a user might write one: what test_systems.py puts through every real tool."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partseg.geometry import InputSpec
from partseg.losses.term import LossInputs
from partseg.prediction import DenseScores, PhraseScores, Prediction, Segments
from partseg.structures import Batch, Outputs
from partseg.system import Words
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases

WIDTH = 8


@dataclass(frozen=True)
class StubPrompts:
    """One vector per class."""

    vectors: Tensor
    vocabulary: Vocabulary | None = None

    def subset(self, kept: np.ndarray) -> StubPrompts:
        assert self.vocabulary is not None
        return StubPrompts(self.vectors[torch.from_numpy(kept)], self.vocabulary.subset(kept))


class Stub(nn.Module):
    """Two convolutions; a class's logits are the product of features with a vector drawn from its name."""

    weight_layouts = ()
    saves_memory = ()

    def __init__(self, channels: int = 3, *, input: InputSpec | None = None) -> None:
        super().__init__()
        self.input = input or InputSpec((32, 32))
        self.first = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.text = nn.Linear(WIDTH, WIDTH)

    def embed(self, names: Sequence[str]) -> Tensor:
        seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") for name in names]
        rows = [np.random.default_rng(seed).standard_normal(WIDTH) for seed in seeds]
        return self.text(torch.tensor(np.array(rows), dtype=torch.float32, device=self.text.weight.device))

    def features(self, images: Tensor) -> Tensor:
        return self.second(F.relu(self.first(images)))

    def encode_text(self, words: Words) -> StubPrompts:
        if isinstance(words, Phrases):
            raise ValueError("this system has no use for phrases; give a vocabulary")
        return StubPrompts(self.embed(words.object_parts), words)

    def maps(self, images: Tensor, vectors: Tensor) -> Tensor:
        return torch.einsum("bchw,ec->behw", self.features(images.float() / 255), vectors)


class DenseStub(Stub):
    """Dense maps of object-parts, background the last of them."""

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> Outputs:
        return Outputs(object_part=self._scores(batch.images, self.encode_text(batch.vocabulary)))

    def _scores(self, images: Tensor, prompts: StubPrompts) -> Tensor:
        maps = self.maps(images, prompts.vectors)
        return torch.cat([maps, torch.zeros_like(maps[:, :1])], 1)

    def predict(self, images, prompts, *, sizes, regions=None, given=None) -> list[Prediction]:
        places = regions or [None] * len(images)
        return [DenseScores(s, None, *each) for s, *each in zip(self._scores(images, prompts), sizes, places)]


@dataclass(frozen=True)
class MapOutputs:
    """One logit map per class, and the masks they should be."""

    logits: Tensor
    masks: Tensor


class MapLoss:
    """Binary cross-entropy of `MapOutputs`; a term of a user's own."""

    reads = ("logits",)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"pixels": torch.tensor(float(batch.images[:, 0].numel()), dtype=torch.float64)}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        found = inputs.outputs
        if not found.logits.numel():
            return found.logits.sum()
        loss = F.binary_cross_entropy_with_logits(found.logits, found.masks.float(), reduction="sum")
        return loss / (found.logits.shape[1] * counts["pixels"]).float()


class InstanceStub(Stub):
    """Instances of parts with their objects as parents: where a class's map is positive, in one piece."""

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> MapOutputs:
        assert batch.instances is not None, "this system is trained on instances"
        logits = self.maps(batch.images, self.encode_text(batch.vocabulary).vectors)
        masks = torch.zeros_like(logits, dtype=torch.bool)
        for image, instances in enumerate(batch.instances):
            parts = instances.select(instances.level == 0)
            for mask, label in zip(parts.masks, parts.label.tolist()):
                masks[image, label] |= mask
        return MapOutputs(logits, masks)

    def predict(self, images, prompts, *, sizes, regions=None, given=None) -> list[Prediction]:
        return [
            self._segments(maps, prompts.vocabulary, size)
            for maps, size in zip(self.maps(images, prompts.vectors), sizes)
        ]

    def _segments(self, maps: Tensor, vocabulary: Vocabulary, size: tuple[int, int]) -> Segments:
        full = F.interpolate(maps[None], size, mode="bilinear")[0]
        labels = [k for k in range(len(full)) if (full[k] > 0).any()][:5]
        owners = sorted({int(vocabulary.object_of[k]) for k in labels})
        masks = [full[k] > 0 for k in labels]
        objects = [
            torch.stack([m for m, k in zip(masks, labels) if vocabulary.object_of[k] == o]).any(0) for o in owners
        ]
        positions = [vocabulary.label_objects.index(vocabulary.objects[o]) for o in owners]
        return Segments.from_masks(
            torch.stack([*masks, *objects]) if masks else torch.zeros(0, *size, dtype=torch.bool),
            scores=[float(full[k].max().sigmoid()) for k in labels] + [0.5] * len(owners),
            level=[0] * len(labels) + [1] * len(owners),
            label=[*labels, *positions],
            parent=[len(labels) + owners.index(int(vocabulary.object_of[k])) for k in labels] + [-1] * len(owners),
            levels=("object_part", "object"),
        )


class ProposalStub(Stub):
    """Cuts the object that it is given into two segments without names."""

    def __init__(self) -> None:
        super().__init__(channels=4, input=InputSpec((32, 32), needs_object=True))

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> MapOutputs:
        assert batch.given is not None, "this system is trained on one object at a time"
        inside = batch.given < batch.vocabulary.num_objects
        maps = self._map(batch.images, inside)
        first = batch.object_part == batch.object_part.flatten(1).min(1).values[:, None, None]
        return MapOutputs(maps[:, None], (inside & first)[:, None])

    def _map(self, images: Tensor, inside: Tensor) -> Tensor:
        return self.features(torch.cat([images.float() / 255, inside[:, None].float()], 1))[:, 0]

    def predict(self, images, prompts, *, sizes, regions=None, given=None) -> list[Prediction]:
        assert given is not None, "this system must be given the objects"
        count = prompts.vocabulary.num_objects
        small = [F.interpolate((g < count)[None, None].float(), images.shape[-2:])[0, 0] for g in given]
        maps = self._map(images, torch.stack(small).to(images.device) > 0)
        found = []
        for each, objects, size in zip(maps, given, sizes):
            positive = F.interpolate(each[None, None], size, mode="bilinear")[0, 0] > 0
            inside = objects.to(each.device) < count
            found.append(Segments.from_masks(torch.stack([inside & positive, inside & ~positive]), scores=[0.9, 0.8]))
        return found


class PhraseStub(Stub):
    """A mask for each phrase; words of a vocabulary are phrases to it too."""

    def encode_text(self, words: Words) -> StubPrompts:
        if isinstance(words, Phrases):
            return StubPrompts(self.embed(words.texts))
        return StubPrompts(self.embed(words.prompts("object_part")), words)

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> MapOutputs:
        assert batch.phrases is not None and batch.phrase_masks is not None, "this system is trained on phrases"
        logits = (self.features(batch.images.float() / 255) * self.embed(batch.phrases)[:, :, None, None]).sum(1)
        return MapOutputs(logits[:, None], batch.phrase_masks[:, None])

    def predict(self, images, prompts, *, sizes, regions=None, given=None) -> list[Prediction]:
        maps = self.maps(images, prompts.vectors)
        if prompts.vocabulary is None:
            return [PhraseScores(m, size) for m, size in zip(maps, sizes)]
        return [DenseScores(torch.cat([m, torch.zeros_like(m[:1])]), None, size) for m, size in zip(maps, sizes)]


class NotASystem(nn.Module):
    """Lacks what the contract asks for."""
