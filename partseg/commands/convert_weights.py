"""Public weights into one file of ours, with its sha256 beside it, so that later runs need neither hub nor key maps.

    partseg convert source=CIDAS/clipseg-rd64-refined model=part_clipseg output=weights/start.safetensors
    partseg convert source=partclipseg.pth model=part_clipseg output=weights/authors.safetensors

`source` is a file, a hub name or an open_clip tag (which needs model=). Use the result with
init_from=weights/start.safetensors.
A file trained with plain GELU or QuickGELU that does not say so: quick_gelu=true or false.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from partseg.engine.zoo import CONVERTED, identify, model_node
from partseg.utils.arguments import run
from partseg.utils.config import instantiate
from partseg.utils.files import sha256_of, write_atomic
from partseg.weights.freeze import module_of
from partseg.weights.load import load_weights


@dataclass(frozen=True)
class Options:
    """`model` is a file of configs/model/, by default the zoo's for these tensors.

    `require` are name beginnings that must receive tensors, comma-separated.
    """

    source: str
    output: Path
    model: str | None = None
    revision: str | None = None
    require: str = "backbone"
    quick_gelu: bool | None = None


def main(options: Options) -> int:
    """Load, report, write."""
    if options.output.suffix != ".safetensors":
        raise ValueError(f"output={options.output} must end in .safetensors")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    choice = options.model or identify(options.source)[1]
    model = instantiate(model_node(choice, {}))
    report = load_weights(
        model,
        options.source,
        revision=options.revision,
        require=tuple(options.require.split(",")),
        quick_gelu=options.quick_gelu,
    )
    print(report.table())
    untrained = ", ".join(sorted({module_of(name) for name in report.missing}))
    note = {"format": CONVERTED, "model": choice, "source": options.source, "layout": report.layout}
    note |= {"untrained": untrained} if untrained else {}
    data = safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()}, metadata=note)
    write_atomic(options.output, data)
    digest = sha256_of(data)
    write_atomic(
        options.output.with_name(options.output.name + ".sha256"), f"{digest}  {options.output.name}\n".encode()
    )
    print(f"wrote {options.output} ({len(data):,} bytes, sha256 {digest})")
    return 0


def command() -> int:
    """The command line."""
    return run(main, Options, __doc__)
