"""One pass equals the procedures it replaces, integer for integer, and nothing about how it is run changes a count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask

from partseg.data.mapper import EvalMapper
from partseg.evaluation.pixels import METRICS, PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll, PredAllStrict, PredObj
from partseg.evaluation.runner import evaluate, run
from partseg.geometry import InputSpec
from partseg.labels import IGNORE_LABEL
from partseg.structures import Annotation, Record
from partseg.utils.distributed import reduce_sum

ALL_METRICS = METRICS


def all_evaluators(**options):
    protocols = (OracleObj(), PredAll(), PredAllStrict())
    return {protocol.name: PixelEvaluator(protocol, **options) for protocol in protocols}


def counts_of(model, loader, vocabulary, *, predictor=None, evaluators=None):
    predictor, evaluators = predictor or Predictor(), evaluators or all_evaluators()
    return run(model, loader, vocabulary=vocabulary, predictor=predictor, evaluators=evaluators)


def upsampled(model, sample, vocabulary):
    """Full volumes, as the definition has them."""
    scores = model.predict(sample.image[None], model.encode_text(vocabulary), sizes=[sample.size])[0]
    return [
        F.interpolate(x[None], size=sample.size, mode="bilinear", align_corners=False)[0]
        for x in (scores.object_part, scores.object)
    ]


@torch.no_grad()
def by_records(model, sample, vocabulary, records):
    """The authors' procedure: the network once per record (object mask, object id), labels inside the mask only."""
    classes = len(vocabulary)
    oracle, pred_all = np.zeros((2, classes + 1, classes + 1), int)
    owner = vocabulary.object_lut
    for mask, object_id in records:
        parts, objects = upsampled(model, sample, vocabulary)  # again for every record, that is the point
        own = torch.from_numpy(vocabulary.parts_of_object(object_id))
        given = own[parts[own].argmax(0)]
        gate = objects.argmax(0)
        member = torch.from_numpy(np.append(vocabulary.object_of, vocabulary.num_objects))[:, None, None] == gate
        free = torch.where(member, parts, -torch.inf).argmax(0)
        for y, x in np.argwhere(mask):
            label = int(sample.object_part[y, x])
            if label == IGNORE_LABEL:
                continue
            pred_all[label, free[y, x]] += 1
            if owner[label] == object_id:  # a foreign pixel can never be right: dropped
                oracle[label, given[y, x]] += 1
    return oracle, pred_all


def test_one_pass_equals_the_network_once_per_image_and_object(model, vocabulary, samples_of, batched):
    samples = samples_of(3)
    found = counts_of(model, batched(samples, 2), vocabulary).results
    expected = np.zeros((2, 9, 9), int)
    for sample in samples:
        records = [(sample.object.numpy() == o, o) for o in range(vocabulary.num_objects)]
        expected += by_records(model, sample, vocabulary, records)
    np.testing.assert_array_equal(found["oracle_obj"].confusion, expected[0])
    np.testing.assert_array_equal(found["pred_all"].confusion, expected[1])
    assert expected[0].sum() > 500


@pytest.mark.parametrize("counted_objects", [(0, 1, 2), (1, 2)])
def test_one_pass_equals_the_network_once_per_instance(model, vocabulary, tmp_path, batched, counted_objects):
    """Overlapping instances of equal and of different objects, with part labels of the other object inside.

    With some objects not counted (ADE20K-Part-234's training images) their labels still count inside the others'.
    """
    rng = np.random.default_rng(0)
    samples, records = [], []
    for i in range(3):
        size = (30 + i, 26)
        masks = [(np.zeros(size, bool), int(o)) for o in (0, 0, 1, 2, 2)]
        for mask, _ in masks:
            y, x = rng.integers(0, 14, 2)
            mask[y : y + 15, x : x + 11] = True
        parts = rng.integers(0, 12, size).astype(np.uint16)
        parts[parts >= 8] = IGNORE_LABEL
        Image.fromarray(parts).save(tmp_path / f"{i}_parts.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        record = Record(
            image_id=str(i),
            file_name=str(tmp_path / f"{i}.png"),
            object_part_file_name=str(tmp_path / f"{i}_parts.png"),
            annotations=tuple(
                Annotation(
                    "object",
                    vocabulary.label_objects.index(vocabulary.objects[o]),
                    coco_mask.encode(np.asfortranarray(m)),
                    counted=o in counted_objects,
                )
                for m, o in masks
            ),
            label_bits=16,
        )
        samples.append(EvalMapper(InputSpec((16, 16)))(record, label_vocabulary=vocabulary, vocabulary=vocabulary))
        as_stored = replace(samples[-1], object_part=torch.from_numpy(parts.astype(np.int32)))
        records.append((as_stored, [(mask, o) for mask, o in masks if o in counted_objects]))
    found = counts_of(model, batched(samples, 2), vocabulary)
    expected = np.sum([by_records(model, sample, vocabulary, counted) for sample, counted in records], 0)
    np.testing.assert_array_equal(found.results["oracle_obj"].confusion, expected[0])
    np.testing.assert_array_equal(found.results["pred_all"].confusion, expected[1])
    assert found.results["oracle_obj"].num_dropped == expected[1].sum() - expected[0].sum() > 0
    assert expected[0].max() > 0


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, counts in a.items():
        for key in ("confusion", "bands", "num_images", "num_dropped"):
            np.testing.assert_array_equal(getattr(counts, key), getattr(b[name], key))
        for rule, differences in counts.differences.items():
            np.testing.assert_array_equal(differences.confusion, b[name].differences[rule].confusion)


def test_batch_size_and_class_chunk_change_nothing(model, vocabulary, samples_of, batched):
    samples = samples_of(5)
    options = {"metrics": ALL_METRICS}
    reference = counts_of(model, batched(samples, 1), vocabulary, evaluators=all_evaluators(**options)).results
    for batch_size, chunk in ((2, 1), (5, 3), (3, 8), (4, None)):
        predictor = Predictor(class_chunk=chunk)
        evaluators = all_evaluators(**options)
        found = counts_of(model, batched(samples, batch_size), vocabulary, predictor=predictor, evaluators=evaluators)
        assert_same(found.results, reference)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_add_up(model, vocabulary, samples_of, batched, world_size, monkeypatch):
    """Shards of different sizes, summed as integers; real processes are in test_ranks.py."""
    samples = samples_of(5)
    reference = counts_of(model, batched(samples, 2), vocabulary).results
    shards = [counts_of(model, batched(samples[r::world_size], 2), vocabulary).results for r in range(world_size)]
    for name, counts in reference.items():
        total = sum(torch.from_numpy(shard[name].confusion) for shard in shards)
        np.testing.assert_array_equal(counts.confusion, reduce_sum(total).numpy())
        assert counts.num_images == sum(shard[name].num_images for shard in shards) == 5


def test_text_is_encoded_once_and_each_image_is_seen_once(model, vocabulary, samples_of, batched):
    evaluation = counts_of(model, batched(samples_of(5), 2), vocabulary)
    assert (model.num_encoded, model.num_images, evaluation.num_images) == (1, 5, 5)
    assert evaluation.network_seconds > 0
    assert evaluation.postprocess_seconds > 0
    assert evaluation.peak_memory_bytes > 1 << 20


def test_present_prompts_give_the_same_integers(model, vocabulary, samples_of, batched):
    samples = samples_of(4)
    evaluators = {"oracle_obj": PixelEvaluator(OracleObj())}
    reference = counts_of(model, batched(samples, 1), vocabulary, evaluators=evaluators).results
    found = counts_of(
        model, batched(samples, 1), vocabulary, predictor=Predictor(prompts="present"), evaluators=evaluators
    )
    assert_same(found.results, reference)


def test_present_prompts_run_fewer_prompts(model, vocabulary, sample, batched):
    one = sample([[0, None]], [[2, -1]])
    nothing = sample([[None]], [[-1]])
    seen = []
    original = model.predict
    model.predict = lambda images, used, **options: (
        seen.append(used.vocabulary.objects),
        original(images, used, **options),
    )[1]
    evaluators = {"oracle_obj": PixelEvaluator(OracleObj())}
    predictor = Predictor(prompts="present")
    counts_of(model, batched([one, nothing], 1), vocabulary, predictor=predictor, evaluators=evaluators)
    assert seen == [("dog",), ("bird",)]  # an image without objects still needs one prompt


def test_present_prompts_are_refused_for_blind_protocols(model, vocabulary, samples_of, batched):
    with pytest.raises(ValueError, match="pred_all"):
        counts_of(model, batched(samples_of(1), 1), vocabulary, predictor=Predictor(prompts="present"))


def test_a_system_that_needs_objects_gets_those_that_its_evaluators_know(model, vocabulary, sample, batched):
    """The annotated ones, or another segmenter's; it is refused to evaluators that know none or another's."""
    other = torch.tensor([[1, 1]], dtype=torch.int32)
    one = replace(sample([[0, 3]], [[2, 1]]), given=other)
    told = []
    predict = model.predict
    model.predict = lambda *args, given, **options: (told.append(given), predict(*args, **options))[1]
    model.input = InputSpec((16, 16), needs_object=True)
    for protocol, objects in ((OracleObj(), one.object), (PredObj(), other)):
        evaluators = {protocol.name: PixelEvaluator(protocol)}
        counts_of(model, batched([one], 1), vocabulary, evaluators=evaluators)
        assert torch.equal(told.pop()[0], objects)
    both = {p.name: PixelEvaluator(p) for p in (OracleObj(), PredObj())}
    with pytest.raises(ValueError, match="is told the objects; evaluators .* disagree on whose"):
        counts_of(model, batched([one], 1), vocabulary, evaluators=both)
    with pytest.raises(
        ValueError, match=r"is told which objects there are; evaluators \['pred_all', 'pred_all_strict'\]"
    ):
        counts_of(model, batched([one], 1), vocabulary)
    model.input = InputSpec((16, 16))
    counts_of(model, batched([one], 1), vocabulary, evaluators=both)
    assert told == [None]  # a system that needs none is told none


def test_flat_keys_and_missing_scores(model, headless_model, vocabulary, samples_of, batched):
    loader = batched(samples_of(2), 2)
    options = {"predictor": Predictor(), "evaluators": all_evaluators(metrics=ALL_METRICS)}
    scores = evaluate(model, loader, vocabulary=vocabulary, **options)
    assert {
        "oracle_obj/mIoU",
        "pred_all/mIoU_harmonic",
        "pred_all_strict/pACC",
        "oracle_obj/boundary_iou_d2_seen",
    } <= set(scores)
    assert all(0 <= value <= 100 for value in scores.values())
    few_shot = evaluate(headless_model, loader, vocabulary=vocabulary.with_unseen(()), **options)
    assert few_shot["oracle_obj/mIoU_unseen"] is None
    assert few_shot["oracle_obj/mIoU_harmonic"] is None
    assert few_shot["oracle_obj/mIoU_seen"] == few_shot["oracle_obj/mIoU"]


def test_the_model_gets_its_mode_back(model, vocabulary, samples_of, batched):
    model.train()
    counts_of(model, batched(samples_of(1), 1), vocabulary)
    assert model.training
    model.predict = None  # even when evaluation fails
    with pytest.raises(TypeError):
        counts_of(model, batched(samples_of(1), 1), vocabulary)
    assert model.training


def test_scores_that_are_not_finite_name_the_image(model, vocabulary, samples_of, batched):
    model.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"image_0.*not finite"):
        counts_of(model, batched(samples_of(1), 1), vocabulary)


def test_nothing_to_evaluate_is_refused(model, vocabulary):
    with pytest.raises(ValueError, match="evaluator"):
        run(model, [], vocabulary=vocabulary, predictor=Predictor(), evaluators={})


@pytest.mark.parametrize("option", [{"prompts": "some"}, {"precision": "fp8"}, {"class_chunk": 0}])
def test_wrong_options_are_refused(option):
    with pytest.raises(ValueError, match=f"predictor.{next(iter(option))}"):
        Predictor(**option)


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="boundary_iou_d2"):
        PixelEvaluator(OracleObj(), metrics=["mIoU"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_counts_on_a_gpu_equal_those_on_the_cpu(model, vocabulary, samples_of, batched):
    samples = samples_of(4)
    reference = counts_of(
        model, batched(samples, 2), vocabulary, evaluators=all_evaluators(metrics=ALL_METRICS)
    ).results
    model.cuda()
    found = counts_of(model, batched(samples, 2), vocabulary, evaluators=all_evaluators(metrics=ALL_METRICS)).results
    assert_same(found, reference)
