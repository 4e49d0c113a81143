"""Draw where the decoder looks for each part, for one checkpoint or several side by side (the paper's figure A2).

    python tools/attention_maps.py ckpt=output/run dataset=toy_pascal_part_116 index=0,3
    python tools/attention_maps.py ckpt=output/none,output/separation,output/both dataset=pascal_part_116 parts=eye,neck
    python tools/attention_maps.py ckpt=output/run image=dog.jpg,cat.jpg

Arguments are key=value:
    ckpt      checkpoints or run directories, separated by commas: one column each (required)
    dataset   name in configs/dataset; the masks are its labels
    data_root folder that holds the data sets (default data)
    split     train or val (default val)
    index     images of the data set (default 0,1,2)
    image     photos instead of a data set; the masks are the parts that the first checkpoint finds
    words     vocabulary of the photos: a file or text like "dog: head, tail" (default: the first checkpoint's)
    parts     only parts with one of these names, e.g. head,neck (default: all)
    layer     decoder layer (default: the last)
    plugins   modules of yours that the checkpoints' networks are from, separated by commas
    out       picture to write (default attention.png)

Each row is a part: its mask, then per checkpoint the map A_c of equation 6 and its highest value inside the part. All
maps are on one scale, whose bar is at the bottom.
The mean separation and enhancement of each checkpoint over the pictures are printed (docs/losses.md).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from partseg import api
from partseg.data import catalog
from partseg.data.images import read_photo
from partseg.data.mapper import EvalMapper
from partseg.engine import checkpoint as checkpoints
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.systems.part_clipseg.heatmaps import LabelledPicture, cells, heatmaps, summary
from partseg.utils import arguments
from partseg.utils.heat import heat_scale, with_heat_bar
from partseg.utils.visualize import save_png, tile


@dataclass(frozen=True)
class Options:
    ckpt: str
    dataset: str | None = None
    data_root: str = "data"
    split: str = "val"
    index: str = "0,1,2"
    image: str | None = None
    words: str | None = None
    parts: str = ""
    layer: int | None = None
    plugins: str = ""
    out: Path = Path("attention.png")


def pictures_of_dataset(options: Options) -> list[LabelledPicture]:
    """Pictures of the data set with its own labels."""
    mapper = EvalMapper()  # labels at the photo's size, also of the training split
    data = catalog.get(str(options.dataset), split=options.split, data_root=options.data_root, mapper=mapper)
    found = []
    for index in map(int, _list(options.index)):
        if not 0 <= index < len(data):
            raise ValueError(f"index={index}: {data.name!r} has images 0 to {len(data) - 1}")
        sample = data[index]
        picture = read_photo(sample.file_name).image
        labels = (sample.object_part.numpy(), sample.object.numpy())
        found.append(LabelledPicture(sample.name, picture, *labels, data.vocabulary))
    return found


def _list(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def pictures_of_photos(options: Options) -> list[LabelledPicture]:
    """Photos with the parts that the first checkpoint finds in them."""
    segmenter = api.load(_list(options.ckpt)[0], plugins=_list(options.plugins))
    predictions = segmenter.predict(_list(options.image or ""), options.words)
    found = []
    for prediction in predictions if isinstance(predictions, list) else [predictions]:
        nothing = prediction.labels == len(prediction.vocabulary)
        object_part = np.where(nothing, IGNORE_LABEL, prediction.labels).astype(np.int32)
        objects = np.where(nothing, BACKGROUND_LABEL, prediction.vocabulary.object_lut[object_part]).astype(np.int32)
        picture = Image.fromarray(prediction.image)
        found.append(LabelledPicture(prediction.name, picture, object_part, objects, prediction.vocabulary))
    return found


def main(options: Options) -> int:
    if (options.dataset is None) == (options.image is None):
        raise ValueError("give either dataset=<name> or image=<photo>")
    if options.out.exists() and any(Path(p).exists() and options.out.samefile(p) for p in _list(options.image or "")):
        raise ValueError(f"out={options.out} is one of the photos; choose another file")
    pictures = pictures_of_photos(options) if options.dataset is None else pictures_of_dataset(options)
    runs = _list(options.ckpt)
    names = [run.rstrip("/").removesuffix("/checkpoints/latest.pt").rsplit("/", 1)[-1] for run in runs]
    columns = []
    for name, run in zip(names, runs):
        model = checkpoints.load_model(run, plugins=_list(options.plugins))[0]
        columns.append([heatmaps(model, picture, layer=options.layer) for picture in pictures])
        print(f"{name}: {summary(columns[-1])}")
    maps = [found.maps for column in columns for found in column if found.labels]
    scale = heat_scale(maps) if maps else (0.0, 1.0)
    drawn = []
    for picture, row in zip(pictures, zip(*columns)):
        drawn += cells(picture, list(zip(names, row)), scale=scale, parts=_list(options.parts))
    if not drawn:
        raise ValueError("none of the pictures shows any of the parts asked for; choose others with index= or parts=")
    sheet = tile([cell for cell, _ in drawn], columns=1 + len(runs), captions=[text for _, text in drawn])
    print(save_png(with_heat_bar(sheet, scale), options.out))
    return 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
