"""Tokens and prompts; the towers themselves are tested with the models."""

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from partseg.text.encoder import encode_prompts, tokenize
from partseg.text.templates import TEMPLATES, resolve_template


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


def test_templates_are_names_or_texts():
    assert resolve_template("photo") == "a photo of a {}" and resolve_template("the {} here") == "the {} here"
    assert all(resolve_template(name) == text for name, text in TEMPLATES.items())
    for bad in ("fotos", "{} {}", ""):
        with pytest.raises(ValueError, match="exactly once"):
            resolve_template(bad)
