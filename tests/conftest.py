"""Fixtures every test may use."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT.parent / "shared" / "samples"


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed():
    """Two threads at most and a fixed seed, so that a test means the same on every machine."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real sample files that are not part of the project; tests that need them skip where they are absent."""
    if not SAMPLES.is_dir():
        pytest.skip(f"real sample files are not beside the checkout ({SAMPLES.relative_to(ROOT.parent)})")
    return SAMPLES
