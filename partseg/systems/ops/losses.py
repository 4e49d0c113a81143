"""What OPS is trained with: sets of masks against annotated parts, and two terms that need no part labels.

An image without an annotated part is an unlabelled one, and adds to the last two terms only. Random points and rows
are drawn from the batch itself, so that a resumed run draws them again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from partseg.losses.term import LossInputs, share_of
from partseg.structures import INSTANCE_LEVELS, Batch, Instances
from partseg.systems.ops.clustering import kmeans, on_grid, solidity
from partseg.systems.ops.mask2former import import_transformers

What = Literal["class", "mask", "dice"]
Form = Literal["code", "paper"]
_NAMES: Mapping[What, str] = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}


@dataclass(frozen=True)
class Matching:
    """How queries and parts are paired (Mask2Former's weights) and compared: on `points` random points of each mask.

    `no_object` is the weight of queries without a part in the class term.
    """

    points: int = 12544
    class_cost: float = 2.0
    mask_cost: float = 5.0
    dice_cost: float = 5.0
    no_object: float = 0.1
    oversample: float = 3.0
    uncertain_share: float = 0.75

    def criterion(self, classes: int) -> nn.Module:
        """transformers' matcher and losses."""
        transformers = import_transformers()
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

        config = transformers.Mask2FormerConfig(
            backbone_config=transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"]),
            num_labels=classes,
            class_weight=self.class_cost,
            mask_weight=self.mask_cost,
            dice_weight=self.dice_cost,
            no_object_weight=self.no_object,
            train_num_points=self.points,
            oversample_ratio=self.oversample,
            importance_sample_ratio=self.uncertain_share,
        )
        return Mask2FormerLoss(config, weight_dict={})


class SetLoss:
    """One of three terms over all prediction sets: `class` (cross-entropy of parts and none), `mask` (BCE), `dice`.

    Terms with the same `matching` share one assignment. Sums are divided as in Mask2Former, `class` by the weights of
    all queries of labelled images, the others by the number of parts.
    """

    reads: tuple[str, ...] = ("classes", "masks")

    def __init__(self, what: What, *, matching: Matching | None = None) -> None:
        if what not in get_args(What):
            raise ValueError(f"what={what!r} is not one of {list(get_args(What))}")
        self.what: What = what
        self.matching = matching or Matching()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Parts, and images that have some."""
        numbers = [len(parts) for parts in _parts(batch)]
        values = {"parts": sum(numbers), "labelled": sum(number > 0 for number in numbers)}
        return {key: torch.tensor(v, dtype=torch.float64, device=batch.images.device) for key, v in values.items()}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        classes, masks = inputs.outputs.classes, inputs.outputs.masks
        found = inputs.shared(self.matching, lambda: _set_losses(inputs, self.matching))
        if found is None:
            return torch.stack([each.sum() for each in (*classes, *masks)]).sum() * 0
        own = self._whole(self.counts(inputs.batch), classes[0].shape[1])
        return found[self.what] * (own * share_of(self._whole(counts, classes[0].shape[1]))).float()

    def _whole(self, counts: Mapping[str, Tensor], queries: int) -> Tensor:
        """What the term is a mean over: parts, or the weights of all queries."""
        if self.what != "class":
            return counts["parts"]
        return counts["parts"] + self.matching.no_object * (counts["labelled"] * queries - counts["parts"])


def _parts(batch: Batch) -> list[Instances]:
    """The annotated parts of each image that have a mask."""
    if batch.instances is None:
        raise ValueError("OPS is trained on instances: set augmentation.instances=classes (or annotated)")
    part = INSTANCE_LEVELS.index("object_part")
    return [each.select((each.level == part) & each.has_mask) for each in batch.instances]


def _labels(parts: Instances, classes: int) -> Int[Tensor, " n"]:
    """Zeros for a network that knows one class, else the parts' own."""
    if classes == 1:
        return torch.zeros_like(parts.label)
    foreign = [label for label in parts.label.tolist() if not 0 <= label < classes]
    if foreign:
        raise ValueError(
            f"model.shape.classes={classes}, but a part has label {foreign[0]} (-1: no name); "
            "give the number of object-parts in training, or 1 for parts without names"
        )
    return parts.label


def _set_losses(inputs: LossInputs, matching: Matching) -> dict[What, Tensor] | None:
    """The three losses of the micro-batch by itself, each summed over the prediction sets; None without any part."""
    parts = _parts(inputs.batch)
    rows = [i for i, each in enumerate(parts) if len(each)]
    if not rows:
        return None
    targets = [parts[i].masks.float() for i in rows]
    classes = inputs.outputs.classes[0].shape[2] - 1
    labels = [_labels(parts[i], classes).long() for i in rows]
    sets = [
        {"class_queries_logits": c[rows].float(), "masks_queries_logits": m[rows].float()}
        for c, m in zip(inputs.outputs.classes, inputs.outputs.masks)
    ]
    with _draws(inputs.batch):
        criterion = matching.criterion(classes).to(targets[0].device)
        found = criterion(**sets[-1], mask_labels=targets, class_labels=labels, auxiliary_predictions=sets[:-1])
    return {
        what: torch.stack([value for key, value in found.items() if key.startswith(name)]).sum()
        for what, name in _NAMES.items()
    }


def seed_of(batch: Batch) -> int:
    """A number that follows from the pictures of a batch as they were cut out and coloured."""
    return zlib.crc32("|".join(batch.names).encode()) + int(batch.images[..., ::8, ::8].sum())


@contextmanager
def _draws(batch: Batch) -> Iterator[None]:
    """torch's random numbers from the batch, and afterwards from where they were."""
    device = batch.images.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(batch))
        yield


class Rows:
    """The random rows of k-means: where it starts, and where empty clusters go."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def start(self, count: int, clusters: int) -> Int[Tensor, " K"]:
        """Different rows."""
        return torch.randperm(count, generator=self.generator)[:clusters]

    def refill(self, count: int) -> int:
        """One row."""
        return int(torch.randint(count, (1,), generator=self.generator))


@dataclass(frozen=True)
class Cluster:
    """Pixels of one cluster that hangs together, L2-normalised, and their mean, both with gradient."""

    pixels: Float[Tensor, "m D"]
    centroid: Float[Tensor, " D"]


def clusters_of(
    features: Float[Tensor, "D h w"],
    inside: Bool[Tensor, "h w"],
    rows: Rows,
    *,
    count: int = 10,
    min_solidity: float = 0.1,
) -> list[Cluster]:
    """Clusters of an object's pixels whose area is more than `min_solidity` of their convex hull; [] for one pixel."""
    pixels = F.normalize(features.float(), dim=0)[:, inside].T
    if len(pixels) < 2:
        return []
    start = rows.start(len(pixels), min(count, len(pixels))).to(pixels.device)
    labels, _ = kmeans(pixels.detach(), start, lambda: rows.refill(len(pixels)))
    drawn = torch.full(inside.shape, -1, device=labels.device).masked_scatter_(inside, labels).cpu().numpy()
    found = []
    for number in range(len(start)):
        mask = drawn == number
        if mask.any() and solidity(mask) > min_solidity:
            own = pixels[labels == number]
            found.append(Cluster(own, own.mean(0)))
    return found


class _SelfSupervised:
    """What both terms share. `clusters` is K; `form="paper"` takes the paper's equations where its code differs."""

    reads: tuple[str, ...] = ("features",)

    def __init__(self, *, clusters: int = 10, tau: float = 1.0, min_solidity: float = 0.1, form: Form = "code") -> None:
        if form not in get_args(Form):
            raise ValueError(f"form={form!r} is not one of {list(get_args(Form))}")
        if clusters < 2 or tau <= 0:
            raise ValueError(f"clusters={clusters} must be at least 2 and tau={tau} positive")
        self.clusters, self.tau, self.min_solidity = clusters, tau, min_solidity
        self.form: Form = form

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing but what every term is given: which images count depends on their features."""
        return {}

    def __call__(self, inputs: LossInputs, counts: Mapping[str, Tensor]) -> Tensor:
        key = ("clusters", self.clusters, self.min_solidity)
        images: list[list[Cluster]] = inputs.shared(key, lambda: self._images(inputs))
        values = [value for clusters in images if (value := self._value(clusters)) is not None]
        if not values:
            return inputs.outputs.features.sum() * 0
        # their divisor counts images with a pair of clusters, and those with one cluster add to the sum all the same
        number = sum(len(clusters) > 1 for clusters in images) if self.form == "code" else len(values)
        return torch.stack(values).sum() / max(1, number) * share_of(counts["batches"]).float()

    def _images(self, inputs: LossInputs) -> list[list[Cluster]]:
        features = inputs.outputs.features
        rows = Rows(seed_of(inputs.batch))
        places = on_grid(inputs.outputs.inside, (features.shape[2], features.shape[3]))
        options: dict[str, Any] = {"count": self.clusters, "min_solidity": self.min_solidity}
        return [clusters_of(feature, inside, rows, **options) for feature, inside in zip(features, places)]

    def _value(self, clusters: list[Cluster]) -> Tensor | None:
        raise NotImplementedError


class CentroidRepulsion(_SelfSupervised):
    """Centroids of an image's clusters part (eq. 1): the mean of exp(-d / tau) over all pairs, each with itself too.

    The paper squares d and divides the sum by K instead of K K.
    """

    def _value(self, clusters: list[Cluster]) -> Tensor | None:
        if len(clusters) < 2:
            return None
        centroids = torch.stack([cluster.centroid for cluster in clusters])
        distance = torch.cdist(centroids, centroids)
        if self.form == "code":
            return (-distance / self.tau).exp().mean()
        return (-(distance**2) / self.tau).exp().sum() / len(clusters)


class PixelAffinity(_SelfSupervised):
    """Pixels come closer to their centroid (eq. 2): exp(+d / tau), the mean of each cluster, summed over clusters.

    The sign is right: what is minimised grows with the distance. The paper squares d and divides by a number N that it
    does not define; here N is the number of pixels of all clusters.
    """

    def _value(self, clusters: list[Cluster]) -> Tensor | None:
        if not clusters:
            return None
        distances = [(cluster.pixels - cluster.centroid).norm(dim=1) for cluster in clusters]
        if self.form == "code":
            return torch.stack([(d / self.tau).exp().mean() for d in distances]).sum()
        return (torch.cat(distances) ** 2 / self.tau).exp().mean()
