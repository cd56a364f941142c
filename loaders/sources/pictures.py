"""What a video shows, and when: one meaning for probe, loader, DALI's input, packing and removal of people.

    from_start   decodes a file from its first key frame on: the pictures that come out, in that order, are the truth
    seek_window  reads the packets of one window, or raises SeekError where those may show something else

Time 0 is the first picture shown. A packet promises a picture at a time; where the container does not store that time,
where the packets contradict each other, or where the decoder keeps no promise, the file is decoded from its start.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
from av.video.frame import PictureType

from ppma.loaders.samples import TIME_TOLERANCE
from ppma.loaders.sources.remote import Url

MAX_PIXELS = 4096 * 2304
"""Most pixels of a frame: 4K. A 200 kB file can promise 8192 x 8192, and each such frame takes 200 MB as RGB."""
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,h264,hevc,m4v"
"""Demuxers that may open a file; none that reads text as video (tty) or opens other files or URLs (hls, concat)."""
_WHOLE_PICTURES = ("mov,", "matroska,")
"""Containers that store one picture a packet, and its time of presentation."""
_GIVE_TIMES = "encode it with its frame rate, for example 25: ffmpeg -r 25 -i IN -crf 18 OUT.mp4"
"""Copying does not help: without decoding, ffmpeg numbers the pictures in the order of their packets."""
_MOST_REORDERED = 16
"""Pictures that H.264 and HEVC may decode ahead of one that is shown before them (MaxDpbSize)."""


class Unusable(Exception):
    """Raised for a file that cannot be used as a clip; the message says why."""


class SeekError(Exception):
    """Raised where a seek may give other frames than decoding from the start; the message says why."""


def open_video(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file by its content and return it with its video stream; nothing above `max_pixels` is decoded.

    Raises:
        Unusable: It is not a video, or its frames are too large.
    """
    if not path.stat().st_size:
        raise Unusable("is an empty file")
    # Opening decodes a frame to fill in what the header leaves out; coded sizes are a little larger than shown ones.
    limit = {"max_pixels": str(2 * max_pixels)}
    try:
        source: Any = path.open("rb") if isinstance(path, Url) else f"file:{path}"
        container = av.open(source, options={"format_whitelist": CONTAINERS, **limit}, metadata_errors="replace")
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        raise Unusable(_why_not_opened(path, error)) from error
    cover = int(av.stream.Disposition.attached_pic)
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        container.close()
        raise Unusable("has no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        container.close()
        raise Unusable("has a video stream of an unknown codec")
    if not 0 < stream.width * stream.height <= max_pixels:
        container.close()
        if not stream.width:
            raise Unusable("its header gives no picture size: cut before the first whole frame, or not a video")
        size = f"{stream.width} x {stream.height}"
        raise Unusable(f"its frames of {size} are larger than {max_pixels} pixels (`ppma index --max-pixels`)")
    stream.thread_type = "NONE"  # one process per core; each thread within it would cost memory
    stream.codec_context.options = limit  # frames may grow after the first
    return container, stream


def _why_not_opened(path: Path, error: av.error.FFmpegError) -> str:
    with path.open("rb") as file:
        start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        return "is a web page (an error message of the server?), not a video; download it again"
    return f"cannot be opened: {error.strerror}; it is cut before its index, or not a video"


def is_shown(packet: av.Packet) -> bool:
    """Return False for a packet that an edit list drops, and for VP8's pictures that only serve as references.

    Bit 4 of their first byte is 0 (RFC 6386, 9.1).
    """
    if packet.is_discard:
        return False
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] >> 4 & 1)


def stands_alone(frame: av.VideoFrame) -> bool:
    """Return False for a picture that refers to others; intra refresh makes key frames of such."""
    return frame.pict_type not in (PictureType.P, PictureType.B)


# --------------------------------------------------------------------------------------------------------- from the start


class Shown(NamedTuple):
    """A picture that the decoder shows."""

    seconds: float
    """From the first picture shown."""
    frame: av.VideoFrame
    damaged: bool
    """The decoder marks it as corrupt, or raised an error since the picture before."""


def from_start(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Shown]:
    """Yield every picture that a freshly opened file shows, decoded from its first key frame on.

    Raises:
        Unusable: Its pictures have no times, the times jump back, or its last pictures cannot be decoded.
        FFmpegError: The container breaks off.
    """
    stores_times = container.format.name != "avi"
    clock: list[int] = []  # AVI stores none, and FFmpeg guesses: the n-th picture has the time of the n-th packet
    first = last = None
    damaged = ever_damaged = False
    for packet in _from_key_frame(container, stream):
        if packet is not None and packet.dts is not None:
            clock.append(packet.dts)
        try:
            frames = stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            damaged = True
            del clock[-1:]  # no picture comes of this packet
            continue
        for frame in frames:
            stamp = frame.pts if stores_times else clock.pop(0) if clock else last
            if stamp is None:
                raise Unusable(f"has no time stamps (a raw stream?); {_GIVE_TIMES}")
            if last is not None and stamp < last:
                jump = f"its time stamps jump back (two recordings in one file?); {_GIVE_TIMES}"
                raise Unusable("is damaged: pictures are missing" if ever_damaged else jump)
            first, last = stamp if first is None else first, stamp
            damaged |= frame.is_corrupt
            ever_damaged |= damaged
            yield Shown(float((stamp - first) * (stream.time_base or 0)), frame, damaged)
            damaged = False
    if damaged:
        raise Unusable("is damaged: its last pictures cannot be decoded")


def demux(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yield the packets of a stream. PyAV's own generator loses 270 bytes where it is dropped before its end, unclosed."""
    with contextlib.closing(container.demux(stream)) as packets:  # type: ignore[type-var]  # a generator, whatever its stub says
        yield from packets


def _from_key_frame(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet | None]:
    """Yield the packets with content from the first key frame on, then None, which drains a decoder."""
    started = False
    for packet in demux(container, stream):
        started |= packet.is_keyframe
        if packet.size and started:  # AVI has empty ones: the picture before stays on screen
            yield packet
    yield None


# ----------------------------------------------------------------------------------------------------------- after a seek


@dataclass(frozen=True)
class Window:
    """Packets from the key frame before a window to its end, and the pictures they show in order of time."""

    packets: list[av.Packet]
    shown: list[av.Packet]
    """Packets that show a picture, in decoding order. Not shown: leading pictures of an open GOP, which refer to
    pictures before its key frame; VP8's pictures that only serve as references."""
    stamps: list[int]
    """Presentation times of the pictures, ascending, in units of the time base."""
    times: list[float]
    """The same in seconds from the first picture of the file."""
    skippable: bool
    """H.264 whose packets are whole pictures, never one of two fields: the decoder may skip unreferenced ones."""
    intra: bool
    """Every packet is a picture that needs no other: only the chosen ones are decoded or handed on."""


def why_from_start(container: av.container.InputContainer, stream: av.VideoStream) -> str:
    """Return why no window of a file can be read after a seek, or an empty string."""
    name, context = container.format.name, stream.codec_context
    if name == "avi":
        return "AVI stores no times, and guesses are wrong for B-frames" if context.has_b_frames else ""
    return "" if name.startswith(_WHOLE_PICTURES) else f"{name} does not store every time"


def seek_window(container: av.container.InputContainer, stream: av.VideoStream, start: float, end: float) -> Window:
    """Read the packets of the window [start, end) in seconds, from the last key frame before it.

    Raises:
        SeekError: They may show something else than the file decoded from its start.
        FFmpegError: The container cannot be read there.
    """
    base, codec = stream.time_base, stream.codec_context.name
    if reason := why_from_start(container, stream):
        raise SeekError(reason)
    if base is None:
        raise SeekError("it has no time base")
    # 1. from the key frame that is shown at or before the start; containers seek by decoding times, which are earlier
    begin, origin = _first_shown(container, stream)
    at, stop = (origin + (max(0.0, seconds) + TIME_TOLERANCE) / base for seconds in (start, end))
    target, found = int(at), None
    while True:
        container.seek(target, stream=stream, backward=True)
        packets = _packets(container, stream, at, stop)
        key = packets[0] if packets else None
        if key is None or (found is not None and _time(key) >= found):
            raise SeekError("no seek finds the key frame")
        if _time(key) <= at:
            break
        found = _time(key)
        target = min(found if key.dts is None else key.dts, target) - 1
    # 2. the pictures that these packets show
    if not is_shown(key) and _time(key) != begin:
        raise SeekError("an edit list drops its key frame")
    shown = [packet for packet in packets if is_shown(packet) and _time(packet) >= _time(key)]
    stamps = sorted(map(_time, shown))
    if len(set(stamps)) < len(stamps):
        raise SeekError("two pictures have one time")
    times = [(stamp - origin) * base.numerator / base.denominator for stamp in stamps]
    whole = container.format.name.startswith(_WHOLE_PICTURES)
    intra = (whole or codec == "mjpeg") and all(packet.is_keyframe for packet in shown)
    return Window(packets, shown, stamps, times, codec == "h264" and whole, intra)


def _time(packet: av.Packet) -> int:
    """Return the time of presentation of a packet."""
    if packet.pts is None:
        raise SeekError("packets without times")
    return packet.pts


def _first_shown(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, int]:
    """Return the times of the first picture of a freshly opened file and of the first that it shows.

    They differ where an edit list drops the pictures before a cut; the unit is the stream's time base.
    """
    key = first = None
    for packet in demux(container, stream):
        if not packet.size:
            continue
        time = _time(packet)
        key = time if key is None and packet.is_keyframe else key
        if key is None:
            raise SeekError("it begins without a key frame")
        if is_shown(packet):
            if time < key:
                raise SeekError("it begins with leading pictures")
            first = time if first is None else min(first, time)
        if first is not None and packet.dts is not None and packet.dts >= first:
            break
    if first is None or key is None:
        raise SeekError("its packets show no picture")
    return key, first


def _packets(container: av.container.InputContainer, stream: av.VideoStream, at: float, stop: float) -> list[av.Packet]:
    """Return the packets from the last key frame at or before `at` until all pictures before `stop` are decoded."""
    reordered = _MOST_REORDERED if stream.codec_context.has_b_frames else 0
    stores_dts = container.format.name.startswith("mov,")
    packets: list[av.Packet] = []
    past = 0
    for packet in demux(container, stream):
        if not packet.size:
            continue
        time = _time(packet)
        if packet.is_keyframe and time <= at:
            packets = []
        elif not packets and not packet.is_keyframe:
            continue
        packets.append(packet)
        past += time >= stop
        if past and (packet.dts >= stop if stores_dts and packet.dts is not None else past > reordered):
            break
    return packets


def decode_window(stream: av.VideoStream, window: Window, chosen: Iterable[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (place in the window, picture) of the chosen pictures in order; stop after the last.

    Pictures that are neither chosen nor referred to are not decoded: that saves a third of the time of H.264 with
    B-frames and three quarters of a file of key frames, and changes no other pixel.

    Raises:
        SeekError: The decoder does not show what the packets promise.
        FFmpegError: It fails.
    """
    places = {stamp: place for place, stamp in enumerate(window.stamps)}
    left, last = set(chosen), -1
    context, wanted = stream.codec_context, {window.stamps[place] for place in left}
    packets = [packet for packet in window.packets if packet.pts in wanted] if window.intra else window.packets
    for packet in [*packets, None]:
        if window.skippable and packet is not None:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in context.decode(packet):
            place = places.get(time := frame.pts or 0, -1)
            if place < 0 and time < window.stamps[0]:
                continue  # a leading picture
            in_turn = place > last if window.intra or (window.skippable and last >= 0) else place == last + 1
            if not in_turn or frame.is_corrupt:
                raise SeekError("a corrupt picture" if in_turn else "pictures in another order than their packets")
            if frame.pts == window.packets[0].pts and not stands_alone(frame):
                raise SeekError("its key frames refer to earlier pictures (intra refresh)")
            last = place
            if place in left:
                left.discard(place)
                yield place, frame
        if not left:
            return
    raise SeekError(f"{len(left)} chosen pictures did not come out of the decoder")
