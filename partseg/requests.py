"""What a user may say about a photo: the object on it and where it is, in any form that images come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from partseg.data.images import ImageLike, Photo, read_mask
from partseg.labels import BACKGROUND_LABEL
from partseg.system import Words
from partseg.vocabulary.names import Vocabulary

MaskLike = str | Path | Image.Image | np.ndarray | Tensor
GivenMask = MaskLike | Mapping[str, MaskLike]


@dataclass(frozen=True)
class Request:
    """One photo and, for `oracle_obj`, the object on it: a name (the whole photo), a name with its mask, or masks."""

    image: ImageLike
    object: str | None = None
    object_mask: GivenMask | None = None


def given_objects(
    request: Request, words: Words, protocol: str, *, needs_object: bool = False
) -> list[tuple[str, MaskLike | None]] | None:
    """Names that `oracle_obj` is told with their masks (None: everywhere), None for others; ValueError if wrong.

    A system that `needs_object` may be given a mask without a name.
    """
    if not isinstance(words, Vocabulary):
        if request.object is not None or request.object_mask is not None:
            raise ValueError("an object is given together with a vocabulary, not with phrases")
        return None
    name, given = request.object, request.object_mask
    if protocol != "oracle_obj":
        if name is not None or given is not None:
            raise ValueError(f"an object is only used by protocol='oracle_obj', the protocol is {protocol!r}")
        return None
    if isinstance(given, Mapping):
        if name is not None:
            raise ValueError("give object=<name> with one mask, or object_mask={name: mask, ...} alone, not both")
        masks: list[tuple[str, MaskLike | None]] = list(given.items())
    elif name is not None:
        masks = [(name, given)]
    elif len(words.objects) == 1 or (needs_object and given is not None):
        masks = [(words.objects[0], given)]
    else:
        raise ValueError(f"protocol='oracle_obj' needs to know the object; give object=<one of {list(words.objects)}>")
    unknown = [each for each, _ in masks if each not in words.objects]
    if unknown:
        raise ValueError(f"object {unknown[0]!r} is not in the vocabulary; it has {list(words.objects)}")
    return masks


def object_map(request: Request, photo: Photo, words: Words, protocol: str, *, needs_object: bool) -> np.ndarray | None:
    """int32 object ids [h, w] that `oracle_obj` is told, None for `pred_all` and for phrases.

    ValueError for a mask of no pixel, and for one of all pixels, or none, where a system `needs_object`.
    """
    masks = given_objects(request, words, protocol, needs_object=needs_object)
    if masks is None or not isinstance(words, Vocabulary):
        return None
    objects = np.full(photo.size, BACKGROUND_LABEL, np.int32)
    for each, mask in masks:
        inside = np.ones(photo.size, bool) if mask is None else _mask_array(mask, photo)
        if needs_object and inside.all():
            given = "there is no object mask" if mask is None else "the object mask covers the whole photo"
            raise ValueError(
                f"{photo.name}: {given}, and this system cuts one object into parts: give object_mask= (masks= on the "
                "command line) with the object alone, or a checkpoint that is told none (model.aware_before=false "
                "model.aware_after=false)"
            )
        objects[inside] = words.object_id(each)
    if (objects == BACKGROUND_LABEL).all():
        names = ", ".join(repr(each) for each, _ in masks)
        raise ValueError(f"{photo.name}: the object mask of {names} is empty: leave the photo out, or mark it")
    return objects


def _mask_array(mask: MaskLike, photo: Photo) -> np.ndarray:
    """bool [h, w] of an array, tensor, or picture in which everything but black and transparent is the object."""
    if isinstance(mask, Tensor):
        array = mask.detach().cpu().numpy()
    elif isinstance(mask, np.ndarray):
        array = mask
    else:
        try:
            array = read_mask(mask)
        except FileNotFoundError:
            raise FileNotFoundError(f"{photo.name} has no mask {mask}") from None
    if array.shape != photo.size:
        raise ValueError(
            f"{photo.name}: the object mask is {list(array.shape)}, the upright photo is {list(photo.size)}"
        )
    return array if array.dtype == bool else array != 0


def per_image(value: object, images: Sequence, what: str) -> list:
    """One entry per image: a list as it is, anything else repeated."""
    if not isinstance(value, list | tuple):
        return [value] * len(images)
    if len(value) != len(images):
        raise ValueError(f"{what} has {len(value)} entries for {len(images)} images; give one each")
    return list(value)
