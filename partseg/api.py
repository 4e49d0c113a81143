"""What a notebook imports: `partseg.load(checkpoint).predict(photo, {"dog": ["head", "tail"]})`.

Reads photos of any kind, runs them through the same resize, predictor and protocol code as tools/eval_net.py, and
returns `Prediction`s.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from partseg.data.images import ImageLike, Photo, read_mask, read_photo
from partseg.engine import checkpoint as checkpoints
from partseg.evaluation.labels import ScoreReader
from partseg.evaluation.predictor import Predictor, PreparedPredictor
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.geometry import Geometry, to_tensor
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Sample, Scores
from partseg.systems.part_clipseg.attention_maps import MaskAttention, masked_attention
from partseg.utils.prediction import Prediction
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.words import VocabularyLike, as_vocabulary

PROTOCOLS: dict[str, type[PredAll] | type[OracleObj]] = {"pred_all": PredAll, "oracle_obj": OracleObj}
CACHED_VOCABULARIES = 8
READERS = 2

MaskLike = str | Path | Image.Image | np.ndarray | Tensor
GivenMask = MaskLike | Mapping[str, MaskLike]


@dataclass(frozen=True)
class Request:
    """One photo and, for `oracle_obj`, the object on it: a name (the whole photo), a name with its mask, or masks."""

    image: ImageLike
    object: str | None = None
    object_mask: GivenMask | None = None


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
        protocol: str = "pred_all",
        object: str | Sequence[str | None] | None = None,
        object_mask: GivenMask | Sequence[GivenMask | None] | None = None,
        return_scores: bool = False,
        attention: bool = False,
        batch_size: int = 4,
    ) -> Prediction | list[Prediction]:
        """The parts in one photo, or in each of a list (then a list comes back).

        Photos are paths, PIL images, uint8 arrays [h, w, 3] or tensors [3, h, w]. `vocabulary` is a mapping from
        object to parts, a Vocabulary, a YAML file, a shipped name, or text; None takes the checkpoint's own.
        `protocol="oracle_obj"` is told the object: `object` names it, `object_mask` [h, w] says where it is (default:
        everywhere), or is a mapping from names to masks. For a list of photos both may be lists of the same length.
        For a folder use `predict_many`, which holds a few photos at a time.
        """
        images: list[Any] = list(image) if isinstance(image, list | tuple) else [image]
        names, masks = _per_image(object, images, "object"), _per_image(object_mask, images, "object_mask")
        predictions = self.predict_many(
            (Request(*each) for each in zip(images, names, masks, strict=True)),
            vocabulary,
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
        protocol: str = "pred_all",
        return_scores: bool = False,
        attention: bool = False,
        batch_size: int = 4,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one by one, in order, with at most a few photos in memory; the next ones are read meanwhile.

        A photo that cannot be used raises, or goes to `on_error` and is left out.
        """
        words = self.vocabulary if vocabulary is None else as_vocabulary(vocabulary)
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {protocol!r} is not one of {list(PROTOCOLS)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        requests = (item if isinstance(item, Request) else Request(item) for item in images)

        def generate() -> Iterator[Prediction]:
            batch: list[_Input] = []
            read = _read_ahead(lambda request: self._read(request, words, protocol), requests, ahead=batch_size)
            for request, future in read:
                try:
                    batch.append(future.result())
                except (ValueError, OSError, KeyError) as error:
                    if on_error is None:
                        raise
                    on_error(request.image, error)
                if len(batch) == batch_size:
                    yield from self._run(batch, words, protocol, return_scores, attention)
                    batch = []
            if batch:
                yield from self._run(batch, words, protocol, return_scores, attention)

        return generate()

    def prepare(self, vocabulary: VocabularyLike | None = None) -> PreparedPredictor:
        """The predictor with the text of a vocabulary encoded; cached until the weights change."""
        words = self.vocabulary if vocabulary is None else as_vocabulary(vocabulary)
        # an in-place change of a weight raises its version, a replaced or moved one has another address
        weights = tuple((p._version, p.data_ptr()) for p in self.model.parameters())
        key = (words.key, hash(weights))
        if key not in self._prepared:
            for stale in [k for k in self._prepared if k[1] != key[1]]:
                del self._prepared[stale]
            self._prepared[key] = self.predictor.prepare(self.model, words)
            while len(self._prepared) > CACHED_VOCABULARIES:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _read(self, request: Request, words: Vocabulary, protocol: str) -> _Input:
        """Runs in a reader thread."""
        photo = read_photo(request.image)
        objects = _object_map(request, photo, words, protocol)
        source = str(request.image) if isinstance(request.image, str | Path) else photo.name
        return _Input(photo, self._network_image(photo), objects, source)

    def _network_image(self, photo: Photo) -> UInt8[Tensor, "3 H W"]:
        """The photo as EvalMapper resizes it."""
        size = int(self.model.image_size)  # type: ignore[arg-type]
        shown = Geometry((0, 0, photo.image.width, photo.image.height), ((size, size),)).image(photo.image)
        return to_tensor(shown, channel_order="rgb")

    def _run(
        self, batch: Sequence[_Input], words: Vocabulary, protocol: str, return_scores: bool, attention: bool
    ) -> Iterator[Prediction]:
        images = torch.stack([item.network_image for item in batch])
        for item, scores in zip(batch, self.prepare(words)(images, [item.photo.size for item in batch]), strict=True):
            labels = self._labels(scores, item, words, protocol)
            yield Prediction(
                labels=labels.cpu().numpy(),
                image=np.asarray(item.photo.image),
                vocabulary=words,
                name=item.photo.name,
                source=item.source,
                protocol=protocol,
                notes=item.photo.notes,
                logits=scores.object_part.float().cpu().numpy() if return_scores else None,
                attention=self._attention(item.network_image, labels, words) if attention else {},
            )

    @torch.inference_mode()
    def _labels(self, scores: Scores, item: _Input, words: Vocabulary, protocol: str) -> Tensor:
        nothing = torch.full((1, 1), IGNORE_LABEL, dtype=torch.int32, device=scores.object_part.device)
        nothing = nothing.expand(item.photo.size)
        given = nothing if item.objects is None else torch.from_numpy(item.objects).to(nothing.device)
        sample = Sample(item.network_image, nothing, given, item.photo.name, item.source)
        reader = ScoreReader(scores, class_chunk=self.predictor.class_chunk)
        choice = PROTOCOLS[protocol]().choose(reader, sample, words)
        return reader.object_parts if choice is None else reader.choose([choice])[0]

    def attention(
        self,
        image: ImageLike,
        labels: Int[np.ndarray, "h w"] | Int[Tensor, "h w"],
        vocabulary: VocabularyLike | None = None,
    ) -> dict[str, Float[np.ndarray, "rows columns"]]:
        """Where the network looks for each part of a label map of the photo: name -> attention on the token grid.

        Last decoder layer, averaged over the part's cells (paper, eq. 6). ValueError for models without part prompts.
        """
        words = self.vocabulary if vocabulary is None else as_vocabulary(vocabulary)
        return self._attention(self._network_image(read_photo(image)), torch.as_tensor(labels).to(self.device), words)

    @torch.inference_mode()
    def _attention(self, network_image: Tensor, labels: Tensor, words: Vocabulary) -> dict[str, np.ndarray]:
        layer = len(self.model.decoder.layers) - 1  # type: ignore[arg-type,union-attr]
        image = network_image[None].to(self.device)
        with self.predictor.autocast(self.device):
            outputs = self.model(image, words, text=self.prepare(words).text, attention_layers=(layer,))
        if outputs.object is None:
            raise ValueError("attention behind parts needs a model with part and object prompts, such as PartCLIPSeg")
        rows, columns = (
            ((2 * torch.arange(size, device=labels.device) + 1) * full) // (2 * size)
            for size, full in zip(image.shape[-2:], labels.shape)
        )
        small = labels[rows][:, columns][None]
        found = masked_attention(outputs.attention, small, vocabulary=words, options=MaskAttention(layers=(layer,)))
        ids = found.object_part.tolist()
        return {words.object_parts[k]: heat.float().cpu().numpy() for k, heat in zip(ids, found.maps, strict=True)}


@dataclass(frozen=True)
class _Input:
    """A photo as read, as the network sees it, and the objects given for it."""

    photo: Photo
    network_image: Tensor
    objects: np.ndarray | None
    source: str


def given_objects(request: Request, words: Vocabulary, protocol: str) -> list[tuple[str, MaskLike | None]] | None:
    """Names that `oracle_obj` is told with their masks (None: everywhere), None for `pred_all`; ValueError if wrong."""
    name, given = request.object, request.object_mask
    if protocol != "oracle_obj":
        if name is not None or given is not None:
            raise ValueError(f"an object is only used by protocol='oracle_obj', the protocol is {protocol!r}")
        return None
    if isinstance(given, Mapping):
        if name is not None:
            raise ValueError("give object=<name> with one mask, or object_mask={name: mask, ...} alone, not both")
        masks: list[tuple[str, MaskLike | None]] = list(given.items())
    elif name is not None:
        masks = [(name, given)]
    elif len(words.objects) == 1:
        masks = [(words.objects[0], given)]
    else:
        raise ValueError(f"protocol='oracle_obj' needs to know the object; give object=<one of {list(words.objects)}>")
    unknown = [each for each, _ in masks if each not in words.objects]
    if unknown:
        raise ValueError(f"object {unknown[0]!r} is not in the vocabulary; it has {list(words.objects)}")
    return masks


def _object_map(request: Request, photo: Photo, words: Vocabulary, protocol: str) -> np.ndarray | None:
    """int32 object ids [h, w] that `oracle_obj` is told, None for `pred_all`."""
    masks = given_objects(request, words, protocol)
    if masks is None:
        return None
    objects = np.full(photo.size, BACKGROUND_LABEL, np.int32)
    for each, mask in masks:
        objects[... if mask is None else _mask_array(mask, photo)] = words.object_id(each)
    return objects


def _mask_array(mask: MaskLike, photo: Photo) -> np.ndarray:
    """bool [h, w] of an array, tensor, or picture in which everything but black and transparent is the object."""
    if isinstance(mask, Tensor):
        array = mask.detach().cpu().numpy()
    elif isinstance(mask, np.ndarray):
        array = mask
    else:
        try:
            array = read_mask(mask)
        except FileNotFoundError:
            raise FileNotFoundError(f"{photo.name} has no mask {mask}") from None
    if array.shape != photo.size:
        raise ValueError(
            f"{photo.name}: the object mask is {list(array.shape)}, the upright photo is {list(photo.size)}"
        )
    return array if array.dtype == bool else array != 0


def _per_image(value: object, images: Sequence, what: str) -> list:
    """One entry per image: a list as it is, anything else repeated."""
    if not isinstance(value, list | tuple):
        return [value] * len(images)
    if len(value) != len(images):
        raise ValueError(f"{what} has {len(value)} entries for {len(images)} images; give one each")
    return list(value)


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
