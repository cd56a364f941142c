"""One window of one clip, read with as few bytes as it takes.

    file, [start, end) in seconds  ->  the T frames of the window, decoded (PyAV), or their encoded bytes for DALI to decode

          demux from the key frame before the window to its end, note every frame's time
                                        |
          choose T frames: linspace over the frames whose time lies in the window (PAPER.md)
                          /                                   \\
    decode, keep the chosen, to RGB                 remux the packets into a small container in memory

Times are presentation times from the first frame, so a variable frame rate samples what was on screen. A picture is upright: rotation in
the header is applied. Anything wrong inside a file raises BadClip with a reason; this module never makes a picture up.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from ppma.loaders.draws import ClipInput
from ppma.loaders.errors import InputError
from ppma.loaders.formats import FRAME_FOLDER_FPS, list_frames
from ppma.loaders.probe import Unusable, open_video
from ppma.loaders.store import StoreError, is_packed, read_packed
from ppma.loaders.window import choose_frames, inside, thinned

DALI_CPU_CODECS = ("vp8", "vp9", "mjpeg")
"""What DALI 2.4 decodes without a GPU; everything else raises there (FACTS, DALI)."""
DALI_GPU_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")


_CONTAINERS = {"mjpeg": "avi", "vp8": "matroska"}
"""What a codec is remuxed into where MP4 does not hold it."""
MAX_PIXELS = 8192 * 4352
"""Of a frame: 8K, the most that `ppma index --max-pixels` can usefully admit. A 200 kB file may promise more; it is refused unopened."""
_LONG_AGO = -(1 << 62)
_WHOLE_PICTURES = ("mov,", "matroska,")
_PACKED_B_FRAMES = re.compile(rb"DivX\d+(?:Build|b)\d+p")
"""How MPEG-4 in AVI says that two pictures share a packet (DivX, XviD: much of UCF101). FFmpeg's guesses of their times are swapped."""


Choose = Callable[[Sequence[float] | np.ndarray], list[int]]
"""Times of frames, ascending -> which of them are wanted."""


class NotForDali(Exception):
    """A file that DALI's decoder does not take as it is, and PyAV does; the text says why."""


class BadClip(Exception):
    """A file that cannot give the frames asked of it; the text says why."""


@dataclass(frozen=True)
class _Window:
    """Packets from the key frame before a window to its end, and the frames they show in order of time."""

    packets: list[av.Packet]
    stamps: list[int]
    """What a decoded frame is recognised by: its pts or, in AVI, its place in the output."""
    times: list[float]
    in_order: bool
    """The guessed times of packed B-frames are swapped: frames are counted from the first of the file instead."""
    skippable: bool
    """H.264 whose packets are whole pictures, never one of two fields: the decoder may be told of each whether it is wanted."""
    apart: bool
    """Every packet is a picture that needs no other: those that nobody wants need not be decoded, nor handed over."""


def _demux(container: av.container.InputContainer, stream: av.VideoStream, start: float, end: float) -> _Window:
    """Read the packets of a window. Seeking lands on a key frame at or before its start, or the file is read from its beginning."""
    base = stream.time_base
    if base is None:
        raise BadClip("the stream has no time base")
    origin, seconds, ticks = _origin(container, stream), base.numerator, base.denominator
    in_order = bool(_PACKED_B_FRAMES.search(stream.codec_context.extradata or b""))
    if start > 0 and not in_order:
        container.seek(origin + int(start / base), stream=stream, backward=True, any_frame=False)
    packets: list[av.Packet] = []
    last_dts = _LONG_AGO
    for packet in container.demux(stream):
        if packet.size == 0:  # the end, or a frame that AVI leaves out: the one before stays on screen
            continue
        if packet.pts is None and not in_order:
            raise _NoPacketTimes
        if packet.dts is not None and packet.dts <= last_dts:
            raise BadClip(f"time stamps fall back at {(packet.dts - origin) * seconds / ticks:.3f} s")
        if packets or packet.is_keyframe:  # a stream cut inside a group starts with pictures that nothing can decode
            packets.append(packet)
        # A picture is never shown before it is decoded, so from here on every picture lies behind the window.
        last_dts = packet.dts if packet.dts is not None else last_dts
        if (last_dts - origin) * seconds / ticks >= end:
            break
    if not packets:
        raise _SeekedTooFar if start > 0 else BadClip("no key frame found")
    if in_order:
        stamps = list(range(len(packets)))
        origin, shown = 0, [packet.dts for packet in packets if packet.dts is not None]
    else:
        # Leading pictures of an open group refer to what was before the key frame: no decoder shows them after a seek.
        first = packets[0].pts or 0
        shown = stamps = sorted(packet.pts for packet in packets if packet.pts is not None and packet.pts >= first)
    times = [(time - origin) * seconds / ticks for time in shown]
    if start > 0 and not in_order and times[0] > start + 5e-7:
        raise _SeekedTooFar
    codec, pictures = stream.codec_context.name, container.format.name.startswith(_WHOLE_PICTURES)
    apart = (pictures or codec == "mjpeg") and not in_order and all(packet.is_keyframe for packet in packets)
    return _Window(packets, stamps, times, in_order, codec == "h264" and pictures, apart)


class _NoPacketTimes(Exception):
    """Packets carry no presentation time: only decoding tells it."""


class _SeekedTooFar(Exception):
    """The container's index pointed behind the window, or the file begins later than it says."""


_reformatter = (
    VideoReformatter()
)  # of this process: one set of tables for all frames, where each frame would make its own


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    rgb = _reformatter.reformat(frame, format="rgb24").to_ndarray()
    turns = round((frame.rotation % 360) / 90) % 4  # degrees counter-clockwise that make the picture upright
    return np.rot90(rgb, turns) if turns else rgb


def _check(frame: av.VideoFrame) -> None:
    if frame.is_corrupt:
        raise BadClip(f"the frame at {frame.time} s is corrupt")


def _rotation(stream: av.VideoStream, key_packet: av.Packet) -> int:
    """Degrees in the header. PyAV shows them on frames only, so one is decoded."""
    frames = [*stream.codec_context.decode(key_packet), *stream.codec_context.decode(None)]
    return frames[0].rotation if frames else 0


def _decoded(stream: av.VideoStream, window: _Window, wanted: Iterable[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(place in the window, frame) of the wanted frames, as they come out of the decoder; it stops after the last.

    Pictures that nobody wants and none refers to are not decoded: a third of H.264's time with B-frames, three quarters of that of a file
    of key frames only, and no other pixel changes.
    """
    left = {window.stamps[i]: i for i in wanted}
    context, shown = stream.codec_context, 0
    packets = [packet for packet in window.packets if packet.pts in left] if window.apart else window.packets
    for packet in [*packets, None]:
        if window.skippable and packet is not None:
            context.skip_frame = "DEFAULT" if packet.pts in left else "NONREF"
        for frame in context.decode(packet):
            _check(frame)
            stamp = shown if window.in_order else frame.pts
            shown += 1
            if stamp in left:
                yield left.pop(stamp), frame
        if not left:
            return
    raise BadClip(f"{len(left)} wanted frames could not be decoded")


def _decode_all(
    container: av.container.InputContainer, stream: av.VideoStream, start: float, end: float
) -> tuple[list[av.VideoFrame], list[float]]:
    """The slow and certain way: decode from the beginning and take times from the decoder. (frames, times)."""
    frames: list[av.VideoFrame] = []
    times: list[float] = []
    origin = float(_origin(container, stream) * (stream.time_base or 0))
    for packet in container.demux(stream):
        for frame in stream.codec_context.decode(packet):
            _check(frame)
            if frame.time is None:
                raise BadClip("frames carry no time stamps")
            time = frame.time - origin
            if times and time <= times[-1]:
                raise BadClip(f"time stamps fall back at {time:.3f} s")
            if times and time <= start + 5e-7:  # keep one frame from before the window, no more
                frames, times = [frame], [time]
            else:
                frames.append(frame)
                times.append(time)
        if times and times[-1] >= end:
            break
    if not frames:
        raise BadClip("no frame could be decoded")
    return frames, times


def _open(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    try:
        return open_video(path, max_pixels=MAX_PIXELS)
    except Unusable as error:
        raise BadClip(str(error)) from error


def _origin(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """When the first frame is shown that can be decoded, in the stream's time base: time 0 of a clip, as in the index."""
    # A transport stream may have been cut anywhere; AVI stores no times, and counts a delayed first picture from 1.
    if container.format.name in ("mpegts", "avi"):
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.pts is not None:
                container.seek(0, backward=True, any_frame=False)
                return packet.pts
    return stream.start_time or 0


def _video_frames(path: Path, start: float, end: float, choose: Choose) -> Iterator[tuple[int, float, np.ndarray]]:
    """(place, time, picture) of the frames of [start, end) that `choose(times)` names, each once, in order of time."""
    container, stream = _open(path)
    with container:
        try:
            window = _demux(container, stream, start, end)
        except (_NoPacketTimes, _SeekedTooFar):
            window = None
        if window is not None:
            for place, frame in _decoded(stream, window, choose(window.times)):
                yield place, window.times[place], _to_rgb(frame)
            return
    container, stream = _open(path)  # a fresh decoder: the old one holds pictures from where it was
    with container:
        frames, times = _decode_all(container, stream, start, end)
        for place in dict.fromkeys(choose(times)):
            yield place, times[place], _to_rgb(frames[place])


def _read_video(path: Path, start: float, end: float, count: int) -> list[np.ndarray]:
    wanted: list[int] = []

    def choose(times: Sequence[float] | np.ndarray) -> list[int]:
        wanted.extend(choose_frames(times, start, end, count))
        return wanted

    pictures = {place: picture for place, _, picture in _video_frames(path, start, end, choose)}
    return [pictures[i] for i in wanted]


def _decode_image(data: np.ndarray, name: str) -> np.ndarray:
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise BadClip(f"the frame {name} cannot be decoded")
    return image


def read_ahead(path: Path) -> None:
    """Ask the kernel to fetch a file before it is wanted (posix_fadvise): on a network file system its latency is then hidden.

    A file that cannot be opened is left for the reading to complain of. Packed stores are read in place and need none.
    """
    if is_packed(path):
        return
    for file in list_frames(path) if path.is_dir() else [path]:
        with contextlib.suppress(OSError), file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _read_image(path: Path) -> np.ndarray:
    return _decode_image(np.fromfile(path, dtype=np.uint8), path.name)


def _folder(path: Path) -> tuple[list[Path], np.ndarray]:
    """The files of a folder of frames, and the time of each."""
    try:
        files = list_frames(path)
    except InputError as error:
        raise BadClip(str(error)) from error
    return files, np.arange(len(files)) / FRAME_FOLDER_FPS


def _folder_frames(path: Path, start: float, end: float, count: int) -> tuple[list[Path], list[int]]:
    files, times = _folder(path)
    return files, choose_frames(times, start, end, count)


@contextmanager
def _named() -> Iterator[None]:
    """What the libraries raise over a bad file, as BadClip."""
    try:
        yield
    except StoreError as error:
        raise BadClip(str(error)) from error
    except (av.error.FFmpegError, OSError) as error:
        raise BadClip(f"{type(error).__name__}: {error.strerror or error}") from error


def read_window(path: Path, start: float, end: float, count: int) -> np.ndarray:
    """What `read_frames` reads, as one array (T, H, W, 3)."""
    return np.stack(read_frames(path, start, end, count))


def read_frames(path: Path, start: float, end: float, count: int) -> list[np.ndarray]:
    """The `count` frames of [start, end) seconds, each uint8 (H, W, 3) RGB, upright, at the file's own size.

    `path` is a video, a folder of frames (25 frames/s) or the address of a packed clip. Raises BadClip with the reason when they cannot
    be had.
    """
    with _named():
        if is_packed(path):
            packed = read_packed(path, start, end, count, choose_frames)
            decoded = [_decode_image(data, path.name) for data in packed.jpegs]
            frames = [decoded[i] for i in packed.order]
        elif path.is_dir():
            files, wanted = _folder_frames(path, start, end, count)
            pictures = {i: _read_image(files[i]) for i in dict.fromkeys(wanted)}
            frames = [pictures[i] for i in wanted]
        else:
            frames = _read_video(path, start, end, count)
    if len({frame.shape for frame in frames}) != 1:
        raise BadClip(f"frames differ in size: {sorted({frame.shape[:2] for frame in frames})}")
    return frames


def all_frames(path: Path, start: float, end: float, *, fps: float | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """(time in seconds, uint8 (H, W, 3) RGB) of every frame of [start, end) in order, or of at most `fps` a second.

    `path` is a video or a folder of frames; one picture is held at a time. Raises BadClip, possibly after some frames.
    """

    def choose(times: Sequence[float] | np.ndarray) -> list[int]:
        return thinned(times, *inside(times, start, end), fps)

    with _named():
        if path.is_dir():
            files, times = _folder(path)
            for i in choose(times):
                yield float(times[i]), _read_image(files[i])
        else:
            for _, time, picture in _video_frames(path, start, end, choose):
                yield time, picture


def encoded_window(path: Path, start: float, end: float, count: int, codecs: Sequence[str]) -> ClipInput:
    """The same frames as encoded bytes for DALI to decode; NotForDali where its decoder does not take this file as it is.

    A video becomes a container with the packets from the key frame before the window to its end, or with those of the wanted frames where
    every frame is a key frame; of a folder, the wanted files. Rotated videos and pixel formats other than 8-bit 4:2:0 are left to PyAV.
    """
    with _named():
        if is_packed(path):
            packed = read_packed(path, start, end, count, choose_frames)
            size = {"height": packed.height, "width": packed.width}
            return ClipInput(kind="jpeg", payloads=packed.jpegs, frame_idx=packed.order, **size)
        if path.is_dir():
            files, wanted = _folder_frames(path, start, end, count)
            unique = list(dict.fromkeys(wanted))
            if any(files[i].suffix.lower() not in (".jpg", ".jpeg") for i in unique):
                raise NotForDali(f"{files[unique[0]].suffix} frames; nvJPEG takes JPEG")
            payloads = tuple(np.fromfile(files[i], dtype=np.uint8) for i in unique)
            height, width = _read_image(files[unique[0]]).shape[:2]
            order = tuple(unique.index(i) for i in wanted)
            return ClipInput(kind="jpeg", payloads=payloads, frame_idx=order, height=height, width=width)
        return _remuxed_window(path, start, end, count, codecs)


def _remuxed_window(path: Path, start: float, end: float, count: int, codecs: Sequence[str]) -> ClipInput:
    container, stream = _open(path)
    with container:
        context = stream.codec_context
        codec = context.codec.canonical_name
        if codec not in codecs:
            raise NotForDali(f"codec {codec} is none of {', '.join(codecs)}")
        if context.pix_fmt not in ("yuv420p", "yuvj420p"):
            raise NotForDali(f"pixel format {context.pix_fmt} of {codec}")
        try:
            window = _demux(container, stream, start, end)
        except (_NoPacketTimes, _SeekedTooFar):
            raise NotForDali(f"{codec} without usable packet times") from None
        if window.in_order:
            raise NotForDali(f"packed B-frames of {codec} in AVI")
        if _rotation(stream, window.packets[0]):
            raise NotForDali("a picture to be turned")
        wanted = choose_frames(window.times, start, end, count)
        packets = window.packets
        if window.apart:
            kept = sorted(set(wanted))
            shown = {window.stamps[place] for place in kept}
            packets = [packet for packet in packets if packet.pts in shown]
            wanted = [kept.index(place) for place in wanted]
        memory = io.BytesIO()
        with av.open(memory, "w", format=_CONTAINERS.get(codec, "mp4")) as sink:
            out = sink.add_stream_from_template(stream)
            for packet in packets:
                packet.stream = out
                sink.mux(packet)
        payload = np.frombuffer(memory.getvalue(), dtype=np.uint8)
        return ClipInput(
            kind="video", payloads=(payload,), frame_idx=tuple(wanted), height=context.height, width=context.width
        )
