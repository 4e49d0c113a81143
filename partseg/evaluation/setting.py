"""Zero-shot, few-shot or cross-dataset: may this model be evaluated on this data set, and which classes are unseen?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partseg.vocabulary.names import Vocabulary


def evaluation_vocabulary(
    trained: Vocabulary,
    vocabulary: Vocabulary,
    *,
    trained_on: str,
    dataset: str,
    cross_dataset: bool = False,
) -> Vocabulary:
    """The data set's vocabulary with the unseen objects that this model has really not seen.

    Trained on the seen part: as it is. Trained on every class (few-shot): nothing is unseen. With `cross_dataset`
    nothing is unseen either: the words have no meaning there. ValueError for a model of another vocabulary or data set
    without `cross_dataset`, and for `cross_dataset` on the model's own data set.
    """
    everything_seen = vocabulary.with_unseen(())
    own_keys = {vocabulary.seen_subset().key: vocabulary, everything_seen.key: everything_seen}
    same = trained.key in own_keys and trained_on == dataset
    if cross_dataset:
        if same:
            raise ValueError(
                f"cross_dataset=true, but the model was trained on {dataset!r} itself; leave it out, or choose another "
                "eval_dataset"
            )
        return everything_seen
    if not same:
        raise ValueError(
            f"the model was trained on {trained_on!r} with vocabulary {trained.name!r} ({_size(trained)}); "
            f"{dataset!r} has {vocabulary.name!r} (seen part: {_size(vocabulary.seen_subset())}). "
            "Choose the model's own data set with "
            "dataset=..., or give cross_dataset=true to test it on this one"
        )
    return own_keys[trained.key]


def _size(vocabulary: Vocabulary) -> str:
    return f"{len(vocabulary)} object-parts, key {vocabulary.key}"


def adaptation(trained_on: Mapping[str, Any], evaluated: Mapping[str, Any], manifest_hash: str) -> str | None:
    """How a model that was adapted without labels met these pictures; None for one that was not adapted.

    "transductive" if pictures without labels, or those that pseudo labels were made for, are the ones that are scored,
    "inductive" if they are others, "unknown" for pseudo labels that do not lie beside their export.json. `trained_on`
    and `evaluated` are config nodes, the latter with its split.
    """
    found = set()
    for source in (trained_on.get("sources") or {}).values():
        node, labels = source["dataset"], source.get("labels", "annotated")
        if labels == "none":
            place = (Path(str(node.get("root"))).absolute(), source.get("split", "train"))
            same = place == (Path(str(evaluated.get("root"))).absolute(), evaluated["split"])
            found.add("transductive" if same else "inductive")
        elif labels == "pseudo":
            made = (Path(str(node.get("root", "."))) / str(node.get("annotations"))).parent / "export.json"
            if not made.is_file():
                found.add("unknown")
                continue
            same = json.loads(made.read_text(encoding="utf-8")).get("manifest_hash") == manifest_hash
            found.add("transductive" if same else "inductive")
    return next((how for how in ("transductive", "unknown", "inductive") if how in found), None)


def dataset_name(node: Mapping[str, Any]) -> str:
    """Name of the data set that a config node builds; a few-shot selection of a data set has the data set's name."""
    name = str(node.get("name") or node["_target_"].rpartition(".")[2])
    shots = node.get("shots")
    return name.removesuffix(f"_{shots}shot") if shots else name
