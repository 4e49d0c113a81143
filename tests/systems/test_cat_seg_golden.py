"""Numbers of the authors' CVPR 2024 network, kept here: the last CLIP block, the embedding, both aggregation layers.

Weights, inputs and every few cells of the outputs, out of the fixture that test_cat_seg_parity.py reads whole.
"""

from pathlib import Path

import pytest
import torch
from cat_seg_fixtures import clip_config
from safetensors.torch import load_file

from partseg.systems.cat_seg.aggregator import Aggregator, AggregatorShape
from partseg.systems.cat_seg.dense_clip import DenseClip
from partseg.systems.cat_seg.weights import CVPR24

NUMBERS = Path(__file__).parents[1] / "golden" / "cat_seg_cvpr24.safetensors"
SHAPE = {"hidden": 16, "text": 20, "appearance": 28, "decoder": (32, 16), "decoder_guidance": (10, 6)}


@pytest.fixture(scope="module")
def kept():
    """The authors' weights by name, and their numbers."""
    found = load_file(NUMBERS)
    weights = {name.removeprefix("weights/"): value for name, value in found.items() if name.startswith("weights/")}
    return weights, found


def fill(module, prefix, weights, *, rename=lambda name: name):
    """The weights that there are for the module, which our network holds as `prefix`."""
    state, used = module.state_dict(), set()
    for link in CVPR24.links([prefix + rename(name) for name in state]):
        if set(link.theirs) <= set(weights):
            ours = next(name for name in state if prefix + rename(name) == link.ours)
            state[ours].copy_(link.read(weights))
            used.update(link.theirs)
    return used


@torch.no_grad()
def test_aggregation_gives_the_authors_numbers(kept):
    weights, found = kept
    shape = AggregatorShape(prompts=1, padding=256, **SHAPE)
    dims = {"text_dim": 24, "appearance_dim": 24, "decoder_guidance_dims": (14, 10)}
    aggregator = Aggregator(shape, **dims, class_chunk=2, recompute=False)
    used = fill(aggregator, "aggregator.", weights)
    assert len(used) == 2 + 2 * 50
    cost, appearance = found["cost_volume"].transpose(1, 2), found["appearance"].permute(0, 2, 3, 1)
    volume = aggregator.embedding(cost)
    for i, layer in enumerate(aggregator.layers):
        volume = layer(volume, appearance, found["text"])
        ours = volume.permute(0, 4, 1, 2, 3)[..., ::4, ::4]
        ours = ours[:, :, [0, -1]] if i == 0 else ours
        torch.testing.assert_close(ours, found[f"layer{i}.out"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_last_block_gives_the_authors_cells(kept, tmp_path):
    weights, found = kept
    clip = {"vision_width": 36, "vision_layers": 2, "vision_heads": 3, "patch": 16, "native_grid": 4, "embed_dim": 24}
    text = {"text_width": 40, "text_layers": 1, "text_heads": 5}
    backbone = DenseClip(clip_config(tmp_path, {**clip, **text}), residual="cls", split_attention=True)
    used = fill(
        backbone,
        "backbone.",
        weights,
        rename=lambda name: name.replace("visual.transformer.resblocks.1.", "visual.transformer.resblocks.8."),
    )
    assert len(used) == 14 + 3
    visual = backbone.clip.visual
    cells = visual.ln_post(backbone._last_block(found["tokens"])) @ visual.proj
    torch.testing.assert_close(cells[:, 1:], found["cells"], atol=1e-5, rtol=1e-5)
