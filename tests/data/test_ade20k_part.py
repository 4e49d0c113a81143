import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from partseg.data.ade20k_part import ade20k_part_234
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.geometry import InputSpec
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.vocabulary.shipped import shipped

NAMES = shipped("ade20k_part_234")
CAR, VAN, CHAIR = (NAMES.object_id(name) for name in ("car", "van", "chair"))
CAR_DOOR, VAN_DOOR = NAMES.pairs.index(("car", "door")), NAMES.pairs.index(("van", "door"))
PLAIN = TrainMapper(20, flip_probability=0)
NONE = 65535
HEIGHT, WIDTH = 20, 30


def rle(left, top, right, bottom, *, compressed):
    """A rectangle as COCO RLE; uncompressed ones are what json files of other tools hold."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    if compressed:
        encoded = coco_mask.encode(np.asfortranarray(mask))
        return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    column = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [len(column)]]))
    return {"size": [HEIGHT, WIDTH], "counts": counts.tolist()}


@pytest.fixture
def ade_root(tmp_path, image_writer, label_writer, write_json, rectangle):
    """Val image: car (0..15), van on top (10..25), a second car (12..14). Train: the same, one more with cars only."""
    root = tmp_path / "ADE20KPart234"
    parts = np.full((HEIGHT, WIDTH), NONE, np.uint16)
    parts[5:10, 5:12] = CAR_DOOR
    parts[5:10, 12:20] = VAN_DOOR
    parts[12:14, 10:14] = CAR_DOOR  # inside the van's mask too, and inside the second car for two columns
    only_cars = np.where(parts == VAN_DOOR, NONE, parts).astype(np.uint16)
    for split, folder, stems in (
        ("train", "training", {"ADE_train_1": parts, "ADE_train_2": only_cars}),
        ("val", "validation", {"ADE_val_1": parts}),
    ):
        images, annotations = [], []
        for number, (stem, labels) in enumerate(stems.items(), start=1):
            image_writer(root / "images" / folder / f"{stem}.jpg", height=HEIGHT, width=WIDTH, seed=number)
            label_writer(root / "annotations_detectron2_part" / folder / f"{stem}.png", labels)
            images.append({"id": number, "file_name": f"{stem}.jpg", "height": HEIGHT, "width": WIDTH})
            objects = [(CAR, rectangle(0, 0, 15, HEIGHT)), (CAR, rle(12, 12, 14, 14, compressed=False))]
            if labels is parts:
                objects.insert(1, (VAN, rle(10, 0, 25, HEIGHT, compressed=True)))
            for object_id, segmentation in objects:
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": number,
                        "category_id": object_id,
                        "segmentation": segmentation,
                        "area": 9,
                        "iscrowd": 0,
                        "part_category_id": [1],
                    }
                )
        categories = [{"id": i, "name": name} for i, name in enumerate(NAMES.objects)]
        write_json(
            root / f"ade20k_instance_{split}.json",
            {"images": images, "annotations": annotations, "categories": categories},
        )
    return root


def edit(path, write_json, change):
    import json

    data = json.loads(path.read_text())
    change(data)
    write_json(path, data)


def test_objects_are_painted_in_order_but_part_labels_go_to_their_owner(ade_root):
    sample = ade20k_part_234(ade_root, "val", unseen_training_images=False)[0]
    assert sample.object_part.dtype == torch.int32 and sample.object_part.shape == (HEIGHT, WIDTH)
    assert sample.object[0, 5] == CAR and sample.object[0, 12] == VAN and sample.object[0, 28] == BACKGROUND_LABEL
    assert sample.object[7, 11] == CAR  # painted over by the van, but the part label is the car's
    assert sample.object[7, 13] == VAN
    assert sample.object[12, 10] == CAR and sample.object[15, 13] == VAN
    assert sample.object_part[7, 7] == CAR_DOOR and sample.object_part[0, 0] == IGNORE_LABEL


def test_owners_and_foreign_instances_are_counted_per_pixel(ade_root):
    """Equality with counting every (instance, pixel) pair as a per-instance evaluation does."""
    dataset = ade20k_part_234(ade_root, "val", unseen_training_images=False)
    sample = dataset[0]
    masks = {
        (CAR, 0): np.s_[:, 0:15],
        (VAN, 1): np.s_[:, 10:25],
        (CAR, 2): np.s_[12:14, 12:14],
    }
    owner = np.where(sample.object_part.numpy() == CAR_DOOR, CAR, VAN)
    labelled = sample.object_part.numpy() != IGNORE_LABEL
    num_owner, num_foreign = np.zeros((2, HEIGHT, WIDTH), int)
    for (object_id, _), where in masks.items():
        inside = np.zeros((HEIGHT, WIDTH), bool)
        inside[where] = True
        num_owner += inside & labelled & (owner == object_id)
        num_foreign += inside & labelled & (owner != object_id)
    assert np.array_equal(sample.num_owner.numpy(), num_owner)
    assert np.array_equal(sample.num_foreign.numpy(), num_foreign)
    assert num_owner.max() == 2 and num_foreign.max() == 1  # the scene has both cases


def test_val_has_training_images_with_unseen_objects_and_counts_only_these(ade_root):
    dataset = ade20k_part_234(ade_root, "val", mapper=EvalMapper(InputSpec((16, 16))))
    assert [record.image_id for record in dataset.records] == ["ADE_val_1", "ADE_train_1"]
    sample = dataset[1]
    # a car's door counts inside the van, as another object's label there: the van's record of the benchmark has it
    in_van = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    in_van[:, 10:25] = True
    car_door = sample.object_part == CAR_DOOR
    assert set(sample.object_part.unique().tolist()) == {CAR_DOOR, VAN_DOOR, IGNORE_LABEL}
    assert car_door.any() and not (car_door & ~in_van).any()
    assert set(sample.object.unique().tolist()) == {VAN, BACKGROUND_LABEL, IGNORE_LABEL}
    assert (
        sample.object[0, 5] == IGNORE_LABEL and sample.object[7, 13] == VAN and sample.object[0, 28] == BACKGROUND_LABEL
    )
    van_door = sample.object_part == VAN_DOOR
    assert (sample.num_owner[van_door] == 1).all() and (sample.num_owner[~van_door] == 0).all()
    assert torch.equal(sample.num_foreign == 1, car_door) and sample.num_foreign.max() == 1  # the cars are not counted
    assert len(ade20k_part_234(ade_root, "val", unseen_training_images=False)) == 1


def test_train_hides_unseen_objects(ade_root):
    dataset = ade20k_part_234(ade_root, "train", mapper=PLAIN)
    assert len(dataset) == 2 and dataset.vocabulary.num_object_parts == 176
    car = dataset.vocabulary.object_id("car")
    sample = dataset[0]
    assert set(sample.object.unique().tolist()) == {car, BACKGROUND_LABEL, IGNORE_LABEL}
    assert set(sample.object_part.unique().tolist()) == {dataset.vocabulary.pairs.index(("car", "door")), IGNORE_LABEL}
    background = ade20k_part_234(
        ade_root, "train", mapper=TrainMapper(20, flip_probability=0, unseen_as_background=True)
    )
    assert set(background[0].object.unique().tolist()) == {car, BACKGROUND_LABEL}


def test_training_labels_are_the_evaluation_labels_resized(ade_root):
    """Reading masks at network size gives what painting at full size and resizing gives."""
    full = ade20k_part_234(ade_root, "val", unseen_training_images=False)[0]
    small = ade20k_part_234(ade_root, "train", mapper=TrainMapper(7, flip_probability=0), all_seen=True)[0]
    rows = (np.arange(7) * 2 + 1) * HEIGHT // 14
    columns = (np.arange(7) * 2 + 1) * WIDTH // 14
    assert torch.equal(small.object, full.object[rows][:, columns])
    assert torch.equal(small.object_part, full.object_part[rows][:, columns])


def test_both_spellings(ade_root):
    hyphen = ade_root.rename(ade_root.parent / "ADE20K-Part-234")
    for root in (hyphen, ade_root, hyphen.parent):
        assert len(ade20k_part_234(root, "train")) == 2


def test_8_bit_labels_are_refused(ade_root, label_writer):
    path = ade_root / "annotations_detectron2_part" / "validation" / "ADE_val_1.png"
    label_writer(path, np.full((HEIGHT, WIDTH), 255, np.uint8))
    with pytest.raises(ValueError, match=r"ADE_val_1\.png is 8-bit, this data set stores 16-bit"):
        ade20k_part_234(ade_root, "val")[0]


def test_id_out_of_range(ade_root, label_writer):
    path = ade_root / "annotations_detectron2_part" / "validation" / "ADE_val_1.png"
    label_writer(path, np.full((HEIGHT, WIDTH), 234, np.uint16))
    with pytest.raises(ValueError, match=r"ids \[234\], allowed are 0\.\.233 and 65535 for none"):
        ade20k_part_234(ade_root, "val")[0]


def test_unusable_annotations_are_skipped_and_counted(ade_root, write_json, caplog):
    def change(data):
        first = data["annotations"][0]
        data["annotations"] += [
            {**first, "iscrowd": 1},
            {**first, "area": 0},
            {**first, "segmentation": [[1, 2, 3, 4]]},
            {**first, "segmentation": [[1, 2], *first["segmentation"]]},
        ]

    before = ade20k_part_234(ade_root, "val", unseen_training_images=False)
    edit(ade_root / "ade20k_instance_val.json", write_json, change)
    dataset = ade20k_part_234(ade_root, "val", unseen_training_images=False)
    assert dataset.skipped == {
        "broken_polygon": 2,
        "crowd": 1,
        "zero_area": 1,
        "empty_annotation": 1,
        "image_without_instances": 0,
    }
    assert len(dataset.records[0].annotations) == len(before.records[0].annotations) + 1
    assert "annotations left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["annotations"][0].update(category_id=44), r"category_id 44, allowed are 0\.\.43"),
        (lambda data: data["categories"][3].update(name="unicorn"), "called 'unicorn', the vocabulary says 'bench'"),
        (lambda data: data["annotations"][0].update(image_id=77), "belongs to no image"),
        (lambda data: data["images"].append({**data["images"][0], "id": 9}), "image names must be unique"),
        (lambda data: data["images"][0].update(file_name="ADE_frame_1.jpg"), "ADE_frame_.*full 2021 release"),
        (lambda data: data.pop("annotations"), "not a COCO file: it lacks"),
    ],
)
def test_wrong_json_is_refused(ade_root, write_json, change, message):
    edit(ade_root / "ade20k_instance_val.json", write_json, change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ade20k_part_234(ade_root, "val")


def test_rle_of_another_size_names_the_image(ade_root, write_json):
    edit(
        ade_root / "ade20k_instance_val.json",
        write_json,
        lambda data: data["annotations"][1]["segmentation"].update(size=[WIDTH, HEIGHT]),
    )
    with pytest.raises(ValueError, match=r"ADE_val_1\.jpg.*RLE is \[30, 20\], the image is \[20, 30\]"):
        ade20k_part_234(ade_root, "val")[0]


def test_broken_or_missing_json(ade_root):
    path = ade_root / "ade20k_instance_val.json"
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"ade20k_instance_val\.json is not valid JSON"):
        ade20k_part_234(ade_root, "val")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"ade20k_instance_val\.json"):
        ade20k_part_234(ade_root, "val")


def test_few_shot(ade_root, write_json):
    write_json(ade_root / "train_16shot.json", [{"file_name": "x/images/training/ADE_train_2.jpg"}])
    dataset = ade20k_part_234(ade_root, "train", shots=16, all_seen=True)
    assert [record.image_id for record in dataset.records] == ["ADE_train_2"]
    assert dataset.vocabulary.num_object_parts == 234
