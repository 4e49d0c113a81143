"""The rewritten blocks against the plain torch modules they replace, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partseg.systems.clipseg import layers
from partseg.systems.clipseg.layers import FeedForward, MaskHead, over_prompts


@pytest.mark.parametrize("tokens", [1, 7, 1000])
def test_feed_forward_equals_two_linears(monkeypatch, tokens):
    monkeypatch.setattr(layers, "CPU_HIDDEN", 20 * tokens)
    module = FeedForward(6, 20).double()
    x = torch.randn(3, 5, 6, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 5, 6, dtype=torch.double)
    plain = module.fc2(F.relu(module.fc1(x)))
    inputs = [x, *module.parameters()]
    for a, b in zip(
        torch.autograd.grad((module(x) * weight).sum(), inputs),
        torch.autograd.grad((plain * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(module(x), plain)


def test_feed_forward_keeps_no_hidden_activation():
    module, x = FeedForward(8, 512), torch.randn(100, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        module(x)
    assert max(saved) <= module.fc1.weight.numel() < 100 * 512


@pytest.mark.parametrize("patch, factors", [(8, (4, 2)), (14, (7, 2)), (16, (4, 4)), (32, (8, 4))])
def test_mask_head_equals_transposed_convolutions(patch, factors):
    head = MaskHead(16, patch_size=patch).double()
    assert (head.up1.stride[0], head.up2.stride[0]) == factors
    tokens = torch.randn(3, 6, 16, dtype=torch.double, requires_grad=True)
    plain = nn.Sequential(head.conv, nn.ReLU(), head.up1, nn.ReLU(), head.up2)(
        tokens.transpose(1, 2).unflatten(2, (2, 3))
    )
    masks = head(tokens, (2, 3))
    torch.testing.assert_close(masks, plain[:, 0])
    weight = torch.randn_like(masks)
    inputs = [tokens, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad((masks * weight).sum(), inputs),
        torch.autograd.grad((plain[:, 0] * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("inner", [1, 2, 4])
def test_pixels_are_put_in_place_and_their_gradients_back(dtype, inner):
    blocks = torch.randn(3, 2, 5, 4, 4, inner, inner).to(dtype).requires_grad_()
    placed = layers._place(blocks)
    plain = blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(3, 8 * inner, 20 * inner)
    assert torch.equal(placed, plain)
    odd = torch.randn(plain.numel() + 1).to(dtype)[1:].view(plain.shape)
    for weight in (torch.randn_like(plain), torch.ones((), dtype=dtype).expand(plain.shape), odd):
        found, wanted = (torch.autograd.grad(x, blocks, weight, retain_graph=True)[0] for x in (placed, plain))
        assert torch.equal(found, wanted)


def test_untrained_masks_start_at_the_prior():
    head = MaskHead(64, patch_size=16, prior=0.01)
    assert torch.sigmoid(head.up2.bias).item() == pytest.approx(0.01)
    started = torch.sigmoid(head(torch.randn(3, 4, 64), (2, 2)))
    assert started.mean().item() == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("prior", (0.0, 1.0, -0.1))
def test_prior_is_a_probability(prior):
    with pytest.raises(ValueError, match=f"mask_prior must lie between 0 and 1, got {prior}"):
        MaskHead(64, patch_size=16, prior=prior)


def test_over_prompts_recomputes_when_asked():
    calls = []
    x = torch.randn(2, 5, requires_grad=True)

    def square(prompts):
        calls.append(prompts)
        return x[:, prompts].square()

    over_prompts(square, 5, chunk=2, recompute=True).sum().backward()
    assert len(calls) == 6 and torch.equal(x.grad, 2 * x.detach())
