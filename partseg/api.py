"""What a notebook imports: `partseg.load(checkpoint).predict(photo, {"dog": ["head", "tail"]})`.

Reads photos of any kind, runs them through the same resize, predictor and protocol code as tools/eval_net.py, and
returns `Prediction`s.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from partseg.data.images import ImageLike, Photo, read_photo
from partseg.data.loader import collate_eval
from partseg.engine import checkpoint as checkpoints
from partseg.evaluation.evaluator import Answer, Objects
from partseg.evaluation.photos import PROTOCOLS, photo_prediction
from partseg.evaluation.predictor import Predictor, PreparedPredictor
from partseg.evaluation.runner import on_device, predict_batch
from partseg.geometry import Geometry, InputSpec, to_tensor
from partseg.labels import IGNORE_LABEL
from partseg.photo_prediction import PhotoPrediction
from partseg.prediction import Prediction
from partseg.requests import GivenMask, Request, object_map, per_image
from partseg.structures import Sample
from partseg.system import Explains, Words
from partseg.utils.devices import autocast
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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    plugins: Sequence[str] = (),
) -> Segmenter:
    """A segmenter from one of our checkpoints: a .pt file or a run directory (its latest checkpoint).

    `device` defaults to the first GPU, or the CPU where there is none. A checkpoint builds partseg's own networks only;
    `plugins` names the modules of other ones, and files they read.
    """
    model, vocabulary, _ = checkpoints.load_model(checkpoint, plugins=plugins)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is not there, or full
        raise ValueError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from error
    return Segmenter(model, vocabulary=vocabulary, predictor=Predictor(precision=precision))


class Segmenter:
    """A model in evaluation mode that takes photos and words.

    `vocabulary` is used where none is given. Text features are kept for the last few vocabularies and made anew when
    the model's weights change. Use `load` to get one from a checkpoint.
    """

    def __init__(self, model: nn.Module, *, vocabulary: Vocabulary, predictor: Predictor | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.predictor = predictor or Predictor()
        self._prepared: OrderedDict[tuple, PreparedPredictor] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def predict(
        self,
        image: ImageLike | Sequence[ImageLike],
        vocabulary: VocabularyLike | None = None,
        *,
        phrases: Sequence[str] | str | None = None,
        protocol: str = "pred_all",
        object: str | Sequence[str | None] | None = None,
        object_mask: GivenMask | Sequence[GivenMask | None] | None = None,
        return_scores: bool = False,
        attention: bool = False,
        batch_size: int = 4,
    ) -> PhotoPrediction | list[PhotoPrediction]:
        """The parts in one photo, or in each of a list (then a list comes back).

        Photos are paths, PIL images, uint8 arrays [h, w, 3] or tensors [3, h, w]. `vocabulary` is a mapping from
        object to parts, a Vocabulary, a YAML file, a shipped name, or text; None takes the checkpoint's own.
        `phrases` asks for a mask per phrase instead ("the dog's left ear"), from systems that read phrases.
        `protocol="oracle_obj"` is told the object: `object` names it, `object_mask` [h, w] says where it is (default:
        everywhere), or is a mapping from names to masks. For a list of photos both may be lists of the same length.
        For a folder use `predict_many`, which holds a few photos at a time.
        """
        images: list[Any] = list(image) if isinstance(image, list | tuple) else [image]
        names, masks = per_image(object, images, "object"), per_image(object_mask, images, "object_mask")
        predictions = self.predict_many(
            (Request(*each) for each in zip(images, names, masks, strict=True)),
            vocabulary,
            phrases=phrases,
            protocol=protocol,
            return_scores=return_scores,
            attention=attention,
            batch_size=batch_size,
        )
        return list(predictions) if isinstance(image, list | tuple) else next(predictions)

    def predict_many(
        self,
        images: Iterable[ImageLike | Request],
        vocabulary: VocabularyLike | None = None,
        *,
        phrases: Sequence[str] | str | None = None,
        protocol: str = "pred_all",
        return_scores: bool = False,
        attention: bool = False,
        batch_size: int = 4,
        on_error: OnError | None = None,
    ) -> Iterator[PhotoPrediction]:
        """Predictions one by one, in order, with at most a few photos in memory; the next ones are read meanwhile.

        A photo that cannot be used raises, or goes to `on_error` and is left out.
        """
        words = self.words(vocabulary, phrases)
        self._check(words, protocol, batch_size, return_scores=return_scores, attention=attention)
        asked = _Asked(words, protocol, return_scores, attention)
        requests = (item if isinstance(item, Request) else Request(item) for item in images)

        def generate() -> Iterator[PhotoPrediction]:
            batch: list[_Input] = []
            read = _read_ahead(lambda request: self._read(request, asked), requests, ahead=batch_size)
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

    def words(self, vocabulary: VocabularyLike | None = None, phrases: Sequence[str] | str | None = None) -> Words:
        """What is asked for: phrases, a vocabulary, or the checkpoint's own."""
        if phrases is not None and vocabulary is not None:
            raise ValueError("give either a vocabulary or phrases, not both")
        if phrases is not None:
            return Phrases.of(phrases)
        return self.vocabulary if vocabulary is None else as_vocabulary(vocabulary)

    def _check(self, words: Words, protocol: str, batch_size: int, *, return_scores: bool, attention: bool) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {protocol!r} is not one of {list(PROTOCOLS)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(words, Phrases) and (protocol != "pred_all" or attention or return_scores):
            raise ValueError("phrases are masks of their own: leave out protocol, attention and scores")
        if attention and not isinstance(self.model, Explains):
            raise ValueError(f"{type(self.model).__name__} does not show where it looked; leave out attention")
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
        )
        return _Input(photo, sample, geometry, source)

    def _run(self, batch: Sequence[_Input], asked: _Asked) -> Iterator[PhotoPrediction]:
        prepared = self._prepare(asked.words)
        told: Objects = "truth" if self.input.needs_object else "none"
        found = predict_batch(prepared, collate_eval([item.sample for item in batch]), told=told)
        for item, prediction in zip(batch, found, strict=True):
            yield self._photo_prediction(item, prediction, asked)

    def _photo_prediction(self, item: _Input, prediction: Prediction, asked: _Asked) -> PhotoPrediction:
        words = asked.words
        answer = Answer(prediction, words, class_chunk=self.predictor.class_chunk)  # type: ignore[arg-type]
        sample = on_device(item.sample, self.device)
        found = photo_prediction(answer, sample, words, asked.protocol, keep_scores=asked.scores)
        attention = {}
        if asked.attention and isinstance(words, Vocabulary):
            attention = self._attention(item, found.labels, words)
        return replace(found, image=np.asarray(item.photo.image), notes=item.photo.notes, attention=attention)

    def attention(
        self,
        image: ImageLike,
        labels: Int[np.ndarray, "h w"] | Int[Tensor, "h w"],
        vocabulary: VocabularyLike | None = None,
    ) -> dict[str, Float[np.ndarray, "rows columns"]]:
        """Where the network looks for each part of a label map of the photo: name -> attention on the token grid.

        ValueError for systems that do not show it.
        """
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


@dataclass(frozen=True)
class _Input:
    """A photo as read, as the network sees it, and the objects given for it."""

    photo: Photo
    sample: Sample
    geometry: Geometry
    source: str


def _read_ahead(
    read: Callable[[Request], _Input], requests: Iterable[Request], *, ahead: int
) -> Iterator[tuple[Request, Future[_Input]]]:
    """Requests with their reading under way, in order; `ahead` of them are read while one is used."""
    requests = iter(requests)
    with ThreadPoolExecutor(READERS, thread_name_prefix="partseg-read") as pool:
        waiting = deque((request, pool.submit(read, request)) for request in islice(requests, ahead))
        while waiting:
            done = waiting.popleft()
            waiting.extend((request, pool.submit(read, request)) for request in islice(requests, 1))
            yield done
