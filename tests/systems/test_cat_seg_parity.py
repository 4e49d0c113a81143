"""CAT-Seg against the authors' networks: seams, logits, scores, loss and every gradient of both versions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cat_seg_fixtures import OFFICIAL, build, vocabulary_of
from safetensors.torch import load_file

from partseg.labels import IGNORE_LABEL
from partseg.losses.term import LossInputs
from partseg.structures import Batch
from partseg.systems.cat_seg.aggregator import cost_volume
from partseg.systems.cat_seg.losses import AllPixelBCE
from partseg.systems.cat_seg.network import CatSeg

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
VERSIONS = {"catseg_v1": True, "catseg_cvpr24": False}
FORWARD = 1e-5
"""Relative to the largest value of a tensor."""


def folder_of(version: str) -> Path:
    folder = FIXTURES / version
    if not folder.is_dir():
        pytest.skip(f"the authors' tensors are not beside the checkout (shared/fixtures/{version})")
    return folder


@pytest.fixture(params=VERSIONS)
def version(request):
    """Our network, the fixture's meta.json, its folder, and whether it is v1."""
    v1 = VERSIONS[request.param]

    def make(tmp_path, **options):
        folder = folder_of(request.param)
        return *build(folder, tmp_path, v1=v1, **options), folder, v1

    return make


def close(ours, theirs, tolerance=FORWARD):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), (
        (ours - theirs).abs().max() / theirs.abs().max()
    ).item()


@torch.no_grad()
def test_seams_and_logits(version, tmp_path):
    model, meta, folder, v1 = version(tmp_path)
    found = load_file(folder / "inference.safetensors")
    image = found["image_u8_chw_rgb"][None] / 255
    features, guidance = model.features(image)
    close(features.cells.flatten(2).transpose(1, 2), found["clip.dense_tokens"][:, 1:])
    if v1:
        close(guidance.appearance, found["guidance.res4"])
        close(guidance.decoder[0], found["guidance.res3"])
        close(guidance.decoder[1][..., ::2, ::2], found["guidance.res2_every_2nd_pixel"])
    else:
        for i, block in enumerate((3, 7)):
            close(features.blocks[i].flatten(2).transpose(1, 2), found[f"clip.block{block}"][:, 1:])
        close(guidance.decoder[0], found["guidance.res4_upsample1"])
        close(guidance.decoder[1][..., ::2, ::2], found["guidance.res5_upsample2_every_2nd_pixel"])

    words = vocabulary_of(meta["test_classes"])
    text = model.encode_text(words).text
    close(text, found["text_features_test" if v1 else "text_embeds"])
    cost = cost_volume(features.cells, text)
    if v1:
        close(cost.transpose(1, 2)[:, [0, 39, 79]], found["cost_volume_prompts_0_39_79"])
        close(cost.mean(2), found["cost_volume_mean_over_prompts"])
    else:
        close(cost.transpose(1, 2), found["cost_volume"])

    aggregator, some = model.aggregator, "first_and_bg" if v1 else "first_and_last"
    projected = aggregator.project(guidance)
    close(projected.appearance.permute(0, 3, 1, 2), found["projected.appearance"])
    close(aggregator.text_guidance(text)[None], found["projected.text"])
    volume = aggregator.embedding(cost)
    close(maps(volume)[:, :, [0, -1]], found[f"cost_embedding.{some}"])
    for i, layer in enumerate(aggregator.layers):
        spatial = layer.spatial(volume, projected.appearance)
        close(maps(spatial)[:, :, [0, -1]], found[f"layer{i}.after_spatial.{some}"])
        volume = layer.classes(spatial, aggregator.text_guidance(text)[None])
        if i == 0:
            close(maps(volume)[:, :, [0, -1]], found[f"layer0.out.{some}"])
    close(maps(volume), found["layer1.out"])
    stage = aggregator.decoder.stages[0](volume[:, 0].permute(0, 3, 1, 2), projected.decoder[0])
    close(stage[:, :, ::2, ::2], found["decoder1.first_class_every_2nd_pixel"])
    close(model.logits(image, text), found["logits"])


def maps(volume):
    """[B, T, h, w, D] as the authors have it."""
    return volume.permute(0, 4, 1, 2, 3)


@torch.no_grad()
def test_scores_at_the_photos_size(version, tmp_path):
    model, meta, folder, v1 = version(tmp_path)
    found = load_file(folder / "inference.safetensors")
    words, size = vocabulary_of(meta["test_classes"]), tuple(meta["output_size_hw"])
    (scores,) = model.predict(found["image_u8_chw_rgb"][None], model.encode_text(words), sizes=[size])
    full = F.interpolate(scores.object_part[None, :-1], size=size, mode="bilinear")[0]
    if not v1:
        close(full, found["scores_output_size"])
        assert same_labels(full, found["argmax_output_size"]) and (scores.object_part[-1] == 0).all()
        return
    told = words.objects.index(meta["oracle_object_in_inference"])
    full[torch.from_numpy(words.object_of != told)] = -1
    close(full, found["oracle_obj_scores"])
    assert same_labels(full, found["oracle_obj_argmax"])


def same_labels(scores, labels):
    """Where the best two scores are not equal up to rounding."""
    best, second = scores.topk(2, dim=0).values
    sure = best - second > 1e-5
    assert sure.float().mean() > 0.99
    return (scores.argmax(0) == labels)[sure].all()


@torch.no_grad()
def test_windows(tmp_path):
    """Four windows and the whole view of the CVPR 2024 evaluation."""
    folder = folder_of("catseg_cvpr24")
    model, meta = build(folder, tmp_path, v1=False, inference=replace(OFFICIAL, windows=True))
    found = load_file(folder / "inference.safetensors")
    prompts, size = model.encode_text(vocabulary_of(meta["test_classes"])), tuple(meta["output_size_hw"])
    (scores,) = model.predict(found["image_u8_chw_rgb"][None], prompts, sizes=[size])
    assert scores.object_part.shape == (7, 640, 640)
    full = F.interpolate(scores.object_part[None, :-1], size=size, mode="bilinear")[0]
    close(full, found["sliding_window/scores_output_size"])


@torch.no_grad()
def test_more_classes_than_the_class_attention_has_room_for(tmp_path):
    folder = folder_of("catseg_cvpr24")
    options = {"shape": {"padding": 4}, "larger_vocabulary": "best"}
    model, meta = build(folder, tmp_path, v1=False, **options)
    found = load_file(folder / "inference.safetensors")
    text = model.encode_text(vocabulary_of(meta["test_classes"])).text
    logits = model.logits(found["image_u8_chw_rgb"][None] / 255, text)
    close(logits[..., ::4, ::4], found["pad_len_small/logits_every_4th_pixel"])
    kept = (logits > -100).flatten(2).any(2)[0].nonzero().flatten()
    assert kept.tolist() == found["pad_len_small/kept_classes"].tolist()


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients(version, tmp_path, recompute):
    model, meta, folder, v1 = version(tmp_path, recompute=recompute, class_chunk=3)
    found = load_file(folder / "train.safetensors")
    labels = found["obj_part_sem_seg" if v1 else "sem_seg"]
    labels = torch.where(labels == 255, IGNORE_LABEL, labels).int()
    words = vocabulary_of(meta["train_classes"])
    batch = Batch(found["image_u8_bchw_rgb"], labels, labels, ("a", "b"), words)
    term = AllPixelBCE(background_weight=0.05 if v1 else None)
    loss = term(LossInputs(model(batch), batch), term.counts(batch))
    assert loss.item() == pytest.approx(found["loss_sem_seg"].item(), rel=1e-6)
    logits = model.logits(batch.images / 255, model.encode_text(words).text)
    close(logits, found["logits"])
    loss.backward()
    check_gradients(model, found, meta)


def check_gradients(model: CatSeg, found: dict, meta: dict):
    own = dict(model.named_parameters())
    theirs = {link.theirs[0]: own[link.ours] for link in model.weight_layouts[0].links(own)}
    noise = meta["float32_noise_of_gradients"]
    names = [name.removeprefix("grad/") for name in found if name.startswith("grad/")]
    assert len(names) > 20
    for name in names:
        expected, ours = found[f"grad/{name}"], theirs[name].grad
        error = (ours - expected).norm() / expected.norm()
        assert error <= max(1e-3, 5 * noise.get(name, 0.0)), f"{name}: {error:.2g}"
    idle = set(meta["zero_grad_parameters"]) | set(meta.get("no_grad_parameters_other_than_clip", ()))
    for name, norm in meta["grad_norm_per_parameter"].items():
        if name in idle:
            assert theirs[name].grad is None
        # the key's bias shifts all scores of a query alike: its gradient is rounding
        elif norm > 1e-6:
            assert theirs[name].grad.norm().item() == pytest.approx(norm, rel=5e-3), name
    trained = {name for name, p in theirs.items() if p.grad is not None}
    assert trained == set(meta["grad_norm_per_parameter"]) - idle
