"""Object first equals a literal loop over photos and objects, under every protocol, however it is run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from partseg.data.loader import collate_eval
from partseg.evaluation.object_first import grown, predict_objects_first, scaled
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, OracleObjSubstring, PredAll, PredAllStrict, PredObj
from partseg.evaluation.runner import run
from partseg.geometry import InputSpec, to_tensor
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.prediction import DenseScores, Segments
from partseg.structures import Sample
from partseg.vocabulary.phrases import Phrases

PROTOCOLS = (OracleObj(), PredAll(), PredAllStrict(), PredObj())


def photo_sample(vocabulary, seed, *, spec, size=None, photo_size=None, objects=None):
    """A photo of coloured blocks with annotated objects and those of a segmenter; nothing agrees with anything."""
    rng = np.random.default_rng(seed)
    height, width = size or rng.integers(20, 50, 2)
    rows, columns = photo_size or (height, width)
    photo = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((int(columns), int(rows)))
    geometry = spec.geometry(int(rows), int(columns))
    choices = [0, 1, 2, BACKGROUND_LABEL, IGNORE_LABEL]

    def blocks():
        coarse = Image.fromarray(rng.integers(0, 5, (3, 3), dtype=np.uint8)).resize((int(width), int(height)), 0)
        return torch.tensor(np.array(choices)[np.asarray(coarse)], dtype=torch.int32)

    return Sample(
        image=to_tensor(geometry.image(photo)),
        object_part=torch.from_numpy(rng.integers(0, len(vocabulary), (int(height), int(width))).astype(np.int32)),
        object=blocks() if objects is None else objects,
        given=blocks(),
        name=f"photo_{seed}",
        file_name=f"photo_{seed}.jpg",
        region=None if geometry.region == (0, 0, *geometry.size) else geometry.region,
        photo=to_tensor(photo),
    )


def labels_of(model, samples, vocabulary, predictor, *, batch_size=2, protocols=PROTOCOLS):
    """Label maps by image and protocol, made by the evaluation loop."""
    kept = {}
    run(
        model,
        [collate_eval(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)],
        vocabulary=vocabulary,
        predictor=predictor,
        evaluators={p.name: PixelEvaluator(p) for p in protocols},
        on_labels=lambda sample, labels: kept.update({sample.name: {k: v.numpy() for k, v in labels.items()}}),
    )
    return kept


def full(scores, size):
    return F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def literal(model, sample, vocabulary, *, margin=0.0, mask=False):
    """One photo, one object, one protocol at a time."""
    encoded = model.encode_text(vocabulary)
    whole = model.predict(sample.image[None], encoded, sizes=[sample.size])[0]
    if whole.object is None:
        best = full(whole.object_part, sample.size).argmax(0).numpy()
        found = np.append(vocabulary.object_of, vocabulary.num_objects)[best]
    else:
        found = full(whole.object, sample.size).argmax(0).numpy()
    photo = sample.photo.permute(1, 2, 0).numpy()
    maps = {"oracle_obj": sample.object.numpy(), "pred_all": found, "pred_obj": sample.given.numpy()}
    labels = {}
    for name, objects in maps.items():
        result = np.full(sample.size, len(vocabulary))
        for o in range(vocabulary.num_objects):
            ys, xs = np.nonzero(objects == o)
            if not len(ys):
                continue
            top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
            dy, dx = round(margin * (bottom - top)), round(margin * (right - left))
            top, left = max(0, top - dy), max(0, left - dx)
            bottom, right = min(sample.size[0], bottom + dy), min(sample.size[1], right + dx)
            cut = photo[top:bottom, left:right].copy()
            if mask:
                cut[objects[top:bottom, left:right] != o] = 0
            small = Image.fromarray(cut).resize((16, 16), Image.Resampling.BILINEAR)
            image = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)
            own = vocabulary.parts_of_object(o)
            words = vocabulary.subset(vocabulary.object_of == o)
            scores = model.predict(image[None], model.encode_text(words), sizes=[cut.shape[:2]])[0]
            best = own[full(scores.object_part, cut.shape[:2])[:-1].argmax(0).numpy()]
            for y in range(top, bottom):
                for x in range(left, right):
                    if objects[y, x] == o:
                        result[y, x] = best[y - top, x - left]
        labels[name] = result
    return labels | {"pred_all_strict": labels["pred_all"]}


@pytest.fixture
def samples(vocabulary, model):
    return [photo_sample(vocabulary, seed, spec=model.input) for seed in range(5)]


@pytest.mark.parametrize("options", [{}, {"crop_margin": 0.3}, {"mask_crops": True}])
@pytest.mark.parametrize("head", ["model", "headless_model"])
def test_labels_are_those_of_a_literal_loop(options, head, vocabulary, samples, request):
    model = request.getfixturevalue(head)
    found = labels_of(model, samples, vocabulary, Predictor(object_first=True, **options))
    for sample in samples:
        expected = literal(
            model, sample, vocabulary, margin=options.get("crop_margin", 0.0), mask=options.get("mask_crops", False)
        )
        assert found[sample.name].keys() == expected.keys()
        for name, labels in found[sample.name].items():
            np.testing.assert_array_equal(labels, expected[name], err_msg=f"{sample.name} {name}")
    whole = labels_of(model, samples, vocabulary, Predictor())
    assert any((whole[s.name]["oracle_obj"] != found[s.name]["oracle_obj"]).any() for s in samples), "looks closer"


def test_batching_changes_nothing(model, vocabulary, samples):
    predictor = Predictor(object_first=True, class_chunk=1)
    reference = labels_of(model, samples, vocabulary, predictor, batch_size=1)
    for batch_size in (2, 5):
        model.num_images = 0
        found = labels_of(model, samples, vocabulary, Predictor(object_first=True), batch_size=batch_size)
        for name, labels in found.items():
            for protocol, values in labels.items():
                np.testing.assert_array_equal(values, reference[name][protocol])
    crops = sum(len(np.unique(v[v < 8])) > 0 for each in found.values() for v in each.values())
    assert model.num_images > len(samples) and crops


def test_cut_outs_of_one_object_go_through_the_network_together(model, vocabulary, samples, monkeypatch):
    """As many at once as there are photos in a batch, so that memory is that of the batch."""
    sizes = []
    predict = model.predict

    def counted(images, prompts, **options):
        sizes.append((len(images), prompts.vocabulary.objects))
        return predict(images, prompts, **options)

    monkeypatch.setattr(model, "predict", counted)
    labels_of(model, samples[:4], vocabulary, Predictor(object_first=True), batch_size=4, protocols=(OracleObj(),))
    present = [int(o) for s in samples[:4] for o in s.object.unique().tolist() if o < 3]
    assert sorted(sizes) == sorted((present.count(o), (vocabulary.objects[o],)) for o in set(present))
    assert max(n for n, _ in sizes) > 1


def test_objects_at_the_borders_and_of_one_pixel(model, vocabulary):
    objects = torch.full((24, 30), BACKGROUND_LABEL, dtype=torch.int32)
    objects[0, 0], objects[23, 20:], objects[5:9, 29] = 0, 1, 2
    sample = photo_sample(vocabulary, 3, spec=model.input, size=(24, 30), objects=objects)
    for margin in (0.0, 2.0):
        found = labels_of(model, [sample], vocabulary, Predictor(object_first=True, crop_margin=margin))
        expected = literal(model, sample, vocabulary, margin=margin)
        np.testing.assert_array_equal(found[sample.name]["oracle_obj"], expected["oracle_obj"])
        owners = np.append(vocabulary.object_of, BACKGROUND_LABEL)[found[sample.name]["oracle_obj"]]
        np.testing.assert_array_equal(owners, objects.numpy())


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((0, 0, 1, 1), 0.0, (0, 0, 1, 1)),
        ((0, 0, 10, 8), 0.25, (0, 0, 12, 10)),
        ((25, 16, 30, 20), 0.5, (23, 14, 30, 20)),
        ((10, 10, 12, 12), 10.0, (0, 0, 30, 20)),
    ],
)
def test_a_margin_ends_at_the_border(box, margin, expected):
    found = grown(box, margin, (20, 30))
    assert found == expected
    assert found[0] <= box[0] and found[1] <= box[1] and found[2] >= box[2] and found[3] >= box[3]


def test_labels_of_another_size_than_the_photo(model, vocabulary):
    """The box is that of the labels, in whole pixels of the photo; the labels keep their size."""
    assert scaled((3, 5, 4, 6), (10, 10), (100, 25)) == (7, 50, 10, 60)
    assert scaled((0, 0, 10, 10), (10, 10), (3, 4)) == (0, 0, 4, 3)
    sample = photo_sample(vocabulary, 1, spec=model.input, size=(20, 26), photo_size=(60, 78))
    for mask in (False, True):
        found = labels_of(model, [sample], vocabulary, Predictor(object_first=True, mask_crops=mask))[sample.name]
        assert found["oracle_obj"].shape == (20, 26)
        owners = np.append(vocabulary.object_of, len(vocabulary))[found["oracle_obj"]]
        known = sample.object.numpy() < 3
        np.testing.assert_array_equal(owners[known], sample.object.numpy()[known])


def test_nothing_found_is_background(model, vocabulary):
    nothing = torch.full((20, 20), IGNORE_LABEL, dtype=torch.int32)
    sample = photo_sample(vocabulary, 0, spec=model.input, size=(20, 20), objects=nothing)
    for blind in (model, Blind()):
        found = labels_of(blind, [sample], vocabulary, Predictor(object_first=True), protocols=(OracleObj(), PredAll()))
        assert (found[sample.name]["oracle_obj"] == len(vocabulary)).all()
    assert (found[sample.name]["pred_all"] == len(vocabulary)).all()


def test_what_a_protocol_must_not_know_is_not_looked_at(model, vocabulary, samples):
    """Scores that are asked about nothing hold no look at the annotated objects, and the other way round."""
    batch = collate_eval(samples[:1])
    prepared = Predictor(object_first=True).prepare(model, vocabulary)
    (blind,) = predict_objects_first(prepared, batch, told=["none"])
    assert blind.found is not None and blind.told == ()
    with pytest.raises(ValueError, match="other objects"):
        blind.look(samples[0].object)
    (told,) = predict_objects_first(prepared, batch, told=["truth", "given"])
    assert told.found is None and len(told.told) == 2
    assert not any(crop.scores.object_part.requires_grad for look in told.told for crop in look.crops.values())


class Letterboxed(torch.nn.Module):
    """Class k has its highest score in the k-th column of the photo's part of the input."""

    input = InputSpec((16, 16), resize="letterbox", fill=(9, 9, 9))
    weight_layouts = ()

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def encode_text(self, words):
        return _Words(words)

    def predict(self, images, prompts, *, sizes, regions=None, given=None):
        found = []
        for image, size, region in zip(images, sizes, regions or [None] * len(images)):
            top, left, height, width = region or (0, 0, *image.shape[1:])
            logits = torch.full((len(prompts.words) + 1, 16, 16), -1.0)
            for k in range(len(prompts.words)):
                logits[k, top : top + height, left + k * width // len(prompts.words)] = 1.0
            found.append(DenseScores(logits, None, size, region))
        return found


class _Words:
    def __init__(self, words):
        self.words = words

    def subset(self, kept):
        return _Words(self.words.subset(kept))


def test_what_lies_outside_a_letterboxed_cut_out_is_left_out(vocabulary):
    model = Letterboxed()
    objects = torch.full((40, 40), BACKGROUND_LABEL, dtype=torch.int32)
    objects[2:38, 10:22] = 1  # the car, three times as high as it is wide
    sample = photo_sample(vocabulary, 2, spec=model.input, size=(40, 40), objects=objects)
    found = labels_of(model, [sample], vocabulary, Predictor(object_first=True), protocols=(OracleObj(),))
    wheel, door = 3, 4
    row = found[sample.name]["oracle_obj"][20]
    assert (row[10:13] == wheel).all() and (row[16:18] == door).all() and (row[:10] == len(vocabulary)).all()


class Blind(Letterboxed):
    """Finds background everywhere."""

    def predict(self, images, prompts, *, sizes, regions=None, given=None):
        logits = torch.eye(len(prompts.words) + 1)[-1][:, None, None].expand(-1, 16, 16)
        return [DenseScores(logits, None, size) for size in sizes]


class Instances(Letterboxed):
    """Gives segments, not scores."""

    def predict(self, images, prompts, *, sizes, regions=None, given=None):
        return [Segments.from_masks(torch.ones(1, *size, dtype=torch.bool), scores=[1.0]) for size in sizes]


def test_what_cannot_be_done_is_refused(model, vocabulary, samples):
    first = Predictor(object_first=True)
    with pytest.raises(ValueError, match="prompts"):
        Predictor(object_first=True, prompts="present")
    with pytest.raises(ValueError, match=r"predictor.crop_margin=-1"):
        Predictor(crop_margin=-1)
    with pytest.raises(ValueError, match="give a vocabulary"):
        first.prepare(model, Phrases.of(["a wheel"]))
    with pytest.raises(ValueError, match=r"keep it, EvalMapper\(photo=True\)"):
        labels_of(model, [replace(s, photo=None) for s in samples], vocabulary, first)
    with pytest.raises(ValueError, match="set eval.objects"):
        labels_of(model, [replace(s, given=None) for s in samples], vocabulary, first)
    with pytest.raises(ValueError, match=r"gives Segments; use predictor.object_first=false"):
        labels_of(Instances(), samples, vocabulary, first, batch_size=1)
    told = Letterboxed()
    told.input = InputSpec((16, 16), needs_object=True)
    with pytest.raises(ValueError, match="is told its object anyway"):
        first.prepare(told, vocabulary)
    leaky = vocabulary.__class__((("car", "wheel"), ("carriage", "door")))
    sample = photo_sample(leaky, 0, spec=model.input, objects=torch.zeros(20, 20, dtype=torch.int32), size=(20, 20))
    with pytest.raises(ValueError, match="leave out oracle_obj_substring"):
        labels_of(model, [sample], leaky, first, protocols=(OracleObjSubstring(),))
