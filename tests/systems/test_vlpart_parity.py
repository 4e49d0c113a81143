"""VLPart against the authors' network at a tiny size: every seam of prediction, every loss, gradients."""

import numpy as np
import pytest
import torch
from systems.vlpart_fixture import SOURCE_OF, Fixture, RecordedRegions, RecordedSampler, vocabulary_of

from partseg.losses.criterion import Criterion
from partseg.systems.vlpart import losses
from partseg.utils.config import compose, instantiate

KINDS = ("rcnn", "cascade")


@pytest.fixture(scope="module", params=KINDS)
def fixture(request, samples):
    return Fixture(samples.parent / "fixtures" / "vlpart", request.param)


def assert_close(found, expected, tolerance=1e-5):
    """Largest difference, by the largest value."""
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance * scale)


def test_every_tensor_of_the_authors_is_ours(fixture):
    assert not fixture.report.missing and not fixture.report.unexpected and not fixture.report.resized


def test_every_seam_of_prediction(fixture):
    model, expected = fixture.model.eval(), fixture.inference
    images, regions = fixture.pictures()
    with torch.inference_mode():
        pictures, sizes = model.normalised(images, regions)
        assert_close(pictures, expected["batch_normalised"])
        for level, found in enumerate(model.backbone.body(pictures), 2):
            assert_close(found, expected[f"c{level}"])
        features = model.backbone(pictures)
        for level, found in enumerate(features, 2):
            assert_close(found, expected[f"p{level}"])
        for level, (logits, deltas) in enumerate(zip(*model.rpn.head(features))):
            assert_close(logits, expected[f"rpn.objectness.{level}"])
            assert_close(deltas, expected[f"rpn.deltas.{level}"])
        for level, anchors in enumerate(model.rpn.anchor_generator.of_levels(features)):
            assert_close(anchors, expected[f"rpn.anchors.{level}"])
        proposals = model.rpn(features, sizes)
        for i in (0, 1):
            assert_close(proposals.boxes[i], expected[f"proposals.{i}.boxes"])
            assert_close(proposals.scores[i], expected[f"proposals.{i}.objectness_logits"].sigmoid())
        names = model.encode_text(vocabulary_of("inference"))
        found = model.detect(features, proposals, names, sizes)
        for i in (0, 1):
            assert_close(found[i].boxes, expected[f"det.{i}.boxes_netsize"])
            assert_close(found[i].scores, expected[f"det.{i}.scores"])
            assert torch.equal(found[i].classes, expected[f"det.{i}.classes"])
            assert torch.equal(found[i].region, expected[f"det.{i}.kept_proposal_index"])
        masks = model.heads.masks(features, [each.boxes for each in found])
        assert_close(masks[:, None], expected["mask.logits"])


def test_stages_of_prediction(fixture):
    """Pooled features, box head, text classifier and box offsets, stage by stage."""
    model, expected = fixture.model.eval(), fixture.inference
    features = [expected[f"p{level}"] for level in range(2, 7)]
    boxes = [expected[f"proposals.{i}.boxes"] for i in (0, 1)]
    sizes = [(100, 128), (128, 90)]
    rows = model.encode_text(vocabulary_of("inference")).rows
    cascade = len(model.heads.stages) > 1
    with torch.inference_mode():
        for stage in range(len(model.heads.stages)):
            prefix = f"stage{stage}." if cascade else ""
            found = model.heads.run(stage, features, boxes, rows)
            assert_close(found.logits, expected[f"{prefix}roi.logits"])
            assert_close(found.deltas, expected[f"{prefix}roi.box_deltas"])
            assert not found.logits[:, -1].any(), "the background row is zero"
            last = model.heads.decoded(stage, found)
            boxes = model.heads.refined(stage, found, sizes)
        for i in (0, 1):
            assert_close(last[i], expected[f"roi.pred_boxes.{i}"])


def test_instances_of_the_photos(fixture):
    model, expected = fixture.model.eval(), fixture.inference
    images, regions = fixture.pictures()
    sizes = [tuple(size) for size in fixture.meta["images"]["output_sizes_hw"]]
    with torch.inference_mode():
        names = model.encode_text(vocabulary_of("inference"))
        found = model.predict(images, names, sizes=sizes, regions=regions)
    for i, segments in enumerate(found):
        assert segments.size == sizes[i]
        assert_close(torch.from_numpy(segments.boxes), expected[f"out.{i}.boxes"])
        assert_close(torch.from_numpy(segments.scores), expected[f"out.{i}.scores"])
        assert np.array_equal(segments.label, expected[f"out.{i}.classes"].numpy())
        # a pixel whose probability is within 3e-6 of a half may fall on either side
        assert (segments.masks() != expected[f"out.{i}.masks"].numpy()).sum() <= 1


RUNS = [(kind, run) for kind in KINDS for run in SOURCE_OF if (kind, run) != ("cascade", "box_nomask")]


@pytest.fixture(scope="module")
def detectors(samples):
    return {kind: Fixture(samples.parent / "fixtures" / "vlpart", kind) for kind in KINDS}


def official_criterion():
    return instantiate(compose("train", ["experiment=vlpart_pascal_part_116", "recipe=official"]).criterion)


@pytest.mark.parametrize(("kind", "run"), RUNS)
def test_losses_and_gradients(kind, run, detectors, monkeypatch):
    """With the authors' draws, in the recipe `official`, from its YAML."""
    fixture = detectors[kind]
    model, expected = fixture.model.train(), fixture.train
    model.zero_grad()
    monkeypatch.setattr(model, "pseudo_rule", "score" if kind == "cascade" else "boxes")
    monkeypatch.setattr(model.rpn, "fg_bg_sampler", RecordedSampler(expected, f"{run}.rpn.sample"))
    monkeypatch.setattr(model.heads, "sampler", RecordedRegions(expected, f"{run}.roi.sample"))
    drawn = iter([expected[name] for name in sorted(expected) if name.startswith(f"{run}.fed.appeared")])
    monkeypatch.setattr(torch, "multinomial", lambda _chance, count, replacement: next(drawn)[-count:])
    criterion: Criterion = official_criterion()
    batch = fixture.batch(run)
    loss, values = criterion(model(batch, reads=criterion.reads), batch, criterion.counts(batch))
    loss.backward()
    groups = {
        "objectness": "loss_rpn_cls",
        "anchors": "loss_rpn_loc",
        "classes": "loss_cls",
        "boxes": "loss_box_reg",
        "masks": "loss_mask",
        "image_labels": "loss_noun",
        "pseudo_parts": "loss_ppart",
        "pseudo_labels": "loss_ppart" if kind == "cascade" else "none",
    }
    for term, name in groups.items():
        if term == "pseudo_parts" and kind == "cascade":
            continue
        wanted = sum(float(v) for key, v in expected.items() if key.startswith(f"{run}.loss.{name}"))
        assert criterion.weights[term] * float(values[term]) == pytest.approx(wanted, rel=1e-6, abs=1e-7), term
    assert float(loss.detach()) == pytest.approx(float(expected[f"{run}.loss.total"]), rel=1e-6)
    check_gradients(model, expected, run, kind)


def check_gradients(model, expected, run, kind):
    layout = {each.name: each for each in model.weight_layouts}["vlpart_cascade" if kind == "cascade" else "vlpart"]
    own = dict(model.named_parameters())
    ours = {link.theirs[0]: link.ours for link in layout.links(own)}
    compared = [name for name in expected if name.startswith(f"{run}.grad.")]
    assert len(compared) > 5
    for name in compared:
        gradient = own[ours[name.removeprefix(f"{run}.grad.")]].grad
        gradient = torch.zeros_like(expected[name]) if gradient is None else gradient
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 * scale)
    norm = torch.stack([p.grad.norm() for p in own.values() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(float(expected[f"{run}.grad_norm_total"]), rel=1e-5)


def test_ours_takes_the_largest_of_all_proposals_and_leaves_background_out(detectors):
    """Where our recipe differs from the authors' code: the fixture has a picture in which the last is the largest."""
    fixture = detectors["rcnn"]
    model, expected = fixture.model.train(), fixture.train
    batch = fixture.batch("image")
    outputs = model(batch)
    sizes = expected["image.image.sizes.0"]
    boxes = outputs.stages[0].found.boxes
    assert_close((boxes[0][:, 2] - boxes[0][:, 0]) * (boxes[0][:, 3] - boxes[0][:, 1]), sizes)
    logits = outputs.stages[0].found.logits.detach().split([len(each) for each in boxes])
    picked = [int(expected[f"image.image.argmax_without_dropping_last.{k}"]) for k in range(3)]
    owner = [0, 0, 1]
    wanted = 0.0
    for image in (0, 1):
        rows = [k for k in range(3) if owner[k] == image]
        for k, label in zip(rows, outputs.labels[image].tolist()):
            row = logits[image][picked[k], :-1]
            target = torch.zeros_like(row)
            target[label] = 1
            value = torch.nn.functional.binary_cross_entropy_with_logits(row, target, reduction="sum")
            wanted += float(value) / len(rows) / 2
    assert float(losses.ImageLabels().value(outputs).detach()) == pytest.approx(wanted, rel=1e-6)
