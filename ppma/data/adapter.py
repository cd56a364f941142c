"""What a file of `ppma/datasets` is made of: the facts of one data set, and how its owners' files are read.

    root as its owners ship it  ->  Download: shape checked, lists parsed  ->  Dataset.read  ->  Splits: (path, label) of each split

A data set is one file with `DATASET = Dataset(...)`; it is found because it lies there. Nothing here opens a video or the network.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppma.config.errors import InputError
from ppma.loaders.sources.formats import ABSENT, PICTURE_SUFFIXES, VIDEO_SUFFIXES, Root

_PAIR = re.compile(r"(.*[^\s;])[\s;]+([^\s;]+)")
SHOWN = 5
"""Differences, and things found, that an error names."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a data set's lists say, whether the files are there or not."""

    classes: Sequence[str]
    """Names in the order of their labels; may be empty where the owners give numbers only."""
    clips: dict[str, list[tuple[str, int]]]
    """Split -> (path below the root, label). `train` and `val`; `2.train` and `2.val` are those of a second official split, and so on."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The facts of one data set, and the function that reads a download of it."""

    name: str
    """As in --dataset NAME."""
    title: str
    """As its authors write it, and what it shows."""
    classes: int
    """Number of labels; one may have no clip."""
    published: dict[str, int]
    """Split -> clips that were published; a split whose number is not known is left out."""
    splits: str
    """Where the splits come from."""
    layout: tuple[str, ...]
    """What must be below the root, as patterns; ` | ` stands between alternatives."""
    files: str
    """How the clips are named."""
    licence: str
    """Terms of use, short enough for a row of a manifest."""
    terms: str
    """What must be signed or accepted before the download, and where; empty where nothing must."""
    home: str
    """Where its owners offer it."""
    citation: str
    """Paper to cite."""
    read: "Callable[[Download], Splits]"
    """From a download to its splits."""
    domain: Literal["real", "human-removed", "synthetic"] = "real"
    """Where the pictures come from."""
    source: str = ""
    """Name that recipes know it by, where it is not `name`."""
    vanishing: bool = False
    """Its clips disappear from the web: missing ones are reported and left out unless one asks to stop."""
    unconfirmed: tuple[str, ...] = ()
    """What could not be checked against its owners' own words or files."""


class Labels(dict[str, int]):
    """Class name -> label from 0; InputError for a name that is none."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names` in the order of their labels."""
        super().__init__({name: label for label, name in enumerate(names)})

    def __missing__(self, name: str) -> int:
        raise InputError(f"the lists name {name!r}, which is none of the {len(self)} classes; unpack the lists again")


class Download:
    """A data set's folder; patterns are relative to it, ` | ` between alternatives. InputError names the file and line that is wrong."""

    def __init__(self, root: Path, dataset: Dataset) -> None:
        """Check that `root` has the data set's shape."""
        if not root.is_dir():
            raise InputError(f"--root {root} is not a folder; give the one that {dataset.name} was unpacked into")
        self.root = root
        self.tree = Root(root)
        """Its folders, each listed once."""
        if lacking := [pattern for pattern in dataset.layout if self._match(pattern) is None]:
            found = sorted(self.tree.entries(""))
            count = f"{len(lacking)} of {len(dataset.layout)} expected things are missing"
            raise InputError(
                f"--root {root} is not {dataset.name} as its owners ship it: {count}: {_some([_short(one) for one in lacking])}. "
                f"It holds {_some(found) if found else 'nothing'}. `ppma datasets {dataset.name}` says more"
            )

    def has(self, pattern: str) -> bool:
        """Whether something is there."""
        return self._match(pattern) is not None

    def path(self, pattern: str) -> Path:
        """The first thing that one of the alternatives matches."""
        found = self._match(pattern)
        if found is None:
            raise InputError(f"--root {self.root}: there is no {pattern}; unpack the lists again")
        return found

    def lines(self, pattern: str) -> list[str]:
        """The lines of a text file that are not blank, without what stands around them."""
        return [line.strip() for line in self._text(self.path(pattern)).splitlines() if line.strip()]

    def pairs(self, pattern: str) -> list[tuple[str, str]]:
        """Lines of two parts, split at the last blank or semicolon."""
        rows = [_PAIR.fullmatch(line) for line in self.lines(pattern)]
        if None in rows:
            raise InputError(
                f"{self.path(pattern)}, entry {rows.index(None) + 1}: has no two parts; unpack the lists again"
            )
        return [(row[1], row[2]) for row in rows if row]

    def classed(self, pattern: str) -> list[tuple[str, str]]:
        """Lines `<class>/<clip>`; folders before the class and what follows a semicolon are left away."""
        rows = [line.partition(";")[0].rstrip().rsplit("/", 2)[-2:] for line in self.lines(pattern)]
        for number, row in enumerate(rows, 1):
            if len(row) < 2:
                raise InputError(
                    f"{self.path(pattern)}, entry {number}: {row[0]!r} is not <class>/<clip>; unpack the lists again"
                )
        return [(name, clip) for name, clip in rows]

    def records(self, pattern: str, *keys: str) -> list[dict[str, Any]]:
        """The objects of a JSON list, or of a CSV with a header; each has these keys."""
        path = self.path(pattern)
        rows = list(csv.DictReader(self._text(path).splitlines())) if path.suffix == ".csv" else self.json(pattern)
        if not isinstance(rows, list):
            raise InputError(f"{path}: holds no list; unpack the lists again")
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or any(row.get(key) is None for key in keys):
                raise InputError(f"{path}, entry {number}: it must have {', '.join(keys)}; unpack the lists again")
        return rows

    def json(self, pattern: str) -> Any:
        """What a JSON file holds."""
        path = self.path(pattern)
        try:
            return json.loads(self._text(path))
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {error.lineno}: is not JSON ({error.msg}); unpack the lists again"
            ) from None

    def find(self, *candidates: str) -> str:
        """The first of the paths that is there (the suffix may be left out); the first of all where none is."""
        for path in candidates:
            found, reason = self.tree.find(path)
            if not reason.startswith(ABSENT):
                return found
        return candidates[0]

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in `folder`, sorted."""
        return sorted(name for name, (is_folder, _) in self.tree.entries(folder).items() if is_folder)

    def clips(self, folder: str = "") -> Iterator[str]:
        """Paths of all videos and folders of frames below `folder`, however deep, sorted. Frames themselves are not listed."""
        with os.scandir(self.root / folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            path = os.path.relpath(entry.path, self.root)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from [path] if _holds_frames(entry.path) else self.clips(path)
            elif entry.name.lower().endswith(VIDEO_SUFFIXES):
                yield path

    def _match(self, pattern: str) -> Path | None:
        return next((path for part in pattern.split(" | ") for path in self.root.glob(part)), None)

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not UTF-8 (byte {error.start}); unpack the lists again") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; unpack the lists again") from None


def _holds_frames(folder: str) -> bool:
    """Whether the first thing in it is a picture; a folder of 300 frames is not read to its end."""
    with os.scandir(folder) as scan:
        first = next((entry for entry in scan if not entry.name.startswith(".")), None)
    return first is not None and first.name.lower().endswith(PICTURE_SUFFIXES)


def _short(pattern: str) -> str:
    """The first alternative, and how many others there are."""
    first, *others = pattern.split(" | ")
    return f"{first} (or in {len(others)} other place{'s' * (len(others) > 1)})" if others else first


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more
