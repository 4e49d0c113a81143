"""train.compile=true: whole graphs, equal numbers, and an end of recompiling."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from partseg.engine.benchmark.agreement import WORDS
from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model, compile_passes
from partseg.engine.prompts import PromptSampling
from partseg.losses.criterion import loss_of
from partseg.utils.config import compose, config_dir, instantiate
from partseg.vocabulary.shipped import shipped

TINY = sorted(path.stem for path in (config_dir() / "model").glob("*_tiny.yaml"))
LIKE_ANOTHER = ("cat_seg_cvpr24_vitl_tiny", "cat_seg_dinov2_tiny", "vlpart_swin_b_tiny")
"""Other towers for a system that is there; in the slow test."""
SHALLOW = {
    "cat_seg_tiny": ["model.aggregator.layers=1"],
    "cat_seg_cvpr24_tiny": ["model.aggregator.layers=1"],
    "part_cat_seg_tiny": ["model.aggregator.layers=1"],
    "ops_tiny": ["model.shape.encoder_layers=1", "model.shape.decoder_layers=1"],
}
"""A layer is captured like the next one."""
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


def check_one_graph_per_pass(name, *overrides, backend):
    """A compiled step has the numbers of the plain one, and no graph breaks (`fullgraph` raises where one would)."""
    model, criterion = parts(name, *overrides)
    batch = random_batch(WORDS, batch_size=2, input=model.input)
    loss, gradients = step(model, criterion, batch)
    compile_passes(model, backend=backend, fullgraph=True)
    compiled, found = step(model, criterion, batch)
    # texts of three levels are encoded one after another where their numbers of prompts differ
    assert 1 <= counters["stats"]["unique_graphs"] <= len(model.passes) + 2 and not counters["graph_break"]
    torch.testing.assert_close(compiled, loss, rtol=1e-5, atol=0)
    assert gradients.keys() == found.keys()
    for key, gradient in gradients.items():
        assert (found[key] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-9, key


@pytest.mark.parametrize("name", [name for name in TINY if name not in LIKE_ANOTHER])
def test_a_step_is_one_graph_per_pass(name):
    """Captured and run as it is (backend eager): enough to prove the graph whole, in a second."""
    check_one_graph_per_pass(name, *SHALLOW.get(name, []), backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_step_with_its_backward_is_one_graph_per_pass(name):
    check_one_graph_per_pass(name, backend="aot_eager_decomp_partition")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clipseg_tiny", "part_clipseg_tiny"])
def test_a_step_under_frozen_towers_is_one_graph_per_pass(name):
    check_one_graph_per_pass(name, *FROZEN, backend="aot_eager_decomp_partition")


def test_sampled_prompts_and_evaluations_do_not_compile_again():
    """A size that changes is free from its second value on, and what runs without gradients is not compiled."""
    model, criterion = parts("part_clipseg_tiny", "model.image_size=64")
    compile_passes(model, backend="eager", fullgraph=True)
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
