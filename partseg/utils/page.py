"""Pieces of a page that needs no server: pictures that name the part under the pointer, bars, a confusion matrix.

Everything is inline (data URIs, one style sheet, one script), so a page is one file that asks nothing of a network.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw

from partseg.utils.visualize import palette, short, spots

_FILES = Path(__file__).parent / "page_files"
_NOTHING = 65535

MOST_NAMES = 14
"""Classes of a legend that are shown at once."""

MOST_MARKS, LONGEST_MARKS = 50, 500_000
"""More than a hand draws: each click costs a pass over the photo, half a million characters of outline 0.5 s."""


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart, in percent; None is "not defined"."""

    name: str
    value: float | None
    unseen: bool = False


def document(title: str, body: str) -> str:
    """A whole HTML page; `title` is text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_file('page.css')}{viewer_style()}</style></head>"
        f"<body><main>{body}</main><script>{viewer_script()}</script></body></html>\n"
    )


def viewer_style() -> str:
    """CSS of `viewer`."""
    return _file("viewer.css")


def viewer_script() -> str:
    """JavaScript of `viewer`; sets up every viewer that is or comes on the page."""
    return _file("viewer.js")


def viewer(
    image: UInt8[np.ndarray, "h w 3"],
    labels: Int[np.ndarray, "h w"],
    names: Sequence[str],
    *,
    legend: bool = True,
    caption: str = "",
) -> str:
    """HTML of a photo under its label map; the pointer shows the class, ids >= len(names) are background.

    The page must carry `viewer_style` and `viewer_script`.
    """
    counts = np.bincount(labels.ravel(), minlength=1)
    found = [k for k in np.argsort(-counts[: len(names)], kind="stable").tolist() if counts[k]]
    colors = palette(tuple(names))
    classes = [{"id": k, "name": names[k], "color": list(colors[k])} for k in found]
    buttons = [
        f'<button type="button" data-id="{c["id"]}"><i style="background: rgb{tuple(c["color"])}"></i>'  # type: ignore[arg-type]
        f"{escape(str(c['name']))} <small>{_share(counts[k] / labels.size)}</small></button>"
        for c, k in zip(classes, found)
    ]
    return (
        f'<div class="partseg-viewer" data-classes="{escape(json.dumps(classes))}">'
        + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "")
        + '<div class="stage">'
        f'<img class="photo" alt="" src="{jpeg_uri(image)}">'
        f'<img class="ids" alt="" src="{_ids_uri(labels, len(names))}">'
        f'<canvas></canvas>{_written(labels, names)}<div class="tip"></div></div>'
        + (f'<div class="legend">{_folded(buttons) or "nothing found"}</div>' if legend else "")
        + "</div>"
    )


def _folded(buttons: Sequence[str]) -> str:
    """The largest classes; those that are left are a click away, or a noisy picture has a legend of ten screens."""
    if len(buttons) <= MOST_NAMES + 1:
        return "".join(buttons)
    rest = "".join(buttons[MOST_NAMES:])
    return (
        f"{''.join(buttons[:MOST_NAMES])}<details><summary>{len(buttons) - MOST_NAMES} more</summary>{rest}</details>"
    )


def _written(labels: Int[np.ndarray, "h w"], names: Sequence[str]) -> str:
    """Names on the classes that are wide enough for one line in a picture of half a page, largest first.

    The script hides those that would cover a larger class's, or leave the picture, at the width that is there.
    """
    height, width = labels.shape
    found = [(k, spot) for k, spot in spots(labels, len(names)).items() if spot.radius >= 0.02 * width]
    return "".join(
        f'<span class="written" style="left: {100 * spot.column / width:.1f}%; top: {100 * spot.row / height:.1f}%">'
        f"{escape(short(names[k]))}</span>"
        for k, spot in found
    )


def figures(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    names: Sequence[str],
    *,
    caption: str,
    scale: UInt8[np.ndarray, "h w 3"],
) -> str:
    """HTML of plain pictures in two columns, each with its name, under one caption and over the bar of their scale."""
    cells = "".join(
        f'<figure><img class="plain" alt="" src="{jpeg_uri(image)}"><figcaption>{escape(name)}</figcaption></figure>'
        for image, name in zip(images, names)
    )
    bar = f'<img class="scale" alt="scale" src="{jpeg_uri(scale)}">'
    return f'<div><figcaption>{escape(caption)}</figcaption><div class="figures">{cells}</div>{bar}</div>'


def bars(values: Sequence[Bar]) -> str:
    """HTML bar chart, 0 to 100, in the order given."""
    lines = []
    for bar in values:
        width = 0.0 if bar.value is None else max(0.0, min(100.0, bar.value))
        shown = "none" if bar.value is None else f"{bar.value:.1f}"
        lines.append(
            f'<div class="bar{" unseen" if bar.unseen else ""}" title="{escape(bar.name)}: {shown}">'
            f'<span class="name">{escape(bar.name)}</span>'
            f'<div class="track"><div class="fill" style="width: {width:.2f}%"></div></div>'
            f'<span class="value">{shown}</span></div>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def curves(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """HTML chart of (x, y) points in a common frame, one line per name, with the range of both axes."""
    points = [point for each in lines.values() for point in each]
    (left, right), (bottom, top) = (_range([point[axis] for point in points]) for axis in (0, 1))
    drawn, legend = [], []
    for number, (name, each) in enumerate(lines.items()):
        color = f"hsl({(220 + 137 * number) % 360}, 62%, 45%)"
        places = (((x - left) / (right - left) * 600, 200 - (y - bottom) / (top - bottom) * 200) for x, y in each)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" style="stroke: {color}"><title>{escape(name)}</title></polyline>')
        last = f" {each[-1][1]:.4g}" if each else ""
        legend.append(f'<span><i style="background: {color}"></i>{escape(name)}{last}</span>')
    return (
        f'<div class="chart"><div class="legend">{"".join(legend)}</div>'
        f'<div class="frame"><span class="y">{top:.4g}</span><span class="y low">{bottom:.4g}</span>'
        f'<svg viewBox="0 0 600 200" preserveAspectRatio="none">{"".join(drawn)}</svg></div>'
        f'<div class="x"><span>{left:.4g}</span><span>{right:.4g}</span></div></div>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, never the same."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def matrix(shares: np.ndarray, names: Sequence[str], *, columns: Sequence[str]) -> str:
    """HTML table of a matrix with entries in 0..1, rows are truth; pointing at a cell tells its two names."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = []
    for name, row in zip(names, shares):
        cells = "".join(
            f'<td style="background: {_blue(value)}" title="{escape(name)} as {escape(other)}: {value:.1%}"></td>'
            if value > 0.0005
            else "<td></td>"
            for other, value in zip(columns, row.tolist())
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    body = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="matrix"><table>{body}</table></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML table of texts."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f'<table class="numbers">{"".join(lines)}</table>'


def jpeg_uri(image: UInt8[np.ndarray, "h w 3"], *, quality: int = 88) -> str:
    """The picture as a data URI."""
    return _uri(image, "JPEG", quality)


def _ids_uri(labels: np.ndarray, num_names: int) -> str:
    ids = np.where((labels >= 0) & (labels < num_names), labels, _NOTHING).astype(np.uint16)
    return _uri(np.stack([ids & 255, ids >> 8, np.zeros_like(ids)], -1).astype(np.uint8), "PNG", None)


def _uri(image: np.ndarray, kind: str, quality: int | None) -> str:
    stream = BytesIO()
    Image.fromarray(image).save(stream, kind, **({} if quality is None else {"quality": quality}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else f"{value:.1%}" if value >= 0.001 else "<0.1%"


def _blue(value: float) -> str:
    """White to deep blue; the root makes small confusions visible."""
    strength = value**0.5
    return f"rgb({round(255 - 215 * strength)}, {round(255 - 165 * strength)}, {round(255 - 60 * strength)})"


def _file(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def marker_style() -> str:
    """CSS of `marker`."""
    return _file("marker.css")


def demo_style() -> str:
    """CSS of what the demo has around them."""
    return _file("demo.css")


def marker_script() -> str:
    """JavaScript of `marker`."""
    return _file("marker.js")


def marker(image: UInt8[np.ndarray, "h w 3"], *, target: str, active: bool, hint: str, caption: str = "") -> str:
    """HTML of a photo to draw on; marks go as JSON into the text field that the CSS selector `target` names.

    The page must carry `marker_style` and `marker_script`.
    """
    return (
        f'<div class="partseg-marker{" active" if active else ""}" data-target="{escape(target)}">'
        f'<div class="stage"><img alt="your photo" src="{jpeg_uri(image)}"><canvas></canvas></div>'
        f'<div class="help"><span>{escape(hint)}</span><button type="button">Clear</button></div>'
        f"<figcaption>{escape(caption)}</figcaption></div>"
    )


def read_marks(text: str, size: tuple[int, int]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(bool mask [h, w] of the outlines, clicked pixels (row, column)) of what `marker` wrote; ValueError if not."""
    height, width = size
    canvas, clicks = Image.new("L", (width, height)), []
    draw = ImageDraw.Draw(canvas)
    try:
        marks = json.loads(text or "[]")
        if len(text) > LONGEST_MARKS or len(marks) > MOST_MARKS:
            raise ValueError(f"{len(marks)} marks in {len(text)} characters")
        for mark in marks:
            points = [(float(x) * width, float(y) * height) for x, y in mark.get("outline", [mark.get("click")])]
            if "click" in mark:
                x, y = points[0]
                clicks.append((min(height - 1, max(0, int(y))), min(width - 1, max(0, int(x)))))
            elif len(points) > 2:
                draw.polygon(points, fill=255)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError("the marks on the photo cannot be read; clear them and draw again") from error
    return np.asarray(canvas) > 0, clicks
