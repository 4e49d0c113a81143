"""Each mask loss against a loop over pixels that follows eq. 5 word by word, in float64, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.losses.criterion import Criterion
from partseg.losses.pixel import ObjectBCE, ObjectPartBCE, PartBCE, index_bce
from partseg.structures import Outputs


def _bce(logits, positive, weight):
    """BCE of one pixel, element by element."""
    target = torch.zeros_like(logits)
    target[positive] = 1
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")


def _mean(elements, zero):
    return torch.cat(elements).mean() if elements else zero


def _pixels(batch):
    for b in range(len(batch)):
        for y in range(batch.object.shape[1]):
            for x in range(batch.object.shape[2]):
                yield b, y, x, int(batch.object_part[b, y, x]), int(batch.object[b, y, x])


def literal_mask_losses(outputs, batch, vocabulary, *, needs_object, both=False):
    """object-part, object and part loss of eq. 5; `both`: labels on background have two targets."""
    num_classes, num_objects = len(vocabulary), vocabulary.num_objects
    class_weight = torch.ones(num_classes + 1, dtype=torch.float64)
    object_weight = torch.ones(num_objects + 1, dtype=torch.float64)
    class_weight[-1] = object_weight[-1] = 0.05
    labelled, background, objects, parts = [], [], [], []
    for b, y, x, part, obj in _pixels(batch):
        logits = outputs.object_part[b, :, y, x]
        two = both and part != IGNORE_LABEL and obj == BACKGROUND_LABEL
        if part != IGNORE_LABEL:
            labelled.append(_bce(logits, [part, num_classes] if two else part, class_weight))
            parts.append(_bce(outputs.part[b, :, y, x], int(vocabulary.part_of[part]), None))
        if obj == BACKGROUND_LABEL and (two or part == IGNORE_LABEL):
            background.append(_bce(logits, [part, num_classes] if two else num_classes, class_weight))
        if obj != IGNORE_LABEL:
            objects.append(_bce(outputs.object[b, :, y, x], min(obj, num_objects), object_weight))
    zero = outputs.object_part.sum() * 0
    if needs_object and not (batch.object < BACKGROUND_LABEL).any():
        background = []
    return {
        "object_part": _mean(labelled, zero) + _mean(background, zero),
        "object": _mean(objects, zero),
        "part": _mean(parts, zero),
    }


@pytest.mark.parametrize("official", [False, True])
def test_mask_losses_equal_the_literal_loops(batch, make_outputs, vocabulary, gradients, official):
    outputs = make_outputs(batch)
    expected = literal_mask_losses(outputs, batch, vocabulary, needs_object=official, both=official)
    targets = "both" if official else "label"
    terms = {
        "object_part": ObjectPartBCE(background_needs_object=official, labels_on_background=targets),
        "object": ObjectBCE(),
        "part": PartBCE(),
    }
    for name, term in terms.items():
        criterion = Criterion(terms={name: {"weight": 2.0, "term": term}})
        loss, values = criterion(outputs, batch, criterion.counts(batch))
        torch.testing.assert_close(values[name], expected[name].detach(), rtol=1e-12, atol=1e-14)
        want = gradients(2 * expected[name], outputs)
        torch.testing.assert_close(gradients(loss, outputs), want, rtol=1e-10, atol=1e-14)


def test_labels_on_background_have_one_target_unless_asked(make_batch, make_outputs, vocabulary):
    batch = make_batch("label_on_background")
    outputs = make_outputs(batch)
    ours, authors = (
        literal_mask_losses(outputs, batch, vocabulary, needs_object=False, both=both)["object_part"].item()
        for both in (False, True)
    )
    assert abs(ours - authors) > 1e-3
    with pytest.raises(ValueError, match="'neither'; allowed are 'label' and 'both'"):
        ObjectPartBCE(labels_on_background="neither")


def test_authors_clipseg_is_one_mean_over_all_pixels(batch, make_outputs, vocabulary, gradients):
    outputs = make_outputs(batch)
    weight = torch.ones(len(vocabulary) + 1, dtype=torch.float64)
    weight[-1] = 0.05
    elements = [
        _bce(outputs.object_part[b, :, y, x], part if part != IGNORE_LABEL else len(vocabulary), weight)
        for b, y, x, part, obj in _pixels(batch)
        if obj != IGNORE_LABEL
    ]
    expected = _mean(elements, outputs.object_part.sum() * 0)
    term = ObjectPartBCE(unlabelled_as_background=True, joint_mean=True)
    criterion = Criterion(terms={"object_part": {"weight": 1.0, "term": term}})
    loss, _ = criterion(outputs, batch, criterion.counts(batch))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    want, have = gradients(expected, outputs)["object_part"], gradients(loss, outputs)["object_part"]
    torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-14)


def test_renormalised_mean_divides_by_the_weights(make_batch, make_outputs, vocabulary):
    batch = make_batch("fills_the_frame")
    outputs = make_outputs(batch)
    values = {}
    for renormalise in (False, True):
        term = ObjectPartBCE(background_weight=0.05, renormalise=renormalise)
        criterion = Criterion(terms={"object_part": {"weight": 1.0, "term": term}})
        values[renormalise] = criterion(outputs, batch, criterion.counts(batch))[0]
    elements = len(vocabulary) + 1
    torch.testing.assert_close(values[True] * (elements - 0.95), values[False] * elements)


def test_index_bce_in_chunks_passes_gradcheck(monkeypatch):
    monkeypatch.setattr("partseg.losses.pixel._CHUNK", 50)  # two channels of the 24 pixels at a time
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(0, 5, (2, 3, 4), generator=generator)
    pixel_weight = torch.rand(2, 3, 4, dtype=torch.float64, generator=generator)
    channel_weight = torch.rand(5, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(
        lambda x: index_bce(x, target, pixel_weight=pixel_weight, channel_weight=channel_weight), logits
    )


def test_bfloat16_logits_are_summed_in_float32(make_batch, make_outputs, vocabulary):
    batch = make_batch("several_objects")
    exact = make_outputs(batch).object_part.detach()
    logits = exact.bfloat16().requires_grad_()
    criterion = Criterion(terms={"object_part": {"weight": 1.0, "term": ObjectPartBCE()}})
    counts = criterion.counts(batch)
    loss, _ = criterion(Outputs(object_part=logits), batch, counts)
    rounded, _ = criterion(Outputs(object_part=logits.detach().double()), batch, counts)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), rounded, rtol=1e-6, atol=0)
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


def test_no_tensor_of_logit_size_is_saved_or_made_besides_the_gradient(vocabulary):
    """Memory of a call at 8 images: logits plus gradient, and less than one more copy of a single image's logits."""
    num_classes, size = 40, 64
    logits = torch.randn(8, num_classes, size, size, requires_grad=True)
    target = torch.randint(0, num_classes, (8, size, size))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        loss = index_bce(logits, target, pixel_weight=torch.ones(8, size, size), channel_weight=torch.ones(num_classes))
    copies = [t for t in saved if t.numel() >= logits.numel() and t.data_ptr() != logits.data_ptr()]
    assert not copies
    loss.backward()


def test_wrong_label_size_names_the_key(make_batch, make_outputs, vocabulary):
    batch = make_batch("one_image")
    outputs = Outputs(object_part=torch.zeros(1, len(vocabulary) + 1, 8, 8))
    criterion = Criterion(terms={"object_part": {"weight": 1.0, "term": ObjectPartBCE()}})
    with pytest.raises(ValueError, match=r"augmentation\.size"):
        criterion(outputs, batch, criterion.counts(batch))


@pytest.mark.parametrize(("level", "term"), [("object", ObjectBCE()), ("part", PartBCE())])
def test_a_model_without_the_head_is_refused(make_batch, vocabulary, level, term):
    batch = make_batch("one_image")
    outputs = Outputs(object_part=torch.zeros(1, len(vocabulary) + 1, 16, 20))
    criterion = Criterion(terms={level: {"weight": 1.0, "term": term}})
    with pytest.raises(ValueError, match=f"no {level} logits"):
        criterion(outputs, batch, criterion.counts(batch))
