"""Read packed stores: clips as JPEG frames or short-GOP video at the training size, in FFCV's file format, without FFCV.

    STORE.beton/
        index.json            shards with their checksums, parameters, hash of the packed manifest
        rows.npy              row of the manifest -> shard, place in it, size of its frames
        manifest.csv          a copy of the packed manifest
        shard-00000.beton     a complete FFCV data set: fields clip or video (ours), label, row

    shard, place, [start, end) in seconds  ->  one read for the table, one for the chosen pictures  ->  their bytes

A sample is one blob: (n + 1) u4 offsets from its start, n f8 times in seconds, then n pictures in order of time. In the
field `clip` each is a JPEG; in `video` each is a packet of one picture (Annex B), every `gop`-th a key frame with its
parameter sets, which the others need as far as they follow it.
FFCV's own Loader reads a shard with `ppma.loaders.decode.ffcv.ClipField`; `ppma.data.shard_writer` writes shards. The
address of a packed clip, `shard-00000.beton#17`, can be used wherever the path of a video can.
"""

import contextlib
import io
import json
import os
import re
import resource
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ppma.common.files import file_sha256
from ppma.config.errors import InputError, reading
from ppma.config.records import restore
from ppma.loaders.sources.remote import RemoteFile, Url, as_path

Choose = Callable[[np.ndarray], list[int]]
"""Ascending times of frames -> indices of the frames to read."""

FORMAT = "ppma-store 1"
SUFFIX = ".beton"
Codec = Literal["jpeg", "hevc", "h264"]
INDEX, ROWS, REJECTED, MANIFEST = "index.json", "rows.npy", "rejected.csv", "manifest.csv"
MAX_SHARD_BYTES = 1 << 31
_SHARD = r"shard-\d{5,}\.beton"
OPEN_SHARDS = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
"""Files that one process keeps open; a store of Kinetics has about 900."""
HEAD_BYTES = 32 * 2**10
"""The first read of a shard: its header and the table of 700 clips, more than a shard of 1 GB holds."""
REQUESTS = 32
"""Shards that are asked for at a time when a store is opened by URL."""
GAP_BYTES = 128 * 2**10
"""Frames with at most this many bytes between them are read at once, with what is between them. Reading a gap takes
less time than another operation: 0.1 ms at 1 GB/s, where a network file system needs 0.5 to 2 ms to answer."""

# FFCV 1.0.2's types (ffcv/types.py): version 2 of its format, native alignment on a little-endian machine.
FFCV_VERSION, INT_TYPE, CUSTOM_TYPE = 2, 1, 255
_COUNTS = [("version", "<u2"), ("num_fields", "<u2"), ("page_size", "<u4"), ("num_samples", "<u8")]
HEADER = np.dtype([*_COUNTS, ("alloc_table_ptr", "<u8")], align=True)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
CLIP = np.dtype([("n", "<u4"), ("height", "<u2"), ("width", "<u2"), ("size", "<u8"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", CLIP), ("f1", "<i8"), ("f2", "<i8")], align=True)
"""One row of a shard's table: clip, label (-1 for none), row of the manifest."""
FIELDS = (("clip", CUSTOM_TYPE), ("label", INT_TYPE), ("row", INT_TYPE))
VIDEO_FIELD = "video"
"""In place of `clip`; its arguments are "<codec> <gop>"."""
PLACE = np.dtype([("shard", "<i4"), ("place", "<i4"), ("height", "<i4"), ("width", "<i4")])
"""One row of rows.npy; shard is -1 for a clip that could not be packed."""


class StoreError(Exception):
    """Raised when a shard is damaged or differs from its index; the message names the shard."""


@dataclass(frozen=True, kw_only=True)
class PackParameters:
    """The settings that decide the bytes of a store."""

    short_side: int
    """Pixels; a smaller frame keeps its size."""
    fps: float | None
    """Frames kept per second; None for all, or for what `window` takes."""
    quality: int
    """Of JPEG, 1 to 100; of video its CRF, 1 to 51."""
    shard_gb: float | None = None
    """Largest size of a shard in GB; None for FFCV's 2 GiB."""
    codec: Codec = "jpeg"
    gop: int = 1
    """Pictures from one key frame to the next."""
    window: tuple[int, float] | None = None
    """(n, seconds): of each clip, as many frames as leave n in every window of that length."""

    @property
    def shard_bytes(self) -> int:
        """Return the largest size of a shard in bytes."""
        return min(MAX_SHARD_BYTES, int(1e9 * self.shard_gb)) if self.shard_gb else MAX_SHARD_BYTES


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished file of a store, as index.json lists it."""

    file: str
    first_row: int
    rows: int
    """Rows of the manifest that it covers, including those that could not be packed."""
    clips: int
    frames: int
    bytes: int
    sha256: str
    rejected: tuple[tuple[int, str, str], ...] = ()
    """(row, path, reason)."""
    content_sha256: str = ""
    """Hash of the clips that it was packed from, without rejected ones; empty in a store of an older ppma."""


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """Content of index.json, which is rewritten after every shard."""

    manifest_sha256: str
    rows: int
    parameters: PackParameters
    shards: tuple[Shard, ...]
    complete: bool
    format: str = FORMAT

    def dump(self) -> str:
        """Return the text of index.json."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_index(store: Path, name: str = INDEX) -> StoreIndex:
    """Return the index of a store, or of one array task's share of it, finished or not.

    Args:
        store: Folder of the store.
        name: File name of the index.

    Raises:
        InputError: There is no index, or it has another format.
    """
    remedy = "check the URL" if isinstance(store, Url) else f"`ppma pack MANIFEST --out {store}` makes one"
    with reading(store / name, f"the index of a packed store; {remedy}"):
        found = dict(json.loads((store / name).read_text(encoding="utf-8")))
        if found.get("format") != FORMAT:
            raise InputError(f"its format is {found.get('format')!r}, not {FORMAT!r}; pack it again")
        index: StoreIndex = restore(StoreIndex, found)
        if strangers := [shard.file for shard in index.shards if not re.fullmatch(_SHARD, shard.file)]:
            raise InputError(f"it names {strangers[0]!r}, which is not a file of a store; pack it again")
        return index


class Store:
    """A complete store, for the main process: the place of each row of the manifest and the size of its frames."""

    def __init__(self, path: Path | str, *, manifest_sha256: str | None = None) -> None:
        """Read the index.

        Args:
            path: Folder of the store, or its URL.
            manifest_sha256: Hash of the manifest that it must have been packed from; None accepts any.

        Raises:
            InputError: The store is unfinished or damaged, or was packed from another manifest.
        """
        self.path = as_path(path)
        self.index = read_index(self.path)
        if not self.index.complete:
            raise InputError(f"{path}: has only {len(self.index.shards)} of its shards; run ppma pack again")
        if manifest_sha256 not in (None, self.index.manifest_sha256):
            raise InputError(f"{path}: was packed from another manifest; pack this one with a new --out")
        if isinstance(self.path, Url):
            self._check_sizes()
        self.places = self._read_places()
        """PLACE (rows,), mapped from a local store: the processes of a node share it."""

    def _check_sizes(self) -> None:
        """Raise InputError unless every shard is on the server as a whole: copies there break off."""
        with ThreadPoolExecutor(REQUESTS) as pool:
            sizes = pool.map(lambda shard: self._size(self.path / shard.file), self.index.shards)
            for shard, size in zip(self.index.shards, sizes):
                if size != shard.bytes:
                    found = f"{self.path / shard.file} has {size} bytes, not {shard.bytes}"
                    raise InputError(f"{found}; {RemoteShard.remedy}")

    @staticmethod
    def _size(path: Path) -> int:
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_size
        return 0

    def _read_places(self) -> np.ndarray:
        again = "run ppma pack again"
        try:  # mapped, so that a header cannot promise more rows than the file has; a pickle is a ValueError
            file = self.path / ROWS
            by_url = isinstance(file, Url)
            places = np.asarray(np.load(io.BytesIO(file.read_bytes()) if by_url else file, None if by_url else "c"))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.path / ROWS}: cannot be read ({error}); {again}") from None
        fits = places.dtype == PLACE and places.shape == (self.index.rows,)
        if not fits or places["shard"].min(initial=0) < -1 or places["shard"].max(initial=-1) >= len(self.index.shards):
            raise InputError(f"{self.path / ROWS}: does not fit {INDEX}; {again}")
        return places

    def frame_sizes(self, heights: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the heights and widths (rows,) of the packed frames; of the videos, as given, for rows not packed."""
        unpacked = np.flatnonzero(self.places["shard"] < 0)  # few: only their pages of the mapping become private
        self.places["height"][unpacked], self.places["width"][unpacked] = heights[unpacked], widths[unpacked]
        return self.places["height"], self.places["width"]

    def address(self, row: int) -> Path | None:
        """Return the address of a packed row, in place of its video's path; None for a row that was not packed."""
        shard, place = int(self.places["shard"][row]), int(self.places["place"][row])
        return self.path / f"{self.index.shards[shard].file}#{place}" if shard >= 0 else None


def is_packed(path: Path) -> bool:
    """Return True if a path is the address of a packed clip; a video such as x.beton#3.mp4 is not one."""
    return "#" in path.name and re.fullmatch(rf"{_SHARD}#\d+", path.name) is not None


def is_packed_as_jpeg(path: Path) -> bool:
    """Return True if a path is the address of a clip in a readable shard of JPEG frames."""
    try:
        return is_packed(path) and locate_packed(path)[0].codec == "jpeg"
    except (OSError, StoreError):
        return False


Span = tuple[int, int]
"""(offset, size) in bytes of a part of a shard."""


def _joined(spans: Sequence[Span]) -> list[list[Span]]:
    """Return ascending spans in runs without a gap of more than GAP_BYTES."""
    runs: list[list[Span]] = []
    for span in spans:
        if runs and span[0] - sum(runs[-1][-1]) <= GAP_BYTES:
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs


def _around(run: Sequence[Span]) -> Span:
    return run[0][0], sum(run[-1]) - run[0][0]


class ShardFile:
    """One open shard. It reads with pread: memory does not grow with what was read, and threads can share it."""

    remedy = "run ppma pack --verify"
    """What to do about a shard that is cut off."""

    def __init__(self, path: Path) -> None:
        """Open the file; StoreError if it is not a shard of a packed store, or is cut off."""
        self.path, self._bytes = path, self._open(path)
        head, at = self.read(0, min(HEAD_BYTES, self._bytes)), HEADER.itemsize + FIELD.itemsize * len(FIELDS)
        if len(head) < at:
            raise StoreError(f"{path.name} is not a shard of a packed store")
        header = np.frombuffer(head, HEADER, 1)[0]
        fields = np.frombuffer(head, FIELD, len(FIELDS), offset=HEADER.itemsize)
        first, *others = [bytes(field["name"]).rstrip(b"\0").decode(errors="replace") for field in fields]
        known = first in (FIELDS[0][0], VIDEO_FIELD) and others == [name for name, _ in FIELDS[1:]]
        if header["version"] != FFCV_VERSION or not known:
            raise StoreError(f"{path.name} is not a shard of a packed store")
        self.codec, self.gop = "jpeg", 1
        if first == VIDEO_FIELD:
            self.codec, self.gop = _video_layout(bytes(fields[0]["arguments"]), path.name)
        size = SAMPLE.itemsize * int(header["num_samples"])
        table = head[at : at + size] if at + size <= len(head) else self.read(at, size)
        self.samples = np.frombuffer(table, SAMPLE)

    def _open(self, path: Path) -> int:
        """Open the file and return its size."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)  # __del__ may run after Python has cleared `os` at exit
        return os.fstat(self._fd).st_size

    def _pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; StoreError if the file is shorter."""
        data = self._pread(size, offset) if offset + size <= self._bytes else b""
        if len(data) != size:
            raise StoreError(f"{self.path.name} ends before byte {offset + size}; {self.remedy}")
        return data

    def read_spans(self, spans: Sequence[Span]) -> list[np.ndarray]:
        """Return the bytes of each span, in few reads; StoreError if the file is shorter."""
        found: list[np.ndarray] = []
        for run in _joined(spans):
            first, size = _around(run)
            data = np.frombuffer(self.read(first, size), np.uint8)
            found += [data[at - first : at - first + length] for at, length in run]
        return found

    def read_ahead(self, spans: Sequence[Span]) -> None:
        """Ask the kernel to fetch what `read_spans` reads."""
        for run in _joined(spans):
            os.posix_fadvise(self._fd, *_around(run), os.POSIX_FADV_WILLNEED)

    def table(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (offsets u8 (n + 1) into the file, times f8 (n) in seconds) of one clip."""
        clip = self.samples["f0"][place]
        n, at = int(clip["n"]), int(clip["data_ptr"])
        data = self.read(at, 4 * (n + 1) + 8 * n)
        offsets = np.frombuffer(data, "<u4", count=n + 1).astype(np.uint64) + np.uint64(at)
        return offsets, np.frombuffer(data, "<f8", offset=4 * (n + 1))

    def size(self, place: int) -> tuple[int, int]:
        """Return (height, width) of a clip's frames."""
        clip = self.samples["f0"][place]
        return int(clip["height"]), int(clip["width"])


class RemoteShard(ShardFile):
    """One shard by URL."""

    remedy = "copy the store to the server again"

    def _open(self, path: Path) -> int:
        assert isinstance(path, Url)
        self._file = RemoteFile(path)
        return self._file.size

    def _pread(self, size: int, offset: int) -> bytes:
        return self._file.read(offset, size)

    def read_ahead(self, spans: Sequence[Span]) -> None:
        """Bring what `read_spans` reads into the cache of this machine."""
        for run in _joined(spans):
            self._file.read_ahead(*_around(run))


def _video_layout(arguments: bytes, name: str) -> tuple[str, int]:
    """Return (codec, gop) of a shard of video; StoreError if this program does not know them."""
    codec, _, gop = arguments.rstrip(b"\0").decode(errors="replace").partition(" ")
    if codec not in get_args(Codec)[1:] or not re.fullmatch(r"[1-9]\d{0,5}", gop):
        known = " or ".join(get_args(Codec))
        raise StoreError(f"{name} is packed as {codec[:20]!r}, which is not {known}; update ppma, or pack it again")
    return codec, int(gop)


@lru_cache(maxsize=OPEN_SHARDS)
def open_shard(path: Path) -> ShardFile:
    """Return the shard at `path`, kept open."""
    return RemoteShard(path) if isinstance(path, Url) else ShardFile(path)


@dataclass(frozen=True, kw_only=True)
class PackedWindow:
    """The chosen frames of a packed clip, still encoded."""

    codec: str
    pictures: tuple[np.ndarray, ...]
    """uint8 bytes of each picture to decode, in order of time: the distinct frames, and for video those that they need."""
    keys: tuple[bool, ...]
    """True for each picture that needs no other."""
    order: tuple[int, ...]
    """Indices into `pictures` of the window's frames."""
    height: int
    width: int


def locate_packed(address: Path) -> tuple[ShardFile, int]:
    """Return the shard and the place of an address; StoreError if there is no such clip."""
    if not is_packed(address):
        raise StoreError(f"{address} is not an address of a packed clip")
    name, _, place = address.name.rpartition("#")
    shard = open_shard(address.with_name(name))
    if int(place) >= len(shard.samples):
        raise StoreError(f"{name} has {len(shard.samples)} clips, no clip {place}")
    return shard, int(place)


def read_packed(address: Path, choose: Choose) -> PackedWindow:
    """Return the bytes of the frames that `choose` selects by their times.

    Raises:
        StoreError: There is no such clip, or the shard is cut off.
    """
    shard, place = locate_packed(address)
    chosen, needed, spans = _chosen(shard, place, choose)
    height, width = shard.size(place)
    return PackedWindow(
        codec=shard.codec,
        pictures=tuple(shard.read_spans(spans)),
        keys=tuple(i % shard.gop == 0 for i in needed),
        order=tuple(needed.index(i) for i in chosen),
        height=height,
        width=width,
    )


def read_packed_ahead(address: Path, choose: Choose) -> None:
    """Ask the kernel to fetch what `read_packed` reads. Opening the shard and reading the clip's table may block."""
    shard, place = locate_packed(address)
    shard.read_ahead(_chosen(shard, place, choose)[2])


def pictures_needed(chosen: Sequence[int], gop: int) -> list[int]:
    """Return, without repeats, the pictures that decode to the chosen ones: these, and those from their key frames on."""
    return sorted({picture for i in set(chosen) for picture in range(i - i % gop, i + 1)})


def _chosen(shard: ShardFile, place: int, choose: Choose) -> tuple[list[int], list[int], list[Span]]:
    """Return the frames that `choose` selects, the pictures that they need, and where the latter are in the shard."""
    offsets, times = shard.table(place)
    chosen = choose(times)
    needed = pictures_needed(chosen, shard.gop)
    return chosen, needed, [(int(offsets[i]), int(offsets[i + 1] - offsets[i])) for i in needed]


def damaged_shards(store: Path, shards: Sequence[Shard]) -> Iterator[tuple[Shard, str]]:
    """Compare every shard with its checksum; yield (shard, what is wrong with it or an empty string)."""
    for shard in shards:
        path = store / shard.file
        if path.stat().st_size != shard.bytes:
            yield shard, f"has {path.stat().st_size} bytes, not {shard.bytes}"
        else:
            yield shard, "" if file_sha256(path) == shard.sha256 else "differs from its checksum"
