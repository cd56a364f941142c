"""Folders of frames: their one series, in the order of its numbers; every other picture is left out or refused by name."""

from pathlib import Path

import pytest

from ppma.common.files import content_sha256
from ppma.common.frames import is_frames, list_frames, read_folder
from ppma.config.errors import InputError


def folder(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).write_text(name)
    return path


def test_frames_in_the_order_of_their_numbers(tmp_path):
    names = [f"img_{i}.jpg" for i in (1, 2, 9, 10, 100)]
    folder(tmp_path, *reversed(names), "notes.txt", ".hidden_1.jpg")
    assert [path.name for path in list_frames(tmp_path)] == names


@pytest.mark.parametrize(
    "names",
    [("1.5.jpg", "2.25.jpg", "10.125.jpg"), ("frame_2_delay-0.04s.png", "frame_10_delay-0.03s.png"), ("000001.jpg",)],
)
def test_names_that_no_number_ends_and_single_frames(tmp_path, names):
    assert [path.name for path in list_frames(folder(tmp_path, *names))] == list(names)


def test_pictures_without_a_number_are_no_frames(tmp_path):
    others = ["AlbumArtSmall.jpg", "clip_thumb.png", "folder.jpg", "thumb_1.jpg"]
    found = read_folder(folder(tmp_path, "0001.jpg", "0002.jpg", *others))
    assert [path.name for path in found.files] == ["0001.jpg", "0002.jpg"]
    assert found.left_out == others and found.missing == ([], 0)
    for name in ("folder.jpg", "a.txt"):
        with pytest.raises(InputError, match="holds no frames"):
            list_frames(folder(tmp_path / f"only {name}", name))


def test_two_series_are_refused_by_both_names_unless_one_is_chosen(tmp_path):
    folder(tmp_path, *(f"{prefix}{i:05d}.jpg" for prefix in ("img_", "flow_x_", "") for i in (1, 2, 3)))
    with pytest.raises(InputError, match=r"3 series.*00001\.jpg.*flow_x_00001\.jpg.*img_00001\.jpg.*--frames-prefix"):
        list_frames(tmp_path)
    for prefix in ("img_", "flow_x_", ""):
        path = tmp_path / f"{prefix}*"
        assert is_frames(path)
        assert [file.name for file in list_frames(path)] == [f"{prefix}{i:05d}.jpg" for i in (1, 2, 3)]
    with pytest.raises(InputError, match=r"no frames depth_1\.jpg.*img_00001\.jpg"):
        list_frames(tmp_path / "depth_*")


def test_two_series_whose_numbers_stand_within_the_names(tmp_path):
    folder(tmp_path, *(f"{i:06d}_{kind}.png" for kind in ("rgb", "mask") for i in (1, 2)))
    with pytest.raises(InputError, match=r"000001_mask\.png.*000001_rgb\.png.*move"):
        list_frames(tmp_path)


def test_missing_numbers(tmp_path):
    assert read_folder(folder(tmp_path / "a", "1.jpg", "2.jpg", "5.jpg", "6.jpg")).missing == ([3, 4], 2)
    every_fifth = folder(tmp_path / "b", *(f"{i}.jpg" for i in (0, 5, 10, 20)))
    assert read_folder(every_fifth).missing == ([15], 1)
    assert read_folder(folder(tmp_path / "c", "7.jpg", "8.jpg")).missing == ([], 0)
    dated = read_folder(folder(tmp_path / "d", "1.jpg", "2.jpg", "20261128010000.jpg")).missing
    assert dated == ([3, 4, 5], 20261128010000 - 3)


@pytest.mark.parametrize("names", [("1.jpg", "2.jpg", "2.png"), ("1.jpg", "01.jpg", "2.jpg")])
def test_one_frame_twice_is_refused(tmp_path, names):
    with pytest.raises(InputError, match=r"both JPEG and PNG|same number"):
        list_frames(folder(tmp_path, *names))


def test_the_hash_of_a_series_is_of_its_frames(tmp_path):
    folder(tmp_path, "img_1.jpg", "img_2.jpg", "flow_1.jpg", "flow_2.jpg")
    before = content_sha256(tmp_path / "img_*")
    (tmp_path / "flow_1.jpg").write_text("other")
    assert content_sha256(tmp_path / "img_*") == before
    (tmp_path / "img_*").write_text("a file that has the name of the series")
    (tmp_path / "img_1.jpg").write_text("other")
    assert content_sha256(tmp_path / "img_*") != before
