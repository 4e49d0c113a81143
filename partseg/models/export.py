"""The image branch as one graph: pixels and text embeddings in, masks out, for torch.export and torch.compile."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from partseg.models.clipseg import ClipSeg
from partseg.models.part_clipseg import PairIndex, PartClipSeg
from partseg.structures import TextFeatures
from partseg.vocabulary.names import Vocabulary


class ImageBranch(nn.Module):
    """A model for one vocabulary without its text tower; text embeddings are inputs, so new words need no new export.

    The number of parts and objects and which pairs exist are fixed; images may be a batch of any size if exported so.
    """

    object_of: Tensor
    part_of: Tensor
    text_row: Tensor

    def __init__(self, model: ClipSeg | PartClipSeg, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.model = model
        if isinstance(model, PartClipSeg):
            for name, ids in model.pair_index(vocabulary)._asdict().items():
                self.register_buffer(name, ids, persistent=False)

    def inputs(self, images: Tensor, text: TextFeatures) -> tuple[Tensor, ...]:
        """Arguments of `forward` for these images and features."""
        rows = (text.object_part,) if isinstance(self.model, ClipSeg) else (text.part, text.object)
        return (images, text.background, *(row for row in rows if row is not None))

    def forward(
        self, images: Float[Tensor, "B 3 H W"], background: Float[Tensor, "1 D"], *text: Float[Tensor, "_ D"]
    ) -> tuple[Tensor, ...]:
        """Logits of object-parts, and for PartCLIPSeg those of objects and parts."""
        if isinstance(self.model, ClipSeg):
            return (self.model.segment(images, TextFeatures(background=background, object_part=text[0])).object_part,)
        features = TextFeatures(background=background, part=text[0], object=text[1])
        outputs = self.model.segment(images, features, PairIndex(self.object_of, self.part_of, self.text_row))
        assert outputs.object is not None and outputs.part is not None
        return outputs.object_part, outputs.object, outputs.part
