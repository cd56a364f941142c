"""Output folders are claimed with their settings, leftovers deleted; the hash of a clip is of its bytes and frames, not its place."""

import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppma.common.files import claim_folder, content_sha256, file_sha256, joined_sha256, remove_leftovers
from ppma.config.errors import InputError


def test_a_folder_keeps_the_settings_it_was_claimed_with(tmp_path):
    note = tmp_path / "out" / "settings.json"
    claim_folder(note, {"size": 32, "names": ("a",)}, "clips")
    claim_folder(note, {"size": 32, "names": ("a",)}, "clips")
    with pytest.raises(InputError, match="size 32, not 48"):
        claim_folder(note, {"size": 48, "names": ("a",)}, "clips")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        claim_folder(tmp_path / "file" / "settings.json", {}, "clips")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_tasks_that_claim_a_folder_at_the_same_moment_the_first_wins(tmp_path, monkeypatch, links):
    note, start = tmp_path / "settings.json", threading.Barrier(8)

    def refuse(*_):
        raise PermissionError(errno.EPERM, "this file system has no hard links")

    if not links:
        monkeypatch.setattr(os, "link", refuse)

    def claim(size):
        start.wait()
        try:
            claim_folder(note, {"size": size}, "clips")
        except InputError:
            return None
        return size

    with ThreadPoolExecutor(8) as pool:
        (won,) = set(pool.map(claim, range(8))) - {None}
    assert json.loads(note.read_text()) == {"size": won} and [*tmp_path.iterdir()] == [note]


def test_leftovers_of_the_own_files_are_deleted_and_those_of_others_kept(tmp_path):
    mine = (".v1.5.abcd_123.tmp.mp4", ".x.abcd_123.tmp")
    others = (".v1.abcd_123.tmp.mp4", ".v1.5.abcd_123.tmp.mkv", "v1.5.mp4")
    for name in (*mine, *others):
        (tmp_path / name).touch()
    remove_leftovers([tmp_path / "v1.5.mp4", tmp_path / "x", tmp_path / "none" / "y.mp4"])
    assert {path.name for path in tmp_path.iterdir()} == set(others)


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


def test_any_change_changes_the_hash(frames):
    """Other bytes, two frames exchanged, one more, and another name."""
    first, second = frames / "000000.jpg", frames / "000001.jpg"
    seen = [content_sha256(frames)]
    for change in (
        lambda: first.write_bytes(b"\1"),
        lambda: second.write_bytes(b"\0"),
        lambda: (frames / "000003.jpg").write_bytes(b""),
        lambda: first.rename(frames / "000009.jpg"),
    ):
        change()
        seen.append(content_sha256(frames))
    assert len(set(seen)) == 5


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(OSError):
        content_sha256(tmp_path / "nothing")


def test_joined_hashes_depend_on_their_order():
    assert joined_sha256(["a", "b"]) != joined_sha256(["b", "a"])
