"""Windows are exactly the frames that a plain decode of the whole file gives, at every position, in every codec."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from damaged_clips import number_of

from ppma.loaders.decode import fetch
from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, DALI_GPU_CODECS, Limits
from ppma.loaders.decode.fetch import BadClip, read_window
from ppma.loaders.decode.remux import NotForDali, encoded_window
from ppma.loaders.samples import choose_frames
from ppma.loaders.sources.probe import FROM_START, probe

CODECS = [
    *(("libx264", "mp4"), ("libx265", "mp4"), ("libvpx", "webm")),
    *(("libvpx-vp9", "webm"), ("mpeg4", "avi"), ("mjpeg", "avi")),
]

ANY_SIZE = dict.fromkeys([*DALI_GPU_CODECS, *DALI_CPU_CODECS], Limits())


def shown(path):
    """Return every frame of a file in display order, and its time, by a plain decode."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        pts = [f.pts - frames[0].pts for f in frames]
        times = [float(p * stream.time_base) for p in pts]
        if pts != sorted(pts):  # packed B-frames: the order of the output is right, the guessed times are not
            times = [float(i / stream.average_rate) for i in range(len(frames))]
        return frames, times


def whole(path):
    """Return the same with the frames as one array, (T, H, W, 3)."""
    frames, times = shown(path)
    return np.stack([f.to_ndarray(format="rgb24") for f in frames]), times


def test_choose_frames_is_the_published_linspace():
    times = [i / 10 for i in range(50)]
    assert choose_frames(times, 1.0, 3.7, 16) == [10 + int(x) for x in np.linspace(0, 26, 16)]
    assert choose_frames(times, 4.6, 7.3, 8) == [46, 46, 46, 47, 47, 48, 48, 49]  # too few frames: some repeat
    assert choose_frames([0.0, 5.0], 1.0, 3.0, 2) == [0, 0]  # no frame begins in the window: the one on screen
    assert choose_frames([0.5], 0.0, 0.3, 2) == [0, 0]


@pytest.mark.parametrize(("codec", "container"), CODECS)
def test_every_position_equals_a_decode_of_the_whole_file(tmp_path, write_clip, codec, container):
    path = write_clip(tmp_path / f"clip.{container}", frames=60, codec=codec, key_frame_spacing=12)
    frames, times = whole(path)
    for start in (0.0, 0.35, 1.2, 2.95, 4.4, 5.9):
        expected = frames[choose_frames(times, start, start + 1.6, 8)]
        assert np.array_equal(read_window(path, start, start + 1.6, 8), expected), start


def test_b_frames_in_avi_at_every_position(damaged):
    """AVI stores no presentation times; the first picture of a stream with B-frames is delayed by one frame."""
    path = damaged / "missing_pts.avi"
    for start in np.arange(0, 2.3, 0.17):
        got = [number_of(frame) for frame in read_window(path, float(start), float(start) + 0.4, 4)]
        first = int(np.ceil(round(start * 25, 6)))
        last = min(59, int(np.ceil(round((start + 0.4) * 25, 6))) - 1)
        assert got == [first + int(x) for x in np.linspace(0, last - first, 4)], start


def test_converting_frames_starts_no_threads(clip_tree, monkeypatch):
    """By default swscale wakes one thread a core for each frame, in every worker."""
    monkeypatch.setattr(fetch, "_reformatter", VideoReformatter())
    before = len(list(Path("/proc/self/task").iterdir()))
    read_window(next(clip_tree.rglob("*.mp4")), 0.0, 1.0, 4)
    assert len(list(Path("/proc/self/task").iterdir())) == before


def test_a_folder_of_frames_counts_25_a_second(tmp_path):
    for number in range(50):
        picture = np.full((24, 32, 3), number, np.uint8)
        cv2.imwrite(str(tmp_path / f"{number + 1:06d}.png"), picture)
    frames = read_window(tmp_path, 0.4, 1.2, 5)
    assert [int(f[0, 0, 0]) for f in frames] == [10 + int(x) for x in np.linspace(0, 19, 5)]
    with pytest.raises(NotForDali, match=r"\.png frames"):  # left to OpenCV
        encoded_window(tmp_path, 0.0, 1.0, 4, DALI_CPU_CODECS)


def test_encoded_jpegs_are_the_wanted_files(tmp_path):
    for number in range(30):
        cv2.imwrite(str(tmp_path / f"{number:06d}.jpg"), np.full((24, 32, 3), 8 * number, np.uint8))
    clip = encoded_window(tmp_path, 0.0, 0.08, 4, DALI_CPU_CODECS)
    assert clip.kind == "jpeg" and clip.frame_idx == (0, 0, 0, 1) and (clip.height, clip.width) == (24, 32)
    assert [p.tobytes() for p in clip.payloads] == [(tmp_path / f"{i:06d}.jpg").read_bytes() for i in (0, 1)]


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "mp4"), ("libx264", "mkv"), ("mjpeg", "avi"), ("libvpx-vp9", "webm")]
)
def test_of_key_frames_only_the_wanted_ones_are_read(tmp_path, write_clip, codec, container, monkeypatch):
    """16 of 61 packets, in the usual window; the frames stay those of the whole file."""
    path = write_clip(tmp_path / f"clip.{container}", frames=120, fps=25, codec=codec, key_frame_spacing=1)
    frames, times = whole(path)
    decoded, there = [], fetch.decode_window

    class Counting:
        def __init__(self, stream):
            self.stream, self.codec_context = stream, self

        def decode(self, packet):
            decoded.extend(frames := self.stream.codec_context.decode(packet))
            return frames

    monkeypatch.setattr(fetch, "decode_window", lambda stream, *how: there(Counting(stream), *how))
    for start, end, count in ((0.0, 2.44, 16), (1.3, 3.74, 16), (4.7, 4.8, 8)):
        decoded.clear()
        wanted = choose_frames(times, start, end, count)
        assert np.array_equal(read_window(path, start, end, count), frames[wanted]), start
        assert len(decoded) == len(set(wanted))
        clip = encoded_window(path, start, end, count, ANY_SIZE)
        small = tmp_path / f"small.{container}"
        small.write_bytes(clip.payloads[0].tobytes())
        handed = whole(small)[0]
        assert len(handed) == len(set(wanted)) and np.array_equal(handed[list(clip.frame_idx)], frames[wanted])


@pytest.mark.parametrize(
    ("codec", "width", "height", "reason"),
    [
        ("h264", 48, 16, ""),
        ("h264", 46, 16, "48 x 16"),
        ("h264", 4098, 2048, "4096 x 4096"),
        ("h264", 340, 257, "multiple of 2"),
        ("hevc", 142, 256, "144 x 144"),
        ("hevc", 8192, 4320, ""),
        ("vp9", 256, 126, "128 x 128"),
        ("mpeg4", 1920, 1088, ""),
        ("mpeg4", 2032, 2032, "8192 macroblocks"),
    ],
)
def test_sizes_that_the_gpu_decodes(codec, width, height, reason):
    refused = DALI_GPU_CODECS[codec].refuse(width, height)
    assert reason in refused and bool(reason) == bool(refused)


def test_what_the_gpu_cannot_decode_goes_to_pyav(damaged, tmp_path, write_clip):
    for path, reason in (
        (damaged / "ten_bit_hevc.mp4", "yuv420p10"),
        (damaged / "yuv444.mp4", "yuv444p"),
        (damaged / "odd_size_161x91.mp4", "smaller than 128 x 128"),
        (damaged / "interlaced.mp4", "interlaced"),
        (damaged / "rotated_90.mp4", "rotated"),
        (write_clip(tmp_path / "small.mp4", frames=20, codec="libx265"), "smaller than 144 x 144"),
    ):
        with pytest.raises(NotForDali, match=reason):
            encoded_window(path, 0.0, 1.0, 4, DALI_GPU_CODECS)
        assert len(read_window(path, 0.0, 1.0, 4)) == 4


def rewrite(source, path, change):
    """Copy a video; `change(number, data, pts)` returns the (data, pts) of each packet."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(p for p in container.demux(video=0) if p.size):
            data, pts = change(number, bytes(packet), packet.pts)
            new = av.Packet(data)
            new.pts = new.dts = pts
            new.time_base, new.is_keyframe, new.stream = packet.time_base, packet.is_keyframe, copy
            out.mux(new)


def test_reference_pictures_of_vp8_are_not_shown(tmp_path, write_clip, read_barcode):
    """Two-pass libvpx makes them; here some lose the bit that shows a picture and get the next one's time."""
    source, path = write_clip(tmp_path / "clip.webm", frames=60, fps=25, codec="libvpx"), tmp_path / "hidden.webm"
    hidden = {13, 30, 41}

    def hide(number, data, pts):
        return (bytes([data[0] & 0xEF]) + data[1:], pts + 40) if number in hidden else (data, pts)

    rewrite(source, path, hide)
    shown = [number for number in range(60) if number not in hidden]
    for start, end in ((0.0, 1.0), (0.9, 2.0), (1.3, 2.4)):
        got = [read_barcode(frame) for frame in read_window(path, start, end, 60)]
        assert set(got) == {number for number in shown if start * 25 <= number < end * 25}
        assert got == sorted(got)
    for codecs in (DALI_CPU_CODECS, ANY_SIZE):
        with pytest.raises(NotForDali, match="not shown"):
            encoded_window(path, 0.0, 1.0, 4, codecs)


def test_two_pictures_at_one_time_are_both_shown(tmp_path, write_clip, read_barcode):
    source, path = write_clip(tmp_path / "clip.webm", frames=60, fps=25, codec="libvpx"), tmp_path / "equal.webm"
    rewrite(source, path, lambda number, data, pts: (data, pts - 40 if number == 30 else pts))
    found = probe(path)
    assert found.frames == 60 and FROM_START in found.remarks
    for start, first in ((0.0, 0), (0.8, 20), (1.16, 29)):
        shown = [read_barcode(frame) for frame in read_window(path, start, 1.3, 33 - first)]
        assert shown == list(range(first, 33))


def test_bad_files_say_what_is_wrong(tmp_path, write_clip):
    cut = write_clip(tmp_path / "cut.mp4", frames=60)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    (tmp_path / "empty").mkdir()
    for path, reason in (
        (cut, "cut before its index"),
        (tmp_path / "page.mp4", "web page"),
        (tmp_path / "none.mp4", "No such file"),
        (tmp_path / "empty", "holds no frames"),
    ):
        with pytest.raises(BadClip, match=reason):
            read_window(path, 0.0, 1.0, 4)
    (tmp_path / "empty" / "000001.jpg").write_bytes(b"not a picture")
    with pytest.raises(BadClip, match=r"000001\.jpg"):
        read_window(tmp_path / "empty", 0.0, 1.0, 4)


def test_real_clips_equal_a_decode_of_the_whole_file(real_videos, clip_tree):
    """Codecs as found in the wild, packed B-frames of XviD included."""
    root = real_videos or clip_tree
    videos = (p for p in sorted(root.rglob("*")) if p.suffix in (".avi", ".mp4", ".mkv", ".webm"))
    paths = [p for p in videos if p.parent.name != "damaged" and p.stat().st_size < 1_500_000]
    assert paths
    for path in paths:
        frames, times = shown(path)
        for start in (0.0, 0.6, max(0.0, times[-1] - 2.7)):
            chosen = choose_frames(times, start, start + 2.7, 16)
            expected = [frames[i].to_ndarray(format="rgb24") for i in chosen]
            assert np.array_equal(read_window(path, start, start + 2.7, 16), expected), (path.name, start)


@pytest.mark.parametrize("kind", ["superframe", "repeat"])
def test_packets_of_vp9_that_give_more_or_less_than_one_picture(tmp_path, write_clip, kind):
    """A superframe, here of one picture followed by its index, and a picture that is shown again."""
    source, path = write_clip(tmp_path / "clip.webm", frames=30, fps=25, codec="libvpx-vp9"), tmp_path / "other.webm"

    def change(number, data, pts):
        if number != 13:
            return data, pts
        mark = bytes([0b11001000])  # one picture, two bytes of size
        index = mark + len(data).to_bytes(2, "little") + mark
        return (data + index if kind == "superframe" else b"\x88"), pts  # 0x88 shows the picture in slot 0

    rewrite(source, path, change)
    assert len(read_window(path, 0.2, 0.9, 6)) == 6
    single = {"vp9": Limits(single=DALI_GPU_CODECS["vp9"].single)}
    assert encoded_window(path, 0.0, 0.4, 6, single).kind == "video"
    assert encoded_window(path, 0.2, 0.9, 6, DALI_CPU_CODECS).kind == "video"
    with pytest.raises(NotForDali, match="vp9"):
        encoded_window(path, 0.2, 0.9, 6, single)


def test_reading_ahead_leaves_errors_to_the_read(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("none.mp4", "empty", "gone/img_*"):
        fetch._read_ahead(tmp_path / name, 0.0, 1.0, 4)
        with pytest.raises(BadClip):
            read_window(tmp_path / name, 0.0, 1.0, 4)
