"""Precision, TF32 and the choice of kernels."""

import pytest
import torch

from partseg.utils import devices


@pytest.fixture
def _switches_as_before():
    products, benchmark = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark = products, benchmark
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("enabled", [False, True])
def test_tf32_is_switched_for_products_and_left_to_torch_for_convolutions(_switches_as_before, enabled):
    convolutions = torch.backends.cudnn.allow_tf32
    devices.set_tf32(enabled)
    assert torch.backends.cuda.matmul.allow_tf32 is enabled
    assert torch.backends.cudnn.allow_tf32 is convolutions is True


def test_kernels_are_the_fastest_or_the_same_every_time(_switches_as_before, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    devices.set_kernels(deterministic=False)
    assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
    devices.set_kernels(deterministic=True)
    assert not torch.backends.cudnn.benchmark and torch.are_deterministic_algorithms_enabled()
    assert devices.os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_a_gpu_without_bf16_refuses_it_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    card = torch.device("cuda", 0)
    with pytest.raises(ValueError, match=r"train.precision=bf16: Tesla T4 has no bf16 .*use train.precision=fp16"):
        devices.check_precision("bf16", device=card, key="train.precision")
    for precision in ("fp32", "fp16"):
        devices.check_precision(precision, device=card, key="train.precision")
    devices.check_precision("bf16", device=torch.device("cpu"), key="train.precision")
    with pytest.raises(ValueError, match="predictor.precision='half' is not one of 'fp32', 'bf16', 'fp16'"):
        devices.check_precision("half", device=card, key="predictor.precision")
