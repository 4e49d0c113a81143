"""A finished model from a file, a folder or a hub name: what it is, what it says of itself, and who is refused."""

import json

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from httpx import Request, Response
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image

import partseg
import partseg.photo_prediction
from partseg.engine import pretrained, zoo
from partseg.utils.config import instantiate
from partseg.weights.load import export_weights
from partseg.weights.sources import HUB_FILES

CLIPSEG = "CIDAS/clipseg-rd64-refined"
WORDS = {"dog": ["head", "tail"], "car": ["wheel"]}


def network(model, **settings):
    """A random network of a config file; weights far from zero, so that masks differ."""
    torch.manual_seed(1)
    built = instantiate(zoo.model_node(model, settings))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


@pytest.fixture(scope="module")
def clipseg():
    """A small CLIPSeg without what the public one has not."""
    return network("clipseg_tiny", adapter_ratio=None)


@pytest.fixture(scope="module")
def clipseg_file(clipseg, tmp_path_factory):
    """Its weights as the public file has them."""
    path = tmp_path_factory.mktemp("public") / "model.safetensors"
    safetensors.torch.save_file(export_weights(clipseg, "hf_clipseg"), path)
    return path


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (9, 13, 3), dtype=np.uint8)).resize((130, 90))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Function: hub name, files -> they are in the cache; there is no network, and `hub.asked` counts its use."""
    original = huggingface_hub.hf_hub_download

    def download(name, file, *, revision=None, local_files_only=False):
        if not local_files_only:
            put.asked.append(file)
            raise put.error or LocalEntryNotFoundError("no connection")
        return original(name, file, revision=revision, cache_dir=tmp_path / "hub", local_files_only=True)

    def put(name, *files):
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        for file in files:
            (folder / "snapshots" / ("0" * 40) / file.name).write_bytes(file.read_bytes())

    put.asked, put.error = [], None
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return put


def test_public_clipseg_by_path_segments_by_its_own_masks(clipseg, clipseg_file, photo):
    """Each pixel is the prompt with the highest logit, background where none is above 0."""
    segmenter = partseg.load(clipseg_file, "cpu", model="clipseg_tiny")
    assert "PhraseCut" in str(segmenter.about) and "Apache-2.0" in str(segmenter.about)
    found = segmenter.predict(photo, WORDS)
    view = torch.from_numpy(np.asarray(photo.resize((128, 128), Image.Resampling.BILINEAR)).copy()).permute(2, 0, 1)
    with torch.no_grad():
        features = clipseg.backbone.encode_prompts(["dog head", "dog tail", "car wheel"])
        logits = clipseg.prompt_masks(view[None], features)
    full = F.interpolate(logits, size=(90, 130), mode="bilinear", align_corners=False)[0]
    expected = torch.where(full.amax(0) > 0, full.argmax(0), 3).numpy()
    assert len(np.unique(expected)) > 1
    assert (found.labels == expected).mean() > 0.98, "the photo is resized by another routine, borders may differ"
    assert found.caution == ""


def test_by_hub_name_without_network(clipseg_file, hub, photo):
    hub(CLIPSEG, clipseg_file)
    segmenter = partseg.load(CLIPSEG, "cpu", model="clipseg_tiny")
    assert hub.asked == [], "what is in the cache is not asked for"
    assert segmenter.predict(photo, ["dog head", "wheel"]).classes == ("dog head", "wheel")
    with pytest.raises(ValueError, match="CLIPSeg rd64-refined has no words of its own: give some"):
        segmenter.predict(photo)


def test_a_start_is_no_model(clipseg_file, hub):
    hub(CLIPSEG, clipseg_file)
    with pytest.raises(ValueError, match=f"start for training 'part_clipseg_tiny'.*random.*init_from={CLIPSEG}"):
        partseg.load(CLIPSEG, "cpu", model="part_clipseg_tiny")


@pytest.mark.parametrize(("layout", "model"), [("hf_clipseg", "clipseg_tiny"), ("part_clipseg", "part_clipseg_tiny")])
def test_files_are_known_by_their_tensors(layout, model, tmp_path, photo):
    settings = {"adapter_ratio": None} if layout == "hf_clipseg" else {}
    state = export_weights(network(model, **settings), layout)
    torch.save({"model": state, "iteration": 1}, tmp_path / "theirs.pth")
    found = pretrained.load(tmp_path / "theirs.pth", model=model)
    entry = next(each for each in zoo.zoo() if each.layout == layout)
    assert found.about.system == entry.title and found.about.source.endswith("theirs.pth")
    for name, value in entry.settings.items():
        assert getattr(found.model, name, value) == value


def test_every_entry_names_a_system_that_reads_it():
    for name, (layout, tensors) in zoo._families().items():
        assert layout.name == name and layout.matches(tensors)
    assert CLIPSEG in zoo.names()


def test_files_of_no_system_and_no_files(clipseg_file, tmp_path):
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no layout that this model reads"):
        partseg.load(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at nothing.*{CLIPSEG}"):
        partseg.load("nothing")
    with pytest.raises(ValueError, match="model='clip' is not one of .*clipseg, "):
        pretrained.load(clipseg_file, model="clip")


def refused(kind):
    return kind("no", response=Response(403, request=Request("GET", "https://hub")))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "hub cannot be reached.*hf download me/net --local-dir weights/net.*weights/net/model.safetensors"),
        (refused(GatedRepoError), "it is gated. Ask for access on https://huggingface.co/me/net"),
        (refused(RepositoryNotFoundError), "there is none of this name"),
    ],
)
def test_hub_troubles_say_what_to_do_after_one_try(hub, error, words):
    hub.error = error
    with pytest.raises(FileNotFoundError, match=words):
        partseg.load("me/net")
    assert len(hub.asked) == 1


def test_public_names_try_the_network_once_for_all_files(hub):
    with pytest.raises(FileNotFoundError, match="hub cannot be reached"):
        partseg.load(CLIPSEG)
    assert hub.asked == [HUB_FILES[0]]


def test_save_and_load_give_the_same_model(toy_run, tmp_path, photo, hub):
    first = partseg.load(toy_run, "cpu")
    assert first.save(tmp_path / "mine") == tmp_path / "mine"
    again = partseg.Segmenter.from_pretrained(tmp_path / "mine", "cpu")
    assert np.array_equal(first.predict(photo, WORDS).labels, again.predict(photo, WORDS).labels)
    assert again.vocabulary == first.vocabulary and again.about.synthetic
    hub("me/mine", *(tmp_path / "mine").iterdir())
    assert partseg.load("me/mine", "cpu").about.source == "me/mine"
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "**Trained on drawn pictures" in card and "toy_pascal_part_116" in card


def test_a_model_of_drawings_says_so_everywhere(toy_run, tmp_path, photo):
    found = partseg.load(toy_run, "cpu").predict(photo, WORDS)
    assert found.caution == pretrained.DRAWN
    found.save(tmp_path, stem="x")
    assert pretrained.DRAWN in json.loads((tmp_path / "x.json").read_text())["notes"]
    plain = partseg.photo_prediction.replace(found, caution="")
    assert found.picture().shape[0] > plain.picture().shape[0], "a line below the picture"
    assert partseg.photo_prediction.coco_document([found], found.words)["info"]["caution"] == pretrained.DRAWN
    assert found._repr_png_().startswith(b"\x89PNG")


def test_push_uploads_the_folder_or_says_why_not(toy_run, tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            if name == "me/refused":
                raise OSError("403 forbidden\nmore")
            return f"https://huggingface.co/{name}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    segmenter = partseg.load(toy_run, "cpu")
    assert segmenter.push("me/net", folder=tmp_path / "out") == "https://huggingface.co/me/net"
    assert calls[0] == ("me/net", {"private": True, "exist_ok": True})
    assert calls[1] == ("me/net", ["README.md", "model.safetensors", "partseg.yaml"])
    with pytest.raises(OSError, match="could not push to the hub repository 'me/refused': 403 forbidden. Log in"):
        segmenter.push("me/refused", folder=tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format="x"), "its format is not partseg-model-1"),
        (lambda c: c["model"].update(_target_="os.system"), "may not name _target_ 'os.system'"),
        (lambda c: c["model"].update(image_size="${oc.env:HOME}"), "would be looked up"),
        (lambda c: c.pop("vocabulary"), "vocabulary"),
        (lambda c: c["about"].update(more=1), "more"),
    ],
)
def test_a_folder_of_others_builds_only_our_networks(toy_run, tmp_path, change, words):
    partseg.load(toy_run, "cpu").save(tmp_path)
    content = yaml.safe_load((tmp_path / "partseg.yaml").read_text())
    change(content)
    (tmp_path / "partseg.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=f"not a whole model of partseg.*{words}"):
        partseg.load(tmp_path)


def test_flat_words_arrays_and_folders(clipseg_file, photo, tmp_path):
    segmenter = partseg.load(clipseg_file, "cpu", model="clipseg_tiny")
    for name in "ab":
        photo.save(tmp_path / f"{name}.png")
    first, second = segmenter.predict(tmp_path, ["dog head", "wheel", "tail"])
    assert (first.name, second.name) == ("a", "b")
    masks, boxes, scores = first.masks, first.boxes, first.scores
    assert len(masks) == len(boxes) == len(scores) == len(first.segments) > 1
    assert masks.dtype == bool and masks.shape[1:] == (90, 130) and ((scores > 0.5) & (scores <= 1)).all()
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert (left, top, right, bottom) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.array_equal(first.labels < 3, masks.any(0)), "the best of the phrases that cover a pixel, or background"
    dense = segmenter.predict(photo, WORDS)
    with pytest.raises(ValueError, match="return_scores=True"):
        _ = dense.scores
    assert segmenter.predict(photo, WORDS, return_scores=True).scores.shape == (len(dense.segments),)


@pytest.mark.slow
def test_the_public_names_fill_the_paper_size_network(samples, tmp_path, photo):
    """A stand-in with the names and shapes of the public file, at its size."""
    spec = samples.parent / "spec" / "clipseg_hf_keys.txt"
    lines = [line.split("\t") for line in spec.read_text().splitlines() if "\t" in line and line[0] != "#"]
    state = {name: 0.02 * torch.randn(json.loads(shape)) for name, shape, *_ in lines}
    state = {n: t.long() if n.endswith("position_ids") else t for n, t in state.items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    segmenter = partseg.load(tmp_path / "model.safetensors", "cpu")
    assert segmenter.predict(photo, ["dog head"]).labels.shape == (90, 130)
    assert torch.equal(segmenter.model.decoder.film.mul.weight, state["decoder.film_mul.weight"])
