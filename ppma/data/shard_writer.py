"""Write the shards of a packed store.

    rows of a manifest  ->  decoded (PyAV), scaled down, JPEG  ->  shard-NNNNN.beton, appearing whole or not at all

FFCV's DatasetWriter waits for ever when a sample raises, cannot resume, and pads every page that the next sample does not fit; so the
file is laid out here, byte for byte in its format: header, fields, table of samples, blobs, table of allocations. A shard is one page,
which FFCV allows up to 2 GiB. Needs no FFCV.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ppma.common.files import content_sha256, file_sha256, joined_sha256
from ppma.config.errors import BadClip, InputError
from ppma.loaders.samples import scaled_size
from ppma.loaders.sources.store import (
    ALLOCATION,
    FFCV_VERSION,
    FIELD,
    FIELDS,
    HEADER,
    PLACE,
    ROWS,
    SAMPLE,
    SUFFIX,
    PackParameters,
    Shard,
    ShardFile,
    StoreError,
)

SHARD_FRAMES = 20_000
"""Frames of a shard: some 400 MB at the training size, a minute or two of one core; what a kill can cost a worker."""
PAGE_BYTES = 1 << 21
"""FFCV's smallest page."""
MAX_SHARD_BYTES = 1 << 31


@dataclass(frozen=True, kw_only=True)
class PackRow:
    """One row to pack."""

    row: int
    path: str
    label: int
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """One sample of the field `clip`."""

    blob: bytes
    frames: int
    height: int
    width: int


def shard_bounds(frames: Sequence[int]) -> list[tuple[int, int]]:
    """Rows [first, stop) of each shard, from the frames of each row: a function of the manifest alone, so that a resumed run agrees."""
    bounds, first, held = [], 0, 0
    for row, count in enumerate(frames):
        if held and held + count > SHARD_FRAMES:
            bounds.append((first, row))
            first, held = row, 0
        held += count
    return [*bounds, (first, len(frames))]


def encode_clip(row: PackRow, parameters: PackParameters) -> PackedClip:
    """Decode, scale and compress one row. Raises BadClip.

    Scaling is the loader's own (bilinear, no antialiasing), so that a packed clip differs from its video by JPEG's loss alone.
    """
    from ppma.loaders.decode.fetch import all_frames  # late: training reads stores on machines without PyAV

    times, jpegs, size = [], [], (0, 0)
    window = (Path(row.path), row.start_seconds, row.end_seconds)
    for time, frame_HWC in all_frames(*window, fps=parameters.fps):
        height, width = frame_HWC.shape[:2]
        if min(height, width) > parameters.short_side:
            height, width = scaled_size(height, width, parameters.short_side)
            frame_HWC = cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_LINEAR)
        if size not in ((0, 0), (height, width)):
            raise BadClip(f"frames differ in size: {size} and {(height, width)}")
        size = height, width
        bgr = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR)
        jpegs.append(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, parameters.quality])[1].tobytes())
        times.append(time)
    head = 4 * (len(jpegs) + 1) + 8 * len(jpegs)
    offsets = head + np.cumsum([0, *map(len, jpegs)])
    if offsets[-1] >= MAX_SHARD_BYTES // 2:
        raise BadClip(f"takes {offsets[-1] / 1e9:.1f} GB; give a smaller --fps or --short-side, or cut it")
    blob = b"".join([offsets.astype("<u4").tobytes(), np.array(times, "<f8").tobytes(), *jpegs])
    return PackedClip(blob=blob, frames=len(jpegs), height=size[0], width=size[1])


class ShardWriter:
    """Writes one shard: `add` clips, then `finish`. Nothing bears the shard's name before it is whole and checked."""

    def __init__(self, path: Path, rows: int) -> None:
        """Room is kept for a table of `rows` samples."""
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = self._temporary.open("wb")
        self._table_at = HEADER.itemsize + FIELD.itemsize * len(FIELDS)
        self._samples = np.zeros(rows, SAMPLE)
        self._clips = self.frames = 0
        self._file.seek(self._table_at + self._samples.nbytes)

    def add(self, clip: PackedClip, *, label: int, row: int) -> None:
        """Append one sample."""
        at = self._file.tell()
        if at + len(clip.blob) >= MAX_SHARD_BYTES - PAGE_BYTES:
            raise InputError(f"{self.path.name} passes 2 GiB; give a smaller --quality, --fps or --short-side")
        self._file.write(clip.blob)
        self._samples[self._clips] = (
            (clip.frames, clip.height, clip.width, len(clip.blob), at),
            label,
            row,
        )
        self._clips += 1
        self.frames += clip.frames

    def finish(self) -> tuple[str, int]:
        """Complete, flush, check what the disk holds, and rename. Returns (sha256, bytes)."""
        end = self._file.tell()
        samples = self._samples[: self._clips]
        allocations = np.zeros(self._clips, ALLOCATION)
        allocations["sample_id"] = np.arange(self._clips)
        allocations["ptr"], allocations["size"] = samples["f0"]["data_ptr"], samples["f0"]["size"]
        self._file.write(allocations.tobytes())
        page = max(PAGE_BYTES, 1 << (end - 1).bit_length())  # one page holds all: no sample crosses a page's border
        header = np.array((FFCV_VERSION, len(FIELDS), page, self._clips, end), HEADER)
        self._file.seek(0)
        self._file.write(header.tobytes() + _fields().tobytes() + samples.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        digest = file_sha256(self._temporary)
        _check(self._temporary, samples)
        size = self._temporary.stat().st_size
        self._temporary.replace(self.path)
        return digest, size

    def abandon(self) -> None:
        """Remove what was written. Harmless after `finish`."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _fields() -> np.ndarray:
    fields = np.zeros(len(FIELDS), FIELD)
    for field, (name, type_id) in zip(fields, FIELDS):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    return fields


def _check(path: Path, samples: np.ndarray) -> None:
    """Read the table back, and the first and last bytes of every frame: JPEG's marks."""
    shard = ShardFile(path)
    assert np.array_equal(shard.samples, samples)
    for place in range(len(samples)):
        offsets, _ = shard.table(place)
        for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
            if shard.read(begin, 2) != b"\xff\xd8" or shard.read(end - 2, 2) != b"\xff\xd9":
                raise StoreError(f"{path.name}: clip {place} did not reach the disk as it was written")


def pack_shard(
    folder: Path,
    number: int,
    rows: Sequence[PackRow],
    parameters: PackParameters,
    *,
    refused: Mapping[int, str],
    started: Callable[[PackRow], None],
) -> Shard:
    """Write shard `number` from `rows`; rows that cannot be decoded, and those `refused` with a reason, are left out and named.

    `started` is told of every row before it is opened.
    """
    path = folder / f"shard-{number:05d}{SUFFIX}"
    writer = ShardWriter(path, len(rows))
    rejected: list[tuple[int, str, str]] = []
    contents = []
    try:
        for row in rows:
            started(row)
            try:
                if row.row in refused:
                    raise BadClip(refused[row.row])
                clip = encode_clip(row, parameters)
            except BadClip as error:
                rejected.append((row.row, row.path, str(error)))
                continue
            writer.add(clip, label=row.label, row=row.row)
            contents.append(content_sha256(Path(row.path)))
        digest, size = writer.finish()
    finally:
        writer.abandon()
    return Shard(
        file=path.name,
        first_row=rows[0].row,
        rows=len(rows),
        clips=len(rows) - len(rejected),
        frames=writer.frames,
        bytes=size,
        sha256=digest,
        rejected=tuple(rejected),
        content_sha256=joined_sha256(contents),
    )


def write_rows(folder: Path, shards: Sequence[Shard], rows: int) -> None:
    """rows.npy, from the tables of the shards."""
    places = np.zeros(rows, PLACE)
    places["shard"] = -1
    for number, shard in enumerate(shards):
        samples = ShardFile(folder / shard.file).samples
        at = samples["f2"]
        places["shard"][at], places["place"][at] = number, np.arange(len(samples))
        places["height"][at], places["width"][at] = samples["f0"]["height"], samples["f0"]["width"]
    temporary = folder / f".{ROWS}.tmp"
    with temporary.open("wb") as file:
        np.save(file, places)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / ROWS)


def damaged_shards(folder: Path, shards: Sequence[Shard]) -> Iterator[tuple[Shard, str]]:
    """(shard, "" or what is wrong with it) for each of the shards, its checksum compared."""
    for shard in shards:
        path = folder / shard.file
        if path.stat().st_size != shard.bytes:
            yield shard, f"has {path.stat().st_size} bytes, not {shard.bytes}"
        else:
            yield shard, "" if file_sha256(path) == shard.sha256 else "differs from its checksum"
