"""The authors' PartCATSeg at a tiny size: our network of the same shape, with their weights."""

import json
from pathlib import Path

from cat_seg_fixtures import clip_config, whole_tokens
from safetensors.torch import load_file, save_file

from partseg.systems.cat_seg.dense_clip import DenseClip
from partseg.systems.cat_seg.vit_guidance import VitGuidance
from partseg.systems.part_cat_seg.aggregator import PartAggregatorShape
from partseg.systems.part_cat_seg.network import PartCatSeg, PartInference
from partseg.weights.load import load_weights

SHAPE = {"hidden": 16, "text": 20, "appearance": 28, "decoder": (32, 16), "decoder_guidance": (10, 6)}
OFFICIAL = PartInference(pad_to=32, probabilities=True, object_gate=False)
TRAINED = ("guidance.*", "aggregator.*")


def build(folder: Path, tmp_path: Path, **options) -> tuple[PartCatSeg, dict]:
    """Our network with the fixture's weights, and its meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    dino = meta["config"]["dinov2"]
    sizes = {key: dino[key] for key in ("embed_dim", "depth", "num_heads")}
    model = PartCatSeg(
        DenseClip(clip_config(tmp_path, meta["config"]["clip"])),
        guidance=VitGuidance("vit_small_patch14_dinov2", size=448, shape=sizes),
        aggregator=PartAggregatorShape(prompts=80, **SHAPE),
        trainable=TRAINED,
        **{"inference": OFFICIAL, **options},
    )
    path = tmp_path / "authors.safetensors"
    save_file(whole_tokens(load_file(folder / "state_dict.safetensors"), meta), path)
    report = load_weights(model, str(path))
    assert report.layout == "part_cat_seg" and not report.missing and not report.unexpected, report.table()
    return model, meta
