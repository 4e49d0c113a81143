"""torch.export and torch.compile of the image branch give the eager masks."""

import pytest
import torch

from partseg.models.export import ImageBranch
from partseg.vocabulary.names import Vocabulary


@pytest.mark.parametrize("builder", ["build_part_clipseg", "build_clipseg"])
def test_exported_image_branch_takes_text_as_input(request, images, vocabulary, builder):
    model = request.getfixturevalue(builder)().requires_grad_(False)
    branch = ImageBranch(model, vocabulary)
    text = model.encode_text(vocabulary)
    batch = torch.export.Dim("batch", min=1, max=64)
    arguments = branch.inputs(images, text)
    shapes = {"images": {0: batch}, "background": None, "text": tuple(None for _ in arguments[2:])}
    program = torch.export.export(branch, arguments, dynamic_shapes=shapes)
    other = Vocabulary.from_mapping({"cow": ["horn", "ear", "eye"], "bus": ["mirror", "roof"], "owl": ["ear", "horn"]})
    inputs = branch.inputs(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8), model.encode_text(other))
    for exported, eager in zip(program.module()(*inputs), branch(*inputs), strict=True):
        torch.testing.assert_close(exported, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the compiler, not the model, takes its time
def test_compiled_tower_and_decoder_equal_eager(build_part_clipseg, images, vocabulary):
    """fullgraph: nothing falls back to Python between pixels and masks, forward and backward."""
    model = build_part_clipseg(trainable=("adapter.*", "decoder.*", "pair.*"))
    branch = ImageBranch(model, vocabulary)
    compiled = torch.compile(branch, fullgraph=True)
    inputs = branch.inputs(images, model.encode_text(vocabulary))
    gradients = []
    for function in (branch, compiled):
        model.zero_grad()
        outputs = function(*(x.detach() for x in inputs))
        sum(x.square().mean() for x in outputs).backward()
        gradients.append((outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    for a, b in zip(gradients[0][0], gradients[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert gradients[0][1].keys() == gradients[1][1].keys()
    for name, gradient in gradients[0][1].items():
        torch.testing.assert_close(gradients[1][1][name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
