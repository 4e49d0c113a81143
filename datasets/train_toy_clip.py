"""Train the synthetic world's CLIP: image and text tower by contrast on captioned drawings of all objects and parts.

    python datasets/train_toy_clip.py out=output/toy_clip

Systems start from it as the real ones start from OpenAI's CLIP: it has read every name and seen no mask. The weights
that partseg ships were made by this command (partseg/backbones/weights); docs/toy_results.md tells what they know.
Arguments are key=value:
    out       folder: drawings, log.jsonl, zero_shot.json, weights.npz; drawings that are there already are kept
    name      which towers (partseg/backbones/configs)
    pictures  drawings; each gives about four crops
    steps     of training
    batch     crops in a step
    lr        highest learning rate
    seed      of drawings, captions and weights
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from rich.console import Console
from torch import Tensor

from partseg.backbones.clip_vit import clip_config, text_features
from partseg.text.encoder import clip_tokenizer, tokenize
from partseg.utils import arguments
from partseg.utils.files import write_atomic
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped
from toy_world.captions import FILES, Meaning, Shown, caption, draw_crops, read_crops, write_crops

HELD_OUT = 600
"""Drawings for the zero-shot accuracy."""
EVERY = 100
"""Steps between two lines of the log."""


@dataclass(frozen=True)
class Options:
    out: Path = Path("output/toy_clip")
    name: str = "partseg-toy"
    pictures: int = 12000
    steps: int = 1000
    batch: int = 96
    lr: float = 1e-3
    seed: int = 1


def main(options: Options) -> int:
    console = Console(soft_wrap=True, highlight=False)
    vocabulary = shipped("pascal_part_116")
    crops = {
        stream: _drawn(options.out / stream, vocabulary, seed=options.seed, stream=stream, count=count)
        for stream, count in (("train", options.pictures), ("val", HELD_OUT))
    }
    torch.manual_seed(options.seed)
    clip = open_clip.CLIP(**clip_config(options.name))
    _forget_others(clip, _train(clip, *crops["train"], options, console))
    accuracy = zero_shot(clip, *crops["val"], vocabulary)
    write_atomic(options.out / "zero_shot.json", (json.dumps(accuracy, indent=1) + "\n").encode())
    path = options.out / "weights.npz"
    content = packed(clip)
    write_atomic(path, content)
    console.print(f"zero-shot, percent: {accuracy}")
    console.print(f"{path}: {len(content) / 1e6:.1f} MB, sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


def _drawn(
    folder: Path, vocabulary: Vocabulary, *, seed: int, stream: str, count: int
) -> tuple[UInt8[Tensor, "N S S 3"], list[Shown]]:
    if not (folder / FILES[-1]).is_file():
        write_crops(folder, draw_crops(vocabulary, seed=seed, stream=stream, count=count))
    images, shown = read_crops(folder)
    return torch.from_numpy(images), shown


# ---- training ------------------------------------------------------------------------------------------------------
def _train(
    clip: open_clip.CLIP, images: UInt8[Tensor, "N S S 3"], shown: Sequence[Shown], options: Options, console: Console
) -> set[str]:
    """Trains the towers in place; the texts that they met."""
    rng = np.random.default_rng(options.seed)
    matrices = [p for p in clip.parameters() if p.ndim > 1]
    others = [p for p in clip.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, options.steps))
    met: set[str] = set()
    lines, losses, started = [], [], time.monotonic()
    for step in range(1, options.steps + 1):
        chosen = rng.integers(len(shown), size=options.batch)
        texts, meanings = zip(*(caption(shown[i], rng) for i in chosen))
        met.update(texts)
        loss = contrast(clip, varied(images[torch.from_numpy(chosen)], _size(clip)), texts, meanings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % EVERY == 0 or step == options.steps:
            line = {"step": step, "loss": round(float(np.mean(losses[-EVERY:])), 4)}
            line["seconds"] = round(time.monotonic() - started, 1)
            lines.append(json.dumps(line))
            write_atomic(options.out / "log.jsonl", ("\n".join(lines) + "\n").encode())
            console.print(lines[-1], markup=False)
    return met


def _rate(step: int, steps: int) -> float:
    """Share of the highest learning rate: a rise over a twentieth of the steps, then half a cosine."""
    return min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def contrast(
    clip: open_clip.CLIP, images: Float[Tensor, "B 3 H W"], texts: Sequence[str], meanings: Sequence[Meaning]
) -> Float[Tensor, ""]:
    """CLIP's loss, in which captions of one meaning share the probability: a small world says the same thing often."""
    seen = F.normalize(clip.encode_image(normalised(images)), dim=-1)
    logits = clip.logit_scale.exp().clamp(max=100) * seen @ encode(clip, texts).T
    same = _same(meanings).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _same(meanings: Sequence[Meaning]) -> Bool[Tensor, "B B"]:
    numbers: dict[Meaning, int] = {}
    ids = torch.tensor([numbers.setdefault(meaning, len(numbers)) for meaning in meanings])
    return ids[:, None] == ids


def varied(crops: UInt8[Tensor, "B S S 3"], size: int) -> Float[Tensor, "B 3 H W"]:
    """Crops moved, zoomed, mirrored and lit a little differently, at the tower's size, values 0..1."""
    count = len(crops)
    zoom, mirror = torch.empty(count).uniform_(0.8, 1.05), (torch.rand(count) < 0.5) * -2.0 + 1
    moves = torch.zeros(count, 2, 3)
    moves[:, 0, 0], moves[:, 1, 1] = zoom * mirror, zoom
    moves[:, :, 2] = torch.empty(count, 2).uniform_(-0.1, 0.1)
    grid = F.affine_grid(moves, [count, 3, size, size], align_corners=False)
    x = F.grid_sample(crops.permute(0, 3, 1, 2) / 255, grid, align_corners=False, padding_mode="border")
    gain, offset = torch.empty(count, 1, 1, 1).uniform_(0.85, 1.15), torch.empty(count, 1, 1, 1).uniform_(-0.06, 0.06)
    return (x * gain + offset).clamp(0, 1)


def _size(clip: open_clip.CLIP) -> int:
    """Side of the pictures in pixels; open_clip's ViTs hold a pair, its ResNets a number."""
    side = clip.visual.image_size
    return side if isinstance(side, int) else side[0]


def normalised(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """As CLIP's own images."""
    mean, std = torch.tensor([open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD]).view(2, 3, 1, 1)
    return (images - mean) / std


def encode(clip: open_clip.CLIP, texts: Sequence[str]) -> Float[Tensor, "N D"]:
    """Normalised features of texts."""
    tokens = tokenize(clip_tokenizer(), texts, context_length=clip.context_length)
    return F.normalize(text_features(clip, tokens), dim=-1)


# ---- what it knows -------------------------------------------------------------------------------------------------
@torch.inference_mode()
def zero_shot(
    clip: open_clip.CLIP, images: UInt8[Tensor, "N S S 3"], shown: Sequence[Shown], vocabulary: Vocabulary
) -> dict[str, float]:
    """Top-1 accuracy in percent of naming crops of objects and of parts, over seen and unseen objects' names alike."""
    objects = [(name,) for name in vocabulary.objects]
    known: dict[str, tuple[list[str], Sequence[tuple[str, ...]]]] = {
        "object": ([f"a photo of a {name}" for name in vocabulary.objects], objects),
        "part": (list(vocabulary.object_parts), vocabulary.pairs),
    }
    accuracy = {}
    for kind, (prompts, names) in known.items():
        place = {name: i for i, name in enumerate(names)}
        whole = [
            (i, each.objects if kind == "object" else (each.objects[0], each.parts[0][0]))
            for i, each in enumerate(shown)
            if each.kind == kind
        ]
        asked = [(i, place[name]) for i, name in whole if name in place]
        guesses = _guesses(clip, images[[i for i, _ in asked]], encode(clip, prompts))
        right = (guesses == torch.tensor([label for _, label in asked])).numpy()
        unseen = np.array([names[label][0] in vocabulary.unseen_objects for _, label in asked])
        for split, chosen in (("seen", ~unseen), ("unseen", unseen)):
            accuracy[f"{kind}_{split}"] = round(100 * float(right[chosen].mean()), 1)
    return accuracy


def _guesses(clip: open_clip.CLIP, crops: UInt8[Tensor, "N S S 3"], texts: Float[Tensor, "K D"]) -> Tensor:
    size, cut = _size(clip), []
    for some in crops.split(200):
        x = F.interpolate(some.permute(0, 3, 1, 2) / 255, size=(size, size), mode="bilinear", antialias=True)
        cut.append((clip.encode_image(normalised(x), normalize=True) @ texts.T).argmax(1))
    return torch.cat(cut)


# ---- the file ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def _forget_others(clip: open_clip.CLIP, met: set[str]) -> None:
    """Zero the embeddings of tokens that no caption held: a word that was never read says nothing."""
    read = tokenize(clip_tokenizer(), sorted(met), context_length=clip.context_length).unique()
    unread = torch.ones(clip.vocab_size, dtype=torch.bool)
    unread[read] = False
    clip.token_embedding.weight[unread] = 0


def packed(clip: open_clip.CLIP) -> bytes:
    """The state in half precision as a compressed .npz; the zeros of unread words take no room."""
    file = io.BytesIO()
    np.savez_compressed(file, **{name: value.half().numpy() for name, value in clip.state_dict().items()})
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
