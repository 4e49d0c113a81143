"""What each choice of `recipe=official` changes: loss, gradient and, with steps=N, scores after N more steps.

python tools/compare_recipe.py ckpt=output/toy data_root=data
python tools/compare_recipe.py ckpt=output/toy data_root=data steps=100

Every row starts from the same weights and reads the same photos; one choice is changed at a time. Arguments:
    ckpt        checkpoint or run directory the weights are taken from (required)
    data_root   folder of the data set (default data)
    dataset, model, criterion   files of configs/ (default toy_pascal_part_116, part_clipseg_tiny, partclipseg)
    batch_size  photos of the compared batch, and per step (default 8)
    steps       optimizer steps before the scores (default 0: no scores)
    val_images  validation photos that are scored, spread over the split (default 40)
    lr          learning rate of these steps (default 5e-4)
    rows        comma-separated names of rows; default all
    threads     CPU threads (default 2)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from partseg.data.dataset import PartSegDataset
from partseg.data.loader import build_eval_loader, build_train_loader
from partseg.engine.build import evaluation_set
from partseg.engine.checkpoint import load
from partseg.engine.trainer import Trainer
from partseg.evaluation.runner import evaluate
from partseg.losses.criterion import loss_of
from partseg.utils import arguments
from partseg.utils.config import compose, instantiate

TRAINABLE = ("adapter.*", "decoder.*", "pair.*")
TERMS = "criterion.terms"
BOTH = ("separation", "enhancement")
UNDECAYED = (
    "decoder.layers.*.norm?.*",
    "backbone.clip.token_embedding.weight",
    "backbone.clip.positional_embedding",
)
CHOICES: dict[str, tuple[str, ...]] = {
    "ours": (),
    "official_object_text_index": ("model.official_object_text_index=true",),
    "train_background": ("model.train_background=false",),
    "train_text_embeddings": ("model.train_text_embeddings=false",),
    "channel_order": ("augmentation.channel_order=bgr",),
    "short_edge": ("augmentation.short_edge=800", "augmentation.long_edge=1333"),
    "unseen_as_background": ("augmentation.unseen_as_background=true",),
    "label_rule": ("augmentation.label_rule=corner",),
    "drop_without_parts": ("augmentation.drop_without_parts=true",),
    "normalise": ("criterion.normalise=process",),
    "background_needs_object": (f"{TERMS}.object_part.term.background_needs_object=true",),
    "labels_on_background": (f"{TERMS}.object_part.term.labels_on_background=both",),
    "mask_downsample": (f"{TERMS}.separation.term.maps.mask_downsample=nearest",),
    "normalise_by": (f"{TERMS}.separation.term.maps.normalise_by=tokens",),
    "halve_sum": (f"{TERMS}.separation.term.maps.halve_sum=true",),
    "smoothing_sigma": tuple(f"{TERMS}.{t}.term.smoothing_sigma=0.7071067811865476" for t in BOTH),
    "parts_of": tuple(f"{TERMS}.{t}.term.parts_of=image" for t in BOTH),
    "divide_by_batch": tuple(f"{TERMS}.{t}.term.divide_by_batch=true" for t in BOTH),
    "strict": (f"{TERMS}.separation.term.strict=true",),
    "surrogate": (f"{TERMS}.separation.term.surrogate=none",),
    "maximum_over": (f"{TERMS}.enhancement.term.maximum_over=image",),
    "weight_decay": (f"optimizer.groups=[{','.join(f'{{pattern:{p!r},weight_decay:0.0}}' for p in UNDECAYED)}]",),
    "renormalise": tuple(f"{TERMS}.{t}.term.renormalise=true" for t in ("object_part", "object")),
    "recipe=official": ("recipe=official",),
}


@dataclass(frozen=True)
class Options:
    ckpt: Path
    data_root: Path = Path("data")
    dataset: str = "toy_pascal_part_116"
    model: str = "part_clipseg_tiny"
    criterion: str = "partclipseg"
    batch_size: int = 8
    steps: int = 0
    val_images: int = 40
    lr: float = 5e-4
    rows: str | None = None
    threads: int = 2


def main(options: Options) -> int:
    """One line per choice, as it is measured."""
    torch.set_num_threads(options.threads)
    weights = load(options.ckpt)["model"]
    names = list(CHOICES) if options.rows is None else options.rows.split(",")
    unknown = sorted(set(names) - set(CHOICES))
    if unknown:
        raise ValueError(f"rows={unknown} are not known; there are {list(CHOICES)}")
    print("| choice | loss | " + " | ".join(["terms that differ", "gradient length", "angle"]) + " | scores |")
    print("|---|---|---|---|---|---|")
    reference: tuple[dict[str, float], dict[str, Tensor]] | None = None
    for name in names:
        config = settings(options, CHOICES[name])
        loss, terms, gradient = one_step(config, weights)
        reference = reference or (terms, gradient)
        changed = [f"{k} {v:.4f}" for k, v in terms.items() if abs(v - reference[0][k]) > 1e-6]
        length, angle = against(gradient, reference[1])
        cells = [name, f"{loss:.4f}", ", ".join(changed) or "none", f"{length:.3f}", f"{angle:.1f}°"]
        print("| " + " | ".join([*cells, scores(config, weights, options)]) + " |", flush=True)
    return 0


def settings(options: Options, overrides: tuple[str, ...]) -> DictConfig:
    """The training configuration with these overrides; no flips, so that every row sees the same pictures."""
    base = [f"dataset={options.dataset}", f"model={options.model}", f"data_root={options.data_root}"]
    base += [f"train.batch_size={options.batch_size}", f"optimizer.lr={options.lr}", "augmentation.flip_probability=0"]
    base += [f"model.trainable=[{','.join(TRAINABLE)}]"]  # the tiny model trains all of itself otherwise
    if not any(o.startswith("recipe=") for o in overrides):
        base.append(f"criterion={options.criterion}")
    return compose("train", [*base, *overrides])


def one_step(config: DictConfig, weights: dict[str, Tensor]) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """(loss, terms, gradient by parameter name) of the first batch of training."""
    model, train_set = build(config, weights)
    criterion = instantiate(config.criterion)
    batch = next(iter(build_train_loader(train_set, batch_size=config.train.batch_size, seed=config.seed)))
    loss, terms, _ = loss_of(model, criterion, batch)
    loss.backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), {n: float(v) for n, v in terms.items()}, gradient


def build(config: DictConfig, weights: dict[str, Tensor]) -> tuple[nn.Module, PartSegDataset]:
    model = instantiate(config.model)
    model.load_state_dict(weights)
    return model, instantiate(config.dataset, split="train", mapper=instantiate(config.augmentation), seed=config.seed)


def against(gradient: dict[str, Tensor], reference: dict[str, Tensor]) -> tuple[float, float]:
    """(length relative to the reference, angle to it in degrees), a missing gradient counting as zero."""
    dot = sum(float((gradient[n] * reference[n]).sum()) for n in gradient.keys() & reference.keys())
    own, other = (sum(float(g.square().sum()) for g in grads.values()) ** 0.5 for grads in (gradient, reference))
    cosine = torch.tensor(dot / (own * other)).clamp(-1, 1)
    return own / other, float(torch.rad2deg(torch.acos(cosine)))


def scores(config: DictConfig, weights: dict[str, Tensor], options: Options) -> str:
    """mIoU seen / unseen of both protocols after the steps, or a word that there were none."""
    if not options.steps:
        return "not trained"
    model, train_set = build(config, weights)
    trainer = Trainer(
        model,
        criterion=instantiate(config.criterion),
        optimizer=instantiate(config.optimizer, model=model),
        schedule=lambda step: 1.0,
        loader=build_train_loader(train_set, batch_size=config.train.batch_size, seed=config.seed),
        vocabulary=train_set.vocabulary,
        iterations=options.steps,
    )
    trainer.train()
    val_set = evaluation_set(config, model.input)  # type: ignore[arg-type]
    step = max(1, len(val_set) // options.val_images)
    val_set = val_set.subset(range(0, len(val_set), step)[: options.val_images])
    found = evaluate(
        model,
        build_eval_loader(val_set, batch_size=4),
        vocabulary=val_set.vocabulary,
        predictor=instantiate(config.predictor),
        evaluators=instantiate(config.evaluator),
    )
    shown = [f"{found[f'{p}/mIoU_{g}'] or 0:.1f}" for p in ("oracle_obj", "pred_all") for g in ("seen", "unseen")]
    return " / ".join(shown)


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
