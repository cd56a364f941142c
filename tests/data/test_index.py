"""`ppma index` of a tree or a list: what it writes and reports, and wrong input in one line."""

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from damaged_clips import CASES, encode

from ppma.config.command import INTERRUPTED, RUN_AGAIN, WRONG_INPUT, run
from ppma.data.index import main
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPMA_DATA", raising=False)


def index(*argv: str | Path) -> int:
    return run(main, [str(word) for word in argv], prog="ppma index")


def refused(file: str) -> dict[str, str]:
    with Path(file).open(newline="") as lines:
        return {row["path"]: row["reason"] for row in csv.DictReader(lines)}


def test_a_tree(clip_tree, capsys):
    flags = ["--out", "m.csv", "--name", "demo", "--split", "val", "--domain", "synthetic", "--licence"]
    assert index(clip_tree, *flags, "CC0, mine") == 0
    manifest = catalog.find().manifest("demo", "val")
    assert len(manifest) == 12 and manifest.n_classes == 4 and manifest.root == clip_tree
    assert manifest.class_names == dict(enumerate(sorted(path.name for path in clip_tree.iterdir())))
    clip = manifest.clip(0)
    assert (clip.frames, clip.fps, clip.duration_seconds, clip.key_frame_spacing) == (30, 10.0, 3.0, 12)
    assert (clip.width, clip.height, clip.source) == (64, 48, "demo")
    assert (clip.domain, clip.licence) == ("synthetic", "CC0, mine")
    assert manifest.file(0).is_file() and refused("m.rejected.csv") == {}
    output = capsys.readouterr()
    assert "m.csv: 12 clips of 4 classes" in output.out and "entered as demo.val in " in output.out and not output.err


def test_a_list_with_good_and_bad_rows(tmp_path, capsys):
    (tmp_path / "videos/tai chi [1]").mkdir(parents=True)
    (tmp_path / "videos/tai chi [1]/a, b.mp4").write_bytes(encode("mp4", range(5)))
    (tmp_path / "videos/tai chi [1]/empty.mp4").write_bytes(b"")
    Path("list.txt").write_text("tai chi [1]/empty;3\ntai chi [1]/none;3\ntai chi [1]/a, b;3")
    assert index("list.txt", "--root", "videos", "--out", "m.csv") == 0
    manifest = Manifest.read("m.csv", root="videos")
    assert [(c.path, c.label, c.class_name, c.frames, c.source) for c in [manifest.clip(0)]] == [
        ("tai chi [1]/a, b.mp4", 3, "tai chi [1]", 5, "list")
    ]
    assert next(iter(refused("m.rejected.csv").items())) == ("tai chi [1]/empty.mp4", "is an empty file")
    assert refused("m.rejected.csv")["tai chi [1]/none"].startswith("there is no such file")
    assert "m.rejected.csv: 2 refused\n  tai chi [1]/empty.mp4: is an empty file\n" in capsys.readouterr().out
    assert not Path("data.toml").exists()


def test_odd_files_are_counted(tmp_path, capsys):
    names = ["rotated_90.mp4", "starts_without_key_frame.ts", "truncated_after_index.mp4", "concealed_corruption.mp4"]
    (tmp_path / "tree/a").mkdir(parents=True)
    for name in names:
        (tmp_path / "tree/a" / name).write_bytes(CASES[name]())
    assert index("tree", "--out", "quick.csv") == 0
    assert "  1 rotated\n" in capsys.readouterr().out
    assert list(refused("quick.rejected.csv")) == ["a/truncated_after_index.mp4"]
    assert index("tree", "--out", "full.csv", "--check", "full") == 0
    assert sorted(refused("full.rejected.csv")) == ["a/concealed_corruption.mp4", "a/truncated_after_index.mp4"]


def test_train_and_val_agree_on_labels(clip_tree, tmp_path):
    names = sorted((path.name for path in clip_tree.iterdir()), reverse=True)
    Path("classes.txt").write_text("\n".join(names))
    assert index(clip_tree, "--out", "m.csv", "--classes", "classes.txt") == 0
    assert Manifest.read("m.csv").class_names == dict(enumerate(names))


def test_dry_run_opens_and_writes_nothing(clip_tree, capsys):
    assert index(clip_tree, "--out", "m.csv", "--name", "demo", "--dry-run") == 0
    assert "12 clips of 4 classes" in capsys.readouterr().out
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("argv", "noun"),
    [
        ("none --out m.csv", "none"),
        ("tree --out no/m.csv", "no folder no"),
        ("tree --out m.parquet", ".csv"),
        ("tree --out m.csv --root none", "none"),
        ("empty --out m.csv", "class folder"),
        ("list.txt --out m.csv", "--root"),
        ("list.txt --out m.csv --root .", "line 1: label 'x'"),
        ("leaves.txt --out m.csv --root tree", "leaves the root"),
        ("tree --out m.csv --name a.b", "--name"),
        ("tree --out m.csv --data d.toml", "--data"),
        ("tree --out m.csv --workers 0", "--workers"),
        ("tree --out m.csv --classes none.txt", "none.txt"),
        ("tree --out m.csv", "none of 1 clips can be used (1 of them: is an empty file); see m.rejected.csv"),
    ],
)
def test_a_wrong_input_costs_one_line(argv, noun, capsys):
    for folder in ("tree/a", "empty"):
        Path(folder).mkdir(parents=True)
    Path("tree/a/clip.mp4").touch()
    Path("list.txt").write_text("tree/a/clip.mp4;x\n")
    Path("leaves.txt").write_text("../list.txt;0\n")
    assert index(*argv.split()) == WRONG_INPUT
    error = capsys.readouterr().err
    assert noun in error and error.count("\n") == 1
    assert not Path("m.csv").exists() and not Path("data.toml").exists()


def test_an_interrupted_run_changes_no_file(clip_tree, tmp_path):
    """Press Ctrl-C, which reaches the whole process group, while a file hangs."""
    hanging = tmp_path / "tree" / "a" / "clip"
    hanging.mkdir(parents=True)
    os.mkfifo(hanging / "000001.jpg")
    Path("m.csv").write_text("before")
    code = "import sys; from ppma.config.command import run; from ppma.data.index import main; sys.exit(run(main, sys.argv[1:], prog='p'))"
    command = [sys.executable, "-c", code, "tree", "--out", "m.csv", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (workers := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED and error == "p: interrupted\n"
    assert workers and not psutil.wait_procs(workers, timeout=10)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "tree"]
    assert Path("m.csv").read_text() == "before"


def test_a_full_disk_is_one_line(clip_tree, monkeypatch, capsys):
    def fail(path, clips):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Manifest, "write", staticmethod(fail))
    assert index(clip_tree, "--out", "m.csv", "--name", "demo") == RUN_AGAIN
    error = capsys.readouterr().err
    assert "m.csv" in error and error.count("\n") == 1
    assert not Path("m.csv").exists() and not Path("data.toml").exists()
