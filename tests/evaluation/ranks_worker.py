"""An evaluation of five images: imported by test_ranks.py, or run as one rank.

Usage: ranks_worker.py OUTPUT   with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

from partseg.data.loader import EvalSampler
from partseg.evaluation.pixels import METRICS, PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll, PredAllStrict
from partseg.evaluation.runner import run
from partseg.utils import distributed
from partseg.vocabulary.names import Vocabulary


def count() -> dict[str, np.ndarray]:
    """Every integer of every protocol, over all processes."""
    spec = importlib.util.spec_from_file_location("fixtures", Path(__file__).with_name("conftest.py"))
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
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


if __name__ == "__main__":
    distributed.init_from_env()
    counts = count()
    if distributed.is_main():
        np.savez(sys.argv[1], **counts)
    distributed.shutdown()
