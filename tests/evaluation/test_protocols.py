"""Each protocol on tiny hand-drawn maps: which parts may be chosen, which pixels count, what is a miss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data.mapper import EvalMapper
from partseg.evaluation.evaluator import Answer
from partseg.evaluation.labels import Choice, ScoreReader, own_parts
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.protocols import OracleObj, OracleObjSubstring, PredAll, PredAllStrict, PredObj
from partseg.evaluation.runner import process_image
from partseg.labels import IGNORE_LABEL
from partseg.prediction import DenseScores, PhraseScores, Segments
from partseg.structures import Record
from partseg.vocabulary.names import Vocabulary

B = 8  # background id of the small vocabulary (K)


def scores_for(best_parts, best_objects, *, classes=8, objects=3):
    """Scores at label size whose argmax are the given maps; the second best is the next id."""
    parts, owners = torch.tensor(best_parts), torch.tensor(best_objects)

    def logits(best, count):
        ranking = (best[None] - torch.arange(count)[:, None, None]) % count  # 0 for the best, count - 1 for the next
        return torch.where(ranking == 0, 10.0, ranking.float() - count)

    size = tuple(parts.shape)
    return DenseScores(logits(parts, classes + 1), None if objects is None else logits(owners, objects + 1), size)


def run_one(protocol, scores, sample, vocabulary):
    """(predicted label map, counts) of one image."""
    evaluator = PixelEvaluator(protocol)
    evaluator.reset(vocabulary)
    labels = process_image(Answer(scores, vocabulary), sample, {"it": evaluator})["it"]
    return labels, evaluator.evaluate()


def test_ids_of_the_small_vocabulary(vocabulary):
    """The maps below rely on these: bird 0, car 1, dog 2; dog's parts 0..2, car's 3..4, bird's 5..7."""
    assert vocabulary.objects == ("bird", "car", "dog")
    assert own_parts(vocabulary) == ((5, 6, 7), (3, 4), (0, 1, 2))


def test_a_chair_never_gets_parts_of_an_armchair(sample):
    vocabulary = Vocabulary.from_mapping(
        {"chair": ["seat", "leg"], "armchair": ["seat", "leg", "arm"], "swivel chair": ["seat", "base"]}
    )
    best = torch.tensor([[4, 6, 1]])  # armchair's arm, swivel chair's base, chair's leg
    logits = torch.zeros(8, 1, 3)
    logits.scatter_(0, best[None], 9.0)
    logits[0] += 1  # chair's seat is second
    one = sample([[0, 0, 1]], [[0, 0, 0]])  # a chair everywhere
    scores = DenseScores(logits, None, (1, 3))
    labels, counts = run_one(OracleObj(), scores, one, vocabulary)
    assert labels.tolist() == [[0, 0, 1]]
    assert counts.confusion.trace() == 3
    labels, counts = run_one(OracleObjSubstring(), scores, one, vocabulary)
    assert labels.tolist() == [[4, 6, 1]]
    assert counts.confusion.trace() == 1
    armchair = sample([[2, 2, 3]], [[1, 1, 1]])  # its own name is in no other: nothing leaks
    assert torch.equal(*(run_one(p(), scores, armchair, vocabulary)[0] for p in (OracleObj, OracleObjSubstring)))


def test_oracle_obj_counts_labelled_pixels_only(vocabulary, sample):
    one = sample([[0, None, 3, None]], [[2, 2, 1, -1]])
    scores = scores_for([[1, 1, 3, 3]], [[3, 3, 3, 3]])
    labels, counts = run_one(OracleObj(), scores, one, vocabulary)
    assert labels.tolist() == [[1, 1, 3, B]]
    assert counts.confusion.sum() == 2
    assert counts.confusion[0, 1] == 1
    assert counts.confusion[3, 3] == 1


def test_a_foreign_pixel_is_dropped_from_oracle_obj_and_counted_by_pred_all(vocabulary, sample):
    one = sample([[0, 3]], [[2, 2]])  # the second pixel carries a car's wheel inside a dog
    scores = scores_for([[0, 3]], [[2, 1]])
    _, counts = run_one(OracleObj(), scores, one, vocabulary)
    assert (counts.confusion.sum(), counts.num_dropped) == (1, 1)
    _, counts = run_one(PredAll(), scores, one, vocabulary)
    assert (counts.confusion.sum(), counts.confusion.trace(), counts.num_dropped) == (2, 2, 0)


def test_instances_weigh_pixels(vocabulary, sample):
    one = sample(
        [[0, 0, 3, None]], [[2, 2, 1, 2]], num_owner=[[2, 1, 0, 0]], num_foreign=[[0, 1, 1, 0]]
    )  # the wheel lies in a dog only; the object map would show the car if there were one
    scores = scores_for([[0, 1, 3, 0]], [[2, 2, 1, 2]])
    _, counts = run_one(OracleObj(), scores, one, vocabulary)
    assert (counts.confusion[0, 0], counts.confusion[0, 1], counts.confusion.sum(), counts.num_dropped) == (2, 1, 3, 2)
    _, counts = run_one(PredAll(), scores, one, vocabulary)
    assert (counts.confusion[0, 0], counts.confusion[0, 1], counts.confusion[3, 3]) == (2, 2, 1)
    assert counts.confusion.sum() == 5


def test_pred_all_gates_by_the_object_head(vocabulary, sample):
    one = sample([[0, 0, 0, None]], [[2, 2, 2, -1]])
    # the best part overall is dog's leg (1); the gate says dog, car, background, dog
    scores = scores_for([[1, 1, 1, 1]], [[2, 1, 3, 2]])
    labels, counts = run_one(PredAll(), scores, one, vocabulary)
    assert labels.tolist() == [[1, 3, B, 1]] or labels.tolist() == [[1, 4, B, 1]]
    assert counts.confusion.sum() == 3
    assert counts.confusion[0, B] == 1  # background on a labelled pixel is a miss
    assert counts.confusion.trace() == 0


def test_without_an_object_head_all_parts_and_background_compete(vocabulary, sample):
    one = sample([[0, 3, 5]], [[2, 1, 0]])
    labels, _ = run_one(PredAll(), scores_for([[1, B, 5]], [[0, 0, 0]], objects=None), one, vocabulary)
    assert labels.tolist() == [[1, B, 5]]


def test_unlabelled_pixels_under_each_protocol(vocabulary, sample):
    # labelled dog, unlabelled dog, background, void; everything is predicted as dog's head
    one = sample([[0, None, None, None]], [[2, 2, -1, None]])
    scores = scores_for([[0, 0, 0, 0]], [[2, 2, 2, 2]])
    totals = {}
    for protocol in (OracleObj(), PredAll(), PredAllStrict()):
        _, counts = run_one(protocol, scores, one, vocabulary)
        totals[protocol.name] = (counts.confusion[0, 0], counts.confusion[B, 0], counts.confusion.sum())
    assert totals == {"oracle_obj": (1, 0, 1), "pred_all": (1, 0, 1), "pred_all_strict": (1, 2, 3)}


def test_strict_rewards_background(vocabulary, sample):
    one = sample([[0, None]], [[2, -1]])
    _, counts = run_one(PredAllStrict(), scores_for([[0, 0]], [[2, 3]]), one, vocabulary)
    assert counts.confusion[0, 0] == 1
    assert counts.confusion[B, B] == 1


@pytest.mark.parametrize("protocol", [OracleObj(), PredAll(), PredAllStrict(), OracleObjSubstring()])
def test_an_image_with_nothing_but_ignore(vocabulary, sample, protocol):
    one = sample([[None] * 3] * 2, [[None] * 3] * 2)
    _, counts = run_one(protocol, scores_for([[0] * 3] * 2, [[2] * 3] * 2), one, vocabulary)
    assert counts.confusion.sum() == 0
    assert counts.num_images == 1
    assert counts.confusion.shape == (9, 9)


@pytest.fixture
def told(tmp_path, vocabulary):
    """Function: part ids of a row of dog, and the object PNG of some segmenter (None: no file) -> the mapped sample."""

    def mapped(parts, objects):
        size = (1, len(parts))
        Image.new("RGB", size[::-1]).save(tmp_path / "photo.png")
        Image.fromarray(np.array([parts], np.uint8)).save(tmp_path / "parts.png")
        (tmp_path / "objects").mkdir(exist_ok=True)
        if objects is not None:
            Image.fromarray(objects).save(tmp_path / "objects" / "image.png")
        record = Record("image", str(tmp_path / "photo.png"), object_part_file_name=str(tmp_path / "parts.png"))
        mapper = EvalMapper(objects=tmp_path / "objects")
        return mapper(record, label_vocabulary=vocabulary, vocabulary=vocabulary)

    return mapped


@pytest.mark.parametrize(("dtype", "none"), [(np.uint8, 255), (np.uint16, 65535)])
def test_pred_obj_reads_objects_from_files(vocabulary, told, dtype, none):
    # file ids are those of label_objects: bird 0, car 1, chair 2, dog 3
    one = told([0, 0, 0, 0], np.array([[3, 1, 2, none]], dtype))
    assert one.object.tolist() == [[2, 2, 2, 2]]
    labels, counts = run_one(PredObj(), scores_for([[0, 3, 0, 0]], [[0] * 4]), one, vocabulary)
    assert labels.tolist() == [[0, 3, B, B]]
    assert counts.confusion[0].tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 2]


def test_pred_obj_names_what_is_wrong_with_a_file(vocabulary, told, sample, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        told([0, 0], None)
    with pytest.raises(ValueError, match=r"image\.png is \(3, 3\)"):
        told([0, 0], np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"ids \[4\]"):
        told([0, 0], np.full((1, 2), 4, np.uint8))
    with pytest.raises(FileNotFoundError, match=r"eval\.objects: no folder .*nowhere"):
        EvalMapper(objects=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"'image': pred_obj .*set eval\.objects="):
        run_one(PredObj(), scores_for([[0, 0]], [[2, 2]]), sample([[0, 0]], [[2, 2]]), vocabulary)


def test_choices_share_what_they_can_and_keep_apart_what_differs(vocabulary):
    reader = ScoreReader(scores_for([[0, 4, 7]], [[2, 1, 3]]))
    parts = own_parts(vocabulary)
    maps = [torch.tensor(row, dtype=torch.int32) for row in ([[2, 2, 2]], [[1, 1, IGNORE_LABEL]], [[0, 2, 65534]])]
    for objects in maps:
        found = reader.choose(Choice(objects, parts))
        for x, object_id in enumerate(objects[0].tolist()):
            if object_id >= 3:
                assert found[0, x] == B
            else:
                ids = torch.tensor(parts[object_id])
                assert found[0, x] == ids[reader.scores.object_part[ids, 0, x].argmax()]


# Systems that find instances, and views that the photo does not fill --------------------------------------------------
@pytest.fixture
def segments():
    """Two dogs' heads (the worse one larger), a car's wheel on top of both, and the objects; a row of six pixels."""
    rows = [
        (0.9, 0, 0, range(2)),  # score, level, label, columns
        (0.5, 0, 0, range(4)),
        (0.8, 0, 3, range(1, 6)),
        (0.7, 1, 3, range(5)),  # the dog: position 3 in label_objects
        (0.6, 1, 2, range(4, 6)),  # a chair, which has no parts
        (0.4, 1, 1, range(5, 6)),  # a car under it
    ]
    masks = torch.zeros(len(rows), 1, 6, dtype=torch.bool)
    for mask, (*_, columns) in zip(masks, rows):
        mask[0, list(columns)] = True
    scores, level, label, _ = zip(*rows)
    return Segments.from_masks(masks, scores=scores, level=level, label=label, levels=("object_part", "object"))


def test_the_best_segment_that_may_lie_on_top(vocabulary, sample, segments):
    one = sample([[0] * 6], [[2, 2, 2, 1, -1, None]])
    given, _ = run_one(OracleObj(), segments, one, vocabulary)
    assert given.tolist() == [[0, 0, 0, 3, B, B]]  # the wheel where a car is given, though it is not the best there
    free, _ = run_one(PredAll(), segments, one, vocabulary)
    assert free.tolist() == [[0, 0, 0, 0, B, B]]  # the dog reaches to 4, its heads to 3; a chair is no object
    parts_only = replace(segments.of_level("object_part"), levels=("object_part",))
    free, _ = run_one(PredAll(), parts_only, one, vocabulary)
    assert free.tolist() == [[0, 0, 3, 3, 3, 3]]  # nothing is known of objects: the best of all


def test_segments_without_names_are_no_labels(vocabulary, sample, segments):
    nameless = replace(segments, label=torch.full_like(torch.as_tensor(segments.label), -1))
    with pytest.raises(ValueError, match="segments have no names, which pixel protocols score; use evaluator=segments"):
        run_one(OracleObj(), nameless, sample([[0] * 6], [[2, 2, 2, 1, -1, None]]), vocabulary)


def test_masks_per_phrase_are_no_labels(vocabulary, sample):
    phrases = PhraseScores(torch.zeros(1, 1, 2), (1, 2))
    with pytest.raises(TypeError, match="'image': a PhraseScores holds no labels of a vocabulary"):
        run_one(PredAll(), phrases, sample([[0, 0]], [[2, 2]]), vocabulary)


def test_only_the_photo_is_read(vocabulary, sample):
    """The same maps, inside a view that is filled up around them with what would win everywhere."""
    one = sample([[0, 3], [5, None]], [[2, 1], [0, -1]])
    plain = scores_for([[0, 3], [5, 1]], [[2, 1], [0, 2]])
    parts, objects = torch.full((9, 4, 5), 99.0), torch.full((4, 4, 5), 99.0)
    parts[:, 1:3, 2:4], objects[:, 1:3, 2:4] = plain.object_part, plain.object
    placed = DenseScores(parts, objects, (2, 2), region=(1, 2, 2, 2))
    for protocol in (OracleObj(), PredAll(), PredAllStrict()):
        alone, inside = (run_one(protocol, scores, one, vocabulary) for scores in (plain, placed))
        assert torch.equal(alone[0], inside[0])
        np.testing.assert_array_equal(alone[1].confusion, inside[1].confusion)
