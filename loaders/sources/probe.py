"""Find what a video file or a folder of frames holds, without trusting its name or its header.

    path  ->  probe  ->  VideoMetadata, or Unusable with the reason

Every packet is demuxed: that gives the true number of frames, their times and the distances between key frames, and
shows a file that ends before its index does. Decoding everything takes 10 to 20 times as long, so there are two checks:

    quick   decodes up to 8 key frames, spread over the file: finds size changes, rotation, damage to a key frame
    full    decodes every frame: refuses a file with any corrupt frame

Damage between key frames passes `quick`; the loader then names and counts the file. Where packets or key frames
contradict each other, `quick` decodes every frame too: a file is refused for what the decoder shows from its start.
Sizes are of the upright picture.
"""

import io
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import av
import av.error
import numpy as np

from ppma.common.frames import FRAME_FOLDER_FPS, SHOWN, is_frames, read_folder
from ppma.common.workers import Engine, parallel_events, parallel_map
from ppma.config.errors import InputError, first_few
from ppma.loaders.samples import TIME_TOLERANCE
from ppma.loaders.sources.pictures import (
    MAX_PIXELS,
    SeekError,
    Shown,
    Unusable,
    demux,
    from_start,
    is_shown,
    open_video,
    seek_window,
    stands_alone,
    why_from_start,
)

Check = Literal["quick", "full"]
KeyT = TypeVar("KeyT")

PICTURES = "jpeg_pipe,png_pipe,mjpeg"
KEY_FRAMES_DECODED = 8
"""By the quick check, evenly spread."""
FIRST_FRAMES = 3
"""Decoded by the quick check: a decoder leaves out the pictures after a first key frame that refer to earlier ones."""
FROM_START = "decoded from the start for every window (slow)"
"""Remark on a file in which no seek is exact."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_VFR_RATIO = 1.5
"""Longest over shortest step between frames above which the rate is variable; rounding to ms gives 1.06 at 60/s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoMetadata:
    """What the probe found; units as in `manifest.Clip`."""

    frames: int
    fps: float
    width: int
    height: int
    codec: str
    key_frame_spacing: int
    duration_seconds: float
    remarks: tuple[str, ...] = ()
    """Unusual properties, with details in brackets: rotated, interlaced, variable frame rate, starts without a key frame,
    without some frame numbers (5, 6), FROM_START."""


class _Job(NamedTuple):
    key: Any
    path: Path
    max_pixels: int
    check: Check


def probe(path: Path, *, max_pixels: int = MAX_PIXELS, check: Check = "quick") -> VideoMetadata:
    """Return the metadata of a video or a folder of frames.

    Args:
        path: The file or folder.
        max_pixels: Refuse larger frames.
        check: How much to decode.

    Raises:
        Unusable: It cannot be used as a clip.
    """
    try:
        return (_probe_folder if is_frames(path) else _probe_video)(path, max_pixels, check)
    except (av.error.FFmpegError, OSError) as error:
        raise Unusable(f"cannot be read: {error.strerror or error}") from error


@dataclass
class _Walk:
    """What the packets of one stream promise, from the first key frame on."""

    times: "array[int]" = field(default_factory=lambda: array("q"))
    """Presentation times of the shown frames, in decoding order, in units of the time base."""
    keys: list[int] = field(default_factory=list)
    """Number of frames shown before each key frame."""
    samples: list[av.Packet] = field(default_factory=list)
    """Some key frames, evenly spread."""
    packets: int = 0
    """All packets, also empty ones and those before the first key frame."""
    late: int = 0
    """Packets before the first key frame."""
    corrupt: int = 0
    odd: bool = False
    """The packets contradict each other: only the decoder tells what is shown and when."""
    first_time: int | None = None
    last_time: int | None = None
    last_dts: int | None = None
    last_duration: int = 0
    """Of the frame shown last, in units of the time base; 0 if unknown."""
    every: int = 1

    def add(self, packet: av.Packet) -> None:
        """Note a packet."""
        self.packets += 1
        if not packet.size:
            return
        if not self.keys and not packet.is_keyframe:
            self.late += 1
            return
        self.corrupt += packet.is_corrupt
        if packet.dts is not None:
            self.odd |= self.last_dts is not None and packet.dts <= self.last_dts
            self.last_dts = packet.dts
        if packet.is_keyframe:
            if is_shown(packet):
                self._sample(packet)
            self.keys.append(len(self.times))
        if is_shown(packet):
            self._show(packet)
        else:
            self.odd |= packet.is_discard

    def _show(self, packet: av.Packet) -> None:
        time = packet.pts
        if self.first_time is None:
            self.first_time = time or 0
        if time is None or time < self.first_time:
            self.odd = True
        time = time or 0
        self.times.append(time)
        if self.last_time is None or time > self.last_time:
            self.last_time, self.last_duration = time, packet.duration or 0

    def _sample(self, packet: av.Packet) -> None:
        if len(self.keys) % self.every == 0:
            self.samples.append(packet)
        if len(self.samples) > KEY_FRAMES_DECODED:
            self.samples = self.samples[::2]
            self.every *= 2

    def distinct(self) -> bool:
        """Return True if no two frames have the same time."""
        return len(set(self.times)) == len(self.times)


@dataclass
class _Pictures:
    """What the decoded pictures reveal: times, size, rotation, damage."""

    seconds: list[float] = field(default_factory=list)
    size: tuple[int, int] | None = None
    rotated: bool = False
    interlaced: bool = False
    damaged: list[float] = field(default_factory=list)
    """Times of damaged frames."""

    def add(self, shown: Shown) -> None:
        """Note a picture."""
        frame = shown.frame
        size = frame.width, frame.height
        if self.size is None:
            self.size, self.rotated = size, frame.rotation % 180 == 90
        if size != self.size:
            was, now = (f"{width} x {height}" for width, height in (self.size, size))
            raise Unusable(f"its frame size changes from {was} to {now}")
        self.interlaced |= bool(frame.interlaced_frame)
        self.seconds.append(shown.seconds)
        if shown.damaged:
            self.damaged.append(shown.seconds)


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yield the packets but the last, which only drains a decoder; Unusable if the demuxer fails before the end."""
    count = 0
    try:
        for packet in demux(container, stream):
            if packet.size or packet.dts is not None:
                count += 1
                yield packet
    except av.error.FFmpegError as error:
        what = f"{count} of {stream.frames} frames" if stream.frames else f"{count} frames"
        raise Unusable(f"breaks off after {what}: {error.strerror}") from error


def _probe_video(path: Path, max_pixels: int, check: Check) -> VideoMetadata:
    container, stream = open_video(path, max_pixels=max_pixels)
    with container:
        # 1. what the packets promise
        walk = _Walk()
        for packet in _packets(container, stream):
            walk.add(packet)
        if not walk.keys:
            raise Unusable("has no key frame to begin at" if walk.late else "has no frame that can be decoded")
        # AVI counts frames that it leaves out, and headers of old files are off by one
        there = walk.packets if container.format.name != "avi" else (walk.last_dts or 0) + 1
        if stream.frames - there > max(1, stream.frames // 100):
            raise Unusable(f"is cut short: its index promises {stream.frames} frames, {there - walk.corrupt} are there")
        # 2. what the decoder shows
        ticks = np.sort(np.frombuffer(walk.times, np.int64))
        seconds = (ticks - ticks[:1]) * float(stream.time_base or 0)
        keys = _decode_keys(stream, walk)
        seeks = not why_from_start(container, stream) and keys is not None and walk.distinct()
        keeps_promise = seeks and not walk.odd and not walk.late and _starts_well(path, seconds, max_pixels)
        pictures = keys if keeps_promise and check == "quick" else None
        if pictures is None:
            pictures = _decode_all(path, max_pixels)
            if keeps_promise and len(pictures.seconds) < len(seconds):
                few = f"{len(pictures.seconds)} of its {len(seconds)} frames"
                raise Unusable(f"is damaged: {few} come out of the decoder")
            seconds = np.array(pictures.seconds)
        if walk.corrupt:
            raise Unusable(f"is damaged: {walk.corrupt} of its {walk.packets} packets arrive incomplete")
        # 3. whether a window is found by seeking
        remarks = {
            "rotated": pictures.rotated,
            "interlaced": pictures.interlaced,
            "starts without a key frame": walk.late > 0,
            FROM_START: not seeks or not _seeks_well(path, seconds, max_pixels),
        }
        return _metadata(stream, walk, pictures, seconds, remarks)


def _decode_keys(stream: av.VideoStream, walk: _Walk) -> _Pictures | None:
    """Decode the sampled key frames, each alone; None if one refers to other pictures or is damaged."""
    pictures, context = _Pictures(), stream.codec_context
    for packet in walk.samples:
        try:
            frames = [*context.decode(packet), *context.decode(None)]
        except av.error.FFmpegError:
            return None
        context.flush_buffers()
        if not frames or frames[0].is_corrupt or not stands_alone(frames[0]):
            return None
        for frame in frames:
            pictures.add(Shown(0.0, frame, damaged=False))
    return pictures


def _decode_all(path: Path, max_pixels: int) -> _Pictures:
    """Decode the file from its start; Unusable if a picture is damaged or there is none."""
    container, stream = open_video(path, max_pixels=max_pixels)
    with container:
        pictures = _Pictures()
        for shown in from_start(container, stream):
            pictures.add(shown)
    if pictures.damaged:
        what = f"{len(pictures.damaged)} of its frames cannot be decoded cleanly"
        raise Unusable(f"is damaged: {what}, the first at {pictures.damaged[0]:.2f} s")
    if not pictures.seconds:
        raise Unusable("has no frame that can be decoded")
    return pictures


def _starts_well(path: Path, seconds: np.ndarray, max_pixels: int) -> bool:
    """Return True if the first frames that the decoder shows have the times of the packets."""
    container, stream = open_video(path, max_pixels=max_pixels)
    with container:
        try:
            first = [shown.seconds for shown in islice(from_start(container, stream), FIRST_FRAMES)]
        except (Unusable, av.error.FFmpegError):
            return False
    return len(first) == len(seconds[:FIRST_FRAMES]) and np.allclose(first, seconds[: len(first)], atol=TIME_TOLERANCE)


def _seeks_well(path: Path, seconds: np.ndarray, max_pixels: int) -> bool:
    """Return True if a seek into the second half of the file finds the frames that are there."""
    at = seconds[len(seconds) * 3 // 4]
    container, stream = open_video(path, max_pixels=max_pixels)
    with container:
        try:
            found = [time for time in seek_window(container, stream, at, at).times if time <= at + TIME_TOLERANCE]
        except (SeekError, av.error.FFmpegError):
            return False
    expected = seconds[seconds <= at + TIME_TOLERANCE][-len(found) :]
    return len(found) == len(expected) and np.allclose(found, expected, atol=TIME_TOLERANCE)


def _metadata(
    stream: av.VideoStream, walk: _Walk, pictures: _Pictures, seconds: np.ndarray, remarks: dict[str, bool]
) -> VideoMetadata:
    assert pictures.size is not None, "a picture was decoded"
    count, header_fps = len(seconds), float(stream.average_rate or 0)
    fps = (count - 1) / seconds[-1] if seconds[-1] > 0 else header_fps or FRAME_FOLDER_FPS
    if abs(fps - header_fps) < 0.01 * fps:
        fps = header_fps  # 29.97 as meant, not as rounded to milliseconds by the container
    duration = seconds[-1] + (walk.last_duration * float(stream.time_base or 0) or 1 / fps)
    steps_seconds = np.diff(seconds)
    remarks["variable frame rate"] = count > 2 and steps_seconds.max() > _VFR_RATIO * steps_seconds.min()
    return VideoMetadata(
        frames=count,
        fps=round(float(fps), 6),
        width=pictures.size[pictures.rotated],
        height=pictures.size[not pictures.rotated],
        codec=stream.codec_context.codec.canonical_name,
        key_frame_spacing=int(np.diff([*walk.keys, max(count, walk.keys[-1] + 1)]).max()),
        duration_seconds=round(float(duration), 6),
        remarks=tuple(name for name, holds in remarks.items() if holds),
    )


def _probe_folder(path: Path, max_pixels: int, check: Check) -> VideoMetadata:
    """Probe a folder of frames, all of one size; the quick check opens the first, the middle and the last."""
    try:
        found = read_folder(path)
    except InputError as error:
        raise Unusable(str(error).removeprefix(f"{path}: ")) from error
    files = found.files
    chosen = files if check == "full" else [files[i] for i in sorted({0, len(files) // 2, len(files) - 1})]
    codec = "png" if files[0].suffix.lower() == ".png" else "jpeg"
    sizes = {file.name: _picture_size(file, max_pixels) for file in chosen}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name}: {width} x {height}" for name, (width, height) in list(sizes.items())[:3])
        raise Unusable(f"its frames differ in size ({listed}, ...)")
    width, height = sizes[chosen[0].name]
    first, count = found.missing
    remarks = [f"without some frame numbers ({first_few(first, SHOWN, count=count)})"] if count else []
    if found.left_out:
        remarks.append(f"with other pictures, which are left out ({first_few(found.left_out, SHOWN)})")
    return VideoMetadata(
        frames=len(files),
        fps=FRAME_FOLDER_FPS,
        width=width,
        height=height,
        codec=codec,
        key_frame_spacing=1,
        duration_seconds=round(len(files) / FRAME_FOLDER_FPS, 6),
        remarks=tuple(remarks),
    )


def _picture_size(file: Path, max_pixels: int) -> tuple[int, int]:
    """Return (width, height) of an upright picture; Unusable if it does not decode."""
    data = file.read_bytes()
    if not data:
        raise Unusable(f"its frame {file.name} is an empty file")
    if data.startswith(_PNG_START):  # opening a PNG decodes it: check its size first
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        _refuse_large(file, width, height, max_pixels)
    try:  # from bytes: FFmpeg takes a % in a name for a pattern; opening a JPEG reads only its header
        with av.open(io.BytesIO(data), mode="r", options={"format_whitelist": PICTURES}) as container:
            stream = container.streams.video[0]
            _refuse_large(file, stream.width, stream.height, max_pixels)
            frames = list(container.decode(stream))
    except av.error.FFmpegError as error:
        raise Unusable(f"its frame {file.name} does not decode: {error.strerror}") from error
    if not frames or frames[0].is_corrupt:
        raise Unusable(f"its frame {file.name} is damaged")
    width, height = frames[0].width, frames[0].height
    return (height, width) if frames[0].rotation % 180 == 90 else (width, height)


def _refuse_large(file: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Unusable(
            f"its frame {file.name} has {width} x {height}, more than {max_pixels} pixels (`ppma index --max-pixels`)"
        )


def probe_each(
    files: Iterable[tuple[KeyT, Path]],
    *,
    workers: int,
    timeout_seconds: float,
    max_pixels: int = MAX_PIXELS,
    check: Check = "quick",
    engine: Engine = parallel_events,
) -> Iterator[tuple[KeyT, VideoMetadata | str]]:
    """Probe many files in other processes, so that a file that crashes or hangs a decoder costs only its own result.

    Args:
        files: Key and path of videos and folders of frames; the next is taken when a worker is free.
        workers: Number of processes.
        timeout_seconds: A file that takes longer is given up.
        max_pixels: Frames with more pixels are refused.
        check: "quick" decodes up to 8 key frames, "full" every frame.
        engine: Where the files are probed.

    Yields:
        The key of each file, and its metadata or the reason why it cannot be used, in the order in which they are done.
    """
    jobs = (_Job(key, path, max_pixels, check) for key, path in files)
    yield from parallel_map(_probe_job, jobs, workers, timeout_seconds=timeout_seconds, on_lost=_lost, engine=engine)


def _probe_job(job: _Job) -> tuple[Any, VideoMetadata | str]:
    try:
        return job.key, probe(job.path, max_pixels=job.max_pixels, check=job.check)
    except Unusable as reason:
        return job.key, str(reason)


def _lost(job: _Job, reason: str) -> tuple[Any, str]:
    late = reason.startswith("took")
    return job.key, f"{reason} to probe (--timeout-seconds)" if late else f"crashed the reader ({reason})"
