"""The hash of a clip depends on its bytes and the names of its frames, not on its place."""

import shutil

import pytest

from ppma.common.files import content_sha256, file_sha256, joined_sha256


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i:06d}.jpg").write_bytes(bytes([i]))
    return folder


def test_a_copy_has_the_same_hash(frames, tmp_path):
    shutil.copytree(frames, tmp_path / "copy")
    assert content_sha256(tmp_path / "copy") == content_sha256(frames)
    assert content_sha256(frames / "000000.jpg") == file_sha256(frames / "000000.jpg")


@pytest.mark.parametrize("change", ["bytes", "name", "more", "swap"])
def test_any_change_changes_the_hash(frames, change):
    before = content_sha256(frames)
    first, second = frames / "000000.jpg", frames / "000001.jpg"
    if change == "bytes":
        first.write_bytes(b"x")
    elif change == "name":
        first.rename(frames / "000009.jpg")
    elif change == "more":
        (frames / "000003.jpg").write_bytes(b"")
    else:
        first.write_bytes(bytes([1]))
        second.write_bytes(bytes([0]))
    assert content_sha256(frames) != before


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(OSError):
        content_sha256(tmp_path / "nothing")


def test_joined_hashes_depend_on_their_order():
    assert joined_sha256(["a", "b"]) != joined_sha256(["b", "a"])
