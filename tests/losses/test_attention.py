"""Attention control against loops that follow eq. 6 to 9 word by word, in float64, for our and the authors' choices.

The literal versions build the whole attention of every prompt and walk over images, objects, classes and cells.
"""

import math
from collections import namedtuple

import pytest
import torch

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.losses.criterion import Criterion
from partseg.systems.clipseg.decoder import DecoderAttention
from partseg.systems.part_clipseg.attention_maps import MaskAttention, downsample_masks, masked_attention, smooth
from partseg.systems.part_clipseg.losses import Enhancement, Separation
from partseg.systems.part_clipseg.network import PartClipSegOutputs

Options = namedtuple("Options", "maps separation enhancement")

DEFAULT = Options(maps={}, separation={}, enhancement={})
OFFICIAL = Options(
    maps={"mask_downsample": "nearest", "normalise_by": "tokens", "halve_sum": True},
    separation={
        "strict": True,
        "smoothing_sigma": math.sqrt(0.5),
        "surrogate": "none",
        "parts_of": "image",
        "divide_by_batch": True,
    },
    enhancement={
        "smoothing_sigma": math.sqrt(0.5),
        "maximum_over": "image",
        "parts_of": "image",
        "divide_by_batch": True,
    },
)


def _attention(layer, image, prompt):
    """Self-attention of one prompt, mean over heads, CLS row and column removed: T x T."""
    query, key = layer.query[image, prompt], layer.key[image, prompt]
    heads = [torch.softmax(query[h] @ key[h].T * layer.scale, dim=-1) for h in range(query.shape[0])]
    return torch.stack(heads).mean(0)[1:, 1:]


def _cell_weights(mask, grid, mode):
    """Share of each cell that the mask covers, or whether its first pixel is in the mask."""
    height, width = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
    weights = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            cell = mask[row * height : (row + 1) * height, column * width : (column + 1) * width]
            weights.append(cell.double().mean() if mode == "area" else cell[0, 0].double())
    return torch.stack(weights)


def _smooth(image, sigma):
    rows, columns = image.shape
    kernel = {(dy, dx): math.exp(-(dy**2 + dx**2) / (2 * sigma**2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    total = sum(kernel.values())
    reflect = lambda i, n: -i if i < 0 else (2 * n - 2 - i if i >= n else i)  # noqa: E731
    out = [
        [
            sum(w / total * image[reflect(y + dy, rows), reflect(x + dx, columns)] for (dy, dx), w in kernel.items())
            for x in range(columns)
        ]
        for y in range(rows)
    ]
    return torch.stack([torch.stack(row) for row in out])


def _class_map(outputs, batch, vocabulary, image, c, *, layers, mode, normalise_by, halve):
    """A_c (eq. 6) and the cells of its mask."""
    grid = outputs.attention[layers[0]].grid
    weights = _cell_weights(batch.object_part[image] == c, grid, mode)
    num_parts = vocabulary.num_parts
    total = torch.zeros(len(weights), dtype=torch.float64)
    for layer in layers:
        of_object = _attention(outputs.attention[layer], image, num_parts + int(vocabulary.object_of[c]))
        of_part = _attention(outputs.attention[layer], image, int(vocabulary.part_of[c]))
        for cell, weight in enumerate(weights):
            total = total + weight * (of_object[cell] + of_part[cell]) / len(layers)
    denominator = weights.sum() if normalise_by == "mask" else torch.tensor(float(len(weights)))
    result = total / denominator if denominator > 0 else total
    return (result / 2 if halve else result).view(grid), weights


def _expected(outputs, batch, vocabulary, options, *, layers=(2,), gamma=0.3, temperature=0.1):
    """Separation, its differentiable surrogate, and enhancement."""
    official = options is OFFICIAL
    sigma = math.sqrt(0.5) if official else 0.5
    mode = "nearest" if official else "area"
    separations, surrogates, enhancements = [], [], []
    zero = torch.zeros((), dtype=torch.float64)
    for image in range(len(batch)):
        in_image = [c for c in batch.object_part[image].unique().tolist() if c != IGNORE_LABEL]
        for o in [o for o in batch.object[image].unique().tolist() if o < BACKGROUND_LABEL]:
            classes = in_image if official else [c for c in in_image if vocabulary.object_of[c] == o]
            if not classes:
                continue
            grid = outputs.attention[layers[0]].grid
            inside = _cell_weights(batch.object[image] == o, grid, mode) > 0
            on, soft, highest = [], [], []
            for c in classes:
                attention, weights = _class_map(
                    outputs, batch, vocabulary, image, c,
                    layers=layers, mode=mode, normalise_by="tokens" if official else "mask", halve=official,
                )  # fmt: skip
                normalised = (attention - attention.min()) / (attention.max() - attention.min() + 1e-9)
                normalised = _smooth(normalised, sigma).flatten()
                on.append((normalised > gamma if official else normalised >= gamma) & inside)
                soft.append(torch.sigmoid((normalised - gamma) / temperature))
                smoothed = _smooth(attention, sigma).flatten()
                if official:
                    highest.append(smoothed.max())
                else:
                    highest.append(smoothed[weights > 0].max() if (weights > 0).any() else zero)
            number = torch.stack(on).sum(0)
            separations.append((number > 1).sum().double() / max(1, int((number >= 1).sum())))
            surrogates.append(_soft_ratio(soft, inside))
            enhancements.append(1 - torch.stack(highest).min())
    divisor = max(1, len(separations)) * (len(batch) if official else 1)
    return tuple(sum(values, zero) / divisor for values in (separations, surrogates, enhancements))


def _soft_ratio(soft, inside):
    """Expected cells with two or more parts on, by expected cells with one or more; parts are on independently."""
    two, one = [], []
    for cell in torch.nonzero(inside)[:, 0].tolist():
        on = [s[cell] for s in soft]
        none = math.prod([1 - s for s in on])
        exactly_one = sum(s * math.prod([1 - t for j, t in enumerate(on) if j != i]) for i, s in enumerate(on))
        two.append(1 - none - exactly_one)
        one.append(1 - none)
    return torch.stack(two).sum() / torch.stack(one).sum() if two else torch.zeros((), dtype=torch.float64)


def _criterion(options, *, layers=(2,), only=None, weight=1.0, **separation):
    maps = MaskAttention(layers=layers, **options.maps)
    terms = {
        "separation": {"weight": weight, "term": Separation(maps=maps, **{**options.separation, **separation})},
        "enhancement": {"weight": weight, "term": Enhancement(maps=maps, **options.enhancement)},
    }
    return Criterion(terms={name: terms[name] for name in (only or terms)})


@pytest.mark.parametrize("options", [DEFAULT, OFFICIAL], ids=["default", "official"])
def test_attention_losses_equal_the_literal_loops(batch, make_outputs, vocabulary, gradients, options):
    outputs = make_outputs(batch)
    separation, surrogate, enhancement = _expected(outputs, batch, vocabulary, options)
    expected = {"separation": (separation, surrogate), "enhancement": (enhancement, enhancement)}
    for name, (value, slope) in expected.items():
        criterion = _criterion(options, only=[name])
        loss, values = criterion(outputs, batch, criterion.counts(batch))
        torch.testing.assert_close(values[name], value.detach(), rtol=1e-9, atol=1e-12)
        want = gradients(slope, outputs)
        if options is OFFICIAL and name == "separation":
            want = {leaf: torch.zeros_like(gradient) for leaf, gradient in want.items()}
        torch.testing.assert_close(gradients(loss, outputs), want, rtol=1e-6, atol=1e-10)


def test_random_cases_are_not_trivial(make_batch, make_outputs, vocabulary):
    """The comparison above means something: values lie inside their range and gradients are not zero."""
    batch = make_batch("several_objects")
    separation, _, enhancement = _expected(make_outputs(batch), batch, vocabulary, DEFAULT)
    assert 0.05 < separation < 0.95
    assert 0.05 < enhancement < 0.95


def test_several_layers_are_averaged(make_batch, make_outputs, vocabulary):
    batch = make_batch("one_image")
    outputs = make_outputs(batch)
    separation, _, enhancement = _expected(outputs, batch, vocabulary, DEFAULT, layers=(1, 2))
    criterion = _criterion(DEFAULT, layers=(2, 1))
    assert criterion.reads == {"attention.1", "attention.2"}
    _, values = criterion(outputs, batch, criterion.counts(batch))
    torch.testing.assert_close(values["separation"], separation, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(values["enhancement"], enhancement.detach(), rtol=1e-9, atol=1e-12)


def test_both_terms_share_one_computation(make_batch, make_outputs, vocabulary, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "partseg.systems.part_clipseg.losses.masked_attention",
        lambda *a, **k: calls.append(1) or masked_attention(*a, **k),
    )
    batch = make_batch("several_objects")
    criterion = _criterion(DEFAULT)
    criterion(make_outputs(batch), batch, criterion.counts(batch))
    assert len(calls) == 1


def test_a_part_smaller_than_a_cell_counts_by_area_and_is_lost_by_nearest(make_batch, make_outputs, vocabulary):
    """With nearest masks the enhancement of an object with a vanished part is exactly 1 and moves nothing."""
    batch = make_batch("vanishing_part")
    only_first = type(batch)(batch.images[:1], batch.object_part[:1], batch.object[:1], batch.names[:1], vocabulary)
    only_first.object_part[only_first.object == 1] = IGNORE_LABEL  # keep the dog, whose leg is one pixel
    outputs = make_outputs(only_first)
    for mode, dead in (("nearest", True), ("area", False)):
        criterion = _criterion(Options({"mask_downsample": mode}, {}, {}), only=["enhancement"])
        loss, _ = criterion(outputs, only_first, criterion.counts(only_first))
        gradient = torch.autograd.grad(loss, outputs.attention[2].query, retain_graph=True)[0]
        assert (loss.item() == 1.0) is dead
        assert (gradient.abs().sum() == 0) == dead


def test_softmin_lies_between_the_minimum_and_the_mean(make_batch, make_outputs, vocabulary):
    batch = make_batch("one_image")
    outputs = make_outputs(batch)

    def value(**options):
        criterion = _criterion(Options({}, {}, options), only=["enhancement"])
        return criterion(outputs, batch, criterion.counts(batch))[0].item()

    hard = value(reduction="min")
    assert value(reduction="softmin", temperature=1e-4) == pytest.approx(hard, abs=1e-3)
    assert value(reduction="softmin", temperature=10.0) < value(reduction="softmin", temperature=0.05) < hard


def test_surrogate_changes_the_gradient_and_not_the_value(make_batch, make_outputs, vocabulary, gradients):
    batch = make_batch("several_objects")
    outputs = make_outputs(batch)
    losses, slopes = {}, {}
    for surrogate in ("sigmoid", "none"):
        criterion = _criterion(DEFAULT, only=["separation"], surrogate=surrogate)
        losses[surrogate], _ = criterion(outputs, batch, criterion.counts(batch))
        slopes[surrogate] = gradients(losses[surrogate], outputs)["query2"].abs().sum()
    assert losses["sigmoid"].item() == pytest.approx(losses["none"].item(), abs=1e-12)
    assert slopes["none"] == 0
    assert slopes["sigmoid"] > 0


@pytest.mark.parametrize("name", ["separation", "enhancement"])
def test_following_the_gradient_lowers_the_value(make_batch, make_outputs, vocabulary, name):
    """The overlap itself falls, not only its surrogate; the weakest part's attention rises."""
    batch = make_batch("several_objects")
    outputs = make_outputs(batch)
    criterion = _criterion(DEFAULT, only=[name])
    counts = criterion.counts(batch)
    optimizer = torch.optim.Adam([outputs.attention[2].query, outputs.attention[2].key], lr=0.05)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, values = criterion(outputs, batch, counts)
        loss.backward()
        optimizer.step()
        history.append(values[name].item())
    assert history[-1] < 0.6 * history[0]


def test_smoothing_keeps_constants_and_official_sigma_is_its_kernel():
    assert torch.allclose(smooth(torch.full((1, 4, 5), 3.0), 0.5), torch.tensor(3.0))
    point = torch.zeros(1, 5, 5, dtype=torch.float64)
    point[0, 2, 2] = 1
    out = smooth(point, 0.7071067811865476)[0]
    assert out[2, 3] / out[2, 2] == pytest.approx(math.exp(-1))  # exp(-(x / 2 sigma)^2), sigma 0.5, x 1


@pytest.mark.parametrize("mode", ["area", "nearest"])
def test_downsampled_masks_at_paper_size(mode):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 352, 352), generator=generator, dtype=torch.int32)
    labels[:, ::7] = IGNORE_LABEL
    masks = downsample_masks(labels, 3, grid=(22, 22), mode=mode)
    for c in range(3):
        expected = torch.stack([_cell_weights(image == c, (22, 22), mode) for image in labels])
        torch.testing.assert_close(masks[:, c], expected)


def test_masks_of_sizes_that_do_not_divide_cover_every_pixel():
    labels = torch.zeros(1, 10, 7, dtype=torch.int32)
    masks = downsample_masks(labels, 2, grid=(3, 2), mode="area")
    assert torch.equal(masks[0, 0], torch.ones(6, dtype=torch.float64))
    assert masks[0, 1].sum() == 0


def test_missing_layers_and_foreign_models_are_refused(make_batch, make_outputs, vocabulary):
    batch = make_batch("one_image")
    outputs = make_outputs(batch)
    criterion = _criterion(DEFAULT, layers=(0,))
    counts = criterion.counts(batch)
    with pytest.raises(ValueError, match=r"gave attention of decoder layers \[1, 2\], not of \[0\]"):
        criterion(outputs, batch, counts)
    layer = outputs.attention[2]
    fewer = DecoderAttention(layer.query[:, :-2], layer.key[:, :-2], layer.scale, layer.grid)
    with pytest.raises(ValueError, match="criterion=clipseg"):
        criterion(PartClipSegOutputs(object_part=outputs.object_part, attention={0: fewer}), batch, counts)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: MaskAttention(layers=()), "layers"),
        (lambda: MaskAttention(mask_downsample="max"), "mask_downsample"),
        (lambda: MaskAttention(normalise_by="area"), "normalise_by"),
        (lambda: Separation(maps=MaskAttention(), surrogate="hard"), "surrogate"),
        (lambda: Separation(maps=MaskAttention(), parts_of="batch"), "parts_of"),
        (lambda: Enhancement(maps=MaskAttention(), maximum_over="all"), "maximum_over"),
        (lambda: Enhancement(maps=MaskAttention(), reduction="mean"), "reduction"),
    ],
)
def test_wrong_options_name_the_key(build, word):
    with pytest.raises(ValueError, match=word):
        build()
