"""Features of a frozen image tower on disk, found again by the image's own bytes.

The tower is then run once per distinct image. Nothing about the data has to be known: a flipped or cropped image is
another image, so it pays for recipes with few variants of each picture (a flip has two), and any other stays right.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from partseg.utils.files import write_atomic

Compute = Callable[[Tensor], list[Tensor]]


class FeatureCache:
    """One file per image under `directory`, [layers, 1 + T, C] in fp32 (4.3 MiB at paper size).

    `parameters` and `settings` are what the features depend on beside the image; other weights are other files.
    """

    def __init__(self, directory: str | Path, *, parameters: Sequence[Tensor], settings: str) -> None:
        self.directory = Path(directory)
        self._parameters = parameters
        self._settings = settings
        self._versions: tuple[tuple[int, int], ...] = ()
        self._fingerprint = b""

    def features(self, images: UInt8[Tensor, "B 3 H W"], compute: Compute) -> list[Float[Tensor, "B 1+T C"]]:
        """`compute(images)`, run only for images that have no file yet."""
        paths = [self._path(image) for image in images.cpu().numpy()]
        found = [_read(path) for path in paths]
        missing = [i for i, features in enumerate(found) if features is None]
        if missing:
            fresh = torch.stack(compute(images[missing]), dim=1).float()
            for i, features in zip(missing, fresh):
                _write(paths[i], features)
                found[i] = features
        stacked = torch.stack([x.to(images.device) for x in found if x is not None])
        return list(stacked.unbind(1))

    def _path(self, image: np.ndarray) -> Path:
        digest = hashlib.blake2b(self._weights(), digest_size=20)
        digest.update(f"{self._settings} {image.shape} {_autocast()}".encode())
        digest.update(np.ascontiguousarray(image).data)
        key = digest.hexdigest()
        return self.directory / key[:2] / f"{key}.npy"

    def _weights(self) -> bytes:
        """Hash of the weights, computed again when one was written to since."""
        versions = tuple((p.data_ptr(), p._version) for p in self._parameters)
        if versions != self._versions:
            self._versions, self._fingerprint = versions, _hash(self._parameters)
        return self._fingerprint


def _hash(tensors: Iterable[Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).data)
    return digest.digest()


def _autocast() -> str:
    kinds = [kind for kind in ("cuda", "cpu") if torch.is_autocast_enabled(kind)]
    return " ".join(f"{kind} {torch.get_autocast_dtype(kind)}" for kind in kinds)


def _read(path: Path) -> Tensor | None:
    """The features in the file; None where there is no whole one."""
    try:
        stored = np.load(path)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return torch.from_numpy(stored)


def _write(path: Path, features: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, features.cpu().numpy())
    write_atomic(path, buffer.getvalue())
