"""tools/convert_weights.py as a user runs it: what it writes loads, and its sha256 is that of the file."""

import hashlib
import runpy
import sys

import pytest
import safetensors.torch
import torch

from partseg.backbones.clip_vit import ClipBackbone
from partseg.systems.clipseg.decoder import DecoderShape
from partseg.systems.part_clipseg.network import PartClipSeg
from partseg.weights.load import export_weights, load_weights


@pytest.fixture
def convert(root, monkeypatch, capsys):
    """Runs the tool in this process (importing torch again would cost seconds): exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_weights.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / "tools" / "convert_weights.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return call


def tiny():
    return PartClipSeg(ClipBackbone("partseg-tiny-16", feature_blocks=(1, 2, 3)), decoder=DecoderShape(hidden=256))


def test_converted_file_loads_and_is_signed(convert, tmp_path):
    source = tiny()
    safetensors.torch.save_file(export_weights(source, "part_clipseg"), tmp_path / "authors.safetensors")
    output = tmp_path / "weights" / "start.safetensors"
    code, printed, errors = convert(
        f"source={tmp_path}/authors.safetensors", f"output={output}", "model=part_clipseg_tiny"
    )
    assert code == 0, errors
    assert "image tower" in printed and "missing:" not in printed
    digest, name = (tmp_path / "weights" / "start.safetensors.sha256").read_text().split()
    assert name == output.name and digest == hashlib.sha256(output.read_bytes()).hexdigest()
    model = tiny()
    report = load_weights(model, str(output))
    assert report.layout == "partseg" and not report.missing and not report.unexpected
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True)
    )


def test_mistakes_are_one_line_and_write_nothing(convert, tmp_path):
    for arguments, words in (
        ((f"source={tmp_path}/none.pth", f"output={tmp_path}/a.safetensors"), "no weights"),
        (("source=openai", f"output={tmp_path}/a.pth"), "must end in .safetensors"),
    ):
        code, printed, errors = convert(*arguments, "model=part_clipseg_tiny")
        assert code == 2 and words in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())
