"""One conversion run: which items are done, which files they made, and what the finished folder says about itself.

`provenance.json` is written first (complete: false) and last (complete: true). `provenance_items.jsonl` gets one line
per finished item, so a run that was killed goes on where it stopped and ends with the very same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from partseg.data.io import read_json
from partseg.utils.files import json_bytes, link_new, sha256_of, write_atomic, write_new
from partseg.utils.parallel import parallel

PROVENANCE = "provenance.json"
ITEMS = "provenance_items.jsonl"
SHOWN_ERRORS = 20


class Job(Protocol):
    """What a worker needs for one item; frozen and picklable."""

    @property
    def name(self) -> str:
        """Identity of the item within the conversion."""
        ...


@dataclass(frozen=True)
class Item:
    """One converted image. `split` is None when it was left out, then `reason` says why.

    `files` maps paths relative to the output folder to sha256; `classes` maps a level ("object_part", "object") to the
    label ids in the image; `annotations` is what the split's json file needs from it.
    """

    name: str
    split: str | None
    reason: str = ""
    files: dict[str, str] = field(default_factory=dict)
    classes: dict[str, list[int]] = field(default_factory=dict)
    annotations: dict[str, object] | None = None


JobT = TypeVar("JobT", bound=Job)


@dataclass(frozen=True)
class Output:
    """Writes one item's files below the output folder and remembers their hashes for its `Item`."""

    root: Path
    files: dict[str, str] = field(default_factory=dict)

    def write(self, relative: str, data: bytes) -> None:
        """A new file; one that exists with other content is an error, it may be the user's."""
        write_new(self.root / relative, data)
        self.files[relative] = sha256_of(data)

    def place(self, relative: str, source: Path, *, link: bool) -> None:
        """Copy of the source file, or a symbolic link to it; the source is only read."""
        if not link:
            self.write(relative, source.read_bytes())
            return
        link_new(self.root / relative, source)
        self.files[relative] = sha256_of(source)


class Conversion:
    """Resumable conversion into `output` under fixed `options` (everything that changes the result, as plain JSON).

    `version` counts the changes of `tool` that change its output.
    """

    def __init__(self, output: Path, *, tool: str, version: int, options: Mapping[str, object]) -> None:
        self.output = output
        self._shared_before: dict[str, str] = {}
        self.header: dict[str, object] = {
            "tool": tool,
            "version": version,
            "options": json.loads(json.dumps(dict(options))),
        }

    def run(self, work: Callable[[JobT], Item], jobs: Sequence[JobT], *, processes: int) -> list[Item]:
        """Convert what is not yet done; items in order of name. ValueError lists the items that failed."""
        twice = sorted(name for name, count in Counter(job.name for job in jobs).items() if count > 1)
        if twice:
            raise ValueError(f"{len(twice)} image names come twice, {twice[:5]}; image names must be unique")
        self._refuse_other_options()
        done = self._verified_items(processes)
        self.output.mkdir(parents=True, exist_ok=True)
        started = {**self.header, "complete": False, "shared_files": self._shared_before}
        write_atomic(self.output / PROVENANCE, json_bytes(started, indent=2))
        todo = [job for job in jobs if job.name not in done]
        errors: list[str] = []
        with (self.output / ITEMS).open("a", encoding="utf-8") as journal:
            for job, result in parallel(work, todo, processes=processes, title="converting"):
                if isinstance(result, Exception):
                    errors.append(f"{job.name}: {result}")
                    continue
                done[job.name] = result
                journal.write(json.dumps(asdict(result)) + "\n")
                journal.flush()
        if errors:
            shown = "\n  ".join(sorted(errors)[:SHOWN_ERRORS])
            raise ValueError(
                f"{len(errors)} of {len(jobs)} items failed; the others are kept, and the same command goes on "
                f"from here once these are mended:\n  {shown}"
            )
        names = {job.name for job in jobs}
        return sorted((item for item in done.values() if item.name in names), key=lambda item: item.name)

    def finish(
        self,
        items: Sequence[Item],
        *,
        shared_files: Mapping[str, bytes],
        names: Mapping[str, Sequence[str]],
        not_comparable: str,
        notes: Mapping[str, object],
    ) -> dict[str, object]:
        """Write the files that describe all items, then the provenance; returns the provenance.

        `names` maps a level to its class names; `not_comparable` is empty when scores on the result may be compared
        with published ones, else the reason why they may not.
        """
        files = {relative: digest for item in items for relative, digest in item.files.items()}
        shared = {relative: sha256_of(data) for relative, data in sorted(shared_files.items())}
        for relative in shared:
            self._write_shared(relative, shared_files[relative])
        files.update(shared)
        manifest = "".join(f"{digest}  {relative}\n" for relative, digest in sorted(files.items()))
        write_atomic(self.output / ITEMS, "".join(json.dumps(asdict(item)) + "\n" for item in items).encode())
        provenance = {
            **self.header,
            "complete": True,
            "comparable_with_benchmark": not not_comparable,
            "not_comparable_because": not_comparable,
            "images": dict(sorted(Counter(item.split for item in items if item.split).items())),
            "left_out": dict(sorted(Counter(item.reason for item in items if not item.split).items())),
            "images_per_class": _images_per_class(items, names),
            **notes,
            "shared_files": shared,
            "num_files": len(files),
            "manifest_sha256": sha256_of(manifest.encode()),
        }
        write_atomic(self.output / PROVENANCE, json_bytes(provenance, indent=2))
        return provenance

    def _write_shared(self, relative: str, data: bytes) -> None:
        """These files change when the source has grown; the one on disk is replaced only if we wrote it as it is."""
        path = self.output / relative
        if path.is_file() and sha256_of(path) == self._shared_before.get(relative):
            write_atomic(path, data)
        else:
            write_new(path, data)

    def _refuse_other_options(self) -> None:
        path = self.output / PROVENANCE
        if not path.exists():
            return
        previous = read_json(path)
        if not isinstance(previous, Mapping):
            raise ValueError(f"{path} is not what a conversion writes; choose another output folder")
        different = [key for key in self.header if previous.get(key) != self.header[key]]
        if different:
            was = {key: previous.get(key) for key in different}
            now = {key: self.header[key] for key in different}
            raise ValueError(
                f"{self.output} holds a conversion made with {was}, this one has {now}; "
                f"choose another output folder, or remove that one yourself"
            )
        self._shared_before = previous.get("shared_files", {})

    def _verified_items(self, processes: int) -> dict[str, Item]:
        """Items of an earlier run whose files are all still there as written; a changed file is an error naming it."""
        path = self.output / ITEMS
        if not path.exists():
            return {}
        items: dict[str, Item] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                item = Item(**json.loads(line))
            except (ValueError, TypeError):  # the line that was being written when the run was killed
                continue
            items[item.name] = item
        write_atomic(path, "".join(json.dumps(asdict(item)) + "\n" for item in items.values()).encode())
        checks = [_Check(str(self.output), item) for item in items.values()]
        for check, complete in parallel(_is_complete, checks, processes=processes, title="checking what is done"):
            if isinstance(complete, Exception):
                raise complete
            if not complete:
                del items[check.item.name]
        return items


@dataclass(frozen=True)
class _Check:
    root: str
    item: Item


def _is_complete(check: _Check) -> bool:
    for relative, digest in check.item.files.items():
        path = Path(check.root) / relative
        if not path.exists():
            return False
        if sha256_of(path) != digest:
            raise FileExistsError(
                f"{path} was changed after it was written and is left as it is; move it away to have it made again"
            )
    return True


def _images_per_class(items: Sequence[Item], names: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """split -> level -> class name -> number of images that show it; classes without images are listed with 0."""
    table: dict[str, object] = {}
    for split in sorted({item.split for item in items if item.split}):
        levels: dict[str, object] = {}
        for level, class_names in names.items():
            counts = Counter(k for item in items if item.split == split for k in item.classes.get(level, ()))
            levels[level] = {name: counts[k] for k, name in enumerate(class_names)}
        table[split] = levels
    return table
