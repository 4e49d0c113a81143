"""1, 2 and 3 real processes count the same integers, although five images do not divide evenly."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from partseg.data.loader import EvalSampler
from partseg.evaluation.pixels import METRICS, PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll, PredAllStrict
from partseg.evaluation.runner import run
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary


@pytest.fixture
def fixtures():
    """The samples and the model of conftest.py."""
    spec = importlib.util.spec_from_file_location("fixtures", Path(__file__).with_name("conftest.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count(fixtures) -> dict[str, np.ndarray]:
    """Every integer of every protocol, over all processes."""
    vocabulary = Vocabulary.from_mapping({"bird": ["head", "wing"], "car": ["wheel"], "dog": ["head", "leg", "tail"]})
    samples = [fixtures.random_sample(vocabulary, torch.Generator().manual_seed(i)) for i in range(5)]
    mine = [samples[i] for i in EvalSampler(len(samples), distributed.rank(), distributed.world_size())]
    evaluation = run(
        fixtures.WholeNumberModel(),
        fixtures.batches(mine, 2),
        vocabulary=vocabulary,
        predictor=Predictor(),
        evaluators={p.name: PixelEvaluator(p, metrics=METRICS) for p in (OracleObj(), PredAll(), PredAllStrict())},
    )
    keys = ("confusion", "bands", "num_images", "num_dropped")
    counts = {f"{n}/{key}": np.asarray(getattr(c, key)) for n, c in evaluation.results.items() for key in keys}
    counts |= {f"{n}/{rule}": d.confusion for n, c in evaluation.results.items() for rule, d in c.differences.items()}
    return {"num_images": np.asarray(evaluation.num_images), **counts}


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_counts_the_same_integers(fixtures, forked, tmp_path, processes):
    def work():
        counts = count(fixtures)
        if distributed.is_main():
            np.savez(tmp_path / "counts.npz", **counts)

    expected = count(fixtures)
    assert forked(work, processes=processes) == [0] * processes
    found = np.load(tmp_path / "counts.npz")
    assert expected["pred_all/confusion"].sum() > 500
    assert expected["num_images"] == 5
    assert set(found.files) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=f"{key} with {processes} processes")
