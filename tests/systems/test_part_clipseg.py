"""PartCLIPSeg against CLIPSeg on the same prompts, and its object-part head against a loop over pairs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from partseg.backbones.clip_vit import ClipBackbone
from partseg.systems.part_clipseg.network import PartClipSeg
from partseg.vocabulary.names import Vocabulary

ALL = ("object_part", "object", "part")


def loop_over_pairs(model, images, vocabulary, official):
    """Object-part logits as the paper writes them: one decoder run and one head per pair, no splitting."""
    decoder, pair, text = model.decoder, model.pair, model.encode_text(vocabulary)
    features = [model.adapter(x) for x in model.backbone.encode_image(images)]
    grid = model.backbone.grid(images)

    def tokens_of(embedding):
        x = 0
        for i, (reduce, layer) in enumerate(zip(decoder.reduces, decoder.layers, strict=True)):
            x = x + reduce(features[-1 - i])
            if i == 0:
                x = decoder.film.mul(embedding) * x + decoder.film.add(embedding)
            q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in layer.qkv(x).chunk(3, dim=-1))
            attention = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
            x = layer.norm1(x + layer.out((attention @ v).transpose(1, 2).flatten(2)))
            x = layer.norm2(x + layer.mlp.fc2(F.relu(layer.mlp.fc1(x))))
        return x[:, 1:]

    def mask(part_tokens, object_tokens, object_text, part_text):
        x = pair.project(torch.cat([part_tokens, object_tokens], dim=-1))
        condition = pair.text(torch.cat([object_text, part_text]))
        x = pair.film.mul(condition) * x + pair.film.add(condition)
        x = x.transpose(1, 2).unflatten(2, grid)
        return pair.head.up2(F.relu(pair.head.up1(F.relu(pair.head.conv(x)))))[:, 0]

    alphabetical = [text.part[vocabulary.parts.index(p)] for p in sorted(vocabulary.parts)]
    alphabetical += [text.object[vocabulary.objects.index(o)] for o in sorted(vocabulary.objects)]
    masks = []
    for o, p in zip(vocabulary.object_of, vocabulary.part_of, strict=True):
        slip = alphabetical[sorted(vocabulary.objects).index(vocabulary.objects[o])]
        object_text = slip if official else text.object[o]
        masks.append(mask(tokens_of(text.part[p]), tokens_of(text.object[o]), object_text, text.part[p]))
    background = text.background[0]
    masks.append(mask(tokens_of(background), tokens_of(background), background, background))
    return torch.stack(masks, dim=1)


def test_without_part_masks_the_rest_is_the_same(build_part_clipseg, outputs_of, images, vocabulary):
    model = build_part_clipseg().eval()
    with torch.inference_mode():
        whole, lean = (outputs_of(model, images, vocabulary, reads=reads) for reads in (ALL, ALL[:2]))
    assert whole.part is not None and lean.part is None
    torch.testing.assert_close(lean.object_part, whole.object_part)
    torch.testing.assert_close(lean.object, whole.object)


@pytest.mark.parametrize("official", [False, True])
def test_predictions_are_the_logits_of_training(build_part_clipseg, outputs_of, images, vocabulary, official):
    """... also from a subset of the prompts, which is then its own vocabulary."""
    model = build_part_clipseg(official_object_text_index=official).eval()
    kept = np.array([True, False, True, True, False, False, True])
    with torch.inference_mode():
        prompts = model.encode_text(vocabulary)
        for asked, words in ((prompts, vocabulary), (prompts.subset(kept), vocabulary.subset(kept))):
            expected = outputs_of(model, images, words)
            found = model.predict(images, asked, sizes=[(64, 64), (30, 40)])
            assert [scores.size for scores in found] == [(64, 64), (30, 40)]
            for scores, object_part, objects in zip(found, expected.object_part, expected.object, strict=True):
                torch.testing.assert_close(scores.object_part, object_part, rtol=1e-5, atol=3e-5)
                torch.testing.assert_close(scores.object, objects, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("official", [False, True])
def test_pairs_equal_a_loop_in_values_and_gradients(build_part_clipseg, outputs_of, images, vocabulary, official):
    model = build_part_clipseg(official_object_text_index=official, trainable=("*",)).double()
    images = images[:, :, :32, :48].double() / 255
    expected = loop_over_pairs(model, images, vocabulary, official)
    logits = outputs_of(model, images, vocabulary).object_part
    torch.testing.assert_close(logits, expected, rtol=1e-8, atol=1e-8)

    weights = torch.randn_like(logits)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    fast = torch.autograd.grad((logits * weights).sum(), parameters, allow_unused=True)
    slow = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)
    for name, a, b in zip(names, fast, slow, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:  # the decoder's own head makes no object-part logits
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=1e-5 * b.abs().max().item(), msg=name)


def test_official_index_is_another_prediction(build_part_clipseg, outputs_of, images, vocabulary):
    model = build_part_clipseg()
    with torch.no_grad():
        ours = outputs_of(model, images, vocabulary)
        model.official_object_text_index = True
        official = outputs_of(model, images, vocabulary)
    assert (ours.object_part - official.object_part).abs().max() > 1e-3
    assert torch.equal(ours.part, official.part) and torch.equal(ours.object, official.object)


def test_parts_and_objects_equal_clipseg_with_the_same_prompts(
    build_part_clipseg, build_clipseg, outputs_of, images, vocabulary
):
    model, baseline = build_part_clipseg(), build_clipseg()
    baseline.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("pair.")})
    text = model.encode_text(vocabulary)
    outputs = outputs_of(model, images, vocabulary)
    for level, logits in (("part", outputs.part), ("object", outputs.object[:, :-1])):
        # A vocabulary whose object-part embeddings are the part (object) embeddings.
        prompts = {"part": text.part, "object": text.object}[level]
        expected = baseline.prompt_masks(images, torch.cat([prompts, text.background]))
        torch.testing.assert_close(logits, expected[:, :-1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.object[:, -1], expected[:, -1], rtol=1e-4, atol=1e-4)


def test_chunks_do_not_change_the_result(build_part_clipseg, outputs_of, images, vocabulary):
    model = build_part_clipseg(prompt_chunk=1000).double()
    with torch.no_grad():
        whole = outputs_of(model, images, vocabulary, "attention.2")
        for chunk in (1, 4, 7):
            model.decoder.prompt_chunk = chunk
            parts = outputs_of(model, images, vocabulary, "attention.2")
            for level in ("object_part", "object", "part"):
                torch.testing.assert_close(getattr(parts, level), getattr(whole, level), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(parts.attention[2].query, whole.attention[2].query, rtol=1e-9, atol=1e-9)


def test_checkpointing_changes_no_gradient(build_part_clipseg, outputs_of, images, vocabulary):
    model = build_part_clipseg(trainable=("*",))
    gradients = []
    for checkpointing in (False, True):
        model.decoder.checkpointing = checkpointing
        model.zero_grad()
        outputs = outputs_of(model, images, vocabulary, "attention.2")
        attention = outputs.attention[2]
        terms = (outputs.object_part, outputs.object, outputs.part, attention.query, attention.key)
        sum(term.square().mean() for term in terms).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_attention_is_that_of_the_last_layer_for_every_prompt(build_part_clipseg, outputs_of, images, vocabulary):
    model = build_part_clipseg()
    assert outputs_of(model, images, vocabulary).attention == {}
    attention = outputs_of(model, images, vocabulary, "attention.0", "attention.2").attention
    num_prompts = vocabulary.num_parts + vocabulary.num_objects + 1
    assert attention[2].query.shape == attention[0].key.shape == (2, num_prompts, 4, 1 + 16, 16)
    assert attention[2].grid == (4, 4) and attention[2].scale == 0.25
    with pytest.raises(ValueError, match="layers 0..2"):
        outputs_of(model, images, vocabulary, "attention.3")


def test_every_trainable_parameter_gets_a_gradient(build_part_clipseg, outputs_of, images, vocabulary):
    model = build_part_clipseg(trainable=("*",))
    outputs = outputs_of(model, images, vocabulary)
    sum(x.square().mean() for x in (outputs.object_part, outputs.object, outputs.part)).backward()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trainable
    assert {n for n, _ in model.named_parameters()} - trainable == model.unused_parameters()


def test_pair_starts_as_the_decoder():
    model = PartClipSeg(ClipBackbone("partseg-tiny-16", feature_blocks=(1, 2, 3)))
    for name in ("film", "head"):
        own, start = getattr(model.pair, name).state_dict(), getattr(model.decoder, name).state_dict()
        assert all(torch.equal(own[key], start[key]) for key in start)


def test_bfloat16_autocast_is_close(build_part_clipseg, outputs_of, images, vocabulary):
    """Stated error: bf16 autocast moves logits by 2 % of their spread on average (3 % allowed)."""
    model = build_part_clipseg()
    with torch.no_grad():
        exact = outputs_of(model, images, vocabulary)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = outputs_of(model, images, vocabulary)
    for level in ("object_part", "object", "part"):
        a, b = getattr(exact, level), getattr(rounded, level).float()
        assert (a - b).abs().mean() < 3e-2 * a.std(), level


def test_bfloat16_autocast_trains(build_part_clipseg, outputs_of, images, vocabulary):
    model = build_part_clipseg(trainable=("*",))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = outputs_of(model, images, vocabulary)
        loss = sum(x.float().square().mean() for x in (outputs.object_part, outputs.object, outputs.part))
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters() if p.requires_grad)


def test_parameter_count_is_the_published_one_less_two_unused_layers(root):
    """152,355,203 and 27,427,202 count a 512 -> 1000 linear and a text adapter that reach no output."""
    with torch.device("meta"):
        model = PartClipSeg(ClipBackbone(), trainable=("adapter.*", "decoder.*", "pair.*"), train_background=False)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    unused = 1000 * 512 + 2 * 512 * 128
    assert total + unused == 152_355_203
    assert trainable == 27_427_202  # with the background vector of ours: 512 more


@pytest.mark.parametrize("size", [(60, 64), (64, 70)])
def test_image_sides_must_be_divisible_by_the_patch(build_part_clipseg, outputs_of, vocabulary, size):
    with pytest.raises(
        ValueError, match=f"{size[0]}x{size[1]} pixels; both sides must be multiples of the patch size 16"
    ):
        outputs_of(build_part_clipseg(), torch.zeros(1, 3, *size), vocabulary)


def test_a_name_longer_than_the_context_is_named(build_part_clipseg, outputs_of, images):
    vocabulary = Vocabulary.from_mapping({"dog": ["head " * 80]})
    with pytest.raises(ValueError, match="82 tokens, the text tower takes 77"):
        outputs_of(build_part_clipseg(), images, vocabulary)
