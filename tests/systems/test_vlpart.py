"""VLPart's own behaviour: kinds of labels, federated classes, draws, grouping, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model
from partseg.losses.criterion import loss_of
from partseg.prediction import Segments
from partseg.systems.vlpart import detect
from partseg.systems.vlpart.detect import Detection
from partseg.systems.vlpart.names import Names, Source
from partseg.systems.vlpart.training import _class_weights
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.names import Vocabulary

WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "car": ["wheel"]})
SIZE = "model.image_size=[64,80]"


@pytest.fixture(scope="module")
def system():
    """A small model that knows a data set of each kind, and its criterion."""
    sources = ["+model.sources.labels={kind: image, levels: [object]}", "+model.sources.parsed={kind: pseudo}"]
    config = compose("train", ["experiment=toy_vlpart", SIZE, *sources])
    torch.manual_seed(0)
    return build_model(config).train(), instantiate(config.criterion)


@pytest.fixture
def batch(system):
    return random_batch(WORDS, batch_size=2, input=system[0].input)


def values_of(system, batch):
    model, criterion = system
    model.zero_grad()
    loss, values, _ = loss_of(model, criterion, batch)
    loss.backward()
    return {name: float(value) for name, value in values.items()}


# Kinds of labels ------------------------------------------------------------------------------------------------------
def test_instances_train_everything(system, batch):
    values = values_of(system, batch)
    trained = {"objectness", "anchors", "classes", "boxes", "masks"}
    assert {name for name, value in values.items() if value > 0} == trained
    for name in ("rpn.head.conv.0.0.weight", "heads.mask_logits.mask_fcn_logits.weight", "heads.stages.0.embed.weight"):
        assert dict(system[0].named_parameters())[name].grad.abs().sum() > 0


@pytest.mark.parametrize(("source", "term"), [("labels", "image_labels"), ("parsed", "pseudo_parts")])
def test_other_kinds_train_the_classifier_alone(system, batch, source, term):
    """Their boxes are not trusted: no anchor, no box, no mask (paper section 3.2)."""
    labels = ((0,), (0, 1)) if source == "labels" else None
    values = values_of(system, replace(batch, source=source, image_labels=labels))
    assert {name for name, value in values.items() if value > 0} == {term}
    own = dict(system[0].named_parameters())
    assert own["heads.stages.0.embed.weight"].grad.abs().sum() > 0
    assert own["backbone.fpn.layer_blocks.0.0.weight"].grad.abs().sum() > 0
    for name in ("rpn.head.conv.0.0.weight", "heads.stages.0.offsets.2.weight", "heads.mask.0.0.weight"):
        assert own[name].grad is None or not own[name].grad.any(), name


def test_boxes_without_masks_train_no_masks(system, batch):
    unmasked = tuple(
        replace(each, masks=torch.zeros_like(each.masks), has_mask=torch.zeros_like(each.has_mask))
        for each in batch.instances
    )
    values = values_of(system, replace(batch, instances=unmasked))
    assert values["masks"] == 0 and values["boxes"] > 0


def test_a_picture_without_instances_is_all_background(system, batch):
    nothing = tuple(each.select(torch.zeros(len(each), dtype=torch.bool)) for each in batch.instances)
    values = values_of(system, replace(batch, instances=nothing))
    assert values["objectness"] > 0 and values["classes"] > 0 and values["boxes"] == values["masks"] == 0


def test_draws_are_those_of_the_pictures(system, batch):
    """A resumed run draws what it would have drawn, whatever happened to the global random state."""
    torch.manual_seed(1)
    first = values_of(system, batch)
    before = torch.get_rng_state()
    assert values_of(system, batch) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert values_of(system, replace(batch, images=batch.images.flip(3))) != first


# Words ----------------------------------------------------------------------------------------------------------------
def test_objects_without_parts_are_words_too(system):
    vocabulary = Vocabulary(pairs=(("dog", "head"),), label_objects=("dog", "chair"))
    names = system[0].encode_text(vocabulary)
    assert (len(names.parts), len(names.objects)) == (1, 2) and not names.rows[-1].any()
    level, label = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    assert names.classes_of(level, label).tolist() == [0, 2, 1]
    assert [each.tolist() for each in names.levels_of(np.array([0, 2, 1]))] == [[0, 1, 1], [0, 1, 0]]
    alone = system[0].encode_levels(Vocabulary(pairs=(), label_objects=("chair",)), ("object",))
    assert alone.levels == ("object",) and alone.rows.shape[0] == 2


def test_federated_classes_are_those_seen_and_drawn_ones():
    names = Names(WORDS, torch.ones(3, 4), torch.zeros(0, 4))
    counts = {"dog head": 0.0, "dog tail": 100.0, "car wheel": 4.0}
    source = Source(federated=3, image_counts=counts)
    classes = torch.tensor([0, 3, 3])  # a dog's head and background: one class more is drawn
    drawn = [int(_class_weights(classes, source, names)[1]) for _ in range(300)]
    assert all(_class_weights(classes, source, names)[0] == 1 for _ in range(5))
    assert np.mean(drawn) == pytest.approx(10 / 12, abs=0.08)
    assert _class_weights(classes, Source(federated=50), names).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="image_counts of a federated source lack"):
        _class_weights(classes, Source(federated=3, image_counts={"dog head": 1.0}), names)


# Instances ------------------------------------------------------------------------------------------------------------
def segments(boxes, level, label, size=(20, 20)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    scores = np.linspace(0.9, 0.5, len(boxes))
    return Segments.from_masks(masks, scores=scores, level=level, label=label)


def test_parts_belong_to_the_object_that_covers_most_of_them():
    names = Names(WORDS, torch.ones(3, 4), torch.ones(2, 4))
    boxes = [(0, 0, 10, 10), (8, 0, 20, 10), (0, 10, 20, 20), (9, 2, 13, 6), (0, 12, 4, 16), (0, 0, 4, 4)]
    #        a dog           a dog           a car             head            wheel          tail half outside
    found = segments(boxes, level=[1, 1, 1, 0, 0, 0], label=[0, 0, 1, 0, 2, 1])
    assert detect.grouped(found, names, share=0.5).parent.tolist() == [-1, -1, -1, 1, 2, 0]
    wheel_on_dog = segments([(0, 0, 10, 10), (2, 2, 4, 4)], level=[1, 0], label=[0, 2])
    assert detect.grouped(wheel_on_dog, names, share=0.5).parent.tolist() == [-1, -1], "a dog has no wheel"
    half = segments([(0, 0, 10, 10), (6, 0, 16, 10)], level=[1, 0], label=[0, 0])
    assert detect.grouped(half, names, share=0.5).parent.tolist() == [-1, -1]
    assert detect.grouped(half, names, share=0.3).parent.tolist() == [-1, 0]


def test_suppression_within_classes_and_among_all():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40]])
    scores = torch.tensor([[0.9, 0.8, 0.0], [0.7, 0.1, 0.0], [0.01, 0.6, 0.0]])
    settings = Detection(score_threshold=0.05, nms=0.5, most=10)
    found = detect.select(boxes, scores, size=(50, 50), settings=settings)
    assert [round(float(s), 2) for s in found.scores] == [0.9, 0.8, 0.6] and found.classes.tolist() == [0, 1, 1]
    alone = detect.select(boxes, scores, size=(50, 50), settings=replace(settings, any_class_nms=0.5))
    assert alone.classes.tolist() == [0, 1] and alone.region.tolist() == [0, 2]
    assert len(detect.select(boxes, scores, size=(50, 50), settings=replace(settings, most=1)).scores) == 1


# Refused --------------------------------------------------------------------------------------------------------------
def test_a_batch_that_it_cannot_be_trained_on_is_refused(system, batch):
    model = system[0]
    with pytest.raises(ValueError, match=r"gives no instances .*augmentation\.instances=annotated"):
        model(replace(batch, instances=None))
    with pytest.raises(ValueError, match=r"labels is of kind 'image', but gives no image labels"):
        model(replace(batch, source="labels"))
    with pytest.raises(ValueError, match=r"at the upper left: use augmentation\.resize"):
        model(replace(batch, regions=((4, 0, 20, 20), (0, 0, 20, 20))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+model.sources.lvis={kinds: boxes}", r"model\.sources\.lvis has unknown keys \['kinds'\]; there are \['fed"),
        ("+model.sources.lvis={kind: box}", r"sources\.lvis\.kind is 'box', not one of \['boxes', 'image', 'pseudo'"),
        ("+model.sources.lvis={levels: [parts]}", r"model\.sources\.lvis\.levels=\['parts'\] must be some of"),
        ("model.levels=[]", r"model\.levels=\[\] must be some of"),
        ("model.pseudo_rule=best", r"model\.pseudo_rule='best' is not 'boxes' or 'score'"),
        ("model.heads.ious=[]", r"model\.heads\.ious=.* must hold one to 3"),
        ("model.rpn.anchor_sizes=[8]", r"model\.rpn\.anchor_sizes=.* one size for each of P2\.\.P6"),
        ("model.detection.nms=2", r"model\.detection: \{'nms': 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(override, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_model(compose("train", ["experiment=toy_vlpart", SIZE, "model.text.spread_text=false", override]))


# Proposals ------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_proposals_come_best_first_at_the_photos_size(system):
    model = system[0]
    images = torch.randint(0, 256, (1, 3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.eval()
    (small,) = model.propose(images, sizes=[(64, 80)])
    (large,) = model.propose(images, sizes=[(128, 160)])
    model.train()
    assert len(small) > 10 and (np.diff(small.scores) <= 0).all() and (small.label == -1).all()
    assert np.allclose(large.boxes, 2 * small.boxes, atol=1e-3) and small.boxes.max() <= 80
