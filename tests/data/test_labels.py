"""Label files and annotations as maps and instances: parents, flips, hidden classes, windows, boxes without masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data.labels import LabelReader, instances_of_maps
from partseg.geometry import Geometry
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Annotation, Record
from partseg.vocabulary.names import Vocabulary

NAMES = Vocabulary(
    pairs=(("robot", "left arm"), ("robot", "right arm"), ("robot", "head"), ("cat", "head")),
    label_objects=("cat", "chair", "robot"),
    unseen_objects=("cat",),
)
CAT, CHAIR, ROBOT = range(3)  # positions in label_objects
LEFT, RIGHT, HEAD, CAT_HEAD = range(4)
HEIGHT, WIDTH = 10, 12
WHOLE = Geometry((0, 0, WIDTH, HEIGHT))
PHOTO = Image.new("RGB", (WIDTH, HEIGHT))

# level, label, box, parent, has a mask
THINGS = [
    ("object", ROBOT, (1, 1, 9, 9), None, True),
    ("object_part", LEFT, (1, 1, 3, 5), 0, True),
    ("object", CAT, (6, 5, 12, 10), None, True),
    ("object_part", CAT_HEAD, (7, 6, 9, 8), 2, True),
    ("object_part", HEAD, (4, 1, 6, 3), 0, True),
    ("object", CHAIR, (0, 8, 2, 10), None, True),
    ("object", ROBOT, (9, 0, 12, 4), None, False),
    ("object_part", HEAD, (10, 0, 11, 1), 6, False),
]
LEVEL = {"object_part": 0, "object": 1}


@pytest.fixture
def record(rectangle):
    annotations = [
        Annotation(level, label, rectangle(*box) if masked else None, tuple(map(float, box)), parent)
        for level, label, box, parent, masked in THINGS
    ]
    return Record("a", "a.jpg", annotations=tuple(annotations))


def annotated(record, geometry=WHOLE, vocabulary=NAMES):
    reader = LabelReader(NAMES, vocabulary)
    return reader.instances(record, PHOTO, geometry, reader.maps(record, PHOTO, geometry), "annotated")


def of_classes(record, geometry=WHOLE, vocabulary=NAMES):
    reader = LabelReader(NAMES, vocabulary)
    return reader.instances(record, PHOTO, geometry, reader.maps(record, PHOTO, geometry), "classes")


def rows(instances):
    """(level, label, box, parent) of each."""
    columns = (instances.level, instances.label, instances.boxes, instances.parent)
    return [
        (level, label, tuple(box), parent) for level, label, box, parent in zip(*(each.tolist() for each in columns))
    ]


def test_annotated_instances_are_the_annotations(record):
    found = annotated(record)
    parents = [-1 if parent is None else parent for *_, parent, _ in THINGS]
    expected = [(LEVEL[level], label, box, p) for (level, label, box, *_), p in zip(THINGS, parents)]
    assert rows(found) == expected
    assert found.has_mask.tolist() == [masked for *_, masked in THINGS] and found.counted.all()
    assert found.masks.shape == (len(THINGS), HEIGHT, WIDTH)
    for mask, (_, _, (left, top, right, bottom), _, masked) in zip(found.masks, THINGS):
        inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        inside[top:bottom, left:right] = masked
        assert torch.equal(mask, inside)


def test_hidden_classes_go_and_parents_are_renumbered(record):
    """The seen vocabulary has neither the cat nor the chair, which has no parts."""
    seen = NAMES.seen_subset()
    assert seen.label_objects == ("robot",) and seen.pairs == NAMES.pairs[:3]
    assert rows(annotated(record, vocabulary=seen)) == [
        (1, 0, (1, 1, 9, 9), -1),
        (0, 0, (1, 1, 3, 5), 0),
        (0, 2, (4, 1, 6, 3), 0),
        (1, 0, (9, 0, 12, 4), -1),
        (0, 2, (10, 0, 11, 1), 3),
    ]


def test_other_vocabularies_have_their_own_numbers(record):
    other = Vocabulary(pairs=NAMES.pairs[::-1], label_objects=("robot", "stool", "cat"))
    found = annotated(record, vocabulary=other)
    assert [(level, label) for level, label, *_ in rows(found)] == [
        (1, 0),
        (0, 3),
        (1, 2),
        (0, 0),
        (0, 1),
        (1, 0),
        (0, 1),
    ]


def test_a_flip_turns_masks_boxes_and_sides(record):
    found, flipped = annotated(record), annotated(record, Geometry((0, 0, WIDTH, HEIGHT), flip=True))
    assert torch.equal(flipped.masks, found.masks.flip(-1))
    assert flipped.boxes[:, 0].tolist() == (WIDTH - found.boxes[:, 2]).tolist()
    assert torch.equal(flipped.boxes[:, [1, 3]], found.boxes[:, [1, 3]]) and torch.equal(flipped.parent, found.parent)
    assert found.label.tolist() == [ROBOT, LEFT, CAT, CAT_HEAD, HEAD, CHAIR, ROBOT, HEAD]
    assert flipped.label.tolist() == [ROBOT, RIGHT, CAT, CAT_HEAD, HEAD, CHAIR, ROBOT, HEAD]
    of_maps = of_classes(record, Geometry((0, 0, WIDTH, HEIGHT), flip=True))
    assert [label for level, label, *_ in rows(of_maps) if level == 0] == [RIGHT, HEAD, CAT_HEAD]


def test_a_window_leaves_out_what_lies_outside_and_cuts_the_rest(record):
    """A window of 6 x 6 at (6, 4): of the first robot a corner, of its parts nothing, all of the cat's head."""
    window = Geometry((0, 0, WIDTH, HEIGHT), canvas=(6, 6), offset=(-4, -6))
    found = annotated(record, window)
    assert rows(found) == [(1, ROBOT, (0, 0, 3, 5), -1), (1, CAT, (0, 1, 6, 6), -1), (0, CAT_HEAD, (1, 2, 3, 4), 1)]
    assert found.masks.shape == (3, 6, 6) and int(found.masks[0].sum()) == 15


def test_a_part_whose_object_is_outside_has_no_parent():
    robot = Annotation("object", ROBOT, None, (0.0, 6.0, 3.0, 9.0))
    head = Annotation("object_part", HEAD, None, (10.0, 0.0, 11.0, 1.0), parent=0)
    record = Record("a", "a.jpg", annotations=(robot, head))
    assert rows(annotated(record, Geometry((8, 0, 12, 4)))) == [(0, HEAD, (2, 0, 3, 1), -1)]


def test_boxes_without_a_mask_follow_the_geometry(record):
    twice = Geometry((0, 0, WIDTH, HEIGHT), ((20, 24),), flip=True, canvas=(30, 30), offset=(5, 3))
    found = annotated(record, twice).select(~annotated(record, twice).has_mask)
    assert rows(found) == [(1, ROBOT, (3, 5, 9, 13), -1), (0, HEAD, (5, 5, 7, 7), 0)]
    assert not found.masks.any()


def test_maps_of_annotations(record):
    """Parts are painted in order; an object's pixels are those of its instances, part labels belong to their owner."""
    maps = LabelReader(NAMES, NAMES).maps(record, PHOTO, WHOLE)
    assert maps.object_part.dtype == maps.object.dtype == np.int32
    robot, cat = NAMES.object_id("robot"), NAMES.object_id("cat")
    assert maps.object[2, 2] == robot and maps.object_part[2, 2] == LEFT
    assert maps.object[7, 7] == cat and maps.object_part[7, 7] == CAT_HEAD
    assert maps.object[9, 1] == BACKGROUND_LABEL and maps.object[0, 5] == BACKGROUND_LABEL  # a chair, and nothing
    assert maps.object_part[0, 10] == IGNORE_LABEL  # boxes paint nothing
    unknown = maps.object == IGNORE_LABEL  # but a robot is somewhere in its box
    assert unknown[0:4, 9:12].all() and unknown.sum() == 12


def test_outside_of_the_photo_nothing_is_known(record):
    maps = LabelReader(NAMES, NAMES).maps(
        record, PHOTO, Geometry((0, 0, WIDTH, HEIGHT), canvas=(14, 12), offset=(4, 0))
    )
    assert (maps.object[:4] == IGNORE_LABEL).all() and (maps.object_part[:4] == IGNORE_LABEL).all()
    assert (maps.object[4:] == IGNORE_LABEL).sum() == 12  # inside the box without a mask


def test_instances_of_classes_are_the_maps(record):
    """One instance per class, in ids of the vocabulary; objects first, a part's parent is its object."""
    maps = LabelReader(NAMES, NAMES).maps(record, PHOTO, WHOLE)
    found = of_classes(record)
    assert rows(found) == [
        (1, CAT, (6, 5, 12, 10), -1),
        (1, ROBOT, (1, 1, 9, 9), -1),
        (0, LEFT, (1, 1, 3, 5), 1),
        (0, HEAD, (4, 1, 6, 3), 1),
        (0, CAT_HEAD, (7, 6, 9, 8), 0),
    ]
    assert found.has_mask.all() and found.counted.all()
    for level, label, mask in zip(found.level.tolist(), found.label.tolist(), found.masks.numpy()):
        shown, number = (maps.object_part, label) if level == 0 else (maps.object, int(NAMES.label_object_lut[label]))
        assert np.array_equal(mask, shown == number)
    assert rows(of_classes(record, vocabulary=NAMES.seen_subset())) == [
        (1, 0, (1, 1, 9, 9), -1),
        (0, 0, (1, 1, 3, 5), 0),
        (0, 2, (4, 1, 6, 3), 0),
    ]


def test_maps_without_classes_have_no_instances():
    nothing = np.full((HEIGHT, WIDTH), IGNORE_LABEL, np.int32)
    found = instances_of_maps(nothing, np.full_like(nothing, BACKGROUND_LABEL), NAMES)
    assert len(found) == 0 and found.masks.shape == (0, HEIGHT, WIDTH) and found.boxes.shape == (0, 4)
    parts = nothing.copy()
    parts[0, 0] = LEFT  # a part beside its object
    assert rows(instances_of_maps(parts, np.full_like(nothing, BACKGROUND_LABEL), NAMES)) == [
        (0, LEFT, (0, 0, 1, 1), -1)
    ]


def test_parts_of_uncounted_instances_are_not_known(rectangle, tmp_path, label_writer):
    """The robot does not count: its arm is unknown, unless a counted cat covers it, where it is another's label."""
    parts = np.full((HEIGHT, WIDTH), 255, np.uint8)
    parts[1:5, 1:3] = LEFT
    parts[5:7, 7:9] = LEFT
    parts[7:9, 7:9] = CAT_HEAD
    label_writer(tmp_path / "parts.png", parts)
    record = Record(
        "a",
        "a.jpg",
        object_part_file_name=str(tmp_path / "parts.png"),
        annotations=(
            Annotation("object", ROBOT, rectangle(1, 1, 9, 9), counted=False),
            Annotation("object", CAT, rectangle(6, 5, 12, 10)),
        ),
    )
    maps = LabelReader(NAMES, NAMES).maps(record, PHOTO, WHOLE)
    assert (maps.object_part[1:5, 1:3] == IGNORE_LABEL).all() and (maps.object[1:5, 1:3] == IGNORE_LABEL).all()
    assert (maps.object_part[5:7, 7:9] == LEFT).all() and (maps.num_foreign[5:7, 7:9] == 1).all()
    assert (maps.num_owner[7:9, 7:9] == 1).all() and maps.num_owner.sum() == 4 and maps.num_foreign.sum() == 4
    found = of_classes(record)
    assert [(level, label) for level, label, *_ in rows(found)] == [(1, CAT), (0, LEFT), (0, CAT_HEAD)]
    assert found.masks[1].sum() == 4 and found.parent.tolist() == [-1, -1, 0]
    both = annotated(record)
    assert both.counted.tolist() == [False, True] and both.label.tolist() == [ROBOT, CAT]


def test_instances_need_annotations():
    with pytest.raises(ValueError, match="record 'a' .*instances=classes takes each class's pixels"):
        annotated(Record("a", "a.jpg"))
    assert len(of_classes(Record("a", "a.jpg"))) == 0
