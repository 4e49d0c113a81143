import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data.dataset import PartSegDataset
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.data.pascal_part import pascal_part_116
from partseg.geometry import InputSpec
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Annotation, Record
from partseg.vocabulary.names import Vocabulary

SIDED = Vocabulary.from_mapping({"robot": ["left arm", "right arm", "head", "left eye"]})


def sample_of(root, **options):
    return pascal_part_116(root, "train", mapper=TrainMapper(24, **options), seed=5)[0, 3]


def test_default_and_official_share_labels_up_to_rounding(pascal_root):
    plain = sample_of(pascal_root)
    official = sample_of(pascal_root, short_edge=60, long_edge=100, channel_order="bgr", unseen_as_background=True)
    assert (plain.object_part == official.object_part).float().mean() > 0.98
    difference = plain.image.flip(0).float() - official.image.float()
    assert difference.abs().mean() < 30 and not torch.equal(plain.image, official.image)


@pytest.mark.parametrize("height, width", [(30, 40), (375, 500), (333, 77)])
def test_the_official_label_rule_is_pil_then_torch(tmp_path, image_writer, label_writer, height, width):
    """Short edge 800 by PIL's nearest (pixel centres), then torch's `nearest` (corners): other pixels than ours."""
    ids = np.random.default_rng(0).integers(0, 4, (height, width), dtype=np.uint8)
    image_writer(tmp_path / "a.png", height=height, width=width)
    label_writer(tmp_path / "parts.png", ids)
    record = Record("a", str(tmp_path / "a.png"), object_part_file_name=str(tmp_path / "parts.png"))
    args = {"label_vocabulary": SIDED, "vocabulary": SIDED}
    options = {"size": 352, "flip_probability": 0.0, "short_edge": 800, "long_edge": 1333}
    scale = min(800 / min(height, width), 1333 / max(height, width))
    large = Image.fromarray(ids).resize((int(width * scale + 0.5), int(height * scale + 0.5)), Image.Resampling.NEAREST)
    expected = torch.nn.functional.interpolate(torch.tensor(np.asarray(large))[None, None].float(), size=(352, 352))
    corner, centre = (
        PartSegDataset([record], mapper=TrainMapper(**options, label_rule=rule), **args)[0].object_part
        for rule in ("corner", "centre")
    )
    # PIL adds up its steps: where a centre falls on a border, its sum may end on the other side (one column of 1,067)
    assert (corner == expected[0, 0]).float().mean() > 0.995
    assert (centre == expected[0, 0]).float().mean() < 0.96


def test_pictures_without_a_seen_part_are_replaced_where_asked(pascal_root):
    """Of cat (seen), dog (unseen) and chair (no parts) only the cat is left, whichever is drawn."""
    plain, dropping = (
        pascal_part_116(pascal_root, "train", mapper=TrainMapper(24, drop_without_parts=drop), seed=5)
        for drop in (False, True)
    )
    assert {plain[i, i].name for i in range(3)} == {"2008_000001", "2008_000002", "2008_000003"}
    samples = [dropping[i, draw] for i in range(3) for draw in range(4)]
    assert {sample.name for sample in samples} == {"2008_000001"}
    again = [dropping[i, draw] for i in range(3) for draw in range(4)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(samples, again, strict=True))
    with pytest.raises(ValueError, match="no image has a label of the 74 object-parts.*drop_without_parts=false"):
        dropping.subset([1, 2])[0]


def test_flip_probability(pascal_root):
    never, always = (
        pascal_part_116(pascal_root, "train", mapper=TrainMapper(40, flip_probability=p))[0] for p in (0.0, 1.0)
    )
    assert torch.equal(never.image.flip(-1), always.image)
    assert torch.equal(never.object_part.flip(-1), always.object_part)
    assert torch.equal(never.object.flip(-1), always.object)
    half = pascal_part_116(pascal_root, "train", mapper=TrainMapper(40))
    flipped = [torch.equal(half[0, draw].image, always.image) for draw in range(200)]
    assert 70 < sum(flipped) < 130


def test_flip_swaps_left_and_right_names(tmp_path, image_writer, label_writer):
    image_writer(tmp_path / "a.png", height=2, width=4)
    label_writer(tmp_path / "parts.png", np.array([[0, 1, 2, 3], [0, 0, 255, 3]], np.uint8))
    record = Record("a", str(tmp_path / "a.png"), object_part_file_name=str(tmp_path / "parts.png"))
    args = {"label_vocabulary": SIDED, "vocabulary": SIDED}
    flipped = PartSegDataset([record], mapper=TrainMapper(4, flip_probability=1), **args)[0].object_part[::2]
    # "left eye" has no counterpart and stays
    assert flipped.tolist() == [[3, 2, 0, 1], [3, IGNORE_LABEL, 1, 1]]


def test_colour_and_crop_options_change_the_sample_reproducibly(pascal_root):
    plain = sample_of(pascal_root)
    for options in ({"jitter": 0.4}, {"crop_scale": (0.3, 0.6)}):
        changed = sample_of(pascal_root, **options)
        assert not torch.equal(plain.image, changed.image)
        assert torch.equal(changed.image, sample_of(pascal_root, **options).image)
        assert changed.object_part.shape == plain.object_part.shape == (24, 24)
    assert torch.equal(sample_of(pascal_root, jitter=0.4).object_part, plain.object_part)


def test_eval_mapper_ignores_the_generator_and_never_resizes_labels(pascal_root):
    dataset = pascal_part_116(pascal_root, "val", mapper=EvalMapper(InputSpec((16, 16), via=(20, 25))))
    first, second = dataset[0, 0], dataset[0, 1]
    assert torch.equal(first.image, second.image) and first.image.shape == (3, 16, 16)
    assert first.object_part.shape == (30, 40)


def test_nothing_is_known_of_a_record_without_labels(tmp_path, image_writer):
    image_writer(tmp_path / "a.png")
    args = {"label_vocabulary": SIDED, "vocabulary": SIDED}
    for mapper in (EvalMapper(), TrainMapper(8)):
        sample = PartSegDataset([Record("a", str(tmp_path / "a.png"))], mapper=mapper, **args)[0]
        assert sample.object_part.unique().tolist() == sample.object.unique().tolist() == [IGNORE_LABEL]
    with pytest.raises(ValueError, match="'a'.*has no annotated instances"):
        PartSegDataset([Record("a", str(tmp_path / "a.png"))], mapper=EvalMapper(instances="annotated"), **args)[0]


def test_orientation_tag_counts_where_the_annotation_was_made_on_the_turned_photo(tmp_path, label_writer):
    tag = Image.Exif()
    tag[0x0112] = 6  # show turned by 90 degrees
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=tag)
    label_writer(tmp_path / "parts.png", np.zeros((8, 4), np.uint8))
    paths = {"file_name": str(tmp_path / "a.png"), "object_part_file_name": str(tmp_path / "parts.png")}
    args = {"label_vocabulary": SIDED, "vocabulary": SIDED, "mapper": EvalMapper(InputSpec((8, 8)))}
    sample = PartSegDataset([Record("a", height=8, width=4, **paths)], **args)[0]
    assert sample.image[0, :, 0].tolist() == [0] * 4 + [255] * 4
    with pytest.raises(ValueError, match="8 x 4 .*its image .* is 4 x 8"):
        PartSegDataset([Record("a", **paths)], **args)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"short_edge": 0},
        {"channel_order": "gbr"},
        {"flip_probability": 1.5},
        {"crop_scale": (0.5, 1.2)},
        {"jitter": 1.0},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainMapper(**{"size": 8, **options})


# Windows, instances, and samples about one thing ----------------------------------------------------------------------
@pytest.fixture
def two_robots(tmp_path, image_writer, rectangle):
    """A photo of 20 x 40 with two robots, an arm each; the second one's arm hides part of the first one's."""
    image_writer(tmp_path / "a.png", height=20, width=40)
    annotations = (
        Annotation("object", 0, rectangle(0, 0, 20, 20)),
        Annotation("object_part", 0, rectangle(2, 2, 12, 12), parent=0),
        Annotation("object", 0, rectangle(10, 0, 40, 20)),
        Annotation("object_part", 2, rectangle(10, 10, 20, 20), parent=2),
    )
    record = Record("a", str(tmp_path / "a.png"), annotations=annotations)

    def dataset(**options):
        mapper = TrainMapper(**{"flip_probability": 0.0, **options})
        return PartSegDataset([record], mapper=mapper, label_vocabulary=SIDED, vocabulary=SIDED)

    return dataset


def test_a_window_on_a_resized_photo(two_robots):
    """Short edge 40 makes it 40 x 80; windows of 40 x 24 lie anywhere in it, and picture and labels agree."""
    dataset = two_robots(size=(40, 24), resize="short_edge", short_edge=40)
    whole = two_robots(size=None, resize="short_edge", short_edge=40)[0]
    assert whole.image.shape == (3, 40, 80) and whole.region is None
    lefts = set()
    for draw in range(30):
        sample = dataset[0, draw]
        assert sample.image.shape == (3, 40, 24) and sample.region is None
        places = [x for x in range(57) if torch.equal(sample.image, whole.image[:, :, x : x + 24])]
        assert len(places) == 1
        left = places[0]
        assert torch.equal(sample.object_part, whole.object_part[:, left : left + 24])
        assert torch.equal(sample.object, whole.object[:, left : left + 24])
        lefts.add(left)
    assert len(lefts) > 10 and min(lefts) < 10 and max(lefts) > 46


def test_a_window_larger_than_the_photo_is_filled_up(two_robots):
    sample = two_robots(size=(60, 60), resize="short_edge", short_edge=[20], fill=(3, 2, 1))[0]
    assert sample.image.shape == (3, 60, 60) and sample.region == (0, 0, 20, 40)
    assert sample.image[:, 30, 30].tolist() == [3, 2, 1] and (sample.object[20:] == IGNORE_LABEL).all()
    assert (sample.object[:20, :40] == 0).all() and (sample.object_part[:, 40:] == IGNORE_LABEL).all()


def test_short_edges_are_drawn_from_a_list_and_the_long_edge_is_bounded(two_robots):
    dataset = two_robots(size=None, resize="short_edge", short_edge=[10, 20, 30], long_edge=50)
    assert {tuple(dataset[0, draw].size) for draw in range(30)} == {(10, 20), (20, 40), (25, 50)}


def test_jitter_of_the_scale_keeps_the_aspect(two_robots):
    dataset = two_robots(size=32, resize="jitter", scale_jitter=(0.25, 2.0))
    regions = [dataset[0, draw].region or (0, 0, 32, 32) for draw in range(40)]
    assert all(dataset[0, draw].image.shape == (3, 32, 32) for draw in range(3))
    small = [(height, width) for _, _, height, width in regions if width < 32]
    assert small and all(abs(width - 2 * height) <= 1 for height, width in small)
    assert min(width for _, width in small) < 16 and any(width == 32 for *_, width in regions)


def test_instances_of_training_samples(two_robots):
    sample = two_robots(size=(20, 40), instances="annotated")[0]
    assert sample.instances.boxes[:, [0, 2]].tolist() == [[0, 20], [2, 12], [10, 40], [10, 20]]
    assert sample.instances.parent.tolist() == [-1, 0, -1, 2]
    classes = two_robots(size=(20, 40), instances="classes")[0].instances
    assert classes.label.tolist() == [0, 0, 2] and classes.parent.tolist() == [-1, 0, 0]
    assert two_robots(size=(20, 40))[0].instances is None


def test_about_one_object(two_robots):
    """With instances one of them, without all pixels of its class; the parts of other objects are unknown then."""
    dataset = two_robots(size=(20, 40), instances="annotated", about="object")
    boxes = {}
    for draw in range(20):
        sample = dataset[0, draw]
        left = int(sample.instances.boxes[0, 0])
        boxes[left] = sample
        assert torch.equal(sample.given == 0, sample.instances.masks[0]) and torch.equal(sample.given, sample.object)
        outside = ~sample.instances.masks[0]
        assert (sample.object_part[outside] == IGNORE_LABEL).all() and (sample.given[outside] == BACKGROUND_LABEL).all()
        assert sample.instances.parent.tolist() == [-1, 0] and len(sample.instances) == 2
    assert set(boxes) == {0, 10}
    assert boxes[0].instances.label.tolist() == [0, 0] and boxes[10].instances.label.tolist() == [0, 2]
    together = two_robots(size=(20, 40), about="object")[0]
    assert (together.given == 0).all() and set(together.object_part.unique().tolist()) == {0, 2, IGNORE_LABEL}


def test_about_one_phrase(two_robots):
    """Where a record has no phrases, one is made of a class that the picture shows."""
    dataset = two_robots(size=(20, 40), about="phrase")
    seen = dict(dataset[0, draw].phrases[0][:2] for draw in range(20))
    assert set(seen) == {"robot left arm", "robot head"}
    sample = dataset[0]
    assert torch.equal(seen["robot head"], sample.object_part == 2)


def test_a_picture_that_shows_nothing_to_be_about_is_replaced(two_robots, tmp_path, image_writer):
    image_writer(tmp_path / "empty.png", height=20, width=40)
    full = two_robots(size=(20, 40)).records[0]
    for about in ("object", "phrase"):
        empty = Record("empty", str(tmp_path / "empty.png"))
        mapper = TrainMapper((20, 40), about=about)
        dataset = PartSegDataset([full, empty], mapper=mapper, label_vocabulary=SIDED, vocabulary=SIDED)
        assert {dataset[i, draw].name for i in (0, 1) for draw in range(3)} == {"a"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": None}, "size=null keeps pictures of any size, which resize=squash does not"),
        ({"resize": "short_edge"}, "resize=short_edge needs short_edge="),
        ({"short_edge": [8, 16]}, "resize=squash goes through one short_edge"),
        ({"scale_jitter": (0.0, 1.0)}, "scale_jitter"),
        ({"resize": "crop"}, "resize='crop' is not one of"),
        ({"instances": "all"}, "instances='all' is not one of"),
        ({"about": "part"}, "about='part' is not one of"),
        ({"label_rule": "middle"}, "label_rule='middle' is not one of"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        TrainMapper(**{"size": 8, **options})


def test_letterboxed_evaluation_knows_where_the_photo_is(pascal_root):
    dataset = pascal_part_116(pascal_root, "val", mapper=EvalMapper(InputSpec((16, 16), resize="letterbox")))
    sample = dataset[0]
    assert sample.image.shape == (3, 16, 16) and sample.region == (2, 0, 12, 16)
    assert sample.object.shape == (30, 40) and not sample.image[:, :2].any()
