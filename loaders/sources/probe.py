"""Find what a video file or a folder of frames holds, without trusting its name or its header.

    path  ->  probe  ->  VideoMetadata, or Unusable with the reason

Every packet is demuxed: that gives the true number of frames, their times and the distances between key frames, and
shows a file that ends before its index does. Decoding everything takes 10 to 20 times as long, so there are two checks:

    quick   decodes up to 8 key frames, spread over the file: finds size changes, rotation, damage to a key frame
    full    decodes every frame in the same pass: refuses a file with any corrupt frame

Damage between key frames passes `quick`; the loader then names and counts the file. Frames count from the first key
frame, times from its presentation, sizes are of the upright picture.
"""

import io
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import av
import av.error
import numpy as np

from ppma.common.frames import FRAME_FOLDER_FPS, SHOWN, is_frames, read_folder
from ppma.common.workers import parallel_map
from ppma.config.errors import InputError

Check = Literal["quick", "full"]

MAX_PIXELS = 4096 * 2304
"""Most pixels of a frame: 4K. A 200 kB file can promise 8192 x 8192, and each such frame takes 200 MB as RGB."""
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,h264,hevc,m4v"
"""Demuxers that may open a file; none that reads text as video (tty) or opens other files or URLs (hls, concat)."""
PICTURES = "jpeg_pipe,png_pipe,mjpeg"
KEY_FRAMES_DECODED = 8
"""By the quick check, evenly spread."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_VFR_RATIO = 1.5
"""Longest over shortest step between frames above which the rate is variable; rounding to ms gives 1.06 at 60/s."""


class Unusable(Exception):
    """Raised for a file that cannot be used as a clip; the message says why."""


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
    without some frame numbers (5, 6)."""


class _Job(NamedTuple):
    number: int
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


def open_video(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file by its content and return it with its video stream; nothing above `max_pixels` is decoded.

    Raises:
        Unusable: It is not a video, or its frames are too large.
    """
    if not path.stat().st_size:
        raise Unusable("is an empty file")
    # Opening decodes a frame to fill in what the header leaves out; coded sizes are a little larger than shown ones.
    options = {"format_whitelist": CONTAINERS, "max_pixels": str(2 * max_pixels)}
    try:
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        raise Unusable(_why_not_opened(path, error)) from error
    cover = int(av.stream.Disposition.attached_pic)
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        container.close()
        raise Unusable("has no video stream")
    stream = streams[0]
    if not 0 < stream.width * stream.height <= max_pixels:
        container.close()
        if not stream.width:
            raise Unusable("its header gives no picture size: cut before the first whole frame, or not a video")
        size = f"{stream.width} x {stream.height}"
        raise Unusable(f"its frames of {size} are larger than {max_pixels} pixels (`ppma index --max-pixels`)")
    stream.thread_type = "NONE"  # one process per core; each thread within it would cost memory
    return container, stream


def _why_not_opened(path: Path, error: av.error.FFmpegError) -> str:
    with path.open("rb") as file:
        start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        return "is a web page (an error message of the server?), not a video; download it again"
    return f"cannot be opened: {error.strerror}; it is cut before its index, or not a video"


@dataclass
class _Walk:
    """What the packets of one stream reveal, from the first key frame on."""

    times: "array[int]" = field(default_factory=lambda: array("q"))
    """Presentation times of frames, in decoding order, in units of the time base."""
    keys: list[int] = field(default_factory=list)
    """Positions of key frames in `times`."""
    samples: list[tuple[int, av.Packet]] = field(default_factory=list)
    """(time, packet) of some key frames, evenly spread."""
    packets: int = 0
    """All packets, also those before the first key frame."""
    late: int = 0
    """Packets before the first key frame."""
    last_dts: int | None = None
    last_time: int | None = None
    last_duration: int = 0
    """Of the frame shown last, in units of the time base; 0 if unknown."""
    corrupt: int = 0
    fell_back: bool = False
    every: int = 1

    def add(self, packet: av.Packet) -> bool:
        """Note a packet; return True if a decoder can use it."""
        self.packets += 1
        if not self.keys and not packet.is_keyframe:
            self.late += 1
            return False
        self.corrupt += packet.is_corrupt
        self._check_order(packet.dts)
        time = packet.dts if packet.pts is None else packet.pts
        if time is None:
            raise Unusable("has no time stamps (a raw stream?); wrap it: ffmpeg -r 25 -i IN -c copy OUT.mp4")
        if not is_shown(packet) or (self.times and time < self.times[0]):
            return True  # decoded for others that refer to it, or a leading picture of an open GOP: never shown
        if packet.is_keyframe:
            self._sample(time, packet)
            self.keys.append(len(self.times))
        self.times.append(time)
        if self.last_time is None or time > self.last_time:
            self.last_time, self.last_duration = time, packet.duration or 0
        return True

    def _check_order(self, dts: int | None) -> None:
        if dts is not None:
            self.fell_back |= self.last_dts is not None and dts <= self.last_dts
            self.last_dts = dts

    def _sample(self, time: int, packet: av.Packet) -> None:
        if len(self.keys) % self.every == 0:
            self.samples.append((time, packet))
        if len(self.samples) > KEY_FRAMES_DECODED:
            self.samples = self.samples[::2]
            self.every *= 2


def is_shown(packet: av.Packet) -> bool:
    """Return False for a packet that an edit list drops, and for VP8's pictures that only serve as references.

    Bit 4 of their first byte is 0 (RFC 6386, 9.1).
    """
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] >> 4 & 1)


class _Pictures:
    """What the decoded pictures reveal: size, rotation, corruption."""

    def __init__(self, stream: av.VideoStream) -> None:
        self.stream = stream
        self.size: tuple[int, int] | None = None
        self.rotated = self.interlaced = False
        self.frames = 0
        self.corrupt: list[float] = []

    def decode(self, packet: av.Packet | None, first_time: int | None) -> None:
        try:
            frames = self.stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            self.corrupt.append(self._seconds(packet.pts if packet else None, first_time))
            return
        for frame in frames:
            if frame.pts is not None and first_time is not None and frame.pts < first_time:
                continue
            self._note(frame, first_time)

    def _note(self, frame: av.VideoFrame, first_time: int | None) -> None:
        size = frame.width, frame.height
        if self.size is None:
            self.size, self.rotated = size, frame.rotation % 180 == 90
        if size != self.size:
            was, now = (f"{width} x {height}" for width, height in (self.size, size))
            raise Unusable(f"its frame size changes from {was} to {now}")
        self.interlaced |= bool(frame.interlaced_frame)
        self.frames += 1
        if frame.is_corrupt:
            self.corrupt.append(self._seconds(frame.pts, first_time))

    def _seconds(self, time: int | None, first_time: int | None) -> float:
        return 0.0 if time is None else float((time - (first_time or 0)) * (self.stream.time_base or 0))


def _packets(container: av.container.InputContainer, stream: av.VideoStream, promised: int) -> Iterator[av.Packet]:
    """Yield the packets with content; Unusable if the demuxer fails before the end."""
    count = 0
    try:
        for packet in container.demux(stream):
            if packet.size:
                count += 1
                yield packet
    except av.error.FFmpegError as error:
        what = f"{count} of {promised} frames" if promised else f"{count} frames"
        raise Unusable(f"breaks off after {what}: {error.strerror}") from error


def _probe_video(path: Path, max_pixels: int, check: Check) -> VideoMetadata:
    container, stream = open_video(path, max_pixels=max_pixels)
    with container:
        walk, pictures = _Walk(), _Pictures(stream)
        for packet in _packets(container, stream, stream.frames):
            if walk.add(packet) and check == "full":
                pictures.decode(packet, walk.times[0])
        if not walk.times:
            raise Unusable("has no frame that can be decoded" if not walk.late else "has no key frame to begin at")
        if check == "full":
            pictures.decode(None, walk.times[0])
        else:
            _decode_samples(walk, pictures)
        _judge(walk, pictures, promised=stream.frames, check=check)
        return _metadata(stream, walk, pictures)


def _decode_samples(walk: _Walk, pictures: _Pictures) -> None:
    for time, packet in walk.samples:
        before = pictures.frames
        pictures.decode(packet, walk.times[0])
        pictures.decode(None, walk.times[0])
        pictures.stream.codec_context.flush_buffers()
        if pictures.frames == before and not pictures.corrupt:
            raise Unusable(f"its key frame at {pictures._seconds(time, walk.times[0]):.2f} s gives no picture")


def _judge(walk: _Walk, pictures: _Pictures, *, promised: int, check: Check) -> None:
    """Raise Unusable for the first fault that the packets and the decoder revealed."""
    if promised - walk.packets > max(1, promised // 100):  # headers of old AVI files are off by one; a cut file by many
        whole = walk.packets - walk.corrupt
        raise Unusable(f"is cut short: its index promises {promised} frames, {whole} are there")
    if walk.fell_back:
        raise Unusable("its time stamps jump back (two recordings in one file?); cut or remux it")
    if pictures.corrupt:
        what = f"{len(pictures.corrupt)} of its {'frames' if check == 'full' else 'tested key frames'}"
        raise Unusable(f"is damaged: {what} cannot be decoded cleanly, the first at {pictures.corrupt[0]:.2f} s")
    if walk.corrupt:
        raise Unusable(f"is damaged: {walk.corrupt} of its {walk.packets} packets arrive incomplete")
    if check == "full" and pictures.frames < len(walk.times):
        raise Unusable(f"is damaged: {pictures.frames} of its {len(walk.times)} frames come out of the decoder")


def _metadata(stream: av.VideoStream, walk: _Walk, pictures: _Pictures) -> VideoMetadata:
    assert pictures.size is not None, "a picture was decoded, or _judge has raised"
    seconds = np.sort(np.frombuffer(walk.times, np.int64)) * float(stream.time_base or 0)
    count, header_fps = len(seconds), float(stream.average_rate or 0)
    fps = (count - 1) / (seconds[-1] - seconds[0]) if seconds[-1] > seconds[0] else header_fps or FRAME_FOLDER_FPS
    if abs(fps - header_fps) < 0.01 * fps:
        fps = header_fps  # 29.97 as meant, not as rounded to milliseconds by the container
    duration = seconds[-1] - seconds[0] + (walk.last_duration * float(stream.time_base or 0) or 1 / fps)
    steps_seconds = np.diff(seconds)
    remarks = {
        "rotated": pictures.rotated,
        "interlaced": pictures.interlaced,
        "starts without a key frame": walk.late > 0,
        "variable frame rate": count > 2 and steps_seconds.max() > _VFR_RATIO * steps_seconds.min(),
    }
    return VideoMetadata(
        frames=count,
        fps=round(float(fps), 6),
        width=pictures.size[pictures.rotated],
        height=pictures.size[not pictures.rotated],
        codec=stream.codec_context.codec.canonical_name,
        key_frame_spacing=int(np.diff([*walk.keys, count]).max()),
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
    return VideoMetadata(
        frames=len(files),
        fps=FRAME_FOLDER_FPS,
        width=width,
        height=height,
        codec=codec,
        key_frame_spacing=1,
        duration_seconds=round(len(files) / FRAME_FOLDER_FPS, 6),
        remarks=(
            *([f"without some frame numbers ({_some(found.missing)})"] if found.missing else []),
            *([f"with other pictures, which are left out ({_some(found.left_out)})"] if found.left_out else []),
        ),
    )


def _some(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


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


def probe_all(
    paths: Sequence[Path],
    *,
    workers: int,
    timeout_seconds: float,
    max_pixels: int = MAX_PIXELS,
    check: Check = "quick",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[VideoMetadata | str]:
    """Probe many files in other processes, so that a file that crashes or hangs a decoder costs only its own result.

    Args:
        paths: Videos and folders of frames.
        workers: Number of processes.
        timeout_seconds: A file that takes longer is given up.
        max_pixels: Frames with more pixels are refused.
        check: "quick" decodes up to 8 key frames, "full" every frame.
        on_progress: Called with (files done, all files) after each file.

    Returns:
        The metadata of each path, or the reason why it cannot be used, in the order of `paths`.
    """
    jobs = [_Job(number, path, max_pixels, check) for number, path in enumerate(paths)]
    found: dict[int, VideoMetadata | str] = {}
    on_progress(0, len(jobs))
    for number, answer in parallel_map(_probe_job, jobs, workers, timeout_seconds=timeout_seconds, on_lost=_lost):
        found[number] = answer
        on_progress(len(found), len(jobs))
    return [found[number] for number in range(len(jobs))]


def _probe_job(job: _Job) -> tuple[int, VideoMetadata | str]:
    try:
        return job.number, probe(job.path, max_pixels=job.max_pixels, check=job.check)
    except Unusable as reason:
        return job.number, str(reason)


def _lost(job: _Job, reason: str) -> tuple[int, str]:
    late = reason.startswith("took")
    return job.number, f"{reason} to probe (--timeout-seconds)" if late else f"crashed the reader ({reason})"
