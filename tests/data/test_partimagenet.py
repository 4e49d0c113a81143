import json

import numpy as np
import pytest

from partseg.data.mapper import TrainMapper
from partseg.data.partimagenet import partimagenet_40, source
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.vocabulary.shipped import shipped

NAMES = shipped("partimagenet_40")
TIGER, JEEP, DUCK = "n02129604", "n03594945", "n01855032"  # seen, unseen, not one of the 40
CATEGORY = {name: id_ for id_, name in source().categories.items()}
PLAIN = TrainMapper(40, flip_probability=0)


def categories():
    return [{"id": i, "name": n, "supercategory": n.split()[0]} for i, n in source().categories.items()]


@pytest.fixture
def seg_root(tmp_path, image_writer, write_json, rectangle):
    """PartImageNet_Seg as unpacked: one tiger, one jeep and one image of another synset per split."""
    root = tmp_path / "PartImageNet"
    for split in ("train", "val"):
        images, annotations = [], []
        for number, stem in enumerate((f"{JEEP}_7", f"{TIGER}_12", f"{DUCK}_3"), start=1):
            image_writer(root / "images" / split / f"{stem}.JPEG", seed=number)
            images.append({"id": number, "file_name": f"{stem}.JPEG", "height": 30, "width": 40})
        for image_id, category, corners in (
            (2, "Quadruped Body", (5, 5, 30, 25)),
            (2, "Quadruped Head", (5, 5, 15, 15)),
            (1, "Car Side Mirror", (0, 0, 4, 4)),
            (1, "Car Tier", (10, 20, 16, 26)),
            (3, "Bird Head", (0, 0, 9, 9)),
        ):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": CATEGORY[category],
                    "segmentation": rectangle(*corners),
                    "area": 10,
                    "iscrowd": 0,
                }
            )
        data = {"images": images, "annotations": annotations, "categories": categories()}
        write_json(root / "annotations" / split / f"{split}.json", data)
        write_json(root / "annotations" / split / f"{TIGER}_12.json", {"imgHeight": 30, "imgWidth": 40})
    return root


def edit(root, write_json, change, split="val"):
    path = root / "annotations" / split / f"{split}.json"
    data = json.loads(path.read_text())
    change(data)
    write_json(path, data)


def test_source_gives_every_object_part_of_the_vocabulary():
    """Synset -> object -> super-category -> categories yields exactly the 147 pairs: no hand-made map."""
    names = source()
    pairs = {
        (object_name, names.part_of(category, supercategory))
        for object_name, supercategory in names.synsets.values()
        for category in names.categories.values()
        if names.part_of(category, supercategory) is not None
    }
    assert pairs == set(NAMES.pairs) and len(names.synsets) == 40 and len(names.categories) == 40
    assert {object_name for object_name, _ in names.synsets.values()} == set(NAMES.objects)


def test_source_agrees_with_the_published_lists(samples):
    folder = samples / "partimagenet"
    listed = json.loads((folder / "categories_40.json").read_text())
    assert {c["id"]: c["name"] for c in listed} == source().categories
    synsets = dict(line.split(" ", 1) for line in (folder / "LOC_synset_mapping.txt").read_text().splitlines())
    for wnid, (object_name, _) in source().synsets.items():
        assert synsets[wnid].split(", ")[0] == object_name


def test_val_has_all_40_and_objects_come_from_the_file_name(seg_root):
    dataset = partimagenet_40(seg_root, "val")
    assert [record.image_id for record in dataset.records] == [f"{TIGER}_12", f"{JEEP}_7"]
    tiger, jeep = dataset
    assert tiger.object_part.shape == (30, 40)
    assert tiger.object_part[10, 10] == NAMES.pairs.index(("tiger", "head"))  # painted over the body
    assert tiger.object_part[20, 20] == NAMES.pairs.index(("tiger", "body"))
    assert tiger.object[10, 10] == NAMES.object_id("tiger") and tiger.object[0, 0] == BACKGROUND_LABEL
    assert tiger.object_part[0, 0] == IGNORE_LABEL
    assert jeep.object_part[22, 12] == NAMES.pairs.index(("jeep", "tier"))
    assert jeep.object_part[1, 1] == NAMES.pairs.index(("jeep", "side mirror"))
    assert tiger.num_owner is None


def test_train_has_seen_objects_only(seg_root):
    dataset = partimagenet_40(seg_root, "train", mapper=PLAIN)
    assert [record.image_id for record in dataset.records] == [f"{TIGER}_12"]
    assert dataset.vocabulary.num_object_parts == 92
    everything = partimagenet_40(seg_root, "train", mapper=PLAIN, all_seen=True)
    assert len(everything) == 2 and everything.vocabulary.num_object_parts == 147


def test_layout_with_synset_folders(seg_root):
    """The OOD layout: {split}.json in the root, images in one folder per synset, file names without folder."""
    for split in ("train", "val"):
        (seg_root / "annotations" / split / f"{split}.json").rename(seg_root / f"{split}.json")
        for path in list((seg_root / "images" / split).iterdir()):
            folder = path.parent / path.name.split("_")[0]
            folder.mkdir()
            path.rename(folder / path.name)
            (folder / f"._{path.name}").write_bytes(b"\0")
    dataset = partimagenet_40(seg_root, "val")
    assert len(dataset) == 2 and dataset[0].object_part[10, 10] == NAMES.pairs.index(("tiger", "head"))
    for split in ("train", "val"):  # VLPart's variant has no images/ folder
        (seg_root / "images" / split).rename(seg_root / split)
    assert len(partimagenet_40(seg_root, "val")) == 2


def test_files_that_partclipsegs_script_rewrote(seg_root, write_json):
    """It replaces `categories` by the 147 names but leaves category_id as it was."""
    before = partimagenet_40(seg_root, "val")[0]
    replaced = [{"id": i, "name": name} for i, name in enumerate(NAMES.object_parts)]
    edit(seg_root, write_json, lambda data: data.update(categories=replaced))
    after = partimagenet_40(seg_root, "val")[0]
    assert (before.object_part == after.object_part).all()


def test_categories_are_found_by_name(seg_root, write_json):
    def renumber(data):
        for entry in data["categories"]:
            entry["id"] += 100
        for annotation in data["annotations"]:
            annotation["category_id"] += 100

    before = partimagenet_40(seg_root, "val")[0]
    edit(seg_root, write_json, renumber)
    assert (before.object_part == partimagenet_40(seg_root, "val")[0].object_part).all()
    edit(seg_root, write_json, lambda data: data["categories"][0].update(name="Unicorn Horn"))
    with pytest.raises(ValueError, match="not PartImageNet's: .*Unicorn Horn"):
        partimagenet_40(seg_root, "val")


def test_unusable_annotations_are_skipped_and_counted(seg_root, write_json):
    def change(data):
        head = data["annotations"][1]
        data["annotations"] += [
            {**head, "segmentation": [[3, 4]]},
            {**head, "segmentation": [[3, 4, 9, 9]]},
            {**head, "segmentation": [[3, 4, 9, 9], [5, 5, 9, 5, 9, 9, 5, 9]]},
            {**head, "segmentation": [[5, 5, 9, 9, 7, 7]]},
            {**head, "segmentation": []},
            {**head, "area": 0},
            {**head, "iscrowd": 1},
            {**head, "category_id": CATEGORY["Car Tier"]},
        ]

    edit(seg_root, write_json, change)
    dataset = partimagenet_40(seg_root, "val")
    assert dataset.skipped == {
        "broken_polygon": 4,
        "empty_annotation": 4,
        "zero_area": 1,
        "crowd": 1,
        "part_of_another_object": 1,
        "image_without_annotations": 0,
    }
    assert len(dataset.records[0].annotations) == 3
    assert dataset[0].object_part[10, 10] == NAMES.pairs.index(("tiger", "head"))


def test_images_without_annotations_are_left_out_and_counted(seg_root, write_json):
    edit(seg_root, write_json, lambda data: data["annotations"].__delitem__(slice(0, 2)))
    dataset = partimagenet_40(seg_root, "val")
    assert [record.image_id for record in dataset.records] == [f"{JEEP}_7"]
    assert dataset.skipped["image_without_annotations"] == 1


def test_index_restricts_the_images(seg_root, write_json):
    write_json(seg_root / "partimagenet_40_index.json", {"val": [f"{TIGER}_12.JPEG"], "tool": "x"})
    assert [record.image_id for record in partimagenet_40(seg_root, "val").records] == [f"{TIGER}_12"]
    with pytest.raises(ValueError, match="no list of images under 'train'"):
        partimagenet_40(seg_root, "train")
    write_json(seg_root / "partimagenet_40_index.json", {"val": [f"{TIGER}_999"]})
    with pytest.raises(ValueError, match=f"the first is {TIGER}_999"):
        partimagenet_40(seg_root, "val")


def test_missing_image_and_missing_annotations(seg_root):
    (seg_root / "images" / "val" / f"{TIGER}_12.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 2 images of split 'val'.*{TIGER}_12"):
        partimagenet_40(seg_root, "val")
    with pytest.raises(FileNotFoundError, match="no annotations for split 'test'"):
        partimagenet_40(seg_root, "test")


def test_split_without_any_of_the_40(seg_root, write_json):
    edit(seg_root, write_json, lambda data: data.update(images=data["images"][2:]))
    with pytest.raises(ValueError, match="has no records"):
        partimagenet_40(seg_root, "val")


def test_pictures_of_another_size_are_refused(seg_root, image_writer):
    image_writer(seg_root / "images" / "val" / f"{TIGER}_12.JPEG", height=15, width=20)
    with pytest.raises(ValueError, match=r"is 15 x 20 .*annotation says 30 x 40"):
        partimagenet_40(seg_root, "val")[0]


def test_duplicate_image_names(seg_root, write_json):
    edit(seg_root, write_json, lambda data: data["images"].append({**data["images"][0], "id": 99}))
    with pytest.raises(ValueError, match=f"{JEEP}_7.*image names must be unique"):
        partimagenet_40(seg_root, "val")


def test_training_polygons_follow_the_flip(seg_root):
    plain = partimagenet_40(seg_root, "train", mapper=PLAIN)[0]
    flipped = partimagenet_40(seg_root, "train", mapper=TrainMapper(40, flip_probability=1))[0]
    assert np.array_equal(plain.object_part.numpy()[:, ::-1], flipped.object_part.numpy())
    assert np.array_equal(plain.image.numpy()[:, :, ::-1], flipped.image.numpy())
