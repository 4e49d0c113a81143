"""Words as people and strangers type them: no part is lost, no text costs more than a moment, messages stay short."""

import logging
import time

import pytest

from partseg.utils import page
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped_names
from partseg.vocabulary.words import as_vocabulary, hints, vocabulary_of_text

TEN = ",".join(["{}"] * 10)


def bomb(levels):
    """A list of lists of ... of ten words: ten times more at every level."""
    rows = ["&a0 [" + TEN.format(*"xxxxxxxxxx") + "]"]
    rows += [f"&a{n} [" + TEN.format(*[f"*a{n - 1}"] * 10) + "]" for n in range(1, levels)]
    return "[" + ",".join(rows) + "]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"dog": ["head"], "dog ": ["tail"]}, r"\['dog'\] is listed twice; name it once, with all its parts"),
        ({7: ["a"], "7": ["b"]}, r"\['7'\] is listed twice"),
        ('dog: head\n"dog ": tail', r"\['dog'\] is listed twice \(from line 1\)"),
        ({"Dog": ["head"], "dog": ["tail"]}, r"object classes twice: \['Dog', 'dog'\].*capitals as small letters"),
        ({"dog": ["Head", "head"]}, r"object-part classes twice: \[\"dog's Head\", \"dog's head\"\]"),
        ({"traffic light": ["pole"], "traffic  light": ["pole"]}, "object-part classes twice"),
    ],
)
def test_no_part_is_lost(words, message):
    with pytest.raises(ValueError, match=message):
        as_vocabulary(words)


@pytest.mark.parametrize(
    ("owner", "part", "advice"),
    [
        ("poodle", "poodle's head", "write 'head'"),
        ("poodle", "poodle\N{RIGHT SINGLE QUOTATION MARK}s head", "write 'head'"),
        ("poodle", "poodle head", "write 'head'"),
        ("Poodle", "poodle_head", "write 'head'"),
        ("poodle", "left_ear", "underscore; write 'left ear'"),
        ("traffic_light", "bulb", "underscore; write 'traffic light'"),
        ("street_light", "street light pole", "write 'pole'"),
    ],
)
def test_names_that_are_likely_not_meant_are_logged_once(caplog, owner, part, advice):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            as_vocabulary({owner: [part]})
    assert advice in caplog.text
    assert len(caplog.messages) == len(set(caplog.messages)) == len(hints(Vocabulary.from_mapping({owner: [part]})))


def test_ordinary_and_shipped_names_are_left_alone():
    assert hints(as_vocabulary({"dog": ["head", "dogtooth"], "door frame": ["door"]})) == ()
    assert not any(hints(as_vocabulary(name)) for name in shipped_names())


def test_many_names_of_one_kind_are_counted():
    found = hints(as_vocabulary({"thing": [f"part_{n}" for n in range(100)]}))
    assert len(found) == 6 and found[-1] == "95 more names are like these"


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(6), "line 1 has an anchor or alias"),
        ("dog: &a [head]\ncat: *a", "line 1 has an anchor or alias"),
        ("[" * 3000, "too many brackets"),
        ("- " * 3000, "too many brackets"),
        ("? " * 3000, "too many brackets"),
        ("{a: " * 3000, "too many brackets"),
        ("dog: " + "head, " * 4000, r"has 24005 characters, allowed are 20000"),
        ("y" * 1000 + ":", "has no parts"),
        ("dog: [{" + "z" * 1000 + ": 1}]", "is not text"),
    ],
)
def test_hostile_text_costs_a_moment_and_a_line(text, message):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as error:
        vocabulary_of_text(text)
    assert time.perf_counter() - start < 2
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_text_of_the_largest_size_is_read_in_a_moment():
    text = "{" + ",".join(f"o{n}: p" for n in range(2200)) + "}"
    start = time.perf_counter()
    assert len(vocabulary_of_text(text)) == 2200
    assert time.perf_counter() - start < 3


def test_files_are_read_by_the_same_rules(tmp_path):
    path = tmp_path / "words.yaml"
    for data, message in (
        (bomb(6).encode(), r"words\.yaml: line 1 has an anchor or alias"),
        (b"object_parts: &a [[dog, head]]\nobjects: *a", "anchor or alias"),
        (b"dog: caf\xe9", r"words\.yaml is no text in UTF-8"),
        (b"object_parts: [[dog, [head]]]", "pairs of text, got"),
        (b"#" * 1_000_001, "1000001 characters, allowed are 1000000"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            as_vocabulary(path)
    path.write_text("object_parts: [[dog, on]]")  # the word that stands there, where plain YAML reads a truth value
    assert as_vocabulary(path).pairs == (("dog", "on"),)
    path.write_text("\n".join(f"object {n}: [part]" for n in range(1500)))
    assert len(as_vocabulary(path)) == 1500


def test_marks_on_a_photo_are_bounded():
    click = '{"click": [0.5, 0.5]}'
    assert len(page.read_marks(f"[{click}]", (4, 6))[1]) == 1
    for text in ("[" * 100_000, f"[{','.join([click] * 51)}]", f"[{click}{' ' * 500_000}]"):
        with pytest.raises(ValueError, match="clear them and draw again"):
            page.read_marks(text, (4, 6))
