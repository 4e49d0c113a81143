"""A finished model from whatever a user has: a run, a checkpoint, a folder of ours, a public file, a hub name.

A folder of ours holds model.safetensors, partseg.yaml (network, words, origin) and a card; `push` puts it on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from torch import nn

from partseg.engine import checkpoint as checkpoints
from partseg.engine import zoo
from partseg.utils import targets
from partseg.utils.errors import ForeignFileError
from partseg.utils.files import write_atomic
from partseg.vocabulary.names import Vocabulary
from partseg.weights.sources import HUB_FILES, cached, fetch, is_hub_name

FORMAT = "partseg-model-1"
SETTINGS, WEIGHTS, CARD = "partseg.yaml", "model.safetensors", "README.md"
MOST_SETTINGS = 1_000_000
"""Bytes of partseg.yaml that are read: a vocabulary of a thousand object-parts takes 40,000."""

DRAWN = "trained on drawn pictures: what it says about photographs means nothing"


@dataclass(frozen=True)
class About:
    """What a model is, where it comes from and what it was trained on; `synthetic`: on drawings, not photographs."""

    system: str
    source: str
    trained_on: str
    licence: str = "unknown"
    synthetic: bool = False

    @property
    def caution(self) -> str:
        """What every prediction, legend and page must say; empty for models that were trained on photographs."""
        return DRAWN if self.synthetic else ""

    def __str__(self) -> str:
        return f"{self.system} ({self.source}), trained on {self.trained_on}, licence: {self.licence}" + (
            f"; {self.caution}" if self.synthetic else ""
        )


@dataclass(frozen=True)
class Pretrained:
    """A model with its words (public CLIPSeg has none of its own), the config node that builds it, and its origin."""

    model: nn.Module
    vocabulary: Vocabulary | None
    node: Mapping[str, Any]
    about: About


def load(source: str | Path, *, model: str | None = None, plugins: Sequence[str] = ()) -> Pretrained:
    """The model in evaluation mode on the CPU; `model` chooses the system for a public file that several read.

    Folders and checkpoints of others build only what `checkpoint.load_model` allows. FileNotFoundError lists what
    `source` may be.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (path / SETTINGS).is_file():
        return _folder(path / SETTINGS, path / WEIGHTS, str(source), plugins)
    if path.exists() and path.suffix != ".safetensors":
        try:
            return _checkpoint(path, plugins)
        except ForeignFileError:
            return _public(str(path), model)
    if path.exists():
        return _public(str(path), model)
    if not is_hub_name(str(source)):
        raise FileNotFoundError(
            f"no checkpoint at {source}: give a .pt file, a run directory, a folder that Segmenter.save wrote, a "
            f"public file, or a hub name such as {', '.join(zoo.names())}"
        )
    if str(source) not in zoo.names() and not _is_public_in_cache(str(source)):
        settings, weights = (fetch(str(source), file) for file in (SETTINGS, WEIGHTS))
        if settings is not None and weights is not None:
            return _folder(settings, weights, str(source), plugins)
    return _public(str(source), model)


def save(pretrained: Pretrained, folder: str | Path) -> Path:
    """Write the folder; `load`, `partseg.load` and ckpt= take it. Weights come before the file that names them."""
    folder = Path(folder)
    vocabulary = pretrained.vocabulary
    settings = {
        "format": FORMAT,
        "model": dict(pretrained.node),
        "vocabulary": None if vocabulary is None else vocabulary.to_dict(),
        "about": asdict(pretrained.about),
    }
    state = {name: tensor.contiguous() for name, tensor in pretrained.model.state_dict().items()}
    write_atomic(folder / WEIGHTS, safetensors.torch.save(state, metadata={"format": FORMAT}))
    write_atomic(folder / CARD, card(pretrained).encode())
    write_atomic(folder / SETTINGS, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
    return folder


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a saved folder to the hub, making the repository where it is not there; returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="model of partseg")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise OSError(
            f"could not push to the hub repository {repository!r}: {str(error).strip().splitlines()[0]}. Log in with "
            f"`hf auth login` and check the name; the model lies in {folder} and can be uploaded by hand"
        ) from error
    return address


def card(pretrained: Pretrained) -> str:
    """The model card: what it is, what it was trained on, how to use it. It states no score."""
    about, words = pretrained.about, pretrained.vocabulary
    known = "none of its own: give yours" if words is None else f"{words.name}, {len(words)} object-parts"
    lines = [
        "---",
        "library_name: partseg",
        "pipeline_tag: image-segmentation",
        "tags: [part-segmentation, open-vocabulary]",
        "---",
        f"# {about.system}",
        "",
        *([f"**{about.caution[0].upper()}{about.caution[1:]}.**", ""] if about.synthetic else []),
        f"- from: {about.source}",
        f"- trained on: {about.trained_on}",
        f"- licence of the weights: {about.licence}",
        f"- vocabulary: {known}; any other words can be given",
        "",
        "```python",
        "import partseg",
        "",
        'segmenter = partseg.load("<this folder or repository>")',
        'segmenter.predict("photo.jpg", {"dog": ["head", "leg", "tail"]}).save("out")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _is_public_in_cache(name: str) -> bool:
    return cached(name, SETTINGS) is None and any(cached(name, file) is not None for file in HUB_FILES)


def _public(source: str, model: str | None) -> Pretrained:
    found = zoo.open_public(source, model=model)
    about = About(found.public.title, source, found.public.trained_on, found.public.licence)
    return Pretrained(found.model.eval(), None, found.node, about)


def _checkpoint(path: Path, plugins: Sequence[str]) -> Pretrained:
    state = checkpoints.load(path)
    model, vocabulary = checkpoints.built(state, path=path, plugins=plugins)
    dataset = state["config"].get("dataset")
    name = str(dataset.get("name") or dataset.get("_target_", "")) if isinstance(dataset, Mapping) else ""
    about = About(
        system=type(model).__name__,
        source=f"{path}, iteration {state['iteration']}",
        trained_on=f"{name.rpartition('.')[2] or 'an unknown data set'} ({vocabulary.name})",
        synthetic=_is_synthetic(state),
    )
    return Pretrained(model, vocabulary, state["config"]["model"], about)


def _is_synthetic(state: Mapping[str, Any]) -> bool:
    """Was it trained on drawings? Files of before 2026-12 do not say; the toy data set has always had its name."""
    dataset = state["config"].get("dataset")
    name = dataset.get("name") if isinstance(dataset, Mapping) else None
    return bool(state.get("synthetic")) or str(name).startswith("toy_")


def _folder(settings: Path, weights: Path, source: str, plugins: Sequence[str]) -> Pretrained:
    try:
        if settings.stat().st_size > MOST_SETTINGS:
            raise ValueError(f"it has more than {MOST_SETTINGS:,} bytes")
        content = yaml.safe_load(settings.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        targets.check_plain(content, what=SETTINGS)
        state = {"model": safetensors.torch.load_file(weights), "config": {"model": content["model"]}}
        words = content["vocabulary"]
        # a model without words of its own is built with some that nothing reads
        model, vocabulary = checkpoints.built(
            {**state, "vocabulary": words or {**_NO_WORDS}}, path=settings, plugins=plugins
        )
        about = About(**{**content["about"], "source": source})
    except (ValueError, KeyError, TypeError, OSError, yaml.YAMLError, RecursionError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ValueError(f"{source} is not a whole model of partseg: {' '.join(str(text).split())}") from error
    return Pretrained(model, vocabulary if words else None, content["model"], about)


_NO_WORDS = Vocabulary((("object", "part"),)).to_dict()
