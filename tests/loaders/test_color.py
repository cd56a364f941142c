"""Colors follow the stream's tag (BT.601 without one) with every decoder, within 2 of 255 of the matrix itself."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, DALI_GPU_CODECS
from ppma.loaders.decode.fetch import read_window
from ppma.loaders.decode.remux import NotForDali, encoded_window
from tests.loaders.test_gop import SIDE, by_dali

YCBCR = (120, 90, 200)
"""A flat picture; between limited-range matrices it differs by at most 15 levels of red."""
UNTAGGED, BT709, BT470BG, SMPTE170M, BT2020 = 2, 1, 5, 6, 9
WEIGHTS = {BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593)}
"""Of red and blue in luma (ITU-R BT.709, BT.2020); BT.601 otherwise."""
LIMITED, FULL = 1, 2


def matrix(tag: int, *, full: bool) -> np.ndarray:
    """Return the RGB of YCBCR, from the definition."""
    red, blue = WEIGHTS.get(tag, (0.299, 0.114))
    y, cb, cr = (value - offset for value, offset in zip(YCBCR, (0 if full else 16, 128, 128)))
    y, cb, cr = (y, cb, cr) if full else (y * 255 / 219, cb * 255 / 224, cr * 255 / 224)
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return np.clip([r, (y - red * r - blue * b) / (1 - red - blue), b], 0, 255)


def write(path: Path, codec: str, tag: int, full: bool) -> Path:
    with av.open(str(path), "w") as container:
        options = {"x265-params": "log-level=none:pools=none:frame-threads=1"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        if tag != UNTAGGED or full:
            stream.codec_context.colorspace, stream.codec_context.color_range = tag, FULL if full else LIMITED
        frame = av.VideoFrame(SIDE, SIDE, "yuv420p")
        frame.colorspace, frame.color_range = stream.codec_context.colorspace, stream.codec_context.color_range
        for plane, value in zip(frame.planes, YCBCR):
            plane.update(bytes([value]) * plane.buffer_size)
        for number in range(12):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.promise("R9")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tag", [UNTAGGED, BT470BG, SMPTE170M, BT709, BT2020])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_pyav_follows_the_tag_and_dali_agrees_or_does_not_get_it(tmp_path, codec, tag, full, figure):
    """DALI converts by BT.601: it reads no tag of a matrix, and the range in the bit stream of H.264 and HEVC only."""
    on_cpu = codec == "libvpx-vp9"
    path = write(tmp_path / f"clip.{'webm' if on_cpu else 'mp4'}", codec, tag, full)
    read = read_window(path, 0.0, 0.4, 2)
    assert np.abs(read - matrix(tag, full=full)).max() < 2
    codecs = DALI_CPU_CODECS if on_cpu else DALI_GPU_CODECS
    if tag in (BT709, BT2020) or (on_cpu and full):
        with pytest.raises(NotForDali, match="colors"):
            encoded_window(path, 0.0, 0.4, 2, codecs)
    else:
        clip = encoded_window(path, 0.0, 0.4, 2, codecs)
        assert clip.kind == "video"
        if on_cpu:
            assert np.abs(by_dali(clip).astype(int) - read).max() <= 2
    figure("R9", "PyAV within 2 of the matrix, DALI within 2 of PyAV (CPU)")


def test_dali_does_not_get_a_range_that_only_the_container_signals(tmp_path):
    source, path = write(tmp_path / "clip.mp4", "libx264", UNTAGGED, full=False), tmp_path / "tagged.mp4"
    data = bytearray(source.read_bytes())
    entry = data.index(b"avc1", data.index(b"stsd"))
    at = data.index(b"pasp", entry) - 4 if b"pasp" in data[entry:] else data.index(b"btrt", entry) - 4
    box = b"\0\0\0\x13colrnclx" + bytes([0, 2, 0, 2, 0, 2, 0x80])  # unspecified colors, full range
    path.write_bytes(insert(data, at, box))
    assert np.abs(read_window(path, 0.0, 0.4, 2) - matrix(UNTAGGED, full=True)).max() < 2
    with pytest.raises(NotForDali, match="full-range"):
        encoded_window(path, 0.0, 0.4, 2, DALI_GPU_CODECS)


def insert(data: bytearray, at: int, box: bytes) -> bytes:
    """Return an MP4 file with `box` in its sample entry at `at`; the pictures come before the index and do not move."""
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        start = data.rindex(name, 0, at) - 4
        data[start : start + 4] = (int.from_bytes(data[start : start + 4], "big") + len(box)).to_bytes(4, "big")
    return bytes(data[:at] + box + data[at:])
