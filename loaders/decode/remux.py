"""Hand a window to DALI as encoded bytes, or say why DALI would not decode it to the frames that PyAV gives.

    file, [start, end)  ->  packets of the window (`fetch`)  ->  same frames and colors?  ->  container  ->  DaliInput

DALI numbers pictures by the times of packets and reads no color tags, so some files need PyAV: NotForDali says why.
"""

import io
import re
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np

from ppma.common.frames import is_frames
from ppma.loaders.decode.dali_input import Codecs, DaliInput, Limits, read_header, why_not_dali
from ppma.loaders.decode.fetch import MAX_PIXELS, as_bad_clip, folder_window
from ppma.loaders.samples import choose_frames
from ppma.loaders.sources.pictures import SeekError, Window, is_shown, open_video, seek_window, stands_alone
from ppma.loaders.sources.store import PackedWindow, is_packed, read_packed

_BT601 = {5, 6}
"""Tags of the color matrix (ITU-T H.273, MatrixCoefficients): BT.470BG and SMPTE 170M, both BT.601's."""
_UNTAGGED, _FULL_RANGE = 2, 2
_IDR = 5
"""H.264's network unit type of a picture that refers to nothing before it (ITU-T H.264, table 7-1)."""
_CONTAINERS = {"mjpeg": "avi", "vp8": "matroska"}
"""Container for the codecs that MP4 does not hold."""


class NotForDali(Exception):
    """Raised for a file that DALI would decode to other frames than PyAV; the message says why."""


def encoded_window(path: Path, start: float, end: float, count: int, codecs: Codecs) -> DaliInput:
    """Return the frames that `read_frames` reads as encoded bytes for DALI to decode.

    Args:
        path: Video, folder of frames or address of a packed clip.
        start: First moment of the window in seconds.
        end: End of the window in seconds, exclusive.
        count: Number of frames.
        codecs: What DALI decodes on the device.

    Returns:
        For a video, a container with the packets from the key frame before the window to its end, or with the chosen
        frames alone where all are key frames; for a folder, the chosen files; for a packed clip, its JPEGs, or a container
        with the pictures that its frames need.

    Raises:
        NotForDali: DALI would not decode it, or to other frames or colors than PyAV.
        BadClip: Nothing decodes it.
    """
    with as_bad_clip():
        if is_packed(path):
            packed = read_packed(path, lambda times: choose_frames(times, start, end, count))
            if packed.codec != "jpeg":
                return _packed_video(packed, codecs)
            return _encoded_images(packed.pictures, packed.order, (packed.height, packed.width))
        if is_frames(path):
            files, chosen = folder_window(path, start, end, count)
            unique = list(dict.fromkeys(chosen))
            if any(files[i].suffix.lower() not in (".jpg", ".jpeg") for i in unique):
                raise NotForDali(f"{files[unique[0]].suffix} frames; nvJPEG takes JPEG")
            payloads = tuple(np.fromfile(files[i], dtype=np.uint8) for i in unique)
            return _encoded_images(payloads, tuple(unique.index(i) for i in chosen), None)
        return _encoded_video(path, start, end, count, codecs)


def _encoded_images(jpegs: tuple[np.ndarray, ...], order: tuple[int, ...], size: tuple[int, int] | None) -> DaliInput:
    """Return images as input for DALI. All must have the (height, width) `size` or, if None, that of the first."""
    for jpeg in jpegs:
        data = jpeg.tobytes()
        if reason := why_not_dali(data, size):
            raise NotForDali(reason)
        if size is None:
            header = read_header(data)
            size = header.height, header.width
    assert size is not None, "a window has at least one frame"
    return DaliInput(kind="jpeg", payloads=jpegs, frame_idx=order, height=size[0], width=size[1])


def _packed_video(window: PackedWindow, codecs: Codecs) -> DaliInput:
    """Return the pictures of a packed window as one container: closed groups, no B-frames, untagged BT.601 colors."""
    if reason := _why_not_codec(window.codec, window.width, window.height, codecs):
        raise NotForDali(reason)
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as sink:
        stream = sink.add_mux_stream(window.codec, rate=25, width=window.width, height=window.height)
        for number, (data, key) in enumerate(zip(window.pictures, window.keys, strict=True)):
            packet = av.Packet(data.tobytes())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), key
            packet.pts = packet.dts = number
            sink.mux(packet)
    payload = np.frombuffer(memory.getvalue(), dtype=np.uint8)
    return DaliInput(
        kind="video", payloads=(payload,), frame_idx=window.order, height=window.height, width=window.width
    )


def _why_not_codec(codec: str, width: int, height: int, codecs: Codecs) -> str:
    """Return why DALI decodes no video of this codec and size, or an empty string."""
    if codec not in codecs:
        return f"codec {codec} is none of {', '.join(codecs)}"
    size = codecs[codec].refuse(width, height)
    return f"{codec} of a size that is {size}" if size else ""


def _encoded_video(path: Path, start: float, end: float, count: int, codecs: Codecs) -> DaliInput:
    container, stream = open_video(path, max_pixels=MAX_PIXELS)
    with container:
        # 1. codec, pixel format and size
        context = stream.codec_context
        codec = context.codec.canonical_name
        if reason := _why_not_codec(codec, context.width, context.height, codecs):
            raise NotForDali(reason)
        if context.pix_fmt not in ("yuv420p", "yuvj420p"):
            raise NotForDali(f"pixel format {context.pix_fmt} of {codec}")
        # 2. frames and colors
        try:
            window = seek_window(container, stream, start, end)
        except (SeekError, av.error.FFmpegError) as error:
            raise NotForDali(f"{codec} that is decoded from its start: {error}") from error
        if reason := _why_not(stream, window, codec, codecs[codec]):
            raise NotForDali(reason)
        # 3. the packets that DALI needs
        chosen = choose_frames(window.times, start, end, count)
        packets = window.shown
        if window.intra:
            kept = sorted(set(chosen))
            stamps = {window.stamps[place] for place in kept}
            packets = [packet for packet in packets if packet.pts in stamps]
            chosen = [kept.index(place) for place in chosen]
        try:
            payload = _remux(stream, packets, _CONTAINERS.get(codec, "mp4"))
        except (av.error.FFmpegError, ValueError) as error:
            raise NotForDali(f"{codec} of {container.format.name} cannot be remuxed: {error}") from error
        return DaliInput(
            kind="video", payloads=(payload,), frame_idx=tuple(chosen), height=context.height, width=context.width
        )


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


def _why_not(stream: av.VideoStream, window: Window, codec: str, limits: Limits) -> str:
    """Return why DALI would give other frames or colors than PyAV, or an empty string.

    Frames: DALI's `decoders.video` numbers pictures in the order of their times, and on a GPU assigns the times of
    packets to pictures in decoding order, shown or not (frames_decoder_gpu.cc, HandlePictureDisplay and
    ReadNextFrameWithoutIndex). So each packet must give one picture and show it. NVDEC's parser skips leading pictures,
    which shifts all that follow; those of HEVC and MPEG-4 are left out here, as no other picture refers to them. Those
    of H.264 may be referred to, and DALI takes only IDR pictures for key frames.

    Colors: on a GPU DALI converts by BT.601, limited or full range as the bit stream says (color_space.cu,
    InitGpuDecoder); on a CPU by swscale's default, BT.601 with the range of the pixel format (frames_decoder_cpu.cc,
    CopyToOutput). It reads no matrix tag. PyAV follows the tag, and uses BT.601 without one. So BT.709 and BT.2020 are
    left to PyAV.
    """
    # 1. frames
    first = window.packets[0]
    if any((packet.pts or 0) >= (first.pts or 0) and not is_shown(packet) for packet in window.packets):
        return f"{codec} with pictures that are not shown"
    if codec == "h264" and not _starts_with_idr(first, stream.codec_context.extradata or b""):
        return "open groups of H.264"
    if codec == "vp9" and limits.single and any(_is_repeat_or_superframe(memoryview(p)) for p in window.shown):
        return "vp9 with pictures that are not shown, or shown again"
    # 2. colors, from the key frame
    frames = [*stream.codec_context.decode(first), *stream.codec_context.decode(None)]
    if not frames:
        return f"a key frame of {codec} that does not decode alone"
    frame = frames[0]
    if not stands_alone(frame):
        return f"key frames of {codec} that refer to earlier pictures"
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
    """Return True if a VP9 packet shows a picture again (show_existing_frame) or holds several (annex B)."""
    mark = data[-1]
    index_bytes = 2 + ((mark >> 3 & 3) + 1) * ((mark & 7) + 1)
    superframe = mark >> 5 == 0b110 and len(data) > index_bytes and data[-index_bytes] == mark
    return bool(data[0] >> 3 & 1) or superframe


def _starts_with_idr(packet: av.Packet, extradata: bytes) -> bool:
    """Return True if an H.264 packet, in Annex B or AVCC format, holds an IDR picture."""
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
    """Return True if the bit stream itself, not only its container, signals full range where DALI looks for it."""
    if codec == "mjpeg":
        return True  # by definition
    if codec not in ("h264", "hevc"):
        return False
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(codec, "r"))
    decoder.extradata = stream.codec_context.extradata
    frames = [*decoder.decode(key_packet), *decoder.decode(None)]
    return bool(frames) and frames[0].color_range == _FULL_RANGE
