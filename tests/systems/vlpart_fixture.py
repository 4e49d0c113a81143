"""The authors' detector at a tiny size, rebuilt from the numbers of the fixture."""

import json

import safetensors.torch
import torch
from torch import nn

from partseg.structures import Batch, Instances
from partseg.systems.vlpart.body import Pyramid, ResNetBody
from partseg.systems.vlpart.detect import Detection
from partseg.systems.vlpart.heads import HeadShape
from partseg.systems.vlpart.network import VlPart
from partseg.systems.vlpart.proposals import RpnShape
from partseg.vocabulary.names import Vocabulary
from partseg.weights.load import load_weights

CLASSES = {"0": 9, "1": 7, "2": 5, "3": 7, "inference": 8}
SOURCES = {
    "box_fed": {"federated": 6},
    "image": {"kind": "image", "levels": ["object"]},
    "ppart": {"kind": "pseudo"},
}
"""Runs of the fixture that need an entry in model.sources."""

SOURCE_OF = {"box_fed": "0", "part": "1", "box_nomask": "1", "image": "2", "ppart": "3"}


class FixtureText(nn.Module):
    """Text features that the fixture holds, by prompt."""

    def __init__(self, tensors):
        super().__init__()
        self.dim = 40
        self.rows = {
            f"a thing{source} class {i}": row
            for source in CLASSES
            for i, row in enumerate(tensors[f"input.text_{source}"])
        }

    def encode_prompts(self, prompts):
        return torch.stack([self.rows[prompt] for prompt in prompts])


def vocabulary_of(source):
    """Object-parts, or for image labels objects, called as `FixtureText` knows them."""
    count = CLASSES[source]
    if source == "2":
        names = tuple(f"thing2 class {i}" for i in range(count))
        return Vocabulary(pairs=((names[0], "part"),), label_objects=names)
    return Vocabulary(pairs=tuple((f"thing{source}", f"class {i}") for i in range(count)))


class Fixture:
    """One of the two detectors: tensors, settings, and our network with its weights."""

    def __init__(self, folder, kind):
        prefix = "cascade_" if kind == "cascade" else ""
        self.meta = json.loads((folder / "meta.json").read_text())
        self.inference = safetensors.torch.load_file(folder / f"{prefix}inference.safetensors")
        self.train = safetensors.torch.load_file(folder / f"{prefix}train.safetensors")
        self.settings = self.meta["cascade" if kind == "cascade" else "rcnn"]
        self.model = self.build()
        path = str(folder / f"{prefix}state_dict.safetensors")
        self.report = load_weights(self.model, path)

    def build(self, **options):
        rpn, roi, mask = (self.settings[key] for key in ("rpn", "roi", "mask"))
        backbone = self.settings["backbone"]
        test = self.settings["test"]
        return VlPart(
            Pyramid(
                ResNetBody(depths=backbone["blocks"], widths=backbone["inner_widths"]),
                channels=self.settings["fpn"]["channels"],
            ),
            FixtureText(self.inference),
            levels=("object_part",),
            sources=SOURCES,
            rpn=RpnShape(
                anchor_sizes=tuple(self.settings["anchors"]["sizes"]),
                batch_per_image=rpn["batch_per_image"],
                pre_nms=(rpn["pre_nms"]["train"], rpn["pre_nms"]["test"]),
                post_nms=(rpn["post_nms"]["train"], rpn["post_nms"]["test"]),
                nms=rpn["nms"],
            ),
            heads=HeadShape(
                ious=tuple(roi["iou"]),
                hidden=roi["fc"],
                batch_per_image=roi["batch_per_image"],
                positive_fraction=roi["positive_fraction"],
                mask_channels=mask["channels"],
                mask_convs=mask["convs"],
                temperature=roi["temperature"],
                top_proposals=self.settings["losses"]["image_top_proposals"],
            ),
            detection=Detection(test["score_threshold"], test["nms"], test["detections"], grouping=None),
            trainable=["rpn.*", "heads.*", "backbone.fpn.*", "backbone.body.net.layer[234].*"],
            **options,
        )

    def pictures(self):
        """Both pictures on one canvas, and where they lie."""
        images = [self.inference[f"input.{i}.image"] for i in (0, 1)]
        sheet = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
        for canvas, image in zip(sheet, images):
            canvas[:, : image.shape[1], : image.shape[2]] = image
        return sheet, [(0, 0, *image.shape[1:]) for image in images]

    def batch(self, run):
        """The batch of a training run."""
        source = SOURCE_OF[run]
        images, regions = self.pictures()
        nothing = torch.zeros(2, 128, 128, dtype=torch.int32)
        instances = None if run == "image" else tuple(self._instances(i, source, run) for i in (0, 1))
        labels = None
        if run == "image":
            labels = tuple(tuple(self.train[f"input.{i}.image_labels.source2"].tolist()) for i in (0, 1))
        return Batch(
            images,
            nothing,
            nothing,
            ("a", "b"),
            vocabulary_of(source),
            source=run,
            regions=tuple(regions),
            instances=instances,
            image_labels=labels,
        )

    def _instances(self, image, source, run):
        boxes = self.train[f"input.{image}.gt_boxes"]
        small = self.train[f"input.{image}.gt_masks"]
        masks = torch.zeros(len(boxes), 128, 128, dtype=torch.bool)
        masks[:, : small.shape[1], : small.shape[2]] = small
        known = torch.full((len(boxes),), run != "box_nomask")
        zeros = torch.zeros(len(boxes), dtype=torch.long)
        labels = self.train[f"input.{image}.gt_classes.source{source}"]
        return Instances(masks & known[:, None, None], boxes, zeros, labels, zeros - 1, known, known | True)


class RecordedSampler:
    """Gives out the masks of the recorded draws in turn, checking that they are what could be drawn."""

    def __init__(self, tensors, prefix):
        self.tensors, self.prefix, self.place = tensors, prefix, 0

    def __call__(self, labels):
        positive, negative = [], []
        for each in labels:
            name = f"{self.prefix}.{self.place % 2}"
            before = self.tensors[f"{name}.labels_before"]
            self.check(each, before)
            for masks, kind in ((positive, "pos"), (negative, "neg")):
                mask = torch.zeros(len(each), dtype=torch.uint8)
                mask[self.tensors[f"{name}.{kind}_idx"]] = 1
                masks.append(mask)
            self.place += 1
        return positive, negative

    def check(self, labels, before):
        assert torch.equal(labels.long(), before.long())


class RecordedRegions(RecordedSampler):
    """The same for regions, whose recorded labels are classes."""

    background = 9

    def check(self, labels, before):
        assert torch.equal(labels >= 1, before < self.background)
