"""A small part of the authors' numbers that travels with the code: proposals, classifier, detections, losses, matches.

`python tests/systems/test_vlpart_golden.py <folder of the fixture>` writes tests/golden/vlpart.safetensors again.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from partseg.systems.vlpart import detect, losses, training, transfer
from partseg.systems.vlpart.detect import Detection
from partseg.systems.vlpart.dino import Descriptors
from partseg.systems.vlpart.heads import Heads, HeadShape, StageOutputs, Truth
from partseg.systems.vlpart.names import Names
from partseg.systems.vlpart.proposals import ProposalNetwork, RpnShape
from partseg.systems.vlpart.training import TrainedStage, VlPartOutputs
from partseg.vocabulary.names import Vocabulary

PATH = Path(__file__).parents[1] / "golden" / "vlpart.safetensors"
INFERENCE = (
    *(f"rpn.{kind}.{level}" for kind in ("objectness", "deltas") for level in range(5)),
    *("proposals.0.boxes", "proposals.0.objectness_logits", "input.text_inference", "roi.cls_embedding", "roi.logits"),
    *("roi.box_deltas", "roi.pred_boxes.0", "roi.final_scores.0", "det.0.boxes_netsize", "det.0.scores"),
    *("det.0.classes", "det.0.kept_proposal_index", "mask.logits", "out.0.boxes", "out.0.masks"),
)
TRAIN = (
    *(f"box_fed.roi.{name}" for name in ("logits", "box_deltas")),
    *(f"box_fed.roi.proposals.{i}.boxes" for i in (0, 1)),
    *(f"box_fed.roi.matched.{i}.{name}" for i in (0, 1) for name in ("gt_classes", "gt_boxes")),
    *("box_fed.fed.appeared.0", "box_fed.mask.logits", "input.0.gt_boxes", "input.1.gt_boxes"),
    *(f"box_fed.loss.loss_{name}" for name in ("cls", "box_reg", "mask")),
    *("input.0.gt_masks", "input.1.gt_masks"),
)
PARSER = ("match_index_query_to_base", "query.key", "base.key")
CELLS = 60
"""Cells of the parser's query picture that are kept."""
SHOWN = 6
"""Masks of the first picture that are kept at its own size."""


@pytest.fixture(scope="module")
def golden():
    return safetensors.torch.load_file(PATH)


def close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance * scale)


def unpacked(bits, shape):
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits.numpy())[:count].reshape(shape).astype(bool))


def test_the_file_is_small():
    assert PATH.stat().st_size < 300_000


def test_proposals(golden, monkeypatch):
    shape = RpnShape((16, 32, 48, 64, 96), batch_per_image=64, pre_nms=(120, 60), post_nms=(60, 24))
    rpn = ProposalNetwork(32, shape=shape).eval()
    answers = [[golden[f"rpn.{kind}.{level}"] for level in range(5)] for kind in ("objectness", "deltas")]
    monkeypatch.setattr(rpn.head, "forward", lambda _: tuple(answers))
    found = rpn([torch.zeros(1, 32, 32 >> level, 32 >> level) for level in range(5)], [(100, 128)])
    close(found.boxes[0], golden["proposals.0.boxes"])
    close(found.scores[0], golden["proposals.0.objectness_logits"].sigmoid())


def names_of(golden):
    vocabulary = Vocabulary(pairs=tuple(("thing", f"part {i}") for i in range(8)))
    return Names(vocabulary, golden["input.text_inference"], torch.zeros(0, 40))


def test_the_classifier(golden):
    rows = names_of(golden).rows
    logits = 50 * F.normalize(golden["roi.cls_embedding"], dim=1) @ rows.t()
    close(logits, golden["roi.logits"])
    assert not rows[-1].any() and torch.allclose(rows[:-1].norm(dim=1), torch.ones(8))
    heads = Heads(32, text_dim=40, shape=HeadShape(hidden=48))
    embedding = golden["roi.cls_embedding"]
    stage = heads.stages[0]
    for part, answer in ((stage.fc, embedding), (stage.embed, embedding), (stage.offsets, golden["roi.box_deltas"])):
        part.forward = lambda _, answer=answer: answer
    close(stage(embedding, rows)[0], golden["roi.logits"])


def test_detections_and_pasted_masks(golden):
    heads = Heads(32, text_dim=40, shape=HeadShape(hidden=48)).eval()
    boxes = golden["proposals.0.boxes"]
    outputs = StageOutputs(golden["roi.logits"][: len(boxes)], golden["roi.box_deltas"][: len(boxes)], [boxes])
    close(heads.decoded(0, outputs)[0], golden["roi.pred_boxes.0"])
    settings = Detection(0.05, 0.5, 12, grouping=None)
    chances = detect.mean_chances([outputs.logits])
    scores = detect.weighted(chances, golden["proposals.0.objectness_logits"].sigmoid(), settings)
    close(scores, golden["roi.final_scores.0"])
    found = detect.select(heads.refined(0, outputs, [(100, 128)])[0], scores, size=(100, 128), settings=settings)
    close(found.boxes, golden["det.0.boxes_netsize"])
    close(found.scores, golden["det.0.scores"])
    assert torch.equal(found.classes, golden["det.0.classes"])
    assert torch.equal(found.region, golden["det.0.kept_proposal_index"])
    logits = golden["mask.logits"][:, 0]
    photo = detect.segments(found, logits, names_of(golden), inside=(100, 128), size=(150, 192), settings=settings)
    close(torch.from_numpy(photo.boxes), golden["out.0.boxes"])
    expected = unpacked(golden["out.0.masks"], (SHOWN, 150, 192))
    assert np.array_equal(photo.masks()[:SHOWN], expected.numpy())


def test_losses(golden):
    """The federated run: classes, boxes and masks, from the authors' logits, regions and draws."""
    classes = torch.cat([golden[f"box_fed.roi.matched.{i}.gt_classes"] for i in (0, 1)])
    weights = torch.zeros(10)
    weights[golden["box_fed.fed.appeared.0"]] = 1
    heads = Heads(32, text_dim=40, shape=HeadShape(hidden=48))
    boxes = [golden[f"box_fed.roi.proposals.{i}.boxes"] for i in (0, 1)]
    wanted = torch.cat([golden[f"box_fed.roi.matched.{i}.gt_boxes"] for i in (0, 1)])[classes < 9]
    offsets = heads.coders[0].encode_single(wanted, torch.cat(boxes)[classes < 9])
    found = StageOutputs(golden["box_fed.roi.logits"], golden["box_fed.roi.box_deltas"], boxes)
    stage = TrainedStage(found, classes, offsets, weights[:-1])
    logits, targets = golden["box_fed.mask.logits"][:, 0], []
    for i, size in ((0, (3, 100, 128)), (1, (2, 128, 90))):
        masks, true = unpacked(golden[f"input.{i}.gt_masks"], size), golden[f"input.{i}.gt_boxes"]
        kept = golden[f"box_fed.roi.matched.{i}.gt_classes"] < 9
        on = boxes[i][kept]
        instance = box_iou(golden[f"box_fed.roi.matched.{i}.gt_boxes"][kept], true).argmax(1)
        truth = Truth(true, torch.zeros(len(true), dtype=torch.long), masks, torch.ones(len(true), dtype=torch.bool))
        targets.append(training.cut(truth, instance, on))
    outputs = VlPartOutputs("boxes", (stage,), masks=training.MaskOutputs(logits, torch.cat(targets)))
    for name, term in {
        "cls": losses.Classification(),
        "box_reg": losses.BoxOffsets(),
        "mask": losses.MaskCrossEntropy(),
    }.items():
        assert float(term.value(outputs)) == pytest.approx(float(golden[f"box_fed.loss.loss_{name}"]), rel=1e-6), name


def test_correspondences(golden):
    descriptors = {
        name: Descriptors(torch.zeros(48), golden[f"{name}.key"], torch.zeros(len(golden[f"{name}.key"])), (0, 0))
        for name in ("query", "base")
    }
    found = transfer.matches(descriptors["query"], descriptors["base"])
    assert torch.equal(found, golden["match_index_query_to_base"])


def write(folder):
    """The golden numbers out of the fixture."""
    inference = safetensors.torch.load_file(folder / "inference.safetensors")
    train = safetensors.torch.load_file(folder / "train.safetensors")
    parser = safetensors.torch.load_file(folder / "parser.safetensors")
    kept = {name: inference[name] for name in INFERENCE} | {name: train[name] for name in TRAIN}
    for name in [name for name in kept if name.startswith(("rpn.objectness", "rpn.deltas"))]:
        kept[name] = kept[name][:1]
    kept["mask.logits"] = kept["mask.logits"][: len(kept["det.0.classes"])]
    kept["roi.cls_embedding"], kept["roi.logits"] = inference["roi.cls_embedding"], inference["roi.logits"]
    kept["out.0.masks"] = kept["out.0.masks"][:SHOWN]
    for name in ("out.0.masks", "input.0.gt_masks", "input.1.gt_masks"):
        kept[name] = torch.from_numpy(np.packbits(kept[name].numpy()))
    kept |= {name: parser[name] for name in PARSER}
    kept["match_index_query_to_base"] = kept["match_index_query_to_base"][:CELLS]
    kept["query.key"], kept["base.key"] = kept["query.key"][0, 0, :CELLS], kept["base.key"][0, 0]
    safetensors.torch.save_file({name: value.contiguous().clone() for name, value in kept.items()}, PATH)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
