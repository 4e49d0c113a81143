"""Parts in your own photos, with your own words.

    python tools/predict.py ckpt=output/my_run input=photos/ vocabulary='{dog: [head, tail], car: [wheel]}'
    python tools/predict.py ckpt=output/my_run input='frames/*.png' vocabulary=words.yaml protocol=oracle_obj object=dog

Arguments are key=value:
    ckpt        a .pt file or a run directory (required)
    input       file, folder or glob; may be given several times (required). Frames come in natural order
    vocabulary  YAML mapping or file, or pascal_part_116, ade20k_part_234, partimagenet_40 (default: the checkpoint's)
    output      folder of what is written (default: predictions)
    protocol    pred_all, or oracle_obj, which is told the object (default: pred_all)
    object      oracle_obj: the object's name
    masks       oracle_obj: folder with a mask PNG per photo of the same name (default: the object is everywhere)
    overlays    false writes no pictures (default true)
    labels      false writes no label PNGs (default true)
    attention   true also writes what the network looked at for each part (default false)
    scores      true adds the mean probability of each segment (default false)
    max_side    longer side of the pictures in pixels (default 1600); label PNGs keep the photo's size
    batch_size  photos through the network at once (default 4)
    device      cpu, cuda, cuda:1, ... (default: a GPU where there is one)
    precision   fp32, bf16 or fp16 (default fp32)
    plugins     module of yours that the checkpoint's network is from; may be given several times

Written: <name>.png (parts over the photo, with legend), <name>_labels.png (16-bit ids, 65535 is background),
<name>_attention.png, and segments.json (a COCO file: images, categories, annotations with RLE, area and box).
Exit code 1: some photos could not be read (they are listed at the end); the rest was done. 2: nothing was done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from partseg import api
from partseg.data.images import ImageLike, list_images, unique_stems
from partseg.utils import arguments
from partseg.utils.files import json_bytes, write_atomic
from partseg.utils.prediction import Prediction, coco_document
from partseg.utils.visualize import save_png
from partseg.utils.words import as_vocabulary


@dataclass(frozen=True)
class Options:
    ckpt: Path
    input: tuple[str, ...]
    vocabulary: str | None = None
    output: Path = Path("predictions")
    protocol: str = "pred_all"
    object: str | None = None
    masks: Path | None = None
    overlays: bool = True
    labels: bool = True
    attention: bool = False
    scores: bool = False
    max_side: int = 1600
    batch_size: int = 4
    device: str | None = None
    precision: str = "fp32"
    plugins: tuple[str, ...] = ()


def main(options: Options) -> int:
    console, start = Console(soft_wrap=True, highlight=False), time.perf_counter()
    paths, others = list_images(options.input)
    if others:
        some = ", ".join(p.name for p in others[:5]) + (", ..." if len(others) > 5 else "")
        console.print(f"{len(others)} files are no images and are left out: {escape(some)}")
    words = None if options.vocabulary is None else as_vocabulary(options.vocabulary)
    segmenter = api.load(
        options.ckpt,
        options.device,
        precision=options.precision,  # type: ignore[arg-type]
        plugins=options.plugins,
    )
    failures: list[tuple[ImageLike, Exception]] = []
    predictions = segmenter.predict_many(
        requests(options, paths),
        words,
        protocol=options.protocol,
        return_scores=options.scores,
        attention=options.attention,
        batch_size=options.batch_size,
        on_error=lambda image, error: failures.append((image, error)),
    )
    stems = unique_stems(paths)
    done: list[Prediction] = []
    try:
        for prediction in progress(predictions, len(paths), failures, console):
            write(prediction, stems[Path(prediction.source)], options)
            done.append(prediction.without_pixels())
    finally:
        if done:  # also after Ctrl-C: what was predicted so far is on disk with its pictures
            write_atomic(options.output / "segments.json", json_bytes(coco_document(done)))
    seconds = time.perf_counter() - start
    console.print(
        f"{len(done)} photos in {seconds:.1f} s ({seconds / max(1, len(paths)):.2f} s each): {options.output}"
    )
    for prediction in done:
        for note in prediction.notes:
            console.print(f"note: {escape(prediction.source)}: {note}")
    for _, error in failures:
        console.print(f"[red]failed:[/red] {escape(str(error))}")
    return 1 if failures else 0


def requests(options: Options, paths: Sequence[Path]) -> Iterator[api.Request]:
    """What to do with each photo."""
    for path in paths:
        mask = None if options.masks is None else options.masks / f"{path.stem}.png"
        yield api.Request(path, options.object, mask)


def progress(
    predictions: Iterator[Prediction], total: int, failures: list[tuple[ImageLike, Exception]], console: Console
) -> Iterator[Prediction]:
    """The predictions, with a bar that also counts photos that failed."""
    columns = (TextColumn("photos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("photos", total=total)
        for count, prediction in enumerate(predictions, 1):
            yield prediction
            bar.update(task, completed=count + len(failures))


def write(prediction: Prediction, stem: str, options: Options) -> None:
    """Pictures and label map of one photo."""
    if options.overlays:
        save_png(prediction.picture(max_side=options.max_side), options.output / f"{stem}.png")
    if options.labels:
        save_png(prediction.file_labels(), options.output / f"{stem}_labels.png")
    if prediction.attention:
        save_png(prediction.attention_picture(), options.output / f"{stem}_attention.png")


if __name__ == "__main__":
    sys.exit(arguments.run(main, Options, __doc__))
