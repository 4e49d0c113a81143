"""Pascal VOC as published: boxes of 20 objects in one XML file per picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from partseg.data.dataset import Mapper, PartSegDataset, build
from partseg.structures import Annotation, Record
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.words import as_vocabulary

OBJECTS = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
WORDS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def voc_boxes(
    root: str | Path,
    split: str,
    *,
    vocabulary: str = "categories",
    mapper: Mapper | None = None,
    seed: int = 0,
    all_seen: bool = False,
    name: str = "voc_boxes",
) -> PartSegDataset:
    """A list of ImageSets/Main ("train", "val", "trainval", "test") of the folder of one year, VOCdevkit/VOC2007.

    `vocabulary="categories"` are the 20 objects; of another vocabulary those objects that it has, under either spelling
    ("pottedplant", "potted plant"), the rest are left out and counted in `skipped`. Objects that are marked difficult
    are trained on, as in detectron2, and do not count in a score. Pixels of the files start at 1 and boxes end on
    their last pixel.
    """
    root = Path(root).expanduser()
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        raise FileNotFoundError(f"no {listed}; dataset.root must be the folder of one year, VOCdevkit/VOC2007")
    own = Vocabulary(pairs=(), label_objects=OBJECTS, name="voc", prompt_names=WORDS)
    labels = own if vocabulary == "categories" else as_vocabulary(vocabulary)
    places = {name: i for i, name in enumerate(labels.label_objects)}
    places |= {short: places[word] for short, word in WORDS.items() if word in places}
    skipped: dict[str, int] = {}
    stems = [line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    records = [_record(root, stem, places, skipped) for stem in sorted(stems)]
    return build(
        records,
        label_vocabulary=labels,
        mapper=mapper,
        seed=seed,
        name=name,
        split=split,
        all_seen=all_seen,
        skipped=skipped,
    )


def _record(root: Path, stem: str, places: dict[str, int], skipped: dict[str, int]) -> Record:
    """One picture's boxes; ValueError names the file and what is wrong in it."""
    path = root / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.parse(path)
        size = tree.find("size")
        height, width = (int(_text(size, key)) for key in ("height", "width"))
        found = []
        for each in tree.findall("object"):
            name, box = _text(each, "name"), each.find("bndbox")
            if name not in places:
                key = "object_of_another_vocabulary" if name in OBJECTS else "unknown_object"
                skipped[key] = skipped.get(key, 0) + 1
                continue
            left, top, right, bottom = (float(_text(box, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
            if not (0 < left <= right <= width and 0 < top <= bottom <= height):
                skipped["box_outside_image"] = skipped.get("box_outside_image", 0) + 1
                continue
            corners = (left - 1, top - 1, right, bottom)
            counted = each.findtext("difficult", "0").strip() != "1"
            found.append(Annotation("object", places[name], box=corners, counted=counted))
    except FileNotFoundError:
        raise FileNotFoundError(f"{stem!r} is listed, but there is no {path}; unpack the annotations again") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is not an annotation of VOC: {error}") from None
    photo = root / "JPEGImages" / f"{stem}.jpg"
    return Record(stem, str(photo), height, width, annotations=tuple(found))


def _text(node: ElementTree.Element | None, key: str) -> str:
    text = None if node is None else node.findtext(key)
    if text is None:
        raise ValueError(f"an entry lacks {key!r}")
    return text.strip()
