"""tools/convert_weights.py as a user runs it: what it writes loads, and its sha256 is that of the file."""

import hashlib
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from partseg.models.backbone import ClipBackbone
from partseg.models.convert import load_weights, to_part_clipseg
from partseg.models.decoder import DecoderShape
from partseg.models.part_clipseg import PartClipSeg


def convert(root, *arguments):
    return subprocess.run(
        [sys.executable, "tools/convert_weights.py", *arguments], cwd=root, capture_output=True, text=True, timeout=300
    )


def tiny():
    return PartClipSeg(ClipBackbone("partseg-tiny-16", feature_blocks=(1, 2, 3)), decoder=DecoderShape(hidden=256))


def test_converted_file_loads_and_is_signed(root, tmp_path):
    source = tiny()
    safetensors.torch.save_file(to_part_clipseg(source), tmp_path / "authors.safetensors")
    output = tmp_path / "weights" / "start.safetensors"
    result = convert(root, f"source={tmp_path}/authors.safetensors", f"output={output}", "model=part_clipseg_tiny")
    assert result.returncode == 0, result.stderr
    assert "image tower" in result.stdout and "missing:" not in result.stdout
    digest, name = (tmp_path / "weights" / "start.safetensors.sha256").read_text().split()
    assert name == output.name and digest == hashlib.sha256(output.read_bytes()).hexdigest()
    model = tiny()
    report = load_weights(model, str(output))
    assert report.layout == "partseg" and not report.missing and not report.unexpected
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True)
    )


def test_mistakes_are_one_line_and_write_nothing(root, tmp_path):
    for arguments, words in (
        ((f"source={tmp_path}/none.pth", f"output={tmp_path}/a.safetensors"), "no weights"),
        (("source=openai", f"output={tmp_path}/a.pth"), "must end in .safetensors"),
    ):
        result = convert(root, *arguments, "model=part_clipseg_tiny")
        assert result.returncode == 2 and words in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
