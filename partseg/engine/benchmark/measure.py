"""From a config to figures: builds the objects of each case, runs the measurements, returns plain values for the json.

Peaks of memory are measured in a child process each, because an allocator does not give back what earlier work used.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from partseg.backbones.clip_vit import ClipBackbone
from partseg.data.loader import build_train_loader
from partseg.engine.benchmark.cost import made_up_vocabulary
from partseg.engine.benchmark.inputs import random_batch, random_sample
from partseg.engine.benchmark.memory import peak_above, saved_bytes
from partseg.engine.benchmark.steps import EvaluateImage, TrainStep
from partseg.engine.benchmark.timing import Clock, Phases, Stopwatch, Unit, interleave, medians
from partseg.engine.build import compile_passes
from partseg.engine.checkpoint import without_start
from partseg.engine.launch import device_of
from partseg.engine.prompts import PromptSampling
from partseg.engine.run import plain
from partseg.utils import devices, env
from partseg.utils.config import instantiate
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped

STEPS_FOR_PEAK = 3
"""The first step makes the optimizer's state, the second is the first with all of it; the third shows any growth."""


@dataclass(frozen=True)
class Case:
    """One training measurement; `num_classes` None takes the names of the config's data set."""

    batch_size: int
    num_classes: int | None

    @property
    def name(self) -> str:
        """As it stands in the json."""
        return f"batch {self.batch_size}{_of(self.num_classes)}"


def _of(num_classes: int | None) -> str:
    return "" if num_classes is None else f", {num_classes} classes"


def measure(config: DictConfig) -> dict[str, Any]:
    """All measurements that `bench` asks for, in the layout of the json (see docs/performance.md)."""
    bench = config.bench
    device = device_of(config)
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    devices.set_tf32(config.train.tf32)
    devices.set_kernels(deterministic=config.train.deterministic)
    cases = [Case(b, k) for k in bench.classes for b in bench.batch_sizes]
    result: dict[str, Any] = {**model_size(config), "memory_gb": None, "memory_gb_reason": None, "measurements": {}}
    figures = result["measurements"]
    if bench.mode in ("all", "memory"):
        for case in cases:
            figures[f"memory, {case.name}"] = memory(config, case)
        result |= card_memory(config, device)
    if bench.mode == "eval_memory":
        figures |= {f"memory, one image{_of(k)}": evaluation_memory(config, k) for k in bench.classes}
    if bench.mode in ("all", "train", "eval"):
        unit = Unit(Clock(device, bench.clock))
        if bench.mode != "eval":
            figures |= {f"train, {case.name}": time_training(config, case, unit) for case in cases}
        if bench.mode != "train":
            figures |= {f"eval, one image{_of(k)}": time_evaluation(config, k, unit) for k in bench.classes}
    if bench.mode == "data":
        figures["data"] = time_data(config)
    return {**result, "device": device.type, "clock": bench.clock, "environment": env.report(), "config": plain(config)}


def model_size(config: DictConfig) -> dict[str, float]:
    """Millions of parameters, all and trained."""
    with torch.device("meta"):
        parameters = list(instantiate(without_start(plain(config)["model"])).parameters())
    return {
        "params_m": round(sum(p.numel() for p in parameters) / 1e6, 3),
        "trainable_m": round(sum(p.numel() for p in parameters if p.requires_grad) / 1e6, 3),
    }


def vocabulary_of(config: DictConfig, num_classes: int | None, *, training: bool) -> Vocabulary:
    """Made-up names, or those of the config's data set: the seen ones for training, all for evaluation."""
    if num_classes is not None:
        return made_up_vocabulary(num_classes)
    node = config.dataset if training else config.eval_dataset
    full = shipped(node.vocabulary)
    all_seen = "all_seen" in node and node.all_seen
    return full.seen_subset() if training and not all_seen else full


def training_step(config: DictConfig, case: Case) -> TrainStep:
    """Model, criterion, optimizer and a random batch of the case."""
    env.seed_everything(config.seed)
    device = device_of(config)
    model = instantiate(config.model).to(device)
    if config.bench.draw_texts:
        draw_texts(model, training=True)
    if config.train.compile:
        compile_passes(model)
    vocabulary = vocabulary_of(config, case.num_classes, training=True)
    batch = random_batch(vocabulary, batch_size=case.batch_size, input=model.input)
    share = config.train.prompt_share
    if share is not None:  # for label maps only
        batch = replace(batch, instances=None, given=None)
    return TrainStep(
        model,
        criterion=instantiate(config.criterion),
        optimizer=instantiate(config.optimizer, model=model),
        batch=batch.pin_memory() if device.type == "cuda" else batch,
        clip_norm=config.train.clip_norm,
        precision=config.train.precision,
        prompt_sampling=None if share is None else PromptSampling(share=share, seed=config.seed),
        layers=config.bench.layers,
        clock=Clock(device, config.bench.clock),
    )


def time_training(config: DictConfig, case: Case, unit: Unit) -> dict[str, Any]:
    """Seconds and units of a training step and its phases."""
    step = training_step(config, case)
    figures = interleave(step, unit, repeats=config.bench.repeats, warmup=config.bench.warmup)
    if config.bench.trace is not None:
        trace(step, Path(config.bench.trace))
    return {"batch_size": case.batch_size, **size_of(step.batch.vocabulary), **figures}


def time_evaluation(config: DictConfig, num_classes: int | None, unit: Unit) -> dict[str, Any]:
    """Seconds and units of one evaluated image, the text encoded beforehand."""
    image = evaluated_image(config, num_classes, clock=unit.clock)
    figures = interleave(image, unit, repeats=config.bench.repeats, warmup=config.bench.warmup)
    if config.bench.trace is not None:
        trace(image, Path(config.bench.trace))
    return {"protocols": list(image.evaluators), **size_of(image.vocabulary), **figures}


def evaluated_image(config: DictConfig, num_classes: int | None, *, clock: Clock) -> EvaluateImage:
    """Model, encoded vocabulary, evaluators and a random photo."""
    env.seed_everything(config.seed)
    vocabulary = vocabulary_of(config, num_classes, training=False)
    height, width = config.bench.label_size
    model = instantiate(config.model).to(device_of(config))
    if config.bench.draw_texts:
        draw_texts(model)
    return EvaluateImage(
        model,
        predictor=instantiate(config.predictor),
        evaluators=instantiate(config.evaluator),
        sample=random_sample(
            vocabulary,
            input=model.input,
            label_size=(height, width),
            instances=config.eval.instances is not None,
            phrases=config.eval.phrases,
        ),
        vocabulary=vocabulary,
        clock=clock,
    )


def draw_texts(model: nn.Module, *, training: bool = False) -> None:
    """Random features in place of encoded prompts, which are 80,000 for 1,000 classes in 80 texts."""
    tower = getattr(model, "backbone", None)
    if not isinstance(tower, ClipBackbone):
        raise ValueError(f"bench.draw_texts is for systems with CLIP's text tower, not {type(model).__name__}")
    if training and any(p.requires_grad for name, p in tower.clip.named_parameters() if not name.startswith("visual.")):
        raise ValueError("bench.draw_texts=true, but the text tower trains: its time is part of every step")
    width, device = tower.text_dim, next(model.parameters()).device
    tower.encode_prompts = lambda prompts: torch.randn(len(prompts), width, device=device)  # type: ignore[method-assign]


def time_data(config: DictConfig) -> dict[str, Any]:
    """Seconds per sample: of one worker, and of the loader with its workers once they run."""
    dataset = instantiate(config.dataset, split="train", mapper=instantiate(config.augmentation), seed=config.seed)
    batches = config.bench.warmup + config.bench.repeats
    batch_size = config.bench.batch_sizes[0]
    clock = Clock(torch.device("cpu"))
    samples = []
    for draw in range(batches * batch_size):
        watch = Stopwatch(clock)
        dataset[(draw % len(dataset), draw)]
        watch.lap("sample")
        samples.append(watch.stop())
    loader = iter(
        build_train_loader(dataset, batch_size=batch_size, num_workers=config.train.num_workers, seed=config.seed)
    )
    list(islice(loader, config.bench.warmup))
    watch = Stopwatch(clock)
    list(islice(loader, config.bench.repeats))
    watch.lap("loader")
    per_sample: Phases = {
        "one worker": medians(samples)["sample"],
        f"loader, {config.train.num_workers} workers": watch.phases["loader"] / config.bench.repeats / batch_size,
    }
    return {"seconds": per_sample, "images": len(dataset), "repeats": len(samples)}


def memory(config: DictConfig, case: Case) -> dict[str, Any]:
    """Bytes kept for backward, and peak bytes of training steps, each in a process of its own."""
    counted = in_child(_saved, config, case)
    return {"batch_size": case.batch_size, "bytes": {**counted, **in_child(_peak, config, case)}}


def evaluation_memory(config: DictConfig, num_classes: int | None) -> dict[str, Any]:
    """Peak bytes of the network on one image, above weights and encoded texts, in a process of its own."""
    return in_child(_evaluation_peak, config, Case(1, num_classes))


def card_memory(config: DictConfig, device: torch.device) -> dict[str, Any]:
    """GB (1e9 bytes) of GPU memory at the config's own batch size, as table A4 states it."""
    if device.type != "cuda":
        return {"memory_gb": None, "memory_gb_reason": "no GPU was used; measurements hold the memory of a CPU"}
    case = Case(config.train.batch_size // config.train.accumulation, None)
    return {"memory_gb": in_child(_peak, config, case)["cuda_peak"] / 1e9}


def in_child(function: Any, config: DictConfig, case: Case) -> dict[str, Any]:
    """`function(plain config, case)` in a fresh process; MemoryError when the system stopped it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, plain(config), case).result()
        except BrokenProcessPool as error:
            raise MemoryError(f"the process that measured {case.name} was killed: too little memory") from error


def _saved(config: Mapping[str, Any], case: Case) -> dict[str, Any]:
    step = _child_step(config, case)
    count = saved_bytes(step.loss, model=step.model)
    return {"saved_for_backward": count}


def _peak(config: Mapping[str, Any], case: Case) -> dict[str, Any]:
    step = _child_step(config, case)
    return peak_above(lambda: [step() for _ in range(STEPS_FOR_PEAK)], device=step.device)


def _evaluation_peak(config: Mapping[str, Any], case: Case) -> dict[str, Any]:
    cfg = _child_config(config)
    image = evaluated_image(cfg, case.num_classes, clock=Clock(device_of(cfg)))
    return {"bytes": peak_above(image.network, device=image.device), **size_of(image.vocabulary)}


def _child_step(config: Mapping[str, Any], case: Case) -> TrainStep:
    return training_step(_child_config(config), case)


def _child_config(config: Mapping[str, Any]) -> DictConfig:
    """The config in a fresh process, whose torch is set up as the parent's."""
    cfg = OmegaConf.create(dict(config))
    if cfg.bench.threads is not None:
        torch.set_num_threads(cfg.bench.threads)
    devices.set_tf32(cfg.train.tf32)
    return cfg


def size_of(vocabulary: Vocabulary) -> dict[str, int]:
    """Numbers of prompts behind a measurement."""
    return {"object_parts": len(vocabulary), "parts": vocabulary.num_parts, "objects": vocabulary.num_objects}


def trace(work: TrainStep | EvaluateImage, path: Path) -> None:
    """One more repetition under torch.profiler, as a Chrome trace."""
    with torch.profiler.profile(record_shapes=True) as profiler:
        work()
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
