"""The user's own places: shared out between the splits, cut square, put behind the people to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.synthetic.clip import ClipSpec, render, sample_clip
from ppma.synthetic.render import backgrounds


def test_splits_share_no_video(clip_tree):
    train, test = (backgrounds.list_videos(clip_tree, split) for split in ("train", "test"))
    assert len(train) == len(test) == 6 and not set(train) & set(test)


def test_too_few_videos(tmp_path, write_clip):
    with pytest.raises(InputError, match="0 videos"):
        backgrounds.list_videos(tmp_path, "train")
    write_clip(tmp_path / "one.mp4")
    with pytest.raises(InputError, match="give at least 2"):
        backgrounds.list_videos(tmp_path, "test")


def test_pictures_follow_time(tmp_path, write_clip, read_barcode):
    """A 64 x 64 clip at 10 frames/s taken at 5 frames/s: every other frame, from a moment drawn, unscaled."""
    path = write_clip(tmp_path / "film.mp4", width=64, height=64, frames=30)
    numbers = [read_barcode(picture) for picture in backgrounds.pictures(path, 10, 5.0, 64, np.random.default_rng(0))]
    assert np.diff(numbers).tolist() == [2] * 9
    assert len(backgrounds.pictures(path, 100, 10.0, 64, np.random.default_rng(0))) == 30, "what there is"


def test_a_file_that_is_no_video(tmp_path):
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(InputError, match="cannot be used as a background"):
        backgrounds.pictures(path, 3, 5.0, 64, np.random.default_rng(0))


def test_people_stand_in_the_place(clip_tree):
    """Outside people and shadows every pixel is the video's."""
    videos = backgrounds.list_videos(clip_tree, "train")
    address = ClipSpec(
        seed=1, split="train", class_name="wave", number=0, size=64, frames=6, fps=5.0, people=1, videos=videos
    )
    take = sample_clip(address)
    take = replace(take, scene=replace(take.scene, light=replace(take.scene.light, darkness=0.0)))
    for t, frame in enumerate(render(take, empty=True)):
        np.testing.assert_array_equal(frame.empty_PP3, take.pictures_TPP3[t])
        np.testing.assert_array_equal(frame.picture_PP3[~frame.mask_PP], take.pictures_TPP3[t][~frame.mask_PP])
        assert frame.mask_PP.any()
