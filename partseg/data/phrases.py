"""Pictures as phrases with masks: a record's own referring expressions, or its classes put into words by templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from partseg.data.labels import LabelledPhoto, read_mask
from partseg.labels import IGNORE_LABEL
from partseg.structures import INSTANCE_LEVELS, PhraseMask, Sample
from partseg.text.templates import Templates
from partseg.vocabulary.names import mirrored

CLASS = "{class}"


@dataclass(frozen=True)
class PhraseSource:
    """How classes become phrases, in records that have no referring expressions of their own.

    `templates` are the wordings of a class: `{}` is its name ("dog head"), `{object}` and `{part}` its words, `{class}`
    the record's class name. `generic` maps objects to words that stand in for them ("dog": "animal"), which doubles the
    wordings. A wording that fits several classes of the picture means all of them. `targets="annotation"` makes a
    target of every annotated part, `class` one of all parts of a class together. `scored` says which wordings an
    evaluation asks for, training draws from all.
    """

    templates: Sequence[str] = ("{}",)
    generic: Mapping[str, str] = field(default_factory=dict)
    targets: Literal["class", "annotation"] = "class"
    scored: Literal["first", "all"] = "first"

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))
        object.__setattr__(self, "generic", dict(self.generic))
        if not self.templates:
            raise ValueError("phrases.templates is empty; give at least one, for example '{}'")
        if self.targets not in ("class", "annotation"):
            raise ValueError(f"phrases.targets={self.targets!r} is not 'class' or 'annotation'")
        if self.scored not in ("first", "all"):
            raise ValueError(f"phrases.scored={self.scored!r} is not 'first' or 'all'")
        _templates(self.templates, "class")

    def wordings(self, owner: str, part: str, class_name: str | None) -> tuple[str, ...]:
        """The phrases of a part, the object's own name first; ValueError where every template needs a class name."""
        owners = [owner, *([self.generic[owner]] if owner in self.generic else [])]
        templates = _templates(self.templates, class_name)
        if templates is None:
            raise ValueError(f"phrases.templates {list(self.templates)} need a class name, which this data set lacks")
        return tuple(dict.fromkeys(text for each in owners for text in templates.of_part(each, part)))


@lru_cache(maxsize=4096)
def _templates(texts: tuple[str, ...], class_name: str | None) -> Templates | None:
    """Templates with the class name in them; without those that need one where there is none."""
    kept = [text for text in texts if class_name is not None or CLASS not in text]
    return Templates({"object_part": [text.replace(CLASS, class_name or "") for text in kept]}) if kept else None


@dataclass(frozen=True)
class _Target:
    """What may be asked for in a picture: its wordings, and the mask that a wording means."""

    texts: tuple[str, ...]
    mask: Callable[[str], Tensor]
    label: int | None


def about_phrase(
    sample: Sample, photo: LabelledPhoto, source: PhraseSource, *, rng: np.random.Generator
) -> Sample | None:
    """The sample with one phrase drawn of those that its picture has; None where it has none."""
    targets = _targets(sample, photo, source)
    if not targets:
        return None
    target = targets[int(rng.integers(len(targets)))]
    text = target.texts[int(rng.integers(len(target.texts)))]
    return replace(sample, phrases=(PhraseMask(text, target.mask(text), target.label),))


def all_phrases(sample: Sample, photo: LabelledPhoto, source: PhraseSource) -> tuple[PhraseMask, ...]:
    """Every phrase of a picture that is scored; a wording that means several classes once."""
    found: dict[tuple[str, int], PhraseMask] = {}
    for number, target in enumerate(_targets(sample, photo, source)):
        for text in target.texts if source.scored == "all" else target.texts[:1]:
            together = source.targets == "class" and not photo.record.phrases
            found.setdefault((text, 0 if together else number), PhraseMask(text, target.mask(text), target.label))
    return tuple(found.values())


def _targets(sample: Sample, photo: LabelledPhoto, source: PhraseSource) -> list[_Target]:
    if photo.record.phrases:
        return _referred(photo)
    parts = _parts(sample, photo, source)
    words = photo.reader.ours.words("object_part")
    texts = {label: source.wordings(*words[label][1:], photo.record.class_name) for label, _ in parts}
    if source.targets == "annotation":
        return [_Target(texts[label], partial(_as_it_is, mask), label) for label, mask in parts]

    def union(text: str) -> Tensor:
        return torch.stack([mask for label, mask in parts if text in texts[label]]).any(0)

    return [_Target(wordings, union, label) for label, wordings in texts.items()]


def _referred(photo: LabelledPhoto) -> list[_Target]:
    """The record's own expressions, but those about classes that are hidden; a flip turns left into right."""
    flip, found = photo.geometry.flip, []
    for phrase in photo.record.phrases:
        label = None if phrase.label is None else photo.reader.label("object_part", phrase.label, flip=flip)
        if label == IGNORE_LABEL:
            continue
        texts = tuple(mirrored(text) for text in phrase.texts) if flip else phrase.texts
        found.append(_Target(texts, partial(_decoded, phrase.segmentation, photo), label))
    return found


def _as_it_is(mask: Tensor, _text: str) -> Tensor:
    return mask


def _decoded(segmentation: object, photo: LabelledPhoto, _text: str) -> Tensor:
    mask = read_mask(segmentation, photo.image, photo.record, photo.geometry)
    return torch.from_numpy(np.ascontiguousarray(mask))


def _parts(sample: Sample, photo: LabelledPhoto, source: PhraseSource) -> list[tuple[int, Bool[Tensor, "h w"]]]:
    """(label, mask) of every annotated part, or of every class in the label map where parts are not annotated."""
    if any(a.segmentation is not None for a in photo.record.of_level("object_part")):
        found = photo.reader.instances(photo.record, photo.image, photo.geometry, photo.maps, "annotated")
        kept = found.select((found.level == INSTANCE_LEVELS.index("object_part")) & found.has_mask)
        return list(zip(kept.label.tolist(), kept.masks))
    if source.targets == "annotation":
        raise ValueError(
            f"record {photo.record.image_id!r} has no annotated parts, which phrases.targets=annotation needs; "
            "phrases.targets=class takes all pixels of a class together"
        )
    present = sample.object_part[sample.object_part < len(photo.reader.ours)].unique().tolist()
    return [(label, sample.object_part == label) for label in present]
