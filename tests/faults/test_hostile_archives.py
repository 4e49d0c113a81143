"""Damaged and hostile checkpoints and weights: no code in them runs, no damage loads, and one line names the file."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import partseg
from partseg.backbones.clip_layouts import OPEN_CLIP
from partseg.engine.checkpoint import init_from
from partseg.evaluation import results
from partseg.utils import archive
from partseg.utils.config import compose, instantiate
from partseg.utils.files import sha256_of
from partseg.weights.sources import read_weights

SCRIPT = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")


@pytest.fixture
def ran(tmp_path):
    """A file that hostile code would change or make; the test fails if it did."""
    path = tmp_path / "ran"
    path.write_bytes(b"precious" * 8)
    yield path
    assert path.read_bytes() == b"precious" * 8 and not (tmp_path / "made").exists(), "code out of the file ran"


@pytest.fixture(scope="module")
def model():
    """A network that nothing hostile may change."""
    return instantiate(compose("train", ["model=part_clipseg_tiny"]).model)


@pytest.fixture
def doors(model):
    """Function: path -> what each way to open it says; every way refuses it in one line that names the file."""

    def knock(path, ways=("load", "init_from")):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        calls = {"load": lambda: partseg.load(path), "init_from": lambda: init_from(model, str(path))}
        said = []
        for way in ways:
            with pytest.raises(ValueError) as caught:
                calls[way]()
            text = str(caught.value)
            assert path.name in text and "\n" not in text and len(text) < 500, text
            assert "weights_only" not in text and "trusted" not in text and "miniz" not in text, text
            said.append(text)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        return said

    return knock


@pytest.fixture(scope="module")
def whole(toy_run):
    """Bytes of a checkpoint of ours."""
    return (toy_run / "checkpoints" / "latest.pt").read_bytes()


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(value, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def tar(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        file.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def shell(ran: Path) -> Call:
    return Call(os.system, f"touch {ran.with_name('made')}; echo x > {ran}")


PICKLES = {
    "plain": lambda ran: pickle.dumps(shell(ran), protocol=2),
    "newest protocol": lambda ran: pickle.dumps({"model": shell(ran)}, protocol=5),
    "zip": lambda ran: saved({"model": shell(ran)}),
    "legacy": lambda ran: saved({"model": shell(ran)}, _use_new_zipfile_serialization=False),
    "eval": lambda ran: saved({"format": "partseg-1", "config": Call(eval, f"open({str(ran)!r}, 'w')")}),
    "open": lambda ran: saved(Call(open, str(ran), "w")),
    "torch.load": lambda ran: saved(Call(torch.storage._load_from_bytes, pickle.dumps(shell(ran)))),
    "path": lambda ran: saved({"model": Path("x")}),
    "tar": lambda ran: tar("pickle", pickle.dumps(shell(ran), protocol=2)),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_call_nothing(tmp_path, ran, doors, kind):
    path = tmp_path / "stranger.pt"
    path.write_bytes(PICKLES[kind](ran))
    doors(path)


def flipped(data: bytes, entry: str) -> bytes:
    """One bit of the middle of a zip entry changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        sizes = {info.filename: info for info in file.infolist() if entry in info.filename}
        info = max(sizes.values(), key=lambda info: info.file_size)
    name, extra = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
    middle = info.header_offset + 30 + name + extra + info.file_size // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def bomb(packed: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packed) as file:
        file.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        file.writestr("a/data/0", bytes(archive.UNPACKED + (1 << 20)))
    return stream.getvalue()


DAMAGE = {
    "empty": (lambda whole: b"", "it is empty"),
    "text": (lambda whole: b"<!doctype html><title>404</title>", ""),
    "zeros": (lambda whole: bytes(1000), ""),
    "first byte": (lambda whole: b"X" + whole[1:], ""),
    "cut in the weights": (lambda whole: whole[: len(whole) // 2], "cut off"),
    "cut at the end": (lambda whole: whole[:-30], "cut off"),
    "cut at the start": (lambda whole: whole[1000:], ""),
    "only a head": (lambda whole: whole[:4], "cut off"),
    "a bit of a weight": (lambda whole: flipped(whole, "/data/"), "checksum"),
    "a bit of the names": (lambda whole: flipped(whole, "/data.pkl"), "checksum"),
    "bomb": (lambda whole: bomb(zipfile.ZIP_DEFLATED), "unpack to"),
    "no pickle": (lambda whole: bomb(zipfile.ZIP_STORED)[:100], ""),
    "another list": (lambda whole: saved([1, 2]), ""),
    "nothing": (lambda whole: pickle.dumps(None, protocol=2), ""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line(tmp_path, whole, doors, kind):
    damage, word = DAMAGE[kind]
    path = tmp_path / "damaged.pt"
    path.write_bytes(damage(whole))
    assert all(word in text for text in doors(path))


def test_every_single_bit_counts(tmp_path, whole):
    """Thirty places all over the file: each is noticed, or changes nothing that was saved."""
    path = tmp_path / "damaged.pt"
    expected = torch.load(io.BytesIO(whole), weights_only=True)["model"]
    noticed = 0
    for place in range(0, len(whole), len(whole) // 30):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        try:
            found = archive.load_tensors(path)["model"]
        except ValueError:
            noticed += 1
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert noticed > 25


# Tensors that are not plain -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_odd_tensors_are_refused_before_anything_is_copied(tmp_path, model, doors, kind):
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    name = max(state, key=lambda name: state[name].dim() == 2)
    odd = {
        "sparse": lambda t: t.to_sparse(),
        "meta": lambda t: t.to("meta"),
    }
    torch.save(state | {name: odd[kind](state[name])}, tmp_path / "odd.pt")
    doors(tmp_path / "odd.pt", ["init_from"])


# The digest beside a file ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["start.safetensors", "start.pt"])
def test_a_digest_beside_the_weights_is_held_against_them(tmp_path, model, doors, name):
    path, beside = tmp_path / name, tmp_path / f"{name}.sha256"
    state = {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    path.write_bytes(safetensors.torch.save(state) if name.endswith("safetensors") else saved(state))
    beside.write_text(f"{sha256_of(path).upper()} *{name}\n")
    assert init_from(model, str(path)).loaded
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert f"{name}.sha256" in doors(path, ["init_from"])[0]
    beside.write_text("")
    assert f"{name}.sha256" in doors(path, ["init_from"])[0]
    if name.endswith("safetensors"):  # nothing else tells
        beside.unlink()
        init_from(model, str(path))


@pytest.mark.parametrize("text", ["", '{"model_cfg": 3}', '{"vision_config": []}', "\\xff"])
def test_a_damaged_config_beside_the_weights_is_named(tmp_path, model, text):
    torch.save({f"module.{name}": t for name, t in model.backbone.clip.state_dict().items()}, tmp_path / "clip.pt")
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"open_clip_config.json is damaged \(.*clip.pt"):
        read_weights(str(tmp_path / "clip.pt"), layouts=[OPEN_CLIP], clip_name="ViT-B-16")


# TorchScript ----------------------------------------------------------------------------------------------------------
class Restores(nn.Module):
    """Overwrites a file when torch.jit.load restores it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.conv1 = nn.Conv2d(3, 4, 2)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.from_file(self.path, True, 4).fill_(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Outer(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@SCRIPT
@pytest.mark.parametrize("nested", [False, True])
def test_an_archive_restores_nothing_by_its_own_code(tmp_path, ran, doors, nested):
    module = Restores(str(ran))
    torch.jit.save(torch.jit.script(Outer(module) if nested else module), str(tmp_path / "clip.pt"))
    assert "restores itself by code of its own" in doors(tmp_path / "clip.pt")[1]


CODE = """class Net(Module):
  __parameters__ = ["weight", ]
  __buffers__ = []
  weight : Tensor
  inner : __torch__.Net
"""


def scripted(pickled: bytes, *, code: str = CODE, **entries: bytes) -> bytes:
    stream = io.BytesIO()
    content = {"data.pkl": pickled, "code/__torch__.py": code.encode(), "data/0": bytes(16), "byteorder": b"little"}
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in (content | {name.replace("__", "/"): data for name, data in entries.items()}).items():
            file.writestr(f"a/{name}", data)
    return stream.getvalue()


NET = b"\x80\x02c__torch__\nNet\nq\x00)\x81q\x01}(X\x06\x00\x00\x00weight"
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK%ctQ"
)
REST = b"\x89ccollections\nOrderedDict\n)Rt"


def tensor(*, count: int = 4, offset: int = 0, size: int = 4, stride: int = 1) -> bytes:
    sizes = b"".join(b"J" + struct.pack("<i", number) for number in (offset,))
    shape = b"(J" + struct.pack("<i", size) + b"t(J" + struct.pack("<i", stride) + b"t"
    return TENSOR % count + sizes + shape + REST + b"R"


def net(value: bytes) -> bytes:
    return NET + value + b"ub."


def command(ran: Path) -> bytes:
    text = f"touch {ran.with_name('made')}".encode()
    return b"X" + struct.pack("<I", len(text)) + text


SCRIPTED = {
    "system": (lambda ran: scripted(net(b"cposix\nsystem\n(" + command(ran) + b"tR")), "posix.system"),
    "eval": (lambda ran: scripted(net(b"cbuiltins\neval\n(" + command(ran) + b"tR")), "builtins.eval"),
    "reduce of a stub": (lambda ran: scripted(net(b"c__torch__\nNet\n(" + command(ran) + b"tR")), "takes no arguments"),
    "load_from_bytes": (
        lambda ran: scripted(net(b"ctorch.storage\n_load_from_bytes\n(" + command(ran) + b"tR")),
        "_load_from_bytes",
    ),
    "import": (lambda ran: scripted(net(b"ctorch.utils.collect_env\nrun\n(" + command(ran) + b"tR")), "collect_env"),
    "dotted name": (
        lambda ran: scripted(net(b"c__torch__\nNet.__init__.__globals__\n(" + command(ran) + b"tR")),
        "takes no arguments",
    ),
    "build a function": (
        lambda ran: scripted(
            net(b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__" + command(ran) + b"s\x86b")
        ),
        "__defaults__",
    ),
    "out of its storage": (lambda ran: scripted(net(tensor(size=1000))), "out of bounds"),
    "before its storage": (lambda ran: scripted(net(tensor(offset=-2))), "invalid storage offset"),
    "stride out of it": (lambda ran: scripted(net(tensor(stride=100))), "out of bounds"),
    "more than the file": (lambda ran: scripted(net(tensor(count=200))), "buffer length"),
    "a path for a storage": (
        lambda ran: scripted(net(tensor().replace(b"\x01\x00\x00\x000", b"\x06\x00\x00\x00../ran"))),
        "no item named",
    ),
    "another persistent id": (lambda ran: scripted(net(b"X\x03\x00\x00\x00abcQ")), "unpack"),
    "memo": (lambda ran: scripted(net(b"Nr\xf0\xff\xff\xff")), "data.pkl is damaged"),
    "in itself": (lambda ran: scripted(net(tensor() + b"X\x05\x00\x00\x00innerh\x01")), "holds itself"),
    "no state": (lambda ran: scripted(b"\x80\x02c__torch__\nNet\n)\x81."), "no attributes"),
    "a list for a state": (lambda ran: scripted(b"\x80\x02c__torch__\nNet\n)\x81]b."), "no attributes"),
    "no tensor": (lambda ran: scripted(b"\x80\x02c__torch__\nNet\n)\x81}b."), "'weight'"),
    "no module": (lambda ran: scripted(b"\x80\x02]."), "no tensors"),
    "cut": (lambda ran: scripted(net(tensor())[:-20]), ""),
    "byte order": (lambda ran: scripted(net(tensor()), byteorder=b"big"), "byte order"),
    "two pickles": (lambda ran: scripted(net(tensor())).replace(b"a/byteorder", b"b/data.pkl\x00"[:11]), ""),
    "no pickle": (lambda ran: scripted(net(tensor())).replace(b"data.pkl", b"date.pkl"), "no data.pkl"),
    "code that is no text": (
        lambda ran: scripted(net(tensor()), code__b_py=b"").replace(b"__parameters__", b"\xff\xfe\xff"),
        "",
    ),
    "bit": (lambda ran: flipped(scripted(net(tensor())), "data/0"), "checksum"),
}


@pytest.mark.parametrize("kind", SCRIPTED)
def test_no_archive_runs_or_reads_past_its_end(tmp_path, ran, doors, kind):
    build, word = SCRIPTED[kind]
    path = tmp_path / "clip.pt"
    path.write_bytes(build(ran))
    assert word in doors(path)[1]


def test_the_handmade_archive_is_read_where_it_is_right(tmp_path):
    """Or the cases above would be refused for another reason."""
    path = tmp_path / "clip.pt"
    code = CODE.replace("weight", "visual.conv1.weight")
    name = b"X\x13\x00\x00\x00visual.conv1.weight"
    path.write_bytes(scripted(net(tensor(size=2, offset=1)).replace(b"X\x06\x00\x00\x00weight", name), code=code))
    layout = replace(OPEN_CLIP, marks=("visual.conv1.weight",))
    found = read_weights(str(path), layouts=[layout], clip_name="ViT-B-16")
    assert found.quick_gelu is True and torch.equal(found.state["visual.conv1.weight"], torch.zeros(2))


def test_results_that_nest_without_end_are_one_line(tmp_path):
    (tmp_path / "results.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="results.json is damaged"):
        results.read(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(ValueError, match="not a complete result"):
        results.read(tmp_path)
