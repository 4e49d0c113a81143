"""Every public format: written here with random weights, read back, every tensor and the outputs compared."""

import json
import logging
import pickle

import huggingface_hub
import pytest
import safetensors.torch
import torch

from partseg.backbones.clip_layouts import OPEN_CLIP
from partseg.backbones.clip_vit import ClipBackbone, clip_config
from partseg.systems.clipseg.decoder import DecoderShape
from partseg.systems.part_clipseg.network import PartClipSeg
from partseg.weights import sources
from partseg.weights.load import export_weights, load_weights


def save_hf(model, folder):
    safetensors.torch.save_file(export_weights(model, "hf_clipseg"), folder / "model.safetensors")
    return folder / "model.safetensors"


def save_hf_bin(model, folder):
    torch.save(export_weights(model, "hf_clipseg"), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def save_authors(model, folder):
    state = {f"partclipseg_model.{k}": v for k, v in export_weights(model, "part_clipseg").items()}
    torch.save({"model": {**state, "pixel_mean": torch.zeros(3, 1, 1)}, "iteration": 19999}, folder / "authors.pth")
    return folder / "authors.pth"


def save_ours(model, folder):
    torch.save({"format": "partseg-1", "iteration": 3, "model": model.state_dict()}, folder / "ours.pt")
    return folder / "ours.pt"


def save_open_clip(model, folder):
    state = {f"module.{k}": v.half() for k, v in export_weights(model, "open_clip").items()}
    torch.save({"state_dict": state, "epoch": 32, "name": "run"}, folder / "clip.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    return folder / "clip.pt"


FORMATS = {
    "hf_clipseg": (save_hf, ("backbone.", "decoder.")),
    "hf_clipseg_bin": (save_hf_bin, ("backbone.", "decoder.")),
    "part_clipseg": (save_authors, ("",)),
    "partseg": (save_ours, ("",)),
    "open_clip": (save_open_clip, ("backbone.",)),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip_restores_every_tensor(tmp_path, build_part_clipseg, kind):
    save, prefixes = FORMATS[kind]
    source, model = build_part_clipseg(), build_part_clipseg()
    report = load_weights(model, str(save(source, tmp_path)))
    expected, loaded = source.state_dict(), model.state_dict()
    covered = [name for name in expected if name.startswith(prefixes)]
    for name in covered:
        value = (
            expected[name].half().float()
            if kind == "open_clip" and expected[name].is_floating_point()
            else expected[name]
        )
        assert torch.equal(loaded[name].float(), value.float()), name
    assert {*report.loaded, "backbone.uses_quick_gelu"} >= set(covered)
    assert set(report.unexpected) <= {"pixel_mean"} and not report.resized
    assert set(report.loaded) | set(report.missing) | set(report.started) >= {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", ["part_clipseg", "partseg"])
def test_round_trip_restores_outputs(tmp_path, build_part_clipseg, outputs_of, images, vocabulary, kind):
    source, model = build_part_clipseg(), build_part_clipseg()
    load_weights(model, str(FORMATS[kind][0](source, tmp_path)))
    with torch.no_grad():
        a, b = (outputs_of(each, images, vocabulary) for each in (source, model))
    assert torch.equal(a.object_part, b.object_part) and torch.equal(a.object, b.object)


@pytest.mark.parametrize(
    "layout, file", [("hf_clipseg", "clipseg_hf_keys.txt"), ("part_clipseg", "partclipseg_keys.txt")]
)
def test_exports_have_the_names_and_shapes_of_public_files(samples, layout, file):
    lines = (samples.parent / "spec" / file).read_text().splitlines()
    public = {line.split("\t")[0]: json.loads(line.split("\t")[1]) for line in lines if "\t" in line and line[0] != "#"}
    with torch.device("meta"):
        state = export_weights(PartClipSeg(ClipBackbone()), layout)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == public


def test_clipseg_weights_start_the_pair_head(tmp_path, build_part_clipseg):
    model = build_part_clipseg()
    report = load_weights(model, str(save_hf(build_part_clipseg(), tmp_path)))
    assert torch.equal(model.pair.head.conv.weight, model.decoder.head.conv.weight)
    assert torch.equal(model.pair.film.mul.bias, model.decoder.film.mul.bias)
    assert len(report.started) == 10 and set(report.missing) == {
        "background", "adapter.down.weight", "adapter.up.weight",
        "pair.project.weight", "pair.project.bias", "pair.text.weight", "pair.text.bias",
    }  # fmt: skip
    assert "pair" in report.table() and "missing: background" in report.table()


def test_position_of_another_input_size_is_resized(tmp_path, build_clipseg):
    source, model = build_clipseg(), build_clipseg()
    state = export_weights(source, "hf_clipseg")
    name = "clip.vision_model.embeddings.position_embedding.weight"
    state[name] = torch.ones(1 + 11 * 11, 128)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    report = load_weights(model, str(tmp_path / "model.safetensors"))
    assert report.resized == ("backbone.clip.visual.positional_embedding",)
    torch.testing.assert_close(model.backbone.clip.visual.positional_embedding, torch.ones(65, 128))


def test_a_required_module_that_receives_nothing_is_an_error(tmp_path, build_part_clipseg):
    path = save_open_clip(build_part_clipseg(), tmp_path)
    model = build_part_clipseg()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"no tensor for \['decoder'\]"):
        load_weights(model, str(path), require=("backbone", "decoder"))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_checkpoint_of_another_width_is_an_error_and_changes_nothing(tmp_path, build_clipseg):
    path = save_hf(build_clipseg(decoder=DecoderShape(width=32, heads=4, hidden=96)), tmp_path)
    model = build_clipseg()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"another size.*file \[32, 128\], model \[64, 128\]"):
        load_weights(model, str(path))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights", None])
def test_corrupted_files_are_named(tmp_path, build_clipseg, name, content):
    path = tmp_path / name
    if content is None:  # cut in the middle
        whole = (save_hf if name.endswith("safetensors") else save_ours)(build_clipseg(), tmp_path)
        content = whole.read_bytes()[:100_000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
        load_weights(build_clipseg(), str(path))


def test_a_pickle_that_runs_code_is_refused(tmp_path, build_clipseg):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_weights(build_clipseg(), str(tmp_path / "evil.pth"))


def test_files_without_known_tensors_are_refused(tmp_path, build_clipseg):
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no layout that this model reads.*conv.weight"):
        load_weights(build_clipseg(), str(tmp_path / "other.pth"))
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        load_weights(build_clipseg(), str(tmp_path / "empty.pth"))


# ---- QuickGELU ----
@pytest.fixture
def gelu_model(tmp_path, build_clipseg):
    """The small model with plain GELU."""
    (tmp_path / "gelu.json").write_text(json.dumps({**clip_config("partseg-tiny-16"), "quick_gelu": False}))
    backbone = ClipBackbone(str(tmp_path / "gelu.json"), feature_blocks=(1, 2, 3))
    return PartClipSeg(backbone, decoder=DecoderShape(hidden=96))


@pytest.mark.parametrize("save", [save_hf, save_authors, save_ours, save_open_clip])
def test_quick_gelu_weights_are_refused_by_a_gelu_model(tmp_path, build_part_clipseg, gelu_model, save):
    with pytest.raises(ValueError, match="trained with QuickGELU, but the backbone"):
        load_weights(gelu_model, str(save(build_part_clipseg(), tmp_path)))


def test_a_file_that_does_not_tell_is_a_warning_or_an_answer(tmp_path, build_clipseg, gelu_model, caplog):
    path = save_open_clip(build_clipseg(), tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        load_weights(gelu_model, str(path))
    assert "does not say whether it was trained with QuickGELU" in caplog.text
    with pytest.raises(ValueError, match="trained with QuickGELU"):
        load_weights(gelu_model, str(path), quick_gelu=True)
    with pytest.raises(ValueError, match="was trained with quick_gelu=True"):
        load_weights(gelu_model, str(save_hf(build_clipseg(), tmp_path)), quick_gelu=False)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_openai_scripted_archives_are_quick_gelu(tmp_path):
    class Scripted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = torch.nn.Module()
            self.visual.conv1 = torch.nn.Conv2d(3, 4, 2)
            self.token_embedding = torch.nn.Embedding(2, 4)

        def forward(self, x):
            return x

    torch.jit.save(torch.jit.trace(Scripted(), torch.zeros(1)), str(tmp_path / "ViT.pt"))
    weights = sources.read_weights(str(tmp_path / "ViT.pt"), layouts=[OPEN_CLIP], clip_name="ViT-B-16")
    assert weights.quick_gelu is True and weights.layout.name == "open_clip"


# ---- hub and tags ----
@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """A cache of the hub with one repository in it, and no network."""
    cache = tmp_path / "hub"
    original = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *args, **kwargs: original(*args, **{**kwargs, "cache_dir": cache, "local_files_only": True}),
    )
    return cache


def put_in_cache(cache, name, path, file, commit="0" * 40):
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / file).write_bytes(path.read_bytes())
    return commit


@pytest.mark.parametrize("save", [save_hf, save_hf_bin])
def test_hub_names_come_from_the_cache_without_network(tmp_path, offline_hub, build_clipseg, save):
    source, model = build_clipseg(), build_clipseg()
    path = save(source, tmp_path)
    commit = put_in_cache(offline_hub, "CIDAS/clipseg-rd64-refined", path, path.name)
    for revision in (None, commit):
        load_weights(model, "CIDAS/clipseg-rd64-refined", revision=revision)
    assert torch.equal(model.decoder.reduces[0].weight, source.decoder.reduces[0].weight)
    with pytest.raises(FileNotFoundError, match="clipseg-rd64-refined.*revision abc.*give its path"):
        load_weights(model, "CIDAS/clipseg-rd64-refined", revision="abc")


def test_hub_names_that_cannot_be_fetched_are_named(offline_hub, build_clipseg):
    with pytest.raises(FileNotFoundError, match="hub repository 'nobody/nothing'"):
        load_weights(build_clipseg(), "nobody/nothing")


def test_tags_load_from_open_clip(tmp_path, monkeypatch, build_clipseg):
    source, model = build_clipseg(), build_clipseg()
    path = save_open_clip(source, tmp_path)
    monkeypatch.setattr(model.backbone, "name", "ViT-B-16-quickgelu")
    monkeypatch.setattr(sources.open_clip, "download_pretrained", lambda config: str(path))
    report = load_weights(model, "openai")
    assert report.layout == "open_clip" and len(report.loaded) > 60
    monkeypatch.setattr(model.backbone, "name", "ViT-B-16")
    with pytest.raises(ValueError, match="trained with plain GELU, but|is of another|QuickGELU"):
        load_weights(model, "laion2b_s34b_b88k")


@pytest.mark.parametrize("source", ["openia", "weights/start.pth", "a/b/c"])
def test_sources_that_do_not_exist_are_named(build_clipseg, source):
    with pytest.raises(FileNotFoundError, match=f"no weights '{source}'"):
        load_weights(build_clipseg(), source)


def test_backbone_loads_clip_weights_by_itself(tmp_path, build_clipseg):
    source = build_clipseg()
    backbone = ClipBackbone("partseg-tiny-16", pretrained=str(save_hf(source, tmp_path)), feature_blocks=(1, 2, 3))
    assert torch.equal(backbone.clip.token_embedding.weight, source.backbone.clip.token_embedding.weight)
