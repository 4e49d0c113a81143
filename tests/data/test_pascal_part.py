import json

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.data.pascal_part import pascal_part_116
from partseg.geometry import InputSpec
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.vocabulary.shipped import shipped

PLAIN = TrainMapper(32, flip_probability=0)
CAT, DOG, CHAIR = range(3)


def test_val_keeps_every_class_and_its_own_size(pascal_root):
    dataset = pascal_part_116(pascal_root, "val", mapper=EvalMapper(InputSpec((32, 32))))
    names = shipped("pascal_part_116")
    assert len(dataset) == 3 and dataset.vocabulary.key == names.key
    for index, object_name in ((CAT, "cat"), (DOG, "dog")):
        sample = dataset[index]
        assert sample.image.shape == (3, 32, 32) and sample.image.dtype == torch.uint8
        assert sample.object.shape == sample.object_part.shape == (30, 40)
        assert sample.object_part[10, 10] == names.pairs.index((object_name, "head"))
        assert sample.object_part[20, 10] == IGNORE_LABEL
        assert sample.object[20, 10] == names.object_id(object_name)
        assert sample.object[0, 0] == BACKGROUND_LABEL
    assert sample.num_owner is None and sample.num_foreign is None


def test_train_hides_unseen_objects_and_renumbers_seen_ones(pascal_root):
    dataset = pascal_part_116(pascal_root, "train", mapper=PLAIN)
    assert dataset.vocabulary.num_object_parts == 74 and dataset.vocabulary.seen.all()
    cat, dog = dataset[CAT], dataset[DOG]
    assert set(cat.object_part.unique().tolist()) == {dataset.vocabulary.pairs.index(("cat", "head")), IGNORE_LABEL}
    assert set(cat.object.unique().tolist()) == {dataset.vocabulary.object_id("cat"), BACKGROUND_LABEL}
    assert dog.object_part.unique().tolist() == [IGNORE_LABEL]
    assert set(dog.object.unique().tolist()) == {BACKGROUND_LABEL, IGNORE_LABEL}


def test_unseen_as_background_is_an_option(pascal_root):
    mapper = TrainMapper(32, flip_probability=0, unseen_as_background=True)
    dog = pascal_part_116(pascal_root, "train", mapper=mapper)[DOG]
    assert dog.object.unique().tolist() == [BACKGROUND_LABEL]
    assert dog.object_part.unique().tolist() == [IGNORE_LABEL]


def test_objects_without_parts_are_background(pascal_root):
    for split in ("train", "val"):
        chair = pascal_part_116(pascal_root, split)[CHAIR]
        assert chair.object.unique().tolist() == [BACKGROUND_LABEL]


def test_all_seen_and_other_unseen_lists(pascal_root):
    everything = pascal_part_116(pascal_root, "train", mapper=PLAIN, all_seen=True)
    assert everything.vocabulary.num_object_parts == 116 and everything.vocabulary.seen.all()
    assert everything[DOG].object.min() == everything.vocabulary.object_id("dog")
    no_cats = pascal_part_116(pascal_root, "train", mapper=PLAIN, unseen_objects=["cat"])
    assert "cat" not in no_cats.vocabulary.objects and "dog" in no_cats.vocabulary.objects
    with pytest.raises(ValueError, match="unicorn"):
        pascal_part_116(pascal_root, "train", unseen_objects=["unicorn"])


def test_both_spellings_the_parent_and_strange_paths_work(write_pascal):
    parts = objects = np.full((8, 8), 255, np.uint8)
    hyphen = write_pascal({"val": {"a": (parts, objects)}}, folder="my parts of_part/Pascal-Part-116")
    for root in (hyphen, hyphen.parent, hyphen.parent / "PascalPart116", str(hyphen) + "/"):
        dataset = pascal_part_116(root, "val")
        assert dataset.records[0].object_file_name == str(hyphen / "annotations_detectron2_obj" / "val" / "a.png")
        assert dataset[0].object.shape == (8, 8)


@pytest.mark.parametrize(
    ("folder", "root"),
    [
        ("a/PascalPart116", "a/PascalPart116/images"),
        ("a/PascalPart116", "a/PascalPart116/images/val"),
        ("a/b/PascalPart116", "a"),
        ("a/a name of its own", "a"),
    ],
)
def test_wrong_level_names_the_right_folder(write_pascal, tmp_path, folder, root):
    labels = np.full((8, 8), 255, np.uint8)
    written = write_pascal({"val": {"a": (labels, labels)}}, folder=folder)
    with pytest.raises(FileNotFoundError) as caught:
        pascal_part_116(tmp_path / root, "val")
    assert str(caught.value).endswith(f"set root={written}")


def test_missing_root_and_foreign_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; set root"):
        pascal_part_116(tmp_path / "nowhere" / "at" / "all", "val")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"not this data set.*photo\.jpg"):
        pascal_part_116(tmp_path / "holiday", "val")
    with pytest.raises(ValueError, match="split='test'"):
        pascal_part_116(tmp_path, "test")


def test_stray_files_of_other_systems_are_skipped(pascal_root):
    for folder in ("images", "annotations_detectron2_part", "annotations_detectron2_obj"):
        suffix = "jpg" if folder == "images" else "png"
        (pascal_root / folder / "val" / f"._2008_000001.{suffix}").write_bytes(b"\0\5\x16\7")
        (pascal_root / folder / "val" / ".DS_Store").write_bytes(b"x")
        (pascal_root / folder / "val" / "__MACOSX").mkdir()
    assert len(pascal_part_116(pascal_root, "val")) == 3


def test_missing_label_is_named(pascal_root):
    (pascal_root / "annotations_detectron2_obj" / "val" / "2008_000002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no label .*2008_000002\.png"):
        pascal_part_116(pascal_root, "val")


def test_label_that_vanishes_after_building_is_named(pascal_root):
    dataset = pascal_part_116(pascal_root, "val")
    (pascal_root / "annotations_detectron2_part" / "val" / "2008_000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2008_000001\.png"):
        dataset[0]


def test_empty_split(pascal_root):
    for path in (pascal_root / "images" / "val").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="split is empty"):
        pascal_part_116(pascal_root, "val")


def test_label_of_another_size_names_both_files(pascal_root, label_writer):
    label_writer(pascal_root / "annotations_detectron2_part" / "val" / "2008_000001.png", np.zeros((40, 30), np.uint8))
    with pytest.raises(ValueError, match=r"2008_000001\.png is 40 x 30 .*2008_000001\.jpg is\s+30 x 40"):
        pascal_part_116(pascal_root, "val")[0]


def test_id_out_of_range_names_file_ids_and_range(pascal_root, label_writer):
    path = pascal_root / "annotations_detectron2_part" / "val" / "2008_000001.png"
    label_writer(path, np.full((30, 40), 116, np.uint8))
    with pytest.raises(
        ValueError, match=r"2008_000001\.png holds object-part ids \[116\], allowed are 0\.\.115 and 255"
    ):
        pascal_part_116(pascal_root, "val")[0]
    path = pascal_root / "annotations_detectron2_obj" / "train" / "2008_000001.png"
    label_writer(path, np.full((30, 40), 20, np.uint8))
    with pytest.raises(ValueError, match=r"object ids \[20\], allowed are 0\.\.19"):
        pascal_part_116(pascal_root, "train")[0]


def test_colour_or_16_bit_labels_are_refused(pascal_root, label_writer):
    path = pascal_root / "annotations_detectron2_part" / "val" / "2008_000001.png"
    label_writer(path, np.zeros((30, 40), np.uint16))
    with pytest.raises(ValueError, match="is 16-bit, this data set stores 8-bit"):
        pascal_part_116(pascal_root, "val")[0]
    label_writer(path, np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(ValueError, match="is a RGB picture"):
        pascal_part_116(pascal_root, "val")[0]


def test_palette_labels_are_read_as_ids(pascal_root):
    path = pascal_root / "annotations_detectron2_part" / "val" / "2008_000001.png"
    before = pascal_part_116(pascal_root, "val")[0].object_part
    with Image.open(path) as image:
        grey = np.asarray(image).copy()
    palette = Image.fromarray(grey, mode=None).convert("L")
    palette.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    palette.save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
    assert torch.equal(pascal_part_116(pascal_root, "val")[0].object_part, before)


@pytest.mark.parametrize("keep", [0, 40, 0.6])
def test_truncated_image_and_label_are_named(pascal_root, keep):
    for path in (
        pascal_root / "images" / "val" / "2008_000001.jpg",
        pascal_root / "annotations_detectron2_part" / "val" / "2008_000002.png",
    ):
        content = path.read_bytes()
        path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    dataset = pascal_part_116(pascal_root, "val")
    for index, name in ((0, r"2008_000001\.jpg"), (1, r"2008_000002\.png")):
        with pytest.raises(ValueError, match=rf"cannot read .*{name}.*fetch it again"):
            dataset[index]


def test_duplicate_image_names(pascal_root, image_writer):
    image_writer(pascal_root / "images" / "val" / "2008_000001.png")
    with pytest.raises(ValueError, match=r"2008_000001\.jpg and 2008_000001\.png"):
        pascal_part_116(pascal_root, "val")


def test_few_shot_list_matches_by_stem(pascal_root, write_json):
    entries = [
        {"file_name": "datasets/PascalPart116/images/train/2008_000003.jpg"},
        {"file_name": "C:\\data\\PascalPart116\\images\\train\\2008_000001.jpg"},
    ]
    write_json(pascal_root / "train_16shot.json", entries)
    dataset = pascal_part_116(pascal_root, "train", shots=16, all_seen=True)
    assert [record.image_id for record in dataset.records] == ["2008_000001", "2008_000003"]
    assert len(pascal_part_116(pascal_root, "val", shots=16)) == 3
    write_json(pascal_root / "train_16shot.json", [{"file_name": "2009_009999.jpg"}])
    with pytest.raises(ValueError, match="the first is 2009_009999"):
        pascal_part_116(pascal_root, "train", shots=16)
    write_json(pascal_root / "train_16shot.json", [])
    with pytest.raises(ValueError, match="is empty"):
        pascal_part_116(pascal_root, "train", shots=16)
    with pytest.raises(FileNotFoundError, match=r"train_4shot\.json"):
        pascal_part_116(pascal_root, "train", shots=4)


def test_real_images(samples):
    """The two real validation images: ids agree with the label counts that the benchmark's own tool wrote."""
    root = samples / "ov_parts" / "derived" / "PascalPart116"
    dataset = pascal_part_116(root, "val")
    counts = json.loads((root / "annotations_detectron2_part" / "val_part_label_count.json").read_text())
    owners = json.loads((root / "annotations_detectron2_part" / "val_obj_label_count.json").read_text())
    assert [record.image_id for record in dataset.records] == ["2008_000009", "2008_000700"]
    for sample in dataset:
        present = sample.object_part.unique().tolist()
        assert present == [*counts[f"{sample.name}.png"], IGNORE_LABEL]
        names = {dataset.vocabulary.objects[i] for i in sample.object.unique().tolist() if i != BACKGROUND_LABEL}
        assert names == {dataset.vocabulary.label_objects[i] for i in owners[f"{sample.name}.png"]}
        labelled = sample.object_part != IGNORE_LABEL
        owner = torch.from_numpy(dataset.vocabulary.object_lut.take(sample.object_part.numpy()))
        assert torch.equal(owner[labelled], sample.object[labelled])
