"""Which manifest and which root belong to a source's name: `data.toml`, so that a recipe needs only names.

    [ucf101.train]                    # source name, split
    manifest = "ucf101_train.csv"     # made by `ppma index`; relative paths count from the folder of this file
    root = "/data/ucf101"
    store = "ucf101_train.store"      # optional, made by `ppma pack`

The file is the one given (`--data FILE`), else `$PPMA_DATA`, else `./data.toml`.
"""

import fcntl
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppma.common.files import write_text
from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import Store

_KEYS = ("manifest", "root", "store")
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One split of one source, with absolute paths."""

    name: str
    split: str
    manifest: Path
    root: Path
    store: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """The entries of one `data.toml`; empty where there is no such file."""

    path: Path
    """The file, whether it exists or not."""
    entries: dict[tuple[str, str], Entry]
    """(name, split) -> entry."""

    def entry(self, name: str, split: str = "train") -> Entry:
        """The entry of `name` and `split`; InputError gives the command that makes a missing one."""
        if (name, split) not in self.entries:
            known = ", ".join(f"{n}.{s}" for n, s in sorted(self.entries)) or "no source"
            raise InputError(
                f"{self.path} has no source {name}.{split} (it has {known}); make it: `ppma index SOURCE --root DIR "
                f"--out {name}_{split}.csv --name {name} --split {split} --data {self.path}`, or, for a data set that "
                f"`ppma datasets` lists, `ppma index --dataset NAME --root DIR --data {self.path}`"
            )
        return self.entries[name, split]

    def manifest(self, name: str, split: str = "train") -> Manifest:
        """Read the manifest of `name` and `split`; where the entry has a packed store, its rows are read from there."""
        entry = self.entry(name, split)
        manifest = Manifest.read(entry.manifest, root=entry.root, name=name)
        return manifest.packed_in(Store(entry.store, manifest_sha256=manifest.sha256)) if entry.store else manifest


def locate(explicit: Path | None = None) -> Path:
    """The data.toml in force: `explicit`, else $PPMA_DATA, else ./data.toml."""
    return Path(explicit or os.environ.get("PPMA_DATA") or "data.toml").absolute()


def find(explicit: Path | None = None) -> Catalog:
    """Read the data.toml in force.

    A file that was asked for and is missing is an InputError; no ./data.toml is an empty catalog.
    """
    path = locate(explicit)
    if not path.exists() and (explicit or os.environ.get("PPMA_DATA")):
        asked = "--data" if explicit else "$PPMA_DATA"
        raise InputError(f"{path}: no such file (from {asked}); `ppma index ... --name NAME --data {path}` makes it")
    return read(path)


def read(path: Path) -> Catalog:
    """Read one data.toml; a missing file is an empty catalog."""
    tables = _load(path.read_text(encoding="utf-8"), path) if path.exists() else {}
    entries = {}
    for name, splits in tables.items():
        if not isinstance(splits, dict) or not all(isinstance(table, dict) for table in splits.values()):
            raise InputError(f"{path}: [{name}] must be split into tables, as [{name}.train] with manifest and root")
        for split, table in splits.items():
            entries[name, split] = _entry(path, name, split, table)
    return Catalog(path=path, entries=entries)


def add(path: Path, *, name: str, split: str, manifest: Path, root: Path, store: Path | None = None) -> None:
    """Add `[name.split]` to the data.toml `path`, in place of an entry of that name.

    The rest of the file stays as it is written, comments too. An old `store` goes: it was packed from the old manifest.
    """
    check_name(name, "name")
    check_name(split, "split")
    given = {"manifest": manifest, "root": root, "store": store}
    lines = [f"[{name}.{split}]"]
    lines += [f"{key} = {_quote(_shorten(value, path.parent))}" for key, value in given.items() if value is not None]
    with _locked(path):
        text = path.read_text(encoding="utf-8")
        before = _load(text, path)
        text = _replace_table(text, (name, split), lines)
        wanted = before | {name: before.get(name, {}) | {split: tomllib.loads("\n".join(lines))[name][split]}}
        if _load(text, path) != wanted:
            raise InputError(f"{path}: cannot edit the way [{name}.{split}] is written; remove it and try again")
        write_text(path, text)


def check_name(value: str, what: str) -> None:
    """Raise InputError unless `value` can be a key of data.toml without quotes."""
    if not _NAME.fullmatch(value):
        raise InputError(f"--{what} is {value!r}; use letters, digits, - and _ only")


def _load(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not TOML: {error}") from None


def _entry(path: Path, name: str, split: str, table: dict[str, Any]) -> Entry:
    for key, value in table.items():
        if key not in _KEYS or not isinstance(value, str):
            keys = f"the keys are {', '.join(_KEYS)}, each a path in quotes"
            raise InputError(f"{path}, [{name}.{split}]: {key} = {value!r}; {keys}")
    missing = [key for key in ("manifest", "root") if key not in table]
    if missing:
        raise InputError(f"{path}, [{name}.{split}]: {missing[0]} is missing; give manifest and root")
    paths = {key: path.parent / Path(value).expanduser() for key, value in table.items()}
    return Entry(name=name, split=split, **paths)


def _shorten(value: Path, folder: Path) -> str:
    """Relative where it lies below the catalog's folder, so that the folder can be moved as a whole."""
    value, folder = value.resolve(), folder.resolve()
    return (value.relative_to(folder) if value.is_relative_to(folder) else value).as_posix()


def _quote(text: str) -> str:
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c for c in text.replace("\\", "\\\\"))
    return '"' + escaped.replace('"', '\\"') + '"'


def _replace_table(text: str, key: tuple[str, str], table: list[str]) -> str:
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.lstrip().startswith("[")]
    for at, after in zip(heads, [*heads[1:], len(lines)]):
        if _is_head(lines[at], key):
            while after > at + 1 and (not lines[after - 1].strip() or lines[after - 1].lstrip().startswith("#")):
                after -= 1  # blank lines and comments there belong to the next table
            return "\n".join([*lines[:at], *table, *lines[after:]]) + "\n"
    return "\n".join([*lines, *([""] if lines and lines[-1].strip() else []), *table]) + "\n"


def _is_head(line: str, key: tuple[str, str]) -> bool:
    try:
        return tomllib.loads(line) == {key[0]: {key[1]: {}}}
    except tomllib.TOMLDecodeError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path` against other writers; it is created empty when missing."""
    while True:
        try:
            file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); give another file with --data") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            still_there = path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino
            if still_there:  # another writer may have renamed its own over the file that was locked here
                yield
                return
