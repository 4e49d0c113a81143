"""Pictures and tables of an inspection: the contact sheet, and the tables on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from partseg.data import io
from partseg.data.inspect import Report
from partseg.data.inspect_image import WrongLabelError, read_maps
from partseg.labels import BACKGROUND_LABEL, IGNORE_LABEL
from partseg.structures import Record
from partseg.utils.visualize import legend, overlay, palette, tile
from partseg.vocabulary.names import Vocabulary

SHOWN_NAMES = 10
"""File names per finding on the screen; the json file has more."""

SMALLEST_WINDOW = 0.1
"""Share of the picture that the enlarged view of a single tiny part still shows."""
MARGIN = 1.15


@dataclass(frozen=True)
class _View:
    """One image of the sheet and the labels it shows."""

    picture: np.ndarray
    caption: str
    objects: set[int]
    parts: set[int]


def contact_sheet(report: Report, *, num_images: int = 16, box: tuple[int, int] = (320, 240)) -> np.ndarray:
    """RGB sheet of evenly spaced images: the objects on the photo, then the object-parts, enlarged; below, the names.

    Images that cannot be read are left out; the findings name them. ValueError when none can be shown.
    """
    names = report.layout.names
    records = [(split, record) for split, of_split in report.layout.records.items() for record in of_split]
    views = [v for s, r in _spread(records, num_images) if (v := _view(s, r, names, box)) is not None]
    if not views:
        raise ValueError(f"{report.layout.root} has no image with readable labels to show")
    sheet = tile([view.picture for view in views], columns=2, captions=[view.caption for view in views])
    columns = max(1, sheet.shape[1] // 190)
    found = [
        (names.label_objects, sorted(set().union(*(view.objects for view in views)))),
        (names.object_parts, sorted(set().union(*(view.parts for view in views)))),
    ]
    pictures = [sheet]
    for words, shown in found:
        if shown:
            colors = [palette(words)[k] for k in shown]
            pictures.append(legend([words[k] for k in shown], columns=columns, colors=colors))
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([_padded(picture, width) for picture in pictures], axis=0)


def _view(split: str, record: Record, names: Vocabulary, box: tuple[int, int]) -> _View | None:
    try:
        photo = io.read_image(record.file_name)
        maps = read_maps(record, names, (photo.height, photo.width))
    except (WrongLabelError, ValueError, FileNotFoundError):
        return None
    near = _window(maps.object_part != IGNORE_LABEL)
    whole = (0, 0, photo.width, photo.height)
    scale = min(box[0] / photo.width, box[1] / photo.height)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    objects = _overlay(photo, maps.object, names.label_objects, whole, size)
    parts = _overlay(photo, maps.object_part, names.object_parts, near, size)
    shown = {int(k) for k in np.unique(maps.object_part)} - {IGNORE_LABEL}
    return _View(
        picture=np.concatenate([objects, parts], axis=1),
        caption=f"{split}/{record.image_id}, object-parts: {len(shown)}",
        objects={int(k) for k in np.unique(maps.object)} - {BACKGROUND_LABEL},
        parts=shown,
    )


def _overlay(
    photo: Image.Image,
    labels: np.ndarray,
    names: Sequence[str],
    window: tuple[int, int, int, int],
    size: tuple[int, int],
) -> np.ndarray:
    """The window (left, top, right, bottom) of photo and labels at `size` (width, height)."""
    image = photo.resize(size, Image.Resampling.LANCZOS, box=window)
    ids = Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST, box=window)
    return overlay(np.asarray(image), np.asarray(ids), names)


def _window(labelled: np.ndarray) -> tuple[int, int, int, int]:
    """Around the labelled pixels with a margin, in the picture's own aspect; the whole picture when there are none."""
    height, width = labelled.shape
    rows, columns = np.flatnonzero(labelled.any(1)), np.flatnonzero(labelled.any(0))
    if not len(rows):
        return 0, 0, width, height
    share = max((rows[-1] + 1 - rows[0]) / height, (columns[-1] + 1 - columns[0]) / width)
    share = min(1.0, max(SMALLEST_WINDOW, MARGIN * share))
    window_width, window_height = max(1, round(width * share)), max(1, round(height * share))
    left = min(max(0, int(columns[0] + columns[-1] + 1 - window_width) // 2), width - window_width)
    top = min(max(0, int(rows[0] + rows[-1] + 1 - window_height) // 2), height - window_height)
    return left, top, left + window_width, top + window_height


def tables(report: Report, *, classes: bool = True) -> RenderableType:
    """Counts per class (on request), counts per split against the published ones, and the findings, worst first."""
    return Group(*([_class_table(report)] if classes else []), _split_table(report), *_finding_lines(report))


def _class_table(report: Report) -> Table:
    table = Table(title=f"{report.name}: images and pixels per object-part")
    table.add_column("id", justify="right")
    table.add_column("object-part", no_wrap=True)
    for split in report.splits:
        table.add_column(f"{split} images", justify="right")
        table.add_column(f"{split} pixels", justify="right")
    for k, name in enumerate(report.layout.names.object_parts):
        cells = [f"{n:,}" for counts in report.splits.values() for n in counts.parts.get(k, (0, 0))]
        table.add_row(str(k), name, *cells)
    return table


def _split_table(report: Report) -> Table:
    table = Table(title=escape(f"{report.name} at {report.layout.root}"))
    for column in ("split", "images", "published", "(image, part) pairs", "published", "object-parts", "objects"):
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    names = report.layout.names
    for split, counts in report.splits.items():
        published = report.layout.expected.get(split, {})
        table.add_row(
            split,
            f"{counts.images:,}",
            _number(published.get("images")),
            f"{counts.pairs:,}",
            _number(published.get("(image, part) pairs")),
            f"{len(counts.parts)} of {len(names.object_parts)}",
            f"{len(counts.objects)} of {len(names.label_objects)}",
        )
    return table


def _finding_lines(report: Report) -> Iterator[str]:
    for found in report.findings:
        mark = "[bold red]changes a score[/]" if found.changes_score else "[dim]note[/]"
        yield f"{mark} {found.split}: {found.kind} ({found.count:,}). {found.remedy}."
        listed = list(found.names[:SHOWN_NAMES])
        if found.count > len(listed) > 0:
            listed.append(f"... and {found.count - len(listed):,} more")
        yield from (f"    {escape(name)}" for name in listed)
    if not report.changes_score:
        yield "[green]Nothing found that would change a score.[/]"


def _spread(sources: Sequence[tuple[str, Record]], num: int) -> list[tuple[str, Record]]:
    """Evenly spaced over each split, half of the places for either."""
    by_split = {split: [s for s in sources if s[0] == split] for split in dict.fromkeys(split for split, _ in sources)}
    chosen: list[tuple[str, Record]] = []
    for place, group in enumerate(by_split.values()):
        room = max(1, (num - len(chosen)) // (len(by_split) - place))
        indices = sorted({round(i) for i in np.linspace(0, len(group) - 1, min(room, len(group)))})
        chosen += [group[i] for i in indices]
    return chosen


def _padded(picture: np.ndarray, width: int) -> np.ndarray:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
