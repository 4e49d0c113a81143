"""CRIS against the authors' network (numbers beside the checkout), and what holds without them."""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from partseg.evaluation.predictor import Predictor
from partseg.geometry import InputSpec
from partseg.labels import IGNORE_LABEL
from partseg.losses.term import LossInputs
from partseg.prediction import PhraseScores
from partseg.structures import Batch
from partseg.systems.cris.backbone import ClipResNet
from partseg.systems.cris.losses import TextToPixel
from partseg.systems.cris.masks import official_masks
from partseg.systems.cris.network import Cris, CrisPrompts, CrisShape
from partseg.systems.cris.weights import OFFICIAL
from partseg.text.encoder import _tell_bytes
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.weights.freeze import trainable_table
from partseg.weights.load import export_weights, load_weights

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT.parent / "shared" / "fixtures" / "cris"
GOLDEN = ROOT / "tests" / "golden"
CLIP = {
    "embed_dim": 44,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": [1, 2, 2, 1], "width": 6, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
}
SHAPE = CrisShape(branches=(24, 48, 72), layers=3, heads=8, hidden=96, dropout=0.0)
WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "car": ["wheel"]})
PHRASES = ("quadruped head", "the side mirror of the car", "bird wing", "the tail of the aeroplane")


def numbers(name):
    if not FIXTURE.is_dir():
        pytest.skip(f"the authors' numbers are not beside the checkout ({FIXTURE.relative_to(ROOT.parent)})")
    return load_file(FIXTURE / f"{name}.safetensors")


@pytest.fixture
def build(tmp_path):
    """A CRIS of the fixture's size."""
    (tmp_path / "small.json").write_text(json.dumps(CLIP))

    def make(*, shape=SHAPE, word_length=17, cut_long=False, **options):
        backbone = ClipResNet(str(tmp_path / "small.json"), word_length=word_length, cut_long=cut_long)
        return Cris(backbone, image_size=96, shape=shape, **options)

    return make


@pytest.fixture
def reference(build, tmp_path):
    """Our network with the authors' random weights, read from a file as they write it."""
    state = numbers("state_dict")
    meta = json.loads((FIXTURE / "meta.json").read_text())
    table = torch.zeros(49408, CLIP["text_cfg"]["width"])
    table[meta["tokens"]["vocab_bpe_ids"]] = state["backbone.token_embedding.weight"]
    state["backbone.token_embedding.weight"] = table
    path = tmp_path / "cris.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}, "epoch": 3}, path)
    model = build()
    report = load_weights(model, str(path), require=("backbone", "neck", "decoder", "projector"))
    assert report.layout == "cris" and not report.missing and not report.unexpected
    return model


def batch_of(images, phrases, masks):
    nothing = torch.full((len(images), *images.shape[-2:]), IGNORE_LABEL, dtype=torch.int32)
    names = tuple(map(str, range(len(images))))
    return Batch(images, nothing, nothing, names, WORDS, phrases=tuple(phrases), phrase_masks=masks)


def pixels(model, normalised):
    """0..1 again, which the network takes too."""
    return normalised * model.backbone.image_std + model.backbone.image_mean


def assert_close(found, expected, *, rel, what=""):
    assert found.shape == expected.shape, what
    assert (found - expected).norm() <= rel * expected.norm(), what


def loss_of(model, batch, **options):
    term = TextToPixel(**options)
    counts = {"images": torch.tensor(float(len(batch)), dtype=torch.float64)}
    return term(LossInputs(model(batch), batch), counts)


# The authors' numbers ------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_every_seam_equals_the_authors(reference):
    model, expected = reference.eval(), numbers("inference")
    c3, c4, c5 = maps = model.backbone.encode_image(pixels(model, expected["image"]))
    words, padding, state = model.backbone.encode_phrases(PHRASES[:2])
    full_words, full_padding, _ = model.backbone.encode_tokens(expected["token_ids_bpe"])
    fused = model.neck([x.repeat(2, 1, 1, 1) for x in model.neck.branches(*maps)], state)
    decoded = model.decoder(fused, words, padding)
    seams = {
        "visual.c3": c3,
        "visual.c4": c4,
        "visual.c5_attnpool": c5,
        "text.word": full_words,
        "text.state": state,
        "neck.out": fused,
        "decoder.out": decoded.flatten(2),
        "logits": model.projector(decoded, state)[:, None],
    }
    for name, found in seams.items():
        assert_close(found, expected[name], rel=1e-5, what=name)
    assert torch.equal(full_padding, expected["token_ids_bpe"] == 0)
    logits = model.prompt_logits(pixels(model, expected["image"]), model.encode_text(Phrases(PHRASES[:2])))
    assert_close(logits[0], expected["logits"][:, 0], rel=1e-5)
    assert_close(official_masks(logits[0], (70, 120), (96, 96)), expected["prob_original_size"], rel=1e-4)


def test_official_masks_are_the_authors(build, reference):
    model, expected = reference.eval(), numbers("inference")
    model.official_resize = True
    with torch.no_grad():
        (found,) = model.predict(
            pixels(model, expected["image"]), model.encode_text(Phrases(PHRASES[:2])), sizes=[(70, 120)]
        )
    assert torch.equal(found.masks(), expected["mask_gt_035"].bool())


def test_letterbox_lies_where_the_authors_does(reference):
    """They resize bicubic without antialiasing, we bilinear with it: the place is the same, pixels nearly."""
    expected = numbers("inference")
    photo = Image.fromarray(expected["raw_image_u8_hwc_rgb"].numpy())
    geometry = reference.input.geometry(*photo.size[::-1])
    found, theirs = np.asarray(geometry.image(photo)).astype(int), expected["letterboxed_u8_hwc"].numpy().astype(int)
    top, _, height, _ = geometry.region
    affine = expected["affine_2x3"]
    assert abs(top - affine[1, 2]) <= 0.5 and abs(height - affine[1, 1] * photo.height) <= 0.5
    assert (found[: top - 1] == theirs[: top - 1]).all(), "the fill differs"
    assert np.abs(found - theirs)[top + 1 : top + height - 1].mean() < 8


def test_loss_and_gradients_equal_the_authors(reference):
    model, expected = reference.train(), numbers("train")
    images = pixels(model, expected["image"])[expected["image_index"]]
    batch = batch_of(images, PHRASES, expected["mask"][:, 0])
    outputs = model(batch)
    assert_close(outputs.logits[:, None], expected["logits"], rel=1e-5)
    term, counts = TextToPixel(mask_downsample="nearest"), {"images": torch.tensor(4.0)}
    loss = term(LossInputs(outputs, batch), counts)
    assert loss.item() == pytest.approx(expected["loss_total"].item(), rel=1e-6)
    loss.backward()
    theirs = {OFFICIAL.link(name).theirs[0]: p for name, p in model.named_parameters()}
    meta = json.loads((FIXTURE / "meta.json").read_text())
    compared = [name.removeprefix("grad/") for name in expected if name.startswith("grad/")]
    assert len(compared) >= 25
    for name in compared:
        grad, wanted = theirs[name].grad, expected[f"grad/{name}"]
        grad = grad[meta["tokens"]["vocab_bpe_ids"]] if name.endswith("token_embedding.weight") else grad
        assert_close(grad, wanted, rel=1e-4, what=name)
    for name, norm in meta["grad_norm_per_parameter"].items():
        assert theirs[name].grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
    assert theirs["backbone.logit_scale"].grad is None
    own = model.state_dict()
    after = {link.theirs[0]: own[name] for name in own if (link := OFFICIAL.link(name))}
    for name in (n for n in expected if n.startswith("buffer_after/")):
        assert_close(after[name.removeprefix("buffer_after/")], expected[name], rel=1e-5, what=name)


# The same without them ------------------------------------------------------------------------------------------------
def named_weights(model):
    """Weights that follow from their names, the same on every machine and for every torch."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(value.shape)
            positive = value.ndim <= 1 and name.endswith(("weight", "_var"))
            per_row = value.numel() / len(value) if value.ndim else 1
            drawn = np.abs(drawn) + 0.5 if positive else drawn * per_row**-0.5
            value.copy_(torch.from_numpy(np.asarray(drawn)))
    return model


def golden_batch():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (4, 3, 96, 96), dtype=np.uint8))
    masks = torch.zeros(4, 96, 96, dtype=torch.bool)
    for i, (top, left) in enumerate(rng.integers(0, 48, (4, 2))):
        masks[i, top : top + 41, left : left + 30] = True
    return batch_of(images, PHRASES, masks)


def golden(model):
    """What the tests pin: logits, losses of both targets and gradients of one tensor per module."""
    batch = golden_batch()
    model.eval()
    with torch.no_grad():
        found = {"logits": model.prompt_logits(batch.images[:2], model.encode_text(Phrases(PHRASES)))}
    model.train()
    for rule in ("area", "nearest"):
        model.zero_grad()
        found[f"loss_{rule}"] = (loss := loss_of(model, batch, mask_downsample=rule)).detach()
    loss.backward()
    parameters = dict(model.named_parameters())
    for name in ("backbone.connect.0.weight", "neck.text.0.weight", "decoder.layers.1.fc2.bias", "projector.text.bias"):
        found[f"grad/{name}"] = parameters[name].grad.clone()
    return found


def test_numbers_are_the_pinned_ones(build):
    pinned = load_file(GOLDEN / "cris.safetensors")
    found = golden(named_weights(build()))
    assert set(found) == set(pinned)
    for name, value in pinned.items():
        assert_close(found[name], value, rel=1e-4 if name.startswith("grad") else 1e-5, what=name)


@pytest.mark.parametrize("name", ["RN50", "RN101"])
def test_names_and_shapes_are_the_public_ones(name):
    """The whole list is beside the checkout; its hash is here."""
    with torch.device("meta"):
        model = Cris(ClipResNet(f"{name}-quickgelu"))
    links = {n: OFFICIAL.link(n) for n in model.state_dict()}
    shapes = {link.theirs[0]: tuple(model.state_dict()[n].shape) for n, link in links.items() if link}
    lines = sorted(f"{key} {'x'.join(map(str, shape)) or 'scalar'}" for key, shape in shapes.items())
    pinned = json.loads((GOLDEN / "cris_keys.json").read_text())[name]
    assert len(lines) == pinned["tensors"] and hashlib.sha256("\n".join(lines).encode()).hexdigest() == pinned["sha256"]
    assert [n for n, link in links.items() if link is None] == ["backbone.uses_quick_gelu"]
    if FIXTURE.is_dir():
        text = (FIXTURE / "full_size_keys.txt").read_text()
        section = text[text.index(f"# CRIS {name},") :].splitlines()[1:]
        stop = next((i for i, line in enumerate(section) if line.startswith("#")), len(section))
        assert sorted(line for line in section[:stop] if line) == lines


def test_numbers_of_parameters_are_the_papers():
    with torch.device("meta"):
        model = Cris(ClipResNet("RN50-quickgelu"))
    counts = [sum(p.numel() for p in module.parameters()) for module in (model.neck, model.decoder, model.projector)]
    assert [round(count / 1e6, 1) for count in counts] == [24.1, 12.6, 6.0]
    lines = trainable_table(model).splitlines()[1:]
    rows = {line.split("  ")[0]: int(line.split()[-1].replace(",", "")) for line in lines}
    connector = sum(p.numel() for p in model.backbone.connect.parameters())
    assert rows["backbone"] == connector, "what joins the towers is part of neither"
    assert rows["text tower"] == sum(p.numel() for n, p in model.backbone.clip.named_parameters() if "visual." not in n)


def test_public_weights_load_by_name(build, tmp_path):
    """The authors' file, and CLIP alone, which leaves everything behind it as it was."""
    model = named_weights(build())
    torch.save({"state_dict": {f"module.{k}": v for k, v in export_weights(model, "cris").items()}}, tmp_path / "a.pth")
    other = build()
    report = load_weights(other, str(tmp_path / "a.pth"), require=("neck", "projector"))
    assert report.layout == "cris" and not report.missing and not report.unexpected
    own, loaded = model.state_dict(), other.state_dict()
    assert all(torch.equal(own[name], loaded[name]) for name in own)

    save_file(export_weights(model, "open_clip"), tmp_path / "clip.safetensors")
    start = build()
    before = start.neck.join[0].weight.clone()
    report = load_weights(start, str(tmp_path / "clip.safetensors"), quick_gelu=True)
    assert report.layout == "open_clip" and not report.unexpected
    assert {name.split(".")[0] for name in report.missing} == {"backbone", "neck", "decoder", "projector"}
    assert {n for n in report.missing if n.startswith("backbone")} == {n for n in own if "backbone.connect" in n}
    assert torch.equal(start.neck.join[0].weight, before)
    assert torch.equal(start.backbone.clip.visual.conv1.weight, model.backbone.clip.visual.conv1.weight)


# Phrases --------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_padding_changes_nothing(build):
    """Exactly: neither what stands in padding tokens, nor the phrases beside it."""
    model = named_weights(build()).eval()
    images = golden_batch().images[:1]
    prompts = model.encode_text(Phrases(PHRASES))
    assert prompts.padding.any() and not prompts.padding[:, :3].any()
    noise = torch.where(prompts.padding[:, :, None], torch.randn_like(prompts.words), prompts.words)
    logits = model.prompt_logits(images, prompts)
    changed = CrisPrompts(noise, prompts.padding, prompts.state)
    assert torch.equal(model.prompt_logits(images, changed), logits)
    alone = torch.cat([model.prompt_logits(images, model.encode_text(Phrases.of(text))) for text in PHRASES], dim=1)
    assert_close(alone, logits, rel=1e-6)


@torch.no_grad()
def test_a_kernel_per_phrase_equals_a_loop(build):
    projector = named_weights(build()).projector.eval()
    x, state = torch.randn(3, 48, 6, 5), torch.randn(3, 44)
    found = projector(x, state)
    for i in range(3):
        numbers = projector.text(state[i])
        maps = x[i : i + 1]
        for module in (projector.image1, projector.image2):
            maps = module(F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False))
        expected = F.conv2d(projector.image3(maps), numbers[:-1].view(1, 24, 3, 3), numbers[-1:], padding=1)[0, 0]
        assert_close(found[i], expected, rel=1e-5)


@torch.no_grad()
def test_many_phrases_cost_one_image_encoding(build, monkeypatch):
    model = named_weights(build(phrase_chunk=3)).eval()
    images = golden_batch().images[:2]
    texts = [f"{text} {number}" for text in PHRASES for number in range(5)]
    counted = []
    encode = model.backbone.encode_image
    monkeypatch.setattr(model.backbone, "encode_image", lambda x: counted.append(len(x)) or encode(x))
    prompts = model.encode_text(Phrases.of(texts))
    found = model.predict(images, prompts, sizes=[(50, 80), (96, 96)])
    assert counted == [2], "each image is encoded once, whatever the number of phrases and chunks"
    assert [each.logits.shape for each in found] == [(20, 96, 96)] * 2
    model.predict(images, model.encode_text(WORDS), sizes=[(50, 80), (96, 96)])
    assert counted == [2, 2], "and for all classes of a vocabulary"
    model.phrase_chunk = 40
    for one, other in zip(found, model.predict(images, prompts, sizes=[(50, 80), (96, 96)])):
        assert_close(one.logits, other.logits, rel=1e-5)


@torch.no_grad()
def test_classes_of_a_vocabulary_are_phrases(build):
    """Background wins where no class reaches the threshold. Of an object that is told only its own phrases are run."""
    model = named_weights(build(template={"object_part": "the {part} of the {object}"})).eval()
    images = golden_batch().images[:1]
    (dense,) = model.predict(images, model.encode_text(WORDS), sizes=[(96, 96)])
    texts = ["the head of the dog", "the tail of the dog", "the wheel of the car"]
    (masks,) = model.predict(images, model.encode_text(Phrases.of(texts)), sizes=[(96, 96)])
    assert_close(dense.object_part[:-1], masks.logits, rel=1e-5)
    assert dense.object is None and dense.object_part[-1].sigmoid().unique().item() == pytest.approx(0.35)
    assert masks.threshold == pytest.approx(np.log(0.35 / 0.65))
    dog = torch.zeros(96, 96, dtype=torch.int32)
    (told,) = Predictor(prompts="present").prepare(model, WORDS)(images, [(96, 96)], given=[dog])
    assert_close(told.object_part[[0, 1, 3]], dense.object_part[[0, 1, 3]], rel=1e-5)
    assert told.object_part[2].isnan().all()
    with pytest.raises(ValueError, match="model.template must be a single text"):
        build(template="imagenet").encode_text(WORDS)


def test_bad_phrases_are_refused_or_told(build, caplog):
    model = build(word_length=6)
    with pytest.raises(ValueError, match=r"'the left ear of the small dog' has 9 tokens, the text tower takes 6"):
        model.encode_text(Phrases.of("the left ear of the small dog"))
    with pytest.raises(ValueError, match="empty"):
        Phrases.of(["a dog", " "])
    cut = build(word_length=6, cut_long=True).encode_text(Phrases.of(["the left ear of the small dog", "dog"]))
    assert cut.padding.tolist() == [[False] * 6, [False] * 3 + [True] * 3]
    _tell_bytes.cache_clear()
    for text in ("kopf", "größe", "cafés tête", "犬の耳", "犬の耳"):
        build().encode_text(Phrases.of(text))
    assert [record.message for record in caplog.records if "byte by byte" in record.message] == [
        "CLIP reads some of '犬の耳' byte by byte: it was trained on English; results will mean little"
    ]


# Training -------------------------------------------------------------------------------------------------------------
def test_one_image_is_refused(build):
    model, batch = build(), golden_batch()
    one = batch_of(batch.images[:1], PHRASES[:1], batch.phrase_masks[:1])
    with pytest.raises(ValueError, match=r"one image has no statistics.*train.batch_size"):
        model.train()(one)
    assert model.eval()(one).logits.shape == (1, 24, 24)
    with pytest.raises(ValueError, match="augmentation.about=phrase"):
        model(Batch(batch.images, batch.object_part, batch.object, batch.names, WORDS))


def test_dropout_is_a_function_of_the_batch(build):
    """So that a resumed run draws what the undisturbed one would have drawn, and other draws stay what they were."""
    model = build(shape=CrisShape(branches=(24, 48, 72), layers=1, heads=8, hidden=96, dropout=0.5)).train()
    batch = golden_batch()
    state = torch.get_rng_state()
    first = model(batch).logits
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(model(batch).logits, first)
    renamed = Batch(**{**vars(batch), "names": ("w", "x", "y", "z")})
    assert not torch.equal(model(renamed).logits, first)


def test_targets_at_the_size_of_the_logits(build):
    """`area` is a cell's share of the mask; the loss is a mean of terms -log s(x) and -log s(-x)."""
    model, batch = named_weights(build()).eval(), golden_batch()
    logits = model(batch).logits.detach()
    share = batch.phrase_masks.float().unflatten(2, (24, 4)).unflatten(1, (24, 4)).mean(dim=(2, 4))
    expected = -(share * F.logsigmoid(logits) + (1 - share) * F.logsigmoid(-logits)).mean()
    assert loss_of(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="allowed are 'area' and 'nearest'"):
        TextToPixel(mask_downsample="first")


# Letterbox ------------------------------------------------------------------------------------------------------------
def test_the_letterbox_is_undone():
    """200 photos: what the network sees at a place comes back to where it was, within half a pixel of either."""
    rng = np.random.default_rng(0)
    spec = InputSpec((416, 416), "letterbox")
    for height, width in rng.integers(20, 900, (200, 2)):
        geometry = spec.geometry(height, width)
        top, left, rows, columns = geometry.region
        row, column = torch.arange(416.0), torch.arange(416.0)
        y = (row + 0.5 - top) * height / rows  # photo coordinates of the network's pixel centres
        x = (column + 0.5 - left) * width / columns
        cut_y, cut_x = rng.uniform(0.3, 0.7, 2) * (height, width)
        scores = torch.stack([(y - cut_y)[:, None].expand(416, 416), (x - cut_x)[None].expand(416, 416)])
        below, right = PhraseScores(scores, (int(height), int(width)), geometry.region).masks()
        assert abs(height - below.any(1).sum().item() - cut_y) <= 0.5 + 1e-3
        assert abs(width - right.any(0).sum().item() - cut_x) <= 0.5 + 1e-3
        boxes = rng.uniform(0, 1, (5, 4)) * [width, height, width, height]
        back = (geometry.boxes(boxes) - [left, top, left, top]) * ([width / columns, height / rows] * 2)
        assert np.abs(back - boxes).max() < 1e-6


def test_sizes_that_cannot_be(build):
    with pytest.raises(ValueError, match="multiple of 32"):
        Cris(build().backbone, image_size=100, shape=SHAPE)
    with pytest.raises(ValueError, match="the text tower's width, 48"):
        Cris(build().backbone, image_size=96)
    with pytest.raises(ValueError, match="ViT-B-16 is not a CLIP ResNet"):
        ClipResNet("ViT-B-16")


def rewrite():
    """`python tests/systems/test_cris.py` writes the pinned numbers anew."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.json"
        path.write_text(json.dumps(CLIP))
        model = Cris(ClipResNet(str(path)), image_size=96, shape=SHAPE)
    save_file(golden(named_weights(model)), GOLDEN / "cris.safetensors")
    found = {}
    for name in ("RN50", "RN101"):
        with torch.device("meta"):
            state = Cris(ClipResNet(f"{name}-quickgelu")).state_dict()
        lines = sorted(
            f"{link.theirs[0]} {'x'.join(map(str, value.shape)) or 'scalar'}"
            for key, value in state.items()
            if (link := OFFICIAL.link(key))
        )
        found[name] = {"tensors": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}
    (GOLDEN / "cris_keys.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    rewrite()
