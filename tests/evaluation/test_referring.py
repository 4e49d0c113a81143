"""Masks of phrases: IoU per phrase and over all, thresholds, several wordings, processes, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from partseg.evaluation.evaluator import Answer
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.referring import ReferringEvaluator
from partseg.evaluation.runner import run
from partseg.prediction import DenseScores, PhraseScores
from partseg.structures import PhraseMask
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases

SIZE = (10, 20)
WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "car": ["wheel"]}).with_unseen(["car"])


def mask(columns):
    """The first columns."""
    found = torch.zeros(SIZE, dtype=torch.bool)
    found[:, :columns] = True
    return found


def with_phrases(sample, truths, *, name="image"):
    """A sample whose phrases are masks of so many columns."""
    phrases = tuple(PhraseMask(f"phrase {i}", mask(columns)) for i, columns in enumerate(truths))
    return replace(sample([[None] * SIZE[1]] * SIZE[0], [[None] * SIZE[1]] * SIZE[0], name=name), phrases=phrases)


def answer(found, **options):
    """Logits whose masks are so many columns each."""
    return Answer(PhraseScores(torch.stack([mask(c).float() - 0.5 for c in found]), SIZE, **options), None)


def measure(pairs):
    evaluator = ReferringEvaluator()
    evaluator.reset(WORDS)
    for sample, given in pairs:
        assert evaluator.process(given, sample) is None
    return evaluator.evaluate()


def test_by_hand(sample):
    """IoU 1, 0.5, 0.75 and 0; pixels in both masks 100 + 50 + 150 + 0, in either 100 + 100 + 200 + 150."""
    pairs = [
        (with_phrases(sample, [10, 10], name="a"), answer([10, 5])),
        (with_phrases(sample, [20, 0], name="b"), answer([15, 15])),
    ]
    result = measure(pairs)
    scores = result.scores()
    assert scores == {
        "mean_IoU": pytest.approx(100 * 2.25 / 4),
        "overall_IoU": pytest.approx(100 * 300 / 550),
        "P@0.5": pytest.approx(50),  # an IoU of exactly a half does not exceed it
        "P@0.6": pytest.approx(50),
        "P@0.7": pytest.approx(50),
        "P@0.8": pytest.approx(25),
        "P@0.9": pytest.approx(25),
        "small_IoU": 0,  # the one phrase for nothing
        "best_match_IoU": scores["mean_IoU"],
        "mean_IoU_seen": None,  # none of the phrases is about a class
        "mean_IoU_unseen": None,
        "mean_IoU_harmonic": None,
        "category_IoU": None,
    }
    entry = json.loads(json.dumps(result.describe()))
    sizes = {"num_images": 2, "num_phrases": 4, "num_small": 1}
    assert entry == {"kind": "referring", **sizes, "metrics": scores, "categories": []}
    assert [(row.both, row.either) for row in result.counted] == [(100, 100), (50, 100), (150, 200), (0, 150)]


def test_categories_small_masks_and_several_targets(sample):
    """By object-part and by what is seen; a text with two targets counts twice, or once by the one that fits best."""
    dot = torch.zeros(SIZE, dtype=torch.bool)
    dot[0, 0] = True  # half a percent of the picture
    phrases = (
        PhraseMask("dog head", mask(10), 0),
        PhraseMask("dog head", mask(20), 0),
        PhraseMask("car wheel", dot, 2),
        PhraseMask("the thing", mask(4)),
    )
    one = replace(with_phrases(sample, []), phrases=phrases)
    result = measure([(one, answer([10, 10, 1, 4]))])
    scores = result.scores()
    wheel = 100 / 10  # one pixel of ten
    assert scores["mean_IoU"] == pytest.approx((100 + 50 + wheel + 100) / 4)
    assert scores["mean_IoU_seen"] == pytest.approx(75) and scores["mean_IoU_unseen"] == pytest.approx(wheel)
    assert scores["mean_IoU_harmonic"] == pytest.approx(2 * 75 * wheel / (75 + wheel))
    assert scores["category_IoU"] == pytest.approx((75 + wheel) / 2)
    assert scores["small_IoU"] == pytest.approx(wheel) and result.describe()["num_small"] == 1
    assert scores["best_match_IoU"] == pytest.approx((100 + wheel + 100) / 3)
    assert result.describe()["categories"] == [
        {"object": "dog", "part": "head", "seen": True, "num_phrases": 2, "mean_IoU": pytest.approx(75)},
        {"object": "car", "part": "wheel", "seen": False, "num_phrases": 1, "mean_IoU": pytest.approx(wheel)},
    ]


def test_a_phrase_for_nothing_that_finds_nothing_is_right(sample):
    scores = measure([(with_phrases(sample, [0]), answer([0]))]).scores()
    assert set(scores.values()) == {100.0, None}
    assert measure([(with_phrases(sample, [0]), answer([1]))]).scores()["mean_IoU"] == 0


def test_no_phrase_has_no_score():
    result = measure([])
    assert set(result.scores().values()) == {None} and "P@0.9" in result.scores()
    assert json.loads(json.dumps(result.describe()))["num_phrases"] == 0


def test_masks_are_read_at_the_photos_size(sample):
    """Logits at network size, of which the photo fills a part; the threshold is the system's."""
    logits = torch.full((1, 8, 12), -1.0)
    logits[:, 2:7, 1:6] = 3.0  # of the photo's 5 x 10 cells the left half
    one = with_phrases(sample, [10])
    given = Answer(PhraseScores(logits, SIZE, region=(2, 1, 5, 10), threshold=1.0), None)
    assert measure([(one, given)]).scores()["mean_IoU"] == pytest.approx(100)
    without = Answer(PhraseScores(logits, SIZE, threshold=1.0), None)
    assert measure([(one, without)]).scores()["mean_IoU"] < 50
    high = Answer(PhraseScores(logits, SIZE, region=(2, 1, 5, 10), threshold=5.0), None)
    assert measure([(one, high)]).scores()["mean_IoU"] == 0


def test_processes_together_give_the_same_counts(sample, monkeypatch):
    pairs = [(with_phrases(sample, [2 * i, 5], name=f"image_{i}"), answer([i, i + 3])) for i in range(5)]
    expected = measure(pairs)
    evaluators = [ReferringEvaluator() for _ in range(2)]
    for rank, evaluator in enumerate(evaluators):
        evaluator.reset(WORDS)
        for one, given in pairs[rank::2]:
            evaluator.process(given, one)
    parts = [evaluator._counted for evaluator in evaluators]
    monkeypatch.setattr(distributed, "gather_objects", lambda own: parts if own in parts else None)
    for evaluator in evaluators:
        found = evaluator.evaluate()
        assert found == expected


class Finder(torch.nn.Module):
    """Finds phrase number n as the first n columns; counts what it is asked."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.asked = []

    def encode_text(self, words):
        self.asked.append(words)
        return words

    def predict(self, images, prompts, *, sizes, regions=None, given=None):
        assert isinstance(prompts, Phrases) and len(images) == 1
        columns = [int(text.split()[-1]) for text in prompts.texts]
        return [PhraseScores(torch.stack([mask(c).float() - 0.5 for c in columns]), sizes[0])]


def test_the_runner_asks_each_image_for_its_own_phrases(sample, vocabulary, batched):
    model = Finder()
    model.input = type("Input", (), {"needs_object": False})()
    samples = [with_phrases(sample, [0, 1, 2], name="a"), with_phrases(sample, [], name="b")]
    samples.append(with_phrases(sample, [0, 4], name="c"))
    evaluators = {"referring": ReferringEvaluator()}
    found = run(model, batched(samples, 2), vocabulary=vocabulary, predictor=Predictor(), evaluators=evaluators)
    assert [words.texts for words in model.asked] == [("phrase 0", "phrase 1", "phrase 2"), ("phrase 0", "phrase 1")]
    assert found.num_images == 3 and [row.name for row in found.results["referring"].counted] == list("aaacc")
    assert found.scores()["referring/mean_IoU"] == pytest.approx(100 * 4.25 / 5)


def test_other_predictions_are_refused(sample):
    dense = Answer(DenseScores(torch.zeros(2, 2, 2), None, SIZE), None)
    with pytest.raises(TypeError, match="scores a mask per phrase, the system gave DenseScores; score its pixels"):
        measure([(with_phrases(sample, [1]), dense)])
