"""What is installed: one name, one program, light imports, and a wheel that works away from the checkout."""

import json
import os
import re
import resource
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import partseg
from partseg.__main__ import COMMANDS, UNUSED, run, usage
from toy_world.writer import ToyOptions, write_toy

ROOT = Path(__file__).parents[1]


def seconds_of_processor(*command, cwd=ROOT) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_answers_at_once(arguments):
    assert seconds_of_processor(sys.executable, "-m", "partseg", *arguments) < 1


def test_help_is_cut_short_in_silence():
    """`partseg train --help | head`: nobody reads any more."""
    command = [sys.executable, "-m", "partseg", "train", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_help_names_the_program_that_a_wheel_has():
    for name in COMMANDS:
        assert f"partseg {name}" in usage(name) and "python tools/" not in usage(name)


def test_every_command_has_a_thin_file_that_calls_it():
    for name, module in COMMANDS.items():
        tool = (ROOT / "tools" / f"{module}.py").read_text()
        assert f'run("{name}")' in tool and len(tool.splitlines()) < 10
        source = (ROOT / "partseg" / "commands" / f"{module}.py").read_text()
        assert "\ndef command() -> int:" in source or "\ncommand = main\n" in source
        assert len(usage(name).splitlines()) > 3


def test_a_wrong_command_names_the_others():
    done = subprocess.run([sys.executable, "-m", "partseg", "trian"], capture_output=True, text=True)
    assert (
        done.returncode == 1 and done.stderr == f"error: there is no command 'trian'; there are {', '.join(COMMANDS)}\n"
    )


@pytest.mark.parametrize("name", UNUSED)
def test_what_open_clip_brings_is_not_imported_by_the_way(monkeypatch, name):
    """While a command is imported it is not to be found; what a user asks for later finds it."""
    seen = []
    command = SimpleNamespace(command=lambda: seen.append(sys.modules.get(name, "to be found")) or 0)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr("partseg.__main__.import_module", lambda _: seen.append(sys.modules[name]) or command)
    monkeypatch.setattr(sys, "argv", ["partseg predict", "ckpt=x"])
    with pytest.raises(SystemExit, match="0"):
        run("predict")
    assert seen == [None, "to be found"]


@pytest.mark.slow
def test_a_photo_takes_less_than_six_seconds_of_processor(toy_run, tmp_path):
    Image.new("RGB", (640, 480), (90, 120, 60)).save(tmp_path / "photo.jpg")
    arguments = [f"ckpt={toy_run}", "input=photo.jpg", "device=cpu"]
    assert seconds_of_processor(sys.executable, "-m", "partseg", "predict", *arguments, cwd=tmp_path) < 6


def test_names_and_version():
    assert {"load", "Segmenter", "Vocabulary", "__version__"} <= set(dir(partseg))
    for name in dir(partseg):
        assert getattr(partseg, name) is not None
    assert (ROOT / "partseg" / "py.typed").is_file()
    for text in ("CITATION.cff", "CHANGELOG.md"):
        assert partseg.__version__ in (ROOT / text).read_text()


def test_nobody_is_told_to_install_the_other_partseg():
    """`partseg` on the package index is another program."""
    files = [path for folder in ("partseg", "tools", "scripts", "docs") for path in (ROOT / folder).rglob("*.*")]
    texts = {path: path.read_text(errors="ignore") for path in [*files, ROOT / "README.md"] if path.suffix != ".pyc"}
    wrong = re.compile(r"pip install '?partseg(?!-openvocab)")
    assert not [path for path, text in texts.items() if wrong.search(text)]
    assert re.search(r'^name = "partseg-openvocab"', (ROOT / "pyproject.toml").read_text(), re.M)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_trains_the_toy_in_a_foreign_folder(tmp_path):
    """Built and installed beside the packages of this environment, without the checkout on any path."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, env=plain, check=True)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], env=plain, check=True)
    libraries = Path(find_spec("torch").origin).parents[1]
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    (site / "libraries.pth").write_text(f"{libraries}\n")
    work = tmp_path / "work"
    write_toy(work / "data" / "ToyPascalPart116", ToyOptions(num_train=4, num_val=2, size=64))
    program = tmp_path / "env" / "bin" / "partseg"
    small = ["train.iterations=2", "train.batch_size=2", "model.image_size=64", "launch.num_gpus=0", "name=one"]
    place = subprocess.check_output([python, "-c", "import partseg; print(partseg.__file__)"], cwd=work, env=plain)
    assert Path(place.decode().strip()).is_relative_to(tmp_path / "env"), "the wheel, not the checkout"
    for name in COMMANDS:
        subprocess.run([program, name, "--help"], cwd=work, env=plain, check=True, stdout=subprocess.DEVNULL)
    Image.new("RGB", (64, 48), (90, 120, 60)).save(work / "photo.jpg")
    one = "ckpt=output/one"
    for command in (
        ["train", "debug=smoke", *small],
        ["eval", one, "launch.num_gpus=0", "save_predictions=true"],
        ["report", "run=output/one", "attention=false"],
        ["predict", one, "input=photo.jpg", "vocabulary={dog: [head, tail]}", "output=out", "device=cpu"],
        ["export", one, "dataset=toy_pascal_part_116", "launch.num_gpus=0", "output=labels"],
    ):
        subprocess.run([program, *command], cwd=work, env=plain, check=True)
    for file in ("output/one/results.json", "output/one/report.html", "out/photo.png", "labels/shard-00000.json"):
        assert (work / file).is_file()
    stage = {"kind": "train", "experiment": "part_clipseg_toy_pascal_part_116"}
    stages = {"one": {**stage, "overrides": ["debug=smoke", "init_from=null", *small[:-1]]}}
    (work / "study.yaml").write_text(json.dumps({"stages": stages}))
    subprocess.run([program, "recipe", "study.yaml"], cwd=work, env=plain, check=True)
    assert (work / "output" / "stages" / "study" / "one" / "results.json").is_file()
