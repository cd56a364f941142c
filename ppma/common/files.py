"""Files written atomically, full disks, and content hashes.

atomic_path  ->  a temporary path in the same folder, renamed when the block ends without an error
PatientFile  ->  a file to append to; what a full disk refuses is kept in memory and written later
file -> SHA-256 of its bytes        folder of frames -> SHA-256 over name and hash of each file        several clips -> one hash
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ppma.common.frames import SERIES, clip_place, is_frames
from ppma.config.errors import FULL_DISK, InputError, reading, watch_disk

log = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` when the block ends without an error.

    The temporary file exists, is empty, starts with a dot and keeps the suffix, by which writers choose a format. It is flushed to
    disk before the rename and deleted after an error.

    Args:
        path: The file to write.
        new: Replace no file: of several tasks, on other machines too, the first one writes it.

    Raises:
        InputError: The folder cannot be written.
        DiskFullError: No space is left.
        FileExistsError: With `new`, where there is such a file.
    """
    temp_path = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        with watch_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            temp_path.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose a folder that you may write") from None
    try:
        with watch_disk(path.parent):
            yield temp_path
            with temp_path.open("rb") as file:
                os.fsync(file.fileno())
        if new:
            _reserve(path, temp_path)
        temp_path.replace(path)
    finally:
        temp_path.unlink(missing_ok=True)


def _reserve(path: Path, temp_path: Path) -> None:
    """Make `path` a link to the complete file, which no client of a network file system can do for an existing path."""
    try:
        os.link(temp_path, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links here: an empty file, for the moment until the rename
        path.touch(exist_ok=False)


class PatientFile:
    """A file to append to that outlives a full disk: what does not fit is kept in memory and written when there is room.

    For lines that a run reports and can go on without. `close` raises if some of them still do not fit.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._pending, self._full = path, bytearray(), False
        self._descriptor: int | None = None

    def write(self, content: bytes = b"") -> None:
        """Append bytes, after those that did not fit before. A full disk is a warning, any other error is raised."""
        self._pending += content
        try:
            self._write_pending()
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            if not self._full:
                log.warning("%s: %s; going on, and writing this file when there is room", self.path, error.strerror)
            self._full = True
            return
        if self._full:
            log.info("%s: there is room again, and nothing is missing", self.path)
        self._full = False

    def _write_pending(self) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        while self._pending:
            del self._pending[: os.write(self._descriptor, self._pending)]

    def close(self) -> None:
        """Close the file. Idempotent; OSError if some of it could not be written."""
        try:
            if self._pending:
                self._write_pending()
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor, self._pending = None, bytearray()


@contextmanager
def removing_leftovers(paths: Iterable[Path]) -> Iterator[None]:
    """Delete the temporary files of these paths: before the block those of killed runs, after it those of killed workers."""
    paths = list(paths)
    remove_leftovers(paths)
    try:
        yield
    finally:
        remove_leftovers(paths)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Delete the temporary files of these paths; those of other paths may be in use."""
    names = defaultdict[Path, set[str]](set)
    for path in paths:
        names[path.parent].add(path.name)
    for folder, wanted in names.items():
        for leftover in folder.glob(".*.tmp*"):
            name = re.fullmatch(r"\.(.+)\.\w{8}\.tmp(.*)", leftover.name)
            if name is not None and f"{name[1]}{name[2]}" in wanted:
                leftover.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temp_path:
        temp_path.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; characters that UTF-8 cannot hold (from file names) become escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV, each line ended with one newline."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows as CSV atomically, ending each line with one newline."""
    write_text(path, csv_text(rows))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, indented by one space."""
    write_text(path, json.dumps(content, indent=1))


def claim_folder(
    note: Path,
    settings: Mapping[str, object],
    holds: str,
    *,
    remedy: str = "give another folder",
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Record the settings of an output folder, or check that an earlier run recorded the same ones.

    Of tasks that do so at the same moment the first wins, on network file systems too.

    Args:
        note: The JSON file of the settings, in the folder.
        settings: What must be the same for everything in the folder.
        holds: What the folder holds, for the message: "clips".
        remedy: What to do if they differ, for the message.
        defaults: Settings that folders of earlier versions do not record, and what these were made with.

    Raises:
        InputError: The folder cannot be written, or was made with other settings.
    """
    wanted = json.loads(json.dumps(settings))
    if not note.exists():
        with suppress(FileExistsError), atomic_path(note, new=True) as temp_path:
            temp_path.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    with reading(note, f"the settings of a folder of {holds}"):
        if not note.stat().st_size:  # another task has reserved it
            time.sleep(1)
        before = {**defaults, **json.loads(note.read_text(encoding="utf-8"))}
    changed = [f"{key} {before.get(key)}, not {value}" for key, value in wanted.items() if before.get(key) != value]
    if changed:
        raise InputError(f"--out {note.parent} holds {holds} with {'; '.join(changed)}; {remedy}")


def content_sha256(path: Path) -> str:
    """Return the hash of a file, or of the names and contents of the files of a folder of frames or of one of its series.

    OSError if there is none of them.
    """
    if not is_frames(path):
        return file_sha256(path)
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in _frames(path))
    return hashlib.sha256(lines.encode()).hexdigest()


def content_stamp(path: Path) -> str:
    """Return a hash of sizes and times of the files that `content_sha256` reads: the same as long as none is changed."""
    stats = [(file.name, file.stat()) for file in (_frames(path) if is_frames(path) else [path])]
    text = "".join(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}  {name}\n" for name, stat in stats)
    return hashlib.sha256(text.encode()).hexdigest()


def _frames(path: Path) -> list[Path]:
    """Return the files of a folder of frames, or of one of its series."""
    prefix = path.name.removesuffix(SERIES) if path.name.endswith(SERIES) else ""
    visible = (file for file in clip_place(path).iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in visible if file.name.startswith(prefix))


def file_sha256(path: Path) -> str:
    """Return the hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joined_sha256(contents: Iterable[str]) -> str:
    """Return one hash for the hashes of several clips, in their order."""
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()
