"""Parts in your own photos, with your own words.

    partseg predict ckpt=output/my_run input=photos/ vocabulary='{dog: [head, tail], car: [wheel]}'
    partseg predict ckpt=CIDAS/clipseg-rd64-refined input=photo.jpg vocabulary='[dog head, wheel]'
    partseg predict ckpt=output/my_run input='frames/*.png' vocabulary=words.yaml protocol=oracle_obj object=dog

Arguments are key=value:
    ckpt        a .pt file, a run directory, a saved folder, a public checkpoint's file or hub name (required)
    model       the system for a public checkpoint that several read, a file of configs/model (default: the zoo's)
    input       file, folder or glob; may be given several times (required). Frames come in natural order
    vocabulary  YAML mapping or file, or pascal_part_116, ade20k_part_234, partimagenet_40 (default: the checkpoint's);
                a flat list '[dog head, wheel]' is phrases
    phrases     a mask for each of these instead of a vocabulary, for systems that read phrases; several times
    output      folder of what is written (default: predictions): a new one, or that of an earlier run; never one that
                photos or masks are read from
    protocol    pred_all, or oracle_obj, which is told the object (default: pred_all)
    object      oracle_obj: the object's name
    masks       oracle_obj: folder with a mask PNG per photo of the same name, the object in any colour but black
                (default: the object is everywhere)
    overlays    false writes no pictures (default true)
    labels      false writes no label PNGs (default true)
    attention   true also writes what the network looked at for each part (default false)
    scores      true adds the mean probability of each segment (default false)
    min_score   instances below this score are left out (default 0), for systems that find instances
    max_side    longer side of the pictures in pixels (default 1600); label PNGs keep the photo's size
    batch_size  photos through the network at once (default 4)
    device      cpu, cuda, cuda:1, ... (default: a GPU where there is one)
    precision   fp32, bf16 or fp16 (default fp32)
    object_first  true finds the objects and looks for the parts of each on a cut-out of the photo (default false)
    plugins     module of yours that the checkpoint's network is from; may be given several times

Written: <name>.png (parts over the photo, with legend), <name>_labels.png (16-bit ids, 65535 is background),
<name>_attention.png, and segments.json (a COCO file: images, categories, annotations with RLE, area and box). <name> is
the photo's, with its suffix, folder or a number added where files of two photos would meet.
Exit code 1: some photos could not be read, or their results not be written (they are listed at the end); the rest was
done. 2: nothing was done.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from partseg import api
from partseg.data.images import list_images, unique_stems
from partseg.data.io import read_json
from partseg.photo_prediction import COCO_INFO, PhotoPrediction, coco_document
from partseg.requests import Request, given_objects
from partseg.system import Words
from partseg.utils import arguments
from partseg.utils.files import json_bytes, write_atomic
from partseg.utils.visualize import save_png
from partseg.vocabulary.words import as_vocabulary

SEGMENTS = "segments.json"
ENDINGS = (".png", "_labels.png", "_attention.png")


@dataclass(frozen=True)
class Options:
    ckpt: str
    input: tuple[str, ...]
    model: str | None = None
    vocabulary: str | None = None
    phrases: tuple[str, ...] = ()
    output: Path = Path("predictions")
    protocol: str = "pred_all"
    object: str | None = None
    masks: Path | None = None
    overlays: bool = True
    labels: bool = True
    attention: bool = False
    scores: bool = False
    min_score: float = 0.0
    max_side: int = 1600
    batch_size: int = 4
    device: str | None = None
    precision: str = "fp32"
    object_first: bool = False
    plugins: tuple[str, ...] = ()


def main(options: Options) -> int:
    console, start = Console(soft_wrap=True, highlight=False), time.perf_counter()
    if options.max_side < 1:
        raise ValueError(f"max_side={options.max_side} must be at least 1")
    paths, others = list_images(options.input)
    if others:
        some = ", ".join(p.name for p in others[:5]) + (", ..." if len(others) > 5 else "")
        console.print(f"{len(others)} files are no images and are left out: {escape(some)}")
    phrases = options.phrases or flat_words(options.vocabulary) or None
    vocabulary = None if options.vocabulary is None or phrases else as_vocabulary(options.vocabulary)
    if options.phrases and options.vocabulary is not None:
        raise ValueError("give either vocabulary= or phrases=, not both")
    check_masks(options, paths)
    segmenter = api.load(
        options.ckpt,
        options.device,
        model=options.model,
        precision=options.precision,  # type: ignore[arg-type]
        object_first=options.object_first,
        plugins=options.plugins,
    )
    words = segmenter.words(vocabulary, phrases)
    console.print(escape(str(segmenter.about)))
    failures: list[str] = []
    predictions = segmenter.predict_many(
        requests(options, paths),
        vocabulary,
        phrases=phrases,
        protocol=options.protocol,
        return_scores=options.scores,
        attention=options.attention,
        min_score=options.min_score,
        batch_size=options.batch_size,
        on_error=lambda _, error: failures.append(str(error)),
    )
    given_objects(next(requests(options, paths)), words, options.protocol, needs_object=segmenter.input.needs_object)
    stems = unique_stems(paths, endings=ENDINGS, taken=[SEGMENTS])
    claim_output(options, paths, stems.values(), words)
    done: list[PhotoPrediction] = []
    try:
        for prediction in progress(predictions, len(paths), done, failures, console):
            try:
                write(prediction, stems[Path(prediction.source)], options)
            except OSError as error:  # a name that the file system does not take; the others may be fine
                failures.append(f"cannot write the results of {prediction.source}: {error.strerror}")
            else:
                done.append(prediction.without_pixels())
    finally:
        if done:  # also after Ctrl-C: what was predicted so far is on disk with its pictures
            write_atomic(options.output / SEGMENTS, json_bytes(coco_document(done, words)))
    seconds = time.perf_counter() - start
    console.print(
        f"{len(done)} photos in {seconds:.1f} s ({seconds / max(1, len(paths)):.2f} s each): {options.output}"
    )
    if segmenter.about.caution:
        console.print(f"[yellow]note:[/yellow] {segmenter.about.caution}")
    for prediction in done:
        for note in prediction.notes:
            console.print(f"note: {escape(prediction.source)}: {note}")
    for failure in failures:
        console.print(f"[red]failed:[/red] {escape(failure)}")
    return 1 if failures else 0


def flat_words(text: str | None) -> tuple[str, ...]:
    """The phrases of a flat list `[dog head, wheel]`; none for every other form of a vocabulary."""
    inner = (text or "").strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        return ()
    return tuple(word.strip().strip("'\"") for word in inner[1:-1].split(",") if word.strip())


def check_masks(options: Options, paths: Sequence[Path]) -> None:
    """ValueError or FileNotFoundError for a folder of masks that cannot be the photos'."""
    if options.masks is None:
        return
    if not options.masks.is_dir():
        raise FileNotFoundError(f"masks={options.masks} is no folder")
    if any(path.suffix.lower() == ".png" and path.parent.samefile(options.masks) for path in paths):
        raise ValueError(f"masks={options.masks} holds the photos themselves; keep masks in a folder of their own")
    shared = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if shared:
        raise ValueError(
            f"{len(shared)} names, the first is {shared[0]!r}, belong to several photos, which would share one mask in "
            f"masks={options.masks}; give one folder of photos at a time"
        )


def claim_output(options: Options, paths: Sequence[Path], stems: Collection[str], words: Words) -> None:
    """Make the output folder ours by an empty segments.json; ValueError where results would replace other files."""
    folder = options.output
    read_from = {path.parent for path in paths} | {Path(os.path.realpath(path)).parent for path in paths}
    if options.masks is not None:
        read_from.add(options.masks)
    if folder.exists() and any(each.is_dir() and each.samefile(folder) for each in read_from):
        raise ValueError(f"output={folder} is a folder that photos or masks are read from; choose another folder")
    if is_ours(folder / SEGMENTS):
        return
    written = compress(ENDINGS, (options.overlays, options.labels, options.attention))
    names = [SEGMENTS, *(stem + ending for ending in written for stem in stems)]
    there = [name for name in names if os.path.lexists(folder / name)]
    if there:
        raise ValueError(
            f"output={folder} holds {there[0]}, which this tool did not write and would replace; choose another folder"
        )
    try:
        write_atomic(folder / SEGMENTS, json_bytes(coco_document([], words)))
    except OSError as error:
        raise ValueError(f"output={folder} cannot be written to: {error.strerror}; choose another folder") from error


def is_ours(path: Path) -> bool:
    """Is this the segments.json of an earlier run?"""
    try:
        content = read_json(path)
    except (ValueError, OSError):
        return False
    info = content.get("info") if isinstance(content, dict) else None
    return isinstance(info, dict) and info.items() >= COCO_INFO.items()


def requests(options: Options, paths: Sequence[Path]) -> Iterator[Request]:
    """What to do with each photo."""
    for path in paths:
        mask = None if options.masks is None else options.masks / f"{path.stem}.png"
        yield Request(path, options.object, mask)


def progress(
    predictions: Iterator[PhotoPrediction], total: int, done: Sized, failures: Sized, console: Console
) -> Iterator[PhotoPrediction]:
    """The predictions, with a bar that also counts photos that failed."""
    columns = (TextColumn("photos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("photos", total=total)
        for prediction in predictions:
            yield prediction
            bar.update(task, completed=len(done) + len(failures))


def write(prediction: PhotoPrediction, stem: str, options: Options) -> None:
    """Pictures and label map of one photo."""
    if options.overlays:
        save_png(prediction.picture(max_side=options.max_side), options.output / f"{stem}.png")
    if options.labels:
        save_png(prediction.file_labels(), options.output / f"{stem}_labels.png")
    if prediction.attention:
        save_png(prediction.attention_picture(), options.output / f"{stem}_attention.png")


def command() -> int:
    """The command line."""
    return arguments.run(main, Options, __doc__)
