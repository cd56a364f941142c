"""Write the shards of a packed store.

    rows of a manifest  ->  decoded (PyAV), scaled down, encoded (`encoders`)  ->  shard-NNNNN.beton, written atomically

FFCV's DatasetWriter hangs when a sample raises, cannot resume, and pads every page that the next sample does not fit. So this module lays
out the file itself, byte for byte in FFCV's format and without FFCV: header, fields, table of samples, blobs, table of allocations. A
shard is one page, which FFCV allows up to 2 GiB.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from ppma.common.files import atomic_path, content_sha256, file_sha256, joined_sha256
from ppma.config.errors import BadClip, InputError
from ppma.data.encoders import QUALITY, encode, packed_size
from ppma.loaders.sources import store
from ppma.loaders.sources.store import PackParameters, Shard, ShardFile, StoreError

SHARD_FRAMES = 20_000
"""Frames of a shard: about 400 MB at the training size and one or two minutes of one core, which is what a kill can cost a worker."""
HIGH_BYTES = (0.5, 1.5)
"""Bytes of a pixel that the frames of a shard stay below: at most the default quality, and above. JPEG of natural frames has
half of that on average, video a fifth."""
PAGE_BYTES = 1 << 21
"""FFCV's smallest page."""


@dataclass(frozen=True, kw_only=True)
class PackRow:
    """One row to pack."""

    row: int
    path: str
    label: int
    start_seconds: float
    end_seconds: float
    fps: float | None = None
    """Frames per second to keep; None for all."""


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """One sample of the field `clip` or `video`."""

    blob: bytes
    frames: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard to write."""

    folder: Path
    number: int
    rows: Sequence[PackRow]
    parameters: PackParameters
    refused: Mapping[int, str] = field(default_factory=dict)
    """Row -> why it is left out."""
    suspect: PackRow | None = None
    """The row that was being encoded when a worker of this shard was killed; it is tried before the others."""


def shard_bounds(frames: Sequence[int], parameters: PackParameters) -> list[tuple[int, int]]:
    """Return the rows [first, stop) of each shard from the frames of each row. They depend on nothing else, so a resumed run agrees."""
    most = SHARD_FRAMES
    if parameters.shard_gb is not None:
        default, is_jpeg = QUALITY[parameters.codec][0], parameters.codec == "jpeg"
        high = HIGH_BYTES[parameters.quality > default if is_jpeg else parameters.quality < default]
        most = min(most, int(parameters.shard_bytes / (high * parameters.short_side**2 * 16 / 9)))
    bounds, first, held = [], 0, 0
    for row, count in enumerate(frames):
        if held and held + count > most:
            bounds.append((first, row))
            first, held = row, 0
        held += count
    return [*bounds, (first, len(frames))]


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}{store.SUFFIX}"


def encode_clip(row: PackRow, parameters: PackParameters) -> PackedClip:
    """Decode, scale and compress one row; BadClip if that fails.

    Scaling is the loader's own (bilinear, no antialiasing), so a packed clip differs from its video by its codec's loss alone.
    """
    from ppma.loaders.decode.fetch import all_frames  # late: training reads stores on machines without PyAV

    times: list[float] = []
    size = 0, 0

    def scaled() -> Iterator[np.ndarray]:
        nonlocal size
        for time, frame_HWC in all_frames(Path(row.path), row.start_seconds, row.end_seconds, fps=row.fps):
            height, width = packed_size(frame_HWC.shape[0], frame_HWC.shape[1], parameters)
            if size not in ((0, 0), (height, width)):
                raise BadClip(f"frames differ in size: {size} and {(height, width)}")
            size = height, width
            times.append(time)
            if (height, width) != frame_HWC.shape[:2]:
                frame_HWC = cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_LINEAR)
            yield frame_HWC

    pictures = list(encode(scaled(), parameters))
    assert len(pictures) == len(times)
    head = 4 * (len(pictures) + 1) + 8 * len(pictures)
    offsets = head + np.cumsum([0, *map(len, pictures)])
    if offsets[-1] >= store.MAX_SHARD_BYTES // 2:
        raise BadClip(f"needs {offsets[-1] / 1e9:.1f} GB; give a smaller --fps or --short-side, or cut the clip")
    blob = b"".join([offsets.astype("<u4").tobytes(), np.array(times, "<f8").tobytes(), *pictures])
    return PackedClip(blob=blob, frames=len(pictures), height=size[0], width=size[1])


class ShardWriter:
    """Append clips to an open file in FFCV's format; `finish` writes its tables."""

    def __init__(self, name: str, file: BinaryIO, rows: int, parameters: PackParameters) -> None:
        """Reserve space for a table of `rows` samples; `name` is for messages."""
        self.name, self.file, self.parameters = name, file, parameters
        self._table = np.zeros(rows, store.SAMPLE)
        self.clips = self.frames = 0
        file.seek(store.HEADER.itemsize + store.FIELD.itemsize * len(store.FIELDS) + self._table.nbytes)

    @property
    def samples(self) -> np.ndarray:
        """The table of the clips added so far, SAMPLE (clips,)."""
        return self._table[: self.clips]

    def add(self, clip: PackedClip, *, label: int, row: int) -> None:
        """Append one sample; InputError if the shard would pass its largest size."""
        at = self.file.tell()
        if at + len(clip.blob) + store.ALLOCATION.itemsize * (self.clips + 1) > min(
            self.parameters.shard_bytes, store.MAX_SHARD_BYTES - PAGE_BYTES
        ):
            most = f"--shard-gb {self.parameters.shard_gb:g}" if self.parameters.shard_gb else "2 GiB"
            raise InputError(f"{self.name} passes {most}; give a lower quality (--quality), --fps or --short-side")
        self.file.write(clip.blob)
        self._table[self.clips] = ((clip.frames, clip.height, clip.width, len(clip.blob), at), label, row)
        self.clips += 1
        self.frames += clip.frames

    def finish(self) -> None:
        """Write the header and the tables."""
        end = self.file.tell()
        allocations = np.zeros(self.clips, store.ALLOCATION)
        allocations["sample_id"] = np.arange(self.clips)
        allocations["ptr"], allocations["size"] = self.samples["f0"]["data_ptr"], self.samples["f0"]["size"]
        self.file.write(allocations.tobytes())
        page = max(PAGE_BYTES, 1 << (end - 1).bit_length())  # one page holds all: no sample crosses a page's border
        header = np.array((store.FFCV_VERSION, len(store.FIELDS), page, self.clips, end), store.HEADER)
        fields = np.zeros(len(store.FIELDS), store.FIELD)
        for one, (name, type_id) in zip(fields, store.FIELDS):
            one["type_id"] = type_id
            one["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        if self.parameters.codec != "jpeg":
            layout = f"{self.parameters.codec} {self.parameters.gop}".encode()
            fields[0]["name"][: len(store.VIDEO_FIELD)] = np.frombuffer(store.VIDEO_FIELD.encode(), np.uint8)
            fields[0]["arguments"][: len(layout)] = np.frombuffer(layout, np.uint8)
        self.file.seek(0)
        self.file.write(header.tobytes() + fields.tobytes() + self.samples.tobytes())


@contextmanager
def shard_file(path: Path, rows: int, parameters: PackParameters) -> Iterator[ShardWriter]:
    """Yield a writer of one shard; `path` appears when the block ends without an error and the file reads back as written."""
    with atomic_path(path) as temp_path:
        with temp_path.open("wb") as file:
            writer = ShardWriter(path.name, file, rows, parameters)
            yield writer
            writer.finish()
        _check(temp_path, writer.samples)


def _check(path: Path, samples: np.ndarray) -> None:
    """Compare the table, and the bytes where every picture begins and a JPEG ends."""
    shard = ShardFile(path)
    assert np.array_equal(shard.samples, samples)
    jpeg = shard.codec == "jpeg"
    for place in range(len(samples)):
        offsets, _ = shard.table(place)
        for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
            first, last = shard.read(begin, 4), shard.read(end - 2, 2)
            good = first[:2] + last == b"\xff\xd8\xff\xd9" if jpeg else first.lstrip(b"\0")[:1] == b"\1"
            if not good:
                raise StoreError(f"{path.name}: clip {place} reads back differently; check the disk and pack it again")


def write_shard(job: ShardJob) -> Iterator[PackRow | Shard]:
    """Write one shard: yield each row before it is opened, and the finished shard last. Bad and refused rows are left out and named."""
    path = job.folder / shard_name(job.number)
    if job.suspect is not None:
        yield job.suspect
        with suppress(BadClip):
            encode_clip(job.suspect, job.parameters)
    rejected: list[tuple[int, str, str]] = []
    contents = []
    with shard_file(path, len(job.rows), job.parameters) as writer:
        for row in job.rows:
            yield row
            try:
                if row.row in job.refused:
                    raise BadClip(job.refused[row.row])
                clip = encode_clip(row, job.parameters)
            except BadClip as error:
                rejected.append((row.row, row.path, str(error)))
                continue
            writer.add(clip, label=row.label, row=row.row)
            contents.append(content_sha256(Path(row.path)))
    yield Shard(
        file=path.name, first_row=job.rows[0].row, rows=len(job.rows), clips=writer.clips, frames=writer.frames,
        bytes=path.stat().st_size, sha256=file_sha256(path), rejected=tuple(rejected), content_sha256=joined_sha256(contents),
    )  # fmt: skip


def write_rows(folder: Path, shards: Sequence[Shard], rows: int) -> None:
    """Write rows.npy, the shard and place of each row of the manifest, from the tables of the shards."""
    places = np.zeros(rows, store.PLACE)
    places["shard"] = -1
    for number, shard in enumerate(shards):
        samples = ShardFile(folder / shard.file).samples
        at = samples["f2"]
        places["shard"][at], places["place"][at] = number, np.arange(len(samples))
        places["height"][at], places["width"][at] = samples["f0"]["height"], samples["f0"]["width"]
    with atomic_path(folder / store.ROWS) as temp_path:
        np.save(temp_path, places)
