"""Resized clips: every frame in its place and upright; small clips linked, finished ones kept, damaged ones named."""

import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from damaged_clips import CASES, encode

from ppma.data import resize as resizing
from ppma.data.resize import VideoMetadata, resize
from ppma.loaders.decode.fetch import to_rgb
from ppma.loaders.sources.probe import probe


def facts_of(root: Path) -> dict[str, VideoMetadata]:
    return {path.relative_to(root).as_posix(): probe(path) for path in sorted(root.rglob("*.*")) if path.is_file()}


def small(root: Path, short_side: int) -> tuple[Path, dict]:
    return resize(root, facts_of(root), short_side=short_side, workers=1)


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_every_frame_is_there_in_its_place(tmp_path, write_clip, read_barcode):
    write_clip(tmp_path / "a/b/clip.avi", frames=20, fps=25, width=256, height=192, codec="mpeg4")
    root, places = small(tmp_path / "a", 96)
    assert root == tmp_path / "a-short96" and places["b/clip.avi"].path == "b/clip.avi.mp4"
    found = probe(root / "b/clip.avi.mp4")
    assert (found.frames, found.fps, found.width, found.height, found.codec) == (20, 25.0, 128, 96, "h264")
    pictures = [
        cv2.resize(frame, (256, 192), interpolation=cv2.INTER_NEAREST) for frame in frames(root / "b/clip.avi.mp4")
    ]
    assert [read_barcode(picture) for picture in pictures] == list(range(20))


def test_a_rotated_clip_comes_out_upright(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/turned.mp4").write_bytes(CASES["rotated_90.mp4"]())
    before = probe(tmp_path / "a/turned.mp4")
    root, _ = small(tmp_path / "a", 160)
    after = probe(root / "turned.mp4")
    assert "rotated" in before.remarks and not after.remarks
    assert (before.width, before.height, after.width, after.height) == (240, 320, 160, 208)
    with av.open(str(tmp_path / "a/turned.mp4")) as container:
        upright_HWC = to_rgb(next(container.decode(video=0)))  # as the loader turns it
    wanted_HWC = cv2.resize(upright_HWC, (160, 208), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(frames(root / "turned.mp4")[0].astype(int) - wanted_HWC).mean() < 3
    assert np.abs(np.rot90(wanted_HWC, 2) - wanted_HWC).mean() > 20, "upside down would show"


def test_a_variable_rate_keeps_its_times(tmp_path):
    times = [0, 40, 80, 400, 440, 900]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/clip.mkv").write_bytes(encode("matroska", range(6), times_ms=times))
    root, _ = small(tmp_path / "a", 120)
    with av.open(str(root / "clip.mkv.mp4")) as container:
        assert [round(1000 * frame.time) for frame in container.decode(video=0)] == times


def test_small_clips_are_linked_and_finished_ones_kept(tmp_path, write_clip):
    write_clip(tmp_path / "a/large.mp4", frames=6, width=256, height=192)
    write_clip(tmp_path / "a/small.avi", frames=6, width=96, height=64, codec="mpeg4")
    root, places = small(tmp_path / "a", 96)
    assert (root / "small.avi").samefile(tmp_path / "a/small.avi")
    assert (places["small.avi"].encoded, places["large.mp4"].encoded) == (False, True)
    first = (root / "large.mp4").stat()
    small(tmp_path / "a", 96)
    assert (root / "large.mp4").stat().st_ino == first.st_ino, "finished clips are kept"
    os.utime(tmp_path / "a/large.mp4", ns=(first.st_mtime_ns + 10**9,) * 2)
    small(tmp_path / "a", 96)
    assert (root / "large.mp4").stat().st_ino != first.st_ino, "its source is newer"
    assert sorted(path.name for path in root.iterdir()) == ["large.mp4", "small.avi"]


def test_folders_of_frames(tmp_path):
    for name, side in (("large", 64), ("small", 32)):
        (tmp_path / "a" / name).mkdir(parents=True)
        for number in (1, 2):
            cv2.imwrite(
                str(tmp_path / f"a/{name}/{number:05d}.png"), np.full((side, side * 2, 3), 90 * number, np.uint8)
            )
    root, places = resize(
        tmp_path / "a", {name: probe(tmp_path / "a" / name) for name in ("large", "small")}, short_side=32, workers=1
    )
    assert {name: place.path for name, place in places.items()} == {"large": "large", "small": "small"}
    large, small = probe(root / "large"), probe(root / "small")
    assert (large.height, large.codec, small.codec) == (32, "jpeg", "png")
    assert abs(int(cv2.imread(str(root / "large/00002.jpg")).mean()) - 180) <= 1


def test_a_damaged_clip_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/clip.mp4").write_bytes(encode("mp4", range(12)))
    found = facts_of(tmp_path / "a")
    (tmp_path / "a/clip.mp4").write_bytes(b"no video at all" * 100)
    root, places = resize(tmp_path / "a", found, short_side=120, workers=1)
    assert places["clip.mp4"].reason.startswith("cannot be encoded") and not list(root.rglob("*.*"))


@pytest.mark.parametrize(
    ("width", "height", "short_side", "codec", "expected"),
    [
        (1920, 1080, 256, "h264", (448, 256)),
        (1080, 1920, 256, "h264", (256, 448)),
        (640, 480, 256, "h264", (336, 256)),
        (640, 480, 240, "h264", (320, 240)),
        (640, 480, 250, "h264", (334, 250)),  # its short side fits no macroblock
        (64, 48, 32, "h264", (42, 32)),  # 48 would stretch it by an eighth
        (640, 480, 256, "jpeg", (342, 256)),
    ],
)
def test_sides_are_whole_macroblocks_where_that_stretches_little(tmp_path, width, height, short_side, codec, expected):
    found = VideoMetadata(
        frames=9, fps=25.0, width=width, height=height, codec=codec, key_frame_spacing=9, duration_seconds=0.36
    )
    assert resizing._job(tmp_path, tmp_path, "a.mp4", found, short_side).size == expected


def test_what_a_killed_run_left_behind_is_deleted_and_not_taken_over(tmp_path, write_clip):
    write_clip(tmp_path / "a/large.mp4", frames=4, width=256, height=192)
    (tmp_path / "a/frames").mkdir()
    cv2.imwrite(str(tmp_path / "a/frames/00001.png"), np.zeros((32, 64, 3), np.uint8))
    (tmp_path / "a-short96/.frames.partial").mkdir(parents=True)
    for name in (".frames.partial/00002.png", ".large.abcd1234.tmp.mp4"):
        (tmp_path / "a-short96" / name).touch()
    found = {name: probe(tmp_path / "a" / name) for name in ("large.mp4", "frames")}
    root, _ = resize(tmp_path / "a", found, short_side=96, workers=1)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
    assert names == ["frames", "frames/00001.png", "large.mp4"]
