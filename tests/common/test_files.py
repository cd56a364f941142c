"""Output folders are claimed with their settings."""

import pytest

from ppma.common.files import claim_folder, remove_leftovers
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


def test_leftovers_of_the_own_files_are_deleted_and_those_of_others_kept(tmp_path):
    mine, others = (
        (".v1.5.abcd_123.tmp.mp4", ".x.abcd_123.tmp"),
        (".v1.abcd_123.tmp.mp4", ".v1.5.abcd_123.tmp.mkv", "v1.5.mp4"),
    )
    for name in (*mine, *others):
        (tmp_path / name).touch()
    remove_leftovers([tmp_path / "v1.5.mp4", tmp_path / "x", tmp_path / "none" / "y.mp4"])
    assert {path.name for path in tmp_path.iterdir()} == set(others)
