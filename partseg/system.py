"""What every system is: an nn.Module with the members of `System`. Nothing outside a system's folder knows more of it.

`tests/test_systems.py` runs the contract over every file of configs/model/; docs/extending.md shows the smallest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from partseg.geometry import InputSpec, Region, Size
from partseg.prediction import Prediction
from partseg.structures import Batch
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases

Words = Vocabulary | Phrases
"""What a system is asked for: classes, each pixel or instance one of them, or phrases, a mask each."""


class Prompts(Protocol):
    """Encoded words, opaque to everyone but the system that made them; good while its weights do not change."""

    def subset(self, kept: np.ndarray) -> Prompts:
        """Prompts of `vocabulary.subset(kept)`, kept a bool [K], without encoding anything again."""
        ...


@runtime_checkable
class System(Protocol):
    """An open-vocabulary part segmenter. `input` and `weight_layouts` may be plain attributes or properties.

    The trainer calls `forward` through DistributedDataParallel and hands its outputs to the criterion; `reads` names
    the outputs that the active loss terms use ("object_part", "object", ...), so that nothing else has to be computed.
    `predict` runs in inference mode, on views that `input` made and prompts that `encode_text` made.
    """

    input: InputSpec
    weight_layouts: Sequence[Any]

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> Any:
        """Outputs of one micro-batch, in training; a dataclass of the system's own or `structures.Outputs`."""
        ...

    def encode_text(self, words: Words) -> Prompts:
        """Prompts of a vocabulary or of phrases; ValueError for words that the system has no use for."""
        ...

    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: Prompts,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """One prediction per image, to be read at `sizes`, the photos' own. `regions`: where the photo lies in each.

        `given` are object maps at the photos' sizes, in object ids of the vocabulary, for systems and runs that are
        told the objects; a system without use for them ignores them.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A system that can show where it looked for each part."""

    def attention(
        self, images: UInt8[Tensor, "B 3 H W"], prompts: Prompts, labels: Int[Tensor, "B H W"], vocabulary: Vocabulary
    ) -> list[dict[int, Float[Tensor, "rows columns"]]]:
        """Per image: object-part id -> attention on the token grid, for the parts in its label map at network size."""
        ...


def check_system(model: object, *, source: str) -> System:
    """The model as a System; TypeError that names `source` (a file and key) and the members it lacks."""
    wanted = ("input", "weight_layouts", "forward", "encode_text", "predict")
    lacking = [name for name in wanted if not hasattr(model, name)]
    if not isinstance(model, nn.Module):
        lacking.insert(0, "being a torch.nn.Module")
    if lacking:
        raise TypeError(
            f"{source}: {type(model).__name__} is not a System of partseg, it lacks {', '.join(lacking)}; "
            "partseg/system.py says what every system has"
        )
    if not isinstance(model.input, InputSpec):  # type: ignore[attr-defined]
        raise TypeError(f"{source}: {type(model).__name__}.input must be a partseg.geometry.InputSpec")
    return model  # type: ignore[return-value]
