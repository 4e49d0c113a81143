"""What the preparation tools share: finding sources and reporting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from converters.conversion import PROVENANCE
from partseg.data.io import files_by_stem


def find_folder(root: Path, inside: Sequence[str]) -> Path:
    """The first of the paths `inside` the root that exists; FileNotFoundError lists what was tried."""
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist")
    for relative in inside:
        if (root / relative).exists():
            return root / relative
    raise FileNotFoundError(f"{root} holds none of {list(inside)}; it may be one directory level off")


def find_stems(root: Path, suffixes: Sequence[str], *, inside: Sequence[str]) -> dict[str, Path]:
    """Files by name without suffix in `root` itself, or in the first of the folders `inside` that exists."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    found = files_by_stem(root, suffixes)
    if not found and inside:
        found = files_by_stem(find_folder(root, inside), suffixes)
    if not found:
        raise FileNotFoundError(f"{root} holds no {' or '.join(suffixes)} files; it may be one directory level off")
    return found


def read_names(path: Path) -> set[str]:
    """First word of each line of an image set file."""
    return {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}


def report(provenance: Mapping[str, Any], output: Path) -> None:
    """Counts on the screen, and where they are written."""
    table = Table()
    table.add_column("split")
    table.add_column("images", justify="right")
    for split, count in {**provenance.get("images", {}), **provenance.get("left_out", {})}.items():
        table.add_row(split, str(count))
    console = Console()
    console.print(table)
    if provenance.get("not_comparable_because"):
        console.print(
            f"Not comparable with the benchmark: {provenance['not_comparable_because']}.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Counts per class and the manifest hash: {output / PROVENANCE}", highlight=False, soft_wrap=True)
