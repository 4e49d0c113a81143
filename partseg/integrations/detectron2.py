"""Bridge to detectron2: our data sets in its catalogs, our models and evaluators behind its interfaces.

Nothing in partseg imports this file. It changes detectron2's global catalogs only when `register_*` is called. Use is
described in docs/detectron2.md; the numbers are those of tools/eval_net.py, integer for integer.
"""

from __future__ import annotations

import importlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from partseg.data import catalog
from partseg.data.dataset import Mapper, PartSegDataset
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.engine.described import KEY, described
from partseg.evaluation.evaluator import Answer, Evaluator
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor, PreparedPredictor
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.evaluation.runner import process_image
from partseg.geometry import InputSpec, to_tensor
from partseg.integrations.detectron2_results import PREDICTION, Result
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
except ImportError as error:
    raise ImportError(
        "partseg.integrations.detectron2 needs detectron2, which is not on the package index: install it with "
        "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
    ) from error

PREFIX = "partseg_"
SPLITS = ("train", "val")
RECORD, SAMPLE = "partseg_record", "partseg_sample"
"""Keys that our mapper adds to detectron2's dictionaries."""

OV_PARTS = {"voc": "pascal_part_116", "ade": "ade20k_part_234"}
ALIASES = {
    **{f"{their}_obj_part_sem_seg_{split}": (own, split) for their, own in OV_PARTS.items() for split in SPLITS},
    # of these OV-PARTS makes a record per object class or instance; here they are the pictures, once each
    **{
        f"{their}_obj_part_sem_seg_{split}_obj_condition": (own, split)
        for their, own in OV_PARTS.items()
        for split in SPLITS
    },
    **{f"{their}_obj_part_sem_seg_few_shot": (f"{own}_16shot", "train") for their, own in OV_PARTS.items()},
}
"""OV-PARTS' registered names -> our data set and split."""


def register_datasets(root: str | Path | None = None, *, names: Sequence[str] | None = None) -> list[str]:
    """Register our data sets as `partseg_<name>_<split>` and return these names; files are read on first use.

    `root` holds the folders of the data sets (data_root); default: $DETECTRON2_DATASETS, or data/. OV-PARTS' names for
    them (ALIASES) are registered too, unless they are taken: they are not returned. Registering again replaces our own
    entries, no one else's.
    """
    folder = Path(root if root is not None else os.environ.get("DETECTRON2_DATASETS", "data"))
    chosen = names or catalog.single_names()
    registered = [_register(f"{PREFIX}{n}_{split}", n, split, folder) for n in chosen for split in SPLITS]
    for alias, (name, split) in ALIASES.items():
        if name in chosen and (alias not in DatasetCatalog or hasattr(MetadataCatalog.get(alias), "partseg_dataset")):
            _register(alias, name, split, folder)
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

    Training returns `loss_<term>`, the weighted terms, whose sum is the criterion's over all processes and images as in
    our own trainer. Evaluation returns per image `partseg_prediction`, which Detectron2Evaluator reads, and for
    detectron2's own evaluators `sem_seg`, made when it is asked for. Inputs without our sample, as DefaultPredictor
    makes them, are photos in `input_format` of any size. With the `config` of the training its weights say what they
    are, and our own tools read detectron2's checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        vocabulary: Vocabulary,
        train_vocabulary: Vocabulary | None = None,
        criterion: Criterion | None = None,
        input_format: Literal["RGB", "BGR"] = "RGB",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.vocabulary = vocabulary
        self.train_vocabulary = train_vocabulary or vocabulary.seen_subset()
        self.criterion = criterion
        self.input_format = input_format
        self._prepared: PreparedPredictor | None = None
        self.register_load_state_dict_pre_hook(_accept_bare_names)
        self.register_load_state_dict_post_hook(lambda module, _: module.forget_words())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    def get_extra_state(self) -> Tensor:
        """What the weights say about the network."""
        return torch.zeros(0) if self.config is None else described(self.config, self.train_vocabulary)

    def set_extra_state(self, state: Tensor) -> None:
        """A network is what it was built as, whatever a file says."""

    def train(self, mode: bool = True) -> Detectron2Model:
        """Also drops the text features."""
        self.forget_words()
        return super().train(mode)

    def forget_words(self) -> None:
        """Drop the text features, which are those of the present weights: after loading others, as after training."""
        self._prepared = None

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, predictions otherwise."""
        if self.training:
            return self._losses([_sample(item) for item in batched_inputs])
        samples = [item[SAMPLE] if SAMPLE in item else self._photo(item) for item in batched_inputs]
        return self._predict(samples, batched_inputs)

    def _losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        if self.criterion is None:
            raise ValueError("Detectron2Model was built without a criterion: give criterion= to train it")
        batch = collate(samples, vocabulary=self.train_vocabulary).to(self.device)
        loss, terms, _outputs = loss_of(self.model, self.criterion, batch)
        count = distributed.world_size()
        shown = {f"loss_{name}": self.criterion.weights[name] * value * count for name, value in terms.items()}
        # the terms are shown, the gradient is that of the loss: it hangs on the first of them and adds 0 to its value
        first = next(iter(shown))
        return {**shown, first: shown[first] + (loss - loss.detach()) * count}

    def _photo(self, item: Mapping[str, Any]) -> Sample:
        """A picture [3, h, w] of 0..255 as the network sees it; no labels."""
        pixels = item["image"].detach().cpu().clamp(0, 255).to(torch.uint8)
        photo = Image.fromarray((pixels if self.input_format == "RGB" else pixels.flip(0)).permute(1, 2, 0).numpy())
        geometry = self.model.input.geometry(photo.height, photo.width)  # type: ignore[union-attr,operator]
        nothing = torch.zeros(0, 0, dtype=torch.int32)
        return Sample(to_tensor(geometry.image(photo)), nothing, nothing, "", "", region=geometry.region)

    @torch.inference_mode()
    def _predict(self, samples: Sequence[Sample], inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if self._prepared is None:
            self._prepared = Predictor().prepare(self.model, self.vocabulary)
        sizes = [(int(item["height"]), int(item["width"])) for item in inputs]
        images, regions = stack_images(samples)
        return [Result(prediction, self.vocabulary) for prediction in self._prepared(images, sizes, regions=regions)]


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


def _register(registered: str, name: str, split: str, root: Path) -> str:
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
        # as OV-PARTS calls them
        "obj_classes": list(vocabulary.objects),
        "obj_base_classes": [n for n in vocabulary.objects if n not in vocabulary.unseen_objects],
        "base_classes": [n for n, seen in zip(names, vocabulary.seen, strict=True) if seen],
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
    state_dict.setdefault(f"{prefix}{KEY}", torch.zeros(0))
