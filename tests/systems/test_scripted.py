"""TorchScript archives without their code: the same state dict as torch.jit.load's, whatever the modules look like."""

import pytest
import torch
from torch import nn

from partseg.backbones.clip_vit import build_clip
from partseg.weights.scripted import is_scripted, scripted_state

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")


class Leaf(nn.Module):
    """Parameters, buffers, and attributes of every kind that are in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("late", torch.arange(3), persistent=False)
        self.register_buffer("nothing", None)
        self.plain = torch.full((2,), 7.0)
        self.words, self.sizes, self.shares = ["a", "b"], [1, 2], [0.5]
        self.tables = {"x": torch.ones(1)}
        self.pairs = [torch.zeros(2)]
        self.flags = [True]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.flags[0]:
            x = x + self.plain[0] + self.pairs[0][0] + self.tables["x"] + self.sizes[0] + self.shares[0]
        return self.norm(self.linear(x)) * self.mask + self.late


class Nested(nn.Module):
    """Modules in lists, one of them twice, and tensors that share or skip storage."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Leaf(), nn.ReLU(), Leaf())
        self.tied = self.blocks[0]
        self.table = nn.ParameterList([nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2).bfloat16())])
        whole = torch.randn(4, 6)
        self.row, self.turned = nn.Parameter(whole[1]), nn.Parameter(whole.t()[2:, 1:])
        self.same = self.row
        self.scalar, self.empty = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.empty(0, 3))
        for dtype in (torch.float16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32, torch.complex64):
            self.register_buffer(f"kind_{str(dtype)[6:]}", torch.arange(5).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class OpenAi(nn.Module):
    """Our small CLIP laid out and stored in fp16 as OpenAI's files are."""

    def __init__(self) -> None:
        super().__init__()
        clip = build_clip("partseg-tiny-16")
        self.visual, self.transformer = clip.visual, clip.transformer
        self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
        self.logit_scale = clip.logit_scale
        for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))
        self.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


MODULES = {
    "leaf": lambda: torch.jit.script(Leaf()),
    "nested": lambda: torch.jit.script(Nested()),
    "frozen in evaluation": lambda: torch.jit.script(Nested().eval().requires_grad_(False)),
    "traced": lambda: torch.jit.trace(Leaf().eval(), torch.zeros(2, 3)),
    "openai": lambda: torch.jit.trace(OpenAi(), torch.zeros(1)),
    "no tensors": lambda: torch.jit.script(nn.ReLU()),
}


@pytest.mark.parametrize("kind", MODULES)
def test_the_state_is_that_of_torch(tmp_path, kind):
    path = tmp_path / "archive.pt"
    torch.jit.save(MODULES[kind](), str(path))
    expected = torch.jit.load(str(path), map_location="cpu").state_dict()
    found = scripted_state(path)
    assert is_scripted(path) and set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
        assert found[name].stride() == tensor.stride() and not found[name].requires_grad
    shared = {a for a in expected for b in expected if a != b and expected[a].data_ptr() == expected[b].data_ptr() != 0}
    assert shared == {a for a in found for b in found if a != b and found[a].data_ptr() == found[b].data_ptr() != 0}


def test_other_files_are_not_scripted(tmp_path):
    torch.save({"code": torch.zeros(1)}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("code")
    assert not is_scripted(tmp_path / "plain.pt") and not is_scripted(tmp_path / "text.pt")
