"""Read one window of one clip, decoding as few bytes as it takes.

    file, [start, end) in seconds
      ->  demux from the key frame before the window to its end; every packet gives a frame's time
      ->  choose T frames: linspace over the frames whose time is in the window (the paper's sampling)
      ->  decode, keep the chosen frames, convert to RGB        (or leave them encoded for DALI: `remux`)

Times are presentation times from the first frame, so a variable frame rate samples what was on screen. Frames are
upright: rotation in the header is applied. A file that cannot give the frames raises BadClip; none is ever made up.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from ppma.common.frames import FRAME_FOLDER_FPS, is_frames, list_frames
from ppma.config.errors import BadClip, InputError
from ppma.loaders.samples import TIME_TOLERANCE, choose_frames, frames_in_window, thin_to_fps
from ppma.loaders.sources.probe import Unusable, is_shown, open_video
from ppma.loaders.sources.store import StoreError, is_packed, read_packed

MAX_PIXELS = 8192 * 4352
"""Most pixels of a frame: 8K, the largest useful `ppma index --max-pixels`. A 200 kB file may promise more."""
_SEEK_BACK_SECONDS = (0.0, 0.5, 4.0, 30.0)
"""Distances before a window's start to seek to: a container may seek by decoding times, or to any packet."""
_LONG_AGO = -(1 << 62)
_WHOLE_PICTURES = ("mov,", "matroska,")
"""Containers whose packets are whole pictures."""
_PACKED_B_FRAMES = re.compile(rb"DivX\d+(?:Build|b)\d+p")
"""Marks MPEG-4 in AVI in which two pictures share a packet (DivX, XviD: much of UCF101). FFmpeg swaps their times."""

Choose = Callable[[Sequence[float] | np.ndarray], list[int]]
"""Ascending times of frames -> indices of the frames to read."""


# ------------------------------------------------------------------------------------------------------ public readers


@contextmanager
def as_bad_clip() -> Iterator[None]:
    """Turn the errors that libraries raise for a bad file into BadClip."""
    try:
        yield
    except StoreError as error:
        raise BadClip(str(error)) from error
    except (av.error.FFmpegError, OSError) as error:
        raise BadClip(f"{type(error).__name__}: {error.strerror or error}") from error


def read_frames(path: Path, start: float, end: float, count: int) -> list[np.ndarray]:
    """Return `count` frames of the window [start, end), each uint8 (H, W, 3) RGB, upright, at the file's own size.

    Args:
        path: Video, folder of frames (25 frames/s) or address of a packed clip.
        start: First moment of the window in seconds.
        end: End of the window in seconds, exclusive.
        count: Number of frames, uniformly spaced.

    Raises:
        BadClip: The file cannot give these frames.
    """
    with as_bad_clip():
        if is_packed(path):
            packed = read_packed(path, lambda times: choose_frames(times, start, end, count))
            decoded = [_decode_image(data, path.name) for data in packed.jpegs]
            if wrong := {frame.shape[:2] for frame in decoded} - {(packed.height, packed.width)}:
                raise BadClip(f"frames of {wrong} (height, width), and the store says {packed.height, packed.width}")
            frames = [decoded[i] for i in packed.order]
        elif is_frames(path):
            files, chosen = folder_window(path, start, end, count)
            pictures = {i: _read_image(files[i]) for i in dict.fromkeys(chosen)}
            frames = [pictures[i] for i in chosen]
        else:
            frames = _read_video(path, start, end, count)
    if len({frame.shape for frame in frames}) != 1:
        raise BadClip(f"frames differ in size: {sorted({frame.shape[:2] for frame in frames})}")
    return frames


def read_window(path: Path, start: float, end: float, count: int) -> np.ndarray:
    """Return the frames of `read_frames` as one array (T, H, W, 3)."""
    return np.stack(read_frames(path, start, end, count))


def all_frames(path: Path, start: float, end: float, *, fps: float | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (time in seconds, uint8 (H, W, 3) RGB) for every frame of [start, end) in order, holding one at a time.

    Args:
        path: Video or folder of frames.
        start: First moment in seconds.
        end: End in seconds, exclusive.
        fps: Most frames per second to yield; None for all.

    Raises:
        BadClip: A frame cannot be decoded; earlier frames may have been yielded.
    """

    def choose(times: Sequence[float] | np.ndarray) -> list[int]:
        return thin_to_fps(times, *frames_in_window(times, start, end), fps)

    with as_bad_clip():
        if is_frames(path):
            files, times = _folder(path)
            for i in choose(times):
                yield float(times[i]), _read_image(files[i])
        else:
            for _, time, picture in _video_frames(path, start, end, choose):
                yield time, picture


def read_ahead(path: Path) -> None:
    """Ask the kernel to fetch a file (posix_fadvise), which hides the latency of a network file system.

    A file that cannot be opened is reported when it is read. Packed stores are read in place and need no fetching.
    """
    if is_packed(path):
        return
    for file in list_frames(path) if is_frames(path) else [path]:
        with contextlib.suppress(OSError), file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


# --------------------------------------------------------------------------------------------------- folders of frames


def _folder(path: Path) -> tuple[list[Path], np.ndarray]:
    """Return the files of a folder of frames, and the time of each in seconds."""
    try:
        files = list_frames(path)
    except InputError as error:
        raise BadClip(str(error)) from error
    return files, np.arange(len(files)) / FRAME_FOLDER_FPS


def folder_window(path: Path, start: float, end: float, count: int) -> tuple[list[Path], list[int]]:
    """Return the files of a folder of frames, and the indices of the `count` files of a window."""
    files, times = _folder(path)
    return files, choose_frames(times, start, end, count)


def _decode_image(data: np.ndarray, name: str) -> np.ndarray:
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise BadClip(f"the frame {name} cannot be decoded")
    return image


def _read_image(path: Path) -> np.ndarray:
    return _decode_image(np.fromfile(path, dtype=np.uint8), path.name)


# -------------------------------------------------------------------------------------------------------------- video


class NoPacketTimesError(Exception):
    """Raised for packets without presentation times, which only decoding reveals."""


class SeekedTooFarError(Exception):
    """Raised if the container's index points past the window, or the file begins later than it says."""


@dataclass(frozen=True)
class Window:
    """Packets from the key frame before a window to its end, and the frames they show in order of time."""

    packets: list[av.Packet]
    shown: list[av.Packet]
    """Packets that show a picture, in decoding order. Not shown: leading pictures of an open GOP, which refer to
    pictures before its key frame; VP8's pictures that only serve as references; pictures that an edit list cuts off."""
    stamps: list[int]
    """Identifies each decoded frame: its pts or, where frames are counted, its place in the output."""
    times: list[float]
    """Of the frames, in seconds from the first frame of the file."""
    in_order: bool
    """FFmpeg guesses the container's times wrong: frames are counted from the first of the file instead."""
    skippable: bool
    """H.264 whose packets are whole pictures, never one of two fields: the decoder may skip unreferenced ones."""
    intra: bool
    """Every packet is a picture that needs no other: only the chosen ones are decoded or handed on."""


def open_stream(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a video; BadClip if it is not one."""
    try:
        return open_video(path, max_pixels=MAX_PIXELS)
    except Unusable as error:
        raise BadClip(str(error)) from error


def demux_window(container: av.container.InputContainer, stream: av.VideoStream, start: float, end: float) -> Window:
    """Read the packets of a window, from the last key frame before it.

    Raises:
        NoPacketTimesError: Packets carry no times.
        SeekedTooFarError: No seek finds the key frame.
        BadClip: The stream cannot be read.
    """
    base, codec, name = stream.time_base, stream.codec_context.name, container.format.name
    if base is None:
        raise BadClip("the stream has no time base")
    origin = _origin(container, stream)
    in_order = _times_are_guessed(name, stream.codec_context)
    for back in _SEEK_BACK_SECONDS:
        # 1. seek, further back at each attempt
        seconds = start - back
        if seconds > 0 and not in_order:
            container.seek(origin + int(seconds / base), stream=stream, backward=True)
        elif back:
            container.seek(0, backward=True)
        packets = _packets(container, stream, origin, start, end, in_order)
        if not packets and start <= 0:
            raise BadClip("no key frame found")
        # 2. times of the frames that these packets show
        shown = packets if in_order else [p for p in packets if is_shown(p) and (p.pts or 0) >= (packets[0].pts or 0)]
        stamps = list(range(len(packets))) if in_order else sorted(p.pts or 0 for p in shown)
        ticks = [p.dts for p in packets if p.dts is not None] if in_order else [stamp - origin for stamp in stamps]
        times = [tick * base.numerator / base.denominator for tick in ticks]
        if times and (in_order or start <= 0 or times[0] <= start + TIME_TOLERANCE):
            break
        if seconds <= 0:
            raise SeekedTooFarError
    else:
        raise SeekedTooFarError
    whole = name.startswith(_WHOLE_PICTURES)
    intra = (whole or codec == "mjpeg") and not in_order and all(packet.is_keyframe for packet in shown)
    return Window(packets, shown, stamps, times, in_order, codec == "h264" and whole, intra)


def _times_are_guessed(container: str, context: av.VideoCodecContext) -> bool:
    """Return True for AVI with B-frames: it stores no times, and FFmpeg's guesses are wrong (H.264, HEVC, XviD)."""
    if container == "avi" and context.name in ("h264", "hevc"):
        return bool(context.has_b_frames)
    return bool(_PACKED_B_FRAMES.search(context.extradata or b""))


def _origin(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Return the time of the first frame that can be decoded, in the stream's time base: time 0 of a clip."""
    # A transport stream may have been cut anywhere; AVI stores no times, and counts a delayed first picture from 1.
    if container.format.name in ("mpegts", "avi"):
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.pts is not None:
                container.seek(0, backward=True, any_frame=False)
                return packet.pts
    return stream.start_time or 0


def _packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    origin: int,
    start: float,
    end: float,
    in_order: bool,
) -> list[av.Packet]:
    """Return the packets from the last key frame at or before `start` to those decoded at `end`."""
    seconds, ticks = (stream.time_base or Fraction(1)).as_integer_ratio()
    packets: list[av.Packet] = []
    last_dts = _LONG_AGO
    for packet in container.demux(stream):
        if packet.size == 0:  # the end, or a frame that AVI leaves out: the one before stays on screen
            continue
        if packet.pts is None and not in_order:
            raise NoPacketTimesError
        time = ((packet.pts or 0) - origin) * seconds / ticks
        if packet.is_keyframe and not in_order and time <= start + TIME_TOLERANCE:
            packets = []
        elif not packets and not packet.is_keyframe:  # cut inside a GOP: these pictures cannot be decoded
            continue
        packets.append(packet)
        leading = not in_order and (packet.pts or 0) < (packets[0].pts or 0)
        if packet.dts is None or leading or not is_shown(packet):
            continue
        if packet.dts <= last_dts:
            raise BadClip(f"time stamps fall back at {(packet.dts - origin) * seconds / ticks:.3f} s")
        if len(packets) > 1:  # Matroska guesses the decoding time of the first after a seek
            last_dts = packet.dts
        # A picture is never shown before it is decoded, so all further pictures are past the window.
        if (last_dts - origin) * seconds / ticks >= end:
            break
    return packets


_reformatter = VideoReformatter()  # one set of tables for all frames of the process, instead of one for each frame


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Return an upright frame as uint8 (H, W, 3) RGB."""
    rgb = _reformatter.reformat(frame, format="rgb24").to_ndarray()
    turns = round((frame.rotation % 360) / 90) % 4  # quarter turns counterclockwise that make the picture upright
    return np.rot90(rgb, turns) if turns else rgb


def check_frame(frame: av.VideoFrame) -> None:
    """Raise BadClip for a frame that the decoder marks as corrupt."""
    if frame.is_corrupt:
        raise BadClip(f"the frame at {frame.time} s is corrupt")


def _decode_window(
    stream: av.VideoStream, window: Window, chosen: Iterable[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (place in the window, frame) of the chosen frames as the decoder returns them; stop after the last.

    Pictures that are neither chosen nor referred to are not decoded: that saves a third of the time of H.264 with
    B-frames and three quarters of a file of key frames, and changes no other pixel.
    """
    left = {window.stamps[i]: i for i in chosen}
    context, count = stream.codec_context, 0
    packets = [packet for packet in window.packets if packet.pts in left] if window.intra else window.packets
    for packet in [*packets, None]:
        if window.skippable and packet is not None:
            context.skip_frame = "DEFAULT" if packet.pts in left else "NONREF"
        for frame in context.decode(packet):
            check_frame(frame)
            stamp = count if window.in_order else frame.pts
            count += 1
            if stamp in left:
                yield left.pop(stamp), frame
        if not left:
            return
    raise BadClip(f"{len(left)} chosen frames could not be decoded")


def _decode_from_start(
    container: av.container.InputContainer, stream: av.VideoStream, start: float, end: float
) -> tuple[list[av.VideoFrame], list[float]]:
    """Return (frames, times) up to `end` with times from the decoder: slow, for files without usable packet times."""
    frames: list[av.VideoFrame] = []
    times: list[float] = []
    origin = float(_origin(container, stream) * (stream.time_base or 0))
    for packet in container.demux(stream):
        for frame in stream.codec_context.decode(packet):
            check_frame(frame)
            if frame.time is None:
                raise BadClip("frames carry no time stamps")
            time = frame.time - origin
            if times and time <= times[-1]:
                raise BadClip(f"time stamps fall back at {time:.3f} s")
            if times and time <= start + TIME_TOLERANCE:  # keep only one frame from before the window
                frames, times = [frame], [time]
            else:
                frames.append(frame)
                times.append(time)
        if times and times[-1] >= end:
            break
    if not frames:
        raise BadClip("no frame could be decoded")
    return frames, times


def _video_frames(path: Path, start: float, end: float, choose: Choose) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield (place, time, picture) of the frames of [start, end) that `choose` selects, each once, in order of time."""
    container, stream = open_stream(path)
    with container:
        try:
            window = demux_window(container, stream, start, end)
        except (NoPacketTimesError, SeekedTooFarError):
            window = None
        if window is not None:
            for place, frame in _decode_window(stream, window, choose(window.times)):
                yield place, window.times[place], to_rgb(frame)
            return
    container, stream = open_stream(path)  # a fresh decoder: the old one holds pictures from where it was
    with container:
        frames, times = _decode_from_start(container, stream, start, end)
        for place in dict.fromkeys(choose(times)):
            yield place, times[place], to_rgb(frames[place])


def _read_video(path: Path, start: float, end: float, count: int) -> list[np.ndarray]:
    chosen: list[int] = []

    def choose(times: Sequence[float] | np.ndarray) -> list[int]:
        chosen.extend(choose_frames(times, start, end, count))
        return chosen

    pictures = {place: picture for place, _, picture in _video_frames(path, start, end, choose)}
    return [pictures[i] for i in chosen]
