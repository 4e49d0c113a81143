"""Average precision of instances: cases worked out by hand, and pycocotools called directly on a random one."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from partseg.evaluation.average_precision import SCORES
from partseg.evaluation.evaluator import Answer
from partseg.evaluation.instances import InstanceEvaluator
from partseg.photo_prediction import segments_of
from partseg.prediction import DenseScores, Segments, as_segments
from partseg.structures import INSTANCE_LEVELS, Instances
from partseg.utils import distributed

SIZE = (40, 60)
PART, OBJECT = 0, 1
HEAD, LEG, WHEEL, BIRD_HEAD = 0, 1, 3, 5  # of the small vocabulary; the bird's is unseen
A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30)
FAR = (50, 30, 60, 40)
PART_OF_A = (0, 0, 9, 8)  # covers 72 of the 100 pixels of A and nothing else


def masks_of(boxes):
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return masks


def truth_of(sample, things, *, counted=None, level=PART, name="image", has_mask=True):
    """A sample whose instances are (label, box)."""
    boxes = [box for _, box in things]
    count = len(things)
    found = Instances(
        masks=masks_of(boxes) & has_mask,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        level=torch.full((count,), level),
        label=torch.tensor([label for label, _ in things], dtype=torch.long),
        parent=torch.full((count,), -1),
        has_mask=torch.full((count,), has_mask),
        counted=torch.tensor(counted or [True] * count, dtype=torch.bool),
    )
    return replace(sample([[None]], [[None]], name=name), instances=found)


def found_of(things, *, level=PART, boxes=None):
    """Segments of (score, label, box)."""
    return Segments.from_masks(
        masks_of([box for *_, box in things]),
        scores=torch.tensor([score for score, *_ in things], dtype=torch.float64),
        boxes=None if boxes is None else np.array(boxes, float),
        level=[level] * len(things),
        label=[label for _, label, _ in things],
    )


def measure(vocabulary, pairs, **options):
    """Result of (sample, segments) pairs."""
    evaluator = InstanceEvaluator(**options)
    evaluator.reset(vocabulary)
    for sample, segments in pairs:
        assert evaluator.process(Answer(segments, vocabulary), sample) is None
    return evaluator.evaluate()


def random_case(sample, vocabulary, seed=0, *, images=12):
    """Images with up to six instances of few classes; predictions are moved copies, misses and inventions."""
    rng = np.random.default_rng(seed)

    def box():
        left, top = rng.integers(0, 40), rng.integers(0, 25)
        return int(left), int(top), int(left + rng.integers(5, 20)), int(top + rng.integers(5, 15))

    pairs = []
    for i in range(images):
        things = [(int(rng.choice([HEAD, LEG, WHEEL, BIRD_HEAD])), box()) for _ in range(rng.integers(0, 7))]
        guesses = []
        for label, (left, top, right, bottom) in things:
            if rng.random() < 0.8:
                dx, dy = rng.integers(-2, 3, 2)
                moved = (max(0, left + dx), max(0, top + dy), right, max(top + dy, 0) + bottom - top)
                guesses.append((round(float(rng.random()), 3), label, tuple(map(int, moved))))
        guesses += [(round(float(rng.random()), 3), HEAD, box()) for _ in range(rng.integers(0, 3))]
        counted = [bool(rng.random() < 0.85) for _ in things]
        pairs.append((truth_of(sample, things, counted=counted, name=f"image_{i}"), found_of(guesses)))
    return pairs


# Against pycocotools --------------------------------------------------------------------------------------------------
def published(pairs, iou_type, *, labels=None):
    """COCOeval's own summary of (sample, segments) pairs as its documentation has it: AP, AP50, AP75, AR at 100."""
    images, truth, found = [], [], []
    for i, (sample, segments) in enumerate(pairs, 1):
        images.append({"id": i, "height": SIZE[0], "width": SIZE[1]})
        for label, mask, counted in zip(sample.instances.label, sample.instances.masks, sample.instances.counted):
            rle = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            entry = {"id": len(truth) + 1, "image_id": i, "category_id": int(label) + 1, "segmentation": rle}
            entry |= {"area": float(mask.sum()), "bbox": coco_mask.toBbox(rle).tolist(), "iscrowd": int(not counted)}
            truth.append(entry)
        for rle, score, label in zip(segments.rles, segments.scores, segments.label):
            shown = {"segmentation": rle} if iou_type == "segm" else {"bbox": coco_mask.toBbox(rle).tolist()}
            found.append({"image_id": i, "category_id": int(label) + 1, "score": float(score), **shown})
    coco = COCO()
    categories = [{"id": k, "name": str(k)} for k in range(1, 9)]
    coco.dataset = {"images": images, "annotations": truth, "categories": categories, "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), iou_type)
        if labels is not None:
            evaluation.params.catIds = [label + 1 for label in labels]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(evaluation.stats[i]) for i in (0, 1, 2, 8)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_numbers_of_pycocotools(sample, vocabulary, seed):
    pairs = random_case(sample, vocabulary, seed)
    scores = measure(vocabulary, pairs).scores()
    for prefix, iou_type in (("", "segm"), ("box_", "bbox")):
        expected = published(pairs, iou_type)
        assert 10 < expected[0] < 90
        assert [scores[prefix + key] for key in SCORES] == pytest.approx(expected)
        seen, unseen = (published(pairs, iou_type, labels=which) for which in ([HEAD, LEG, WHEEL], [BIRD_HEAD]))
        assert [scores[f"{prefix}{key}_seen"] for key in SCORES] == pytest.approx(seen)
        assert [scores[f"{prefix}{key}_unseen"] for key in SCORES] == pytest.approx(unseen)
        harmonic = 2 * seen[0] * unseen[0] / (seen[0] + unseen[0])
        assert scores[f"{prefix}AP_harmonic"] == pytest.approx(harmonic)


# By hand --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", INSTANCE_LEVELS)
def test_the_truth_itself_scores_100(sample, vocabulary, level):
    number = INSTANCE_LEVELS.index(level)
    samples = [
        truth_of(sample, [(0, A), (0, B), (3, C)], level=number, name="x"),
        truth_of(sample, [(1, FAR)], level=number, name="y"),
    ]
    for class_agnostic in (False, True):
        pairs = [(one, as_segments(one.instances)) for one in samples]
        result = measure(vocabulary, pairs, level=level, class_agnostic=class_agnostic)
        scores = result.scores()
        assert [scores[prefix + key] for prefix in ("", "box_") for key in SCORES] == pytest.approx([100] * 8)
        assert result.describe()["num_instances"] == result.describe()["num_predictions"] == 4


def test_a_false_alarm_between_two_hits(sample, vocabulary):
    """Precision 1 up to recall .5 and 2/3 from there: 51 and 50 of the 101 points."""
    one = truth_of(sample, [(HEAD, A), (HEAD, B)])
    scores = measure(vocabulary, [(one, found_of([(0.9, HEAD, A), (0.8, HEAD, FAR), (0.7, HEAD, B)]))]).scores()
    found = [scores["AP"], scores["AP50"], scores["box_AP"]]
    assert found == pytest.approx([100 * (51 + 50 * 2 / 3) / 101] * 3)
    assert scores["AR"] == pytest.approx(100)


def test_a_loose_mask_counts_up_to_its_iou(sample, vocabulary):
    """IoU .72: five of the ten thresholds."""
    one = truth_of(sample, [(HEAD, A)])
    scores = measure(vocabulary, [(one, found_of([(0.9, HEAD, PART_OF_A)]))]).scores()
    found = [scores[key] for key in SCORES]
    assert found == pytest.approx([50, 100, 0, 50])


def test_masks_and_boxes_are_matched_apart(sample, vocabulary):
    """The mask lies elsewhere, the box that the system gives is right; and the other way round."""
    one = truth_of(sample, [(HEAD, A)])
    scores = measure(vocabulary, [(one, found_of([(0.9, HEAD, FAR)], boxes=[A]))]).scores()
    assert (scores["AP"], scores["box_AP"]) == pytest.approx((0, 100))
    scores = measure(vocabulary, [(one, found_of([(0.9, HEAD, A)], boxes=[FAR]))]).scores()
    assert (scores["AP"], scores["box_AP"]) == pytest.approx((100, 0))
    assert set(measure(vocabulary, [(one, as_segments(one.instances))], kinds=["boxes"]).scores()) == {
        *(f"box_{key}{split}" for key in SCORES for split in ("", "_seen", "_unseen", "_harmonic")),
        *("box_AP_opart", "box_AP50_opart"),
    }


def test_only_the_best_detections_of_an_image_count(sample, vocabulary):
    one = truth_of(sample, [(HEAD, A), (HEAD, B)])
    pairs = [(one, found_of([(0.7, HEAD, B), (0.9, HEAD, FAR), (0.8, HEAD, A)]))]
    recall = [measure(vocabulary, pairs, max_detections=n).scores()["AR"] for n in (1, 2, 3)]
    assert recall == pytest.approx([0, 50, 100])


def test_an_image_may_hold_more_segments_than_a_byte_counts(sample, vocabulary):
    """PACO asks for 300 detections of an image; pycocotools' area of a list ends at 255 of them under NumPy 2."""
    one = truth_of(sample, [(HEAD, A)])
    many = found_of([(0.9, HEAD, A), *[(0.5, HEAD, FAR)] * 299])
    assert measure(vocabulary, [(one, many)], max_detections=300).scores()["AR"] == 100
    found = segments_of(many, vocabulary)
    assert len(found) == 300 and found[0].area == 100


def test_seen_and_unseen_classes(sample, vocabulary):
    """Both heads of dogs, the wheel in part, and of the two birds' heads one."""
    pairs = [
        (
            truth_of(sample, [(HEAD, A), (HEAD, B), (WHEEL, A), (BIRD_HEAD, B), (BIRD_HEAD, C)]),
            found_of([(0.9, HEAD, A), (0.9, HEAD, B), (0.5, WHEEL, PART_OF_A), (0.6, BIRD_HEAD, C)]),
        )
    ]
    result = measure(vocabulary, pairs)
    half = 100 * 51 / 101
    scores = result.scores()
    assert scores["AP50"] == pytest.approx((100 + 100 + half) / 3)
    assert (scores["AP50_seen"], scores["AP50_unseen"]) == pytest.approx((100, half))
    assert scores["AP_seen"] == pytest.approx(75) and scores["AP75_seen"] == pytest.approx(50)
    assert scores["AP50_harmonic"] == pytest.approx(2 * 100 * half / (100 + half))
    entry = json.loads(json.dumps(result.describe()))
    assert (entry["kind"], entry["level"], entry["num_images"]) == ("instances", "object_part", 1)
    assert (entry["num_instances"], entry["num_predictions"], entry["metrics"]) == (5, 4, scores)
    rows = {(row["object"], row["part"]): row for row in entry["classes"]}
    assert rows["bird", "head"]["AP50"] == pytest.approx(half) and not rows["bird", "head"]["seen"]
    assert rows["car", "wheel"]["box_AP"] == pytest.approx(50) and rows["car", "wheel"]["num_instances"] == 1
    assert rows["dog", "leg"]["AP"] is None and rows["dog", "leg"]["num_predictions"] == 0
    assert entry["objects"] == {"bird": pytest.approx(half), "car": pytest.approx(50), "dog": pytest.approx(100)}
    assert entry["parts"]["head"] == pytest.approx((100 + half) / 2) and entry["parts"]["tail"] is None


def test_few_shot_has_no_unseen_score(sample, vocabulary):
    one = truth_of(sample, [(BIRD_HEAD, A)])
    scores = measure(vocabulary.with_unseen(()), [(one, as_segments(one.instances))]).scores()
    assert (scores["AP"], scores["AP_seen"], scores["AP_unseen"], scores["AP_harmonic"]) == (
        pytest.approx(100),
        pytest.approx(100),
        None,
        None,
    )


def test_objects_are_numbered_as_in_the_label_files(sample, vocabulary):
    """The chair, which has no parts, is the third of them."""
    bird, chair = (vocabulary.label_objects.index(name) for name in ("bird", "chair"))
    pair = truth_of(sample, [(chair, A), (bird, B)], level=OBJECT), found_of([(0.9, chair, A)], level=OBJECT)
    result = measure(vocabulary, [pair], level="object")
    scores = result.scores()
    assert (scores["AP"], scores["AP_seen"], scores["AP_unseen"]) == pytest.approx((50, 100, 0))
    classes = result.describe()["classes"]
    assert [row["object"] for row in classes] == list(vocabulary.label_objects)
    assert [row["AP"] for row in classes] == [0, None, pytest.approx(100), None]
    assert measure(vocabulary, [pair], level="object_part").scores()["AP"] is None


# Without names --------------------------------------------------------------------------------------------------------
def test_segments_without_names(sample, vocabulary):
    one = truth_of(sample, [(HEAD, A), (WHEEL, B)])
    nameless = found_of([(0.9, -1, B), (0.8, -1, A)])
    result = measure(vocabulary, [(one, nameless)], class_agnostic=True, kinds=["masks"])
    assert result.scores()["AP"] == pytest.approx(100)
    entry = result.describe()
    assert (entry["kind"], entry["num_instances"], entry["num_predictions"]) == ("segments", 2, 2)
    assert "classes" not in entry
    with pytest.raises(ValueError, match="segments have no names; score them with class_agnostic=true"):
        measure(vocabulary, [(one, nameless)])


def test_groups_without_names_leave_the_others_out(sample, vocabulary):
    """A segment on an instance of the other group is neither hit nor false alarm; one on nothing is in both."""
    one = truth_of(sample, [(HEAD, A), (BIRD_HEAD, B), (BIRD_HEAD, C)])
    found = found_of([(0.9, -1, B), (0.8, -1, FAR), (0.7, -1, A)])
    scores = measure(vocabulary, [(one, found)], class_agnostic=True, kinds=["masks"]).scores()
    assert scores["AP_seen"] == pytest.approx(50)  # B is ignored, FAR comes before A
    assert scores["AP_unseen"] == pytest.approx(100 * 51 / 101)  # B, then nothing but FAR
    assert scores["AP"] == pytest.approx(100 * (34 + 33 * 2 / 3) / 101)
    assert (scores["AR"], scores["AR_seen"], scores["AR_unseen"]) == pytest.approx((200 / 3, 100, 50))
    assert scores["AP_harmonic"] == pytest.approx(2 * 50 * (5100 / 101) / (50 + 5100 / 101))


def test_without_names_wrong_names_do_not_matter(sample, vocabulary):
    one = truth_of(sample, [(HEAD, A)])
    found = found_of([(0.9, LEG, A)])
    assert measure(vocabulary, [(one, found)]).scores()["AP"] == 0
    assert measure(vocabulary, [(one, found)], class_agnostic=True).scores()["AP"] == pytest.approx(100)


# What does not count --------------------------------------------------------------------------------------------------
def test_uncounted_instances_are_neither_hit_nor_missed(sample, vocabulary):
    one = truth_of(sample, [(HEAD, A), (HEAD, B), (WHEEL, C)], counted=[True, False, False])
    for found in ([(0.5, HEAD, A)], [(0.9, HEAD, B), (0.5, HEAD, A)], [(0.9, HEAD, B), (0.8, HEAD, B), (0.5, HEAD, A)]):
        result = measure(vocabulary, [(one, found_of(found))])
        assert result.scores()["AP"] == pytest.approx(100)
        assert result.num_instances.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    missed = measure(vocabulary, [(one, found_of([(0.9, HEAD, B)]))])
    assert missed.scores()["AP"] == 0
    assert missed.describe()["classes"][WHEEL]["AP"] is None


def test_nothing_found_is_zero_and_nothing_to_find_is_none(sample, vocabulary):
    nothing = found_of([])
    assert measure(vocabulary, [(truth_of(sample, [(HEAD, A)]), nothing)]).scores()["AP"] == 0
    for pairs in ([], [(truth_of(sample, []), nothing)], [(truth_of(sample, []), found_of([(0.9, HEAD, A)]))]):
        for class_agnostic in (False, True):
            result = measure(vocabulary, pairs, class_agnostic=class_agnostic)
            assert set(result.scores().values()) == {None}
            assert json.dumps(result.describe())


def test_boxes_without_masks(sample, vocabulary):
    """Only boxes can be scored then; the system's own boxes are compared, not those of its masks."""
    one = truth_of(sample, [(HEAD, A), (LEG, B)], has_mask=False)
    found = found_of([(0.9, HEAD, FAR), (0.8, LEG, FAR)], boxes=[A, PART_OF_A])
    result = measure(vocabulary, [(one, found)], kinds=["boxes"])
    assert result.scores()["box_AP"] == pytest.approx(50)
    assert "AP" not in result.scores() and result.num_instances.sum() == 2
    with pytest.raises(ValueError, match=r"'image' has instances without a mask; score kinds=\[boxes\]"):
        measure(vocabulary, [(one, found)])


# Processes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_processes_together_give_the_same_scores(sample, vocabulary, monkeypatch, class_agnostic):
    """Images go round in turn; the first process measures, the others are told."""
    pairs = random_case(sample, vocabulary)
    expected = measure(vocabulary, pairs, class_agnostic=class_agnostic)
    evaluators = [InstanceEvaluator(class_agnostic=class_agnostic) for _ in range(3)]
    for rank, evaluator in enumerate(evaluators):
        evaluator.reset(vocabulary)
        for one, segments in pairs[rank::3]:
            evaluator.process(Answer(segments, vocabulary), one)
    sent = []

    def broadcast(value):
        sent.append(value)
        return sent[0]

    everything = [evaluator._images for evaluator in evaluators]
    monkeypatch.setattr(distributed, "gather_objects", lambda own: everything if own in everything else None)
    monkeypatch.setattr(distributed, "broadcast_object", broadcast)
    for rank, evaluator in enumerate(evaluators):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        result = evaluator.evaluate()
        assert result.scores() == expected.scores() and result.describe() == expected.describe()
    assert len(sent) == 3


def test_equal_scores_do_not_depend_on_the_order_of_images(sample, vocabulary):
    """A hit in one image, a false alarm of the same score in another."""
    hit = truth_of(sample, [(HEAD, A)], name="a"), found_of([(0.5, HEAD, A)])
    miss = truth_of(sample, [], name="b"), found_of([(0.5, HEAD, A)])
    scores = [measure(vocabulary, pairs).scores()["AP"] for pairs in ([hit, miss], [miss, hit])]
    assert scores == pytest.approx([100, 100])


def test_a_refusal_reaches_every_process(sample, vocabulary, monkeypatch):
    """What is wrong is found where it is measured; the others must not wait for a result."""
    evaluator = InstanceEvaluator()
    evaluator.reset(vocabulary)
    evaluator.process(Answer(found_of([(0.9, -1, A)]), vocabulary), truth_of(sample, [(HEAD, A)]))
    sent = []
    monkeypatch.setattr(distributed, "broadcast_object", lambda value: (sent.append(value), sent[0])[1])
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with pytest.raises(ValueError, match="have no names"):
            evaluator.evaluate()


# What is refused ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "part"}, r"level='part' is not one of \['object_part', 'object'\]"),
        ({"kinds": ["mask"]}, r"kinds=\['mask'\] must be some of"),
        ({"kinds": []}, r"kinds=\[\] must be some of"),
        ({"max_detections": 0}, "max_detections=0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InstanceEvaluator(**options)


def test_what_cannot_be_scored_is_named(sample, vocabulary):
    with pytest.raises(ValueError, match="'image' has no instances to score against: set eval.instances=annotated"):
        measure(vocabulary, [(sample([[0]], [[2]]), found_of([]))])
    dense = DenseScores(torch.zeros(9, 2, 2), None, SIZE)
    with pytest.raises(TypeError, match="scores instances, the system gave DenseScores; score its pixels"):
        measure(vocabulary, [(truth_of(sample, [(HEAD, A)]), dense)])


def test_annotations_without_names_are_scored_without_names(vocabulary, sample):
    one = truth_of(sample, [(-1, A), (-1, B)])
    pair = (one, found_of([(0.9, -1, A)]))
    result = measure(vocabulary, [pair], class_agnostic=True, kinds=["masks"])
    assert result.describe()["num_instances"] == 2 and result.scores()["AR"] == pytest.approx(50)
    with pytest.raises(ValueError, match="the annotations have no names; score them with class_agnostic=true"):
        measure(vocabulary, [pair])


def test_how_many_objects_were_shown_is_reported(vocabulary, sample):
    """Two dogs' worth of ids and a car: one shown well, one badly, one not at all."""
    one = truth_of(sample, [(HEAD, A)])
    truth, given = torch.full(SIZE, 9, dtype=torch.int32), torch.full(SIZE, 9, dtype=torch.int32)
    truth[:10], truth[10:20], truth[20:30] = 0, 1, 2
    given[:8], given[10:11] = 0, 1
    told = replace(one, object=truth, given=given)
    pairs = [(told, found_of([(0.9, -1, A)]))] * 2
    entry = measure(vocabulary, pairs, class_agnostic=True, kinds=["masks"], objects="given").describe()
    assert entry["objects_given"] == {"objects": 6, "shown": 4, "shown_well": 2, "whole_pictures": 0}
    entry = measure(vocabulary, pairs, class_agnostic=True, kinds=["masks"], objects="truth").describe()
    assert "objects_given" not in entry
