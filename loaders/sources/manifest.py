"""One row per clip: where it lies, what it shows, and what the probe found in it.

In:  the CSV that `ppma index` writes (header: the fields of `Clip`, in their order).
Out: a `Manifest`, whose columns are flat arrays, and single `Clip`s built on demand.
Why columns: every loader worker holds the manifest of every source; a row costs some 150 bytes here, ten times that as
an object, and a million objects are touched, thus copied, in every forked process.
Everything that can be wrong with a row is found when the file is read, so that no training step meets it.
"""

import copy
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv

from ppma.common.files import atomic_path
from ppma.config.errors import InputError
from ppma.loaders.sources import manifest_cache
from ppma.loaders.sources.store import Store

DOMAINS = ("", "real", "human-removed", "synthetic")


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One row of a manifest; the fields are the columns of its CSV."""

    path: str
    """File or folder of frames, relative to the manifest's root, with forward slashes."""
    label: int | None = None
    """Class index from 0, or None without a label."""
    class_name: str = ""
    """Name of the class as its source spells it, or empty."""
    source: str = ""
    """Name of the data set that the clip belongs to."""
    start_seconds: float | None = None
    """First moment of the action within the file, or None: from the beginning."""
    end_seconds: float | None = None
    """Moment at which it ends (exclusive), or None: at the end of the file."""
    frames: int
    """Frames that can be decoded, counted from the first key frame."""
    fps: float
    """Average frames per second; 25 for a folder of frames."""
    width: int
    """Width in pixels of the upright picture: a quarter turn asked for by the file is already taken."""
    height: int
    """Height in pixels of the upright picture."""
    codec: str
    """Name of the decoder (h264, vp9, ...), or jpeg / png for a folder of frames."""
    key_frame_spacing: int
    """Largest distance from a key frame to the next or to the end, in frames; 1 when every frame is one."""
    duration_seconds: float
    """From the first frame's time stamp to the end of the last frame."""
    domain: str = ""
    """real, human-removed, synthetic, or empty where nobody said."""
    licence: str = ""
    """Terms under which the footage is used, in the words of the person who indexed it."""
    audit: str = ""
    """Verdict of the privacy audit, or empty before one."""


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


class Manifest:
    """The clips of one source, column by column. Make one with `read` or `from_clips`."""

    def __init__(self, table: pa.Table, *, root: Path, path: Path | None, name: str) -> None:
        """Of a table that `_derive` has checked and completed."""
        self._columns = {field: _whole(table.column(field)) for field in table.column_names}
        self._rows = table.num_rows
        self.root = Path(root)
        """Folder that the paths of the rows are relative to."""
        self.path = path
        """CSV that it was read from, or None."""
        self.name = name
        """Name of the source."""
        self.sha256 = table.schema.metadata[b"sha256"].decode()
        """Hash of the CSV file (of the CSV it would be, for a manifest made in memory)."""
        self.labels = self._numbers("_label")
        """int64 (rows,); -1 for a row without a label."""
        self.frames = self._numbers("frames")
        self.fps = self._numbers("fps")
        self.widths = self._numbers("width")
        self.heights = self._numbers("height")
        self.durations = self._numbers("duration_seconds")
        self.starts = self._numbers("_start")
        """Seconds; 0 where the row does not say."""
        self.ends = self._numbers("_end")
        """Seconds; the file's duration where the row does not say."""
        self.class_names = {int(label): name for label, name in json.loads(table.schema.metadata[b"class_names"])}
        """label -> name, for the labels that occur with a name."""
        self._store: Store | None = None

    def __len__(self) -> int:
        return self._rows

    @property
    def n_classes(self) -> int:
        """Largest label + 1: a label may be unused (Diving48 has no clip of class 30). 0 without labels."""
        return int(self.labels.max(initial=-1)) + 1

    def clip(self, i: int) -> Clip:
        """Row `i`, built on demand."""
        if not 0 <= i < self._rows:
            raise IndexError(f"row {i} of a manifest with {self._rows} rows")
        return Clip(**{name: self._columns[name][i].as_py() for name in HEADER})

    @property
    def store(self) -> Store | None:
        """The packed store that its rows are read from."""
        return self._store

    def texts(self, name: str) -> list[str]:
        """A column of words, one for each row: path, class_name, source, codec, domain, licence or audit."""
        return self._columns[name].to_pylist()

    def packed_in(self, store: Store) -> "Manifest":
        """The same rows, read from a packed store: `file` gives addresses in it, `widths` and `heights` are of its frames.

        A row that could not be packed keeps its video, and is met there as the bad file that it is.
        """
        packed = copy.copy(self)
        packed._store, there = store, store.places["shard"] >= 0
        packed.widths = np.where(there, store.places["width"], self.widths)
        packed.heights = np.where(there, store.places["height"], self.heights)
        return packed

    def file(self, i: int) -> Path:
        """The video file or folder of frames of row `i`, or its address in the packed store."""
        if self._store is not None and (address := self._store.address(i)) is not None:
            return address
        return self.root / self._columns["path"][i].as_py()

    def check_labels(self, n_classes: int) -> None:
        """Raise InputError, naming the row, when a label does not fit a head with `n_classes` outputs."""
        wrong = np.flatnonzero(self.labels >= n_classes)
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"{self.path or self.name}, line {row + 2}: label {self.labels[row]} is outside 0..{n_classes - 1} "
                f"({len(wrong)} such rows); use at least {self.n_classes} classes, or index this source with the "
                f"class list of the other one (--classes FILE)"
            )

    @classmethod
    def read(cls, path: Path | str, *, root: Path | str | None = None, name: str = "") -> "Manifest":
        """Read and check the CSV `path`; InputError names the line. `root` defaults to its folder, `name` to its stem."""
        path = Path(path)
        try:
            large = path.stat().st_size >= manifest_cache.FROM_BYTES
            table = manifest_cache.shared(path, lambda: _read(path)) if large else _read(path)
        except OSError as error:
            hint = f"`ppma index SOURCE --root DIR --out {path}` makes it"
            raise InputError(f"{path}: {error.strerror}; {hint}") from None
        return cls(table, root=Path(root or path.parent), path=path, name=name or path.stem)

    @classmethod
    def from_clips(cls, clips: Iterable[Clip], *, root: Path | str, name: str) -> "Manifest":
        """A manifest in memory, with the same checks as one that is read."""
        text = io.StringIO(newline="")
        _write_rows(text, clips)
        content = text.getvalue().encode()
        where = f"manifest {name!r}"
        return cls(_derive(_parse(content, where=where), content, where), root=Path(root), path=None, name=name)

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


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, without a copy where it is one."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _read(path: Path) -> pa.Table:
    content = path.read_bytes()
    table = _parse(content, where=str(path))
    if not table.num_rows:
        raise InputError(f"{path}: holds no clip; index a source that has some")
    return _derive(table, content, str(path))


def _derive(table: pa.Table, content: bytes, where: str) -> pa.Table:
    """Check the rows, and add what follows from them: numbers without gaps, the classes, the hash of the CSV."""
    columns = {field: _whole(table.column(field)) for field in HEADER}
    _check(columns, where=where)
    label = pc.fill_null(columns["label"], -1)
    names = _class_names(columns, label.to_numpy(zero_copy_only=False), where)
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "class_names": json.dumps(list(names.items()))}
    added = {
        "_label": label,
        "_start": pc.fill_null(columns["start_seconds"], 0.0),
        "_end": pc.coalesce(columns["end_seconds"], columns["duration_seconds"]),
    }
    return pa.table(columns | added).replace_schema_metadata(facts)


def _class_names(columns: dict[str, pa.Array], labels: np.ndarray, where: str) -> dict[int, str]:
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
                f"{found[label]!r} elsewhere; a label has one name, index the source again"
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
    try:
        table = pa_csv.read_csv(io.BytesIO(content), convert_options=options)
    except pa.ArrowInvalid as error:
        raise InputError(_explain(content, where, str(error))) from None
    return table.unify_dictionaries()


def _explain(content: bytes, where: str, otherwise: str) -> str:
    """Name the first line that does not parse; Arrow's threaded reader cannot."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"{where}, line {content.count(10, 0, error.start) + 1}: is not UTF-8; save the file as UTF-8"
    reader = csv.reader(io.StringIO(text, newline=""))
    for row in reader:
        if reader.line_num == 1 or not row:
            continue
        if len(row) != len(HEADER):
            return f"{where}, line {reader.line_num}: {len(row)} columns, not {len(HEADER)}; quote a field with commas"
        for name, value in zip(HEADER, row):
            kind = _TYPES.get(name, _NAMES)
            number = r"[+-]?\d+" if pa.types.is_integer(kind) else r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
            if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and value and not re.fullmatch(number, value):
                wanted = "an integer" if pa.types.is_integer(kind) else "a number"
                return f"{where}, line {reader.line_num}: {name} is {value!r}; it must be {wanted}"
    return f"{where}: {otherwise}"


def _check(columns: dict[str, pa.Array], *, where: str) -> None:
    """Raise InputError for the first row that breaks a rule; each rule gives a column of truth values: wrong or not."""
    for name, wrong, rule in _rules(columns):
        rows = np.flatnonzero(pc.fill_null(wrong, False).to_numpy(zero_copy_only=False))
        if len(rows):
            value = columns[name][int(rows[0])].as_py()
            found = "empty" if value is None else repr(value)
            raise InputError(f"{where}, line {rows[0] + 2}: {name} is {found}; {rule}")


def _rules(columns: dict[str, pa.Array]) -> Iterable[tuple[str, pa.Array, str]]:
    for name in HEADER:
        if name not in _OPTIONAL:
            yield name, pc.is_null(columns[name]), "it must be given (`ppma index` finds it)"
    for name in ("frames", "width", "height", "key_frame_spacing"):
        yield name, pc.less(columns[name], 1), "it must be at least 1"
    for name in ("fps", "duration_seconds"):
        good = pc.and_(pc.is_finite(columns[name]), pc.greater(columns[name], 0.0))
        yield name, pc.invert(good), "it must be above 0"
    yield "label", pc.less(columns["label"], 0), "it must be 0 or more, or empty"
    yield "start_seconds", pc.less(columns["start_seconds"], 0.0), "it must be 0 or more, or empty"
    start = pc.fill_null(columns["start_seconds"], 0.0)
    yield "end_seconds", pc.less_equal(columns["end_seconds"], start), "it must be after start_seconds"
    yield "path", pc.equal(columns["path"], ""), "it must be a path below the root"
    leaves = pc.match_substring_regex(columns["path"], _LEAVES_ROOT)
    yield "path", leaves, "it leaves the root; give the folder that holds all files as --root and index again"
    known = pc.is_in(pc.dictionary_decode(columns["domain"]), value_set=pa.array(DOMAINS))
    yield "domain", pc.invert(known), f"it must be one of {', '.join(DOMAINS[1:])}, or empty"
