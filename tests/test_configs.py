"""Every YAML file of configs/, found recursively, composes, binds to what it names, and builds where it can."""

from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from partseg.engine.checkpoint import Checkpoints
from partseg.engine.hooks import Run
from partseg.utils import config
from partseg.utils.experiments import experiments

FOLDER = config.config_dir()
FILES = sorted(p for p in FOLDER.rglob("*.yaml") if p.parent.name != "local")
TOP = [p.stem for p in FILES if p.parent == FOLDER]
GROUPS = {
    folder.name: sorted(p.stem for p in FILES if p.parent == folder)
    for folder in sorted(FOLDER.iterdir())
    if folder.is_dir() and folder.name != "local"
}
WHOLE_RUNS = ("experiment", "debug", "recipe")  # these set keys of several groups, so each is composed alone
SINGLE = {name: files for name, files in GROUPS.items() if name not in WHOLE_RUNS}
# one file of every group at a time: as many compositions as the largest group has files
ROUNDS = [
    [f"{group}={name}" for group, name in zip(SINGLE, names) if name is not None]
    for names in zip_longest(*SINGLE.values())
]
RUNS = [f"{group}={name}" for group in WHOLE_RUNS for name in GROUPS[group]]
SYSTEMS = [name for name in GROUPS["experiment"] if not name.startswith("toy")]
COMPOSED = [each.name for each in experiments([FOLDER]) if not each.dataset.startswith("toy")]
PAPER = [name for name in COMPOSED if name.startswith("part_clipseg")]  # with every data set; clipseg shares its recipe
KINDS = ("pascal_part_116", "ade20k_part_234_16shot", "partimagenet_40_to_pascal_part_116")
OTHERS = [f"{system}_{kind}" for system in SYSTEMS if system != "part_clipseg" for kind in KINDS]


@cache
def composed(*overrides: str) -> DictConfig:
    return config.compose("train", overrides)


def test_no_file_is_left_out():
    tried = len(TOP) + sum(map(len, ROUNDS)) + len(RUNS)
    assert tried == len(FILES) >= 50
    assert not [p for p in FILES if len(p.relative_to(FOLDER).parts) > 2], "groups are one folder deep"


@pytest.mark.parametrize("name", TOP)
def test_top_level_file_composes(name):
    config.bind(config.compose(name))


@pytest.mark.parametrize("override", RUNS)
def test_run_composes_and_binds(override):
    system = override.removeprefix("recipe=official_")
    cfg = composed(*([] if system == override else [f"experiment={system}_pascal_part_116"]), override)
    config.bind(cfg)
    assert cfg.name and {metric.split("/")[0] for metric in cfg.best.metrics} <= set(cfg.evaluator)


@pytest.mark.parametrize("name", SYSTEMS)
def test_experiment_opens_with_what_a_user_needs_to_know(name):
    text = (FOLDER / "experiment" / f"{name}.yaml").read_text()
    header = text[: text.index("defaults:")]
    assert f"python tools/train_net.py experiment={name}_pascal_part_116" in header
    for word in ("Hardware:", "Memory", "time:", "Published"):
        assert word in header


@pytest.mark.parametrize("name", PAPER)
def test_every_experiment_has_the_papers_recipe(name):
    cfg = config.compose("train", [f"experiment={name}"])
    config.bind(cfg)
    recipe = (
        cfg.train.iterations,
        cfg.train.batch_size,
        cfg.train.clip_norm,
        cfg.optimizer.lr,
        cfg.optimizer.weight_decay,
    )
    assert recipe == (20000, 8, 0.01, 1e-4, 1e-4) and cfg.seed == 12345678
    assert (cfg.schedule.power, cfg.schedule.warmup_iterations, cfg.hooks.evaluate.every) == (0.9, 0, 1000)
    assert cfg.name == name and cfg.init_from == "CIDAS/clipseg-rd64-refined"
    # with few shots and across data sets nothing is unseen
    score = "mIoU" if "shot" in name or "_to_" in name else "mIoU_harmonic"
    assert cfg.best.metrics == [f"oracle_obj/{score}", f"pred_all/{score}"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_experiments_bind_and_keep_checkpoints_by_scores_that_they_have(name):
    cfg = config.compose("train", [f"experiment={name}"])
    config.bind(cfg)
    assert cfg.name == name and cfg.best.metrics
    assert {metric.split("/")[0] for metric in cfg.best.metrics} <= set(cfg.evaluator)
    assert "_to_" not in name or not any("harmonic" in metric for metric in cfg.best.metrics)


def test_the_experiments_of_the_paper_are_composed():
    names = [f"{data}{kind}" for data in ("pascal_part_116", "ade20k_part_234") for kind in ("", "_16shot")]
    names += ["partimagenet_40", *(f"{data}_to_pascal_part_116" for data in ("partimagenet_40", "ade20k_part_234"))]
    assert {f"{system}_{name}" for system in SYSTEMS for name in names} <= set(COMPOSED)


@pytest.mark.parametrize("overrides", ROUNDS, ids=lambda o: f"round_{ROUNDS.index(o)}")
def test_groups_compose_bind_and_build(overrides, tmp_path):
    cfg = config.compose("train", overrides)
    config.bind(cfg)
    built = {name: config.instantiate(cfg[name]) for name in ("criterion", "schedule", "augmentation", "predictor")}
    assert built["schedule"](0) <= 1.0 and built["criterion"].terms
    evaluators = config.instantiate(cfg.evaluator)
    assert set(evaluators) == set(cfg.evaluator)
    optimizer = config.instantiate(cfg.optimizer, model=nn.Linear(2, 2))
    assert all("initial_lr" in group for group in optimizer.param_groups)
    checkpoints = Checkpoints(tmp_path, config={})
    scoring = {"predictor": built["predictor"], "evaluators": evaluators}
    run = Run(tmp_path, checkpoints, writers=[], evaluate=dict, samples=None, vocabulary=None, **scoring)
    assert all(config.instantiate(hook, run=run) for hook in cfg.hooks.values())


@pytest.mark.parametrize("name", [n for n in GROUPS["model"] if n.endswith("tiny")])
def test_tiny_models_build(name):
    model = config.instantiate(config.compose("train", [f"model={name}"]).model)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in GROUPS["model"] if not n.endswith("tiny")])
def test_full_size_models_build(name):
    with torch.device("meta"):
        model = config.instantiate(config.compose("train", [f"model={name}"]).model)
    assert sum(p.numel() for p in model.parameters()) > 40e6


def test_ablations_are_overrides_alone():
    overrides = ["criterion.terms.separation.weight=0", "model.train_text_embeddings=false", "optimizer.lr=3e-4"]
    cfg = config.compose("train", ["experiment=part_clipseg_pascal_part_116", *overrides])
    assert "separation" not in config.instantiate(cfg.criterion).terms
    assert cfg.model.train_text_embeddings is False and cfg.optimizer.lr == 3e-4
    assert cfg.name == (
        "part_clipseg_pascal_part_116__criterion.terms.separation.weight-0"
        "__model.train_text_embeddings-false__optimizer.lr-3e-4"
    )


def test_cross_dataset_runs_watch_the_other_data_set():
    cfg = composed("experiment=part_clipseg_ade20k_part_234_to_pascal_part_116")
    assert "ade20k" in cfg.dataset._target_ and "pascal" in cfg.eval_dataset._target_
    cfg = composed("experiment=part_clipseg_ade20k_part_234")
    assert cfg.dataset == cfg.eval_dataset


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("experiment=part_clipseg_pascal", "'part_clipseg_pascal_part_116'"),
        ("train.iteration=5", "'train.iterations'"),
        ("optimzer.lr=1", "'optimizer.lr'"),
        ("model=part_clip_seg", "'part_clipseg'"),
        ("dataset=pascal116", "'pascal_part_116'"),
    ],
)
def test_mistakes_name_the_nearest(override, expected):
    with pytest.raises(ValueError, match=expected):
        config.compose("train", [override])


def test_packaged_copy_is_declared(root: Path):
    assert '"configs" = "partseg/_configs"' in (root / "pyproject.toml").read_text()
