"""A data set with ten instances per image costs one forward pass per image, not one per instance, for all protocols."""

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from partseg.data.mapper import EvalMapper
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll, PredAllStrict
from partseg.evaluation.runner import run
from partseg.geometry import InputSpec
from partseg.structures import Annotation, Record

IMAGES, INSTANCES, SIDE = 6, 10, 40


def crowded(folder, vocabulary, index) -> Record:
    """ADE20K-style: ten overlapping instances, parts drawn in each."""
    rng = np.random.default_rng(index)
    parts = np.full((SIDE, SIDE), 65535, np.uint16)
    instances = []
    for _ in range(INSTANCES):
        object_id = int(rng.integers(vocabulary.num_objects))
        mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
        y, x = rng.integers(0, SIDE - 12, 2)
        mask[y : y + 12, x : x + 12] = 1
        own = vocabulary.parts_of_object(object_id)
        parts[mask == 1] = own[rng.integers(len(own))]
        label = vocabulary.label_objects.index(vocabulary.objects[object_id])
        instances.append(Annotation("object", label, coco_mask.encode(mask)))
    Image.fromarray(parts).save(folder / f"{index}_parts.png")
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return Record(
        image_id=str(index),
        file_name=str(folder / f"{index}.png"),
        object_part_file_name=str(folder / f"{index}_parts.png"),
        annotations=tuple(instances),
        label_bits=16,
    )


def test_ten_instances_cost_one_forward(model, vocabulary, batched, tmp_path):
    records = [crowded(tmp_path, vocabulary, i) for i in range(IMAGES)]
    mapper = EvalMapper(InputSpec((16, 16)))
    samples = [mapper(record, label_vocabulary=vocabulary, vocabulary=vocabulary) for record in records]
    calls = []
    predict = model.predict
    model.predict = lambda images, *args, **options: (calls.append(len(images)), predict(images, *args, **options))[1]
    evaluators = {p.name: PixelEvaluator(p) for p in (OracleObj(), PredAll(), PredAllStrict())}
    evaluation = run(model, batched(samples, 1), vocabulary=vocabulary, predictor=Predictor(), evaluators=evaluators)
    per_instance = sum(len(record.annotations) for record in records)
    assert per_instance == IMAGES * INSTANCES and calls == [1] * IMAGES
    assert per_instance >= 8 * len(calls)
    # the instances were counted all the same: pixels under two of an object count twice
    counted = evaluation.results["oracle_obj"].confusion.sum()
    assert counted > sum((sample.object_part != 65535).sum().item() for sample in samples)
