"""train.compile=true: whole graphs, equal numbers, and an end of recompiling."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model, compile_passes
from partseg.engine.prompts import PromptSampling
from partseg.losses.criterion import loss_of
from partseg.utils.config import compose, config_dir, instantiate
from partseg.vocabulary.shipped import shipped

TINY = sorted(path.stem for path in (config_dir() / "model").glob("*_tiny.yaml"))
FROZEN = ["model.trainable=[decoder.*]", "model.train_text_embeddings=false"]

# torch.compile looks at .grad of what it is given
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def parts(name, *overrides):
    """A model in training mode, and its criterion."""
    experiment = f"experiment={name.removesuffix('_tiny')}_pascal_part_116"
    config = compose("train", [experiment, f"model={name}", *overrides])
    torch.manual_seed(0)
    return build_model(config).train(), instantiate(config.criterion)


def step(model, criterion, batch):
    loss, _, _ = loss_of(model, criterion, batch)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


@pytest.mark.parametrize("overrides", [[], FROZEN], ids=["towers train", "decoder trains"])
@pytest.mark.parametrize("name", TINY)
def test_a_compiled_step_is_one_graph_per_pass_with_equal_numbers(name, overrides):
    if overrides and not name.startswith(("clipseg", "part_clipseg")):
        pytest.skip("these overrides are for systems with CLIPSeg's decoder")
    model, criterion = parts(name, *overrides)
    if not hasattr(model, "passes"):
        with pytest.raises(ValueError, match=r"train.compile=true: .* no `passes`.*set it to false"):
            compile_passes(model)
        return
    batch = random_batch(shipped("pascal_part_116").seen_subset(), batch_size=2, input=model.input)
    loss, gradients = step(model, criterion, batch)
    compile_passes(model, backend="aot_eager", fullgraph=True)
    compiled, found = step(model, criterion, batch)
    assert 1 <= counters["stats"]["unique_graphs"] <= len(model.passes) and not counters["graph_break"]
    torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=0)
    assert gradients.keys() == found.keys()
    for key, gradient in gradients.items():
        assert (found[key] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-9, key


def test_sampled_prompts_and_evaluations_do_not_compile_again():
    """A size that changes is free from its second value on, and what runs without gradients is not compiled."""
    model, criterion = parts("part_clipseg_tiny", "model.image_size=64")
    compile_passes(model, backend="aot_eager", fullgraph=True)
    sampling, sizes, graphs = PromptSampling(share=0.2, seed=0), set(), []
    for iteration in range(6):
        batch = random_batch(shipped("pascal_part_116"), batch_size=2, input=model.input, seed=iteration)
        (batch,) = sampling([replace(batch, instances=None, given=None)], iteration=iteration)
        step(model, criterion, batch)
        with torch.inference_mode():
            prompts = model.encode_text(batch.vocabulary)
            model.predict(batch.images, prompts, sizes=[(30, 40)] * 2)
        sizes.add(len(batch.vocabulary))
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(sizes) > 3 and graphs[0] == len(model.passes)
    # two graphs where the number of prompts alone changes, three where the longest prompt does too
    assert graphs[-1] <= 5 and graphs[-3:] == [graphs[-1]] * 3, graphs


def test_a_system_without_passes_is_refused():
    with pytest.raises(ValueError, match="train.compile=true: Linear has no `passes` to compile; set it to false"):
        compile_passes(nn.Linear(1, 1))
