"""Every codec with every kind of GOP: a window holds the frames that were on screen, decoded by PyAV or by DALI.

A clip shows its frame numbers. DALI numbers the pictures of its container by the presentation times of the packets,
from 0 (frames_decoder_base.cc); decoding that container says what each picture shows. DALI itself decodes what it can
on a CPU.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import barcoded_frame

from ppma.config.loader import LoaderConfig
from ppma.loaders.decode import fetch
from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, DALI_GPU_CODECS, DaliInput
from ppma.loaders.decode.fetch import read_window
from ppma.loaders.decode.remux import NotForDali, encoded_window
from ppma.loaders.samples import Sample, ViewParams
from ppma.loaders.sources.probe import FROM_START, probe

SIDE, FPS, FRAMES, COUNT = 160, 25, 75, 8
WINDOWS = ((0.0, 1.0), (0.5, 1.2), (0.91, 1.93), (0.96, 2.2), (1.0, 1.6), (1.87, 2.6), (2.3, 3.0))
"""Some begin between the decoding and the presentation of a key frame (one in 24 frames)."""
RANDOM_WINDOWS = 210
"""Of each form in the full-size proof: more than 100,000 frames in all."""
CUT_AT = 1.4
"""Seconds, inside the second group."""


@dataclass(frozen=True)
class Form:
    """A way to encode."""

    codec: str
    suffix: str
    options: dict[str, str]
    cut: str = ""
    """Copied without decoding from CUT_AT on: "exact" drops the pictures before that by an edit list, "key" keeps all
    from the key frame before."""
    name: str = ""

    @property
    def first(self) -> int:
        """Number of the first frame that is shown."""
        return {"": 0, "exact": round(CUT_AT * FPS), "key": 24}[self.cut]


def x264(more: str) -> dict[str, str]:
    return {"g": "24", "preset": "veryfast", "x264-params": f"keyint=24:scenecut=0:b-adapt=0:{more}"}


def x265(more: str) -> dict[str, str]:
    keys = "keyint=24:min-keyint=24:scenecut=0:log-level=none:pools=none:frame-threads=1"
    return {"preset": "ultrafast", "x265-params": f"{keys}:{more}"}


B, NO_B = {"g": "24", "bf": "2"}, {"g": "24", "bf": "0"}
VPX = {"g": "24", "deadline": "realtime", "cpu-used": "8", "threads": "1"}
VP9_SINGLE = {"g": "24", "auto-alt-ref": "0", "cpu-used": "8"}
CODED = {
    "h264 closed": ("libx264", "mp4 mkv mov avi ts flv", x264("open-gop=0:bframes=3:b-pyramid=none")),
    "h264 open": ("libx264", "mp4 mkv avi ts flv", x264("open-gop=1:bframes=3")),
    "h264 B-pyramid": ("libx264", "mp4 mkv avi ts flv", x264("open-gop=0:bframes=5:b-pyramid=normal")),
    "h264 without B": ("libx264", "mp4 mkv mov avi", x264("bframes=0")),
    "h264 intra": ("libx264", "mp4 mkv mov avi", {"g": "1", "preset": "veryfast"}),
    "h264 intra refresh": ("libx264", "mp4 mkv ts", x264("bframes=0:intra-refresh=1")),
    "hevc default": ("libx265", "mp4", {"x265-params": "log-level=none:pools=none:frame-threads=1"}),
    "hevc open": ("libx265", "mp4 mkv ts", x265("open-gop=1:bframes=4")),
    "hevc closed": ("libx265", "mp4 mkv mov ts", x265("open-gop=0:bframes=4")),
    "mpeg4 with B": ("mpeg4", "mp4 mkv avi ts", B),
    "mpeg4 without B": ("mpeg4", "mp4 mkv avi", NO_B),
    "mpeg2 with B": ("mpeg2video", "mkv avi ts mpg", B),
    "mpeg2 without B": ("mpeg2video", "mkv", NO_B),
    "mpeg1 with B": ("mpeg1video", "mkv mpg", B),
    "vp8": ("libvpx", "webm mkv", VPX),
    "vp9 without alt-ref": ("libvpx-vp9", "webm mp4", VP9_SINGLE),
    "vp9 alt-ref": ("libvpx-vp9", "webm mp4", VPX),
    "av1": ("libsvtav1", "mp4 mkv", {"g": "24", "preset": "12"}),
    "mjpeg": ("mjpeg", "avi mov", {}),
    "wmv2": ("wmv2", "asf", NO_B),
    "flv1": ("flv", "flv avi", NO_B),
}
"""Name -> encoder, containers, options."""
CUTS = {
    "h264 closed": "mp4 mov",
    "h264 open": "mp4 mov",
    "h264 B-pyramid": "mp4",
    "hevc open": "mp4",
    "vp9 without alt-ref": "mp4",
    "mpeg4 with B": "mp4",
}
LEADING = {"h264 open": "mkv ts", "hevc open": "mkv ts", "mpeg2 with B": "mkv ts"}
"""Cut at a key frame whose leading pictures come after it."""
FOR_DALI = {
    *("h264 closed", "h264 B-pyramid", "h264 without B", "h264 intra", "hevc default", "hevc open", "hevc closed"),
    *("mpeg4 with B", "mpeg4 without B", "vp8", "vp9 without alt-ref"),
}
"""What a GPU gets undecoded, in the containers that store every time."""
IDR_FIRST_ONLY = ("h264 open", "h264 intra refresh")
WITHOUT_TIMES = (".ts", ".mpg", ".flv", ".asf")


def forms() -> dict[str, Form]:
    """Return every form by its name."""
    found = {}
    for cut, table in (
        ("", {name: suffixes for name, (_, suffixes, _) in CODED.items()}),
        ("exact", CUTS),
        ("key", LEADING),
    ):
        for name, suffixes in table.items():
            for suffix in suffixes.split():
                codec, _, options = CODED[name]
                found[" ".join(filter(None, (name, cut, suffix)))] = Form(codec, f".{suffix}", options, cut, name)
    return found


FORMS = forms()


def write(path: Path, form: Form) -> None:
    whole = path.with_name(f"whole{form.suffix}") if form.cut else path
    with av.open(str(whole), "w") as container:
        stream = container.add_stream(form.codec, rate=Fraction(FPS), options=form.options)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.bit_rate = "yuvj420p" if form.codec == "mjpeg" else "yuv420p", 400_000
        for number in range(FRAMES):
            picture = barcoded_frame(number, width=SIDE, height=SIDE, direction=(1, 0), color=np.array((220, 60, 60)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    if form.cut:
        cut(whole, path, exact=form.cut == "exact")


def cut(source: Path, target: Path, *, exact: bool) -> None:
    """Copy the packets from the key frame before CUT_AT on; an exact cut has negative times, for an edit list."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        at = int(CUT_AT / stream.time_base) + packets[0].pts
        begin = max(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= at)
        zero = at if exact else min(packet.pts for packet in packets[begin:])
        for packet in packets[begin:]:
            packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
            packet.stream = copy
            out.mux(packet)


def on_screen(start: float, end: float, first: int = 0) -> list[int]:
    """Return the frame numbers of a window, from the clock alone."""
    begin, stop = (int(np.ceil(round(seconds * FPS, 6))) for seconds in (start, min(end, (FRAMES - first) / FPS)))
    return [first + begin + int(i) for i in np.linspace(0, stop - 1 - begin, COUNT)]


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


def check_windows(path: Path, form: Form, windows: Iterable[tuple[float, float]], read_barcode) -> tuple[int, int]:
    """Compare windows with the clock, and with what DALI gets; return how many it gets and how many frames differ."""
    given = wrong = 0
    for start, end in windows:
        read = read_window(path, start, end, COUNT)
        shown = [read_barcode(frame) for frame in read]
        wrong += sum(a != b for a, b in zip(shown, on_screen(start, end, form.first), strict=True))
        try:
            clip = encoded_window(path, start, end, COUNT, DALI_GPU_CODECS)
        except NotForDali:
            continue
        given += 1
        wrong += not np.array_equal(by_dalis_rule(clip), read)
    return given, wrong


@pytest.mark.promise("R6")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_window_is_what_was_on_screen(form, tmp_path, read_barcode, caplog):
    path = tmp_path / f"clip{form.suffix}"
    write(path, form)
    metadata = probe(path)
    assert metadata.frames == FRAMES - form.first and metadata.duration_seconds == pytest.approx(
        metadata.frames / FPS, abs=0.002
    )
    windows = [(start, end) for start, end in WINDOWS if end <= metadata.duration_seconds + 0.001]
    given, wrong = check_windows(path, form, windows, read_barcode)
    assert wrong == 0
    assert FROM_START in metadata.remarks or form.cut or not caplog.records, "the index says which files are slow"
    if form.cut or form.suffix in WITHOUT_TIMES or form.name in IDR_FIRST_ONLY:
        assert given < len(windows)
    else:
        gets = form.name in FOR_DALI and FROM_START not in metadata.remarks
        assert given == (len(windows) if gets else 0)


@pytest.mark.parametrize("name", ["h264 closed mp4", "h264 intra refresh mkv", "mpeg2 with B mpg"])
def test_every_frame_of_a_window_is_read_in_order(name, tmp_path, read_barcode, monkeypatch):
    """By a seek, after a seek that failed, and from the start; the last two without holding a window in memory."""
    monkeypatch.setattr(fetch, "MOST_HELD_PIXELS", 1)
    path = tmp_path / f"clip{FORMS[name].suffix}"
    write(path, FORMS[name])
    found = list(fetch.all_frames(path, 1.2, 2.4))
    assert [read_barcode(frame) for _, frame in found] == list(range(30, 60))
    assert [time for time, _ in found] == pytest.approx([number / FPS for number in range(30, 60)], abs=0.0011)


@pytest.mark.slow
@pytest.mark.promise("R6")
@pytest.mark.promise("R7")
def test_random_windows_of_every_form(tmp_path, read_barcode, figure):
    rng = np.random.default_rng(15)
    wrong, frames = {}, 0
    for name, form in FORMS.items():
        path = tmp_path / f"{name}{form.suffix}"
        write(path, form)
        lasts = (FRAMES - form.first) / FPS
        starts = rng.uniform(0, lasts - 1 / FPS, RANDOM_WINDOWS).round(3)
        ends = np.minimum(starts + rng.uniform(0.05, 1.6, RANDOM_WINDOWS), lasts)
        wrong[name] = check_windows(path, form, zip(starts.tolist(), ends.tolist()), read_barcode)[1]
        frames += RANDOM_WINDOWS * COUNT
    bad = {name: count for name, count in wrong.items() if count}
    figure("R6", f"{len(bad)} of {len(FORMS)} combinations differ at {RANDOM_WINDOWS} random windows each")
    figure("R7", f"{sum(bad.values())} of {frames:,} barcodes differ")
    assert not bad and len(FORMS) >= 60 and frames >= 100_000


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
        with pytest.raises(NotForDali, match="guesses are wrong"):
            encoded_window(path, start, end, COUNT, DALI_GPU_CODECS)


@pytest.mark.parametrize(
    "name", ["vp8 webm", "vp9 without alt-ref webm", "vp9 alt-ref webm", "vp9 alt-ref mp4", "mjpeg avi"]
)
def test_dali_decodes_the_same_frames_on_a_cpu(name, tmp_path, read_barcode):
    path = tmp_path / f"clip{FORMS[name].suffix}"
    write(path, FORMS[name])
    for start, end in WINDOWS:
        made = by_dali(encoded_window(path, start, end, COUNT, DALI_CPU_CODECS))
        assert [read_barcode(frame) for frame in made] == on_screen(start, end), (start, end)
