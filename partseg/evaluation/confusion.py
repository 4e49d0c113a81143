"""What parts are taken for, object by object: a matrix over all classes is too large to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class ObjectConfusion:
    """Shares of each part's pixels: as the parts of its object that the truth holds, as other parts, as background."""

    name: str
    parts: tuple[str, ...]
    shares: Float[np.ndarray, "P P+2"]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what was predicted."""
        return (*self.parts, "other parts", "background")


def within_objects(entry: Mapping[str, Any]) -> list[ObjectConfusion]:
    """An entry of results.json, in the order of its classes; parts and objects that the truth lacks are left out."""
    objects = [c["object"] for c in entry["classes"]]
    parts = [c["part"] for c in entry["classes"]]
    counts = np.zeros((len(parts) + 1, len(parts) + 1))
    for truth, predicted, pixels in entry["confusion"]:
        counts[truth, predicted] = pixels
    found = []
    for name in dict.fromkeys(objects):
        own = [k for k, owner in enumerate(objects) if owner == name and counts[k].sum()]
        if own:
            total, inside, nothing = counts[own].sum(1), counts[np.ix_(own, own)], counts[own][:, -1]
            columns = np.column_stack([inside, total - inside.sum(1) - nothing, nothing])
            found.append(ObjectConfusion(name, tuple(parts[k] for k in own), columns / total[:, None]))
    return found
