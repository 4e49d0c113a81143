"""Tokens and prompts; the towers themselves are tested with the models."""

import re

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from partseg.text.encoder import PromptCache, encode_prompts, tokenize
from partseg.text.templates import Templates
from partseg.vocabulary.names import Vocabulary


class CountingTower:
    """Features are the token sums; remembers what it was asked."""

    tokenizer = SimpleTokenizer()
    context_length = 12

    def encode_tokens(self, tokens):
        self.shape = tokens.shape
        return tokens.sum(1, keepdim=True).float()


def test_tokens_are_trimmed_to_the_longest_prompt():
    tokens = tokenize(SimpleTokenizer(), ["dog", "left front leg"], context_length=77)
    assert tokens.shape == (2, 5)
    assert tokens[0].tolist() == [49406, 1929, 49407, 0, 0] and tokens.argmax(1).tolist() == [2, 4]


def test_prompts_that_repeat_are_encoded_once():
    tower = CountingTower()
    features = encode_prompts(tower, ["leg", "head", "leg", "leg"], device=torch.device("cpu"))
    assert tower.shape == (2, 3) and features.shape == (4, 1)
    assert features[0] == features[2] == features[3] != features[1]


@pytest.mark.parametrize("prompt, match", [("leg " * 11, "13 tokens, the text tower takes 12"), (" ", "has no words")])
def test_prompts_that_do_not_fit_are_named(prompt, match):
    with pytest.raises(ValueError, match=match):
        encode_prompts(CountingTower(), ["head", prompt], device=torch.device("cpu"))


def test_a_prompt_of_exactly_the_context_fits():
    assert tokenize(SimpleTokenizer(), ["leg " * 10], context_length=12).shape == (1, 12)


WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "{}": ["{object}"]})


def test_a_template_is_a_text_a_name_or_one_of_each_level():
    own = Templates({"object_part": "{object}'s {part}", "object": ["a photo of a {}.", "the {object}"]})
    assert own.prompts(WORDS, "object_part")[:2] == [("dog's head",), ("dog's tail",)]
    assert own.prompts(WORDS, "object")[0] == ("a photo of a dog.", "the dog")
    assert own.prompts(WORDS, "part")[0] == ("head",) == Templates("{}").prompts(WORDS, "part")[0]
    assert own.prompts(WORDS, "object_part")[2] == ("{}'s {object}",)  # names are never taken for templates
    assert Templates("photo").of_name("left ear") == ("a photo of a left ear",)
    assert len(Templates("imagenet").prompts(WORDS, "part")[0]) == 80


def test_several_texts_are_averaged():
    texts = ["{}", "a {}"]
    encode = lambda prompts: torch.tensor([[float(len(prompt))] for prompt in prompts])  # noqa: E731
    templates = Templates(texts)
    assert templates.encode(encode, templates.prompts(WORDS, "part"))[:2].tolist() == [[5.0], [5.0]]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("fotos", "of level object_part must hold {} or {object} or {part}"),
        ("{} {}", "must hold"),
        ("{object}'s {part}", "of level object must hold {} or {object} and nothing else"),
        ({"part": "{object}"}, "of level part must hold {} or {part}"),
        ({"objct": "{}"}, "has levels ['objct']"),
    ],
)
def test_templates_that_are_none(template, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Templates(template)


def test_prompts_of_frozen_weights_are_kept_until_a_weight_changes():
    cache, calls = PromptCache(), []
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]

    def encode(prompts):
        calls.append(tuple(prompts))
        return torch.tensor([[float(len(prompt))] for prompt in prompts]) * weights[1].sum()

    def features(*prompts):
        return cache.features(prompts, encode, weights=weights)

    assert features("leg", "head", "leg").flatten().tolist() == [9, 12, 9]
    with torch.inference_mode():
        assert features("head", "tails").flatten().tolist() == [12, 15]
    assert not features("tails").is_inference() and not features("tails").requires_grad
    assert calls == [("leg", "head"), ("tails",)]
    with torch.no_grad():
        weights[1].mul_(2)
    assert features("head").item() == 24
    weights[1].data = torch.zeros(3)
    assert features("head").item() == 0
    with torch.autocast("cpu", torch.bfloat16):
        features("head")
    assert calls[2:] == [("head",)] * 3
