"""Composing, nearest-name messages, the target rule, run names, saving."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from partseg.utils import cli, config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    files = {
        "train.yaml": {
            "defaults": ["_self_", {"optimizer": "adamw"}, {"experiment": None}],
            "name": None,
            "seed": 0,
            "train": {"iterations": 10, "batch_size": 8},
        },
        "optimizer/adamw.yaml": {"_target_": "torch.optim.AdamW", "lr": 1e-4},
        "optimizer/sgd.yaml": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "experiment/part_clipseg_pascal.yaml": "# @package _global_\nseed: 3\n",
        "experiment/evil.yaml": "# @package _global_\noptimizer:\n  _target_: os.system\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    monkeypatch.setattr(config, "config_dir", lambda: tmp_path)
    monkeypatch.setattr(config, "config_dirs", lambda: (tmp_path,))
    return tmp_path


def test_compose_leaves_no_global_state_and_is_struct(folder):
    cfg = config.compose("train", ["seed=7"])
    assert cfg.seed == 7
    assert not GlobalHydra.instance().is_initialized()
    with pytest.raises(ConfigAttributeError):
        _ = cfg.train.iteration


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=1", "'optimizer.lr'"),
        ("optimzer.lr=1", "'optimizer.lr'"),
        ("iterations=5", "'train.iterations'"),
        ("train.batchsize=5", "'train.batch_size'"),
        ("optimiser=sgd", "'optimizer'"),
        ("optimizer=adam", "'adamw'"),
        ("experiment=part_clipseg_pascl", "'part_clipseg_pascal'"),
        ("seed", "seed"),
    ],
)
def test_a_typo_names_the_nearest(folder, override, expected):
    with pytest.raises(ValueError, match=expected):
        config.compose("train", [override])


def test_targets_outside_partseg_and_torch_are_refused(folder):
    with pytest.raises(ValueError, match=r"'os.system' is not allowed"):
        config.compose("train", ["experiment=evil"])
    with pytest.raises(ValueError, match="not allowed"):
        config.check_targets({"a": [{"_target_": "torch.hub.load"}]})
    config.check_targets({"a": {"_target_": "torch.nn.Linear"}})
    for target in ("partseg.utils.cli.os.system", "partseg.utils.config.Path"):
        with pytest.raises(ValueError, match="is defined in '(posix|pathlib)"):
            config.instantiate({"_target_": target})
    with pytest.raises(ValueError, match="there is no 'torch.nn.Liner'"):
        config.instantiate({"_target_": "torch.nn.Liner"})


def test_instantiate_gives_plain_containers_and_the_original_error():
    node = OmegaConf.create({"layers": [{"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}]})
    built = config.instantiate(node)
    assert type(built) is dict and type(built["layers"]) is list and isinstance(built["layers"][0], torch.nn.Linear)
    vocabulary = {"_target_": "partseg.vocabulary.names.Vocabulary.from_mapping", "mapping": {"dog": []}}
    with pytest.raises(ValueError, match="^vocabulary entry 'dog' needs"):
        config.instantiate(vocabulary)
    with pytest.raises(ValueError, match="layers.0..in_featres.*did you mean 'in_features'"):
        config.instantiate({"layers": [{"_target_": "torch.nn.Linear", "in_featres": 2}]})


def test_objects_given_to_instantiate_arrive_uncopied():
    node = OmegaConf.create({"root": "x", "lr": {"_target_": "torch.optim.SGD", "params": "???", "lr": "${root2}"}})
    node.root2 = 0.5
    parameters = list(torch.nn.Linear(2, 2).parameters())
    optimizer = config.instantiate(node.lr, params=parameters)
    assert optimizer.param_groups[0]["params"][0] is parameters[0] and optimizer.defaults["lr"] == 0.5
    with pytest.raises(ValueError, match=r"\['lr.params'\] have no value"):
        config.instantiate(node.lr)
    schedule = {"_target_": "partseg.engine.optim.poly", "_partial_": True, "iterations": 10}
    assert config.instantiate(schedule)(0) == 1.0
    assert config.instantiate(schedule, iterations=20)(10) == 0.5**0.9


def test_the_name_carries_what_changes_the_run(folder):
    assert config.compose("train").name == "train"
    overrides = ["experiment=part_clipseg_pascal", "seed=2", "optimizer.lr=3e-4"]
    assert config.compose("train", overrides).name == "part_clipseg_pascal__optimizer.lr-3e-4__seed-2"
    assert config.compose("train", ["name=mine", "seed=2"]).name == "mine"
    assert config.run_name("x", ["launch.num_gpus=8", "resume=never", "+logger.a=1"]) == "x"
    long = [config.run_name("x", [f"a.b={'v' * 300}{i}"]) for i in range(2)]
    assert long[0] != long[1] and all(len(name) <= 200 for name in long)


def test_every_job_of_a_sweep_is_known():
    overrides = ["seed=1,2", "hydra.verbose=true", "a=[1,2]", "b=range(2)"]
    jobs = config.jobs(overrides, multirun=True)
    assert jobs == [[f"seed={seed}", "a=[1,2]", f"b={b}"] for seed in (1, 2) for b in (0, 1)]
    assert config.jobs(overrides, multirun=False) == [["seed=1,2", "a=[1,2]", "b=range(2)"]]


def test_sweeps_inside_torchrun_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=r"launch.num_gpus=N"):
        cli._refuse_sweep_in_group(True)
    cli._refuse_sweep_in_group(False)


def test_save_writes_the_resolved_config(tmp_path):
    config.save(OmegaConf.create({"a": 1, "b": "${a}"}), tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"a": 1, "b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_config_dir_is_found():
    assert isinstance(config.config_dir(), Path) and (config.config_dir() / "train.yaml").is_file()


def test_the_data_set_of_the_evaluation_is_chosen_by_its_name():
    cfg = config.compose("train", ["eval_dataset=toy_pascal_part_116", "eval_dataset.name=mine"])
    assert (cfg.dataset._target_, cfg.eval_dataset.name) == ("partseg.data.pascal_part.pascal_part_116", "mine")
    assert cfg.eval_dataset.root.endswith("ToyPascalPart116") and not cfg.dataset.root.endswith("ToyPascalPart116")


def test_composed_experiments_are_not_copied_for_every_composition():
    """Hydra copies its store each time, and what it loads once more: that second copy is what nobody may change."""
    before = config.compose("train", ["experiment=part_clipseg_pascal_part_116"])
    store = ConfigStore.instance()
    assert len(store.repo["experiment"]) > 100
    assert copy.deepcopy(store).repo["experiment"] is store.repo["experiment"]
    store.load("experiment/part_clipseg_pascal_part_116.yaml").node["defaults"] = []
    assert config.compose("train", ["experiment=part_clipseg_pascal_part_116"]) == before
