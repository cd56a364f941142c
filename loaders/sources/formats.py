"""Read folder trees and list files into the same rows, without opening a video.

    folder tree, list file  ->  reader of its format (FORMATS)  ->  Listed rows: path, label, class name, or why refused

Names may hold anything but line breaks: spaces, brackets, commas, non-ASCII letters in either Unicode form. A new
format is a function `(source, root, classes) -> list[Listed]` and one line in FORMATS.
"""

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath

from ppma.config.errors import InputError

FRAME_FOLDER_FPS = 25.0
"""Frames per second of a folder of frames, which stores no rate (paper: 25)."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".divx", ".flv", ".h264", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
"""Suffixes that a list may omit, and that mark a video in a folder tree. The content decides the format."""
DETECTION_LINES = 1000
"""Lines of a list that are read to detect its separator."""
ABSENT = "there is no "
"""Start of the reason for a path that does not exist."""
_LIST_LINE = {";": re.compile(r"\s*(.*\S)\s*;\s*(\S*)\s*"), " ": re.compile(r"\s*(.*\S)\s+(\S+)\s*")}
_WRITTEN = {";": "path;label", " ": "path label"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One clip as its source names it, before it is opened."""

    path: str
    """Relative to the root, with forward slashes and its real suffix; as the list has it if it was not found."""
    label: int | None
    class_name: str = ""
    start_seconds: float | None = None
    end_seconds: float | None = None
    line: int = 0
    """Line in the list, from 1; 0 for a folder tree."""
    reason: str = ""
    """Why the clip is refused, or empty."""


def list_frames(folder: Path) -> list[Path]:
    """Return the pictures of a folder of frames in natural order (2 before 10).

    Raises:
        InputError: It has none, or both JPEG and PNG.
    """
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != "."]
    if not paths:
        raise InputError(f"{folder}: holds no frames; name them 000001.jpg, 000002.jpg, ... (or .png)")
    if len({path.suffix.lower() == ".png" for path in paths}) > 1:
        raise InputError(f"{folder}: holds both JPEG and PNG frames; keep one kind, they may be the same frames twice")
    if len({len(path.name) for path in paths}) == 1:
        return sorted(paths)
    return sorted(paths, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", path.name)]


def read_source(source: Path, *, root: Path, format: str = "auto", classes: list[str] | None = None) -> list[Listed]:
    """Return all clips that a source names, in its order; a row that cannot be used has a reason.

    Args:
        source: Folder tree or list file.
        root: Folder that the paths are relative to.
        format: One of FORMATS, or "auto".
        classes: Class names in the order of their labels; by default a tree's labels are its sorted class names.

    Raises:
        InputError: The source cannot be read in this format, or names no clip.
    """
    if not root.is_dir():
        raise InputError(f"--root {root} is not a folder; give the one that the paths are relative to")
    name = detect(source) if format == "auto" else format
    if source.is_dir() != (name == "tree"):
        kind = "a folder" if source.is_dir() else "a file"
        raise InputError(f"{source} is {kind}; --format {name} does not read that")
    rows = refuse_repeats(FORMATS[name](source, root, classes))
    if not rows:
        raise InputError(f"{source}: names no clip; expected {'<class>/<video>' if name == 'tree' else 'path;label'}")
    return rows


def detect(source: Path) -> str:
    """Return the format of a source: "tree" for a folder; for a list, the separator that fits more lines."""
    if source.is_dir():
        return "tree"
    lines = [line for _, line in _lines(source)[:DETECTION_LINES]]
    fits = {separator: sum(_label(line, separator) is not None for line in lines) for separator in _LIST_LINE}
    semicolon = fits[";"] >= fits[" "] if any(fits.values()) else any(";" in line for line in lines[:1])
    return "semicolon" if semicolon else "space"


def read_classes(file: Path) -> list[str]:
    """Return the class names of a file with one name per line; the first is label 0."""
    names = [line.strip() for _, line in _lines(file)]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None or not names:
        raise InputError(
            f"{file}: {f'names {repeated!r} twice' if names else 'is empty'}; give one class name per line"
        )
    return names


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return (number from 1, text) of the lines that are not blank."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give an existing file or folder") from None
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _key(name: str) -> str:
    """Return a name in the Unicode form for comparisons: a Mac decomposes letters that a list writes as one."""
    return unicodedata.normalize("NFC", name)


class Root:
    """List each folder below a root once: a million `stat` calls take an hour on a network file system."""

    def __init__(self, root: Path) -> None:
        self.path = root.absolute()
        self._real = os.path.realpath(root)
        self.entries = cache(self._scan)
        self._named = cache(self._by_name)

    def _scan(self, folder: str) -> dict[str, tuple[bool, str]]:
        """Return {name: (is a folder, why it cannot be used or "")} of a folder; empty if there is none."""
        here = self.path / folder
        if not here.is_dir():
            return {}
        outside = not self._inside(os.path.realpath(here))
        with os.scandir(here) as scan:
            return {entry.name: self._judge(entry, outside) for entry in scan if entry.name[0] != "."}

    def _by_name(self, folder: str) -> dict[str, list[str]]:
        """Return {name in one Unicode form: entries it may mean}, with and without a video's suffix."""
        names = defaultdict(list)
        for name, (is_folder, _) in self.entries(folder).items():
            names[_key(name)].append(name)
            if not is_folder and name.lower().endswith(VIDEO_SUFFIXES):
                names[_key(name.rpartition(".")[0])].append(name)
        return names

    def _inside(self, real: str) -> bool:
        return real == self._real or real.startswith(self._real.rstrip("/") + "/")

    def _judge(self, entry: os.DirEntry[str], outside: bool) -> tuple[bool, str]:
        reason = ""
        if not entry.name.isprintable():  # also what is not UTF-8: Python shows such bytes as lone surrogates
            reason = "its name has a line break, a control character or is not UTF-8; rename it"
        elif outside or (entry.is_symlink() and not self._inside(os.path.realpath(entry.path))):
            reason = "is a link that leads out of the root; give a --root that holds its target too, or copy it"
        elif not entry.is_dir() and not entry.is_file():
            reason = "is a link to nothing" if entry.is_symlink() else "is neither a file nor a folder"
        return entry.is_dir(), reason

    def find(self, path: str) -> tuple[str, str]:
        """Return (real path relative to the root, reason or "") of a path that may lack its suffix."""
        folder, name = posixpath.split(path)
        if folder and not self.entries(folder):
            folder, reason = self.find_folder(folder)
            if reason:
                return path, reason
        entries = self.entries(folder)
        exact = name in entries and not entries[name][0]
        found = [name] if exact else self._named(folder).get(_key(name), [])
        if not found:
            return path, f"{ABSENT}such file, with or without a video's suffix, and no such folder"
        if len(found) > 1:
            return path, f"may be any of {', '.join(sorted(found))}; write it with its suffix"
        return posixpath.join(folder, found[0]), entries[found[0]][1]

    def find_folder(self, folder: str) -> tuple[str, str]:
        """Return (the folder's spelling on disk, reason or ""); it may differ in its Unicode form."""
        parent, name = posixpath.split(folder)
        if parent and not self.entries(parent):
            parent, reason = self.find_folder(parent)
            if reason:
                return folder, reason
        for other in self._named(parent).get(_key(name), []):
            if _key(other) == _key(name):
                return posixpath.join(parent, other), ""
        return folder, f"{ABSENT}folder {folder!r} below the root"


def read_tree(source: Path, root: Path, classes: list[str] | None) -> list[Listed]:
    """Read `<class>/<video>` or `<class>/<folder of frames>`; labels are the sorted class names, from 0."""
    tree = Root(root)
    prefix = _below(source.absolute().as_posix(), tree, f"{source}")
    top = tree.entries(prefix)
    names = sorted(name for name, (is_folder, _) in top.items() if is_folder)
    if not names:
        raise InputError(f"{source}: holds no class folder; expected <class>/<video>")
    label_of = {_key(name): label for label, name in enumerate(names if classes is None else classes)}
    rows = [
        Listed(path=posixpath.join(prefix, name), label=None, reason="is outside of any class folder")
        for name in sorted(top)
        if name.lower().endswith(VIDEO_SUFFIXES) and not top[name][0]
    ]
    for name in names:
        rows += _class_rows(tree, posixpath.join(prefix, name), label_of.get(_key(name)))
    return rows


def _class_rows(tree: Root, folder: str, label: int | None) -> list[Listed]:
    rows = []
    for name, (is_folder, reason) in sorted(tree.entries(folder).items()):
        suffix = PurePosixPath(name).suffix.lower()
        if not reason and label is None:
            reason = f"the class {posixpath.basename(folder)!r} is not in the file given as --classes"
        elif not reason and not is_folder and suffix in PICTURE_SUFFIXES:
            reason = "is a picture; the frames of a clip belong in their own folder, <class>/<clip>/000001.jpg"
        elif not reason and not is_folder and suffix not in VIDEO_SUFFIXES:
            reason = f"is not a video by its suffix {suffix!r}; if it is one, rename it to .mp4: the content decides"
        path = posixpath.join(folder, name)
        rows.append(Listed(path=path, label=label, class_name=posixpath.basename(folder), reason=reason))
    return rows


def _read_list(source: Path, root: Path, classes: list[str] | None, *, separator: str) -> list[Listed]:
    """Read one clip per line, split from the right. Class names are those of --classes, else of the clips' folders."""
    tree = Root(root)
    rows = []
    for number, line in _lines(source):
        where = f"{source}, line {number}"
        match = _LIST_LINE[separator].fullmatch(line)
        label = _label(line, separator)
        if match is None or label is None:
            wrong = f"label {match[2]!r} is not an integer from 0" if match else f"{line.strip()[:100]!r} has no label"
            raise InputError(f"{where}: {wrong}; a line is `{_WRITTEN[separator]}` (see --format)")
        path, reason = tree.find(_below(match[1], tree, where))
        rows.append(Listed(path=path, label=int(label) if label else None, line=number, reason=reason))
    return _name_by_folder(rows) if classes is None else [_name_by_label(row, classes) for row in rows]


def _label(line: str, separator: str) -> str | None:
    """Return the digits of a line's label, empty for `path;`, or None if the line does not have this form."""
    match = _LIST_LINE[separator].fullmatch(line)
    return match[2] if match and re.fullmatch(r"[0-9]*", match[2]) else None


def _below(path: str, tree: Root, where: str) -> str:
    """Return a normalized path relative to the root, empty for the root itself; InputError if it leaves the root."""
    if path.startswith("/"):
        path = os.path.relpath(path, tree.path)
    path = posixpath.normpath(path)
    if path == ".." or path.startswith("../"):
        raise InputError(f"{where}: {path} leaves the root {tree.path}; give the folder that holds all files as --root")
    return "" if path == "." else path


def _name_by_label(row: Listed, classes: list[str]) -> Listed:
    if row.label is None or row.label < len(classes):
        return replace(row, class_name="" if row.label is None else classes[row.label])
    return replace(row, reason=row.reason or f"label {row.label} is not among the {len(classes)} classes of --classes")


def _name_by_folder(rows: list[Listed]) -> list[Listed]:
    """Name every row's class after its folder if folders and labels correspond one to one."""
    pairs = {(row.label, posixpath.basename(posixpath.dirname(row.path))) for row in rows if row.label is not None}
    labels, names = {label for label, _ in pairs}, {name for _, name in pairs}
    if not len(labels) == len(names) == len(pairs) or "" in names:
        return rows
    name_of: dict[int | None, str] = defaultdict(str, pairs)
    return [replace(row, class_name=name_of[row.label]) for row in rows]


def refuse_repeats(rows: list[Listed]) -> list[Listed]:
    """Refuse every further row of a clip that is listed more than once."""
    first: dict[tuple[str, float | None, float | None], Listed] = {}
    out = []
    for row in rows:
        before = first.setdefault((row.path, row.start_seconds, row.end_seconds), row)
        if before is not row and not row.reason:
            row = replace(row, reason=f"is listed before, in line {before.line} with label {before.label}")
        out.append(row)
    return out


FORMATS: dict[str, Callable[[Path, Path, list[str] | None], list[Listed]]] = {
    "tree": read_tree,
    "semicolon": partial(_read_list, separator=";"),
    "space": partial(_read_list, separator=" "),
}
"""{format: its reader}."""
