"""Every prompt of every class by itself: CAT-Seg compares pictures with each of the templates, not with their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from partseg.backbones.clip_vit import ClipBackbone
from partseg.text.templates import Templates, texts_of

AT_ONCE = 2048
"""Prompts per pass of the text tower: 80 texts of 1,000 classes at once would take 8 GB."""


def part_templates(template: str) -> tuple[Templates, int]:
    """The texts of a template with "dog's head" for an object-part, or the words of a phrase; and how many they are."""
    texts = texts_of(template)
    named = [text.replace("{}", "{object}'s {part}") for text in texts]
    return Templates({"object_part": named, "object": texts, "part": texts}), len(texts)


def encode_prompts(backbone: ClipBackbone, prompts: Sequence[Sequence[str]]) -> Float[Tensor, "K P D"]:
    """Normalised features of all prompts of each class."""
    flat = [prompt for each in prompts for prompt in each]
    parts = [backbone.encode_prompts(flat[i : i + AT_ONCE]) for i in range(0, len(flat), AT_ONCE)]
    return F.normalize(torch.cat(parts), dim=-1).unflatten(0, (len(prompts), -1))
