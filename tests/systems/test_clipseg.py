"""CLIPSeg against transformers' independent implementation, with random weights that pass through a checkpoint file."""

import gzip
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

from partseg.backbones.clip_vit import IMAGENET_MEAN, IMAGENET_STD, ClipBackbone
from partseg.systems.clipseg.decoder import DecoderShape
from partseg.systems.clipseg.network import ClipSeg
from partseg.text.encoder import tokenize
from partseg.text.templates import Templates
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.shipped import shipped
from partseg.weights.load import load_weights

transformers = pytest.importorskip("transformers")
VOCABULARY = Vocabulary.from_mapping({"dog": ["head", "tail"], "pottedplant": ["plant"]})
SMALL = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "patch_size": 16, "width": 64, "head_width": 16, "layers": 5},
    "text_cfg": {"vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def small_reference():
    """transformers' model at the sizes of SMALL."""
    config = transformers.CLIPSegConfig(
        vision_config={
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4,
            "patch_size": 16, "image_size": 224,
        },
        text_config={
            "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        },
        projection_dim=48, extract_layers=[1, 2, 3], reduce_dim=32, decoder_intermediate_size=80,
        use_complex_transposed_convolution=True,
    )  # fmt: skip
    return transformers.CLIPSegForImageSegmentation(config)


def shake(model, scale):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def reference_logits(reference, images, prompts):
    """[B, E, H, W], one prompt at a time on 77 padded tokens."""
    pixels = images / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    pixels = pixels / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    tokens = open_clip.tokenize(list(prompts))
    with torch.no_grad():
        maps = [
            reference(input_ids=row.expand(len(images), -1), pixel_values=pixels, interpolate_pos_encoding=True).logits
            for row in tokens
        ]
    return torch.stack(maps, dim=1)


def assert_equal_to_reference(model, reference, size, outputs_of):
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    expected = reference_logits(reference, images, VOCABULARY.prompts("object_part"))
    with torch.no_grad():
        logits = outputs_of(model, images, VOCABULARY).object_part
    assert logits.shape == (2, len(VOCABULARY) + 1, size, size)
    logits = logits[:, :-1]
    assert (logits - expected).abs().max() < 1e-4 * expected.std()
    # What differs between prompts is a small share of random networks' logits: it must agree by its own measure too.
    ours, theirs = (x - x.mean(dim=1, keepdim=True) for x in (logits, expected))
    assert (ours - theirs).std() < 1e-2 * theirs.std()


@pytest.mark.parametrize("size", [224, 352])
def test_logits_equal_transformers(tmp_path, outputs_of, size):
    reference = shake(small_reference(), 0.1)
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    model = ClipSeg(
        ClipBackbone(str(tmp_path / "small.json"), feature_blocks=(1, 2, 3)),
        adapter_ratio=None,
        trainable=("decoder.*",),
        decoder=DecoderShape(width=32, heads=4, hidden=80),
    )
    load_weights(model, str(tmp_path / "model.safetensors"), require=("backbone", "decoder"))
    assert_equal_to_reference(model, reference, size, outputs_of)


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 352])
def test_logits_equal_transformers_at_real_size(tmp_path, outputs_of, size):
    config = transformers.CLIPSegConfig(use_complex_transposed_convolution=True, vision_config={"patch_size": 16})
    reference = shake(transformers.CLIPSegForImageSegmentation(config), 0.01)
    safetensors.torch.save_file(reference.state_dict(), tmp_path / "model.safetensors")
    model = ClipSeg(ClipBackbone(), adapter_ratio=None, trainable=("decoder.*",))
    report = load_weights(model, str(tmp_path / "model.safetensors"), require=("backbone", "decoder"))
    assert report.missing == ("background",) and not report.unexpected
    assert_equal_to_reference(model, reference, size, outputs_of)


@pytest.fixture(scope="module")
def reference_tokenizer(tmp_path_factory):
    """transformers' CLIP tokenizer over the merges that open_clip ships (there is no network in tests)."""
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(bpe.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    names = open_clip.tokenizer.SimpleTokenizer().encoder
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    names = {special.get(name, name): i for name, i in names.items()}
    (folder / "vocab.json").write_text(json.dumps(names))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.mark.parametrize("name", ["pascal_part_116", "ade20k_part_234", "partimagenet_40"])
def test_token_ids_equal_transformers_for_every_class(root, reference_tokenizer, name):
    vocabulary = shipped(name)
    prompts = [p for level in ("object_part", "object", "part") for p in vocabulary.prompts(level)]
    prompts += [prompt for (prompt,) in Templates("a photo of a {}.").prompts(vocabulary, "object_part")]
    tokens = tokenize(open_clip.tokenizer.SimpleTokenizer(), prompts, context_length=77)
    for prompt, row in zip(prompts, tokens, strict=True):
        expected = reference_tokenizer(prompt)["input_ids"]
        assert row[: len(expected)].tolist() == expected, prompt
        assert not row[len(expected) :].any()


def test_chunks_do_not_change_the_result(build_clipseg, outputs_of, images, vocabulary):
    model = build_clipseg().double()
    with torch.no_grad():
        whole = outputs_of(model, images, vocabulary)
        model.decoder.prompt_chunk = 3
        parts = outputs_of(model, images, vocabulary)
    torch.testing.assert_close(parts.object_part, whole.object_part, rtol=1e-9, atol=1e-9)


def test_predictions_are_the_logits_of_training(build_clipseg, outputs_of, images, vocabulary):
    """... and prompts bring their own words: there is no second vocabulary that they could disagree with."""
    model = build_clipseg().eval()
    kept = np.array([True, False, True, True, False, False, True])
    with torch.inference_mode():
        prompts = model.encode_text(vocabulary)
        for asked, words in ((prompts, vocabulary), (prompts.subset(kept), vocabulary.subset(kept))):
            expected = outputs_of(model, images, words).object_part
            found = model.predict(images, asked, sizes=[(64, 64), (30, 40)])
            for scores, logits in zip(found, expected, strict=True):
                torch.testing.assert_close(scores.object_part, logits)
                assert scores.object is None
            assert [scores.size for scores in found] == [(64, 64), (30, 40)]
