"""What a notebook imports: `partseg.load(name).predict(photo, {"dog": ["head", "tail"]})`.

Reads photos of any kind, runs them through the same resize, predictor and protocol code as tools/eval_net.py, and
returns `Prediction`s.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from partseg.data.images import ImageLike, Photo, list_images, read_photo
from partseg.data.loader import collate_eval
from partseg.engine import pretrained as models
from partseg.evaluation.evaluator import Answer, Objects
from partseg.evaluation.photos import PROTOCOLS, photo_prediction
from partseg.evaluation.predictor import Predictor, PreparedPredictor
from partseg.evaluation.runner import on_device, predict_batch
from partseg.geometry import Geometry, InputSpec, to_tensor
from partseg.labels import IGNORE_LABEL
from partseg.photo_prediction import PhotoPrediction
from partseg.prediction import Prediction, Segments
from partseg.requests import GivenMask, Request, object_map, per_image
from partseg.structures import Sample
from partseg.system import Explains, Words
from partseg.utils.devices import autocast
from partseg.utils.parallel import read_ahead
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.vocabulary.words import VocabularyLike, as_vocabulary

CACHED_VOCABULARIES = 8
READERS = 2

OnError = Callable[[ImageLike, Exception], None]


def load(
    checkpoint: str | Path,
    device: str | torch.device | None = None,
    *,
    model: str | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    object_first: bool = False,
    plugins: Sequence[str] = (),
) -> Segmenter:
    """A segmenter from one of our checkpoints, a saved folder, a public file or a hub name.

    Ours are .pt files, run directories (the latest checkpoint) and what `Segmenter.save` wrote. Of public ones,
    "CIDAS/clipseg-rd64-refined" is known by name and the README's zoo lists all; `model` chooses the system where
    several read a file. `device` defaults to the first GPU, or the CPU where there is none. `object_first` finds the
    objects and looks for the parts of each on a cut-out of the photo (`Predictor` has more options). A checkpoint
    builds partseg's own networks only; `plugins` names the modules of other ones, and files they read.
    """
    found = models.load(checkpoint, model=model, plugins=plugins)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found.model.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is not there, or full
        raise ValueError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from error
    predictor = Predictor(precision=precision, object_first=object_first)
    return Segmenter(found.model, vocabulary=found.vocabulary, predictor=predictor, origin=found)


class Segmenter:
    """A model in evaluation mode that takes photos and words.

    `vocabulary` is used where none is given. Text features are kept for the last few vocabularies and made anew when
    the model's weights change. Use `load` to get one from a checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        vocabulary: Vocabulary | None,
        predictor: Predictor | None = None,
        origin: models.Pretrained | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.predictor = predictor or Predictor()
        self.origin = origin
        self._prepared: OrderedDict[tuple, PreparedPredictor] = OrderedDict()

    from_pretrained = staticmethod(load)

    @property
    def about(self) -> models.About:
        """What the model is, where it comes from and what it was trained on."""
        if self.origin is None:
            return models.About(type(self.model).__name__, "this process", "unknown data")
        return self.origin.about

    def save(self, folder: str | Path) -> Path:
        """Write weights, settings and a card into a folder that `load` takes, on any machine and from the hub."""
        if self.origin is None:
            raise ValueError("this segmenter was not made by partseg.load, so nothing says how its network is built")
        return models.save(replace(self.origin, model=self.model, vocabulary=self.vocabulary), folder)

    def push(self, repository: str, *, folder: str | Path, private: bool = True) -> str:
        """`save` into `folder`, then upload it to the hub repository `owner/name`; returns its address."""
        return models.push(self.save(folder), repository, private=private)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def predict(
        self,
        image: ImageLike | Sequence[ImageLike],
        vocabulary: VocabularyLike | Sequence[str] | None = None,
        *,
        phrases: Sequence[str] | str | None = None,
        protocol: str = "pred_all",
        object: str | Sequence[str | None] | None = None,
        object_mask: GivenMask | Sequence[GivenMask | None] | None = None,
        return_scores: bool = False,
        attention: bool = False,
        min_score: float = 0.0,
        batch_size: int = 4,
    ) -> PhotoPrediction | list[PhotoPrediction]:
        """The parts in one photo, or in each of a list or folder (then a list comes back).

        Photos are paths, PIL images, uint8 arrays [h, w, 3] or tensors [3, h, w]. `vocabulary` is a mapping from
        object to parts, a Vocabulary, a YAML file, a shipped name, or text; None takes the checkpoint's own.
        A flat list of words (["dog head", "wheel"]), or `phrases`, asks for a mask per phrase, from systems that read
        phrases.
        `protocol="oracle_obj"` is told the object: `object` names it, `object_mask` [h, w] says where it is (default:
        everywhere), or is a mapping from names to masks. For a list of photos both may be lists of the same length.
        Instances below `min_score` are left out. For large folders use `predict_many`, which holds a few photos at a
        time.
        """
        if isinstance(image, str | Path) and Path(image).is_dir():
            image = list(list_images(image)[0])
        images: list[Any] = list(image) if isinstance(image, list | tuple) else [image]
        names, masks = per_image(object, images, "object"), per_image(object_mask, images, "object_mask")
        predictions = self.predict_many(
            (Request(*each) for each in zip(images, names, masks, strict=True)),
            vocabulary,
            phrases=phrases,
            protocol=protocol,
            return_scores=return_scores,
            attention=attention,
            min_score=min_score,
            batch_size=batch_size,
        )
        return list(predictions) if isinstance(image, list | tuple) else next(predictions)

    def predict_many(
        self,
        images: Iterable[ImageLike | Request],
        vocabulary: VocabularyLike | Sequence[str] | None = None,
        *,
        phrases: Sequence[str] | str | None = None,
        protocol: str = "pred_all",
        return_scores: bool = False,
        attention: bool = False,
        min_score: float = 0.0,
        batch_size: int = 4,
        on_error: OnError | None = None,
    ) -> Iterator[PhotoPrediction]:
        """Predictions one by one, in order, with at most a few photos in memory; the next ones are read meanwhile.

        A photo that cannot be used raises, or goes to `on_error` and is left out.
        """
        words = self.words(vocabulary, phrases)
        self._check(words, protocol, batch_size, return_scores=return_scores, attention=attention)
        asked = _Asked(words, protocol, return_scores, attention, min_score)
        requests = (item if isinstance(item, Request) else Request(item) for item in images)

        def generate() -> Iterator[PhotoPrediction]:
            batch: list[_Input] = []
            read = read_ahead(lambda request: self._read(request, asked), requests, ahead=batch_size, threads=READERS)
            for request, future in read:
                try:
                    batch.append(future.result())
                except (ValueError, OSError, KeyError) as error:
                    if on_error is None:
                        raise
                    on_error(request.image, error)
                if len(batch) == batch_size:
                    yield from self._run(batch, asked)
                    batch = []
            if batch:
                yield from self._run(batch, asked)

        return generate()

    def refer(self, image: ImageLike, phrases: Sequence[str] | str) -> Bool[np.ndarray, "*E h w"]:
        """The mask of a phrase [h, w], or of each of several [E, h, w]; the photo is encoded once for all of them."""
        found = self.predict(image, phrases=phrases)
        assert isinstance(found, PhotoPrediction)
        masks = np.zeros((len(found.classes), *found.labels.shape), bool)
        for segment in found.segments:
            masks[segment.label] = segment.mask()
        return masks[0] if isinstance(phrases, str) else masks

    def words(
        self,
        vocabulary: VocabularyLike | Sequence[str] | None = None,
        phrases: Sequence[str] | str | None = None,
    ) -> Words:
        """What is asked for: phrases, a vocabulary, or the checkpoint's own."""
        if phrases is not None and vocabulary is not None:
            raise ValueError("give either a vocabulary or phrases, not both")
        if isinstance(vocabulary, list | tuple):
            phrases = vocabulary
        if phrases is not None:
            return Phrases.of(phrases)
        if vocabulary is not None:
            return as_vocabulary(vocabulary)  # type: ignore[arg-type]
        if self.vocabulary is None:
            raise ValueError(
                f'{self.about.system} has no words of its own: give some, for example {{"dog": ["head", "tail"]}}'
            )
        return self.vocabulary

    def _check(self, words: Words, protocol: str, batch_size: int, *, return_scores: bool, attention: bool) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {protocol!r} is not one of {list(PROTOCOLS)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(words, Phrases) and (protocol != "pred_all" or attention or return_scores):
            raise ValueError("phrases are masks of their own: leave out protocol, attention and scores")
        if attention and not isinstance(self.model, Explains):
            raise ValueError(f"{type(self.model).__name__} does not show where it looked; leave out attention")
        if self.predictor.object_first and (attention or return_scores):
            raise ValueError("object_first looks at one object at a time: leave out attention and scores")
        if self.input.needs_object and protocol != "oracle_obj":
            name = type(self.model).__name__
            raise ValueError(f"{name} cuts a given object into parts: give protocol='oracle_obj' and the object's mask")

    @property
    def input(self) -> InputSpec:
        """How the model wants to see a photo."""
        return self.model.input  # type: ignore[return-value]

    def prepare(
        self, vocabulary: VocabularyLike | None = None, *, phrases: Sequence[str] | str | None = None
    ) -> PreparedPredictor:
        """The predictor with the text of a vocabulary or of phrases encoded; cached until the weights change."""
        return self._prepare(self.words(vocabulary, phrases))

    def _prepare(self, words: Words) -> PreparedPredictor:
        # an in-place change of a weight raises its version, a replaced or moved one has another address
        weights = tuple((p._version, p.data_ptr()) for p in self.model.parameters())
        key = (type(words), words.key, hash(weights))
        if key not in self._prepared:
            for stale in [k for k in self._prepared if k[2] != key[2]]:
                del self._prepared[stale]
            self._prepared[key] = self.predictor.prepare(self.model, words)
            while len(self._prepared) > CACHED_VOCABULARIES:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _read(self, request: Request, asked: _Asked) -> _Input:
        """Runs in a reader thread."""
        photo = read_photo(request.image)
        objects = object_map(request, photo, asked.words, asked.protocol, needs_object=self.input.needs_object)
        source = str(request.image) if isinstance(request.image, str | Path) else photo.name
        height, width = photo.size
        geometry = self.input.geometry(height, width)
        nothing = torch.full((1, 1), IGNORE_LABEL, dtype=torch.int32).expand(photo.size)
        sample = Sample(
            image=to_tensor(geometry.image(photo.image)),
            object_part=nothing,
            object=nothing if objects is None else torch.from_numpy(objects),
            name=photo.name,
            file_name=source,
            region=None if geometry.region == (0, 0, *geometry.size) else geometry.region,
            photo=to_tensor(photo.image) if self.predictor.object_first else None,
        )
        return _Input(photo, sample, geometry, source)

    def _run(self, batch: Sequence[_Input], asked: _Asked) -> Iterator[PhotoPrediction]:
        prepared = self._prepare(asked.words)
        told: Objects = "truth" if asked.protocol == "oracle_obj" else "none"
        found = predict_batch(prepared, collate_eval([item.sample for item in batch]), told=(told,))
        for item, prediction in zip(batch, found, strict=True):
            if isinstance(prediction, Segments):
                prediction = prediction.select(prediction.scores >= asked.min_score)
            yield self._photo_prediction(item, prediction, asked)

    def _photo_prediction(self, item: _Input, prediction: Prediction, asked: _Asked) -> PhotoPrediction:
        words = asked.words
        answer = Answer(prediction, words, class_chunk=self.predictor.class_chunk)  # type: ignore[arg-type]
        sample = on_device(item.sample, self.device)
        found = photo_prediction(answer, sample, words, asked.protocol, keep_scores=asked.scores)
        attention = {}
        if asked.attention and isinstance(words, Vocabulary):
            attention = self._attention(item, found.labels, words)
        pixels = np.asarray(item.photo.image)
        return replace(found, image=pixels, notes=item.photo.notes, attention=attention, caution=self.about.caution)

    def attention(
        self,
        image: ImageLike,
        labels: Int[np.ndarray, "h w"] | Int[Tensor, "h w"],
        vocabulary: VocabularyLike | None = None,
    ) -> dict[str, Float[np.ndarray, "rows columns"]]:
        """Part name -> where the network looks for it, on its grid; ValueError for systems that do not show it."""
        words = self.words(vocabulary)
        self._check(words, "pred_all", 1, return_scores=False, attention=True)
        assert isinstance(words, Vocabulary)
        item = self._read(Request(image), _Asked(words, "pred_all"))
        return self._attention(item, torch.as_tensor(labels).cpu().numpy(), words)

    @torch.inference_mode()
    def _attention(self, item: _Input, labels: np.ndarray, words: Vocabulary) -> dict[str, np.ndarray]:
        assert isinstance(self.model, Explains)
        small = torch.from_numpy(item.geometry.labels(labels, fill=IGNORE_LABEL).astype(np.int32))[None]
        prompts = self._prepare(words).encoded
        with autocast(self.device, self.predictor.precision):
            maps = self.model.attention(item.sample.image[None].to(self.device), prompts, small.to(self.device), words)
        return {words.object_parts[k]: heat.float().cpu().numpy() for k, heat in maps[0].items()}


@dataclass(frozen=True)
class _Asked:
    """What a call wants of each photo."""

    words: Words
    protocol: str
    scores: bool = False
    attention: bool = False
    min_score: float = 0.0


@dataclass(frozen=True)
class _Input:
    """A photo as read, as the network sees it, and the objects given for it."""

    photo: Photo
    sample: Sample
    geometry: Geometry
    source: str
