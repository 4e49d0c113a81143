"""PartCATSeg's pieces against plain restatements and the authors' numbers, its weights, and what is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model, start_weights
from partseg.engine.checkpoint import init_from
from partseg.losses.term import LossInputs
from partseg.prediction import PhraseScores
from partseg.structures import Batch
from partseg.systems.cat_seg.aggregator import AggregationLayer, AggregatorShape, Guidance, aggregation_layers
from partseg.systems.cat_seg.vit_guidance import VitGuidance, resized_table
from partseg.systems.part_cat_seg.aggregator import PartAggregator, PartAggregatorShape, PartTexts
from partseg.systems.part_cat_seg.classes import CompetingClassLayer
from partseg.systems.part_cat_seg.losses import Compositional
from partseg.systems.part_cat_seg.network import Composition, PartCatSegOutputs
from partseg.systems.part_cat_seg.weights import AUTHORS
from partseg.utils.config import compose, instantiate
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.weights.load import export_weights, load_weights

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = Vocabulary.from_mapping({"dog": ["tail", "head"], "car": ["wheel"], "cat": ["head", "leg"]})
CAT_SEG = "cat_seg_v1"


def shaken(module):
    """Random values everywhere, so that zeros and ones of the initialisation hide no mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def tiny(name="part_cat_seg", *overrides):
    """A tiny model of an experiment, shaken."""
    chosen = [f"experiment={name}_pascal_part_116", f"model={name}_tiny", *overrides]
    return shaken(build_model(compose("train", chosen)))


# Layers ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pooling", [1, 2])
@torch.no_grad()
def test_class_attention_is_a_loop_over_pairs(pooling, monkeypatch):
    """Every key spends a weight of one on the queries; what a query was given is brought to a mean."""
    dim, width, heads, classes = 8, 4, 2, 5
    layer = shaken(CompetingClassLayer(dim, width, heads=heads, pooling=pooling))
    x, guidance = torch.randn(1, classes, 4, 4, dim), torch.randn(1, classes, width)
    pooled = layer.pool(x)
    normed = layer.norm1(pooled)
    beside = torch.cat([normed, guidance[:, :, None, None].expand(-1, -1, *pooled.shape[2:4], -1)], dim=-1)
    q, k, v = layer.attention.q(beside), layer.attention.k(beside), layer.attention.v(normed)
    mixed = torch.zeros_like(pooled)
    for row in range(pooled.shape[2]):
        for column in range(pooled.shape[3]):
            for h in range(heads):
                part = slice(h * dim // heads, (h + 1) * dim // heads)
                queries, keys, values = (each[0, :, row, column, part] for each in (q, k, v))
                scores = torch.tensor([[float(a @ b) for b in keys] for a in queries]) / (dim // heads) ** 0.5
                weight = scores.exp() / scores.exp().sum(0, keepdim=True) + 1e-8
                weight = weight / weight.sum(1, keepdim=True)
                torch.testing.assert_close(weight.sum(1), torch.ones(classes))
                mixed[0, :, row, column, part] = weight @ values
    expected = x + layer.finish(pooled, mixed.unflatten(-1, (heads, -1)), size=(4, 4))
    torch.testing.assert_close(layer(x, guidance), expected, atol=1e-5, rtol=1e-5)
    for scores_at_once in (1 << 23, 1):  # all cells, one cell
        monkeypatch.setattr("partseg.systems.part_cat_seg.classes.SCORES", scores_at_once)
        in_place = layer(x.clone(), guidance, chunks=[slice(0, 2), slice(2, 5)])
        torch.testing.assert_close(in_place, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_layer_gives_the_authors_numbers():
    """Weights of their first layer over object-parts; test_part_cat_seg_parity.py holds the whole network to theirs."""
    found = load_file(GOLDEN / "part_cat_seg.safetensors")
    shape = AggregatorShape(hidden=16, text=20, appearance=28)
    (layer,) = aggregation_layers(replace(shape, layers=1), CompetingClassLayer)
    assert isinstance(layer, AggregationLayer)
    own = {f"aggregator.pair_layers.0.{name}": value for name, value in layer.state_dict().items()}
    for link in AUTHORS.links(own):
        own[link.ours].copy_(found[f"weights/{link.theirs[0]}"])
    ours = layer(*(found[name].float() for name in ("volume", "appearance", "text")))
    torch.testing.assert_close(ours[:, :, ::4, ::4], found["layer0.out"], atol=1e-5, rtol=1e-5)


@pytest.fixture
def aggregator():
    """A small aggregator, and images, texts and guidance for it."""
    shape = PartAggregatorShape(
        hidden=32, window=6, prompts=3, text=8, appearance=10, decoder=(32, 16), decoder_guidance=(8, 4)
    )
    dims = {"text_dim": 7, "appearance_dim": 5, "decoder_guidance_dims": (6, 3)}
    module = shaken(PartAggregator(shape, **dims, class_chunk=1000, recompute=False))
    guidance = Guidance(torch.randn(2, 5, 12, 12), (torch.randn(2, 6, 24, 24), torch.randn(2, 3, 48, 48)))
    shared, pairs = (F.normalize(torch.randn(n, 3, 7), dim=-1) for n in (6, 5))
    texts = PartTexts(shared, pairs, torch.tensor([0, 1, 2, 1, 5]), torch.tensor([3, 3, 4, 4, 5]))
    return module, torch.randn(2, 7, 12, 12), texts, guidance


@torch.no_grad()
def test_the_order_of_classes_changes_nothing(aggregator):
    module, cells, texts, guidance = aggregator
    expected = module.volumes(cells, texts, guidance)
    shared, pairs = torch.randperm(6), torch.randperm(5)
    place = torch.argsort(shared)
    moved = PartTexts(
        texts.shared[shared], texts.pairs[pairs], place[texts.part_row[pairs]], place[texts.object_row[pairs]]
    )
    found = module.volumes(cells, moved, guidance)
    torch.testing.assert_close(found.shared, expected.shared[:, shared], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.pairs, expected.pairs[:, pairs], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_classes_in_chunks_score_as_all_at_once(aggregator, chunk):
    module, *inputs = aggregator
    expected = module.volumes(*inputs, costs=True)
    module.class_chunk = chunk
    with torch.no_grad():
        found = module.volumes(*inputs, costs=True)
        alone = module.volumes(*inputs, shared_logits=False)
    for name in ("shared", "pairs", "shared_cost", "pair_cost"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name).detach(), atol=1e-5, rtol=1e-4)
    assert alone.shared is None and alone.pair_cost is None
    torch.testing.assert_close(alone.pairs, found.pairs, atol=1e-6, rtol=1e-5)


def test_recomputed_layers_give_the_same_gradients(aggregator):
    module, *inputs = aggregator
    found = []
    for recompute, chunk in ((False, 1000), (True, 4)):
        module.recompute, module.class_chunk = recompute, chunk
        module.zero_grad()
        volumes = module.volumes(*inputs, costs=True)
        (volumes.pairs.square().mean() + volumes.shared.square().mean() + volumes.pair_cost.square().mean()).backward()
        found.append([p.grad.clone() for p in module.parameters()])
    for plain, again in zip(*found):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-4)


# The compositional loss -----------------------------------------------------------------------------------------------
def composition_loss(objects, pairs, vocabulary, **options):
    label = torch.zeros(len(objects), 4, 4, dtype=torch.int32)
    batch = Batch(torch.zeros(len(objects), 3, 4, 4), label, label, ("a",) * len(objects), vocabulary)
    term = Compositional(**options)
    counts = {"images": torch.tensor(float(len(objects)), dtype=torch.float64)}
    outputs = PartCatSegOutputs(composition=Composition(objects, pairs))
    return term(LossInputs(outputs, batch), counts)


@pytest.mark.parametrize("divergence", ["jensen_shannon", "symmetric_kl"])
def test_the_divergence_is_a_loop_over_cells(divergence):
    objects = torch.randn(2, WORDS.num_objects + 1, 3, 2, dtype=torch.float64)
    pairs = torch.randn(2, len(WORDS) + 1, 3, 2, dtype=torch.float64, requires_grad=True)
    owner = [*WORDS.object_of.tolist(), WORDS.num_objects]
    total = 0.0
    for image in range(2):
        for row in range(3):
            for column in range(2):
                q = objects[image, :, row, column].softmax(0)
                split = pairs[image, :, row, column].softmax(0)
                p = torch.stack([sum(s for s, o in zip(split, owner) if o == each) for each in range(len(q))])
                middle = (p + q) / 2 if divergence == "jensen_shannon" else None
                first, second = (middle, middle) if middle is not None else (q, p)
                total = total + ((p * (p / first).log()).sum() + (q * (q / second).log()).sum()) / 2
    loss = composition_loss(objects, pairs, WORDS, divergence=divergence)
    torch.testing.assert_close(loss, total / 12, atol=1e-8, rtol=1e-7)
    ours, theirs = (torch.autograd.grad(each, pairs, retain_graph=True)[0] for each in (loss, total / 12))
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-6)


def test_the_divergence_is_the_authors():
    found = load_file(GOLDEN / "part_cat_seg.safetensors")
    words = Vocabulary((("cat", "head"), ("cat", "tail"), ("dog", "head"), ("bus", "wheel")))
    objects = found["jsd_input.part_obj_cost_mean"][:, 3:]  # theirs: bus, cat, dog, background
    ours = objects[:, [1, 2, 0, 3]]
    loss = composition_loss(ours, found["jsd_input.specific_cost_mean"], words)
    assert loss.item() == pytest.approx(found["loss_jsd"].item(), rel=1e-6)


def test_an_unknown_divergence_and_a_system_without_one_are_named():
    with pytest.raises(ValueError, match="divergence is 'kl'; allowed are 'jensen_shannon' and 'symmetric_kl'"):
        Compositional(divergence="kl")
    term, outputs = Compositional(), PartCatSegOutputs()
    with pytest.raises(ValueError, match=r"set criterion.terms.composition.weight=0"):
        term(LossInputs(outputs, None), {})


# The network ----------------------------------------------------------------------------------------------------------
def test_every_loss_term_sends_its_gradient():
    """To the layers that it reads: object-parts and the composition through those of pairs, the others not."""
    model = tiny()
    batch = random_batch(WORDS, batch_size=1, input=model.input)
    criterion = instantiate(compose("train", ["experiment=part_cat_seg_pascal_part_116"]).criterion)
    outputs = model(batch, reads=criterion.reads)
    counts = criterion.counts(batch)
    probes = (model.aggregator.embedding.conv.weight, model.aggregator.pair_projection.weight)
    for name, term in criterion.terms.items():
        own = {k.removeprefix(f"{name}/"): v for k, v in counts.items() if "/" not in k or k.startswith(f"{name}/")}
        value = term(LossInputs(outputs, batch), own)
        grads = torch.autograd.grad(value, probes, retain_graph=True, allow_unused=True)
        assert grads[0].abs().sum() > 0, name
        assert (grads[1] is not None) == (name in ("object_part", "composition"))


@torch.no_grad()
def test_a_subset_of_prompts_is_a_smaller_vocabulary():
    model = tiny().eval()
    kept = np.array([False, True, False, True, True])
    some, direct = model.encode_text(WORDS).subset(kept), model.encode_text(WORDS.subset(kept))
    ours, theirs = some.texts, direct.texts
    for name in ("shared", "pairs", "part_row", "object_row"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    words = WORDS.subset(kept)
    assert ours.part_row.tolist() == [*words.part_of.tolist(), words.num_parts + words.num_objects]


@torch.no_grad()
def test_objects_are_predicted_beside_object_parts_unless_the_gate_is_off():
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    for gate in (True, False):
        torch.manual_seed(0)
        model = tiny("part_cat_seg", f"model.inference.object_gate={str(gate).lower()}").eval()
        found = model.predict(images, model.encode_text(WORDS), sizes=[(40, 30), (50, 50)])
        assert [each.size for each in found] == [(40, 30), (50, 50)]
        for each in found:
            assert len(each.object_part) == len(WORDS) + 1
            assert (each.object is not None and len(each.object) == WORDS.num_objects + 1) == gate
        if gate:
            gated = found
    torch.testing.assert_close(found[0].object_part, gated[0].object_part, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_phrases_are_classes_of_the_first_aggregation():
    model = tiny().eval()
    prompts = model.encode_text(Phrases.of(["the left ear", "a wheel"]))
    (found,) = model.predict(torch.zeros(1, 3, 128, 128, dtype=torch.uint8), prompts, sizes=[(20, 30)])
    assert isinstance(found, PhraseScores) and found.masks().shape == (2, 20, 30)


# Guidance -------------------------------------------------------------------------------------------------------------
def test_the_position_table_is_resampled_as_dinov2_does():
    """By their scale factor, which counts a tenth of a cell more than there is; the class row stays."""
    table = torch.randn(1, 1 + 37 * 37, 4)
    found = resized_table(table, (32, 32))
    assert found.shape == (1, 1 + 32 * 32, 4) and torch.equal(found[:, 0], table[:, 0])
    cells = table[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    theirs = F.interpolate(cells, scale_factor=(32.1 / 37, 32.1 / 37), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(found[:, 1:], theirs)
    plain = F.interpolate(cells, size=(32, 32), mode="bicubic").flatten(2).transpose(1, 2)
    assert (found[:, 1:] - plain).abs().max() > 1e-3
    assert resized_table(table, (37, 37)) is table


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_224"])
def test_any_vit_of_timm_guides(name):
    guidance = VitGuidance(name, size=112, shape={"depth": 1})
    found = guidance(torch.rand(1, 3, 112, 112), 4)
    dim = guidance.appearance_dim
    assert found.appearance.shape == (1, dim, 4, 4)
    assert [each.shape for each in found.decoder] == [(1, dim, 8, 8), (1, dim, 16, 16)]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "vit_smal_patch14_dinov2",
            448,
            "'vit_smal_patch14_dinov2' is no network that timm .* knows; did you mean 'vit_",
        ),
        ("my_network", 448, "'my_network' is no network that timm .* knows"),
        ("resnet50", 448, "'resnet50' is no plain vision transformer in timm"),
        ("swin_tiny_patch4_window7_224", 448, "is no plain vision transformer in timm"),
        ("vit_small_patch14_dinov2", 384, r"model.guidance.size=384 must be a multiple of the 14-pixel patches"),
    ],
)
def test_a_guidance_network_that_does_not_fit_is_named(name, size, message):
    with pytest.raises((KeyError, ValueError), match=message):
        VitGuidance(name, size=size)


def test_dinov2_comes_from_its_own_file(tmp_path):
    """The public file's names, mask token included; CLIP and the aggregator stay, and no activation is asked for."""
    one, other = tiny(), tiny()
    state = export_weights(one, "dino")
    assert "blocks.0.attn.qkv.weight" in state and "pos_embed" in state
    torch.save({**state, "mask_token": torch.zeros(1, 48)}, tmp_path / "dinov2.pth")
    before = other.aggregator.text.weight.clone()
    report = load_weights(other, str(tmp_path / "dinov2.pth"))
    assert report.loaded and all(name.startswith("guidance.net.") for name in report.loaded) and not report.unexpected
    assert torch.equal(one.guidance.net.pos_embed, other.guidance.net.pos_embed)
    assert torch.equal(other.aggregator.text.weight, before)


# Weights --------------------------------------------------------------------------------------------------------------
def test_the_full_size_network_holds_the_authors_tensors():
    """804 of them, by name and shape."""
    with torch.device("meta"):
        model = build_model(compose("train", ["experiment=part_cat_seg_pascal_part_116"]))
    shapes = {key: list(value.shape) for key, value in export_weights(model, "part_cat_seg").items()}
    pinned = json.loads((GOLDEN / "part_cat_seg_keys.json").read_text())["part_cat_seg"]
    digest = hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()
    assert (len(shapes), digest) == (pinned["tensors"], pinned["sha256"])


def test_what_is_never_run_in_the_authors_files_is_left_out(tmp_path):
    one, other = tiny(), tiny()
    state = export_weights(one, "part_cat_seg")
    assert any("layers_object" in name for name in state) and any("attn_mask" in name for name in state)
    torch.save({"model": state, "iteration": 20000}, tmp_path / "model_final.pth")
    report = load_weights(other, str(tmp_path / "model_final.pth"))
    assert not report.missing and not report.unexpected
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def start_file(tmp_path):
    """A file of CAT-Seg's first version with tiny towers, and the network that it is of."""
    first = tiny("cat_seg", "model.aggregator.layers=2", "model.aggregator.heads=4")
    torch.save({"model": export_weights(first, CAT_SEG)}, tmp_path / "model_final_base.pth")
    return first, str(tmp_path / "model_final_base.pth")


@pytest.mark.parametrize("loaded", [True, False])
def test_cat_segs_weights_start_both_aggregations(loaded, tmp_path):
    """Ours copies what was loaded into the layers of pairs; the authors copied before, so theirs are random."""
    first, path = start_file(tmp_path)
    model = tiny("part_cat_seg", f"model.aggregator.start_pairs_from_weights={str(loaded).lower()}")
    guidance = model.aggregator.appearance.weight.clone()
    report = load_weights(model, path)
    own, theirs = model.aggregator, first.aggregator
    assert torch.equal(own.embedding.conv.weight, theirs.embedding.conv.weight)
    assert torch.equal(own.pair_embedding.conv.weight, theirs.embedding.conv.weight) == loaded
    same = torch.equal(own.pair_layers[1].classes.mlp.fc1.weight, theirs.layers[1].classes.mlp.fc1.weight)
    assert same == loaded == bool(report.started)
    assert torch.equal(own.appearance.weight, guidance), "DINOv2 has another width than ResNet-101"
    assert not report.unexpected and any(name.startswith("guidance.net.") for name in report.missing)


def test_cat_seg_guided_by_dinov2_starts_from_the_same_file(tmp_path):
    first, path = start_file(tmp_path)
    model = tiny("cat_seg_dinov2")
    report = load_weights(model, path)
    assert torch.equal(model.aggregator.decoder.head.weight, first.aggregator.decoder.head.weight)
    assert not report.unexpected
    with pytest.raises(ValueError, match="read only"):
        export_weights(model, CAT_SEG)


def test_start_weights_are_several_files(tmp_path, load, toy_run):
    """CAT-Seg's file and DINOv2's, one after the other; one that is absent is named before anything is trained."""
    first, path = start_file(tmp_path)
    dino = tiny()
    torch.save(export_weights(dino, "dino"), tmp_path / "dino.pth")
    config = compose(
        "train",
        [
            "experiment=part_cat_seg_toy_pascal_part_116",
            "model=part_cat_seg_tiny",
            f"init_from=[{path},{tmp_path / 'dino.pth'}]",
        ],
    )
    assert start_weights(config) == (path, str(tmp_path / "dino.pth"))
    model = tiny()
    for source in start_weights(config):
        init_from(model, source)
    assert torch.equal(model.guidance.net.pos_embed, dino.guidance.net.pos_embed)
    assert torch.equal(model.aggregator.text.weight, first.aggregator.text.weight)
    config = compose(
        "train",
        [
            "experiment=part_cat_seg_toy_pascal_part_116",
            "model=part_cat_seg_tiny",
            "launch.num_gpus=0",
            f"output_root={tmp_path}",
            f"data_root={toy_run.parent / 'data'}",
            "name=run",
        ],
    )
    with pytest.raises(FileNotFoundError, match="no weights 'weights/model_final_base.pth'.*not a file"):
        load("train_net").train(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.background=none", "model.background=none: .* allowed are learned and drawn"),
        ("model.aggregator.padding=8", "model.aggregator.padding=8: this class attention has none"),
    ],
)
def test_settings_that_cannot_work_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        tiny("part_cat_seg", override)


def test_files_of_other_networks_are_refused(tmp_path):
    other = tiny("cat_seg_cvpr24")
    torch.save(export_weights(other, other.weight_layouts[0].name), tmp_path / "cvpr24.pth")
    with pytest.raises(ValueError, match=r"cat_seg_cvpr24 files are of another network .* reads part_cat_seg"):
        load_weights(tiny(), str(tmp_path / "cvpr24.pth"))
    torch.save(export_weights(tiny(), "part_cat_seg"), tmp_path / "wide.pth")
    with pytest.raises(
        ValueError, match=r"of another size than the model .*file \[32, 1, 7, 7\], model \[16, 1, 7, 7\]"
    ):
        load_weights(
            tiny("part_cat_seg", "model.aggregator.hidden=16", "model.aggregator.decoder_guidance=[8,4]"),
            str(tmp_path / "wide.pth"),
        )
