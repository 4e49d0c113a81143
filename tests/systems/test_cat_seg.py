"""CAT-Seg's pieces against plain restatements, its variants and weights, and what is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from partseg.engine.build import build_model
from partseg.labels import IGNORE_LABEL
from partseg.losses.term import LossInputs
from partseg.structures import Batch, Outputs
from partseg.systems.cat_seg.aggregator import Aggregator, AggregatorShape, Guidance
from partseg.systems.cat_seg.classes import ClassLayer
from partseg.systems.cat_seg.inference import Inference, squashed, windowed
from partseg.systems.cat_seg.losses import AllPixelBCE
from partseg.systems.cat_seg.spatial import SwinBlock
from partseg.utils.config import compose
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.weights.load import export_weights, load_weights

GOLDEN = Path(__file__).parents[1] / "golden"
FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "car": ["wheel"]})


def shaken(module):
    """Random values everywhere, so that zeros and ones of the initialisation hide no mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def tiny(name="cat_seg", *overrides):
    """A tiny model of an experiment, shaken."""
    chosen = [f"experiment={name}_pascal_part_116", f"model={name}_tiny", *overrides]
    return shaken(build_model(compose("train", chosen)))


# Layers ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [0, 3])
@torch.no_grad()
def test_window_attention_is_a_loop_over_cells(shift):
    """Each cell looks at the cells of its own window, with the picture beside its query and its key."""
    dim, width, n, heads = 8, 5, 6, 2
    block = shaken(SwinBlock(dim, width, heads=heads, window=n, shift=shift))
    x, guidance = torch.randn(1, 2, 12, 12, dim), torch.randn(1, 1, 12, 12, width)
    normed = block.norm1(x)
    own = block.attention
    beside = torch.cat([normed, guidance.expand(-1, 2, -1, -1, -1)], dim=-1)
    q, k, v = own.q(beside), own.k(beside), own.v(normed)
    # the windows' borders as the picture has them, before anything is rolled
    place = [(i - shift) // n if shift else i // n for i in range(12)]
    mixed = torch.zeros_like(x)
    for t in range(2):
        for row in range(12):
            for column in range(12):
                near = [
                    (r, c) for r in range(12) for c in range(12) if (place[r], place[c]) == (place[row], place[column])
                ]
                rows, columns = map(list, zip(*near))
                for h in range(heads):
                    part = slice(h * dim // heads, (h + 1) * dim // heads)
                    scores = k[0, t, rows, columns, part] @ q[0, t, row, column, part] * (dim // heads) ** -0.5
                    mixed[0, t, row, column, part] = scores.softmax(0) @ v[0, t, rows, columns, part]
    expected = x + block.out(mixed)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x, guidance), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_class_attention_is_a_loop_over_pairs_with_padding_written_out():
    dim, width, heads, classes, room = 8, 4, 2, 3, 7
    layer = shaken(ClassLayer(dim, width, heads=heads, pooling=1, padding=room))
    x, guidance = torch.randn(1, classes, 2, 2, dim), torch.randn(1, classes, width)
    filled = torch.cat([x, layer.padding_token[:, :, None, None].expand(1, room - classes, 2, 2, dim)], dim=1)
    beside = torch.cat([guidance, layer.padding_guidance.expand(1, room - classes, width)], dim=1)
    normed = layer.norm1(filled)
    both = torch.cat([normed, beside[:, :, None, None].expand(-1, -1, 2, 2, -1)], dim=-1)
    q, k, v = (F.elu(layer.attention.q(both)) + 1, F.elu(layer.attention.k(both)) + 1, layer.attention.v(normed))
    mixed = torch.zeros_like(x)
    for t in range(classes):
        for h in range(heads):
            part = slice(h * dim // heads, (h + 1) * dim // heads)
            weights = (q[:, t : t + 1, ..., part] * k[..., part]).sum(-1)
            mixed[:, t, ..., part] = (weights[..., None] * v[..., part]).sum(1) / (weights.sum(1)[..., None] + 1e-6)
    pooled = x + mixed
    expected = x + pooled + layer.mlp(layer.norm2(pooled))
    torch.testing.assert_close(layer(x, guidance), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def aggregator():
    """A small aggregator with padding, and inputs of five classes for two pictures."""
    shape = AggregatorShape(
        hidden=32, window=6, prompts=3, padding=9, text=8, appearance=10, decoder=(32, 16), decoder_guidance=(8, 4)
    )
    dims = {"text_dim": 7, "appearance_dim": 5, "decoder_guidance_dims": (6, 3)}
    module = shaken(Aggregator(shape, **dims, class_chunk=1000, recompute=False))
    guidance = Guidance(torch.randn(2, 5, 12, 12), (torch.randn(2, 6, 24, 24), torch.randn(2, 3, 48, 48)))
    return module, (torch.randn(2, 7, 12, 12), F.normalize(torch.randn(5, 3, 7), dim=-1), guidance)


def test_the_order_of_classes_changes_nothing(aggregator):
    module, (cells, text, guidance) = aggregator
    order = torch.randperm(5)
    expected = module(cells, text, guidance)[:, order]
    torch.testing.assert_close(module(cells, text[order], guidance), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_classes_in_chunks_score_as_all_at_once(aggregator, chunk):
    module, inputs = aggregator
    expected = module(*inputs).detach()
    module.class_chunk = chunk
    with torch.no_grad():
        torch.testing.assert_close(module(*inputs), expected, atol=1e-5, rtol=1e-5)


def test_recomputed_layers_give_the_same_gradients(aggregator):
    module, inputs = aggregator
    found = []
    for recompute, chunk in ((False, 1000), (True, 4)):
        module.recompute, module.class_chunk = recompute, chunk
        module.zero_grad()
        module(*inputs).square().mean().backward()
        found.append([p.grad.clone() for p in module.parameters()])
    for plain, again in zip(*found):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-4)


def test_the_volume_is_the_only_thing_that_grows_with_classes(aggregator):
    """Without gradients nothing but the volume, and logits at the end, is held for all classes at once."""
    module, (cells, text, guidance) = aggregator
    module.class_chunk = 2
    many = text.repeat(12, 1, 1)
    volume, logits = 2 * 60 * 12 * 12 * 32 * 4, 2 * 60 * 48 * 48 * 4
    large = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() > volume // 4:
                large[out.untyped_storage().data_ptr()] = out.untyped_storage()  # kept, so that none is used again
            return out

    with torch.no_grad(), Watch():
        module(cells, many, guidance)
    assert sorted(each.nbytes() for each in large.values()) == sorted([logits, volume])


# Networks -------------------------------------------------------------------------------------------------------------
def test_background_is_a_saved_class_that_trains():
    model = tiny()
    assert "background" in model.state_dict() and model.background.requires_grad
    images = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    nothing = torch.full((1, 128, 128), IGNORE_LABEL, dtype=torch.int32)
    batch = Batch(images, nothing, nothing, ("a",), WORDS)
    outputs = model(batch)
    assert outputs.object_part.shape == (1, 4, 128, 128)
    AllPixelBCE()(LossInputs(outputs, batch), AllPixelBCE().counts(batch)).backward()
    assert model.background.grad.norm() > 0


def test_a_drawn_background_is_the_same_in_every_process_and_in_no_file():
    torch.manual_seed(1)
    one = tiny("cat_seg", "model.background=drawn")
    torch.manual_seed(2)
    other = tiny("cat_seg", "model.background=drawn")
    assert torch.equal(one.background, other.background) and "background" not in one.state_dict()
    assert not torch.equal(
        one.background, tiny("cat_seg", "model.background=drawn", "model.background_seed=1").background
    )


@torch.no_grad()
def test_without_background_every_pixel_is_a_part():
    model = tiny("cat_seg_cvpr24", "model.background=none").eval()
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    found = model.predict(images, model.encode_text(WORDS), sizes=[(20, 30)] * 2)
    assert all(len(each.object_part) == 4 and (each.object_part.argmax(0) < 3).all() for each in found)


@torch.no_grad()
def test_phrases_are_classes():
    model = tiny().eval()
    prompts = model.encode_text(Phrases.of(["the left ear", "a wheel"]))
    (found,) = model.predict(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), prompts, sizes=[(30, 40)])
    assert found.masks().shape == (2, 30, 40)


@torch.no_grad()
def test_a_photo_in_a_filled_up_batch_scores_as_alone():
    """Short-edge input: what fills a batch up is cut off before the photo is squashed."""
    model = tiny("cat_seg", "model.inference.short_edge=[150,200]").eval()
    prompts = model.encode_text(WORDS)
    photo = torch.randint(0, 256, (3, 150, 180), dtype=torch.uint8)
    batch = torch.zeros(2, 3, 180, 200, dtype=torch.uint8)
    batch[0, :, :150, :180] = photo
    regions = [(0, 0, 150, 180), (0, 0, 180, 200)]
    (alone,) = model.predict(photo[None], prompts, sizes=[(50, 60)])
    found = model.predict(batch, prompts, sizes=[(50, 60), (9, 9)], regions=regions)
    torch.testing.assert_close(found[0].object_part, alone.object_part, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_only_the_best_classes_of_more_than_there_is_room_for():
    model = tiny("cat_seg_cvpr24", "model.aggregator.padding=3", "model.larger_vocabulary=best").eval()
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    words = Vocabulary.from_mapping({"dog": ["head", "tail", "leg"], "car": ["wheel", "door"]})
    found = model.predict(images, model.encode_text(words), sizes=[(20, 30)] * 2)
    for each in found:
        scored = (each.object_part > -100).flatten(1).any(1)
        assert scored.sum() == 3 and scored[-1], "background is always among them"


@torch.inference_mode()
def test_bf16_is_fp32_up_to_its_own_rounding():
    model = tiny("cat_seg_cvpr24", "model.class_chunk=2").eval()
    images = torch.rand(2, 3, 128, 128)
    full = model.logits(images, model.encode_text(WORDS).text)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.logits(images, model.encode_text(WORDS).text)
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()


def test_windows_average_to_the_whole_where_scores_are_flat():
    options = Inference(windows=True, canvas=20, window=12, stride=8)
    image = torch.rand(1, 3, 31, 17)
    found = windowed(image, lambda view: torch.full((1, 2, 3, 3), 0.3), options)
    assert found.shape == (1, 2, 20, 20)
    torch.testing.assert_close(found, torch.full_like(found, torch.tensor(0.3).sigmoid()))


def test_filling_is_the_mean_colour():
    fill = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    image = fill.expand(1, 3, 20, 50)
    torch.testing.assert_close(squashed(image, 8, pad_to=32, fill=fill), fill.expand(1, 3, 8, 8))


def test_the_loss_is_the_mean_over_every_pixel_and_channel():
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 6))
    batch = Batch(torch.zeros(2, 3, 5, 6), torch.where(labels == 3, IGNORE_LABEL, labels), labels, ("a", "b"), WORDS)
    target = F.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    weight = torch.tensor([1, 1, 1, 0.05]).view(4, 1, 1)
    every = F.binary_cross_entropy_with_logits(logits, target, weight.expand_as(target))
    without = F.binary_cross_entropy_with_logits(logits[:, :3], target[:, :3])
    for term, expected in ((AllPixelBCE(), every), (AllPixelBCE(background_weight=None), without)):
        loss = term(LossInputs(Outputs(object_part=logits), batch), term.counts(batch))
        torch.testing.assert_close(loss, expected)
        ours, theirs = (torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (loss, expected))
        torch.testing.assert_close(ours, theirs)


# Weights --------------------------------------------------------------------------------------------------------------
def digest(shapes):
    return hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()


FULL = {
    "cat_seg_v1": ["experiment=cat_seg_pascal_part_116"],
    "cat_seg_cvpr24": ["experiment=cat_seg_cvpr24_pascal_part_116", "model.background=none"],
    "cat_seg_cvpr24_vitl": ["experiment=cat_seg_cvpr24_vitl_pascal_part_116", "model.background=none"],
}


def full_size(name):
    """Names and shapes that our full-size network writes, built without memory."""
    with torch.device("meta"):
        model = build_model(compose("train", FULL[name]))
    state = export_weights(model, model.weight_layouts[0].name)
    return {key: list(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("name", FULL)
def test_full_size_networks_hold_the_authors_tensors(name):
    """899, 484 and 652 of them, by name and shape."""
    pinned = json.loads((GOLDEN / "cat_seg_keys.json").read_text())[name]
    shapes = full_size(name)
    assert (len(shapes), digest(shapes)) == (pinned["tensors"], pinned["sha256"])


def listed(path):
    """Networks of a list of keys ("name 64x3x7x7", a comment before each network): name -> shape."""
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            found.append({})
        elif line:
            name, shape = line.split()
            found[-1][name] = [] if shape == "scalar" else [int(n) for n in shape.split("x")]
    return found


@pytest.mark.parametrize(
    ("name", "file", "place"), [(n, *w) for n, w in zip(FULL, [("v1", 0), ("cvpr24", 0), ("cvpr24", 1)])]
)
def test_full_size_networks_hold_the_listed_tensors(name, file, place):
    path = FIXTURES / f"catseg_{file}" / "full_size_keys.txt"
    if not path.is_file():
        pytest.skip("the lists of the authors' tensors are not beside the checkout (shared/fixtures)")
    assert full_size(name) == listed(path)[place]


@pytest.mark.parametrize("name", ["cat_seg", "cat_seg_cvpr24"])
def test_clip_alone_goes_into_both_versions(name, tmp_path):
    """open_clip's fused attention weights are split on the way in and fused on the way out."""
    one, other = tiny(name), tiny(name)
    torch.save(export_weights(one, "open_clip"), tmp_path / "clip.pt")
    names = torch.load(tmp_path / "clip.pt")
    assert names["transformer.resblocks.0.attn.in_proj_weight"].shape == (384, 128)
    report = load_weights(other, str(tmp_path / "clip.pt"))
    assert all(n.startswith("backbone.") for n in report.loaded) and not report.unexpected
    assert all(torch.equal(one.state_dict()[n], other.state_dict()[n]) for n in report.loaded)


def test_start_weights_without_background_leave_ours(tmp_path):
    """The object-level file has no background vector: it is reported and keeps its start."""
    one, other = tiny(), tiny()
    state = export_weights(one, "cat_seg_v1")
    del state["sem_seg_head.predictor.non_object_embedding"]
    torch.save({"model": state, "iteration": 80000}, tmp_path / "model_final_base.pth")
    before = other.background.detach().clone()
    report = load_weights(other, str(tmp_path / "model_final_base.pth"))
    assert "background" in report.missing and torch.equal(other.background, before)
    assert torch.equal(one.aggregator.text.weight, other.aggregator.text.weight)


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("cat_seg", "cat_seg_cvpr24", "cat_seg_cvpr24 files are of another network .* only by model=cat_seg_cvpr24"),
        ("cat_seg_cvpr24", "cat_seg", "cat_seg_v1 files are of another network .* only by model=cat_seg$"),
    ],
)
def test_a_checkpoint_of_the_other_variant_is_refused(name, other, message, tmp_path):
    model = tiny(other)
    torch.save(export_weights(model, model.weight_layouts[0].name), tmp_path / "other.pth")
    ours = tiny(name)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(ours, str(tmp_path / "other.pth"))
    assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())


def test_a_network_of_another_size_is_refused_with_both_shapes(tmp_path):
    torch.save(export_weights(tiny(), "cat_seg_v1"), tmp_path / "wide.pth")
    with pytest.raises(
        ValueError, match=r"of another size than the model .*file \[32, 1, 7, 7\], model \[16, 1, 7, 7\]"
    ):
        load_weights(
            tiny("cat_seg", "model.aggregator.hidden=16", "model.aggregator.decoder_guidance=[8,4]"),
            str(tmp_path / "wide.pth"),
        )


# Bad input ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.image_size=64"], r"image_size=64 has 4 cells .* multiple of aggregator.window=8"),
        (["model.image_size=200"], r"image_size=200 has 12.5 cells of 16 pixels"),
        (
            ["model.template=photo", "model.aggregator.prompts=80"],
            "template has 1 texts per class, model.aggregator.prompts=80",
        ),
        (
            ["model.backbone.guidance_blocks=[0,1]"],
            "guidance_blocks=.0, 1.: guidance from CLIP needs two, a network beside it none",
        ),
        (["model.backbone.guidance_blocks=[3]"], r"guidance_blocks \[3\] of partseg-tiny-16 must lie in 0..2"),
        (["model.background=random"], "background='random' is not one of"),
        (["model.larger_vocabulary=all"], "larger_vocabulary='all' is not 'refuse' or 'best'"),
        (["model.backbone.residual=none"], "residual='none' is not 'own' or 'cls'"),
        (["model.class_chunk=0"], "class_chunk must be at least 1, got 0"),
        (
            ["model.inference.windows=true", "model.inference.canvas=300"],
            "windows of 384 pixels every 256 do not cover a picture of 300",
        ),
        (["model.guidance.name=resnet18_dinosaur"], "timm knows no network 'resnet18_dinosaur'"),
        (
            ["model.guidance.name=vit_tiny_patch16_224"],
            "model.guidance.name='vit_tiny_patch16_224' has features at strides",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(overrides, message):
    first = ["model.aggregator.window=8"] if "image_size" in overrides[0] else []
    with pytest.raises((ValueError, KeyError), match=message):
        tiny("cat_seg", *first, *overrides)


def test_a_vocabulary_larger_than_the_class_attention_is_refused():
    model = tiny("cat_seg_cvpr24", "model.aggregator.padding=3")
    with pytest.raises(
        ValueError, match="4 classes, background included, but the class attention has room for 3; .*best"
    ):
        model.encode_text(WORDS)


def test_start_weights_that_are_not_there_are_named(load, tmp_path, toy_run):
    config = compose(
        "train",
        [
            "experiment=cat_seg_toy_pascal_part_116",
            "model=cat_seg_tiny",
            "launch.num_gpus=0",
            f"output_root={tmp_path}",
            f"data_root={toy_run.parent / 'data'}",
            "name=run",
        ],
    )
    with pytest.raises(FileNotFoundError, match="no weights 'weights/model_final_base.pth'.*not a file"):
        load("train_net").train(config)
