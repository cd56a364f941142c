"""The manifest of a source: one row per clip with its path, its label and what the probe found in it.

    CSV of `ppma index` (header: the fields of `Clip`)  ->  parse, check, derive  ->  Manifest: columns as flat arrays

A row takes about 150 bytes as columns and ten times that as an object. Everything that can be wrong with a row is found
when the file is read, so that no training step fails on it. A file is parsed and hashed once per process, a large one
once per user, into an Arrow file that all processes map: eight processes with ten million rows each would otherwise
take 24 GiB.
"""

import contextlib
import copy
import csv
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from pyarrow import csv as pa_csv

from ppma.common.files import atomic_path
from ppma.config.errors import InputError
from ppma.loaders.sources.remote import Url, as_path
from ppma.loaders.sources.store import Store

DOMAINS = ("", "real", "human-removed", "synthetic")
RULES = 2
"""Raise it when rows are refused that were accepted before: tables are cached after their check."""
LARGE_BYTES = 16 * 2**20
"""Size from which a CSV is kept as an Arrow file; parsing a smaller one takes less than a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One row of a manifest. The fields are the columns of its CSV."""

    path: str
    """File or folder of frames, relative to the manifest's root, with forward slashes."""
    label: int | None = None
    """Class index from 0; None without a label."""
    class_name: str = ""
    """Name of the class as its source spells it, or empty."""
    source: str = ""
    """Name of the data set that the clip belongs to."""
    start_seconds: float | None = None
    """Start of the action within the file; None for the start of the file."""
    end_seconds: float | None = None
    """End of the action, exclusive; None for the end of the file."""
    frames: int
    """Frames that can be decoded, counted from the first key frame."""
    fps: float
    """Average frames per second; 25 for a folder of frames."""
    width: int
    """Width in pixels of the upright picture, after any rotation that the file asks for."""
    height: int
    """Height in pixels of the upright picture."""
    codec: str
    """Name of the codec (h264, vp9, ...), or jpeg / png for a folder of frames."""
    key_frame_spacing: int
    """Largest number of frames from a key frame to the next or to the end; 1 if all are key frames."""
    duration_seconds: float
    """From the first frame's time stamp to the end of the last frame."""
    domain: str = ""
    """real, human-removed, synthetic, or empty if unknown."""
    licence: str = ""
    """License of the footage, as given to `ppma index`."""
    audit: str = ""
    """Verdict of the privacy audit; empty before one."""


MOST_CLASSES = 1_000_000
"""Labels are below: a head has an output for each."""
HEADER = tuple(field.name for field in fields(Clip))
_NAMES = pa.dictionary(pa.int32(), pa.string())
_TYPES: dict[str, pa.DataType] = {
    "path": pa.string(),
    "label": pa.int64(),
    "start_seconds": pa.float64(),
    "end_seconds": pa.float64(),
    "frames": pa.int64(),
    "fps": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "key_frame_spacing": pa.int64(),
    "duration_seconds": pa.float64(),
}
_SCHEMA = pa.schema([(name, _TYPES.get(name, _NAMES)) for name in HEADER])
_OPTIONAL = ("label", "start_seconds", "end_seconds")
_LEAVES_ROOT = r"^/|(^|/)\.\.(/|$)"
_CONTROL = "[\x00-\x1f\x7f]"


def nfc(name: str) -> str:
    """Return a name in the Unicode form for comparisons: macOS decomposes letters that a list writes as one."""
    return unicodedata.normalize("NFC", name)


class Manifest:
    """The clips of one source, column by column. Create one with `read` or `from_clips`."""

    def __init__(self, table: pa.Table, *, root: Path | str, path: Path | None, name: str) -> None:
        """Take the columns of a table that `_derive` has checked and completed."""
        self._columns = {field: _one_chunk(table.column(field)) for field in table.column_names}
        self._rows = table.num_rows
        self.root = as_path(root)
        """Folder or URL that the paths of the rows are relative to."""
        self.path = path
        """CSV that it was read from, or None."""
        self.name = name
        """Name of the source."""
        self.sha256 = table.schema.metadata[b"sha256"].decode()
        """Hash of the CSV (for a manifest in memory, of the CSV it would be)."""
        self.labels = self._numbers("_label")
        """int64 (rows,); -1 for a row without a label."""
        self.frames = self._numbers("frames")
        self.fps = self._numbers("fps")
        self.widths = self._numbers("width")
        self.heights = self._numbers("height")
        self.durations = self._numbers("duration_seconds")
        self.starts = self._numbers("_start")
        """Seconds (rows,); 0 by default."""
        self.ends = self._numbers("_end")
        """Seconds (rows,); the file's duration by default."""
        self.class_names = {int(label): name for label, name in json.loads(table.schema.metadata[b"class_names"])}
        """{label: name} of the labels that have a name."""
        self.store: Store | None = None
        """The packed store that the rows are read from."""

    def __len__(self) -> int:
        return self._rows

    @property
    def n_classes(self) -> int:
        """Return the largest label + 1 (labels may be unused: Diving48 has no clip of class 30); 0 without labels."""
        return max([int(self.labels.max(initial=-1)), *self.class_names]) + 1

    def clip(self, i: int) -> Clip:
        """Return row `i`."""
        if not 0 <= i < self._rows:
            raise IndexError(f"row {i} of a manifest with {self._rows} rows")
        row, label = {name: self._columns[name][i].as_py() for name in HEADER}, int(self.labels[i])
        if label >= 0:
            row |= {"label": label, "class_name": self.class_names.get(label, "")}
        return Clip(**row)

    def texts(self, name: str) -> list[str]:
        """Return a text column: path, class_name, source, codec, domain, licence or audit."""
        return self._columns[name].to_pylist()

    def counts(self, name: str) -> dict[str, int]:
        """Return the rows per value of class_name, source, codec, domain, licence or audit."""
        found = pc.value_counts(self._columns[name])
        return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist()))

    def packed_in(self, store: Store) -> "Manifest":
        """Return a manifest of the same rows that reads from a packed store.

        Its `file` returns addresses in the store; `widths` and `heights` are of the packed frames. A row that could not
        be packed keeps its video, and is a bad file when it is read.
        """
        packed = copy.copy(self)
        packed.store = store
        packed.heights, packed.widths = store.frame_sizes(self.heights, self.widths)
        return packed

    def with_labels(self, labels: np.ndarray, class_names: dict[int, str]) -> "Manifest":
        """Return a manifest of the same rows with other int64 labels, (rows,), and the names of their classes."""
        labeled = copy.copy(self)
        labeled.labels, labeled.class_names = labels, class_names
        return labeled

    def file(self, i: int) -> Path:
        """Return the video file or folder of frames of row `i`, or its address in the packed store."""
        if self.store is not None and (address := self.store.address(i)) is not None:
            return address
        return self.root / self._columns["path"][i].as_py()

    @classmethod
    def read(cls, path: Path | str, *, root: Path | str | None = None, name: str = "") -> "Manifest":
        """Read and check a manifest.

        Args:
            path: CSV file, or its URL.
            root: Folder or URL that its paths are relative to (the CSV's folder by default).
            name: Name of the source (the CSV's stem by default).

        Raises:
            InputError: The file is missing, empty or wrong; the message names the line.
        """
        path = as_path(path)
        try:
            stat = path.stat()
            table = _table(path.absolute(), stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            index = f"`ppma index SOURCE --root DIR --out {path}` makes it"
            hint = "check the URL" if isinstance(path, Url) else index
            raise InputError(f"{error.filename or path}: {error.strerror}; {hint}") from None
        return cls(table, root=root or path.parent, path=path, name=name or path.stem)

    @classmethod
    def from_clips(cls, clips: Iterable[Clip], *, root: Path | str, name: str) -> "Manifest":
        """Return a manifest in memory, with the checks of `read`."""
        text = io.StringIO(newline="")
        _write_rows(text, clips)
        content = text.getvalue().encode()
        where = f"manifest {name!r}"
        return cls(_derive(_parse(content, where=where), content, where), root=root, path=None, name=name)

    @staticmethod
    def write(path: Path | str, clips: Iterable[Clip]) -> None:
        """Write `clips` as CSV, atomically."""
        with (
            atomic_path(Path(path)) as temp_path,
            temp_path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            _write_rows(file, clips)

    def _numbers(self, name: str) -> np.ndarray:
        return self._columns[name].to_numpy(zero_copy_only=False)  # no column has nulls here, so nothing is copied


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, without a copy if it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


# ------------------------------------------------------------------------------------------------------------- reading


@lru_cache(maxsize=16)
def _table(path: Path, size: int, mtime_ns: int) -> pa.Table:
    """Return the checked table of a CSV; a large one is mapped from the user's cache folder."""
    if size < LARGE_BYTES:
        return _read(path)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppma" / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(repr((RULES, str(path), size, mtime_ns)).encode()).hexdigest()[:24]
    target = folder / f"{key}.arrow"
    with FileLock(folder / f"{key}.lock"):  # the processes of a node start together: one parses, the others wait
        if not target.exists():
            table = _read(path)
            with (
                atomic_path(target) as temp_path,
                pa.OSFile(str(temp_path), "wb") as file,
                pa.ipc.new_file(file, table.schema) as writer,
            ):
                writer.write_table(table.combine_chunks())
            del table
            pa.default_memory_pool().release_unused()  # from here on it is mapped
    return pa.ipc.open_file(pa.memory_map(str(target))).read_all()


def _read(path: Path) -> pa.Table:
    content = path.read_bytes()
    table = _parse(content, where=str(path))
    if not table.num_rows:
        raise InputError(f"{path}: holds no clip; index a source that has some")
    return _derive(table, content, str(path))


def _derive(table: pa.Table, content: bytes, where: str) -> pa.Table:
    """Check the rows; add columns without missing values, the class names and the hash of the CSV."""
    columns = {field: _one_chunk(table.column(field)) for field in HEADER}
    _check(columns, where=where)
    label = pc.fill_null(columns["label"], -1)
    names = _class_names(columns, label.to_numpy(zero_copy_only=False), where)
    metadata = {"sha256": hashlib.sha256(content).hexdigest(), "class_names": json.dumps(list(names.items()))}
    added = {
        "_label": label,
        "_start": pc.fill_null(columns["start_seconds"], 0.0),
        "_end": pc.coalesce(columns["end_seconds"], columns["duration_seconds"]),
    }
    return pa.table(columns | added).replace_schema_metadata(metadata)


def _class_names(columns: dict[str, pa.Array], labels: np.ndarray, where: str) -> dict[int, str]:
    """Return {label: name}; InputError if a label has two names."""
    names = columns["class_name"]
    pairs = np.stack([labels, names.indices.to_numpy(zero_copy_only=False)], axis=1)
    unique, first_row = np.unique(pairs, axis=0, return_index=True)
    found: dict[int, str] = {}
    for (label, index), row in zip(unique.tolist(), first_row.tolist()):
        name = names.dictionary[index].as_py()
        if label < 0 or not name:
            continue
        if found.setdefault(label, name) != name:
            raise InputError(
                f"{where}, line {row + 2}: label {label} is called {name!r} here and "
                f"{found[label]!r} elsewhere; a label has one name: index every source with the same --classes FILE"
            )
    return found


def _write_rows(file: IO[str], clips: Iterable[Clip]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    values = attrgetter(*HEADER)
    for clip in clips:
        writer.writerow(values(clip))  # None is written as nothing, a float so that it comes back the same


def _parse(content: bytes, *, where: str) -> pa.Table:
    first = content[:65536].decode("utf-8-sig", errors="replace").partition("\n")[0].rstrip("\r")
    if tuple(first.split(",")) != HEADER:
        raise InputError(f"{where}: the first line is {first[:100]!r}; it must be {','.join(HEADER)!r}")
    options = pa_csv.ConvertOptions(column_types=_SCHEMA, null_values=[""], strings_can_be_null=False)

    def parse(use_threads: bool) -> pa.Table:
        reading = pa_csv.ReadOptions(use_threads=use_threads)
        return pa_csv.read_csv(io.BytesIO(content), read_options=reading, convert_options=options)

    with contextlib.suppress(pa.ArrowInvalid):
        return parse(use_threads=True).unify_dictionaries()
    try:
        return parse(use_threads=False).unify_dictionaries()  # only a single thread can name the line
    except pa.ArrowInvalid as error:
        found = re.search(r"(?:column #(\d+): )?(?:CSV parse error: )?Row #(\d+): (.*)", str(error))
        if found is None:
            raise InputError(f"{where}: {error}") from None
        column = f"{HEADER[int(found[1])]}: " if found[1] else ""
        raise InputError(f"{where}, line {found[2]}: {column}{found[3][:200]}") from None


def _check(columns: dict[str, pa.Array], *, where: str) -> None:
    """Raise InputError for the first row that breaks a rule."""
    for name, wrong, rule in _rules(columns):
        rows = np.flatnonzero(pc.fill_null(wrong, False).to_numpy(zero_copy_only=False))
        if len(rows):
            value = columns[name][int(rows[0])].as_py()
            found = "empty" if value is None else repr(value)
            raise InputError(f"{where}, line {rows[0] + 2}: {name} is {found}; {rule}")


def _rules(columns: dict[str, pa.Array]) -> Iterable[tuple[str, pa.Array, str]]:
    """Yield (column, which rows are wrong, rule in words)."""
    for name in HEADER:
        if name not in _OPTIONAL:
            yield name, pc.is_null(columns[name]), "it must be given (`ppma index` finds it)"
    for name in ("frames", "width", "height", "key_frame_spacing"):
        yield name, pc.less(columns[name], 1), "it must be at least 1"
    for name in ("fps", "duration_seconds"):
        good = pc.and_(pc.is_finite(columns[name]), pc.greater(columns[name], 0.0))
        yield name, pc.invert(good), "it must be above 0"
    yield "label", pc.less(columns["label"], 0), "it must be 0 or more, or empty"
    yield "label", pc.greater_equal(columns["label"], MOST_CLASSES), f"it must be below {MOST_CLASSES}, or empty"
    for name in ("start_seconds", "end_seconds"):
        yield name, pc.invert(pc.is_finite(columns[name])), "it must be a number of seconds, or empty"
    yield "start_seconds", pc.less(columns["start_seconds"], 0.0), "it must be 0 or more, or empty"
    start = pc.fill_null(columns["start_seconds"], 0.0)
    late = pc.greater_equal(start, columns["duration_seconds"])
    yield "start_seconds", late, "it must be before the file's end, duration_seconds; correct it or remove the line"
    yield "end_seconds", pc.less_equal(columns["end_seconds"], start), "it must be after start_seconds"
    yield "path", pc.equal(columns["path"], ""), "it must be a path below the root"
    leaves = pc.match_substring_regex(columns["path"], _LEAVES_ROOT)
    yield "path", leaves, "it leaves the root; give the folder that holds all files as --root and index again"
    control = pc.match_substring_regex(columns["path"], _CONTROL)
    yield "path", control, "it holds a control character; rename the file and index again"
    known = pc.is_in(pc.dictionary_decode(columns["domain"]), value_set=pa.array(DOMAINS))
    yield "domain", pc.invert(known), f"it must be one of {', '.join(DOMAINS[1:])}, or empty"
