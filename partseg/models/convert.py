"""Public checkpoints into our models and back, with a report per module of what was loaded and what was not."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partseg.models.finetune import module_of
from partseg.models.keymaps import KNOWN_UNUSED, links
from partseg.models.sources import Weights, read_weights

logger = logging.getLogger(__name__)

IMAGE_POSITION = "backbone.clip.visual.positional_embedding"


@dataclass(frozen=True)
class LoadReport:
    """Names of our tensors (`unexpected`: of the file's) by what happened to them.

    `started` were not in the file and were copied from the decoder: the pair's FiLM and head, from CLIPSeg weights.
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


def load_weights(
    model: nn.Module,
    source: str,
    *,
    revision: str | None = None,
    require: Sequence[str] = ("backbone",),
    quick_gelu: bool | None = None,
) -> LoadReport:
    """Copy what `source` has into `model`: a file, `owner/repository` on the hub, or an open_clip tag.

    `require` are beginnings of our names ("decoder", "pair.head") of which at least one tensor must be loaded.
    `quick_gelu` says what a file was trained with where it cannot be told; a mismatch with the model is refused.
    Nothing is changed if an error is raised (ValueError, FileNotFoundError).
    """
    backbone = model.backbone
    weights = read_weights(source, clip_name=backbone.name, revision=revision)  # type: ignore[arg-type, union-attr]
    _check_activation(weights, quick_gelu, model_uses=backbone.quick_gelu, name=backbone.name)  # type: ignore
    own = {name: t for name, t in model.state_dict(keep_vars=True).items() if name != "backbone.uses_quick_gelu"}
    found = {link.ours: link for link in links(own, weights.layout) if set(link.theirs) <= set(weights.state)}
    idle = [prefix for prefix in require if not any(name.startswith(prefix) for name in found)]
    if idle:
        raise ValueError(
            f"{weights.path} ({weights.layout}) has no tensor for {idle}, which were required; "
            f"it has tensors for {sorted({module_of(name) for name in found}) or 'nothing of this model'}"
        )
    values = {name: link.read(weights.state) for name, link in found.items()}
    resized = _resize_position(values, own)
    _check_shapes(values, own, weights)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    started = _start_pair(model, found)
    used = {theirs for link in found.values() for theirs in link.theirs} | {"backbone.uses_quick_gelu"}
    report = LoadReport(
        source=str(weights.path),
        layout=weights.layout,
        loaded=tuple(n for n in values if n not in resized),
        missing=tuple(n for n in own if n not in values and n not in started),
        unexpected=tuple(n for n in weights.state if n not in used and not KNOWN_UNUSED.fullmatch(n)),
        resized=resized,
        started=started,
    )
    logger.info("weights\n%s", report.table())
    return report


def load_clip(backbone: nn.Module, source: str, *, quick_gelu: bool | None = None) -> LoadReport:
    """`load_weights` for a backbone alone: CLIP's towers out of any layout."""
    holder = nn.Module()
    holder.backbone = backbone
    return load_weights(holder, source, quick_gelu=quick_gelu)


def to_hf_clipseg(model: nn.Module) -> dict[str, Tensor]:
    """State of transformers' CLIPSegForImageSegmentation with our weights; it has no adapter and no background."""
    return _export(model, "hf_clipseg")


def to_part_clipseg(model: nn.Module) -> dict[str, Tensor]:
    """State of the authors' PartCLIPSeg (the prefix and the `model` entry of their files apart).

    Includes the index buffers and the two unused layers that their files contain, the latter as zeros.
    """
    state = _export(model, "part_clipseg")
    text_dim = state["non_object_embedding"].shape[1]
    for tower in ("text_model", "vision_model"):
        count = len(state[f"clip.{tower}.embeddings.position_embedding.weight"])
        state[f"clip.{tower}.embeddings.position_ids"] = torch.arange(count).unsqueeze(0)
    state["text_adapter.fc.0.weight"] = torch.zeros(text_dim // 4, text_dim)
    state["text_adapter.fc.2.weight"] = torch.zeros(text_dim, text_dim // 4)
    state["tunable_linear.weight"] = torch.zeros(1000, text_dim)
    return state


def to_open_clip(model: nn.Module) -> dict[str, Tensor]:
    """State of the open_clip CLIP inside the model."""
    return _export(model, "open_clip")


def _export(model: nn.Module, layout: str) -> dict[str, Tensor]:
    own = model.state_dict()
    state: dict[str, Tensor] = {}
    for link in links(own, layout):  # type: ignore[arg-type]
        state.update(link.write(own[link.ours]))
    return state


def _check_activation(weights: Weights, stated: bool | None, *, model_uses: bool, name: str) -> None:
    trained = weights.quick_gelu if stated is None else stated
    if stated is not None and weights.quick_gelu is not None and stated != weights.quick_gelu:
        raise ValueError(f"quick_gelu={stated} was given, but {weights.path} was trained with quick_gelu={not stated}")
    if trained is None:
        logger.warning(
            "%s does not say whether it was trained with QuickGELU; %s %s. If outputs look wrong, use the other one",
            weights.path,
            name,
            "uses it" if model_uses else "uses plain GELU",
        )
    elif trained != model_uses:
        word = {True: "QuickGELU", False: "plain GELU"}
        hint = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
        raise ValueError(
            f"{weights.path} was trained with {word[trained]}, but the backbone {name!r} uses {word[model_uses]}: "
            f"outputs would be wrong without any error. Set model.backbone.name to {hint!r}"
        )


def _resize_position(values: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[str, ...]:
    """Resample the image position embedding if the file was made for another input size."""
    value = values.get(IMAGE_POSITION)
    if value is None or value.shape == own[IMAGE_POSITION].shape or value.shape[1:] != own[IMAGE_POSITION].shape[1:]:
        return ()
    there, here = (math.isqrt(len(x) - 1) for x in (value, own[IMAGE_POSITION]))
    if there * there != len(value) - 1 or here * here != len(own[IMAGE_POSITION]) - 1:
        return ()
    cells = value[1:].float().view(1, there, there, -1).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=(here, here), mode="bicubic", align_corners=False)
    values[IMAGE_POSITION] = torch.cat([value[:1].float(), cells.flatten(2)[0].t()])
    return (IMAGE_POSITION,)


def _check_shapes(values: dict[str, Tensor], own: dict[str, Tensor], weights: Weights) -> None:
    wrong = [n for n, v in values.items() if v.shape != own[n].shape]
    if wrong:
        shown = "; ".join(f"{n}: file {list(values[n].shape)}, model {list(own[n].shape)}" for n in wrong[:3])
        raise ValueError(
            f"{weights.path} is of another size than the model ({len(wrong)} tensors differ): {shown}. "
            "Check model.backbone.name and model.decoder"
        )


def _start_pair(model: nn.Module, found: Collection[str]) -> tuple[str, ...]:
    """Copy the decoder's FiLM and head into the pair's when the file has the former and not the latter."""
    pair = tuple(n for n in model.state_dict() if n.startswith(("pair.film.", "pair.head.")))
    if not pair or any(n in found for n in pair) or not any(n.startswith("decoder.head.") for n in found):
        return ()
    model.start_pair_from_decoder()  # type: ignore[operator]
    return pair
