"""Output folders are claimed with their settings."""

import pytest

from ppma.common.files import claim_folder
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
