"""VLPart: a Mask R-CNN or Cascade Mask R-CNN whose classes are words.

Legend: B images, H W network size, C classes that are looked for, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from partseg.geometry import InputSpec, Region, Size
from partseg.prediction import Prediction, Segments
from partseg.structures import Batch, InstanceLevel
from partseg.system import Words
from partseg.systems.vlpart import detect, training
from partseg.systems.vlpart.body import Pyramid
from partseg.systems.vlpart.detect import Detection, Found
from partseg.systems.vlpart.heads import Heads, HeadShape
from partseg.systems.vlpart.names import Names, Source, check_levels
from partseg.systems.vlpart.proposals import ProposalNetwork, Proposals, RpnShape
from partseg.systems.vlpart.text import TextTower
from partseg.systems.vlpart.training import VlPartOutputs
from partseg.systems.vlpart.weights import LAYOUTS
from partseg.text.templates import TemplateLike, Templates
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.weights.freeze import set_trainable

DIVISOR = 32
IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_STD = (58.395, 57.12, 57.375)


class VlPart(nn.Module):
    """Finds instances of object-parts and objects by name.

    `image_size` is (shorter side, longest side) in prediction. `levels` are what it looks for; `sources` say, by the
    name of a data set in a mixture, how that one is trained on (`names.Source`). `pseudo_rule` is what pseudo parts
    are matched by: their boxes, as the paper says, or the best score, as the authors' cascade does.
    """

    weight_layouts = LAYOUTS
    saves_memory = ("model.image_size=[640,1067]",)
    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        backbone: Pyramid,
        text: TextTower,
        *,
        image_size: Sequence[int] = (800, 1333),
        template: TemplateLike = "a {}",
        levels: Sequence[InstanceLevel] = ("object_part", "object"),
        sources: Mapping[str, Mapping[str, Any]] | None = None,
        rpn: RpnShape | None = None,
        heads: HeadShape | None = None,
        detection: Detection | None = None,
        pseudo_rule: Literal["boxes", "score"] = "boxes",
        trainable: Sequence[str] = ("*",),
    ) -> None:
        super().__init__()
        if pseudo_rule not in ("boxes", "score"):
            raise ValueError(f"model.pseudo_rule={pseudo_rule!r} is not 'boxes' or 'score'")
        self.input = InputSpec((image_size[0], image_size[1]), "short_edge", divisor=DIVISOR)
        self.templates = Templates(template)
        self.levels = check_levels(levels, "model.levels")
        self.default = Source(levels=self.levels)
        self.sources = {name: Source.of(name, entry, self.default) for name, entry in (sources or {}).items()}
        self.detection = detection or Detection()
        self.pseudo_rule = pseudo_rule
        self.backbone = backbone
        self.rpn = ProposalNetwork(backbone.channels, shape=rpn or RpnShape())
        self.heads = Heads(backbone.channels, text_dim=text.dim, shape=heads or HeadShape())
        self.text = text
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)
        frozen = frozenset(name for name, _ in self.named_parameters() if name.startswith("text."))
        set_trainable(self, trainable, unused=frozen)

    @property
    def passes(self) -> tuple[str, ...]:
        """All but what lies between: proposals, their suppression, sampling and pooling differ with every picture."""
        stages = tuple(f"heads.stages.{stage}.forward" for stage in range(len(self.heads.stages)))
        return ("backbone.forward", "rpn.head.forward", *stages, "heads.mask_head")

    # ---- words -------------------------------------------------------------------------------------------------------
    def encode_text(self, words: Words) -> Names:
        """A row per class of the levels that are looked for; ValueError for phrases."""
        if isinstance(words, Phrases):
            raise ValueError("VLPart finds instances of named classes, not of phrases; give a vocabulary")
        return self.encode_levels(words, self.levels)

    def encode_levels(self, vocabulary: Vocabulary, levels: Sequence[InstanceLevel]) -> Names:
        """Rows of chosen levels; objects without parts are words too."""
        prompts = self.templates.prompts(vocabulary, "object_part") if "object_part" in levels else []
        words = vocabulary.prompt_names
        things = vocabulary.label_objects if "object" in levels else ()
        objects = [self.templates.of_name(words.get(name, name), "object") for name in things]
        return Names(vocabulary, self._encode(prompts), self._encode(objects))

    def _encode(self, prompts: Sequence[tuple[str, ...]]) -> Float[Tensor, "N D"]:
        if not prompts:
            return self.image_mean.new_zeros(0, self.text.dim)
        return self.templates.encode(self.text.encode_prompts, prompts)

    # ---- pictures ----------------------------------------------------------------------------------------------------
    def normalised(
        self, images: UInt8[Tensor, "B 3 H W"], regions: Sequence[Region] | None
    ) -> tuple[Float[Tensor, "B 3 h w"], list[Size]]:
        """Pictures around 0, exactly 0 outside the photo and up to multiples of 32; and the photos' sizes in them."""
        x = (images - self.image_mean) / self.image_std
        height, width = images.shape[-2:]
        places = list(regions or [(0, 0, height, width)] * len(images))
        if any(place[:2] != (0, 0) for place in places):
            raise ValueError("VLPart wants photos at the upper left: use augmentation.resize=short_edge or squash")
        for picture, (_, _, rows, columns) in zip(x, places):
            picture[:, rows:] = 0
            picture[:, :, columns:] = 0
        return F.pad(x, (0, -width % DIVISOR, 0, -height % DIVISOR)), [place[2:] for place in places]

    def forward(self, batch: Batch, *, reads: frozenset[str] = frozenset()) -> VlPartOutputs:
        """Sampled anchors and regions with their targets; masks if a term reads them."""
        source = self.sources.get(batch.source, self.default)
        names = self.encode_levels(batch.vocabulary, source.levels)
        images, sizes = self.normalised(batch.images, batch.regions)
        with training.reproducible(batch):
            features = self.backbone(images)
            proposals = self.rpn(features, sizes)
            return self._train(batch, source, names, features, proposals, sizes, "masks" in reads)

    def _train(
        self,
        batch: Batch,
        source: Source,
        names: Names,
        features: Sequence[Tensor],
        proposals: Proposals,
        sizes: Sequence[Size],
        with_masks: bool,
    ) -> VlPartOutputs:
        if source.kind == "image":
            labels = training.labels_of(batch, names)
            return training.train_on_labels(self.heads, features, proposals, labels, names, kind="image", sizes=sizes)
        truth = training.truth_of(batch, names)
        if source.kind == "pseudo" and self.pseudo_rule == "score":
            classes = tuple(each.classes for each in truth)
            return training.train_on_labels(self.heads, features, proposals, classes, names, kind="pseudo", sizes=sizes)
        found = training.train_on_boxes(
            self.heads,
            features,
            proposals,
            truth,
            names,
            source=source,
            sizes=sizes,
            with_masks=with_masks and source.kind == "boxes",
        )
        if source.kind == "pseudo":
            return found
        return replace(found, anchors=self.rpn.sample(proposals, [each.boxes for each in truth]))

    # ---- prediction --------------------------------------------------------------------------------------------------
    def predict(
        self,
        images: UInt8[Tensor, "B 3 H W"],
        prompts: Names,
        *,
        sizes: Sequence[Size],
        regions: Sequence[Region] | None = None,
        given: Sequence[Int[Tensor, "h w"] | None] | None = None,
    ) -> list[Prediction]:
        """Instances of each photo, best first, with the parts' objects where they are found too."""
        pictures, inside = self.normalised(images, regions)
        features = self.backbone(pictures)
        found = self.detect(features, self.rpn(features, inside), prompts, inside)
        logits = self.heads.masks(features, [each.boxes for each in found])
        return [
            detect.segments(each, masks, prompts, inside=place, size=size, settings=self.detection)
            for each, masks, place, size in zip(found, logits.split([len(f.boxes) for f in found]), inside, sizes)
        ]

    def propose(
        self, images: UInt8[Tensor, "B 3 H W"], *, sizes: Sequence[Size], regions: Sequence[Region] | None = None
    ) -> list[Segments]:
        """Boxes of each photo that may hold something, at its own size, best first, without names or masks."""
        pictures, inside = self.normalised(images, regions)
        proposals = self.rpn(self.backbone(pictures), inside)
        found = zip(proposals.boxes, proposals.scores, inside, sizes, strict=True)
        return [detect.bare(boxes, scores, inside=place, size=size) for boxes, scores, place, size in found]

    def detect(
        self, features: Sequence[Tensor], proposals: Proposals, names: Names, sizes: Sequence[Size]
    ) -> list[Found]:
        """Scored boxes of each image at network size: probabilities are means over stages, boxes the last stage's."""
        rows, boxes, logits = names.rows, proposals.boxes, []
        for stage in range(len(self.heads.stages)):
            outputs = self.heads.run(stage, features, boxes, rows)
            logits.append(outputs.logits)
            boxes = self.heads.refined(stage, outputs, sizes)
        counts = [len(each) for each in boxes]
        chances = detect.mean_chances(logits).split(counts)
        return [
            detect.select(box, detect.weighted(chance, score, self.detection), size=size, settings=self.detection)
            for box, chance, score, size in zip(boxes, chances, proposals.scores, sizes)
        ]
