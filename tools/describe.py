"""Parameters of a model per module, and the FLOPs and activation memory of a forward pass as the vocabulary grows.

python tools/describe.py model=part_clipseg
python tools/describe.py model=part_clipseg batch_size=8 classes=50,116,234,500,1000
python tools/describe.py model=clipseg vocabulary=ade20k_part_234

Needs neither weights nor data, and no memory to speak of: shapes are followed, nothing is computed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from partseg.engine.benchmark.cost import Cost, forward_cost, made_up_vocabulary
from partseg.engine.build import HasUnused
from partseg.utils.arguments import run
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.words import as_vocabulary
from partseg.weights.freeze import trainable_table


@dataclass(frozen=True)
class Options:
    """`model` is a file of configs/model/, `vocabulary` a shipped name or a YAML file, `classes` made-up sizes.

    `save_memory` follows the system's own advice for a GPU that is out of memory.
    """

    model: str
    vocabulary: str = "pascal_part_116"
    classes: str = ""
    batch_size: int = 1
    image_size: int | None = None
    save_memory: bool = False


def main(options: Options) -> int:
    """Print both tables."""
    node = compose("train", [f"model={options.model}"]).model
    with torch.device("meta"):
        model = instantiate(node)
    if options.save_memory:
        node = compose("train", [f"model={options.model}", *getattr(model, "saves_memory", ())]).model
    print(trainable_table(model))
    never_read = model.unused_parameters() if isinstance(model, HasUnused) else frozenset()
    unused = sum(p.numel() for name, p in model.named_parameters() if name in never_read)
    print(f"of these, {unused:,} reach no output\n")

    full = as_vocabulary(options.vocabulary)
    vocabularies = [full.seen_subset(), *([full] if not full.seen.all() else [])]
    vocabularies += [made_up_vocabulary(int(count)) for count in options.classes.split(",") if count.strip()]
    print(row("vocabulary", "classes", "text GFLOP", "GFLOP/image", "text MiB", "MiB/image", "MiB/batch"))
    for vocabulary in vocabularies:
        try:
            cost = forward_cost(lambda: instantiate(node), vocabulary, image_size=options.image_size)
        except (ValueError, RuntimeError) as error:  # phrases; proposals, whose number depends on the picture
            print(
                f"not counted for this system, whose work depends on what it is shown ({type(error).__name__}: {error})"
            )
            return 0
        print(describe(cost, options.batch_size))
    print(
        "forward only (training is about three times as much); MiB is what backward needs in fp32, for a batch of "
        f"{options.batch_size}, without logits, weights, gradients and optimiser state"
    )
    return 0


def describe(cost: Cost, batch_size: int) -> str:
    """One line of the second table."""
    flops = (f"{count / 1e9:.1f}" for count in (cost.text_flops, cost.image_flops))
    sizes = (cost.text_bytes, cost.image_bytes, cost.text_bytes + batch_size * cost.image_bytes)
    return row(cost.vocabulary, str(cost.num_classes), *flops, *(f"{size / 2**20:.0f}" for size in sizes))


def row(*cells: str) -> str:
    """Cells under each other: names to the left, numbers to the right."""
    return f"{cells[0]:<24}" + "".join(f"{cell:>{max(13, len(cell) + 2)}}" for cell in cells[1:])


if __name__ == "__main__":
    sys.exit(run(main, Options, __doc__))
