"""Which model may be scored on which data set, and what counts as unseen then."""

import json

import pytest

from partseg.evaluation.setting import adaptation, dataset_name, evaluation_vocabulary
from partseg.vocabulary.names import Vocabulary

OWN = {"trained_on": "animals", "dataset": "animals"}


def test_zero_shot_keeps_the_unseen_classes(vocabulary):
    assert evaluation_vocabulary(vocabulary.seen_subset(), vocabulary, **OWN) == vocabulary


def test_a_few_shot_model_has_seen_everything(vocabulary):
    found = evaluation_vocabulary(vocabulary.with_unseen(()), vocabulary, **OWN)
    assert found.seen.all()
    assert found.pairs == vocabulary.pairs


def test_another_vocabulary_is_refused(vocabulary):
    other = Vocabulary.from_mapping({"dog": ["head", "leg"]})
    with pytest.raises(ValueError, match="cross_dataset=true"):
        evaluation_vocabulary(other, vocabulary, **OWN)


def test_another_data_set_is_refused_even_with_equal_names(vocabulary):
    with pytest.raises(ValueError, match=r"trained on 'toys'.*dataset=\.\.\."):
        evaluation_vocabulary(vocabulary.seen_subset(), vocabulary, trained_on="toys", dataset="animals")


def test_cross_dataset_scores_all_classes_of_the_new_set_as_seen(vocabulary):
    other = Vocabulary.from_mapping({"dog": ["head", "leg"]})
    found = evaluation_vocabulary(other, vocabulary, trained_on="toys", dataset="animals", cross_dataset=True)
    assert found.pairs == vocabulary.pairs
    assert found.seen.all()


def test_cross_dataset_on_the_own_set_is_refused(vocabulary):
    with pytest.raises(ValueError, match="leave it out"):
        evaluation_vocabulary(vocabulary.seen_subset(), vocabulary, **OWN, cross_dataset=True)


def test_a_few_shot_selection_is_the_same_data_set():
    target = "partseg.data.pascal_part.pascal_part_116"
    assert dataset_name({"_target_": target}) == "pascal_part_116"
    assert dataset_name({"_target_": target, "name": "pascal_part_116_16shot", "shots": 16}) == "pascal_part_116"
    assert dataset_name({"_target_": target, "name": "toy_pascal_part_116"}) == "toy_pascal_part_116"


def test_a_model_that_met_the_pictures_without_labels_is_transductive(tmp_path):
    (tmp_path / "export.json").write_text(json.dumps({"manifest_hash": "abc"}))

    def trained(*, split="val", labels="shard-*.json"):
        return {
            "sources": {
                "labelled": {"dataset": {"root": "data/a"}},
                "unlabelled": {"labels": "none", "split": split, "dataset": {"root": "data/a"}},
                "pseudo": {"labels": "pseudo", "dataset": {"root": str(tmp_path), "annotations": labels}},
            }
        }

    here = {"root": "data/a", "split": "val"}
    assert adaptation({"root": "data/a"}, here, "abc") is None
    assert adaptation({"sources": {"labelled": {"dataset": {"root": "data/a"}}}}, here, "abc") is None
    assert adaptation(trained(), here, "xyz") == "transductive", "its pictures without labels are these"
    assert adaptation(trained(split="train"), here, "abc") == "transductive", "the pseudo labels are of these"
    assert adaptation(trained(split="train"), here, "xyz") == "inductive"
    assert adaptation(trained(), {"root": "data/b", "split": "val"}, "xyz") == "inductive"
    assert adaptation(trained(split="train", labels="elsewhere/*.json"), here, "xyz") == "unknown"
