"""Public checkpoints into our systems and back, with a report per module of what was loaded and what was not."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from partseg.weights.freeze import module_of
from partseg.weights.layouts import Link, OwnLayout, WeightLayout
from partseg.weights.sources import Weights, read_weights

logger = logging.getLogger(__name__)

ACTIVATION = "backbone.uses_quick_gelu"
"""A buffer of ours that says with which activation CLIP towers were trained; it is compared, never loaded."""


@dataclass(frozen=True)
class LoadReport:
    """Names of our tensors (`unexpected`: of the file's) by what happened to them.

    `started` were not in the file and were made from others that were.
    """

    source: str
    layout: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resized: tuple[str, ...]
    started: tuple[str, ...] = ()

    def table(self) -> str:
        """One line per module with the four counts; missing and unexpected names follow."""
        columns = ("loaded", "missing", "resized", "started", "unexpected")
        counts: dict[str, list[int]] = {}
        for i, column in enumerate(columns):
            for name in getattr(self, column):
                counts.setdefault(module_of(name), [0] * len(columns))[i] += 1
        width = max(map(len, (*counts, "module")))
        lines = [f"{self.source} ({self.layout})", f"{'module':<{width}}  " + "  ".join(f"{c:>10}" for c in columns)]
        lines += [f"{name:<{width}}  " + "  ".join(f"{c:>10}" for c in row) for name, row in sorted(counts.items())]
        lines += [f"{kind}: {', '.join(names)}" for kind in ("missing", "unexpected") if (names := getattr(self, kind))]
        return "\n".join(lines)


def layouts_of(model: nn.Module) -> tuple[WeightLayout, ...]:
    """What files a system reads: its own families, and ours."""
    return (OwnLayout.of(model), *model.weight_layouts)  # type: ignore[misc]


def load_weights(
    model: nn.Module,
    source: str,
    *,
    revision: str | None = None,
    require: Sequence[str] | None = None,
    quick_gelu: bool | None = None,
) -> LoadReport:
    """Copy what `source` has into `model`: a file, `owner/repository` on the hub, or an open_clip tag.

    `require` are beginnings of our names ("decoder", "pair.head") of which at least one tensor must be loaded; None:
    what its layout holds.
    `quick_gelu` says what a file was trained with where it cannot be told; a mismatch with the model is refused.
    Nothing is changed if an error is raised (ValueError, FileNotFoundError).
    """
    clip_name = next((str(part.name) for part in model.children() if hasattr(part, "encode_tokens")), None)
    weights = read_weights(source, layouts=layouts_of(model), clip_name=clip_name, revision=revision)
    own = {name: t for name, t in model.state_dict(keep_vars=True).items() if name != ACTIVATION}
    found = {link.ours: link for link in weights.layout.links(own) if set(link.theirs) <= set(weights.state)}
    if any(name.startswith("backbone.") for name in found):
        _check_activation(model, weights, quick_gelu)
    wanted = weights.layout.holds if require is None else require
    idle = [prefix for prefix in wanted if not any(name.startswith(prefix) for name in found)]
    if idle:
        raise ValueError(
            f"{weights.path} ({weights.layout.name}) has no tensor for {idle}, which were required; "
            f"it has tensors for {sorted({module_of(name) for name in found}) or 'nothing of this model'}"
        )
    values = {name: link.read(weights.state) for name, link in found.items()}
    resized = _fit(values, own, found)
    _check_shapes(values, own, weights)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    started = weights.layout.start(model, found)
    used = {theirs for link in found.values() for theirs in link.theirs} | {ACTIVATION}
    report = LoadReport(
        source=str(weights.path),
        layout=weights.layout.name,
        loaded=tuple(n for n in values if n not in resized),
        missing=tuple(n for n in own if n not in values and n not in started),
        unexpected=tuple(n for n in weights.state if n not in used and not re.fullmatch(weights.layout.unused, n)),
        resized=resized,
        started=started,
    )
    logger.info("weights\n%s", report.table())
    return report


def export_weights(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """The model's weights under the names of one of its layouts; ValueError lists the layouts it has."""
    known = {each.name: each for each in layouts_of(model)}
    if layout not in known:
        raise ValueError(f"{type(model).__name__} writes no weights as {layout!r}; it has {sorted(known)}")
    own = model.state_dict()
    state: dict[str, Tensor] = {}
    for link in known[layout].links(own):
        state.update(link.write(own[link.ours], state))
    return known[layout].complete(model, state)


def _check_activation(model: nn.Module, weights: Weights, stated: bool | None) -> None:
    backbone = getattr(model, "backbone", None)
    model_uses = getattr(backbone, "quick_gelu", None)
    if model_uses is None:
        return
    trained = weights.quick_gelu if stated is None else stated
    if stated is not None and weights.quick_gelu is not None and stated != weights.quick_gelu:
        raise ValueError(f"quick_gelu={stated} was given, but {weights.path} was trained with quick_gelu={not stated}")
    name = backbone.name  # type: ignore[union-attr]
    if trained is None:
        logger.warning(
            "%s does not say whether it was trained with QuickGELU; %s %s. If outputs look wrong, use the other one",
            weights.path,
            name,
            "uses it" if model_uses else "uses plain GELU",
        )
    elif trained != model_uses:
        word = {True: "QuickGELU", False: "plain GELU"}
        hint = f"{name}-quickgelu" if trained else str(name).removesuffix("-quickgelu")
        raise ValueError(
            f"{weights.path} was trained with {word[trained]}, but the backbone {name!r} uses {word[model_uses]}: "
            f"outputs would be wrong without any error. Set model.backbone.name to {hint!r}"
        )


def _fit(values: dict[str, Tensor], own: dict[str, Tensor], found: dict[str, Link]) -> tuple[str, ...]:
    """Let links resample tensors that were made for another input size; their names."""
    resized = []
    for name, value in values.items():
        fit = found[name].fit
        if fit is not None and value.shape != own[name].shape and (fitted := fit(value, own[name].shape)) is not None:
            values[name] = fitted
            resized.append(name)
    return tuple(resized)


def _check_shapes(values: dict[str, Tensor], own: dict[str, Tensor], weights: Weights) -> None:
    wrong = [n for n, v in values.items() if v.shape != own[n].shape]
    if wrong:
        shown = "; ".join(f"{n}: file {list(values[n].shape)}, model {list(own[n].shape)}" for n in wrong[:3])
        raise ValueError(
            f"{weights.path} is of another size than the model ({len(wrong)} tensors differ): {shown}. "
            "Check the sizes in the model's config"
        )
