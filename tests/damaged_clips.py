"""Small broken and odd video files, made with PyAV on the spot, for any test that wants to see how a part meets them.

`make_all(folder)` writes every case of CASES; the file's name says what is wrong with it. Unless a case says otherwise: 60 frames of
320 x 240 at 25/s, H.264 with a key frame every 12. Frame n shows n as nine squares of 16 px in its top left corner, lowest bit first.
"""

import io
import tempfile
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, RATE, FRAMES, KEY_EVERY = 320, 240, 25, 60, 12
SQUARE, BITS = 16, 9
X264 = {"preset": "veryfast", "crf": "28"}
VPX = {"deadline": "realtime", "cpu-used": "8", "threads": "1"}
TKHD_MATRIX = 40
"""Bytes from a track header's type to its 3 x 3 display matrix (ISO/IEC 14496-12, version 0)."""


@lru_cache(maxsize=256)
def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """RGB (H, W, 3): diagonal waves that slide with `number`, which stands in the corner."""
    y, x = np.ogrid[:height, :width]
    waves = [
        60 * np.sin((x + 5 * number + 9 * c) / 19) + 40 * np.cos((y - x + 3 * number) / (23 + 4 * c)) for c in range(3)
    ]
    rgb = np.uint8(np.clip(np.stack(waves, axis=-1) + 128, 0, 255))
    for bit in range(BITS):
        rgb[:SQUARE, bit * SQUARE : (bit + 1) * SQUARE] = 255 * (number >> bit & 1)
    rgb.flags.writeable = False
    return rgb


def number_of(rgb: np.ndarray) -> int:
    """The number of a decoded `picture`."""
    centres = rgb[SQUARE // 2, SQUARE // 2 : BITS * SQUARE : SQUARE].mean(axis=-1)
    return sum(1 << bit for bit, value in enumerate(centres) if value > 127)


def encode(container: str, numbers: range = range(FRAMES), **how: Any) -> bytes:
    """A file with the pictures of `numbers`.

    how: codec, pixels, options, size, key_every, b_frames, times_ms (of each frame), draw (in place of `picture`),
    flags (of the container).
    """
    with tempfile.TemporaryDirectory() as folder:  # a real file: moving the index to its front needs to open it again
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=container, options=how.get("flags", {})) as out:
            _encode_into(out, numbers, how)
        return path.read_bytes()


def _encode_into(out: av.container.OutputContainer, numbers: range, how: dict[str, Any]) -> None:
    stream = out.add_stream(how.get("codec", "libx264"), rate=RATE, options=dict(how.get("options", X264)))
    stream.width, stream.height = size = how.get("size", (WIDTH, HEIGHT))
    stream.pix_fmt = how.get("pixels", "yuv420p")
    stream.codec_context.gop_size = how.get("key_every", KEY_EVERY)
    if "b_frames" in how:
        stream.codec_context.max_b_frames = how["b_frames"]
    if "times_ms" in how:
        stream.codec_context.time_base = Fraction(1, 1000)
    for position, number in enumerate(numbers):
        frame = av.VideoFrame.from_ndarray(how.get("draw", picture)(number, *size), format="rgb24")
        if "times_ms" in how:
            frame.pts, frame.time_base = how["times_ms"][position], Fraction(1, 1000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 8000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def _index_first() -> bytes:
    return encode("mp4", flags={"movflags": "faststart"})


def _cut(whole: bytes) -> bytes:
    return whole[: len(whole) * 6 // 10]


def _turned() -> bytes:
    data = bytearray(encode("mp4"))
    at = data.index(b"tkhd") + TKHD_MATRIX + 4
    one = 1 << 16
    data[at : at + 36] = b"".join(
        v.to_bytes(4, "big", signed=True) for v in (0, one, 0, -one, 0, 0, HEIGHT * one, 0, 1 << 30)
    )
    return bytes(data)


def _flip(data: bytes, spans: list[tuple[int, int]], *, step: int, bits: int) -> bytes:
    spoilt = bytearray(data)
    for start, stop in spans:
        for at in range(start, stop, step):
            spoilt[at] ^= bits
    return bytes(spoilt)


def _packet_spans(data: bytes) -> list[tuple[int, int]]:
    with av.open(io.BytesIO(data)) as file:
        return [(packet.pos, packet.pos + packet.size) for packet in file.demux(video=0) if packet.size]


def _damaged_from_the_middle() -> bytes:
    """Key frames too: the decoder complains aloud."""
    data = encode("mp4")
    spans = [(start + 20, stop) for start, stop in _packet_spans(data)[24:] if stop - start > 40]
    return _flip(data, spans, step=29, bits=0xFF)


def _damage_painted_over() -> bytes:
    """Six pictures between key frames: the decoder conceals it and raises nothing."""
    data = encode("mp4", codec="mpeg4", options={"b": "400k"})
    spans = [((start + stop) // 2, stop - 2) for start, stop in _packet_spans(data)[26:32]]
    return _flip(data, spans, step=11, bits=0x10)


def _begins_inside_a_group() -> bytes:
    """50 packets, of which number 20 is the first key frame (frame 30)."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(encode("mpegts", key_every=30, b_frames=0))) as whole,
        av.open(file, "w", format="mpegts") as out,
    ):
        stream = out.add_stream_from_template(whole.streams.video[0])
        for packet in [packet for packet in whole.demux(video=0) if packet.size][10:]:
            packet.stream = stream
            out.mux(packet)
    return file.getvalue()


def _flat(number: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 70 + number, np.uint8)


def _two_fields(number: int, width: int, height: int) -> np.ndarray:
    both = picture(number, width, height).copy()
    both[SQUARE + 1 :: 2] = picture(2 * number + 1, width, height)[SQUARE + 1 :: 2]
    return both


_STEPS_MS = [20] * 30 + [100] * 30
VARIABLE_TIMES_MS = [int(t) for t in np.cumsum(np.array(_STEPS_MS) + np.arange(60) * 7 % 15)]
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none"}

CASES: dict[str, Callable[[], bytes]] = {
    "truncated.mp4": lambda: _cut(encode("mp4")),
    "truncated_after_index.mp4": lambda: _cut(_index_first()),
    "zero_bytes.mp4": lambda: b"",
    "html_error_page.mp4": lambda: b"<!DOCTYPE html><html><body>403 Forbidden</body></html>\n",
    "audio_only.mp4": _sound,
    "one_frame.mp4": lambda: encode("mp4", range(1)),
    "odd_size_161x91.mp4": lambda: encode("mp4", codec="libvpx-vp9", options=VPX, size=(161, 91)),
    "rotated_90.mp4": _turned,
    "variable_frame_rate.mp4": lambda: encode("mp4", times_ms=VARIABLE_TIMES_MS),
    "missing_pts.h264": lambda: encode("h264"),
    "missing_pts.avi": lambda: encode("avi", codec="mpeg4", options={"b": "300k"}, b_frames=2),
    "timestamps_jump_back.ts": lambda: encode("mpegts", range(30)) + encode("mpegts", range(30, 60)),
    "size_changes.ts": lambda: encode("mpegts", range(30)) + encode("mpegts", range(30), size=(640, 480)),
    "starts_without_key_frame.ts": _begins_inside_a_group,
    "mid_stream_corruption.mp4": _damaged_from_the_middle,
    "concealed_corruption.mp4": _damage_painted_over,
    "wrong_extension.mp4": lambda: encode("webm", codec="libvpx-vp9", options=VPX),
    "ten_bit_hevc.mp4": lambda: encode("mp4", codec="libx265", pixels="yuv420p10le", options=_X265),
    "yuv444.mp4": lambda: encode("mp4", pixels="yuv444p"),
    "interlaced.mp4": lambda: encode("mp4", options={**X264, "x264-params": "tff=1"}, draw=_two_fields),
    "huge_dimensions.mp4": lambda: encode(
        "mp4", range(1), size=(8192, 8192), draw=_flat, options={**X264, "preset": "ultrafast"}
    ),
}
"""File name -> its bytes."""


def make_all(folder: Path) -> Path:
    """Write every case into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in CASES.items():
        (folder / name).write_bytes(make())
    return folder
