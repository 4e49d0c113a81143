"""recipe=official against the authors' network, restated step by step on its own checkpoint format and order of names.

Everything about names is stated here, from the published lists: prompts are `sorted(parts) + sorted(objects)`, and an
object's text is gathered with its place among the sorted objects, without the offset of the parts.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from partseg.vocabulary.shipped import shipped_names
from partseg.vocabulary.words import as_vocabulary
from partseg.weights.load import export_weights

FOLDER = "partseg/vocabulary/lists"


class AuthorsOrder:
    """The authors' index tables, from class names "dog's head" alone."""

    def __init__(self, classes: list[str]) -> None:
        self.parts = sorted({name.split("'s")[1].strip() for name in classes})
        self.objects = sorted({name.split("'s")[0].strip() for name in classes})
        self.prompts = self.parts + self.objects
        self.part_of = [self.parts.index(name.split("'s")[1].strip()) for name in classes]
        self.object_of = [self.objects.index(name.split("'s", maxsplit=1)[0]) for name in classes]


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def attend(state, name, x, heads, mask=None):
    q, k, v = (linear(state, f"{name}.{w}_proj", x).unflatten(-1, (heads, -1)).transpose(1, 2) for w in "qkv")
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores if mask is None else scores + mask
    return linear(state, f"{name}.out_proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def tower(state, prefix, x, depth, heads, mask=None):
    """Hidden states after every pre-norm block with QuickGELU."""
    hidden = []
    for i in range(depth):
        name = f"{prefix}.encoder.layers.{i}"
        x = x + attend(state, f"{name}.self_attn", norm(state, f"{name}.layer_norm1", x), heads, mask)
        y = linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.layer_norm2", x))
        x = x + linear(state, f"{name}.mlp.fc2", y * torch.sigmoid(1.702 * y))
        hidden.append(x)
    return hidden


def embed_text(state, tokens, depth, heads):
    """Projected features of padded prompts [N, 77], not normalised, then the learned background vector."""
    x = state["clip.text_model.embeddings.token_embedding.weight"][tokens]
    x = x + state["clip.text_model.embeddings.position_embedding.weight"][: tokens.shape[1]]
    mask = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
    x = norm(state, "clip.text_model.final_layer_norm", tower(state, "clip.text_model", x, depth, heads, mask)[-1])
    pooled = x[torch.arange(len(tokens)), tokens.argmax(1)]
    features = linear(state, "clip.text_projection", pooled)
    return torch.cat([features, state["non_object_embedding"]])


def embed_image(state, images, depth, heads, blocks):
    name = "clip.vision_model.embeddings"
    weight = state[f"{name}.patch_embedding.weight"]
    patches = F.conv2d(images, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    position = state[f"{name}.position_embedding.weight"]
    side, grid = math.isqrt(len(position) - 1), math.isqrt(patches.shape[1])
    cells = position[1:].T.view(1, -1, side, side)
    cells = F.interpolate(cells, size=(grid, grid), mode="bicubic", align_corners=False)
    position = torch.cat([position[:1], cells.flatten(2)[0].T])
    cls = state[f"{name}.class_embedding"].expand(len(images), 1, -1)
    x = norm(state, "clip.vision_model.pre_layrnorm", torch.cat([cls, patches], 1) + position)
    hidden = tower(state, "clip.vision_model", x, depth, heads)
    adapt = lambda x: linear(state, "visual_adapter.fc.2", linear(state, "visual_adapter.fc.0", x).relu()).relu()  # noqa: E731
    return [0.2 * adapt(hidden[i]) + 0.8 * hidden[i] for i in blocks]


def mask_head(state, name, x):
    x = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1).relu()
    for i in (2, 4):
        weight = state[f"{name}.{i}.weight"]
        x = F.conv_transpose2d(x, weight, state[f"{name}.{i}.bias"], stride=weight.shape[-1])
        x = x.relu() if i == 2 else x
    return x[:, 0]


def authors_logits(state, images, tokens, order, *, depths, heads, blocks):
    """(part logits, object logits with background, object-part logits with background) of one image."""
    text = embed_text(state, tokens, depths[1], heads[1])
    features = embed_image(state, images, depths[0], heads[0], blocks)
    x = 0
    for i, activation in enumerate(reversed(features)):
        x = x + linear(state, f"decoder.reduces.{i}", activation).expand(len(text), -1, -1)
        if i == 0:
            x = linear(state, "decoder.film_mul", text)[:, None] * x + linear(state, "decoder.film_add", text)[:, None]
        name = f"decoder.layers.{i}"
        x = norm(state, f"{name}.layer_norm1", x + attend(state, f"{name}.self_attn", x, 4))
        y = linear(state, f"{name}.mlp.fc2", linear(state, f"{name}.mlp.fc1", x).relu())
        x = norm(state, f"{name}.layer_norm2", x + y)
    x = x[:, 1:]  # without CLS
    side = math.isqrt(x.shape[1])
    to_map = lambda x: x.transpose(1, 2).unflatten(2, (side, side))  # noqa: E731
    logits = mask_head(state, "decoder.transposed_convolution", to_map(x))

    num_parts = len(order.parts)
    pairs = torch.cat([x[:num_parts][order.part_of], x[num_parts:][order.object_of]], -1)
    pairs = torch.cat([pairs, x[-1:].repeat(1, 1, 2)])
    # the object's text: its place among the objects, in the list of parts and objects
    words = torch.cat([torch.cat([text[order.object_of], text[order.part_of]], -1), text[-1:].repeat(1, 2)])
    words = linear(state, "decoder.reduce_cond_embed", words)[:, None]
    pairs = linear(state, "decoder.part_obj_mlp.0", pairs)
    pairs = linear(state, "decoder.cond_film_mul", words) * pairs + linear(state, "decoder.cond_film_add", words)
    return logits[:num_parts], logits[num_parts:], mask_head(state, "decoder.part_obj_with_cond_embed", to_map(pairs))


def published_classes(root, name: str) -> tuple[list[str], dict[str, str]]:
    data = yaml.safe_load((root / FOLDER / f"{name}.yaml").read_text())
    return [f"{owner}'s {part}" for owner, part in data["object_parts"]], data.get("prompt_names") or {}


@pytest.mark.parametrize("name", shipped_names())
def test_object_part_logits_with_the_authors_order_of_names(root, build_part_clipseg, outputs_of, name):
    model = build_part_clipseg(official_object_text_index=True).double().eval()
    classes, spelling = published_classes(root, name)
    order = AuthorsOrder(classes)
    clip = model.backbone.clip
    tokens = torch.zeros(len(order.prompts), 77, dtype=torch.long)
    for row, prompt in zip(tokens, order.prompts, strict=True):
        ids = [49406, *model.backbone.tokenizer.encode(spelling.get(prompt, prompt)), 49407]
        row[: len(ids)] = torch.tensor(ids)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        parts, objects, object_parts = authors_logits(
            export_weights(model, "part_clipseg"),
            (images - torch.from_numpy(mean)) / torch.from_numpy(std),
            tokens,
            order,
            depths=(len(clip.visual.transformer.resblocks), len(clip.transformer.resblocks)),
            heads=(clip.visual.transformer.resblocks[0].attn.num_heads, clip.transformer.resblocks[0].attn.num_heads),
            blocks=model.backbone.feature_blocks,
        )
        vocabulary = as_vocabulary(name)
        ours = outputs_of(model, images, vocabulary)
        model.official_object_text_index = False
        right = outputs_of(model, images, vocabulary)
    assert list(vocabulary.object_parts) == classes
    scale = object_parts.abs().max()
    assert (ours.object_part[0] - object_parts).abs().max() < 1e-6 * scale
    assert (right.object_part[0] - object_parts).abs().max() > 1e-2 * scale  # the slip is not hidden by the sizes
    part_rows = [order.parts.index(p) for p in vocabulary.parts]
    object_rows = [*(order.objects.index(o) for o in vocabulary.objects), -1]
    assert (ours.part[0] - parts[part_rows]).abs().max() < 1e-6 * scale
    assert (ours.object[0] - objects[object_rows]).abs().max() < 1e-6 * scale
