"""Two real images of Pascal-Part-116: their own labels score 100 everywhere, known mistakes cost what they must."""

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data.mapper import EvalMapper
from partseg.data.pascal_part import pascal_part_116
from partseg.evaluation.evaluator import Answer
from partseg.evaluation.pixels import METRICS, PixelEvaluator
from partseg.evaluation.protocols import OracleObj, OracleObjSubstring, PredAll, PredAllStrict, PredObj
from partseg.evaluation.runner import process_image
from partseg.geometry import InputSpec
from partseg.labels import IGNORE_LABEL
from partseg.prediction import DenseScores

K, O = 116, 16
HEAD, TORSO, LEG = 51, 54, 56  # of the cow in 2008_000009: 105, 472 and 120 pixels


@pytest.fixture(scope="module")
def dataset(samples):
    root = samples / "ov_parts" / "derived" / "PascalPart116"
    objects = root / "annotations_detectron2_obj" / "val"
    return pascal_part_116(root, "val", mapper=EvalMapper(InputSpec((32, 32)), objects=objects))


@pytest.fixture
def evaluators(request):
    protocols = (OracleObj(), OracleObjSubstring(), PredAll(), PredAllStrict(), PredObj())
    return {
        protocol.name: PixelEvaluator(protocol, metrics=getattr(request, "param", ("iou", "accuracy")))
        for protocol in protocols
    }


def score(dataset, evaluators, predict):
    """Flat scores when scores are one-hot in the maps that `predict` makes of a sample's own labels."""
    vocabulary = dataset.vocabulary
    lut = torch.from_numpy(np.append(vocabulary.object_of, O))
    for evaluator in evaluators.values():
        evaluator.reset(vocabulary)
    for sample in dataset:
        labels = predict(torch.where(sample.object_part == IGNORE_LABEL, K, sample.object_part).long(), sample)
        size = tuple(labels.shape)
        parts = torch.zeros(K + 1, *size).scatter_(0, labels[None], 1.0)
        objects = torch.zeros(O + 1, *size).scatter_(0, lut[labels][None], 1.0)
        process_image(Answer(DenseScores(parts, objects, size), vocabulary), sample, evaluators)
    results = {name: evaluator.evaluate() for name, evaluator in evaluators.items()}
    return {f"{name}/{key}": value for name, result in results.items() for key, value in result.scores().items()}


@pytest.mark.parametrize("evaluators", [METRICS], indirect=True)
def test_own_labels_score_100_under_every_protocol(dataset, evaluators):
    scores = score(dataset, evaluators, lambda labels, sample: labels)
    assert len(evaluators) == 5
    for name in evaluators:
        for key in ("mIoU", "mIoU_seen", "fwIoU", "mACC", "pACC", "recall", "boundary_iou"):
            assert scores[f"{name}/{key}"] == pytest.approx(100), (name, key)
    for name in ("oracle_obj", "oracle_obj_substring", "pred_all_strict"):
        assert scores[f"{name}/boundary_iou_d2"] is not None


def test_a_known_corruption_costs_what_it_must(dataset, evaluators):
    """The cow's head is predicted as its torso: 17 classes occur, one has IoU 0, one 472 / (472 + 105)."""
    pixels = {name: int(sum((s.object_part == k).sum() for s in dataset)) for name, k in (("h", HEAD), ("t", TORSO))}
    assert pixels == {"h": 105, "t": 472}
    scores = score(dataset, evaluators, lambda labels, sample: labels.masked_fill(labels == HEAD, TORSO))
    classes = sum(int((torch.unique(s.object_part) < K).sum()) for s in dataset)
    assert classes == 17
    expected = 100 * (15 + 472 / 577) / 17
    total = 105 + 472 + 120 + 15562
    for name in ("oracle_obj", "oracle_obj_substring", "pred_all", "pred_all_strict", "pred_obj"):
        assert scores[f"{name}/mIoU"] == pytest.approx(expected), name
        assert scores[f"{name}/mACC"] == pytest.approx(100 * 16 / 17), name
    assert scores["oracle_obj/pACC"] == pytest.approx(100 * (total - 105) / total)
    assert scores["pred_all_strict/pACC"] == pytest.approx(100 * (2 * 375 * 500 - 105) / (2 * 375 * 500))


def test_parts_invented_on_background_only_cost_the_strict_protocol(dataset, evaluators):
    def predict(labels, sample):
        corrupted = labels.clone()
        if sample.name == "2008_000009":
            corner = corrupted[:20, :50]
            assert (corner == K).all()
            corner.fill_(LEG)
        return corrupted

    scores = score(dataset, evaluators, predict)
    for name in ("oracle_obj", "pred_all", "pred_obj"):
        assert scores[f"{name}/mIoU"] == pytest.approx(100)
    assert scores["pred_all_strict/mIoU"] == pytest.approx(100 * (16 + 120 / 1120) / 17)


def test_a_missed_object_is_a_miss(dataset, evaluators):
    """Nothing is predicted in the cow's image: its three classes score 0 where nothing is given."""
    scores = score(dataset, evaluators, lambda labels, s: labels.fill_(K) if s.name == "2008_000009" else labels)
    for name in ("pred_all", "pred_all_strict"):
        assert scores[f"{name}/mIoU"] == pytest.approx(100 * 14 / 17)
        assert scores[f"{name}/pACC"] < 100


def test_the_files_are_what_the_numbers_above_assume(samples):
    folder = samples / "ov_parts" / "derived" / "PascalPart116" / "annotations_detectron2_part" / "val"
    ids, counts = np.unique(np.asarray(Image.open(folder / "2008_000009.png")), return_counts=True)
    assert dict(zip(ids.tolist(), counts.tolist())) == {HEAD: 105, TORSO: 472, LEG: 120, 255: 186803}
