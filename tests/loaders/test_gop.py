"""Every codec with every kind of GOP: a window holds the frames that were on screen, decoded by PyAV or by DALI.

A clip shows its frame numbers. DALI numbers the pictures of its container by the presentation times of the packets,
from 0 (frames_decoder_base.cc); decoding that container says what each picture shows. DALI itself decodes what it can
on a CPU.
"""

import io
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import barcoded_frame

from ppma.config.loader import LoaderConfig
from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, DALI_GPU_CODECS, DaliInput
from ppma.loaders.decode.fetch import read_window
from ppma.loaders.decode.remux import NotForDali, encoded_window
from ppma.loaders.samples import Sample, ViewParams

SIDE, FPS, FRAMES, COUNT = 160, 25, 75, 8
WINDOWS = ((0.0, 1.0), (0.5, 1.2), (0.91, 1.93), (0.96, 2.2), (1.0, 1.6), (1.87, 2.6), (2.3, 3.0))
"""Some begin between the decoding and the presentation of a key frame (one in 24 frames)."""
X265 = "keyint=24:min-keyint=24:scenecut=0:log-level=none:pools=none:frame-threads=1"
OPEN, CLOSED, PYRAMID = (
    {"g": "24", "preset": "veryfast", "x264-params": f"keyint=24:scenecut=0:b-adapt=0:{more}"}
    for more in ("open-gop=1:bframes=3", "open-gop=0:bframes=3:b-pyramid=none", "open-gop=0:bframes=5:b-pyramid=normal")
)

VP9_ALT_REF = {"g": "24", "deadline": "realtime", "cpu-used": "8"}


@dataclass(frozen=True)
class Form:
    """A way to encode, and why DALI does not get it (empty if it does)."""

    codec: str
    suffix: str
    options: dict[str, str] = field(default_factory=dict)
    why_not: str = ""
    pixels: str = "yuv420p"


FORMS = {
    "h264 closed": Form("libx264", ".mp4", CLOSED),
    "h264 closed mkv": Form("libx264", ".mkv", CLOSED),
    "h264 closed ts": Form("libx264", ".ts", CLOSED),
    "h264 B-pyramid": Form("libx264", ".mp4", PYRAMID),
    "h264 B-pyramid mkv": Form("libx264", ".mkv", PYRAMID),
    "h264 without B avi": Form("libx264", ".avi", {"g": "24", "bf": "0"}),
    "h264 with B avi": Form("libx264", ".avi", CLOSED, "guessed times"),
    "h264 open": Form("libx264", ".mp4", OPEN, "open groups"),
    "h264 open mkv": Form("libx264", ".mkv", OPEN, "open groups"),
    "h264 open ts": Form("libx264", ".ts", OPEN, "open groups"),
    "hevc default": Form("libx265", ".mp4", {"x265-params": "log-level=none:pools=none:frame-threads=1"}),
    "hevc open": Form("libx265", ".mp4", {"x265-params": f"{X265}:open-gop=1:bframes=4"}),
    "hevc open mkv": Form("libx265", ".mkv", {"x265-params": f"{X265}:open-gop=1:bframes=4"}),
    "hevc open ts": Form("libx265", ".ts", {"x265-params": f"{X265}:open-gop=1:bframes=4"}),
    "hevc closed": Form("libx265", ".mp4", {"x265-params": f"{X265}:open-gop=0:bframes=4"}),
    "hevc closed mkv": Form("libx265", ".mkv", {"x265-params": f"{X265}:open-gop=0:bframes=4"}),
    "mpeg4 avi": Form("mpeg4", ".avi", {"g": "24", "bf": "0"}),
    "mpeg4 with B": Form("mpeg4", ".mp4", {"g": "24", "bf": "2"}),
    "mpeg4 with B mkv": Form("mpeg4", ".mkv", {"g": "24", "bf": "2"}),
    "mpeg4 with B avi": Form("mpeg4", ".avi", {"g": "24", "bf": "2"}),
    "vp8": Form("libvpx", ".webm", {"g": "24", "deadline": "realtime", "cpu-used": "8"}),
    "vp9 without alt-ref": Form("libvpx-vp9", ".webm", {"g": "24", "auto-alt-ref": "0", "cpu-used": "5"}),
    "vp9 without alt-ref mp4": Form("libvpx-vp9", ".mp4", {"g": "24", "auto-alt-ref": "0", "cpu-used": "5"}),
    "vp9 alt-ref": Form("libvpx-vp9", ".webm", VP9_ALT_REF, "not shown"),
    "vp9 alt-ref mp4": Form("libvpx-vp9", ".mp4", VP9_ALT_REF, "not shown"),
    "av1": Form("libsvtav1", ".mp4", {"g": "24", "preset": "12"}, "none of"),
    "av1 mkv": Form("libsvtav1", ".mkv", {"g": "24", "preset": "12"}, "none of"),
    "mpeg2 mkv": Form("mpeg2video", ".mkv", {"g": "24", "bf": "2"}, "none of"),
    "mjpeg": Form("mjpeg", ".avi", {}, "none of", "yuvj420p"),
}


def write(path: Path, form: Form) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(form.codec, rate=Fraction(FPS), options=form.options)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.bit_rate = form.pixels, 400_000
        for number in range(FRAMES):
            picture = barcoded_frame(number, width=SIDE, height=SIDE, direction=(1, 0), color=np.array((220, 60, 60)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def on_screen(start: float, end: float) -> list[int]:
    """Return the frame numbers of a window, from the clock alone."""
    first, stop = (int(np.ceil(round(seconds * FPS, 6))) for seconds in (start, min(end, FRAMES / FPS)))
    return [first + int(i) for i in np.linspace(0, stop - 1 - first, COUNT)]


def by_dalis_rule(clip: DaliInput) -> np.ndarray:
    """Return the frames that DALI takes from a container; each packet must give one picture, as NVDEC counts them."""
    data = clip.payloads[0].tobytes()
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        index = sorted(packet.pts for packet in container.demux(stream) if packet.size and packet.pts >= 0)
    with av.open(io.BytesIO(data)) as container:
        shown = {frame.pts: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    assert sorted(shown) == index
    return np.stack([shown[index[i]] for i in clip.frame_idx])


def by_dali(clip: DaliInput) -> np.ndarray:
    """Return the frames of a square clip as DALI decodes them on a CPU."""
    from ppma.loaders.decode.dali import DaliViews

    config = LoaderConfig(frames=len(clip.frame_idx), size=SIDE, short_side=SIDE, views=1, crop="center")
    view = ViewParams(key=0, crop=(0, 0, SIDE, SIDE), flip=False, ops=(), erase=(0, 0, 0, 0))
    sample = Sample(epoch=0, index=0, source=0, clip=0, start_seconds=0, end_seconds=1, views=(view,))
    return DaliViews(config, 1, device="cpu", threads=1)([clip], [sample])[0].numpy()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_window_is_what_was_on_screen(form, tmp_path, read_barcode):
    path = tmp_path / f"clip{form.suffix}"
    write(path, form)
    refused = 0
    for start, end in WINDOWS:
        read = read_window(path, start, end, COUNT)
        assert [read_barcode(frame) for frame in read] == on_screen(start, end), (start, end)
        try:
            clip = encoded_window(path, start, end, COUNT, DALI_GPU_CODECS)
        except NotForDali as reason:
            assert form.why_not and form.why_not in str(reason), (start, end)
            refused += 1
            continue
        assert np.array_equal(by_dalis_rule(clip), read), (start, end)
        assert start > 0 or clip.payloads[0].nbytes < path.stat().st_size
    assert bool(refused) == bool(form.why_not)


VOP, USER_DATA = b"\0\0\1\xb6", b"\0\0\1\xb2"
NOT_CODED = VOP + b"\x50\0\x7f"
"""Replaces a B-frame that is packed with the frame before it."""


def pack_b_frames(source: Path, target: Path) -> None:
    """Write MPEG-4 as DivX does: a B-frame shares the packet of the frame before it, and a marker says so."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        copy.codec_context.extradata = None  # the marker is in the first packet
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        is_b = [packet[packet.index(VOP) + 4] >> 6 == 2 for packet in packets] + [False]
        for number, data in enumerate(packets):
            data = NOT_CODED if is_b[number] else data + packets[number + 1] if is_b[number + 1] else data
            if USER_DATA in data:
                at = data.index(USER_DATA) + 4
                data = data[:at] + b"DivX503b1393p" + data[data.index(b"\0\0\1", at) :]
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, FPS), number % 24 == 0, copy
            out.mux(packet)


def test_packed_b_frames_are_counted(tmp_path, read_barcode):
    write(tmp_path / "clip.avi", Form("mpeg4", ".avi", {"g": "24", "bf": "1"}))
    path = tmp_path / "packed.avi"
    pack_b_frames(tmp_path / "clip.avi", path)
    for start, end in WINDOWS:
        assert [read_barcode(frame) for frame in read_window(path, start, end, COUNT)] == on_screen(start, end)
        with pytest.raises(NotForDali, match="guessed times"):
            encoded_window(path, start, end, COUNT, DALI_GPU_CODECS)


@pytest.mark.parametrize("name", ["vp8", "vp9 without alt-ref", "vp9 alt-ref", "vp9 alt-ref mp4", "mjpeg"])
def test_dali_decodes_the_same_frames_on_a_cpu(name, tmp_path, read_barcode):
    path = tmp_path / f"clip{FORMS[name].suffix}"
    write(path, FORMS[name])
    for start, end in WINDOWS:
        made = by_dali(encoded_window(path, start, end, COUNT, DALI_CPU_CODECS))
        assert [read_barcode(frame) for frame in made] == on_screen(start, end), (start, end)
