"""Seeds and the environment report."""

import random

import numpy as np
import torch

from partseg.utils import env


def test_seeds_repeat():
    draws = []
    for _ in range(2):
        env.seed_everything(12345678)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_report_names_versions_but_no_environment_variables(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-value")
    text = env.report()
    assert f"torch: {torch.__version__.partition('+')[0]}" in text and "commit: " in text and "secret-value" not in text


def test_commit_outside_git_is_unknown(tmp_path):
    assert env.git_commit(tmp_path) == "unknown"
