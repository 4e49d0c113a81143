"""Where weights come from: a file, what partseg ships, a hub repository or an open_clip tag; no code in them is run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import safetensors.torch
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor

from partseg.utils.archive import load_tensors, reason
from partseg.utils.files import sha256_of
from partseg.weights.layouts import WeightLayout
from partseg.weights.scripted import is_scripted, scripted_state

HUB_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
SHIPPED = "synthetic"
"""The tag of weights that partseg ships: towers that read the names of the synthetic data, and saw it drawn."""
_HUB_CONFIGS = ("config.json", "open_clip_config.json")
_WRAPPERS = ("module.", "model.")


@dataclass(frozen=True)
class Weights:
    """Tensors as stored, with wrappers around the names removed. `quick_gelu` is None if nothing tells it."""

    state: Mapping[str, Tensor]
    layout: WeightLayout
    path: Path
    quick_gelu: bool | None


def read_weights(
    source: str, *, layouts: Sequence[WeightLayout], clip_name: str | None = None, revision: str | None = None
) -> Weights:
    """Find and read `source`: a path, a tag of `clip_name` (open_clip's, or SHIPPED), or a hub name `owner/repository`.

    Raises FileNotFoundError if there is none, ValueError if the file is broken or of no known layout.
    """
    path, quick_gelu = _locate(source, clip_name=clip_name, revision=revision)
    state, scripted = _read(path)
    state = _unwrap(state, path, [prefix for layout in layouts for prefix in layout.prefixes])
    layout = _layout(state, path, layouts)
    if quick_gelu is None:
        quick_gelu = _activation(path, state, layout, scripted=scripted)
    return Weights(state=state, layout=layout, path=path, quick_gelu=quick_gelu)


def _locate(source: str, *, clip_name: str | None, revision: str | None) -> tuple[Path, bool | None]:
    if Path(source).is_file():
        return Path(source), None
    if source == SHIPPED and clip_name is not None:
        return _shipped(clip_name)
    tags = [] if clip_name is None else open_clip.list_pretrained_tags_by_model(clip_name)
    if clip_name is not None and open_clip.pretrained.is_pretrained_cfg(clip_name, source):
        config = open_clip.get_pretrained_cfg(clip_name, source)
        return Path(open_clip.download_pretrained(config)), bool(config.get("quick_gelu", False))
    other = open_clip.pretrained.list_pretrained_models_by_tag(source)
    if other and clip_name is not None:
        raise ValueError(
            f"open_clip has no weights {source!r} for {clip_name!r}: its tags are {tags}; {source!r} exists for {other}"
        )
    if is_hub_name(source):
        return _from_hub(source, revision), None
    raise FileNotFoundError(
        f"no weights {source!r}: it is not a file, not a hub name (owner/repository), "
        f"and not an open_clip tag of {clip_name!r} ({', '.join(tags) or 'it has none'})"
    )


def _shipped(clip_name: str) -> tuple[Path, bool]:
    """Weights of a tiny CLIP and its activation."""
    backbones = Path(str(resources.files("partseg.backbones")))
    path, config = backbones / "weights" / f"{clip_name}.npz", backbones / "configs" / f"{clip_name}.json"
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*.npz"))
        raise ValueError(f"partseg ships no {SHIPPED!r} weights for {clip_name!r}; it does for {', '.join(known)}")
    return path, bool(json.loads(config.read_text(encoding="utf-8"))["quick_gelu"])


def is_hub_name(source: str) -> bool:
    """Could this be `owner/repository`, and is no file or folder?"""
    file = Path(source).suffix in {".pth", ".pt", ".bin", ".safetensors"}
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not file and not Path(source).exists()


def cached(name: str, file: str, *, revision: str | None = None) -> Path | None:
    """A file of a hub repository if it was fetched before; nothing is asked of the network."""
    try:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def fetch(name: str, file: str, *, revision: str | None = None) -> Path | None:
    """A file of a hub repository, from the cache or the network; None where the repository has no such file.

    FileNotFoundError says what to do where the repository cannot be had.
    """
    if (found := cached(name, file, revision=revision)) is not None:
        return found
    try:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(_no_repository(name, revision, error)) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(_no_repository(name, revision, error)) from error


def _no_repository(name: str, revision: str | None, error: Exception) -> str:
    """Why a hub repository cannot be had, and what to do."""
    what = f"could not get the hub repository {name!r} (revision {revision or 'main'})"
    by_hand = "download a file yourself and give its path"
    if isinstance(error, GatedRepoError):
        return (
            f"{what}: it is gated. Ask for access on https://huggingface.co/{name}, then `hf auth login`; or {by_hand}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"{what}: there is none of this name, or it is private (`hf auth login`). Check the name, or {by_hand}"
    if isinstance(error, RevisionNotFoundError | HFValidationError):
        return f"{what}: {_first_line(error)}. Check the name and the revision, or {by_hand}"
    folder = f"weights/{name.split('/')[1]}"
    return (
        f"{what}: the hub cannot be reached ({type(error).__name__}: {_first_line(error)}). Where there is a network, "
        f"run `hf download {name} --local-dir {folder}`, copy that folder here, and give its path: "
        f"{folder}/{HUB_FILES[0]} (or {', '.join(HUB_FILES[1:])})"
    )


def _from_hub(name: str, revision: str | None) -> Path:
    """The weights file of a hub repository; what is in the cache is taken without asking, network or not."""
    for get in (cached, fetch):
        for file in HUB_FILES:
            path = get(name, file, revision=revision)
            if path is not None:
                for config in _HUB_CONFIGS:  # beside the weights, if there is one: it names the activation
                    get(name, config, revision=revision)
                return path
    raise FileNotFoundError(
        f"the hub repository {name!r} (revision {revision or 'main'}) has none of {list(HUB_FILES)}: "
        "download its weights and give their path"
    )


def _read(path: Path) -> tuple[Mapping[str, object], bool]:
    """The stored mapping, and whether it was a TorchScript archive (OpenAI's own files are)."""
    try:
        _check_digest(path)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path), False
        if path.suffix == ".npz":  # partseg's own: half precision, packed
            with np.load(path, allow_pickle=False) as stored:
                return {name: torch.from_numpy(stored[name]).float() for name in stored.files}, False
        if is_scripted(path):
            return scripted_state(path), True
        loaded = load_tensors(path)
    except Exception as error:  # a damaged or hostile file makes its reader raise whatever it happens to run into
        why = str(error) if type(error) is ValueError else reason(error)
        raise ValueError(
            f"{path} cannot be read as weights ({why}). "
            "It may be truncated or of another kind; download it again (its sha256 is on the page it came from)"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded, False


def _check_digest(path: Path) -> None:
    """ValueError where a .sha256 file lies beside the weights, as tools/convert_weights.py writes it, and differs.

    Nothing else tells a changed .safetensors. 600 MB take 0.3 s (one core of a server).
    """
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file() and sha256_of(path) not in beside.read_text(encoding="utf-8", errors="replace").lower().split():
        raise ValueError(f"its sha256 is not the one in {beside.name}")


def _first_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _unwrap(stored: Mapping[str, object], path: Path, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Tensors by name, out of `model` or `state_dict` entries and without names that wrappers put in front."""
    for key in ("model", "state_dict"):
        if isinstance(stored.get(key), Mapping):
            stored = stored[key]  # type: ignore[assignment]
    state = {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path} holds no tensors; its entries are {sorted(map(str, stored))[:10]}")
    odd = [n for n, t in state.items() if t.layout is not torch.strided or t.is_quantized or t.device.type != "cpu"]
    if odd:
        raise ValueError(f"{path} holds sparse, quantised or empty tensors: {odd[:3]}; write it again with plain ones")
    for wrapper in (*_WRAPPERS, *prefixes, *_WRAPPERS):
        # detectron2 checkpoints hold a few tensors beside the network (pixel_mean): those keep their names.
        if sum(name.startswith(wrapper) for name in state) > len(state) // 2:
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def _layout(state: Mapping[str, Tensor], path: Path, layouts: Sequence[WeightLayout]) -> WeightLayout:
    for layout in layouts:
        if layout.matches(state):
            return layout
    raise ValueError(
        f"{path} is of no layout that this model reads ({', '.join(layout.name for layout in layouts)}); "
        f"its first tensors are {list(state)[:4]}"
    )


def _activation(path: Path, state: Mapping[str, Tensor], layout: WeightLayout, *, scripted: bool) -> bool | None:
    """Whether the weights were trained with QuickGELU, from what is in or beside the file."""
    if "backbone.uses_quick_gelu" in state:
        return bool(state["backbone.uses_quick_gelu"])
    for name in _HUB_CONFIGS:
        beside = path.parent / name
        if beside.is_file():
            try:
                config = json.loads(beside.read_text(encoding="utf-8"))
                if "model_cfg" in config:
                    return bool(config["model_cfg"].get("quick_gelu", False))
                if "vision_config" in config:
                    return config["vision_config"].get("hidden_act", "quick_gelu") == "quick_gelu"
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{beside} is damaged ({error}); it tells the activation of {path.name}") from error
    return True if scripted else layout.quick_gelu
