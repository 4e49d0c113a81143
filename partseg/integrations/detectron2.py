"""Bridge to detectron2: our data sets in its catalogs, our models and evaluators behind its interfaces.

Nothing in partseg imports this file. It changes detectron2's global catalogs only when `register_*` is called. Use is
described in docs/detectron2.md; the numbers are those of tools/eval_net.py, integer for integer.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from partseg.data import catalog
from partseg.data.dataset import Mapper, PartSegDataset
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.engine.checkpoint import load_model
from partseg.evaluation.evaluator import Answer, Evaluator
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor, PreparedPredictor
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.evaluation.runner import process_image
from partseg.geometry import InputSpec
from partseg.labels import IGNORE_LABEL
from partseg.losses.criterion import Criterion, loss_of
from partseg.prediction import DenseScores
from partseg.structures import Record, Sample, collate, stack_images
from partseg.utils import distributed
from partseg.utils.visualize import palette
from partseg.vocabulary.names import Vocabulary

try:
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import DatasetEvaluator
    from detectron2.modeling import META_ARCH_REGISTRY
except ImportError as error:
    raise ImportError(
        "partseg.integrations.detectron2 needs detectron2, which is not on the package index: install it with "
        "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
    ) from error

PREFIX = "partseg_"
SPLITS = ("train", "val")
RECORD, SAMPLE, PREDICTION = "partseg_record", "partseg_sample", "partseg_prediction"
"""Keys that our mapper and model add to detectron2's dictionaries."""


def register_datasets(root: str | Path = "data", *, names: Sequence[str] | None = None) -> list[str]:
    """Register our data sets as `partseg_<name>_<split>` and return these names; files are read on first use.

    `root` holds the folders of the data sets (data_root). Registering again replaces our own entries, no one else's.
    """
    registered = []
    for name in names or catalog.names():
        for split in SPLITS:
            registered.append(_register(name, split, Path(root)))
    return registered


def build_dataset(name: str, *, mapper: Mapper | None = None) -> PartSegDataset:
    """The partseg data set behind a registered name."""
    metadata = MetadataCatalog.get(name)
    return catalog.get(
        metadata.partseg_dataset, split=metadata.partseg_split, data_root=metadata.partseg_root, mapper=mapper
    )


class PartSegMapper:
    """detectron2 mapper: a registered dictionary -> the same with `image`, `sem_seg` and our sample.

    `image` is uint8 RGB [3, H, W] at network size, `sem_seg` the object-part map in ids of `vocabulary`, IGNORE_LABEL
    where there is none. `label_vocabulary` numbers the files.
    """

    def __init__(self, mapper: Mapper, *, label_vocabulary: Vocabulary, vocabulary: Vocabulary) -> None:
        self.mapper = mapper
        self.label_vocabulary = label_vocabulary
        self.vocabulary = vocabulary

    @classmethod
    def of(cls, name: str, *, size: int, is_train: bool) -> PartSegMapper:
        """The usual mapper of a registered data set at `size` x `size` pixels."""
        dataset = build_dataset(name)
        mapper: Mapper = TrainMapper(size=size) if is_train else EvalMapper(InputSpec((size, size)))
        return cls(mapper, label_vocabulary=dataset.label_vocabulary, vocabulary=dataset.vocabulary)

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any] | None:
        """One mapped dictionary; augmentation follows the worker's numpy seed, which detectron2 sets.

        None for a picture that the mapper drops: detectron2's loader then takes another.
        """
        seed = np.random.randint(1 << 31)  # noqa: NPY002 (detectron2 seeds the global generator of its workers)
        sample = self.mapper(
            dataset_dict[RECORD],
            label_vocabulary=self.label_vocabulary,
            vocabulary=self.vocabulary,
            rng=np.random.default_rng(seed),
        )
        if sample is None:
            return None
        height, width = sample.object_part.shape
        return {
            **dataset_dict,
            "height": height,
            "width": width,
            "image": sample.image,
            "sem_seg": sample.object_part.long(),
            SAMPLE: sample,
        }


class Detectron2Model(nn.Module):
    """A partseg model as a detectron2 meta-architecture: list of dictionaries in, losses or `sem_seg` out.

    Training returns {"loss": ...}, the criterion's sum over all processes and images as in our own trainer. Evaluation
    returns per image `partseg_prediction`, which Detectron2Evaluator reads, and with `sem_seg` the gated scores of
    `pred_all` at the label's size, [K + 1, h, w], background last, for detectron2's own evaluators.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        vocabulary: Vocabulary,
        train_vocabulary: Vocabulary | None = None,
        criterion: Criterion | None = None,
        sem_seg: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.train_vocabulary = train_vocabulary or vocabulary.seen_subset()
        self.criterion = criterion
        self.sem_seg = sem_seg
        self._prepared: PreparedPredictor | None = None
        self.register_load_state_dict_pre_hook(_accept_bare_names)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> Detectron2Model:
        """Also drops the text features: they are kept while the weights cannot change, and no longer."""
        self._prepared = None
        return super().train(mode)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, predictions otherwise."""
        samples = [_sample(item) for item in batched_inputs]
        return self._losses(samples) if self.training else self._predict(samples, batched_inputs)

    def _losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        if self.criterion is None:
            raise ValueError("Detectron2Model was built without a criterion: give criterion= to train it")
        batch = collate(samples, vocabulary=self.train_vocabulary).to(self.device)
        loss, _terms, _outputs = loss_of(self.model, self.criterion, batch)
        return {"loss": loss * distributed.world_size()}

    @torch.inference_mode()
    def _predict(self, samples: Sequence[Sample], inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if self._prepared is None:
            self._prepared = Predictor().prepare(self.model, self.vocabulary)
        sizes = [(int(item["height"]), int(item["width"])) for item in inputs]
        images, regions = stack_images(samples)
        results = []
        for prediction in self._prepared(images, sizes, regions=regions):
            result: dict[str, Any] = {PREDICTION: prediction}
            if self.sem_seg and isinstance(prediction, DenseScores):
                result["sem_seg"] = gated_scores(prediction.cropped(), self.vocabulary)
            results.append(result)
        return results


class Detectron2Evaluator(DatasetEvaluator):
    """Our evaluators in detectron2's interface; `evaluate` returns {protocol: {score: percent}} on every process.

    `evaluators` default to Oracle-Obj and Pred-All. Needs inputs from PartSegMapper and outputs of Detectron2Model.
    """

    def __init__(self, vocabulary: Vocabulary, *, evaluators: Mapping[str, Evaluator] | None = None) -> None:
        self.vocabulary = vocabulary
        self.evaluators = dict(evaluators or {p.name: PixelEvaluator(p) for p in (OracleObj(), PredAll())})

    def reset(self) -> None:
        """Start counting."""
        for evaluator in self.evaluators.values():
            evaluator.reset(self.vocabulary)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch."""
        for item, output in zip(inputs, outputs, strict=True):
            if PREDICTION not in output:
                raise KeyError(
                    f"outputs lack {PREDICTION!r}; Detectron2Evaluator scores the outputs of Detectron2Model"
                )
            prediction = output[PREDICTION]
            if isinstance(prediction, DenseScores):
                objects = None if prediction.object is None else prediction.object.cpu()
                prediction = replace(prediction, object_part=prediction.object_part.cpu(), object=objects)
            process_image(Answer(prediction, self.vocabulary), _sample(item), self.evaluators)

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Scores of all processes together; every process must call it. Undefined scores are left out."""
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        for name, evaluator in self.evaluators.items():
            scores = evaluator.evaluate().scores()
            results[name] = {key: value for key, value in scores.items() if value is not None}
        return results


def gated_scores(scores: DenseScores, vocabulary: Vocabulary) -> Float[Tensor, "K+1 h w"]:
    """Sigmoid scores at full size with `pred_all`'s gate applied, so that their argmax is its label map.

    Makes the full volume (K + 1) * h * w; our own evaluator does not need it.
    """
    size = scores.size
    parts = F.interpolate(scores.object_part[None].float(), size, mode="bilinear", align_corners=False)[0].sigmoid()
    if scores.object is None:
        return parts
    objects = F.interpolate(scores.object[None].float(), size, mode="bilinear", align_corners=False)[0]
    owner = torch.as_tensor(np.append(vocabulary.object_of, vocabulary.num_objects), device=parts.device)
    return parts * (objects.argmax(0) == owner[:, None, None])


def register_meta_architecture() -> str:
    """Make cfg.MODEL.META_ARCHITECTURE = "PartSeg" build the checkpoint named by cfg.MODEL.WEIGHTS; returns that name.

    The model is evaluated with the vocabulary of the data set cfg.DATASETS.TEST[0] (one of ours).
    """
    if "PartSeg" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(PartSeg)
    return "PartSeg"


def PartSeg(cfg: Any) -> Detectron2Model:
    """A checkpoint of ours as the meta-architecture of a detectron2 config."""
    model, train_vocabulary, _config = load_model(cfg.MODEL.WEIGHTS)
    vocabulary = build_dataset(cfg.DATASETS.TEST[0]).vocabulary
    return Detectron2Model(model, vocabulary=vocabulary, train_vocabulary=train_vocabulary).to(cfg.MODEL.DEVICE)


def _register(name: str, split: str, root: Path) -> str:
    registered = f"{PREFIX}{name}_{split}"
    if registered in DatasetCatalog:
        DatasetCatalog.remove(registered)
        MetadataCatalog.remove(registered)

    def dictionaries() -> list[dict[str, Any]]:
        return [_dictionary(record) for record in catalog.get(name, split=split, data_root=root).records]

    module = importlib.import_module(str(catalog.node(name)["_target_"]).rpartition(".")[0])
    label_bits = getattr(module, "LABEL_BITS", 8)
    DatasetCatalog.register(registered, dictionaries)
    MetadataCatalog.get(registered).set(
        partseg_dataset=name,
        partseg_split=split,
        partseg_root=str(root),
        evaluator_type="partseg",
        ignore_label=255 if label_bits == 8 else IGNORE_LABEL,
        **_class_names(catalog.vocabulary(name)),
    )
    return registered


def _class_names(vocabulary: Vocabulary) -> dict[str, Any]:
    """Names and colours in the order of the label files, and which of them are unseen."""
    names = list(vocabulary.object_parts)
    return {
        "stuff_classes": names,
        "stuff_colors": list(palette(tuple(names))),
        "object_classes": list(vocabulary.objects),
        "part_classes": list(vocabulary.parts),
        "seen_classes": [n for n, seen in zip(names, vocabulary.seen, strict=True) if seen],
        "unseen_classes": [n for n, seen in zip(names, vocabulary.seen, strict=True) if not seen],
    }


def _dictionary(record: Record) -> dict[str, Any]:
    height, width = record.height, record.width
    if height is None or width is None:
        with Image.open(record.file_name) as image:  # reads the header only
            width, height = image.size
    values = {
        "file_name": record.file_name,
        "height": height,
        "width": width,
        "image_id": record.image_id,
        "sem_seg_file_name": record.object_part_file_name,
    }
    return {key: value for key, value in values.items() if value is not None} | {RECORD: record}


def _sample(item: Mapping[str, Any]) -> Sample:
    if SAMPLE not in item:
        raise KeyError(f"inputs lack {SAMPLE!r}: build the data loader with mapper=PartSegMapper(...)")
    return item[SAMPLE]


def _accept_bare_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Our checkpoints name the model's own parameters; here the model lies one level deeper."""
    if not any(key.startswith(f"{prefix}model.") for key in state_dict):
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}model.{key.removeprefix(prefix)}"] = state_dict.pop(key)
