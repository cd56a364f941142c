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
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from ppma.config.errors import BadClip, InputError
from ppma.loaders.decode.dali_input import Codecs, Limits
from ppma.loaders.decode.jpeg import read_header, why_not_dali
from ppma.loaders.samples import DaliInput
from ppma.loaders.sources.formats import FRAME_FOLDER_FPS, list_frames
from ppma.loaders.sources.probe import Unusable, is_shown, open_video
from ppma.loaders.sources.store import StoreError, is_packed, read_packed
from ppma.loaders.window import choose_frames, inside, thinned

_BT601 = {5, 6}
"""Tags of the matrix (ITU-T H.273, MatrixCoefficients): BT.470BG and SMPTE 170M, both BT.601's."""
_UNTAGGED, _FULL_RANGE = 2, 2
_SEEK_BACK_SECONDS = (0.0, 0.5, 4.0, 30.0)
"""How far before a window's start to look for its key frame: a container may seek by decoding times, or to any packet."""
_IDR = 5
"""H.264's network unit type of a picture that refers to nothing before it (ITU-T H.264, table 7-1)."""
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


@dataclass(frozen=True)
class _Window:
    """Packets from the key frame before a window to its end, and the frames they show in order of time."""

    packets: list[av.Packet]
    shown: list[av.Packet]
    """Those that show a picture, in decoding order. Not shown: leading pictures of an open group, which refer to what was before its key
    frame; pictures of VP8 that are only referred to; pictures that an edit list cuts off."""
    stamps: list[int]
    """Identifies each decoded frame: its pts or, where frames are counted, its place in the output."""
    times: list[float]
    in_order: bool
    """FFmpeg guesses the container's times wrong: frames are counted from the first of the file instead."""
    skippable: bool
    """H.264 whose packets are whole pictures, never one of two fields: the decoder may be told of each whether it is wanted."""
    apart: bool
    """Every packet is a picture that needs no other: those that nobody wants need not be decoded, nor handed over."""


def _demux(container: av.container.InputContainer, stream: av.VideoStream, start: float, end: float) -> _Window:
    """Read the packets of a window, from the last key frame before it."""
    base, codec, name = stream.time_base, stream.codec_context.name, container.format.name
    if base is None:
        raise BadClip("the stream has no time base")
    origin = _origin(container, stream)
    in_order = _times_are_guessed(name, stream.codec_context)
    for back in _SEEK_BACK_SECONDS:
        seconds = start - back
        if seconds > 0 and not in_order:
            container.seek(origin + int(seconds / base), stream=stream, backward=True)
        elif back:
            container.seek(0, backward=True)
        packets = _packets(container, stream, origin, start, end, in_order)
        if not packets and start <= 0:
            raise BadClip("no key frame found")
        shown = packets if in_order else [p for p in packets if is_shown(p) and (p.pts or 0) >= (packets[0].pts or 0)]
        stamps = list(range(len(packets))) if in_order else sorted(p.pts or 0 for p in shown)
        ticks = [p.dts for p in packets if p.dts is not None] if in_order else [stamp - origin for stamp in stamps]
        times = [tick * base.numerator / base.denominator for tick in ticks]
        if times and (in_order or start <= 0 or times[0] <= start + 5e-7):
            break
        if seconds <= 0:
            raise _SeekedTooFar
    else:
        raise _SeekedTooFar
    whole = name.startswith(_WHOLE_PICTURES)
    apart = (whole or codec == "mjpeg") and not in_order and all(packet.is_keyframe for packet in shown)
    return _Window(packets, shown, stamps, times, in_order, codec == "h264" and whole, apart)


def _times_are_guessed(container: str, context: av.VideoCodecContext) -> bool:
    """True for AVI with B-frames: it stores no presentation times, and FFmpeg guesses wrong for H.264, HEVC and packed MPEG-4."""
    if container == "avi" and context.name in ("h264", "hevc"):
        return bool(context.has_b_frames)
    return bool(_PACKED_B_FRAMES.search(context.extradata or b""))


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
            raise _NoPacketTimes
        if packet.is_keyframe and not in_order and ((packet.pts or 0) - origin) * seconds / ticks <= start + 5e-7:
            packets = []
        elif not packets and not packet.is_keyframe:  # cut inside a group: pictures that nothing can decode
            continue
        packets.append(packet)
        leading = not in_order and (packet.pts or 0) < (packets[0].pts or 0)
        if packet.dts is None or leading or not is_shown(packet):
            continue
        if packet.dts <= last_dts:
            raise BadClip(f"time stamps fall back at {(packet.dts - origin) * seconds / ticks:.3f} s")
        if len(packets) > 1:  # Matroska guesses the decoding time of the first after a seek
            last_dts = packet.dts
        # A picture is never shown before it is decoded, so from here on every picture lies behind the window.
        if (last_dts - origin) * seconds / ticks >= end:
            break
    return packets


class _NoPacketTimes(Exception):
    """Packets carry no presentation time: only decoding tells it."""


class _SeekedTooFar(Exception):
    """The container's index pointed behind the window, or the file begins later than it says."""


_reformatter = VideoReformatter()  # one set of tables for all frames of the process, instead of one for each frame


def _to_rgb(frame: av.VideoFrame) -> np.ndarray:
    rgb = _reformatter.reformat(frame, format="rgb24").to_ndarray()
    turns = round((frame.rotation % 360) / 90) % 4  # degrees counter-clockwise that make the picture upright
    return np.rot90(rgb, turns) if turns else rgb


def _check(frame: av.VideoFrame) -> None:
    if frame.is_corrupt:
        raise BadClip(f"the frame at {frame.time} s is corrupt")


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
            if wrong := {frame.shape[:2] for frame in decoded} - {(packed.height, packed.width)}:
                raise BadClip(f"frames of {wrong} (height, width), and the store says {packed.height, packed.width}")
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


def encoded_window(path: Path, start: float, end: float, count: int, codecs: Codecs) -> DaliInput:
    """Return the frames that `read_frames` reads as encoded bytes for DALI to decode.

    A video becomes a container with the packets from the key frame before the window to its end, or with those of the wanted frames where
    every frame is a key frame; of a folder, the wanted files; of a packed clip, its JPEGs.

    Raises:
        NotForDali: DALI would not decode it, or to other frames or colors than PyAV (`_why_not`); PyAV does.
        BadClip: nothing decodes it.
    """
    with _named():
        if is_packed(path):
            packed = read_packed(path, start, end, count, choose_frames)
            return _encoded_images(packed.jpegs, packed.order, (packed.height, packed.width))
        if path.is_dir():
            files, wanted = _folder_frames(path, start, end, count)
            unique = list(dict.fromkeys(wanted))
            if any(files[i].suffix.lower() not in (".jpg", ".jpeg") for i in unique):
                raise NotForDali(f"{files[unique[0]].suffix} frames; nvJPEG takes JPEG")
            payloads = tuple(np.fromfile(files[i], dtype=np.uint8) for i in unique)
            return _encoded_images(payloads, tuple(unique.index(i) for i in wanted), None)
        return _remuxed_window(path, start, end, count, codecs)


def _encoded_images(jpegs: tuple[np.ndarray, ...], order: tuple[int, ...], size: tuple[int, int] | None) -> DaliInput:
    """Return the images as input for DALI. All must have the (height, width) `size` or, if None, that of the first."""
    for jpeg in jpegs:
        data = jpeg.tobytes()
        if reason := why_not_dali(data, size):
            raise NotForDali(reason)
        if size is None:
            header = read_header(data)
            size = header.height, header.width
    assert size is not None, "a window has at least one frame"
    return DaliInput(kind="jpeg", payloads=jpegs, frame_idx=order, height=size[0], width=size[1])


def _remuxed_window(path: Path, start: float, end: float, count: int, codecs: Codecs) -> DaliInput:
    container, stream = _open(path)
    with container:
        context = stream.codec_context
        codec = context.codec.canonical_name
        if codec not in codecs:
            raise NotForDali(f"codec {codec} is none of {', '.join(codecs)}")
        if context.pix_fmt not in ("yuv420p", "yuvj420p"):
            raise NotForDali(f"pixel format {context.pix_fmt} of {codec}")
        if size := codecs[codec].refuse(context.width, context.height):
            raise NotForDali(f"{codec} of a size that is {size}")
        try:
            window = _demux(container, stream, start, end)
        except (_NoPacketTimes, _SeekedTooFar):
            raise NotForDali(f"{codec} without usable packet times") from None
        if reason := _why_not(stream, window, codec, codecs[codec]):
            raise NotForDali(reason)
        wanted = choose_frames(window.times, start, end, count)
        packets = window.shown
        if window.apart:
            kept = sorted(set(wanted))
            stamps = {window.stamps[place] for place in kept}
            packets = [packet for packet in packets if packet.pts in stamps]
            wanted = [kept.index(place) for place in wanted]
        try:
            payload = _remux(stream, packets, _CONTAINERS.get(codec, "mp4"))
        except (av.error.FFmpegError, ValueError) as error:
            raise NotForDali(f"{codec} of {container.format.name} cannot be remuxed: {error}") from error
        return DaliInput(
            kind="video", payloads=(payload,), frame_idx=tuple(wanted), height=context.height, width=context.width
        )


def _why_not(stream: av.VideoStream, window: _Window, codec: str, limits: Limits) -> str:
    """Return why DALI would give other frames or colors than PyAV; empty where both agree.

    Frames: DALI's `decoders.video` numbers pictures in the order of their times, and on a GPU gives the times of packets to pictures in the
    order of decoding, shown or not (frames_decoder_gpu.cc, HandlePictureDisplay and ReadNextFrameWithoutIndex). So each packet must give
    one picture and show it. NVDEC's parser skips leading pictures, which shifts all that follow; those of HEVC and MPEG-4 are left out
    here, as no other picture refers to them. Those of H.264 may be referred to, and DALI takes IDR pictures only for key frames.

    Colors: on a GPU DALI converts by BT.601, limited or full range as the bit stream says (color_space.cu, InitGpuDecoder); on a CPU by
    swscale's default, BT.601 with the range of the pixel format (frames_decoder_cpu.cc, CopyToOutput). No tag of a matrix is read. PyAV's
    frames follow the tag, without one BT.601. So BT.709 and BT.2020 are left to PyAV.
    """
    if window.in_order:
        return f"guessed times of B-frames of {codec} in AVI"
    first = window.packets[0]
    if any((packet.pts or 0) >= (first.pts or 0) and not is_shown(packet) for packet in window.packets):
        return f"{codec} with pictures that are not shown"
    if len(set(window.stamps)) < len(window.stamps):
        return f"{codec} with two pictures at one time"
    if codec == "h264" and not _starts_with_idr(first, stream.codec_context.extradata or b""):
        return "open groups of H.264"
    if (
        codec == "vp9"
        and limits.single
        and any(_is_repeat_or_superframe(memoryview(packet)) for packet in window.shown)
    ):
        return "vp9 with pictures that are not shown, or shown again"
    frames = [*stream.codec_context.decode(first), *stream.codec_context.decode(None)]
    if not frames:
        return f"a key frame of {codec} that does not decode alone"
    frame = frames[0]
    if frame.rotation % 360:
        return "rotated pictures"
    if frame.interlaced_frame:
        return "interlaced pictures"
    if frame.colorspace not in _BT601 | {_UNTAGGED}:
        return f"colors of matrix {int(frame.colorspace)} (ITU-T H.273), where DALI takes BT.601"
    if frame.color_range == _FULL_RANGE and not _full_range_in_stream(stream, first, codec):
        return f"full-range colors that the bit stream of {codec} does not signal"
    return ""


def _is_repeat_or_superframe(data: memoryview) -> bool:
    """True if a VP9 packet shows a picture again (show_existing_frame) or holds several (annex B of its specification)."""
    mark = data[-1]
    index_bytes = 2 + ((mark >> 3 & 3) + 1) * ((mark & 7) + 1)
    superframe = mark >> 5 == 0b110 and len(data) > index_bytes and data[-index_bytes] == mark
    return bool(data[0] >> 3 & 1) or superframe


def _starts_with_idr(packet: av.Packet, extradata: bytes) -> bool:
    """True if an H.264 packet, in Annex B or AVCC format, holds an IDR picture."""
    data = bytes(packet)
    if not extradata.startswith(b"\x01"):
        return any(data[found.end()] & 31 == _IDR for found in re.finditer(rb"\x00\x00\x01(?=.)", data, re.DOTALL))
    at, size = 0, (extradata[4] & 3) + 1
    while at + size < len(data):
        if data[at + size] & 31 == _IDR:
            return True
        at += size + int.from_bytes(data[at : at + size], "big")
    return False


def _full_range_in_stream(stream: av.VideoStream, key_packet: av.Packet, codec: str) -> bool:
    """True if the bit stream itself, not only its container, signals full range where DALI looks for it."""
    if codec == "mjpeg":
        return True  # by definition
    if codec not in ("h264", "hevc"):
        return False
    alone = cast(av.VideoCodecContext, av.CodecContext.create(codec, "r"))
    alone.extradata = stream.codec_context.extradata
    frames = [*alone.decode(key_packet), *alone.decode(None)]
    return bool(frames) and frames[0].color_range == _FULL_RANGE


def _remux(stream: av.VideoStream, packets: list[av.Packet], container: str) -> np.ndarray:
    """Return the packets as a container in memory. Times count from the first; decoding times are recomputed."""
    first = packets[0].pts or 0
    shown = sorted(packet.pts or 0 for packet in packets)
    delay = max(early - (packet.pts or 0) for early, packet in zip(shown, packets))
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as sink:
        out = sink.add_stream_from_template(stream)
        for packet, early in zip(packets, shown):
            packet.pts, packet.dts = (packet.pts or 0) - first, early - delay - first
            packet.stream = out
            sink.mux(packet)
    return np.frombuffer(memory.getvalue(), dtype=np.uint8)
