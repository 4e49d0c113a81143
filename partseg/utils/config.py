"""From YAML files and `key=value` overrides to objects: compose, check, instantiate, save. No global Hydra state stays.

A config is read in the tools and turned into objects there; no class of partseg ever sees one.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from partseg.utils import experiments, settings, targets
from partseg.utils.places import config_dir, config_dirs
from partseg.utils.run_names import run_name


def search_path() -> list[str]:
    """The override that lets Hydra find the user's files."""
    return [f"hydra.searchpath=['file://{folder}']" for folder in config_dirs()[1:]]


def compose(config_name: str = "train", overrides: Sequence[str] = ()) -> DictConfig:
    """The config that `tools/*.py` would get for these overrides: struct mode, everything checked, `name` filled in.

    ValueError for a key, group or choice that does not exist (the message names the nearest ones) and for a value that
    partseg/utils/settings.py does not allow.
    """
    overrides = spelled_out(config_name, overrides)
    try:
        config = _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error, config_name, overrides)) from error
    return finish(config, overrides)


def instantiate(node: Any, **kwargs: Any) -> Any:
    """Build the object(s) of a config node; `kwargs` join the call as they are and win over the node's own entries.

    Containers arrive as plain dict and list. Errors of the built class (ValueError, KeyError, OSError) are raised as
    they are. ValueError for targets that are not allowed and arguments that do not exist or are still `???`. A node
    that came out of a file goes through `stored` first.
    """
    plugins = _plugins(node)
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else copy.copy(node)
    plain = renamed(plain)
    if kwargs:
        plain = {key: value for key, value in plain.items() if key not in kwargs}
    key = (node._get_full_key(None) if OmegaConf.is_config(node) else "") or ""
    _check_resolved(plain, key)
    targets.check_typed(plain, key=key, plugins=plugins)
    _bind(plain, key, plugins)
    missing = [name for name, value in _leaves(plain, key) if value == "???"]
    if missing:
        raise ValueError(f"config keys {missing} have no value yet: give them on the command line or in the experiment")
    try:
        if not kwargs:
            return hydra.utils.instantiate(plain, _convert_="all")
        # objects never pass through OmegaConf, which would copy them and take dataclasses apart
        call = hydra.utils.instantiate({**plain, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, (ValueError, KeyError, OSError)):
            raise error.__cause__ from error
        raise ValueError(f"cannot build from the config: {error}") from error
    return partial(call, **kwargs) if plain.get("_partial_") else call(**kwargs)


def stored(node: Any, *, group: str, plugins: Sequence[str] = ()) -> DictConfig:
    """A node of a checkpoint's or results.json's config, checked, for `instantiate`.

    Whoever made the file wrote it, so it may only name what the YAML files of configs/<group>/ name, and what lies in
    `plugins`: modules that the user lists, never the file. ValueError for everything else, before anything is imported.
    """
    plugins = _importable(targets.plugin_names(plugins))
    targets.check_plain(node, what=group)
    node = renamed(node)
    # read as text: composing them would already resolve and look things up
    files = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for folder in config_dirs()
        for path in (folder / group).glob("*.yaml")
    ]
    shipped = {found["_target_"] for content in files for _, found in targets.targets(content)}
    targets.check_stored(node, group=group, shipped=shipped, plugins=plugins)
    return OmegaConf.create({"plugins": list(plugins), group: node})[group]


def renamed(node: Any) -> Any:
    """A copy of a plain node in which targets have today's names, and no arguments that they no longer take."""
    if isinstance(node, Mapping):
        moved, dropped = _moved()
        entries = {key: renamed(value) for key, value in node.items()}
        if "_target_" in entries:
            target = entries["_target_"] = moved.get(str(entries["_target_"]), entries["_target_"])
            entries = {key: value for key, value in entries.items() if key not in dropped.get(str(target), ())}
        return entries
    return [renamed(each) for each in node] if isinstance(node, list | tuple) else node


@cache
def _moved() -> tuple[dict[str, str], dict[str, list[str]]]:
    content = yaml.safe_load((Path(__file__).parents[1] / "systems" / "moved.yaml").read_text(encoding="utf-8"))
    return content["targets"], content["dropped"]


def check_targets(config: Any) -> None:
    """ValueError if any `_target_` is not one that a user may type (`targets.check_typed`); nothing is imported."""
    targets.check_typed(_plain(config), plugins=_plugins(config))


def bind(config: Any) -> None:
    """ValueError if any `_target_` cannot be imported or takes no argument of the name that the config gives it."""
    _bind(_plain(config), "", _plugins(config))


def save(config: DictConfig, path: str | Path) -> None:
    """Write the resolved config as YAML, whole or not at all."""
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    part.write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    part.replace(path)


def spelled_out(config_name: str, overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra needs them.

    `eval_dataset=x` chooses a file for another key, which as it stands would be a string. `recipe=official` is that of
    the system that the other overrides choose. Where the data set that is watched is the one that is trained on,
    `dataset.root=x` holds for both.
    """
    spelled = [f"dataset@{o}" if o.startswith("eval_dataset=") else o for o in overrides]
    both = [o for o in spelled if o.lstrip("+").startswith("dataset.")]
    if "recipe=official" not in spelled and not both:
        return spelled
    others = jobs([o for o in spelled if o != "recipe=official" and not o.startswith("-")], multirun=True)[0]
    try:
        chosen = _compose(config_name, others, hydra=True).hydra.runtime.choices
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error, config_name, others)) from error
    given = {o.lstrip("+").partition("=")[0] for o in spelled}
    watched = [o.replace("dataset.", "eval_dataset.", 1) for o in both]
    if chosen["dataset"] == chosen["dataset@eval_dataset"]:
        spelled += [o for o in watched if o.lstrip("+").partition("=")[0] not in given]
    return [
        f"recipe={experiments.official('official', chosen['model'])}" if o == "recipe=official" else o for o in spelled
    ]


def _compose(config_name: str, overrides: Sequence[str], *, hydra: bool = False) -> DictConfig:
    experiments.register(config_dirs())
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), job_name=config_name, version_base="1.3"):
            overrides = [*overrides, *search_path()]
            return hydra_compose(config_name, overrides=overrides, return_hydra_config=hydra)
    finally:
        GlobalHydra.instance().hydra = previous


def finish(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Check what Hydra composed (ValueError), fill in `name` and allow no new keys from now on."""
    check_targets(config)
    if "name" in config and config.name is None:
        chosen = [o.split("=", 1)[1] for o in overrides if o.startswith(("experiment=", "+experiment="))]
        config.name = run_name(Path(chosen[-1]).name if chosen else "train", overrides)
    _check_settings(config)
    OmegaConf.set_struct(config, True)
    return config


def _check_settings(config: DictConfig) -> None:
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"config key {error.full_key!r} has no value: {str(error).splitlines()[0]}") from error
    nodes = {*_groups(), *(key.split(".")[0] for key, _ in targets.targets(values))}
    unknown = [key for key in settings.without_rule(values) if key not in nodes]
    if unknown:
        known = [key for key, _ in targets.walk(values) if not key.startswith(unknown[0])]
        raise ValueError(f"there is no config key {unknown[0]!r}{_nearest(unknown[0], known)}")
    if problem := settings.problem(values):
        raise ValueError(problem)


def jobs(overrides: Sequence[str], *, multirun: bool) -> list[list[str]]:
    """Overrides of every job: `-m seed=1,2` is `seed=1` and `seed=2`. Hydra's own are left out."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides=list(overrides))
        choices = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            if multirun and o.is_sweep_override()
            else [str(o.input_line)]
            for o in parsed
            if not o.get_key_element().startswith(("hydra", "+hydra"))
        ]
    except HydraException as error:
        raise ValueError(f"cannot read the overrides {list(overrides)}: {error}") from error
    return [list(job) for job in product(*choices)]


def _explain(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """What went wrong in the user's words, with the nearest keys, groups or choices."""
    text = str(error).split("\nSearch path")[0]
    choice = re.search(r"Could not find '(?:([^']*)/)?([^'/]+)'", text)
    if choice:
        group, wrong = choice.group(1) or "", choice.group(2)
        known = sorted(experiments.stems(config_dirs(), group))
        if group == experiments.GROUP:
            near = _nearest(wrong, experiments.choices(config_dirs()))
            sets = ", ".join(sorted(experiments.stems(config_dirs(), "dataset")))
            return f"there is no experiment {wrong!r}{near}; there are {', '.join(known)}, and <system>_<one of {sets}>"
        what = f"config group {group!r}" if group else "top-level config"
        return f"{what} has no {wrong!r}{_nearest(wrong, known)}; it has: {', '.join(known)}"
    key = re.search(r"Could not (?:override|append to|delete from config) '([^']+)'", text)
    if key is None:
        return f"cannot compose {config_name!r} with {list(overrides)}: {text}"
    wrong = key.group(1)
    others = [o for o in overrides if o.lstrip("+~").split("=")[0] != wrong]
    try:
        known = sorted({key for key, _ in targets.walk(_plain(_compose(config_name, others)))} | set(_groups()))
    except (HydraException, OmegaConfBaseException):
        known = _groups()
    return f"there is no config key {wrong!r}{_nearest(wrong, known)}"


def _nearest(wrong: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    near += [k for k in known if k.rpartition(".")[2] == wrong.rpartition(".")[2] and k not in near][:3]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _groups() -> list[str]:
    return sorted(p.name for p in config_dir().iterdir() if p.is_dir())


def _plugins(config: Any) -> tuple[str, ...]:
    """`plugins` of the whole config that a node belongs to; a node by itself has none."""
    root = config._get_root() if OmegaConf.is_config(config) else None
    value = root.get("plugins") if isinstance(root, DictConfig) else None
    return _importable(targets.plugin_names(() if value is None else _plain(value)))


def _importable(plugins: tuple[str, ...]) -> tuple[str, ...]:
    """The same; modules that lie in the working directory are found from now on, after all that is installed."""
    here = str(Path.cwd())
    if plugins and here not in sys.path:
        sys.path.append(here)
    return plugins


def _check_resolved(plain: Any, key: str) -> None:
    """Hydra looks up every `${...}` that it is given; after our own lookup only a variable's text can hold one."""
    for name, value in _leaves(plain, key):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"config key {name!r} still holds a lookup after lookups were done: {value!r:.80}")


def _bind(plain: Any, key: str, plugins: Sequence[str]) -> None:
    for name, node in targets.targets(plain, key):
        _check_call(name, node, plugins)


def _check_call(key: str, node: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """ValueError for a target that is not there or only imported (`torch.os.system`), and for unknown arguments."""
    target = str(node["_target_"])
    try:
        found = hydra.utils.get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"config key {key!r}: there is no {target!r} to build ({error})") from error
    targets.check_origin(key, target, found, plugins=plugins)
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # some of torch's compiled functions have no signature
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in set(node) - set(parameters) - {"_target_", *targets.HYDRA_KEYS}:
        where = f"{key}.{name}".lstrip(".")
        raise ValueError(f"config key {where!r}: {target} takes no {name!r}{_nearest(str(name), list(parameters))}")


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in targets.walk(node, key) if not isinstance(value, (Mapping, list, tuple)))
