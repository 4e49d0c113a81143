"""Does a device compute what the CPU computes? Relative errors of a training step, and how busy a step keeps it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model, compile_passes
from partseg.losses.criterion import Criterion, loss_of
from partseg.structures import Batch
from partseg.utils import devices
from partseg.utils.config import compose, instantiate
from partseg.utils.devices import Precision
from partseg.vocabulary.names import Vocabulary

WORDS = Vocabulary.from_mapping({"dog": ["head", "tail", "leg"], "car": ["wheel", "door"]})

LIMITS = {"fp32": 1e-3, "compiled": 1e-3, "tf32": 3e-2, "bf16": 1e-1}
"""Errors of a step relative to the CPU's fp32, above which a device is wrong and not only rough.

TF32 and bf16 may also have three times the error that bf16 has on the CPU.
"""

Figures = dict[str, Any]


def agreement(model: str, *, device: torch.device) -> Figures:
    """Largest errors of outputs, loss and gradients of a step of a file of configs/model/, relative to the CPU in fp32.

    `fp32` is without TF32, also in convolutions; `tf32` with both, `bf16` under autocast.
    `bf16_cpu` is what the arithmetic costs on the CPU: networks that select (proposals, matching) or normalise by a
    batch differ by much there, too. None where the outputs have other sizes, because other proposals were selected.
    """
    config = _config(model)
    expected = _step(config, torch.device("cpu"))
    figures: Figures = {}
    with _without_tf32():
        figures["fp32"] = _errors(_step(config, device), expected)
    if device.type == "cuda":
        with _without_tf32(off=False):
            figures["tf32"] = _errors(_step(config, device), expected)
        figures["bf16"] = _errors(_step(config, device, precision="bf16"), expected)
    figures["bf16_cpu"] = _errors(_step(config, torch.device("cpu"), precision="bf16"), expected)
    return figures


def compiled(model: str, *, device: torch.device) -> Figures:
    """As `agreement`, for a step under train.compile=true in fp32; takes a minute or more."""
    config = _config(model)
    backend = "inductor" if device.type == "cuda" else "aot_eager_decomp_partition"
    expected = _step(config, torch.device("cpu"))
    with _without_tf32():
        found = _step(config, device, change=lambda each: compile_passes(each, backend=backend))
    return {"compiled": _errors(found, expected)}


def wrong(figures: Figures) -> Figures:
    """The entries of `agreement` with an error above their limit."""

    def too_large(arithmetic: str, kind: str, error: float | None) -> bool:
        own = figures["bf16_cpu"][kind] if arithmetic in ("tf32", "bf16") else 0.0
        return error is not None and own is not None and error > max(LIMITS[arithmetic], 3 * own)

    return {
        arithmetic: errors
        for arithmetic, errors in figures.items()
        if arithmetic in LIMITS and any(too_large(arithmetic, *each) for each in errors.items())
    }


def overfit(model: str, *, device: torch.device, steps: int) -> Figures:
    """Loss on two made-up pictures, before and after so many steps on them."""
    network, criterion, batch = _parts(_config(model), device, pictures=2)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(steps):
        loss, _, _ = loss_of(network, criterion, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    first, last = torch.stack([losses[0], losses[-1]]).tolist()
    return {"first_loss": first, "last_loss": last}


def utilisation(work: Callable[[], object], *, device: torch.device, repeats: int = 3) -> Figures:
    """Of one repetition: seconds, FLOPs of forward and backward, and on a GPU the share of time without a kernel."""
    with FlopCounterMode(display=False) as counter:
        work()
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    seconds = (time.perf_counter() - start) / repeats
    figures: Figures = {"seconds": seconds, "flops": counter.get_total_flops(), "waits": None}
    if device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            work()
            _wait(device)
        busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
        figures["waits"] = max(0.0, 1 - busy / seconds)
    return figures


def product_rate(device: torch.device, precision: Precision) -> float:
    """FLOP/s that a large matrix product reaches here: what shares of the peak are shares of."""
    size = 8192 if device.type == "cuda" else 512
    left = torch.randn(size, size, device=device, dtype=devices.DTYPES[precision])
    times = []
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        left @ left
        _wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def _config(model: str) -> DictConfig:
    return compose("train", [f"experiment={model.removesuffix('_tiny')}_pascal_part_116", f"model={model}"])


def _built(config: DictConfig) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config).train()


def _parts(config: DictConfig, device: torch.device, *, pictures: int = 8) -> tuple[nn.Module, Criterion, Batch]:
    """Network, criterion and batch; over two pictures batch statistics make rounding a thousand times larger (CRIS)."""
    model = _built(config)
    for module in model.modules():  # dropout, of which no two devices draw the same
        for name in {"p", "dropout", "drop_prob"} & vars(module).keys():
            setattr(module, name, 0.0)
    batch = random_batch(WORDS, batch_size=pictures, input=model.input)  # type: ignore[arg-type]
    return model.to(device), instantiate(config.criterion), batch.to(device)


def _step(
    config: DictConfig,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    change: Callable[[nn.Module], None] | None = None,
) -> dict[str, list[Tensor]]:
    """Outputs, loss and gradients of one step, on the CPU."""
    model, criterion, batch = _parts(config, device)
    if change is not None:
        change(model)
    with devices.autocast(device, precision), _drawn_on_the_cpu():
        loss, _, outputs = loss_of(model, criterion, batch)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    found = {"outputs": list(_tensors(outputs)), "loss": [loss], "gradients": gradients}
    return {name: [each.detach().double().cpu() for each in some] for name, some in found.items()}


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating tensors in nested dataclasses and containers."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _errors(found: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> dict[str, float | None]:
    """Per kind, the largest difference relative to the largest value of all its tensors."""
    errors: dict[str, float | None] = {}
    for kind, tensors in expected.items():
        if [each.shape for each in found[kind]] != [each.shape for each in tensors]:
            errors[kind] = None
            continue
        largest = max(float(each.abs().max()) for each in tensors)
        pairs = zip(found[kind], tensors, strict=True)
        errors[kind] = max(float((one - other).abs().max()) for one, other in pairs) / max(largest, 1e-30)
    return errors


@contextmanager
def _drawn_on_the_cpu() -> Iterator[None]:
    """Points and samples that the losses draw are the same on every device."""

    def cpu(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(*size: Any, device: torch.device | str | None = None, **options: Any) -> Tensor:
            return draw(*size, **options).to(device or "cpu")

        return drawn

    with patch.object(torch, "rand", cpu(torch.rand)), patch.object(torch, "randperm", cpu(torch.randperm)):
        yield


@contextmanager
def _without_tf32(*, off: bool = True) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not off
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
