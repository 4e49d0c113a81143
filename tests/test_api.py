"""partseg.load(...).predict(...): the evaluation's labels, any photo, any words."""

import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import partseg
from partseg.api import Segmenter
from partseg.data import catalog
from partseg.data.loader import build_eval_loader
from partseg.data.mapper import EvalMapper
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.evaluation.runner import run
from partseg.photo_prediction import PhotoPrediction, segment_of_mask
from partseg.requests import Request
from partseg.utils.visualize import overlay
from partseg.vocabulary.words import as_vocabulary

WORDS = {"dog": ["head", "tail"], "car": ["wheel"]}


@pytest.fixture(scope="module")
def segmenter(toy_run):
    return partseg.load(toy_run, device="cpu")


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return small.resize((130, 90), Image.Resampling.BICUBIC)


def test_import_is_light():
    code = "import partseg, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        partseg.lod  # noqa: B018


def test_labels_are_those_of_the_evaluation(segmenter, toy_run):
    """Every pixel of every image, both protocols, whatever the batch."""
    root = toy_run.parent / "data" / "ToyPascalPart116"
    mapper = EvalMapper(segmenter.model.input)
    dataset = catalog.get("toy_pascal_part_116", split="val", root=str(root), mapper=mapper)
    expected: dict[str, dict[str, np.ndarray]] = {"pred_all": {}, "oracle_obj": {}}

    def keep(sample, labels):
        for name, label_map in labels.items():
            expected[name][sample.file_name] = label_map.numpy()

    run(
        segmenter.model,
        build_eval_loader(dataset, batch_size=2, num_workers=0, rank=0, world_size=1),
        vocabulary=dataset.vocabulary,
        predictor=Predictor(),
        evaluators={"pred_all": PixelEvaluator(PredAll()), "oracle_obj": PixelEvaluator(OracleObj())},
        on_labels=keep,
    )
    files = [record.file_name for record in dataset.records]
    found = segmenter.predict(files, dataset.vocabulary, batch_size=2)
    for file, prediction in zip(files, found, strict=True):
        assert np.array_equal(prediction.labels, expected["pred_all"][file])
    masks = [
        {name: sample.object.numpy() == k for k, name in enumerate(dataset.vocabulary.objects)} for sample in dataset
    ]
    found = segmenter.predict(files, dataset.vocabulary, protocol="oracle_obj", object_mask=masks, batch_size=2)
    for file, prediction in zip(files, found, strict=True):
        assert np.array_equal(prediction.labels, expected["oracle_obj"][file])


def test_object_first_labels_are_those_of_the_evaluation(toy_run):
    """Both protocols, whatever the batch: a photo of one's own is cut out as the evaluation cuts it out."""
    segmenter = partseg.load(toy_run, device="cpu", object_first=True)
    root = toy_run.parent / "data" / "ToyPascalPart116"
    mapper = EvalMapper(segmenter.model.input, photo=True)
    dataset = catalog.get("toy_pascal_part_116", split="val", root=str(root), mapper=mapper)
    expected: dict[str, dict[str, np.ndarray]] = {}
    run(
        segmenter.model,
        build_eval_loader(dataset, batch_size=3, num_workers=0, rank=0, world_size=1),
        vocabulary=dataset.vocabulary,
        predictor=segmenter.predictor,
        evaluators={"pred_all": PixelEvaluator(PredAll()), "oracle_obj": PixelEvaluator(OracleObj())},
        on_labels=lambda sample, labels: expected.update({sample.file_name: {k: v.numpy() for k, v in labels.items()}}),
    )
    files = [record.file_name for record in dataset.records]
    masks = [
        {name: sample.object.numpy() == k for k, name in enumerate(dataset.vocabulary.objects)} for sample in dataset
    ]
    told = segmenter.predict(files, dataset.vocabulary, protocol="oracle_obj", object_mask=masks, batch_size=2)
    for file, blind, given in zip(files, segmenter.predict(files, dataset.vocabulary, batch_size=2), told, strict=True):
        assert np.array_equal(blind.labels, expected[file]["pred_all"])
        assert np.array_equal(given.labels, expected[file]["oracle_obj"])
    assert any(photo.segments for photo in told)
    for option in ({"return_scores": True}, {"attention": True}):
        with pytest.raises(ValueError, match="leave out attention and scores"):
            segmenter.predict(files[0], **option)


def test_every_kind_of_image_gives_the_same_labels(segmenter, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    array = np.asarray(photo)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    first, *others = segmenter.predict([tmp_path / "a.png", str(tmp_path / "a.png"), photo, array, tensor], WORDS)
    assert (first.name, first.labels.shape, first.labels.dtype) == ("a", (90, 130), np.int32)
    assert all(np.array_equal(first.labels, other.labels) for other in others)
    assert np.array_equal(segmenter.predict(photo, "dog: head, tail\ncar: wheel").labels, first.labels)


def test_segments_agree_with_the_label_map(segmenter, photo):
    prediction = segmenter.predict(photo, WORDS, protocol="oracle_obj", object="dog", return_scores=True)
    assert prediction.segments, "two classes share the photo, so something is found"
    assert sum(segment.area for segment in prediction.segments) == 90 * 130
    for segment in prediction.segments:
        mask = prediction.labels == segment.label
        assert np.array_equal(segment.mask(), mask)
        left, top, width, height = segment.box
        assert mask[top : top + height, left : left + width].sum() == segment.area == mask.sum()
        scores = prediction.score_map(segment.name)
        assert scores.shape == mask.shape
        assert segment.score == pytest.approx(scores[mask].mean(), abs=1e-6)
        assert prediction.names[segment.label] == segment.name
    assert np.array_equal(prediction.overlay(), overlay(np.asarray(photo), prediction.labels, prediction.names[:-1]))


def test_files_of_a_prediction(segmenter, photo, tmp_path):
    prediction = segmenter.predict(photo, WORDS)
    picture, labels, _ = prediction.save(tmp_path, stem="x")
    with Image.open(labels) as file:
        stored = np.asarray(file)
    assert stored.dtype == np.uint16
    assert np.array_equal(np.where(stored == 65535, len(prediction.vocabulary), stored), prediction.labels)
    with Image.open(picture) as file:
        assert file.width > 130, "the legend stands beside the photo"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.png", "x_labels.png"]


def test_an_object_mask_confines_the_parts(segmenter, photo, tmp_path):
    mask = np.zeros((90, 130), bool)
    mask[20:60, 30:70] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for given in (mask, mask.astype(np.uint8) * 255, torch.from_numpy(mask), tmp_path / "mask.png"):
        labels = segmenter.predict(photo, WORDS, protocol="oracle_obj", object="dog", object_mask=given).labels
        assert np.array_equal(labels < 2, mask)
        assert (labels[~mask] == 3).all()
    both = segmenter.predict(photo, WORDS, protocol="oracle_obj", object_mask={"dog": mask, "car": ~mask}).labels
    assert (both[~mask] == 2).all()


def test_attention_is_given_for_the_parts_found(segmenter, photo):
    prediction = segmenter.predict(photo, WORDS, protocol="oracle_obj", object="dog", attention=True)
    assert set(prediction.attention) == {segment.name for segment in prediction.segments}
    cells = segmenter.model.input.size[0] // segmenter.model.backbone.patch_size
    for heat in prediction.attention.values():
        assert heat.shape == (cells, cells)
        assert 0 <= heat.min() < heat.max()
    assert prediction.attention_picture().ndim == 3


def test_text_is_encoded_once_per_vocabulary_and_weights(toy_run, photo, monkeypatch):
    segmenter = partseg.load(toy_run, device="cpu")
    calls = []
    encode = type(segmenter.model).encode_text
    monkeypatch.setattr(
        type(segmenter.model), "encode_text", lambda self, v: (calls.append(v.name), encode(self, v))[1]
    )
    for _ in range(2):
        segmenter.predict(photo, WORDS)
        segmenter.predict(photo, {"cat": ["head"]})
    assert len(calls) == 2
    before = segmenter.predict(photo, WORDS, return_scores=True)
    with torch.no_grad():
        segmenter.model.background.add_(1.0)
    after = segmenter.predict(photo, WORDS, return_scores=True)
    assert len(calls) == 3
    assert not np.array_equal(before.logits, after.logits)


def test_default_vocabulary_is_the_checkpoints(segmenter, photo):
    assert segmenter.predict(photo).vocabulary.key == segmenter.vocabulary.key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary": {}}, "vocabulary is empty"),
        ({"vocabulary": {"dog": []}}, "'dog' has no parts"),
        ({"vocabulary": {"dog": ["head", "head"]}}, "twice"),
        ({"vocabulary": {"dog": ["head " * 100]}}, "shorten the class name"),
        ({"protocol": "oracle"}, "protocol 'oracle' is not one of"),
        ({"object": "dog"}, "only used by protocol='oracle_obj'"),
        ({"protocol": "oracle_obj"}, "needs to know the object"),
        ({"protocol": "oracle_obj", "object": "cow"}, "object 'cow' is not in the vocabulary; it has"),
        ({"protocol": "oracle_obj", "object": "dog", "object_mask": np.ones((3, 4))}, r"mask is \[3, 4\], the upright"),
        ({"protocol": "oracle_obj", "object": ["dog", "car"]}, "object has 2 entries for 1 images"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_mistakes_are_named(segmenter, photo, arguments, message):
    with pytest.raises(ValueError, match=message):
        segmenter.predict(photo, **{"vocabulary": WORDS, **arguments})


def test_scores_that_were_not_kept(segmenter, photo):
    prediction = segmenter.predict(photo, WORDS)
    with pytest.raises(ValueError, match="return_scores=True"):
        prediction.score_map("dog's head")
    with pytest.raises(KeyError, match="is not a class"):
        segmenter.predict(photo, WORDS, return_scores=True).score_map("cow's head")


def test_one_bad_photo_does_not_stop_the_rest(segmenter, photo, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    images = [photo, tmp_path / "bad.jpg", tmp_path / "missing.jpg", photo, photo]
    errors = []
    found = list(segmenter.predict_many(images, WORDS, batch_size=2, on_error=lambda i, e: errors.append((i, e))))
    assert len(found) == 3
    assert [image.name for image, _ in errors] == ["bad.jpg", "missing.jpg"]
    with pytest.raises(ValueError, match="not an image"):
        list(segmenter.predict_many(images, WORDS))


def test_photos_are_read_a_few_at_a_time(segmenter, photo):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield Request(photo)

    stream = segmenter.predict_many(endless(), WORDS, batch_size=2)
    for _ in range(5):
        next(stream)
    assert len(taken) <= 5 + 2 * 2 + 1
    stream.close()


def test_extreme_shapes(segmenter):
    for size in ((1, 1), (1, 300), (4000, 3)):
        assert segmenter.predict(np.zeros((*size, 3), np.uint8), WORDS).labels.shape == size


@pytest.mark.slow
def test_memory_stays_flat_over_large_photos(segmenter, tmp_path):
    """12 megapixels take 36 MB as pixels and 48 MB as labels: what is kept would show after a few photos."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((4000, 3000)).save(tmp_path / "large.jpg")
    peaks = []
    for prediction in segmenter.predict_many([tmp_path / "large.jpg"] * 8, WORDS, batch_size=1):
        assert prediction.labels.shape == (3000, 4000)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    unit = 1024 if sys.platform != "darwin" else 1
    assert (peaks[-1] - peaks[3]) * unit < 100e6


def test_a_segmenter_freezes_its_model(segmenter):
    assert isinstance(segmenter, Segmenter)
    assert not segmenter.model.training
    assert not any(p.requires_grad for p in segmenter.model.parameters())


def test_masks_of_phrases(segmenter, photo, monkeypatch):
    """One phrase gives its mask, several a stack, also of those that found nothing; the photo is encoded once."""
    encoded = []
    reduce = segmenter.model.reduce_image
    monkeypatch.setattr(segmenter.model, "reduce_image", lambda images: encoded.append(len(images)) or reduce(images))
    texts = ["the dog's tail", "a wheel", "left ear"]
    masks = segmenter.refer(photo, texts)
    assert masks.shape == (3, 90, 130) and masks.dtype == bool and encoded == [1]
    prepared = segmenter.prepare(phrases=texts)
    image = torch.from_numpy(np.asarray(segmenter.input.geometry(90, 130).image(photo)).copy()).permute(2, 0, 1)
    (expected,) = prepared(image[None], [(90, 130)])
    assert (masks == expected.masks().numpy()).all()
    assert (segmenter.refer(photo, texts[1]) == masks[1]).all()
    with pytest.raises(ValueError, match="phrases number"):
        segmenter.refer(photo, ["a wheel", "  "])


def test_instances_of_one_class_are_told_apart(load):
    """On the page: two wheels under their names, over the car, the better one on top."""
    words = as_vocabulary({"car": ["wheel"]})
    car, left, right = np.zeros((3, 20, 30), bool)
    car[2:18], left[5:15, 5:15], right[5:15, 12:22] = True, True, True
    kinds = [("car's wheel", "object_part", left), ("car", "object", car), ("car's wheel", "object_part", right)]
    segments = [segment_of_mask(m, name=n, label=0, score=0.9 - i / 10) for i, (n, _, m) in enumerate(kinds)]
    found = [replace(segment, level=kind) for segment, (_, kind, _) in zip(segments, kinds)]
    image = np.zeros((20, 30, 3), np.uint8)
    prediction = PhotoPrediction(
        np.ones((20, 30), np.int32), image, words, words.object_parts, "x", "x.png", "pred_all"
    )
    assert prediction.by_instance()[1] == ("car's wheel",), "without instances, classes"
    prediction = replace(prediction, instances=tuple(found))
    labels, names = prediction.by_instance()
    assert names == ("car's wheel 1 (0.90)", "car 1 (0.80)", "car's wheel 2 (0.70)")
    assert [labels[10, 8], labels[10, 13], labels[10, 20], labels[3, 3], labels[0, 0]] == [0, 0, 2, 1, 3]
    html = load("demo").view(prediction)
    assert "car&#x27;s wheel 1" in html and "car&#x27;s wheel 2" in html
