"""What VLPart's tables ask beyond AP: recall of proposals, PACO's mean over part names, classes nobody looked for."""

from dataclasses import replace

import pytest
import torch

from partseg.evaluation.evaluator import Answer
from partseg.evaluation.instances import InstanceEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.runner import run
from partseg.prediction import Segments
from partseg.structures import Checked, Instances

SIZE = (40, 60)
DOG_HEAD, DOG_LEG, BIRD_HEAD = 0, 1, 5  # of the small vocabulary
A, B, C, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30), (50, 30, 60, 40)
PROPOSALS = {"kinds": ["boxes"], "class_agnostic": True, "max_detections": 4, "recall_at": [1, 2], "proposals": True}


def masks_of(boxes):
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return masks


def truth_of(sample, things, **more):
    """A sample whose object-parts are (label, box)."""
    boxes = [box for _, box in things]
    found = Instances(
        masks=masks_of(boxes),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        level=torch.zeros(len(things), dtype=torch.long),
        label=torch.tensor([label for label, _ in things], dtype=torch.long),
        parent=torch.full((len(things),), -1),
        has_mask=torch.ones(len(things), dtype=torch.bool),
        counted=torch.ones(len(things), dtype=torch.bool),
    )
    return replace(sample([[None]], [[None]]), instances=found, **more)


def found_of(*things):
    """Segments of (score, label, box)."""
    return Segments.from_masks(
        masks_of([box for *_, box in things]),
        scores=torch.tensor([score for score, *_ in things], dtype=torch.float64),
        label=[label for _, label, _ in things],
    )


def scores_of(vocabulary, pairs, **options):
    evaluator = InstanceEvaluator(**options)
    evaluator.reset(vocabulary)
    for sample, segments in pairs:
        evaluator.process(Answer(segments, vocabulary), sample)
    return evaluator.evaluate().scores()


def test_pacos_ap_is_a_mean_over_part_names(sample, vocabulary):
    """Heads: the dog's found, the bird's not, mean 50; legs: found, 100. Mean over names 75, over classes 66.7."""
    truth = truth_of(sample, [(DOG_HEAD, A), (BIRD_HEAD, B), (DOG_LEG, C)])
    scores = scores_of(vocabulary, [(truth, found_of((0.9, DOG_HEAD, A), (0.8, DOG_LEG, C)))])
    assert scores["AP_opart"] == pytest.approx(75.0) and scores["AP50_opart"] == pytest.approx(75.0)
    assert scores["AP"] == pytest.approx(200 / 3) and scores["box_AP_opart"] == pytest.approx(75.0)


@pytest.mark.parametrize(
    ("checked", "expected"),
    [
        (None, 50.0),  # all classes were looked for: the better detection is a false one
        (Checked(), 50.0),  # the class is there, so it was looked for
        (Checked(partly=frozenset({("object_part", DOG_HEAD)})), 100.0),  # it may be one that nobody outlined
        (Checked(partly=frozenset({("object", DOG_HEAD)})), 50.0),  # another level's label
    ],
)
def test_false_detections_of_classes_that_are_not_all_outlined(sample, vocabulary, checked, expected):
    pairs = [(truth_of(sample, [(DOG_HEAD, A)], checked=checked), found_of((0.9, DOG_HEAD, FAR), (0.8, DOG_HEAD, A)))]
    assert scores_of(vocabulary, pairs)["AP"] == pytest.approx(expected)


def test_detections_of_classes_that_nobody_looked_for(sample, vocabulary):
    """A second image without heads: a head in it is false only where heads are known to be absent."""
    first = truth_of(sample, [(DOG_HEAD, A)]), found_of((0.8, DOG_HEAD, A))
    wrong = found_of((0.9, DOG_HEAD, FAR))
    absent = Checked(absent=frozenset({("object_part", DOG_HEAD)}))
    for checked, expected in ((Checked(), 100.0), (absent, 50.0), (None, 50.0)):
        second = replace(truth_of(sample, [(DOG_LEG, B)], checked=checked), name="second")
        scores = scores_of(vocabulary, [first, (second, wrong)])
        assert scores["AP_seen"] == pytest.approx(expected / 2)  # the leg is missed


class Proposer(torch.nn.Module):
    """Proposes B, then A, in every picture; asked for names it would fail."""

    input = None

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def propose(self, images, *, sizes, regions):
        assert len(images) == len(sizes) == len(regions)
        return [found_of((0.9, -1, B), (0.8, -1, A)) for _ in images]


def test_recall_of_the_first_proposals(sample, vocabulary, batched, model):
    """Of A, B and C the first proposal meets one, the first two meet two, and no number meets C."""
    loader = batched([truth_of(sample, [(DOG_HEAD, A), (DOG_LEG, B), (BIRD_HEAD, C)])], 1)
    system = Proposer()
    system.input = model.input
    found = run(
        system, loader, vocabulary=vocabulary, predictor=Predictor(), evaluators={"p": InstanceEvaluator(**PROPOSALS)}
    )
    scores = found.scores()
    assert scores["p/box_R50@1"] == pytest.approx(100 / 3) and scores["p/box_R50@2"] == pytest.approx(200 / 3)
    assert scores["p/box_R50@2_seen"] == pytest.approx(100.0) and scores["p/box_R50@2_unseen"] == 0
    with pytest.raises(TypeError, match="WholeNumberModel proposes no regions"):
        run(
            model,
            loader,
            vocabulary=vocabulary,
            predictor=Predictor(),
            evaluators={"p": InstanceEvaluator(**PROPOSALS)},
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recall_at": [30, 300]}, "recall_at=.*must lie in 1..max_detections=100"),
        ({"proposals": True}, "proposals are boxes without names"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InstanceEvaluator(**options)
