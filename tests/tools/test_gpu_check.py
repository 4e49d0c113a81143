"""The check of a machine with GPUs, at tiny size on the CPU: what fails or takes too long leaves the rest alone."""

import json

import pytest
import torch

from partseg.engine.benchmark import agreement
from partseg.utils.arguments import parse


@pytest.fixture
def tool(load):
    return load("gpu_check")


def test_without_a_gpu_it_says_so_and_is_content(tool, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tool.main(parse(tool.Options, [f"output={tmp_path / 'out'}"])) == 0
    assert "no usable GPU on this machine: nothing was checked" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [("device=tpu", "device=tpu is not cuda or cpu"), ("only=overfitt", "there is no step overfitt; .*overfit, ")],
)
def test_what_does_not_exist_is_refused(tool, word, message):
    with pytest.raises(ValueError, match=message):
        parse(tool.Options, [word])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_step_counts_by_itself(tool, tmp_path):
    chosen = [
        tool.Step("errors", 300, ("no_such_model",)),
        tool.Step("overfit", 0),
        tool.Step("tests", 300),
        tool.Step("errors", 300, ("clipseg_tiny",)),
        tool.Step("compiled", 300, ("clipseg_tiny",)),
    ]
    tool.check(chosen, device="cpu", output=tmp_path, minutes=12)
    broken, slow, skipped, passed, compiled = json.loads((tmp_path / "gpu_check.json").read_text())["steps"]
    assert broken["state"] == "failed" and "no_such_model" in broken["why"]
    assert slow["state"] == "failed" and slow["why"] == "it took longer than 0 s"
    assert skipped["state"] == "left out" and skipped["figures"] == {"skipped": "they need a GPU"}
    assert passed["state"] == "passed" and set(passed["figures"]) == {"fp32", "bf16_cpu"}
    assert passed["figures"]["fp32"] == {"outputs": 0, "loss": 0, "gradients": 0}  # the CPU against itself
    assert 0 < passed["figures"]["bf16_cpu"]["loss"] < 0.1
    assert compiled["state"] == "passed" and max(compiled["figures"]["compiled"].values()) < 1e-3
    lines = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert lines[0].startswith("CPU, at tiny size, torch 2") and lines[0].endswith("2 failed, 1 left out, 2 passed")
    assert len(lines) == 9 and lines[-2].startswith("| errors clipseg_tiny | passed |")


@pytest.mark.parametrize(
    ("arithmetic", "error", "is_wrong"),
    [("fp32", 2e-3, True), ("fp32", 5e-4, False), ("bf16", 0.5, False), ("bf16", 0.7, True), ("bf16", None, False)],
)
def test_rough_arithmetic_is_wrong_where_it_is_rougher_than_the_cpu_s(arithmetic, error, is_wrong):
    figures = {arithmetic: {"gradients": error}, "bf16_cpu": {"gradients": 0.2}}
    assert set(agreement.wrong(figures)) == ({arithmetic} if is_wrong else set())


def test_devices_draw_the_same_and_drop_nothing():
    """Dropout and drawn points would differ on a GPU, whose generator is another."""
    with agreement._drawn_on_the_cpu():
        torch.manual_seed(0)
        there = torch.rand(3, 2, device="meta"), torch.randperm(4, device="meta")
        after = torch.rand(1)
    torch.manual_seed(0)
    assert [each.device.type for each in there] == ["meta", "meta"] and torch.rand(3, 2).shape == there[0].shape
    torch.randperm(4)
    assert torch.equal(after, torch.rand(1))
    network, _, _ = agreement._parts(agreement._config("cris_tiny"), torch.device("cpu"))
    layer = network.decoder.layers[0]
    assert (layer.dropout.p, layer.attend_words.dropout) == (0, 0)


def test_what_would_start_too_late_is_left_out(tool, tmp_path):
    result = tool.check([tool.Step("overfit", 60)], device="cpu", output=tmp_path, minutes=0)
    assert result["steps"][0]["state"] == "left out" and "0 minutes are over" in result["steps"][0]["why"]
    result = tool.check(
        [tool.Step("overfit", 60)], device="cpu", output=tmp_path, minutes=0.01
    )  # or does not end in it
    assert result["steps"][0]["state"] == "left out" and "0.01 minutes are over" in result["steps"][0]["why"]


def test_the_plan_fits_into_its_time(tool):
    plan = list(tool.steps("cuda"))
    assert {step.name for step in plan} == set(tool.DO)
    assert {step.arguments for step in plan if step.name == "train"} == {
        (str(batch), str(count)) for batch in (1, 8, 32) for count in (116, 234, 1000)
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("processes_with_extras")
def test_all_steps_pass_at_tiny_size(tool, tmp_path):
    result = tool.check(list(tool.steps("cpu")), device="cpu", output=tmp_path, minutes=30)
    assert {entry["state"] for entry in result["steps"]} <= {"passed", "left out"}, result
    figures = {entry["step"]: entry.get("figures") for entry in result["steps"]}
    assert figures["resume"]["killed_at"] < figures["resume"]["ended_at"] == 8
    assert figures["processes"]["processes"] == 2
    assert figures["train 1 20"]["images_per_second"] > 0 and 0 < figures["train 1 20"]["share_of_peak"] < 1
