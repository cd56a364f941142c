"""The probe's answer for every broken and odd file: made ones, and collected ones if available."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from damaged_clips import FRAMES, VARIABLE_TIMES_MS, encode, number_of

from ppma.loaders.decode.fetch import read_window
from ppma.loaders.sources.pictures import Unusable, open_video
from ppma.loaders.sources.probe import FROM_START, probe, probe_each

PLAIN = {"frames": FRAMES, "width": 320, "height": 240, "fps": 25.0, "duration_seconds": 2.4, "remarks": ()}
ANSWERS: dict[str, str | dict[str, object]] = {
    "truncated.mp4": "cut before its index",
    "truncated_after_index.mp4": "is cut short: its index promises 60 frames, ",
    "zero_bytes.mp4": "is an empty file",
    "html_error_page.mp4": "is a web page",
    "audio_only.mp4": "has no video stream",
    "one_frame.mp4": PLAIN | {"frames": 1, "duration_seconds": 0.04, "key_frame_spacing": 1},
    "odd_size_161x91.mp4": PLAIN | {"width": 161, "height": 91, "codec": "vp9"},
    "rotated_90.mp4": PLAIN | {"width": 240, "height": 320, "remarks": ("rotated",)},
    "variable_frame_rate.mp4": {"frames": FRAMES, "remarks": ("variable frame rate",)},
    "missing_pts.h264": "has no time stamps",
    "missing_pts.avi": PLAIN | {"codec": "mpeg4", "remarks": (FROM_START,)},
    "timestamps_jump_back.ts": "time stamps jump back",
    "size_changes.ts": "changes from 320 x 240 to 640 x 480",
    "starts_without_key_frame.ts": PLAIN
    | {"frames": 30, "duration_seconds": 1.2, "remarks": ("starts without a key frame", FROM_START)},
    "mid_stream_corruption.mp4": "is damaged: ",
    "concealed_corruption.mp4": PLAIN,
    "wrong_extension.mp4": PLAIN | {"codec": "vp9"},
    "ten_bit_hevc.mp4": PLAIN | {"codec": "hevc"},
    "yuv444.mp4": PLAIN | {"codec": "h264", "key_frame_spacing": 12},
    "interlaced.mp4": PLAIN | {"remarks": ("interlaced",)},
    "huge_dimensions.mp4": "8192 x 8192 are larger than 9437184 pixels",
}
"""Answer of either check: part of the reason, or metadata."""
FULL_ONLY = {"concealed_corruption.mp4": "is damaged: 6 of its frames cannot be decoded cleanly, the first at 1.04 s"}
"""Damage between key frames is found by decoding everything; after the quick check the loader meets it."""


@pytest.mark.parametrize("check", ["quick", "full"])
@pytest.mark.parametrize("name", ANSWERS)
def test_every_damaged_file_gets_its_answer(name, check, damaged, real_videos):
    """Made ones, and collected ones where there are any ($PPMA_VIDEOS)."""
    expected = FULL_ONLY.get(name, ANSWERS[name]) if check == "full" else ANSWERS[name]
    collected = [real_videos / "damaged"] if real_videos and (real_videos / "damaged").is_dir() else []
    for folder in (damaged, *collected):
        if isinstance(expected, str):
            with pytest.raises(Unusable) as refusal:
                probe(folder / name, check=check)
            assert expected in str(refusal.value)
        else:
            found = probe(folder / name, check=check)
            assert {key: getattr(found, key) for key in expected} == expected


@pytest.mark.promise("R27")
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("name", ["missing_pts.h264", "timestamps_jump_back.ts"])
def test_the_command_that_a_refusal_names_gives_every_frame_in_order(tmp_path, damaged, name):
    with pytest.raises(Unusable, match="ffmpeg") as refusal:
        probe(damaged / name)
    command = str(refusal.value).partition("ffmpeg ")[2]
    there = {"IN": str(damaged / name), "OUT.mp4": str(tmp_path / "out.mp4")}
    subprocess.run(["ffmpeg", "-v", "error", *(there.get(word, word) for word in command.split())], check=True)
    assert probe(tmp_path / "out.mp4").frames == FRAMES
    frames = read_window(tmp_path / "out.mp4", 0.0, FRAMES / 25, FRAMES)
    assert [number_of(frame) for frame in frames] == list(range(FRAMES))


def test_times_are_those_of_the_packets(damaged):
    facts = probe(damaged / "variable_frame_rate.mp4")
    span = (VARIABLE_TIMES_MS[-1] - VARIABLE_TIMES_MS[0]) / 1000
    assert facts.fps == pytest.approx(59 / span, rel=0.01)
    assert span < facts.duration_seconds < span + 0.2, "the last frame lasts at most as long as the longest other one"


def test_the_generator_stamps_its_frames(damaged):
    with av.open(str(damaged / "missing_pts.avi")) as file:
        assert [number_of(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)] == list(range(FRAMES))


@pytest.mark.parametrize(
    ("container", "how", "spacing"),
    [
        ("mp4", {"key_every": 250}, 60),
        ("matroska", {"key_every": 25}, 25),
        ("webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}}, 12),
        ("avi", {"codec": "mjpeg", "pixels": "yuvj420p", "options": {}}, 1),
        ("webm", {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lookahead=0"}}, 12),
    ],
)
def test_frames_and_spacing_by_container(tmp_path, container, how, spacing):
    """Only shown frames count, not VP8's hidden reference pictures, and no header is needed."""
    file = tmp_path / "clip"
    file.write_bytes(encode(container, **how))
    for check in ("quick", "full"):
        facts = probe(file, check=check)
        assert (facts.frames, facts.fps, facts.duration_seconds) == (60, 25.0, pytest.approx(2.4, abs=0.002))
        assert facts.key_frame_spacing == spacing
    with av.open(str(file)) as video:
        assert sum(1 for _ in video.decode(video=0)) == facts.frames


def test_key_frames_are_sampled_over_the_whole_file(tmp_path):
    """A size change near the end of a file with 60 key frames is seen, though 8 are decoded at most."""
    first, last = encode("mpegts", range(50), key_every=1), encode("mpegts", range(10), key_every=1, size=(640, 480))
    (tmp_path / "clip.ts").write_bytes(first + last)
    with pytest.raises(Unusable, match="changes from 320 x 240 to 640 x 480"):
        probe(tmp_path / "clip.ts")


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\nclip.mp4\n", "ffconcat version 1.0\nfile clip.mp4\n", "just words\n"]
)
def test_a_text_file_opens_nothing(tmp_path, text):
    """Play lists would make the decoder open other files, even addresses."""
    (tmp_path / "clip.mp4").write_bytes(encode("mp4", range(3)))
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(Unusable, match="cannot be opened"):
        probe(tmp_path / "list.mp4")


def test_a_codec_that_nothing_decodes(tmp_path):
    data = encode("mp4", range(3)).replace(b"avc1", b"zzz1")
    (tmp_path / "clip.mp4").write_bytes(data)
    with pytest.raises(Unusable, match="codec"):
        probe(tmp_path / "clip.mp4")


def test_unreadable_paths(tmp_path):
    with pytest.raises(Unusable, match="cannot be read: No such file"):
        probe(tmp_path / "none.mp4")
    with pytest.raises(Unusable, match="holds no frames"):
        probe(tmp_path)


def test_max_pixels_is_a_parameter(damaged):
    assert probe(damaged / "yuv444.mp4", max_pixels=320 * 240).frames == 60
    with pytest.raises(Unusable, match="320 x 240 are larger than 76799 pixels"):
        probe(damaged / "yuv444.mp4", max_pixels=320 * 240 - 1)
    with pytest.raises(Unusable, match="larger"):
        open_video(damaged / "huge_dimensions.mp4")


def write_picture(path: Path, width: int = 64, height: int = 48) -> None:
    stills = {".png": ("png", "rgb24"), ".jpg": ("mjpeg", "yuvj420p")}
    codec, pixels = stills[path.suffix]
    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24").reformat(
        format=pixels
    )
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = width, height, pixels, 25
    encoder.time_base = 1 / encoder.framerate
    path.write_bytes(b"".join(map(bytes, [*encoder.encode(frame), *encoder.encode(None)])))


@pytest.mark.parametrize(("suffix", "codec"), [(".jpg", "jpeg"), (".png", "png")])
def test_a_folder_of_frames(tmp_path, suffix, codec):
    for i in range(10):
        write_picture(tmp_path / f"{i:06d}{suffix}")
    (tmp_path / "notes.txt").write_text("not a frame")
    for check in ("quick", "full"):
        facts = probe(tmp_path, check=check)
        assert (facts.frames, facts.fps, facts.duration_seconds, facts.key_frame_spacing) == (10, 25.0, 0.4, 1)
        assert (facts.width, facts.height, facts.codec) == (64, 48, codec)
    with pytest.raises(Unusable, match="has 64 x 48, more than 100 pixels"):
        probe(tmp_path, max_pixels=100)


def test_a_folder_with_wrong_frames(tmp_path):
    for i in range(10):
        write_picture(tmp_path / f"{i:06d}.jpg")
    (tmp_path / "000003.jpg").write_bytes(b"")
    assert probe(tmp_path).frames == 10, "the quick check opens the first, the middle and the last"
    with pytest.raises(Unusable, match=r"its frame 000003\.jpg is an empty file"):
        probe(tmp_path, check="full")
    write_picture(tmp_path / "000009.jpg", width=32)
    with pytest.raises(Unusable, match=r"differ in size .*000009\.jpg: 32 x 48"):
        probe(tmp_path)
    (tmp_path / "000009.jpg").write_bytes(b"<html>")
    with pytest.raises(Unusable, match=r"its frame 000009\.jpg (does not decode|is damaged)"):
        probe(tmp_path)


def test_memory_of_a_worker_stays_within_300_mb(damaged, tmp_path):
    """One process looks into all files, twice; its peak is compared with its size before the first."""
    large = encode("mp4", range(9), size=(3840, 2160), draw=lambda n, w, h: np.full((h, w, 3), 9 * n, np.uint8))
    folder = shutil.copytree(damaged, tmp_path / "files")
    (folder / "large.mp4").write_bytes(large)
    code = """if True:
        import sys
        from pathlib import Path
        from ppma.loaders.sources.probe import Unusable, probe
        def peak_mb():
            return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000
        idle = peak_mb()
        for check in ("quick", "full"):
            for file in sorted(Path(sys.argv[1]).iterdir()):
                try:
                    probe(file, check=check)
                except Unusable:
                    pass
        print(peak_mb() - idle, *sorted({"torch", "nvidia", "cv2", "pyarrow"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    grown, *heavy = done.stdout.split()
    assert float(grown) < 300 and not heavy


def test_files_that_hang_or_are_bad_cost_only_their_own_result(tmp_path):
    """Opening a pipe that no process writes to waits forever, in the kernel."""
    for name in ("hangs 1", "hangs 2"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "000001.jpg")
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(encode("mp4", range(i + 1)) if i else b"")
    names = ("hangs 1", "0.mp4", "1.mp4", "hangs 2", "2.mp4")
    began = time.monotonic()
    files = [(number, tmp_path / name) for number, name in enumerate(names)]
    found = dict(probe_each(files, workers=1, timeout_seconds=3))
    assert time.monotonic() - began < 300 and not multiprocessing.active_children()
    assert found[0] == found[3] and "longer than 3 s" in found[0] and found[1] == "is an empty file"
    assert [found[i].frames for i in (2, 4)] == [2, 3]
