"""Small data sets in the native layouts, written into a temporary folder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HEIGHT, WIDTH = 30, 40


def save_image(path: Path, *, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_label(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)


def box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    """COCO polygon of a rectangle; covers columns left..right-1, rows top..bottom-1."""
    return [[left, top, right, top, right, bottom, left, bottom]]


@pytest.fixture
def write_pascal(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Pascal-Part-116 with the given label maps per split and returns its folder."""

    def write(splits: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], *, folder: str = "PascalPart116") -> Path:
        root = tmp_path / folder
        for split, images in splits.items():
            for seed, (stem, (parts, objects)) in enumerate(images.items()):
                save_image(
                    root / "images" / split / f"{stem}.jpg", height=parts.shape[0], width=parts.shape[1], seed=seed
                )
                save_label(root / "annotations_detectron2_part" / split / f"{stem}.png", parts)
                save_label(root / "annotations_detectron2_obj" / split / f"{stem}.png", objects)
        return root

    return write


@pytest.fixture
def pascal_root(write_pascal: Callable[..., Path]) -> Path:
    """Three images per split: a cat (seen, object id 7), a dog (unseen, id 11) and a chair (no parts, id 8)."""
    from partseg.vocabulary.shipped import shipped

    names = shipped("pascal_part_116")
    cat_head, dog_head = names.pairs.index(("cat", "head")), names.pairs.index(("dog", "head"))

    def labels(object_id: int, part_id: int) -> tuple[np.ndarray, np.ndarray]:
        objects, parts = np.full((2, HEIGHT, WIDTH), 255, np.uint8)
        objects[5:25, 5:30] = object_id
        if part_id != 255:
            parts[5:15, 5:20] = part_id
        return parts, objects

    images = {"2008_000001": labels(7, cat_head), "2008_000002": labels(11, dog_head), "2008_000003": labels(8, 255)}
    return write_pascal({"train": images, "val": images})


@pytest.fixture
def write_json() -> Callable[[Path, object], Path]:
    """Writes a json file and its folders."""

    def write(path: Path, data: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return write


@pytest.fixture
def image_writer() -> Callable[..., None]:
    """`save_image(path, height=, width=, seed=)`."""
    return save_image


@pytest.fixture
def label_writer() -> Callable[[Path, np.ndarray], None]:
    """`save_label(path, ids)`: dtype decides between 8 and 16 bits."""
    return save_label


@pytest.fixture
def rectangle() -> Callable[[int, int, int, int], list[list[float]]]:
    """`box(left, top, right, bottom)` as COCO polygon."""
    return box
