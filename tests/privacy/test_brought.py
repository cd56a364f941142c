"""Models that users bring: by path or by name, checked by hash, and clear words for what is not there."""

import hashlib
import zipfile

import pytest

from ppma.config.errors import InputError
from ppma.privacy.detectors.user_models import USER_MODELS, choose


def script(path, content=b"1"):
    """A file that looks like TorchScript from outside."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/version", content)
    return path


def test_a_file_of_its_name_in_the_folder_is_taken(tmp_path):
    path = script(tmp_path / "e2fgvi.pt")
    (model,) = choose(["e2fgvi", "e2fgvi"], [], tmp_path)
    assert (model.name, model.path) == ("e2fgvi", path)
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_path_comes_first(tmp_path):
    script(tmp_path / "e2fgvi.pt")
    own = script(tmp_path / "mine = 1.pt")
    assert choose(["e2fgvi"], [f"e2fgvi={own}"], tmp_path)[0].path == own


def test_nothing_is_asked_for_what_is_not_used(tmp_path):
    assert choose([], [], tmp_path) == ()


def test_a_known_hash_is_kept_to_unless_another_is_told(tmp_path):
    path = script(tmp_path / "big-lama.pt")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=rf"not 344c77bbcb15.*#{sha256} if it is a file of your own"):
        choose(["lama"], [], tmp_path)
    assert choose(["lama"], [f"lama={path}#{sha256.upper()}"], tmp_path)[0].sha256 == sha256
    with pytest.raises(InputError, match="not 0123"):
        choose(["lama"], [f"lama={path}#0123"], tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (),
            r"e2fgvi needs E2FGVI as TorchScript.*which ppma does not fetch: .*e2fgvi.pt is missing; put it into that",
        ),
        (("e2fgvi=nowhere.pt",), "nowhere.pt is no file"),
        (("e2fgvi",), "write NAME=FILE or NAME=FILE#SHA256; names are maskrcnn, lama"),
        (("e3fgvi=x.pt",), "names are maskrcnn"),
        (("lama=x.pt",), "no chosen tool uses it; in use are e2fgvi"),
    ],
)
def test_what_does_not_fit_is_told(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        choose(["e2fgvi"], given, tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "propainter.pt").write_bytes(b"a checkpoint")
    with pytest.raises(InputError, match="is no TorchScript file; propainter is ProPainter as TorchScript"):
        choose(["propainter"], [], tmp_path)


def test_hashes_are_hexadecimal():
    assert all(int(known.sha256 or "0", 16) >= 0 for known in USER_MODELS.values())
