"""PartCATSeg against the authors' network: seams, logits, scores, every loss term and every gradient."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cat_seg_fixtures import vocabulary_of
from part_cat_seg_fixtures import build
from safetensors.torch import load_file

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.losses.criterion import loss_of
from partseg.structures import Batch
from partseg.utils.config import compose, instantiate

FOLDER = Path(__file__).parents[3] / "shared" / "fixtures" / "partcatseg"
FORWARD = 1e-5
"""Relative to the largest value of a tensor."""


@pytest.fixture
def made(tmp_path):
    """Function: our network with the authors' weights and its meta.json, for some options."""
    if not FOLDER.is_dir():
        pytest.skip("the authors' tensors are not beside the checkout (shared/fixtures/partcatseg)")
    return lambda **options: build(FOLDER, tmp_path, **options)


def close(ours, theirs, tolerance=FORWARD):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), (
        (ours - theirs).abs().max() / theirs.abs().max()
    ).item()


def as_theirs(words):
    """Our rows of parts, objects and background in the order of the authors, who sort the names."""
    parts = [words.parts.index(name) for name in sorted(words.parts)]
    objects = [words.num_parts + words.objects.index(name) for name in sorted(words.objects)]
    return [*parts, *objects, words.num_parts + words.num_objects]


def maps(volume, rows=(0, -1)):
    """[B, T, h, w, D] as the authors have it, two classes and every second cell."""
    return volume.permute(0, 4, 1, 2, 3)[:, :, list(rows), ::2, ::2]


@torch.no_grad()
def test_seams_and_logits(made):
    model, meta = made()
    found = load_file(FOLDER / "inference.safetensors")
    image = found["image_u8_chw_rgb"][None] / 255
    features, guidance = model.features(image)
    close(features.cells.flatten(2).transpose(1, 2), found["clip.dense_tokens"][:, 1:])
    close(guidance.appearance, found["guidance.res4"])
    close(guidance.decoder[0][..., ::2, ::2], found["guidance.res3_every_2nd_pixel"])
    close(guidance.decoder[1][..., ::4, ::4], found["guidance.res2_every_4th_pixel"])

    words = vocabulary_of(meta["test_classes"])
    rows = as_theirs(words)
    prompts = model.encode_text(words)
    texts = prompts.texts
    close(texts.shared[rows], found["text_part_obj_features_test"])
    close(texts.pairs, found["text_specific_part_features_test"])

    aggregator = model.aggregator
    projected = aggregator.project(guidance)
    close(projected.appearance.permute(0, 3, 1, 2), found["projected.appearance"])
    volumes = model.volumes(image, prompts.texts, costs=True)
    close(volumes.shared_cost[:, rows], found["part_obj_cost_mean_over_prompts"])
    close(volumes.pair_cost, found["specific_cost_mean_over_prompts"])
    close(volumes.shared[:, rows][..., ::2, ::2], found["part_obj_logits_every_2nd_pixel"])
    close(volumes.pairs, found["specific_logits"])


@torch.no_grad()
def test_both_aggregations_layer_by_layer(made):
    model, meta = made()
    found = load_file(FOLDER / "inference.safetensors")
    features, guidance = model.features(found["image_u8_chw_rgb"][None] / 255)
    words = vocabulary_of(meta["test_classes"])
    some = [as_theirs(words)[0], -1]
    texts, aggregator = model.encode_text(words).texts, model.aggregator
    projected = aggregator.project(guidance)
    volume = aggregator.embed(
        lambda c: torch.einsum("bchw,tpc->btphw", F.normalize(features.cells, dim=1), texts.shared[c]),
        num_classes=len(texts.shared),
        batch=1,
    )
    text = aggregator.text_guidance(texts.shared)[None]
    for i, layer in enumerate(aggregator.layers):
        spatial = layer.spatial(volume, projected.appearance)
        close(maps(spatial, some), found[f"part_obj.layer{i}.after_spatial.first_and_bg_every_2nd_pixel"])
        volume = layer.classes(spatial, text)
        close(maps(volume, some), found[f"part_obj.layer{i}.out.first_and_bg_every_2nd_pixel"])
    close(maps(volume, as_theirs(words)), found["part_obj_cost_emb_every_2nd_pixel"])
    cells = aggregator.pair_cells(volume, texts, slice(None))
    close(cells.permute(0, 1, 4, 2, 3)[..., ::2, ::2], found["cost_feats_every_2nd_pixel"])
    cost = torch.einsum("bthwc,tpc->btphw", F.normalize(cells, dim=-1), texts.pairs)
    close(cost.transpose(1, 2)[:, [0, 39, 79], :, ::2, ::2], found["specific_cost_prompts_0_39_79_every_2nd_pixel"])
    volume = aggregator.pair_embedding(cost)
    close(maps(volume), found["specific.cost_embedding.first_and_bg_every_2nd_pixel"])
    text = aggregator.text_guidance(texts.pairs)[None]
    for i, layer in enumerate(aggregator.pair_layers):
        volume = layer(volume, projected.appearance, text)
        close(maps(volume), found[f"specific.layer{i}.out.first_and_bg_every_2nd_pixel"])
    close(maps(volume, range(len(words) + 1)), found["specific_cost_emb_every_2nd_pixel"])


@torch.no_grad()
def test_scores_at_the_photos_size(made):
    model, meta = made()
    found = load_file(FOLDER / "inference.safetensors")
    words, size = vocabulary_of(meta["test_classes"]), tuple(meta["output_size_hw"])
    (scores,) = model.predict(found["image_u8_chw_rgb"][None], model.encode_text(words), sizes=[size])
    assert scores.object is None, "the authors choose among all object-parts"
    full = F.interpolate(scores.cropped().object_part[None], size=size, mode="bilinear")[0]
    close(full, found["all_scores"])
    told = words.objects.index(meta["oracle_object_in_inference"])
    full = full[:-1]
    full[torch.from_numpy(words.object_of != told)] = -1
    close(full, found["oracle_obj_scores"])
    assert (full.argmax(0) == found["oracle_obj_argmax"]).all()


@pytest.mark.parametrize("recompute", [False, True])
def test_losses_and_gradients(made, recompute):
    model, meta = made(recompute=recompute, class_chunk=3)
    found = load_file(FOLDER / "train.safetensors")
    words = vocabulary_of(meta["train_classes"])
    batch = batch_of(found, meta, words)
    criterion = instantiate(compose("train", ["experiment=part_cat_seg_pascal_part_116"]).criterion)
    loss, terms, outputs = loss_of(model, criterion, batch)
    rows = as_theirs(words)
    close(outputs.composition.pairs, found["jsd_input.specific_cost_mean"])
    close(outputs.composition.objects, found["jsd_input.part_obj_cost_mean"][:, words.num_parts :][:, order(words)])
    expected = {name: found[f"loss_{name}"].item() for name in ("part", "obj", "jsd", "total")}
    both = sum(found[f"loss_specific_part_{kind}_pixels"].item() for kind in ("labelled", "background"))
    assert terms["object_part"].item() == pytest.approx(both, rel=1e-6)
    assert terms["object"].item() == pytest.approx(expected["obj"], rel=1e-6)
    assert terms["part"].item() == pytest.approx(expected["part"], rel=1e-6)
    assert terms["composition"].item() == pytest.approx(expected["jsd"], rel=1e-6)
    assert loss.item() == pytest.approx(expected["total"], rel=1e-6)
    volumes = model.volumes(batch.images / 255, model.encode_text(words).texts)
    close(volumes.shared[:, rows][..., ::2, ::2], found["part_obj_logits_every_2nd_pixel"])
    close(volumes.pairs[..., ::2, ::2], found["specific_logits_every_2nd_pixel"])
    loss.backward()
    check_gradients(model, found, meta)


def order(words):
    """Positions among the authors' objects of ours, and background."""
    return [*(sorted(words.objects).index(name) for name in words.objects), words.num_objects]


def batch_of(found, meta, words):
    """Their label maps in our ids: an object that has no parts is background."""
    ids = [words.objects.index(name) if name in words.objects else BACKGROUND_LABEL for name in meta["train_objects"]]
    table = torch.full((256,), BACKGROUND_LABEL)
    table[: len(ids)] = torch.tensor(ids)
    parts = found["obj_part_sem_seg"].int()
    return Batch(
        found["image_u8_bchw_rgb"],
        torch.where(parts == 255, IGNORE_LABEL, parts),
        table[found["obj_sem_seg"].long()].int(),
        ("a", "b"),
        words,
    )


def check_gradients(model, found, meta):
    own = dict(model.named_parameters())
    theirs = {link.theirs[0]: own[link.ours] for link in model.weight_layouts[0].links(own)}
    noise = meta["float32_noise_of_gradients"]
    names = [name.removeprefix("grad/") for name in found if name.startswith("grad/")]
    assert len(names) > 20
    for name in names:
        expected, ours = found[f"grad/{name}"], theirs[name].grad
        error = (ours - expected).norm() / expected.norm()
        assert error <= max(1e-3, 5 * noise.get(name, 0.0)), f"{name}: {error:.2g}"
    for name, norm in meta["grad_norm_per_parameter"].items():
        if name in theirs and norm > 1e-6:  # a key's bias shifts all scores of a query alike: its gradient is rounding
            assert theirs[name].grad.norm().item() == pytest.approx(norm, rel=5e-3), name
    norms = torch.stack([p.grad.norm() for p in own.values() if p.grad is not None])
    assert norms.norm().item() == pytest.approx(found["grad_norm_total"].item(), rel=1e-3)
