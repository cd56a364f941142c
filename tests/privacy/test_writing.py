"""What is written: pictures close to what was given, masks exactly, no sound, no metadata, nothing by halves."""

import av
import cv2
import numpy as np
import pytest

from ppma.privacy.removal.writing import FolderWriter, VideoWriter, target, writer


def noise(height, width, frames=4, seed=0):
    """Pictures with as much detail as a decoded video has: fine grain, and colours at half the size where its sides are even."""
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 220, (frames, 6, 8, 3), dtype=np.uint8)
    smooth = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in small])
    grainy = np.clip(smooth + rng.normal(0, 2, smooth.shape[:3])[..., None], 0, 255).astype(np.uint8)
    if height % 2 or width % 2:
        return grainy
    halved = [av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p") for picture in grainy]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in halved])


def psnr(first, second):
    return 10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2))


def decoded(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("size", [(48, 64), (91, 161)])
def test_a_video_holds_the_pictures_above_40_db_and_nothing_else(tmp_path, size):
    pictures = noise(*size)
    video = VideoWriter(tmp_path / "clip.mp4", 10.0, *size)
    for picture in pictures:
        video.add(picture)
    assert not (tmp_path / "clip.mp4").exists()
    video.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert psnr(pictures, decoded(tmp_path / "clip.mp4")) > 40
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert len(container.streams) == 1 and not container.streams.audio
        assert container.streams.video[0].average_rate == 10
        assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}


def test_masks_come_back_to_the_bit(tmp_path):
    masks = np.random.default_rng(1).integers(0, 2, (5, 37, 53)).astype(bool)
    video = VideoWriter(tmp_path / "clip.mkv", 10.0, 37, 53)
    for mask_HW in masks:
        video.add(mask_HW)
    video.finish()
    assert ((decoded(tmp_path / "clip.mkv")[..., 0] > 127) == masks).all()


def test_frames_are_numbered_from_one(tmp_path):
    pictures = noise(48, 64)
    masks = pictures[..., 0] > 100
    folder, seg = FolderWriter(tmp_path / "inp", ".jpg"), FolderWriter(tmp_path / "seg", ".png")
    for picture, mask in zip(pictures, masks):
        folder.add(picture)
        seg.add(mask)
    folder.finish()
    seg.finish()
    assert sorted(path.name for path in folder.path.iterdir()) == [f"{n:06d}.jpg" for n in (1, 2, 3, 4)]
    read = np.stack([cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in sorted(folder.path.iterdir())])
    assert psnr(pictures, read) > 40
    assert (cv2.imread(str(seg.path / "000002.png"), cv2.IMREAD_GRAYSCALE) == masks[1] * 255).all()


@pytest.mark.parametrize("layout", ["videos", "frames"])
def test_what_is_dropped_leaves_nothing_and_can_be_begun_again(tmp_path, layout):
    path = target(tmp_path, "inp", "a class, [x]/a clip", layout)
    for _ in range(2):
        one = writer(path, "inp", layout, 10.0, (48, 64))
        one.add(noise(48, 64)[0])
        one.drop()
    assert not list(path.parent.iterdir())
    for _ in range(2):  # the second: over what a finished run left
        one = writer(path, "inp", layout, 10.0, (48, 64))
        one.add(noise(48, 64)[0])
        one.finish()
    assert [left.name for left in path.parent.iterdir()] == [path.name]


def test_names_with_dots_keep_them(tmp_path):
    assert target(tmp_path, "inp", "c/v1.5", "videos").name == "v1.5.mp4"
    assert target(tmp_path, "seg", "c/v1.5", "videos").name == "v1.5.mkv"
    assert target(tmp_path, "seg", "c/v1.5", "frames").name == "v1.5"
