"""What the bridge answers for a picture: our prediction, and detectron2's `sem_seg` where somebody asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from partseg.prediction import DenseScores, Prediction
from partseg.vocabulary.names import Vocabulary

PREDICTION = "partseg_prediction"
"""The key that our model adds to detectron2's dictionaries."""


class Result(dict[str, Any]):
    """What is predicted for one image. `sem_seg` is the gated scores of `pred_all` at the label's size, [K + 1, h, w].

    They take seconds and GiB at 234 classes, so they are made when somebody reads them.
    """

    def __init__(self, prediction: Prediction, vocabulary: Vocabulary) -> None:
        super().__init__({PREDICTION: prediction})
        self.vocabulary = vocabulary

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key == "sem_seg" and isinstance(self[PREDICTION], DenseScores))

    def __missing__(self, key: str) -> Tensor:
        if key not in self:
            raise KeyError(key)
        with torch.inference_mode():
            self[key] = gated_scores(self[PREDICTION].cropped(), self.vocabulary)
        return self[key]


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
