"""Random weights in the public CLIPSeg format, to try every step of a real run without the trained ones.

python tools/random_weights.py output=weights/random.safetensors
python tools/train_net.py experiment=part_clipseg_pascal_part_116 init_from=weights/random.safetensors ...

The file has the names, shapes and size of `CIDAS/clipseg-rd64-refined` and is read by the same loader. It knows
nothing: scores of a run that starts from it say that the code works and nothing else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from partseg.utils.arguments import run
from partseg.utils.config import compose, instantiate
from partseg.utils.files import write_atomic
from partseg.weights.load import export_weights


@dataclass(frozen=True)
class Options:
    """`model` is a file of configs/model/; `position` is the position embedding's size relative to the patches'.

    `prior` is the probability that masks start with. Prompts start apart (`spread_text_tower`).
    """

    output: Path
    model: str = "part_clipseg"
    seed: int = 0
    position: float = 1.0
    prior: float = 0.01


def main(options: Options) -> int:
    """Build, export, write."""
    if options.output.suffix != ".safetensors":
        raise ValueError(f"output={options.output} must end in .safetensors")
    torch.manual_seed(options.seed)
    start = ["model.backbone.spread_text=true", f"model.decoder.mask_prior={options.prior}"]
    model = instantiate(compose("train", [f"model={options.model}", *start]).model)
    visual = model.backbone.clip.visual
    # open_clip starts positions at a few percent of a patch's size, so a random tower hardly knows where a patch is.
    # A patch of independent unit pixels has the variance of one filter's squared norm.
    patch = visual.conv1.weight.detach().flatten(1).square().sum(1).mean().sqrt()
    position = visual.positional_embedding
    with torch.no_grad():
        position.mul_(options.position * patch / position.std())
    data = safetensors.torch.save(export_weights(model, "hf_clipseg"), metadata={"format": "pt"})
    write_atomic(options.output, data)
    print(f"wrote {options.output} ({len(data):,} bytes): random weights, seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, Options, __doc__))
