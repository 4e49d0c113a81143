"""The criterion as the trainer uses it: config files, weights of 0, counts, and what stops a run."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from partseg.losses.criterion import Criterion, NonFiniteLossError, check_finite
from partseg.losses.pixel import ObjectBCE, ObjectPartBCE, PartBCE
from partseg.structures import Outputs
from partseg.systems.clipseg.decoder import DecoderAttention
from partseg.systems.part_clipseg.network import PartClipSegOutputs
from partseg.utils.config import config_dir, instantiate

ALL_FILES = sorted((config_dir() / "criterion").glob("*.yaml"))
FILES = [path for path in ALL_FILES if "clipseg" in path.stem]
"""Those of the network that the tests below run; other systems' terms have tests of their own."""


def _load(path: Path, overrides: dict | None = None) -> Criterion:
    config = OmegaConf.load(path)
    for key, value in (overrides or {}).items():
        OmegaConf.update(config, key, value, force_add=False)
    return instantiate(config)


def _terms(path: Path) -> list[str]:
    return list(OmegaConf.load(path).terms)


class _Network(nn.Module):
    """The smallest thing with PartCLIPSeg's dependencies: object and part logits share a head of their own."""

    def __init__(self, vocabulary, grid, *, with_prompts=True):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        prompts = vocabulary.num_parts + vocabulary.num_objects + 1
        self.vocabulary, self.grid, self.with_prompts = vocabulary, grid, with_prompts
        tokens = (prompts, 2, 1 + grid[0] * grid[1], 3)
        self.decoder = nn.Parameter(torch.randn(2, *tokens, generator=generator, dtype=torch.float64))
        self.pair_head = nn.Parameter(torch.randn(len(vocabulary) + 1, prompts, generator=generator).double())
        self.prompt_head = nn.Parameter(torch.randn(prompts, prompts, generator=generator, dtype=torch.float64))

    def forward(self, batch):
        query, key = self.decoder[:, None].expand(2, len(batch), -1, -1, -1, -1)
        cells = (query * key).sum((2, 4))[:, :, 1:].unflatten(-1, self.grid).flatten(2)
        size = batch.object.shape[-2:]
        pixels = nn.functional.interpolate(cells.unflatten(-1, self.grid), size=size, mode="bilinear")
        pairs = torch.einsum("kp,bphw->bkhw", self.pair_head, pixels)
        if not self.with_prompts:
            return Outputs(object_part=pairs)
        prompts = torch.einsum("ep,bphw->behw", self.prompt_head, pixels)
        parts = self.vocabulary.num_parts
        attention = {n: DecoderAttention(query, key, scale=0.5, grid=self.grid) for n in (0, 1, 2)}
        logits = {"object_part": pairs, "object": prompts[:, parts:], "part": prompts[:, :parts]}
        return PartClipSegOutputs(**logits, attention=attention)


@pytest.fixture
def network(vocabulary):
    return _Network(vocabulary, (4, 5))


def test_there_are_four_files():
    assert [path.stem for path in FILES] == ["clipseg", "clipseg_official", "partclipseg", "partclipseg_official"]


@pytest.mark.parametrize(
    ("path", "name"), [(p, n) for p in FILES for n in _terms(p)], ids=lambda v: getattr(v, "stem", v)
)
def test_every_term_sends_gradient_to_a_parameter(path, name, network, make_batch, vocabulary):
    """... except the authors' separation, which sends none: the published runs had none."""
    others = {f"terms.{other}.weight": 0.0 for other in _terms(path) if other != name}
    criterion = _load(path, others)
    batch = make_batch("several_objects")
    loss, values = criterion(network(batch), batch, criterion.counts(batch))
    if loss.requires_grad:
        loss.backward()
    assert list(values) == [name]
    reached = sum(p.grad.abs().sum() for p in network.parameters() if p.grad is not None)
    if (path.stem, name) == ("partclipseg_official", "separation"):
        assert values[name] > 0
        assert reached == 0
    else:
        assert reached > 0


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: p.stem)
def test_files_hold_every_option_of_their_terms(path):
    """What a term can do is visible in the file: no option is left to a default in the code."""
    import inspect

    from hydra.utils import get_object

    def check(node):
        if not isinstance(node, dict):
            return
        if "_target_" in node:
            assert set(inspect.signature(get_object(node["_target_"])).parameters) == set(node) - {"_target_"}
        for child in node.values():
            check(child)

    whole = OmegaConf.create({"criterion": OmegaConf.load(path)})
    check(OmegaConf.to_container(whole.criterion, resolve=True))


def test_official_differs_from_default_by_the_listed_keys_only():
    def flat(node, prefix=""):
        for key, value in node.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    ours, theirs = (
        dict(flat(OmegaConf.to_container(OmegaConf.load(config_dir() / "criterion" / f"{name}.yaml"), resolve=True)))
        for name in ("partclipseg", "partclipseg_official")
    )
    assert set(ours) == set(theirs)
    maps = {"mask_downsample", "normalise_by", "halve_sum"}
    assert {key for key in ours if ours[key] != theirs[key]} == {
        "normalise",
        "terms.object_part.term.background_needs_object",
        "terms.object_part.term.labels_on_background",
        "terms.enhancement.term.maximum_over",
        *(f"terms.separation.term.{key}" for key in ("strict", "surrogate")),
        *(
            f"terms.{term}.term.{key}"
            for term in ("separation", "enhancement")
            for key in ("smoothing_sigma", "parts_of", "divide_by_batch", *(f"maps.{m}" for m in maps))
        ),
    }


ABLATIONS = {
    "table5 none": {"separation": 0.0, "enhancement": 0.0},
    "table5 separation": {"enhancement": 0.0},
    "table5 enhancement": {"separation": 0.0},
    "tableA7 neither": {"object": 0.0, "part": 0.0},
    "tableA7 object": {"part": 0.0},
    "tableA7 part": {"object": 0.0},
    "tableA7 no attention": {"separation": 0.0, "enhancement": 0.0},
    "object only": {"object_part": 0.0, "part": 0.0, "separation": 0.0, "enhancement": 0.0},
}


@pytest.mark.parametrize("weights", ABLATIONS.values(), ids=ABLATIONS)
def test_terms_of_weight_zero_compute_nothing(weights, network, make_batch, vocabulary, monkeypatch):
    criterion = _load(
        config_dir() / "criterion" / "partclipseg.yaml", {f"terms.{n}.weight": w for n, w in weights.items()}
    )
    batch = make_batch("several_objects")
    counts = criterion.counts(batch)
    assert not {key.split("/")[0] for key in counts} & set(weights)
    without_attention = {"separation", "enhancement"} <= set(weights)
    dense = {"object_part", "object", "part"} - set(weights)
    assert criterion.reads == dense | (set() if without_attention else {"attention.2"})
    if without_attention:
        monkeypatch.setattr("partseg.systems.part_clipseg.losses.masked_attention", None)
    loss, values = criterion(network(batch), batch, counts)
    assert not set(values) & set(weights)
    loss.backward()


def test_threshold_and_layers_are_overrides():
    criterion = _load(
        config_dir() / "criterion" / "partclipseg.yaml",
        {"terms.separation.term.gamma": 0.1, "terms.separation.term.maps.layers": [0, 2]},
    )
    assert criterion.terms["separation"].gamma == 0.1
    assert criterion.reads >= {"attention.0", "attention.2"} and "attention.1" not in criterion.reads
    assert criterion.terms["enhancement"].maps == criterion.terms["separation"].maps


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_nothing_is_nan_whatever_the_labels(path, batch, network, vocabulary):
    criterion = _load(path)
    loss, values = criterion(network(batch), batch, criterion.counts(batch))
    loss.backward()
    assert all(torch.isfinite(value) for value in (loss, *values.values()))
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_batch_without_any_label_costs_nothing(network, make_batch, vocabulary):
    criterion = _load(config_dir() / "criterion" / "partclipseg.yaml")
    batch = make_batch("all_ignored")
    loss, _ = criterion(network(batch), batch, criterion.counts(batch))
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in network.parameters())


def test_autocast_does_not_reach_the_losses(network, make_batch, vocabulary):
    criterion = _load(config_dir() / "criterion" / "partclipseg.yaml")
    batch = make_batch("several_objects")
    counts = criterion.counts(batch)
    outputs = network.float()(batch)
    expected, _ = criterion(outputs, batch, counts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = criterion(outputs, batch, counts)
    assert torch.equal(loss, expected)


def _term(term):
    return {"weight": 1.0, "term": term}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": {"object": {"weight": 0.0, "term": ObjectBCE()}}}, "all weights"),
        ({"terms": {"object": {"weight": -1.0, "term": ObjectBCE()}}}, r"terms\.object\.weight"),
        ({"terms": {"object": {"weight": float("nan"), "term": ObjectBCE()}}}, r"terms\.object\.weight"),
        ({"terms": {"part": {"wieght": 1.0, "term": PartBCE()}}}, "must hold 'weight' and 'term'"),
        ({"terms": {"part": _term(PartBCE())}, "normalise": "batch"}, "'global' and 'process'"),
    ],
)
def test_wrong_configs_name_the_key(arguments, message):
    with pytest.raises(ValueError, match=message):
        Criterion(**arguments)


def test_process_normalisation_averages_the_means_of_micro_batches(make_batch, make_outputs, vocabulary):
    batches = [make_batch("one_image"), make_batch("fills_the_frame")]
    criterion = Criterion(terms={"object_part": _term(ObjectPartBCE())}, normalise="process")
    alone = Criterion(terms={"object_part": _term(ObjectPartBCE())})
    counts = [criterion.counts(batch) for batch in batches]
    total = {key: counts[0][key] + counts[1][key] for key in counts[0]}
    outputs = [make_outputs(batch) for batch in batches]
    loss = sum(criterion(o, b, total)[0] for o, b in zip(outputs, batches, strict=True))
    means = [alone(o, b, c)[0] for o, b, c in zip(outputs, batches, counts, strict=True)]
    torch.testing.assert_close(loss, sum(means) / 2)


def test_non_finite_loss_names_iteration_terms_and_images():
    terms = {"object": torch.tensor(1.5), "part": torch.tensor(float("nan"))}
    with pytest.raises(NonFiniteLossError, match=r"iteration 17 \(object=1\.5, part=nan\); images: a\.jpg, b\.jpg"):
        check_finite(float("nan"), terms, iteration=17, names=["a.jpg", "b.jpg"])
    assert issubclass(NonFiniteLossError, FloatingPointError)
    check_finite(1.0, terms, iteration=17, names=["a.jpg"])
