"""`ppma synthesize`: one line and the right exit code for what cannot be done."""

import pytest

from ppma.config.command import DONE, RUN_AGAIN, WRONG_INPUT, run
from ppma.loaders.sources.manifest import Manifest
from ppma.synthetic import command, production

SMALL = ["--classes", "wave", "bow", "--clips", "1", "--size", "32", "--seconds", "1", "--fps", "8", "--workers", "1"]


def synthesize(*arguments):
    return run(command.main, [str(a) for a in arguments], prog="ppma synthesize")


def test_it_draws(tmp_path, capsys):
    assert synthesize(*SMALL, "--out", tmp_path, "--people", 2) == DONE
    assert "2 clips" in capsys.readouterr().out
    assert len(Manifest.read(tmp_path / "train.csv")) == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--classes", "wave", "fly"], "there is no 'fly'; classes are arm_circles, backflip"),
        (["--classes", "wave", "wave"], "twice"),
        (["--size", "33"], "must be even"),
        (["--size", "30"], "32 to 1024"),
        (["--size", "2000"], "32 to 1024"),
        (["--clips", "0"], "1 to 100000"),
        (["--clips", "many"], "--clips"),
        (["--people", "0"], "1 to 6"),
        (["--people", "7"], "1 to 6"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--fps", "1000"], "4 to 60"),
        (["--seed", "-1"], "--seed"),
        (["--split", "validation"], "train"),
        (["--workers", "0"], "--workers"),
        (["--backgrounds", "nowhere"], "nowhere"),
        (["--bvh", "nowhere"], "no such folder"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(tmp_path, capsys, flags, told):
    assert synthesize("--out", tmp_path / "clips", *flags) == WRONG_INPUT
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and error.startswith("ppma synthesize: ")
    assert not (tmp_path / "clips").exists(), "nothing is made before all is checked"


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert synthesize(*SMALL, "--out", tmp_path / "file" / "clips") == WRONG_INPUT
    assert "cannot be made" in capsys.readouterr().err


def test_a_full_disk_is_to_be_run_again(tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(production, "write_bytes", full)
    assert synthesize(*SMALL, "--out", tmp_path) == RUN_AGAIN
    error = capsys.readouterr().err
    assert "No space left" in error and "run the same command again" in error and error.count("\n") == 1


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert synthesize(*SMALL, "--out", tmp_path / "clips", "--dry-run") == DONE
    assert "2 clips of 2 classes, 8 frames of 32 x 32 pixels" in capsys.readouterr().out
    assert not (tmp_path / "clips").exists()
