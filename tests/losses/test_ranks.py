"""The objective does not depend on how a batch is cut up: 1 or 2 processes, 1 or 2 micro-batches in each."""

import importlib.util
from pathlib import Path

import pytest
import torch

from partseg.utils import distributed

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def runs(forked, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str, int], dict]:
    """Losses and weights after three steps, by (processes, normalisation, micro-batches)."""
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    path = tmp_path_factory.mktemp("ranks") / "results.pt"

    def work() -> None:
        results = worker.run_all()
        if distributed.is_main():
            torch.save(results, path)

    assert forked(work, processes=2) == [0, 0]
    return worker.run_all() | torch.load(path)


def _largest_difference(one: dict, other: dict) -> float:
    return max(float((one["weights"][name] - other["weights"][name]).abs().max()) for name in one["weights"])


@pytest.mark.parametrize("kind", [(1, "global", 2), (2, "global", 1), (2, "global", 2)], ids=str)
def test_same_losses_and_weights(runs, kind):
    whole = runs[1, "global", 1]
    assert runs[kind]["losses"] == pytest.approx(whole["losses"], abs=1e-6)
    assert _largest_difference(runs[kind], whole) < 1e-6


def test_per_process_normalisation_depends_on_the_number_of_processes(runs):
    """What the authors' code does, and the proof that the batch is uneven enough to tell."""
    one, two = runs[1, "process", 1], runs[2, "process", 1]
    assert one["losses"] == pytest.approx(runs[1, "global", 1]["losses"], abs=1e-12)
    assert abs(two["losses"][0] - one["losses"][0]) > 1e-3
    assert _largest_difference(two, one) > 1e-3
