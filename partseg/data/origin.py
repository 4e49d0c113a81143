"""Where labels come from that a network made: the `info` that exports write, and what a training asks of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partseg.structures import Record
from partseg.utils.files import sha256_of

ORIGIN = "made_from"
"""Key of a file's `info`: data set, split, checkpoint (sha256) and settings of the export that wrote it."""

ASKED = ("dataset", "checkpoint")

_log = logging.getLogger(__name__)


def check_origin(files: Sequence[tuple[Path, Mapping[str, Any]]], asked: Mapping[str, str | None] | None) -> bool:
    """True for labels that a network made; ValueError where files differ in origin, or it is not what is `asked`.

    `asked` maps "dataset" to a name and "checkpoint" to the file that must have made the labels; None: any.
    """
    strange = sorted(set(asked or ()) - set(ASKED))
    if strange:
        raise ValueError(f"dataset.origin has {strange}; it may hold {list(ASKED)}")
    made = [(path, (data.get("info") or {}).get(ORIGIN)) for path, data in files]
    for path, origin in made:
        if origin != made[0][1]:
            raise ValueError(
                f"{path} and {made[0][0]} were not made by one export ({_differences(made[0][1], origin)}): keep the "
                "shards of each in a folder of its own"
            )
    for key, wanted in (asked or {}).items():
        if wanted is not None:
            _check(made[0][0], made[0][1] or {}, key, str(wanted))
    return made[0][1] is not None


def _check(path: Path, origin: Mapping[str, Any], key: str, wanted: str) -> None:
    """ValueError unless the labels' origin is what is wanted; a checkpoint is compared by its sha256."""
    value = wanted
    if key == "checkpoint":
        if not Path(wanted).is_file():
            raise FileNotFoundError(f"dataset.origin.checkpoint={wanted} is no file; null takes any labels")
        value = sha256_of(Path(wanted))
    found = origin.get(key)
    if found != value:
        raise ValueError(
            f"{path} holds labels of another {key} ({found or 'which it does not name'}, not {wanted}"
            f"{'' if value == wanted else f', which is {value}'}): export them again, or set dataset.origin.{key}=null"
        )


def _differences(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> str:
    if not one or not other:
        return "one says by what it was made, the other does not"
    return ", ".join(
        f"{k}: {one.get(k)} and {other.get(k)}" for k in sorted(one.keys() | other) if one.get(k) != other.get(k)
    )


def count_without_parts(records: Sequence[Record], skipped: dict[str, int], *, name: str) -> None:
    """Count and name the images on which a network's labels have no part; ValueError where that is all of them."""
    empty = [record.image_id for record in records if not record.of_level("object_part")]
    if empty and len(empty) == len(records):
        raise ValueError(
            f"no image of {name!r} has a part with a score above the threshold: lower dataset.min_score, or "
            "export.min_score of the labels' export"
        )
    if empty:
        skipped["image_without_part"] = len(empty)
        some = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        _log.warning(
            "%s: %d of %d images have no part with a score above the threshold and count as unlabelled: %s",
            name,
            len(empty),
            len(records),
            some,
        )
