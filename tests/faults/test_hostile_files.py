"""Configs in files from strangers: nothing in them runs, reads, writes or looks anything up, and one line says why.

Without the rules every case fails, and in 47 of them code runs. What runs leaves the file `ran` behind.
"""

import copy
import json
import os
import pickle
import sys
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import partseg
from partseg.backbones.clip_vit import clip_config
from partseg.engine import checkpoint
from partseg.evaluation.predictions import PredictionWriter, prediction_path
from partseg.structures import Sample
from partseg.utils import config
from partseg.weights import load as loading

ROOT = Path(__file__).parents[2]
OPENED: list[str] = []
WATCHED: list[bool] = []


@sys.addaudithook
def _opened(event: str, arguments: tuple) -> None:
    """Every file that Python opens while a test watches."""
    if WATCHED and event == "open":
        OPENED.append(str(arguments[0]))


@pytest.fixture
def ran(tmp_path):
    """The file that hostile code would leave behind; the test fails if it is there at its end."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "code out of the file ran"


@pytest.fixture
def opened():
    """Files opened since the test began."""
    OPENED.clear()
    WATCHED.append(True)
    yield OPENED
    WATCHED.clear()


@pytest.fixture(scope="module")
def whole(toy_run):
    """A checkpoint of ours as it lies on the disk."""
    return torch.load(toy_run / "checkpoints" / "latest.pt", weights_only=True)


@pytest.fixture
def checkpoint_with(whole, tmp_path):
    """Function: a change of the stored model config -> path of a checkpoint that has it."""

    def save(change, *, weights=False, **entries):
        state = {**whole, "config": copy.deepcopy(whole["config"]), "optimizer": {}, **entries}
        if not weights:  # a config is refused before anybody looks at the weights
            state["model"] = {}
        change(state["config"])
        torch.save(state, tmp_path / "stranger.pt")
        return tmp_path / "stranger.pt"

    return save


def refused(call, *words):
    """The call is refused in one line that has the words and no advice to load code."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text and "weights_only" not in text and len(text) < 600, text
    return text


def touch(ran: Path) -> dict:
    return {"_target_": "torch.utils.collect_env.run", "command": f"touch {ran}"}


def pickled(ran: Path) -> bytes:
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {ran}",)

    return pickle.dumps(Evil())


def smuggled(ran: Path) -> str:
    return f"${{oc.create:{{_target_: setuptools._distutils.spawn.spawn, cmd: [touch, '{ran}']}}}}"


def source(ran: Path) -> str:
    return f"open({str(ran)!r}, 'w').close()"


def put(key: str, value):
    """A change of the config that sets the dotted key."""

    def change(config):
        *folders, last = key.split(".")
        for folder in folders:
            config = config[folder]
        config[last] = value

    return change


TARGETS = {
    "shell": lambda ran: touch(ran),
    "source": lambda ran: {"_target_": "torch._inductor.codecache.PyCodeCache.load", "source_code": source(ran)},
    "exec": lambda ran: {"_target_": "torch.fx.graph_module._exec_with_source", "src": source(ran), "globals": {}},
    "save": lambda ran: {"_target_": "torch.save", "obj": [1], "f": str(ran)},
    "map": lambda ran: {"_target_": "torch.from_file", "filename": str(ran), "shared": True, "size": 4},
    "store": lambda ran: {"_target_": "torch.distributed.FileStore", "_args_": [str(ran), 1]},
    "write": lambda ran: {"_target_": "partseg.utils.files.write_atomic", "path": str(ran), "data": "x"},
    "toy": lambda ran: {"_target_": "toy_world.writer.write_toy", "root": str(ran)},
    "names": lambda ran: {"_target_": "partseg.vocabulary.words.read_vocabulary", "path": str(ROOT / "README.md")},
    "builder": lambda ran: {
        "_target_": "partseg.utils.config.instantiate",
        "_recursive_": False,
        "node": {"a": smuggled(ran)},
    },
    "unknown": lambda ran: {"_target_": "partseg.systems.clipseg.network.reduce_image", "images": touch(ran)},
    "prefix": lambda ran: {**touch(ran), "_target_": "torch.utils.collect_env..run"},
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_checkpoint_names_no_target_but_ours(checkpoint_with, ran, opened, kind):
    path = checkpoint_with(put("model", TARGETS[kind](ran)))
    opened.clear()
    refused(lambda: partseg.load(path), "config key 'model'", "stranger.pt")
    assert str(ROOT / "README.md") not in opened


PLACES = ("backbone", "decoder", "trainable", "template", "adapter_ratio", "image_size", "backbone.image_mean", "more")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: [x], lambda x: {"a": [0, {"b": x}]}], ids=["as is", "list", "deep"]
)
def test_a_target_is_found_wherever_it_hides(checkpoint_with, ran, place, wrap):
    refused(
        lambda: partseg.load(checkpoint_with(put(f"model.{place}", wrap(touch(ran))))), f"'model.{place}", "_target_"
    )


LOOKUPS = {
    "backbone": smuggled,
    "trainable": lambda ran: [smuggled(ran)],
    "decoder": lambda ran: {"width": 64, "heads": smuggled(ran)},
    "template": lambda ran: "${oc.env:PARTSEG_SECRET}",
    "image_size": lambda ran: "${oc.decode:${oc.env:PARTSEG_SECRET}}",
    "adapter_ratio": lambda ran: "${.image_size}",
    "_target_": lambda ran: "${oc.env:PARTSEG_SECRET}",
    "prompt_chunk": lambda ran: "${partseg_sentinel:" + str(ran) + "}",
    "decoder_checkpoint": lambda ran: "\\${oc.env:PARTSEG_SECRET}",
}


@pytest.fixture
def lookups(monkeypatch):
    """A secret in the environment and a resolver that leaves a trace."""
    monkeypatch.setenv("PARTSEG_SECRET", "secret-4711")
    OmegaConf.register_new_resolver("partseg_sentinel", lambda path: Path(path).touch())
    yield
    OmegaConf.clear_resolver("partseg_sentinel")


@pytest.mark.parametrize("place", LOOKUPS)
def test_nothing_is_looked_up_for_a_checkpoint(checkpoint_with, ran, lookups, place):
    path = checkpoint_with(put(f"model.{place}", LOOKUPS[place](ran)))
    key = "model" if place == "_target_" else f"model.{place}"
    assert "4711" not in refused(lambda: partseg.load(path), f"config key '{key}")


@pytest.mark.parametrize("key", ["_args_", "_partial_", "_recursive_", "_convert_"])
@pytest.mark.parametrize("place", ["model", "model.backbone"])
def test_a_checkpoint_does_not_say_how_it_is_built(checkpoint_with, ran, key, place):
    values = {"_args_": [f"{ran}.json"], "_partial_": True, "_recursive_": False, "_convert_": "object"}
    path = checkpoint_with(put(f"{place}.{key}", values[key]))
    refused(lambda: partseg.load(path), f"config key {place!r}", key)


def cycle(config):
    config["train"]["self"] = config


def laughs(config):
    level = ["ha"] * 10
    for _ in range(30):
        level = [level] * 10
    config["train"]["iterations"] = level


def deep(config):
    level: list = []
    for _ in range(100):
        level = [level]
    config["model"]["trainable"] = level


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (cycle, "config"),
        (laughs, "config"),
        (deep, "config"),
        (lambda c: put("model.template", b"bytes")(c), "bytes"),
        (lambda c: put("model.template", torch.zeros(2))(c), "Tensor"),
        (lambda c: put("model._target_", torch.float32)(c), "dtype"),
        (lambda c: put("model._target_", ["partseg"])(c), "'model'"),
        (lambda c: put("model", {})(c), "'model'"),
        (lambda c: put("model", "partseg")(c), "'model'"),
        (lambda c: put("model.decoder.width", 10**6)(c), "decoder"),
        (lambda c: put("model.decoder.hidden", 10**18)(c), "PartClipSeg"),
        (lambda c: put("model.backbone.feature_blocks", [10**9])(c), "feature_blocks"),
        (lambda c: put("model.backbone.name", "no-such-network")(c), "no-such-network"),
        (lambda c: c.clear(), "'model'"),
        (lambda c: c.update(model=c["model"]["decoder"]), "builds a DecoderShape"),
        (lambda c: c.update(model=c["model"]["backbone"]), "weights are not those of its config"),
    ],
)
def test_a_config_that_is_no_plain_data_of_our_size_is_refused(checkpoint_with, change, word):
    path = checkpoint_with(change, weights=word == "decoder")
    refused(lambda: partseg.load(path), "stranger.pt", word)


@pytest.mark.parametrize(
    "entries",
    [
        {"vocabulary": {}},
        {"vocabulary": {"pairs": 3, "label_objects": [], "unseen_objects": [], "name": "x", "prompt_names": {}}},
        {"vocabulary": [["dog", "head"]]},
        {"iteration": "now"},
        {"config": [1]},
        {"model": {"a": 1}},
        {"model": {1: torch.zeros(1)}},
        {"ema": [1]},
    ],
    ids=str,
)
def test_entries_of_another_kind_are_named(whole, tmp_path, entries):
    torch.save({**whole, "optimizer": {}, **entries}, tmp_path / "stranger.pt")
    refused(lambda: partseg.load(tmp_path / "stranger.pt"), "stranger.pt", next(iter(entries)))


# Files that a checkpoint leads to -------------------------------------------------------------------------------------
def test_a_checkpoint_brings_its_weights_itself(checkpoint_with, toy_run, tmp_path, opened, monkeypatch):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"x")

    def change(config):
        config["model"]["backbone"] |= {"pretrained": str(other), "feature_cache": str(tmp_path / "cache")}

    for module, name in ((loading, "read_weights"), (open_clip, "download_pretrained")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("weights were read or fetched"))
    own, found = partseg.load(toy_run, "cpu"), None
    opened.clear()
    found = partseg.load(checkpoint_with(change, weights=True), "cpu")
    photo = np.zeros((40, 50, 3), np.uint8)
    assert np.array_equal(own.predict(photo).labels, found.predict(photo).labels)
    assert not (tmp_path / "cache").exists() and str(other) not in opened
    for tag in ("openai", "CIDAS/clipseg-rd64-refined"):
        partseg.load(checkpoint_with(put("model.backbone.pretrained", tag), weights=True), "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "{folder}/clip.json",
        "clip.json",
        "../../../../../../../../{folder}/clip",
        "hf-hub:nobody/clip",
        "local-dir:{folder}",
        "local-dir:folder",
        "~/clip",
        "\\\\server\\share\\clip.json",
    ],
)
def test_a_checkpoint_leads_to_no_other_file(checkpoint_with, tmp_path, opened, monkeypatch, name):
    for file in ("clip.json", "open_clip_config.json"):
        (tmp_path / file).write_text(json.dumps(clip_config("partseg-tiny-16")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", lambda *a, **k: pytest.fail("the hub was asked"))
    name = name.format(folder=tmp_path)
    path = checkpoint_with(put("model.backbone.name", name), weights=True)
    opened.clear()
    refused(lambda: partseg.load(path), "config key 'model.backbone.name'", "plugins=[")
    assert not [file for file in opened if file.endswith(".json")]


def test_a_clip_config_that_the_user_names_is_read(checkpoint_with, tmp_path):
    file = tmp_path / "clip.json"
    file.write_text(json.dumps(clip_config("partseg-tiny-16")))
    path = checkpoint_with(put("model.backbone.name", str(file)), weights=True)
    assert partseg.load(path, "cpu", plugins=[str(file)]).model.backbone.name == str(file)


# Networks of the user's own -------------------------------------------------------------------------------------------
@pytest.fixture
def plugin(tmp_path, monkeypatch, ran):
    """A module of the user's with a network in a submodule; importing it leaves `ran` behind."""
    package = tmp_path / "my_plugin_package"
    package.mkdir()
    (package / "__init__.py").write_text(f"import os, pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    (package / "nets.py").write_text(
        "from partseg.systems.clipseg.network import ClipSeg\nimport os\n\nclass Mine(ClipSeg):\n    pass\n"
        "\nclass Loss:\n    def __init__(self, weight=1.0):\n        self.weight = weight\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield "my_plugin_package"
    for name in [name for name in sys.modules if name.startswith("my_plugin_package")]:
        del sys.modules[name]


def test_a_plugin_is_imported_when_the_user_names_it_and_not_before(checkpoint_with, plugin, ran):
    def change(config):
        config["plugins"] = [plugin]
        config["model"]["_target_"] = f"{plugin}.nets.Mine"
        del config["model"]["official_object_text_index"]

    path = checkpoint_with(change)
    text = refused(lambda: partseg.load(path), "config key 'model'", f"plugins=[{plugin}.nets]")
    assert "configs/model/" in text and not ran.exists() and plugin not in sys.modules
    refused(lambda: partseg.load(path, plugins=["my_plugin"]), "my_plugin_package.nets.Mine")
    refused(lambda: partseg.load(path, plugins=plugin), "plugins=[my_package.my_module]")
    assert not ran.exists()
    refused(lambda: partseg.load(path, plugins=[plugin]), "weights are not those of its config")
    assert ran.exists()
    ran.unlink()
    evil = checkpoint_with(put("model", {"_target_": f"{plugin}.nets.os.system", "command": "touch ran"}))
    refused(lambda: partseg.load(evil, plugins=[plugin]), "is defined in 'posix'")


# Tools and other files ------------------------------------------------------------------------------------------------
def tool(name):
    command = ROOT / "partseg" / "commands" / f"{name}.py"
    path = command if command.is_file() else ROOT / "tools" / command.name
    spec = spec_from_file_location(f"hostile_{name}", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_command_line_says_it_in_one_line(checkpoint_with, ran, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "photo.png")
    predict = tool("predict")
    arguments = [f"ckpt={checkpoint_with(put('model.backbone', touch(ran)))}", f"input={tmp_path / 'photo.png'}"]
    monkeypatch.setattr(sys, "argv", ["predict.py", *arguments, f"output={tmp_path / 'out'}"])
    assert predict.arguments.run(predict.main, predict.Options, predict.__doc__) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "'model.backbone'" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("node", ["eval_dataset", "evaluator"])
@pytest.mark.parametrize("kind", ["shell", "save", "write", "toy", "lookup"])
def test_results_name_no_target_but_ours(tmp_path, ran, lookups, node, kind):
    evil = "${partseg_sentinel:" + str(ran) + "}" if kind == "lookup" else TARGETS[kind](ran)
    if kind == "lookup":
        target = {
            "eval_dataset": "partseg.data.pascal_part.pascal_part_116",
            "evaluator": "partseg.evaluation.pixels.PixelEvaluator",
        }
        evil = {"_target_": target[node], "root": evil}
    visualize = tool("visualize_results")
    run = {"eval_dataset": evil, "evaluator": {"pred_all": evil}, "eval": {"split": "val", "limit_images": None}}
    if node == "evaluator":
        visualize.open_dataset = lambda *arguments: None
    (tmp_path / "predictions" / "pred_all").mkdir(parents=True)
    content = {"format": "partseg-results-1", "complete": True, "config": run, "checkpoint": None, "synthetic": False}
    content |= {"protocols": {"pred_all": {"metrics": {}}}, "dataset": {"name": "x", "split": "val", "num_images": 1}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    options = visualize.Options(run=tmp_path, attention=False)
    refused(
        lambda: visualize.main(options), "config key '" + {"eval_dataset": "dataset", "evaluator": "evaluator"}[node]
    )


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/../../out", "..\\..\\out", "C:\\out", "C:out"])
def test_predictions_stay_in_their_folder(tmp_path, name):
    folder = tmp_path / "one" / "two"
    sample = partial(Sample, image=None, object_part=torch.zeros(2, 2), object=None, file_name="x.jpg")
    writer = PredictionWriter(folder, num_classes=3)
    refused(lambda: writer(sample(name=name), {"pred_all": torch.zeros(2, 2)}), "leads out of", "two")
    refused(lambda: writer(sample(name="photo"), {name: torch.zeros(2, 2)}), "leads out of", "two")
    assert not list(tmp_path.rglob("*.png")) and prediction_path(folder, "a/b..c") == folder / "a" / "b..c.png"


# What a user types ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [k for k in TARGETS if k not in ("write", "names", "builder", "unknown")])
def test_a_typed_config_is_held_to_partseg_and_a_few_classes(ran, kind):
    node = TARGETS[kind](ran)
    refused(
        lambda: config.instantiate(OmegaConf.create({"criterion": {"terms": [node]}})),
        "'criterion.terms[0]'",
        "plugins=[",
    )
    with pytest.raises(ValueError, match="plugins="):
        config.compose("train", [f"+criterion.extra={{_target_: {node['_target_']}}}"])


@pytest.mark.parametrize(
    "criterion",
    [
        "${oc.create:{_target_: torch.utils.collect_env.run, command: 'touch RAN'}}",
        "${other}",
        {"_target_": "${target}", "command": "touch RAN"},
        {"_target_": "partseg.engine.optim.poly", "iterations": "${oc.env:PARTSEG_TYPED}"},
    ],
    ids=["create", "reference", "target", "variable"],
)
def test_a_lookup_smuggles_no_target_in(ran, monkeypatch, criterion):
    create = f"${{oc.create:{{_target_: torch.utils.collect_env.run, command: 'touch {ran}'}}}}"
    monkeypatch.setenv("PARTSEG_TYPED", create)
    text = json.dumps({"criterion": criterion, "other": touch(ran), "target": "torch.utils.collect_env.run"})
    typed = OmegaConf.create(json.loads(text.replace("RAN", str(ran))))
    refused(lambda: config.instantiate({"a": typed}["a"]).criterion, "config key 'criterion", "")


def test_typed_lookups_and_plugins_work(monkeypatch, plugin, ran):
    monkeypatch.setenv("PARTSEG_TYPED", "0.5")
    node = {"_target_": f"{plugin}.nets.Loss", "weight": "${oc.decode:${oc.env:PARTSEG_TYPED}}"}
    refused(
        lambda: config.instantiate(OmegaConf.create({"loss": node}).loss),
        "config key 'loss'",
        f"plugins=[{plugin}.nets]",
    )
    assert not ran.exists()
    assert config.instantiate(OmegaConf.create({"plugins": [plugin], "loss": node}).loss).weight == 0.5
    overrides = [f"+criterion.terms.extra={{_target_: {plugin}.nets.Loss}}"]
    with pytest.raises(ValueError, match=f"'criterion.terms.extra'.*{plugin}.nets.Loss"):
        config.compose("train", overrides)
    composed = config.compose("train", [f"plugins=[{plugin}]", *overrides])
    config.bind(composed)
    assert config.instantiate(composed.criterion.terms.extra).weight == 1.0
    assert config.run_name("x", [f"plugins=[{plugin}]"]) == "x"
    with pytest.raises(ValueError, match="plugins='my_plugin_package' is not a list"):
        config.compose("train", [f"plugins={plugin}"])
    ran.unlink()


def test_the_list_of_a_file_is_what_the_yaml_files_name():
    """A new system adds its YAML file to configs/model/ and nothing else."""
    for path in sorted((config.config_dir() / "model").glob("*.yaml")):
        node = OmegaConf.to_container(config.compose("train", [f"model={path.stem}"]).model, resolve=True)
        checked = config.stored(node, group="model")
        assert OmegaConf.to_container(checked) == node
    refused(lambda: config.stored({"_target_": "partseg.data.pascal_part.pascal_part_116"}, group="model"), "'model'")
    node = OmegaConf.to_container(config.compose("train", ["model=part_clipseg"]).model)
    assert checkpoint.START.keys() <= node["backbone"].keys()
