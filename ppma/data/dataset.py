"""Data sets that `ppma index --dataset NAME` reads as their owners ship them: one table each, ppma/data/datasets/NAME.toml.

    table  ->  Dataset: metadata and how its splits are read
    root   ->  Download: shape checked, lists parsed  ->  read_splits  ->  Splits: (path, label) of each clip of each split

A table with [read.lists] reads list files; one with `path` reads the clips' own paths. `Reading` documents the keys. A video may have
another suffix than its table and its lists say: many downloads are re-encoded. Nothing here opens a video or the network.
"""

import csv
import difflib
import io
import json
import os
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ppma.config.errors import InputError, first_few, reading
from ppma.loaders.sources import formats
from ppma.loaders.sources.formats import ABSENT, VIDEO_SUFFIXES, Root

TABLES = Path(__file__).parent / "datasets"
SHOWN = 5
"""Names that an error lists."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What the lists of a data set name, whether the files exist or not."""

    classes: Sequence[str]
    """Class names in the order of their labels; empty if the owners give numbers only."""
    clips: dict[str, list[tuple[str, int]]]
    """Split -> (path below the root, label). `2.train` and `2.val` are those of a second official split."""
    notes: dict[str, list[str]]
    """What was left out or is unusual -> names: clips with another suffix than in their list, ..."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    r"""How the splits are read: the [read] table. Patterns of files have ` | ` between alternatives; the first that exists is read.

    Rows come from `lists` or `path`. Templates such as "{class}/{id}.webm" are filled from a row: the named groups of a regular
    expression, the keys of a JSON object or the columns of a CSV, then `split`, and `class_`, the class with underscores for spaces.
    A row has a `class`, or else a `label`.
    """

    lists: Mapping[str, Any] = field(default_factory=dict)
    """Split -> list file: a pattern; or a table of `list`, `line` and `fields` (in place of those below), `where` (values that a row must
    have) and `skip_other_classes`; or several tables, of which the first whose file exists is read."""
    line: str = ""
    """Regular expression of a line; with * in a pattern, all matching files are read and a line begins with `<name of its file>/`.
    Without it, lists are JSON or CSV with a header."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Templates of further values of a row."""
    videos: Sequence[str] = ()
    """Templates of the places of a video; the first that exists counts."""
    anywhere_below: Sequence[str] = ()
    """Folders in which `videos`, without suffix, are looked up at any depth."""
    train_without_val: bool = False
    """Leave out clips of `train` that `val` lists."""

    path: str = ""
    """Regular expression of a clip's path, with a group `class` or `label`, and a group `split` (test becomes val) or `number`."""
    folders: Sequence[str] = ("",)
    """Folders whose clips are listed."""
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Split -> numbers that belong to it, such as "0 2 5-8"; the others belong to its counterpart."""

    class_names: Sequence[str] = ()
    """Class names by label. Without any of these keys they are the sorted classes of the rows."""
    classes_of: str = ""
    """Name of the data set that has the same classes."""
    numbered: str = ""
    """Template of class names that are numbers."""
    class_list: str = ""
    """File of class names: JSON (name -> label, or a list of words for each class), or text with one class per line."""
    class_line: str = ""
    """Regular expression of a line of `class_list`."""
    names: Sequence[str] = ()
    """JSON lists with `id` and `template` that name the class of each labeled row with that id."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is known of one data set, and how its splits are read."""

    name: str
    """Name of its table, as in --dataset NAME."""
    title: str
    """Its own name, and what it shows."""
    classes: int
    """Number of labels; a label may have no clip."""
    published: dict[str, int]
    """Split -> published number of clips, where that is known."""
    splits: str
    """Source of the splits."""
    layout: Sequence[str]
    """Patterns of what must be below the root."""
    files: str
    """How the clips are named."""
    license: str
    """Terms of use, short enough for a row of a manifest."""
    terms: str
    """What to sign or accept before the download, and where; empty if nothing."""
    home: str
    """Where its owners offer it."""
    citation: str
    """Paper to cite."""
    read: Reading
    domain: Literal["real", "human-removed", "synthetic"] = "real"
    """What the pictures are."""
    source: str = ""
    """Name in recipes, if that is not `name`."""
    numbering: str = ""
    """What the labels follow, where there is a choice."""
    vanishing: bool = False
    """True if clips disappear from the web: missing ones are reported and skipped by default."""
    unconfirmed: Sequence[str] = ()
    """What was not checked against the owners' own words or files."""


def known() -> dict[str, Dataset]:
    """Return all data sets by name, sorted."""
    return {path.stem: _load(path) for path in sorted(TABLES.glob("*.toml"))}


def _load(path: Path) -> Dataset:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return Dataset(name=path.stem, **table | {"read": Reading(**table["read"])})


def find(name: str) -> Dataset:
    """Return the data set of this name; InputError lists the known ones."""
    datasets = known()
    if name not in datasets:
        close = difflib.get_close_matches(name, datasets, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"--dataset: there is no {name!r}; {hint}known: {', '.join(datasets)} (`ppma datasets`)")
    return datasets[name]


# -------------------------------------------------------------------------------------------------- from rows to splits


def read_splits(download: "Download") -> Splits:
    """Read the official splits from a download; InputError names the file and the entry that cannot be read."""
    dataset, read = download.dataset, download.dataset.read
    notes: defaultdict[str, list[str]] = defaultdict(list)
    rows = _listed(read, download, notes) if read.lists else _by_path(read, download, notes)
    if read.train_without_val:
        held_out = {(row["class"], row["file"]) for row in rows["val"]}
        rows["train"] = [row for row in rows["train"] if (row["class"], row["file"]) not in held_out]
    classes = _class_names(dataset, download, rows)
    labels = {name: label for label, name in enumerate(classes)}
    below = [path for folder in reversed(read.anywhere_below) for path in reversed(download.clips(folder))]
    bare = {_bare(path): path for path in below}

    def place(row: Row) -> str:
        places = [template.format(**row) for template in read.videos]
        if bare:
            return next((bare[_bare(path)] for path in places if _bare(path) in bare), places[0])
        found = row.get("path") or download.find(places)
        if places and formats.suffix_remark(places[0], found):
            notes["clips with another suffix than in their list"].append(found)
        return found

    def is_wanted(row: Row) -> bool:
        return not row.get("skip_other_classes") or row["class"] in labels

    where = f"--root {download.root}"
    try:
        clips = {
            split: [(place(row), _label(row, labels, where)) for row in found if is_wanted(row)]
            for split, found in rows.items()
        }
    except KeyError as missing:
        raise InputError(f"{where}: a list has an entry without {missing}; unpack the lists again") from None
    if not classes:
        notes["labels without a class name"] = [
            f"{label}" for label in sorted({n for c in clips.values() for _, n in c})
        ]
    once = {note: list(dict.fromkeys(names)) for note, names in notes.items()}  # splits may share clips
    return Splits(classes=classes, clips=clips, notes=once)


def _label(row: Row, labels: Mapping[str, int], where: str) -> int:
    if "class" in row:
        if row["class"] not in labels:
            raise InputError(f"{where}: {row['class']!r} is none of the {len(labels)} classes; unpack the lists again")
        return labels[row["class"]]
    label = str(row["label"])
    if not label.isdecimal() or (labels and int(label) >= len(labels)):
        raise InputError(f"{where}: label {label!r} is not in 0..{len(labels) - 1}; unpack the lists again")
    return int(label)


def _class_names(dataset: Dataset, download: "Download", rows: Mapping[str, Sequence[Row]]) -> list[str]:
    read = dataset.read
    if read.class_names or read.classes_of:
        return list(read.class_names or find(read.classes_of).read.class_names)
    if read.numbered:
        return [read.numbered.format(label) for label in range(dataset.classes)]
    if read.class_line:
        return [row["class"] for row in download.rows(read.class_list, read.class_line)]
    if read.class_list:
        content = download.json(read.class_list)
        if isinstance(content, dict):
            return sorted(content, key=lambda name: int(content[name]))
        return [" ".join(filter(None, words)) for words in content]
    flat = [row for found in rows.values() for row in found]
    if read.names:
        return _names_by_id(read, download, {row["id"]: int(row["label"]) for row in flat})
    return sorted({row["class"] for row in flat if "class" in row})


def _names_by_id(read: Reading, download: "Download", label_of: Mapping[str, int]) -> list[str]:
    """Return the template that the clips of each label share; nothing if lists are missing or disagree."""
    found: dict[int, str] = {}
    for row in (row for pattern in read.names if download.has(pattern) for row in download.rows(pattern)):
        label, name = label_of.get(row["id"]), _class_name(row["template"])
        if label is not None and found.setdefault(label, name) != name:
            return []
    complete = set(found) == set(label_of.values()) == set(range(len(found)))
    return [found[label] for label in range(len(found))] if complete else []


def _class_name(text: str) -> str:
    """Drop the brackets that SSv2 puts around objects."""
    return text.replace("[", "").replace("]", "")


def _listed(read: Reading, download: "Download", notes: Mapping[str, list[str]]) -> dict[str, list[Row]]:
    """Return the rows of each split from its list; a split whose list does not exist is left out and noted."""
    found = {}
    for split, tables in read.lists.items():
        tables = [{"list": tables}] if isinstance(tables, str) else tables if isinstance(tables, list) else [tables]
        table = next((table for table in tables if download.has(table["list"])), None)
        if table is None:
            notes["splits without a list, not indexed"].append(f"{split} ({tables[0]['list'].partition(' | ')[0]})")
            continue
        line, fields = table.get("line", read.line), {**read.fields, **table.get("fields", {})}
        where = table.get("where", {})
        more = {"split": split.rpartition(".")[2], "skip_other_classes": table.get("skip_other_classes", False)}
        found[split] = [
            row | more
            for row in download.rows(table["list"], line, fields)
            if all(row[key] == value for key, value in where.items())
        ]
    return found


def _by_path(read: Reading, download: "Download", notes: Mapping[str, list[str]]) -> dict[str, list[Row]]:
    """Return the rows of each split from the paths of the clips; a clip with another path is left out and noted."""
    numbers = {split: _numbers(text) for split, text in read.numbers.items()}
    prefixes = {split.removesuffix("train").removesuffix("val") for split in numbers} or {""}
    found: dict[str, list[Row]] = {f"{prefix}{part}": [] for prefix in sorted(prefixes) for part in ("train", "val")}
    for path in (path for folder in read.folders for path in download.clips(folder)):
        match = re.fullmatch(read.path, path)
        if match is None:
            notes["clips that no split names, left out"].append(path)
            continue
        row = {"path": path, **match.groupdict()}
        if "split" in row:
            found["val" if row["split"] == "test" else row["split"]].append(row)
        for split, inside in numbers.items():
            other = split.replace("train", "val") if split.endswith("train") else split.replace("val", "train")
            found[split if int(row["number"]) in inside else other].append(row)
    return found


def _numbers(text: str) -> frozenset[int]:
    """Read "5-8 11" as {5, 6, 7, 8, 11}."""
    ends = [[int(end) for end in part.split("-")] for part in text.split()]
    return frozenset(number for first, *last in ends for number in range(first, (last or [first])[0] + 1))


def _bare(path: str) -> str:
    """Return the file's name without the suffix of a video."""
    return formats.without_suffix(path.rpartition("/")[2])


# ------------------------------------------------------------------------------------------------------------ a download


class Download:
    """The folder of a data set; patterns are relative to it, with ` | ` between alternatives.

    A pattern that ends in the suffix of a video matches videos of every suffix.
    """

    def __init__(self, root: Path, dataset: Dataset, *, follow_links: bool = False) -> None:
        """Check that `root` has the shape of the data set; InputError names what is missing and what is there."""
        if not root.is_dir():
            raise InputError(f"--root {root} is not a folder; give the one that {dataset.name} was unpacked into")
        self.root, self.dataset = root, dataset
        self.tree = Root(root, follow_links=follow_links)
        if lacking := [pattern for pattern in dataset.layout if not self.has(pattern)]:
            found = sorted(self.tree.entries(""))
            count = f"{len(lacking)} of {len(dataset.layout)} expected things are missing"
            raise InputError(
                f"--root {root} is not {dataset.name} as its owners ship it: {count}: {first_few([*map(_short, lacking)], SHOWN)}. "
                f"It holds {first_few(found, SHOWN) if found else 'nothing'}. `ppma datasets {dataset.name}` says more"
            )

    def has(self, pattern: str) -> bool:
        """Return True if a file or folder matches."""
        return any(True for part in pattern.split(" | ") for _ in self._glob(part))

    def _glob(self, part: str) -> Iterator[Path]:
        if formats.without_suffix(part) == part:
            return self.root.glob(part)
        paths = self.root.glob(f"{formats.without_suffix(part)}.*")
        return (path for path in paths if path.name.lower().endswith(VIDEO_SUFFIXES))

    def rows(self, pattern: str, line: str = "", fields: Mapping[str, str] | None = None) -> list[Row]:
        """Read a list.

        Args:
            pattern: The list; with * in it, all files that match.
            line: Regular expression of a line of text, whose named groups become a row; without it the list is JSON or CSV.
            fields: Templates of further values.

        Raises:
            InputError: The list or an entry cannot be read.
        """
        rows = []
        for number, (path, entry) in enumerate(self._entries(pattern, text=bool(line)), 1):
            match = re.fullmatch(line, entry) if line else None
            row = match.groupdict() if match else entry
            if not isinstance(row, dict):
                raise InputError(f"{path}, entry {number}: {entry!r} cannot be read; unpack the lists again")
            row = {key: value for key, value in row.items() if value is not None}
            try:
                row |= {key: template.format(**row) for key, template in (fields or {}).items()}
            except KeyError as missing:
                raise InputError(f"{path}, entry {number}: has no {missing}; unpack the lists again") from None
            if "class" in row:
                row["class"] = _class_name(row["class"])
                row["class_"] = row["class"].replace(" ", "_")
            rows.append(row)
        return rows

    def _entries(self, pattern: str, *, text: bool) -> Iterator[tuple[Path, Any]]:
        """Yield (file, line or JSON object or row of a CSV)."""
        for path in self._files(pattern):
            if text:
                lines = (line.strip() for line in self._text(path).split("\n"))  # a name may hold other line breaks
                prefix = f"{path.name}/" if "*" in pattern else ""
                yield from ((path, prefix + line) for line in lines if line)
            elif path.suffix == ".csv":
                yield from ((path, row) for row in csv.DictReader(io.StringIO(self._text(path), newline="")))
            else:
                content = self._parse(path)
                if not isinstance(content, list):
                    raise InputError(f"{path}: holds no list; unpack the lists again")
                yield from ((path, row) for row in content)

    def json(self, pattern: str) -> Any:
        """Return the content of a JSON file."""
        return self._parse(self._files(pattern)[0])

    def find(self, places: Sequence[str]) -> str:
        """Return the first path that exists (its suffix may be left out), or the first of all if none does."""
        for path in places:
            found, reason = self.tree.find(path)
            if not reason.startswith(ABSENT):
                return found
        return places[0]

    def clips(self, folder: str = "") -> list[str]:
        """Return the sorted paths of all videos and folders of frames below `folder`; [] if that does not exist."""
        here = self.root / folder
        if not here.is_dir():
            return []
        with os.scandir(here) as scan:
            entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
        found, real = [], Path(os.path.realpath(here))
        for entry in entries:
            path = os.path.relpath(entry.path, self.root)
            if formats.entry_kind(entry)[0]:
                if entry.is_symlink() and real.is_relative_to(os.path.realpath(entry.path)):
                    continue  # a link back up: what is there is listed already
                found += [path] if formats.holds_frames(Path(entry.path)) else self.clips(path)
            elif entry.name.lower().endswith(VIDEO_SUFFIXES):
                found.append(path)
        return found

    def _files(self, pattern: str) -> list[Path]:
        """Return the files that the first matching alternative matches, sorted."""
        return next((found for part in pattern.split(" | ") if (found := sorted(self._glob(part)))), [])

    def _parse(self, path: Path) -> Any:
        with reading(path, "a list in JSON (unpack the lists again)"):
            return json.loads(path.read_text(encoding="utf-8-sig"))

    def _text(self, path: Path) -> str:
        with reading(path, "a list (unpack the lists again)"):
            return path.read_text(encoding="utf-8-sig")


def _short(pattern: str) -> str:
    """Return the first alternative, and the number of others."""
    first, *others = pattern.split(" | ")
    return f"{first} (or in {len(others)} other place{'s' * (len(others) > 1)})" if others else first
