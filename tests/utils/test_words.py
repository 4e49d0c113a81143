"""Vocabularies as people type them."""

from pathlib import Path

import pytest

from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.words import as_vocabulary, vocabulary_of_text

PAIRS = (("dog", "head"), ("dog", "tail"), ("car", "wheel"))


def test_every_form_gives_the_same_vocabulary(tmp_path):
    (tmp_path / "words.yaml").write_text("dog: [head, tail]\ncar: [wheel]\n")
    mapping = {"dog": ["head", "tail"], "car": ["wheel"]}
    for words in (
        mapping,
        Vocabulary.from_mapping(mapping),
        "dog: head, tail\ncar: wheel",
        "{dog: [head, tail], car: [wheel]}",
        tmp_path / "words.yaml",
        str(tmp_path / "words.yaml"),
    ):
        assert as_vocabulary(words).pairs == PAIRS


def test_shipped_vocabularies_go_by_name():
    assert len(as_vocabulary("pascal_part_116")) == 116
    assert len(as_vocabulary("ade20k_part_234")) == 234
    assert len(as_vocabulary("partimagenet_40")) == 147


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "is empty"),
        ("  \n ", "is empty"),
        ("dog", "must map objects to their parts"),
        ("dog:", "'dog' has no parts"),
        ("dog: ','", "'dog' has no parts"),
        ("dog: ,", "cannot be read near line 1; write one object per line"),
        ("dog: head\ndog: tail", r"\['dog'\] is listed twice \(from line 1\)"),
        ("dog: head, head", "names object-part classes twice"),
        ("dog: [head", "cannot be read near line"),
        ("[dog, cat]", "must map objects"),
        ({True: ["head"]}, "is not text; put it in quotes"),
        ("dog: {head: 1}", "'dog' has no parts"),
        ("dog: [{a: b}]", "is not text"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        as_vocabulary(words)


def test_odd_unicode_and_numbers_are_words():
    assert as_vocabulary("собака: голова, хвост\n犬: 頭\n🐶: 👃").object_parts[-1] == "🐶's 👃"
    assert as_vocabulary("bus: [2, head]").parts == ("2", "head")
    assert as_vocabulary("on: [no, 010, 2001-13-45, ~]").pairs == tuple(
        ("on", p) for p in ("no", "010", "2001-13-45", "~")
    )


def test_typed_text_never_opens_files(tmp_path):
    secret = tmp_path / "secret.yaml"
    secret.write_text("dog: [head]")
    with pytest.raises(ValueError, match="must map objects"):
        vocabulary_of_text(str(secret))
    with pytest.raises(FileNotFoundError, match="shipped vocabularies are"):
        as_vocabulary(Path("nowhere.yaml"))
