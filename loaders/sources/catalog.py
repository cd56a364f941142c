"""The data catalog, `data.toml`: the manifest, root and packed store of each source, so that a recipe needs only names.

    [ucf101.train]                    # source name, split
    manifest = "ucf101_train.csv"     # made by `ppma index`; relative paths count from the folder of this file
    root = "/data/ucf101"
    store = "ucf101_train.store"      # optional, made by `ppma pack`

Each may be a URL: "s3://bucket/ucf101_train.beton". The file is the one given (`--data FILE`), else `$PPMA_DATA`, else `./data.toml`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from filelock import FileLock
from tomlkit.items import InlineTable

from ppma.common.files import write_text
from ppma.config.errors import InputError, reading
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.remote import Url, as_path
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
    """The entries of one `data.toml`; empty if there is no such file."""

    path: Path
    """The file, whether it exists or not."""
    entries: dict[tuple[str, str], Entry]
    """(name, split) -> entry."""

    def entry(self, name: str, split: str = "train") -> Entry:
        """Return the entry of `name` and `split`.

        Raises:
            InputError: There is none; the message gives the command that makes it.
        """
        if (name, split) not in self.entries:
            known = ", ".join(f"{n}.{s}" for n, s in sorted(self.entries)) or "nothing, or is missing"
            raise InputError(
                f"{self.path} has no source {name}.{split} (it has {known}); make it: `ppma index SOURCE --root DIR "
                f"--out {name}_{split}.csv --name {name} --split {split} --data {self.path}`, or, for a data set that "
                f"`ppma datasets` lists, `ppma index --dataset NAME --root DIR --data {self.path}`"
            )
        return self.entries[name, split]

    def manifest(self, name: str, split: str = "train") -> Manifest:
        """Return the manifest of `name` and `split`; if the entry has a packed store, its rows are read from there.

        Raises:
            InputError: The entry is missing, or its manifest or store is wrong.
        """
        entry = self.entry(name, split)
        manifest = Manifest.read(entry.manifest, root=entry.root, name=name)
        return manifest.packed_in(Store(entry.store, manifest_sha256=manifest.sha256)) if entry.store else manifest


def locate(explicit: Path | None = None) -> Path:
    """Return the path of the data.toml in use: `explicit`, else $PPMA_DATA, else ./data.toml."""
    return Path(explicit or os.environ.get("PPMA_DATA") or "data.toml").absolute()


def find(explicit: Path | None = None) -> Catalog:
    """Read the data.toml in use; without a ./data.toml, the catalog is empty.

    Args:
        explicit: The file that the user gave (`--data`).

    Raises:
        InputError: The file that `explicit` or $PPMA_DATA names is missing, or is wrong.
    """
    path = locate(explicit)
    if not path.exists() and (explicit or os.environ.get("PPMA_DATA")):
        origin = "" if explicit else " (from $PPMA_DATA)"
        raise InputError(f"{path}: no such file{origin}; `ppma index ... --name NAME --data {path}` makes it")
    return read(path)


def read(path: Path) -> Catalog:
    """Read one data.toml; a missing file is an empty catalog. InputError if it is not a catalog."""
    entries = {}
    for name, splits in _parse(path).unwrap().items():
        if not isinstance(splits, dict) or not all(isinstance(table, dict) for table in splits.values()):
            raise InputError(f"{path}: [{name}] must be split into tables, as [{name}.train] with manifest and root")
        for split, table in splits.items():
            entries[name, split] = _entry(path, name, split, table)
    return Catalog(path=path, entries=entries)


def add(path: Path, *, name: str, split: str, manifest: Path, root: Path, store: Path | None = None) -> None:
    """Add or replace the entry `[name.split]` of a data.toml; the rest of the file, with its comments, stays as it is.

    Args:
        path: The data.toml; it is created if it is missing.
        name: Source name.
        split: Split of the source.
        manifest: Its CSV.
        root: Folder that the manifest's paths are relative to.
        store: Its packed store. Without one an old `store` is removed: it was packed from the old manifest.

    Raises:
        InputError: A name is not allowed, or the file is not TOML or cannot be written.
    """
    check_name(name, "name")
    check_name(split, "split")
    given = {"manifest": manifest, "root": root, "store": store}
    with FileLock(path.with_name(f".{path.name}.lock")):
        document = _parse(path)
        splits = document.setdefault(name, tomlkit.table(is_super_table=True))
        inline = isinstance(splits, InlineTable)
        entry = splits.setdefault(split, tomlkit.inline_table() if inline else tomlkit.table())
        for key, value in given.items():
            if value is not None:
                entry[key] = _shorten(value, path.parent)
            else:
                entry.pop(key, None)
        write_text(path, document.as_string())


def check_name(value: str, what: str) -> None:
    """Raise InputError unless `value` can be a key of data.toml without quotes."""
    if not _NAME.fullmatch(value):
        raise InputError(f"--{what} is {value!r}; use letters, digits, - and _ only")


def _parse(path: Path) -> tomlkit.TOMLDocument:
    with reading(path, "a data catalog in TOML"):
        return tomlkit.parse(path.read_text(encoding="utf-8-sig") if path.exists() else "")


def _entry(path: Path, name: str, split: str, table: dict[str, Any]) -> Entry:
    for key, value in table.items():
        if key not in _KEYS or not isinstance(value, str):
            keys = f"the keys are {', '.join(_KEYS)}, each a path in quotes"
            shown = str(as_path(value)) if isinstance(value, str) else value  # without the credentials of a URL
            raise InputError(f"{path}, [{name}.{split}]: {key} = {shown!r}; {keys}")
    missing = [key for key in ("manifest", "root") if key not in table]
    if missing:
        raise InputError(f"{path}, [{name}.{split}]: {missing[0]} is missing; give manifest and root")
    paths = {key: _located(path.parent, value) for key, value in table.items()}
    return Entry(name=name, split=split, **paths)


def _located(folder: Path, value: str) -> Path:
    path = as_path(value).expanduser()
    return path if isinstance(path, Url) else folder / path


def _shorten(value: Path, folder: Path) -> str:
    """Return a path relative to the catalog's folder if it is inside, so that the folder can be moved as a whole."""
    if isinstance(value, Url):
        return value.full
    value, folder = value.resolve(), folder.resolve()
    return (value.relative_to(folder) if value.is_relative_to(folder) else value).as_posix()
