"""Read folder trees, list files and manifests into the same rows, without opening a video.

    folder tree, list, manifest  ->  reader of its format (FORMATS)  ->  Listed rows: path, label, class name, or why refused

Names may hold anything but line breaks: spaces, brackets, commas, non-ASCII letters in either Unicode form. A file may
have another video suffix than its list says: people re-encode downloads. A new format is a function
`(source, tree, classes) -> list[Listed]` and one line in FORMATS.
"""

import errno
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath

from ppma.common.frames import PICTURE_SUFFIXES, SERIES
from ppma.config.errors import InputError, reading
from ppma.loaders.sources.manifest import HEADER, MOST_CLASSES, Manifest, nfc
from ppma.loaders.sources.store import is_packed

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".h264", ".hevc", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv"),
)
"""Suffixes that a list may omit, and that mark a video in a folder tree. The content decides the format."""
DETECTION_LINES = 1000
"""Lines of a list that are read to detect its separator."""
MIXED_UP = 0.1
"""Share of a list's labels that may contradict the folders of their clips: below it, folders are classes and labels are wrong."""
ABSENT = "there is no "
"""Start of the reason for a path that does not exist."""
CONVERT = 'ffmpeg -i IN -vf "crop=trunc(iw/2)*2:trunc(ih/2)*2,format=yuv420p" OUT.mp4'
"""Turns what FFmpeg reads into a video that every part of ppma reads."""
SPLIT_NAMES = ("train", "training", "val", "valid", "validate", "validation", "test", "testing")
"""Folders above class folders, <split>/<class>/<video>."""
SUFFIX_REMARK = "with another suffix than in its list"
AUDIT_REMARK = "with the verdict of an audit, which holds for the old manifest only: audit the new one"
_BLANK = "[ \\t\\r]"  # a name may begin or end with another kind of space
_LIST_LINE = {
    ";": re.compile(f"{_BLANK}*(.*[^ \\t\\r]){_BLANK}*;{_BLANK}*(\\S*){_BLANK}*"),
    ",": re.compile(f"{_BLANK}*(.*[^ \\t\\r]){_BLANK}*,{_BLANK}*(\\S*){_BLANK}*"),
    " ": re.compile(f"{_BLANK}*(.*[^ \\t\\r]){_BLANK}+(\\S+){_BLANK}*"),
}
"""Separator -> a line of a list: (path, label)."""
_HEADER = re.compile(r"[A-Za-z_]\w*([;,\s]\s*[A-Za-z_]\w*)+\s*")
"""A first line such as `path,label`."""
_WITH_COUNT = re.compile(r"(.*[^ \t;,])[ \t]*[;, \t][ \t]*(\d+)")
"""The path of a line `path frames label`: (path, number of frames)."""
_FORBIDDEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that no name may hold: control characters, bytes that are not UTF-8, line breaks."""


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
    remark: str = ""
    """What is unusual about it: it is counted and reported."""
    frames: int | None = None
    """Number of frames by the list, which may be wrong."""
    source: str = ""
    """Set by a manifest only, as are `domain` and `licence`."""
    domain: str = ""
    licence: str = ""


def read_source(
    source: Path, *, root: Path, format: str = "auto", classes: list[str] | None = None, follow_links: bool = False
) -> list[Listed]:
    """Return all clips that a source names, in its order; a row that cannot be used has a reason.

    Args:
        source: Folder tree, list file or manifest.
        root: Folder that the paths are relative to.
        format: One of FORMATS, or "auto".
        classes: Class names in the order of their labels; by default a tree's labels are its sorted class names.
        follow_links: Read links that lead out of the root too.

    Raises:
        InputError: The source cannot be read in this format, or names no clip.
    """
    if not root.is_dir():
        raise InputError(f"--root {root} is not a folder; give the one that the paths are relative to")
    name = detect(source) if format == "auto" else format
    if source.is_dir() != (name == "tree"):
        kind, fits = ("a folder", "--format tree") if source.is_dir() else ("a file", "--format auto")
        raise InputError(f"{source} is {kind}; --format {name} does not read that, {fits} does")
    rows = refuse_repeats(FORMATS[name](source, Root(root, follow_links=follow_links), classes))
    if not rows:
        expected = "a folder <class>/<video>" if name == "tree" else "a list with a line `path;label` for each clip"
        raise InputError(f"{source}: names no clip; give {expected}")
    return rows


def detect(source: Path) -> str:
    """Return the format of a source: "tree" for a folder; for a list, the separator that fits the most lines."""
    if source.is_dir():
        return "tree"
    lines = [line for _, line in _lines(source)[:DETECTION_LINES]]
    if lines and lines[0].rstrip("\r") == ",".join(HEADER):
        return "manifest"
    fits = {separator: sum(_label(line, separator) is not None for line in lines) for separator in _LIST_LINE}
    best = max(fits, key=lambda separator: fits[separator])
    if not fits[best]:
        best = next((separator for separator in ";," if any(separator in line for line in lines[:1])), " ")
    return _FORMAT_OF[best]


def splits_below(source: Path) -> dict[str, list[str]]:
    """Return {split: its class names} of a tree <split>/<class>/<video>; empty for every other source."""
    if not source.is_dir():
        return {}
    tree = Root(source, follow_links=True)
    folders = {name: tree.folders(name) for name in tree.folders("")}
    splits = {name: found for name, found in folders.items() if name.lower() in SPLIT_NAMES}
    nested = any(holds_clips(source / split / name) for split, found in splits.items() for name in found)
    return splits if nested and not any(holds_clips(source / name) for name in set(folders) - set(splits)) else {}


def read_classes(file: Path) -> list[str]:
    """Return class names in the order of their labels.

    Args:
        file: One name per line, the first of label 0; or a list of clips in folders named after their classes, as
            `<class>/<clip>;label`.

    Raises:
        InputError: A name or a label is there twice, or the labels of a list are not 0, 1, ... without a gap.
    """
    lines = _lines(file)
    clips = [re.fullmatch(r"(?:.*/)?([^/]+)/[^/]+[;,]\s*(\d+)\s*", line) for _, line in lines]
    if not all(clips):
        return _distinct([line.strip() for _, line in lines], file)
    pairs = sorted({(int(match[2]), match[1]) for match in clips if match})
    for label, (found, name) in enumerate(pairs):
        if found != label:
            what = (
                f"label {found} of {name!r} has another class before it"
                if found < label
                else f"no clip has label {label}"
            )
            raise InputError(f"{file}: {what}; give a list with one class for each of the labels 0, 1, 2, ...")
    return _distinct([name for _, name in pairs], file)


def _distinct(names: list[str], file: Path) -> list[str]:
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None or not names:
        raise InputError(
            f"{file}: {f'names {repeated!r} twice' if names else 'is empty'}; give one class name per line"
        )
    return names


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return (number from 1, text) of the lines that are not blank."""
    with reading(file, "a list"):
        text = file.read_text(encoding="utf-8-sig")
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


class Root:
    """List each folder below a root once: a million `stat` calls take an hour on a network file system."""

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.path = root.absolute()
        self._real = os.path.realpath(root)
        self._follow_links = follow_links
        self.entries = cache(self._scan)
        self._named = cache(self._by_name)

    def _scan(self, folder: str) -> dict[str, tuple[bool, str]]:
        """Return {name: (is a folder, why it cannot be used or "")} of a folder; empty if there is none."""
        here = self.path / folder
        try:
            if not here.is_dir():
                return {}
            outside = not self._inside(os.path.realpath(here))
            with os.scandir(here) as scan:
                return {entry.name: self._judge(entry, outside) for entry in scan if not _is_hidden(entry)}
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # by a line of a list
                return {}
            raise InputError(f"{here}: {error.strerror}; give a folder that you may read") from None

    def _by_name(self, folder: str) -> dict[str, list[str]]:
        """Return {name in one Unicode form: entries it may mean}, with and without a video's suffix."""
        names = defaultdict(list)
        for name, (is_folder, _) in self.entries(folder).items():
            names[nfc(name)].append(name)
            if not is_folder and name.lower().endswith(VIDEO_SUFFIXES):
                names[nfc(name.rpartition(".")[0])].append(name)
        return names

    def _inside(self, real: str) -> bool:
        return self._follow_links or real == self._real or real.startswith(self._real.rstrip("/") + "/")

    def _judge(self, entry: os.DirEntry[str], outside: bool) -> tuple[bool, str]:
        reason, (is_folder, is_file) = "", entry_kind(entry)
        if not entry.name.isprintable() and any(unicodedata.category(c) in _FORBIDDEN for c in entry.name):
            reason = "its name has a line break, a control character or is not UTF-8; rename it"
        elif entry.name[0] == ".":
            reason = (
                "its name starts with a dot, as macOS names what it stores next to a file; rename it if it is a clip"
            )
        elif entry.name[-1] == SERIES or ("#" in entry.name and is_packed(Path(entry.name))):
            reason = f"its name is what ppma calls {'a series of frames' if entry.name[-1] == SERIES else 'a packed clip'}; rename it"
        elif not is_folder and not is_file:
            reason = "is a link to nothing" if entry.is_symlink() else "is neither a file nor a folder"
        elif outside or (entry.is_symlink() and not self._inside(os.path.realpath(entry.path))):
            reason = "is a link that leads out of the root; `ppma index --follow-links` reads it, or a --root that holds its target"
        return is_folder, reason

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        return sorted(name for name, (is_folder, _) in self.entries(folder).items() if is_folder)

    def find(self, path: str) -> tuple[str, str]:
        """Return (real path relative to the root, reason or "") of a path that may lack its suffix."""
        if path.startswith("/") or ".." in path.split("/"):
            return path, "leaves the root; give the folder that holds all files as --root"
        folder, name = posixpath.split(path)
        if folder and not self.entries(folder):
            folder, reason = self.find_folder(folder)
            if reason:
                return path, reason
        entries, named = self.entries(folder), self._named(folder)
        exact = name in entries and not entries[name][0]
        found = [name] if exact else named.get(nfc(name), []) or named.get(nfc(without_suffix(name)), [])
        if not found:
            return path, f"{ABSENT}such file, with this, another or no video suffix, and no such folder"
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
        for other in self._named(parent).get(nfc(name), []):
            if nfc(other) == nfc(name):
                return posixpath.join(parent, other), ""
        return folder, f"{ABSENT}folder {folder!r} below the root"


def entry_kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Return whether an entry is a folder and whether it is a file; it is neither if its links go in a circle."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:
        return False, False


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    """Return True for a hidden entry that is skipped silently; hidden videos are refused by name."""
    return entry.name[0] == "." and not (entry.name.lower().endswith(VIDEO_SUFFIXES) and entry_kind(entry)[1])


def holds_frames(folder: Path) -> bool:
    """Return True if a folder holds numbered pictures and no video."""
    pictures, videos, _ = _contents(folder)
    return pictures and not videos


def holds_clips(folder: Path) -> bool:
    """Return True if a folder holds videos, or folders and no numbered picture."""
    pictures, videos, folders = _contents(folder)
    return videos or (folders and not pictures)


def _contents(folder: Path) -> tuple[bool, bool, bool]:
    """Return whether a folder holds numbered pictures, videos and folders, without keeping its hundreds of names."""
    pictures = videos = folders = False
    with os.scandir(folder) as scan:
        for entry in scan:
            name = entry.name.lower()
            if name[0] == ".":
                continue
            if name.endswith(PICTURE_SUFFIXES):
                pictures = pictures or re.search(r"\d", name.rpartition(".")[0]) is not None
            elif name.endswith(VIDEO_SUFFIXES):
                videos = True
            elif not folders:
                folders = entry_kind(entry)[0]
    return pictures, videos, folders


def without_suffix(name: str) -> str:
    """Return a name or path without the suffix of a video."""
    return name.rpartition(".")[0] if name.lower().endswith(VIDEO_SUFFIXES) else name


def suffix_remark(listed: str, found: str) -> str:
    """Return SUFFIX_REMARK if a list names a video by another suffix than it has, else an empty string."""
    suffixes = [f".{path.rpartition('.')[2].lower()}" for path in (listed, found)]
    return SUFFIX_REMARK if suffixes[0] in VIDEO_SUFFIXES and suffixes[0] != suffixes[1] else ""


def read_tree(source: Path, tree: Root, classes: list[str] | None) -> list[Listed]:
    """Read `<class>/<video>` or `<class>/<folder of frames>`; labels are the sorted class names, from 0."""
    prefix = _below(source.absolute().as_posix(), tree, f"{source}")
    top, names = tree.entries(prefix), tree.folders(prefix)
    if not names:
        raise InputError(f"{source}: holds no class folder; move the videos into one folder per class, <class>/<video>")
    label_of = {nfc(name): label for label, name in enumerate(names if classes is None else classes)}
    rows = [
        Listed(path=posixpath.join(prefix, name), label=None, reason="is outside of any class folder; move it into one")
        for name in sorted(top)
        if name.lower().endswith(VIDEO_SUFFIXES) and not top[name][0]
    ]
    for name in names:
        rows += _class_rows(tree, posixpath.join(prefix, name), label_of.get(nfc(name)))
    return rows


def _class_rows(tree: Root, folder: str, label: int | None) -> list[Listed]:
    rows = []
    for name, (is_folder, reason) in sorted(tree.entries(folder).items()):
        path, suffix = posixpath.join(folder, name), PurePosixPath(name).suffix.lower()
        if not reason and label is None:
            reason = f"the class {posixpath.basename(folder)!r} is not in the file given as --classes; add it there"
        elif not reason and not is_folder and suffix in PICTURE_SUFFIXES:
            reason = "is a picture; the frames of a clip belong in their own folder, <class>/<clip>/000001.jpg"
        elif not reason and not is_folder and suffix not in VIDEO_SUFFIXES:
            reason = f"is not a video by its suffix {suffix!r}; if it is one, convert it: {CONVERT}"
        elif not reason and is_folder and holds_clips(tree.path / path):
            reason = "is a folder of videos or folders; move the clips up into <class>/, or name them in a list"
        rows.append(Listed(path=path, label=label, class_name=posixpath.basename(folder), reason=reason))
    return rows


def _read_list(source: Path, tree: Root, classes: list[str] | None, *, separator: str) -> list[Listed]:
    """Read one clip per line, split from the right. Class names are those of --classes, else of the clips' folders."""
    rows = []
    for number, line in _lines(source):
        match = _LIST_LINE[separator].fullmatch(line)
        label = _label(line, separator)
        if label is None and number == 1 and _HEADER.fullmatch(line):
            rows.append(Listed(path=line.strip(), label=None, line=number, reason="is read as the header of the list"))
        elif match is None or label is None:
            wrong = f"label {match[2]!r} is not an integer from 0" if match else f"{line.strip()[:100]!r} has no label"
            raise InputError(
                f"{source}, line {number}: {wrong}; a line is `path{separator}label` with the number of the class"
                " (see --format; --classes FILE names the classes)"
            )
        else:
            rows.append(_list_row(match[1], label, tree, source, number))
    return _name_by_folder(rows, source) if classes is None else [_name_by_label(row, classes) for row in rows]


def _list_row(written: str, label: str, tree: Root, source: Path, line: int) -> Listed:
    """Return the row of a line; what comes before its label is a path, or a path and a number of frames."""
    if len(written) > 1 and written[0] == written[-1] == '"':  # as a spreadsheet writes a comma in a name
        written = written[1:-1].replace('""', '"')
    where, frames = f"{source}, line {line}", None
    path, reason = tree.find(_below(written, tree, where))
    if reason.startswith(ABSENT) and (match := _WITH_COUNT.fullmatch(written)):
        other, problem = tree.find(_below(match[1], tree, where))
        if not problem.startswith(ABSENT):
            path, reason, written, frames = other, problem, match[1], int(match[2])
    remark = "" if reason else suffix_remark(written, path)
    number = int(label) if label else None
    if number is not None and number >= MOST_CLASSES:
        reason = f"label {number} is too large; labels are below {MOST_CLASSES}: number the classes from 0"
        number = None
    return Listed(path=path, label=number, line=line, reason=reason, remark=remark, frames=frames)


def read_manifest(source: Path, tree: Root, classes: list[str] | None) -> list[Listed]:
    """Read a manifest of `ppma index` again: labels, names, windows, domains and licenses stay, what was probed does not."""
    manifest = Manifest.read(source, root=tree.path)
    label_of = {nfc(name): label for label, name in enumerate(classes or ())}
    rows = []
    for line, clip in enumerate(map(manifest.clip, range(len(manifest))), 2):
        name = PurePosixPath(clip.path).name
        place = posixpath.dirname(clip.path) if name.endswith(SERIES) else clip.path
        path, reason = tree.find(_below(place, tree, f"{source}, line {line}"))
        row = Listed(
            path=posixpath.join(path, name) if name.endswith(SERIES) else path,
            label=clip.label, class_name=clip.class_name, line=line, reason=reason, source=clip.source,
            start_seconds=clip.start_seconds, end_seconds=clip.end_seconds, domain=clip.domain, licence=clip.licence,
            remark=(AUDIT_REMARK if clip.audit else suffix_remark(clip.path, path)),
        )  # fmt: skip
        if classes is not None and clip.class_name:
            label = label_of.get(nfc(clip.class_name))
            missing = f"the class {clip.class_name!r} is not in the file given as --classes; add it there"
            row = replace(row, label=label, reason=row.reason or ("" if label is not None else missing))
        elif classes is not None:
            row = _name_by_label(row, classes)
        rows.append(row)
    return rows


def with_prefix(rows: list[Listed], root: Path, prefix: str) -> list[Listed]:
    """Return the rows with the series `prefix` of each folder of frames (--frames-prefix) in place of the folder."""
    return [
        replace(row, path=f"{row.path}/{prefix}{SERIES}") if not row.reason and (root / row.path).is_dir() else row
        for row in rows
    ]


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


def _name_by_folder(rows: list[Listed], source: Path) -> list[Listed]:
    """Name every row's class after its folder if folders and labels correspond one to one.

    Raises:
        InputError: They do, but for a few rows.
    """
    counts = Counter((row.label, _folder(row)) for row in rows if row.label is not None)
    most = {name: label for (label, name), _ in reversed(counts.most_common())}
    labels = {label for label, _ in counts}
    if not labels or not len(labels) == len(most) == len(set(most.values())) or "" in most:
        return rows
    name_of: dict[int | None, str] = defaultdict(str, {label: name for name, label in most.items()})
    odd = [row for row in rows if row.label is not None and most[_folder(row)] != row.label]
    if not odd:
        return [replace(row, class_name=name_of[row.label]) for row in rows]
    if len(odd) > MIXED_UP * counts.total():
        return rows  # folders are no classes here
    first = odd[0]
    raise InputError(
        f"{source}, line {first.line}: {first.path} has label {first.label}, that of {name_of[first.label]!r}, and the clips of its folder "
        f"have {most[_folder(first)]} ({len(odd)} such lines); correct them, or name the classes with --classes if folders are none"
    )


def _folder(row: Listed) -> str:
    return posixpath.basename(posixpath.dirname(row.path))


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


_FORMAT_OF = {";": "semicolon", ",": "comma", " ": "space"}
FORMATS: dict[str, Callable[[Path, Root, list[str] | None], list[Listed]]] = {
    "tree": read_tree,
    **{name: partial(_read_list, separator=separator) for separator, name in _FORMAT_OF.items()},
    "manifest": read_manifest,
}
"""{format: its reader}."""
