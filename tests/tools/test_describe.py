"""tools/describe.py as a user runs it."""

import runpy
import sys

import pytest


@pytest.fixture
def describe(root, monkeypatch, capsys):
    """Runs the tool in this process (importing torch again would cost seconds): exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["describe.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / "tools" / "describe.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return call


def test_tables(describe, tmp_path):
    (tmp_path / "few.yaml").write_text("dog: [head, leg]\ncar: [wheel]\n")
    code, printed, errors = describe(
        "model=clipseg_tiny", f"vocabulary={tmp_path}/few.yaml", "classes=12", "batch_size=4"
    )
    assert code == 0, errors
    lines = {line.rsplit(maxsplit=6)[0]: line.split()[-6:] for line in printed.splitlines() if "made-up" in line}
    classes, _, gflop, text, image, batch = map(float, lines["made-up 12"])
    assert classes == 12 and gflop > 0 and abs(batch - text - 4 * image) <= 3
    assert "image tower" in printed and "reach no output" in printed


@pytest.mark.parametrize("model", ["clipseg_tiny", "cat_seg_tiny"])
def test_a_systems_own_advice_saves_memory(model, describe, tmp_path):
    (tmp_path / "few.yaml").write_text("dog: [head, leg]\ncar: [wheel]\n")
    found = []
    for save in ("false", "true"):
        code, printed, errors = describe(
            f"model={model}", f"vocabulary={tmp_path}/few.yaml", "classes=60", f"save_memory={save}"
        )
        assert code == 0, errors
        found.append(next(float(line.split()[-2]) for line in printed.splitlines() if "made-up 60" in line))
    assert found[1] < 0.6 * found[0]


def test_mistakes_are_one_line(describe):
    for argument, words in (("model=part_clipsec", "part_clipseg"), ("vocabulary=coco", "pascal_part_116")):
        code, printed, errors = describe("model=part_clipseg_tiny", argument)
        assert code == 2 and "Traceback" not in errors and words in errors
