"""OPS against the authors' network (numbers beside the checkout), and what holds without them."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from partseg.labels import BACKGROUND_LABEL
from partseg.losses.term import LossInputs
from partseg.structures import Batch, Instances
from partseg.systems.ops import losses
from partseg.systems.ops.clustering import kmeans, on_grid, solidity
from partseg.systems.ops.losses import CentroidRepulsion, Cluster, Matching, PixelAffinity, SetLoss
from partseg.systems.ops.mask2former import Mask2FormerShape
from partseg.systems.ops.network import INSIDE, OUTSIDE, Ops, OpsPrompts
from partseg.vocabulary.names import Vocabulary
from partseg.weights.load import export_weights, layouts_of, load_weights

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT.parent / "shared" / "fixtures" / "ops"
GOLDEN = ROOT / "tests" / "golden" / "ops.safetensors"
TINY = Mask2FormerShape(
    stem=16, stages=(32, 64, 128, 256), width=32, heads=4, encoder_layers=2, decoder_layers=3, hidden=64, queries=10
)
WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "cat": ["head"]})

pytest.importorskip("transformers", reason="the network is transformers' Mask2Former (pip install transformers)")


def numbers(name: str) -> dict[str, torch.Tensor]:
    if not FIXTURE.is_dir():
        pytest.skip(f"the authors' numbers are not beside the checkout ({FIXTURE.relative_to(ROOT.parent)})")
    return load_file(FIXTURE / f"{name}.safetensors")


@pytest.fixture
def reference():
    """Our network with the authors' random weights, in their recipe."""
    numbers("state_dict")
    model = Ops(TINY, image_size=72, long_edge=110, top=6, aware_after=False, official_padding=True)
    report = load_weights(model, str(FIXTURE / "state_dict.safetensors"))
    assert report.layout == "mask2former_detectron2" and not report.missing and not report.unexpected
    return model


def tiny(**options) -> Ops:
    """A network with weights that follow from their names, the same on every machine and for every torch."""
    model = Ops(TINY, **{"image_size": 64, "long_edge": 96, **options})
    with torch.no_grad():
        for name, value in model.state_dict().items():
            drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(value.shape)
            drawn = {True: np.abs(drawn) + 0.5, False: drawn * 0.4 * max(1, value[0].numel()) ** -0.5}[
                name.endswith(("norm.weight", "normalization.weight", "_var", "1.1.weight"))
            ]
            value.copy_(torch.from_numpy(drawn))
    return model


# Network --------------------------------------------------------------------------------------------------------------
def test_the_network_is_the_authors(reference):
    expected = numbers("inference")
    inside = torch.ones(1, 96, 128, dtype=torch.bool)
    with torch.no_grad():
        found = reference.eval().segment(expected["input/normalized_padded"], inside)
        maps = reference.backbone(expected["input/normalized_padded"]).feature_maps
        levels, _ = reference.features(expected["input/normalized_padded"])
    assert len(found.classes) == 4
    for i in range(4):
        torch.testing.assert_close(found.classes[i], expected[f"seam/pred_logits_{i}"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.masks[i], expected[f"seam/pred_masks_{i}"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(maps[i], expected[f"seam/backbone_res{i + 2}"], atol=1e-5, rtol=1e-5)
    for i, level in enumerate(levels):
        torch.testing.assert_close(level, expected[f"seam/multi_scale_{i}"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.features, expected["seam/mask_features"], atol=1e-5, rtol=1e-5)


def test_a_photo_gives_the_authors_segments(reference):
    """Resize, fourth channel, padding, scores and masks at the photo's size."""
    expected = numbers("inference")
    rgba = expected["input/rgba_uint8"].numpy()
    view = reference.input.geometry(*rgba.shape[:2])
    image = torch.from_numpy(np.asarray(view.image(Image.fromarray(rgba[..., :3]))).copy()).permute(2, 0, 1)[None]
    objects = torch.where(torch.from_numpy(rgba[..., 3]) > 128, 0, BACKGROUND_LABEL).int()
    with torch.no_grad():
        (found,) = reference.eval().predict(
            image, OpsPrompts(WORDS), sizes=[rgba.shape[:2]], regions=[view.region], given=[objects]
        )
    parts, given = found.of_level("object_part"), found.of_level("object")
    np.testing.assert_allclose(parts.scores, expected["output/scores"].numpy(), atol=1e-5)
    assert np.array_equal(parts.masks(), expected["output/masks"].numpy().astype(bool))
    assert np.array_equal(given.masks()[0], objects.numpy() == 0) and given.label.tolist() == [0]
    assert set(found.parent[found.level == 0].tolist()) == {0}, "the parts' parent is the object"


def test_every_name_of_the_full_network_has_its_counterpart():
    """`tests/golden/ops_keys.txt`: crc32 of names and shapes of the authors' 43.95 M parameters, sorted."""
    with torch.device("meta"):
        model = Ops()
    state = model.state_dict()
    links = layouts_of(model)[1].links(state)
    assert {link.ours for link in links} == set(state)
    shapes = {name: list(state[link.ours].shape) for link in links for name in link.theirs}
    for link in links:
        if link.block is not None:
            shapes[link.theirs[0]][0] = link.block[1] * state[link.ours].shape[0]
    lines = sorted(f"{name} {shape}" for name, shape in shapes.items())
    count, digest = (ROOT / "tests" / "golden" / "ops_keys.txt").read_text().split()
    assert len(lines) == int(count) and f"{zlib.crc32(chr(10).join(lines).encode()):08x}" == digest
    if (FIXTURE / "full_size_keys.txt").is_file():
        theirs = (FIXTURE / "full_size_keys.txt").read_text().splitlines()
        assert lines == sorted(line for line in theirs if line and not line.startswith(("#", "criterion.")))
    assert sum(p.numel() for p in model.parameters()) == 43_953_090


def test_weights_go_out_as_they_came(reference):
    theirs = numbers("state_dict")
    written = export_weights(reference, "mask2former_detectron2")
    assert set(theirs) - set(written) == {"criterion.empty_weight"}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in written.items())


def resnet_state(model: Ops) -> dict[str, torch.Tensor]:
    """ImageNet weights under torchvision's names, with three channels."""
    state = export_weights(model, "torchvision_resnet")
    assert all(
        re.fullmatch(r"(conv1|bn1|layer\d\.\d\.(conv\d|bn\d|downsample\.[01]))\.[a-z_]+", name) for name in state
    )
    return state | {"conv1.weight": state["conv1.weight"][:, :3].contiguous(), "fc.weight": torch.zeros(10, 256)}


def test_rgb_weights_start_a_network_that_knows_no_object(tmp_path):
    path = str(tmp_path / "resnet.safetensors")
    save_file(resnet_state(tiny()), path)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    inside = torch.zeros(1, 64, 96, dtype=torch.bool)
    inside[:, 10:50, 20:60] = True
    models = {"ours": Ops(TINY), "official": Ops(TINY, stem="random"), "blind": Ops(TINY, aware_before=False)}
    with torch.no_grad():
        maps = {}
        for name, model in models.items():
            report = load_weights(model, path)
            assert report.resized == (() if name == "blind" else ("backbone.embedder.embedder.convolution.weight",))
            assert not [n for n in report.missing if n.startswith("backbone.")] and not report.unexpected
            maps[name] = model.backbone(model.pixels(images, inside, None)).feature_maps[0]
    torch.testing.assert_close(maps["ours"], maps["blind"])
    assert not torch.allclose(maps["official"], maps["blind"], atol=0.1)


def test_the_fourth_channel_is_the_object_and_nothing_else():
    images = torch.full((1, 3, 32, 64), 255, dtype=torch.uint8)
    inside = torch.zeros(1, 32, 64, dtype=torch.bool)
    inside[:, :8, :8] = True
    for official in (False, True):
        pixels = Ops(TINY, official_padding=official).pixels(images, inside, [(0, 0, 20, 40)])
        assert pixels.shape == (1, 4, 32, 64) and pixels[0, 3, 0, 0] == INSIDE and pixels[0, 3, 10, 10] == OUTSIDE
        assert pixels[0, 3, 25, 50] == (0 if official else OUTSIDE) and not pixels[0, :3, 25:].any()


def test_the_pinned_outputs():
    """As they were when the network was equal to the authors'; `python tests/systems/test_ops.py` writes them anew."""
    pinned = load_file(GOLDEN)
    for name, found in golden().items():
        torch.testing.assert_close(found, pinned[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def golden() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, 64, 96), dtype=np.uint8))
    batch = batch_of(images, numbers_of_parts=(2, 0))
    model = tiny()
    outputs = model(batch)
    rows = iter(torch.from_numpy(rng.random(shape)).float() for shape in 4 * POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: next(rows))
        patch.setattr(losses, "Rows", FirstRows)
        terms = run_terms(LossInputs(outputs, batch), 32)
    return {
        "classes": outputs.classes[-1].detach(),
        "masks": outputs.masks[-1][:, ::3, ::2, ::2].detach().contiguous(),
        "features": outputs.features[:, ::8, ::2, ::2].detach().contiguous(),
        **{name: value.detach() for name, value in terms.items()},
    }


POINTS = [(1, 32, 2), (2, 96, 2), (2, 8, 2)]
"""Random numbers of each prediction set: for matching one image, for comparing its two parts."""


class FirstRows:
    """Rows that anybody draws alike."""

    def __init__(self, seed: int) -> None: ...

    def start(self, count: int, clusters: int) -> torch.Tensor:
        return torch.arange(clusters) * (count // clusters)

    def refill(self, count: int) -> int:
        return 0


def batch_of(images: torch.Tensor, *, numbers_of_parts: tuple[int, ...], given: bool = True) -> Batch:
    """Pictures with a rectangle as object, cut into columns as parts."""
    size = images.shape[2:]
    objects = torch.full((len(images), *size), BACKGROUND_LABEL, dtype=torch.int32)
    objects[:, 8:-8, 8:-8] = 0
    found = []
    for number in numbers_of_parts:
        masks = torch.zeros(number, *size, dtype=torch.bool)
        for i in range(number):
            masks[i, 8:-8, 8 + 20 * i : 28 + 20 * i] = True
        zero = torch.zeros(number, dtype=torch.long)
        found.append(Instances(masks, torch.zeros(number, 4), zero, zero, zero - 1, zero == 0, zero == 0))
    names = tuple(map(str, range(len(images))))
    return Batch(images, objects, objects, names, WORDS, instances=tuple(found), given=objects if given else None)


def run_terms(inputs: LossInputs, points: int) -> dict[str, torch.Tensor]:
    """All five terms over one micro-batch alone."""
    terms = {what: SetLoss(what, matching=Matching(points=points)) for what in ("class", "mask", "dice")}
    terms |= {"centroid": CentroidRepulsion(), "affinity": PixelAffinity()}
    one = {"images": torch.tensor(float(len(inputs.batch))), "batches": torch.tensor(1.0)}
    return {name: term(inputs, {**term.counts(inputs.batch), **one}) for name, term in terms.items()}


# Losses ---------------------------------------------------------------------------------------------------------------
class RecordedRows:
    """The rows that the authors' k-means drew, image after image, in this test."""

    def __init__(self, record: dict[str, torch.Tensor], base: str, images: list[int]) -> None:
        self.record, self.base, self.images = record, base, iter(images)

    def start(self, count: int, clusters: int) -> torch.Tensor:
        name = f"{self.base}/image{next(self.images)}"
        self.rows = iter(self.record[f"{name}/refill_rows"].tolist())
        return self.record[f"{name}/init_idx"]

    def refill(self, count: int) -> int:
        return next(self.rows)


@pytest.mark.parametrize(("base", "count"), [("sup", 2), ("adapt", 4)])
def test_a_training_step_is_the_authors(base, count, reference, monkeypatch):
    """Base stage, and the adaptation with two unlabelled pictures: terms, sum and gradients on their draws."""
    record = numbers("train")
    rgba = torch.stack([record[f"{base}/image{i}_rgba"] for i in range(count)])
    masks = [record.get(f"{base}/image{i}_gt_masks", torch.zeros(0, 96, 96)).bool() for i in range(count)]
    batch = batch_of(rgba[:, :3], numbers_of_parts=tuple(map(len, masks)))
    for instances, own in zip(batch.instances, masks):
        instances.masks.copy_(own)
    mean, std = torch.tensor([123.675, 116.28, 103.53, 128]), torch.tensor([58.395, 57.12, 57.375, 128])
    pixels = (rgba - mean[:, None, None]) / std[:, None, None]  # padded with 128, as their crops are
    outputs = reference.train().segment(pixels, rgba[:, 3] > 128)
    drawn = iter(record[key] for key in sorted(record) if key.startswith(f"{base}/rand/"))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(drawn))
    rows = RecordedRows(record, f"{base}/ss", [0, 1, 2, 3])
    monkeypatch.setattr(losses, "Rows", lambda _seed: rows)
    inputs = LossInputs(outputs, batch)
    found = run_terms(inputs, 128) if base == "adapt" else run_terms_without(inputs)
    assert next(drawn, None) is None, "all their random numbers were used"

    total = torch.zeros(())
    weights = {"class": 2, "mask": 5, "dice": 5, "centroid": 10, "affinity": 0.5}
    theirs = {"class": r"ce(_\d)?", "mask": r"mask(_\d)?", "dice": r"dice(_\d)?"}
    for name, value in found.items():
        pattern = f"{base}/loss_unweighted/loss_{theirs.get(name, name)}"
        expected = sum(tensor for key, tensor in record.items() if re.fullmatch(pattern, key))
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
        total = total + weights[name] * value
    torch.testing.assert_close(total, record[f"{base}/loss_total"], atol=1e-5, rtol=1e-6)
    total.backward()
    links = layouts_of(reference)[1].links(name for name, _ in reference.named_parameters())
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    compared = 0
    for link in links:
        key = f"{base}/grad/{link.theirs[0]}"
        if key in record:
            expected = link.read({link.theirs[0]: record[key]})
            assert (gradients[link.ours] - expected).norm() <= 1e-4 * expected.norm()
            compared += 1
    assert compared > 20
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    torch.testing.assert_close(norm, record[f"{base}/grad_norm_total"], rtol=1e-4, atol=0)


def run_terms_without(inputs: LossInputs) -> dict[str, torch.Tensor]:
    """The three terms of the base stage."""
    terms = {what: SetLoss(what, matching=Matching(points=128)) for what in ("class", "mask", "dice")}
    return {name: term(inputs, term.counts(inputs.batch)) for name, term in terms.items()}


def test_clusters_are_the_authors():
    """Assignments, centres and hulls; among them fewer pixels than clusters, and clusters that were filled again."""
    record = numbers("train")
    checked = 0
    for base in ("ss_pure", "adapt/ss"):
        features = F.normalize(record[f"{base}/mask_features"], dim=1)
        for i, feature in enumerate(features):
            name = f"{base}/image{i}"
            if record[f"{name}/skipped"]:
                continue
            inside = record[f"{name}/alpha_at_feature_size"] > 0
            if base == "ss_pure":
                assert torch.equal(on_grid(record[f"{name}/alpha_full"][None] > 0, inside.shape)[0], inside)
            rows = iter(record[f"{name}/refill_rows"].tolist())
            labels, centres = kmeans(feature[:, inside].T, record[f"{name}/init_idx"], lambda rows=rows: next(rows))
            drawn = torch.full(inside.shape, -1)
            drawn[inside] = labels
            assert torch.equal(drawn, record[f"{name}/labels"]) and next(rows, None) is None
            torch.testing.assert_close(centres, record[f"{name}/centers"], atol=1e-6, rtol=1e-6)
            hulls = [solidity((drawn == k).numpy()) if (drawn == k).any() else 0.0 for k in range(len(centres))]
            np.testing.assert_allclose(hulls, record[f"{name}/hull"].numpy(), atol=1e-6)
            checked += 1
    assert checked == 9


def test_self_supervised_terms_are_the_authors(monkeypatch):
    """Seven pictures: ordinary, too small, empty, scattered, and one of a single cluster, which is not counted."""
    record = numbers("train")
    features = record["ss_pure/mask_features"].clone().requires_grad_()
    inside = torch.stack([record[f"ss_pure/image{i}/alpha_full"] > 0 for i in range(7)])
    outputs = losses_inputs(features, inside)
    for term, name in ((CentroidRepulsion(), "centroid"), (PixelAffinity(), "affinity")):
        rows = RecordedRows(record, "ss_pure", [0, 1, 4, 5, 6])
        monkeypatch.setattr(losses, "Rows", lambda _seed, rows=rows: rows)
        value = term(outputs(), {"batches": torch.tensor(1.0)})
        torch.testing.assert_close(value, record[f"ss_pure/loss_{name}"], atol=1e-6, rtol=1e-6)
        (gradient,) = torch.autograd.grad(value, features)
        expected = record[f"ss_pure/grad_{name}"]
        assert (gradient - expected).norm() <= 1e-4 * expected.norm()


def losses_inputs(features: torch.Tensor, inside: torch.Tensor):
    """Function that makes loss inputs of features alone."""
    from partseg.systems.ops.network import OpsOutputs

    images = torch.zeros(len(features), 3, *inside.shape[1:], dtype=torch.uint8)
    batch = batch_of(images, numbers_of_parts=(0,) * len(features))
    return lambda: LossInputs(OpsOutputs((), (), features, inside), batch)


def test_both_gradients_point_the_right_way():
    """A step along affinity's gradient brings pixels to their centroids, along repulsion's parts the centroids."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(4, 8, generator=generator), dim=1)
    start = F.normalize(centres.repeat_interleave(20, 0) + 0.2 * torch.randn(80, 8, generator=generator), dim=1)

    def clusters(points):
        return [Cluster(own, own.mean(0)) for own in points.split(20)]

    def spread(points):
        return sum((c.pixels - c.centroid).norm(dim=1).mean() for c in clusters(points)).item()

    def distance(points):
        return torch.cdist(*[torch.stack([c.centroid for c in clusters(points)])] * 2).sum().item()

    for form in ("code", "paper"):
        for term, measure, sign in (
            (PixelAffinity(form=form), spread, -1),
            (CentroidRepulsion(form=form), distance, 1),
        ):
            points = start.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(term._value(clusters(points)), points)
            moved = start - 0.05 * gradient / gradient.norm()
            assert sign * (measure(moved) - measure(start)) > 0, (type(term).__name__, form)


def test_separated_blobs_are_the_clusters():
    generator = torch.Generator().manual_seed(1)
    centres = 10 * torch.eye(10)
    points = centres.repeat_interleave(30, 0) + 0.1 * torch.randn(300, 10, generator=generator)
    labels, found = kmeans(points, torch.arange(10) * 30, lambda: 0)
    assert torch.equal(labels, torch.arange(10).repeat_interleave(30))
    torch.testing.assert_close(found, centres, atol=0.1, rtol=0)


def test_solidity_is_the_area_over_its_hull():
    """Against every pixel's centre tested against the hull, which is what scikit-image does."""
    from scipy.spatial import Delaunay

    rng = np.random.default_rng(3)
    for share in (0.02, 0.3, 0.9):
        mask = rng.random((17, 23)) < share
        around = np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
        hull = Delaunay((np.argwhere(mask)[:, None] + around).reshape(-1, 2))
        grid = np.stack(np.mgrid[:17, :23], -1).reshape(-1, 2)
        assert solidity(mask) == pytest.approx(mask.sum() / (hull.find_simplex(grid, tol=1e-9) >= 0).sum())
    assert solidity(np.eye(1, dtype=bool)) == 1 and solidity(np.ones((1, 9), bool)) == 1


def test_terms_of_micro_batches_add_up(monkeypatch):
    """Two micro-batches of one picture give the set losses of both, whatever number of parts each has."""
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    whole = batch_of(images, numbers_of_parts=(1, 3))
    model = tiny()
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.3))  # the same points for all
    for what in ("class", "mask", "dice"):
        term = SetLoss(what, matching=Matching(points=32))
        counts = term.counts(whole)
        expected = term(LossInputs(model(whole), whole), counts)
        parts = []
        for i, number in enumerate((1, 3)):
            half = batch_of(images[i : i + 1], numbers_of_parts=(number,))
            parts.append(term(LossInputs(model(half), half), counts))
        torch.testing.assert_close(sum(parts), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_draws_the_same_points_again_and_leaves_torch_alone():
    batch = batch_of(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), numbers_of_parts=(2, 2))
    model = tiny()
    torch.manual_seed(5)
    first = run_terms(LossInputs(model(batch), batch), 32)
    after = torch.rand(1)
    torch.manual_seed(6)
    second = run_terms(LossInputs(model(batch), batch), 32)
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


def test_a_batch_without_parts_trains_the_features_only():
    batch = batch_of(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), numbers_of_parts=(0, 0))
    found = run_terms(LossInputs(tiny()(batch), batch), 32)
    assert found["class"] == found["mask"] == found["dice"] == 0 and found["affinity"] > 0


# Bad input ------------------------------------------------------------------------------------------------------------
def predict(model: Ops, *given: torch.Tensor | None):
    images = torch.zeros(len(given), 3, 64, 96, dtype=torch.uint8)
    return model.eval().predict(images, OpsPrompts(WORDS), sizes=[(40, 60)] * len(given), given=list(given))


@torch.no_grad()
def test_object_masks_that_are_empty_full_or_of_another_size():
    nothing = torch.full((40, 60), BACKGROUND_LABEL, dtype=torch.int32)
    two = nothing.clone()
    two[:20], two[20:, 30:] = 0, 1
    empty, everything, both = predict(tiny(), nothing, torch.zeros_like(nothing), two)
    assert len(empty) == 0 and empty.masks().shape == (0, 40, 60)
    assert len(everything.of_level("object")) == 1 and len(both.of_level("object")) == 2
    owners = both.masks()[both.parent]
    assert not (both.masks() & ~owners)[both.level == 0].any(), "a part lies within its object"
    with pytest.raises(ValueError, match=r"object map is \(20, 60\).*picture is \(40, 60\)"):
        predict(tiny(), nothing[:20])
    with pytest.raises(ValueError, match="give an object map for every picture"):
        predict(tiny(), None)


@torch.no_grad()
def test_no_segment_above_the_threshold_is_no_segment():
    (found,) = predict(tiny(min_score=1.0), torch.zeros(40, 60, dtype=torch.int32))
    assert len(found.of_level("object_part")) == 0 and len(found) == 1


@torch.no_grad()
def test_without_objects_the_whole_picture_is_cut():
    model = tiny(aware_before=False, aware_after=False)
    assert not model.input.needs_object
    (found,) = predict(model, None)
    assert found.levels == ("object_part",) and len(found) and (found.parent == -1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ops(TINY, stem="zeros"), r"model.stem='zeros' is not one of \['rgb', 'random'\]"),
        (lambda: Ops(TINY, top=0), "model.top=0"),
        (lambda: SetLoss("area"), "what='area' is not one of"),
        (lambda: CentroidRepulsion(form="ours"), "form='ours' is not one of"),
        (lambda: PixelAffinity(clusters=1), "clusters=1 must be at least 2"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


if __name__ == "__main__":
    save_file(golden(), str(GOLDEN))
