"""`ppma index` of a tree or a list: what it writes and reports, and wrong input in one line."""

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import psutil
import pytest
from damaged_clips import CASES, encode
from waiting import has_ended, wait_until

from ppma.common import shares
from ppma.common.shares import Share
from ppma.config.command import INTERRUPTED, RUN_AGAIN, WRONG_INPUT, run
from ppma.data import index as index_command
from ppma.data import probing
from ppma.data.index import main
from ppma.loaders.decode.fetch import read_window
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import HEADER, Clip, Manifest
from ppma.loaders.sources.probe import probe, probe_each

pytestmark = pytest.mark.usefixtures("probe_here")


@pytest.fixture(scope="module")
def clip(tmp_path_factory, write_clip) -> Path:
    """A video of 30 frames of 64 x 48 at 10 a second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def index(*argv: str | Path) -> int:
    return run(main, [str(word) for word in argv], prog="ppma index")


def refused(file: str) -> dict[str, str]:
    with Path(file).open(newline="") as lines:
        return {row["path"]: row["reason"] for row in csv.DictReader(lines)}


def test_a_tree(clip_tree, monkeypatch, capsys):
    monkeypatch.setattr("ppma.data.index.probe_each", probe_each)  # in other processes, as it is
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


def test_leftovers_of_a_killed_run_are_removed(clip_tree, tmp_path):
    for name in (".made.rejected.ab_12xyz.tmp.csv", ".made.ab_12xyz.tmp.csv", ".other.ab_12xyz.tmp.csv"):
        (tmp_path / name).touch()
    assert index(clip_tree, "--out", tmp_path / "made.csv") == 0
    assert [path.name for path in tmp_path.glob(".*")] == [".other.ab_12xyz.tmp.csv"]


def test_odd_files_are_counted(tmp_path, capsys):
    names = ["rotated_90.mp4", "starts_without_key_frame.ts", "truncated_after_index.mp4", "concealed_corruption.mp4"]
    (tmp_path / "tree/a").mkdir(parents=True)
    for name in names:
        (tmp_path / "tree/a" / name).write_bytes(CASES[name]())
    assert index("tree", "--out", "quick.csv") == 0
    assert "  1 rotated: a/rotated_90.mp4\n" in capsys.readouterr().out
    assert list(refused("quick.rejected.csv")) == ["a/truncated_after_index.mp4"]
    assert index("tree", "--out", "full.csv", "--check", "full") == 0
    assert sorted(refused("full.rejected.csv")) == ["a/concealed_corruption.mp4", "a/truncated_after_index.mp4"]


def test_a_split_of_a_tree_has_the_labels_of_all_splits(tmp_path, clip, capsys):
    for path in ("train/walk/1.mp4", "val/run/1.mp4", "val/walk/2.mp4"):
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(clip, tmp_path / "tree" / path)
    assert index("tree", "--out", "train.csv", "--name", "acts") == 0
    assert "splits train, val: train is read" in capsys.readouterr().out
    assert index("tree", "--out", "val.csv", "--name", "acts", "--split", "val") == 0
    train, val = (catalog.find().manifest("acts", split) for split in ("train", "val"))
    assert train.class_names == {1: "walk"} and val.class_names == {0: "run", 1: "walk"}
    assert [val.clip(i).path for i in range(2)] == ["val/run/1.mp4", "val/walk/2.mp4"] and val.file(0).is_file()
    assert index("tree", "--out", "m.csv", "--split", "test") == WRONG_INPUT
    assert "train, val" in capsys.readouterr().err


def test_a_manifest_indexed_again_keeps_what_its_owner_stated(tmp_path, clip, capsys):
    """Labels with gaps, class names, windows, domain, license and source; frames and sizes are probed anew, verdicts dropped."""
    for name in ("1.mp4", "2.mp4"):
        (tmp_path / "clips/a").mkdir(parents=True, exist_ok=True)
        os.link(clip, tmp_path / "clips/a" / name)
    stated = Clip(
        path="a/1.mp4", label=7, class_name="walk, slowly", source="mine", start_seconds=0.2, end_seconds=0.9, domain="synthetic",
        licence="CC0, mine", audit="passed", frames=99, fps=1.0, width=1, height=1, codec="vp9", key_frame_spacing=1, duration_seconds=9.0,
    )  # fmt: skip
    other, late = replace(stated, path="a/2.avi", start_seconds=None, audit=""), replace(stated, start_seconds=8.0)
    Manifest.write("m.csv", [stated, other, replace(late, end_seconds=None)])
    assert index("m.csv", "--root", "clips", "--out", "again.csv") == 0
    again = Manifest.read("again.csv", root="clips")
    probed = {"frames": 30, "fps": 10.0, "width": 64, "height": 48, "codec": "h264"}
    probed |= {"key_frame_spacing": 12, "duration_seconds": 3.0}
    assert [again.clip(i) for i in range(len(again))] == [
        replace(stated, **probed, audit=""),
        replace(stated, **probed, audit="", path="a/2.mp4", start_seconds=None),
    ]
    assert refused("again.rejected.csv") == {"a/1.mp4": "its window starts at 8.0 s, and the file ends at 3.0 s"}
    output = capsys.readouterr().out
    assert "1 with the verdict of an audit" in output and "1 with another suffix than in its list: a/2.mp4" in output
    Path("classes.txt").write_text("run\nwalk, slowly\n")
    flags = ["--name", "other", "--domain", "real", "--licence", "none", "--classes", "classes.txt"]
    assert index("m.csv", "--root", "clips", "--out", "new.csv", *flags) == 0
    new = Manifest.read("new.csv").clip(0)
    assert (new.label, new.source, new.domain, new.licence) == (1, "other", "real", "none"), "labels follow the names"


@pytest.mark.parametrize("source", ["list.csv", "m.csv", "tree", "link.csv"])
def test_a_file_of_the_user_is_never_overwritten(source, tmp_path, clip_tree, capsys):
    (tmp_path / "tree").symlink_to(clip_tree)
    clips = [str(path.relative_to(clip_tree)) for path in sorted(clip_tree.rglob("*.mp4"))]
    Path("list.csv").write_text("".join(f"{path};0\n" for path in clips))
    Path("link.csv").symlink_to("list.csv")
    assert index("tree", "--out", "m.csv") == 0
    Path("other.rejected.csv").write_text("mine")
    before = {path: path.read_bytes() for path in Path().glob("*.csv")}
    for out in ("list.csv", "link.csv", "other.csv", *(["m.csv"] if source == "m.csv" else [])):
        assert index(source, "--root", "tree", "--out", out) == WRONG_INPUT
        assert "would be overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().glob("*.csv")} == before
    assert index(source, "--root", "tree", "--out", "new.csv") == 0
    assert index(source, "--root", "tree", "--out", "new.csv") == 0, "its own files it may replace"


def test_frames_beside_other_pictures(tmp_path, clip, capsys):
    for name in ("one", "two"):
        (tmp_path / "tree/a" / name).mkdir(parents=True)
        series = ("img", "flow_x")[: 1 + (name == "two")]
        for file in ["folder.jpg", *(f"{prefix}_{i}.jpg" for prefix in series for i in (1, 2, 4))]:
            cv2.imwrite(f"tree/a/{name}/{file}", np.full((48, 64, 3), 40, np.uint8))
    os.link(clip, "tree/a/clip.mp4")
    assert index("tree", "--out", "m.csv") == 0
    output = capsys.readouterr().out
    assert "1 without some frame numbers: a/one (3)" in output
    assert "1 with other pictures, which are left out: a/one (folder.jpg)" in output
    reason = refused("m.rejected.csv")["a/two"]
    assert all(word in reason for word in ("img_1.jpg", "flow_x_1.jpg", "--frames-prefix"))
    assert index("tree", "--out", "m.csv", "--frames-prefix", "img_") == 0
    manifest = Manifest.read("m.csv", root="tree")
    assert [manifest.clip(i).path for i in range(3)] == ["a/clip.mp4", "a/one/img_*", "a/two/img_*"]
    assert read_window(manifest.file(2), 0.0, 1.0, 3).shape == (3, 48, 64, 3)
    assert index("m.csv", "--root", "tree", "--out", "again.csv") == 0
    assert Path("again.csv").read_text() == Path("m.csv").read_text()
    assert index("tree", "--out", "n.csv", "--frames-prefix", "a/img_") == WRONG_INPUT


def test_a_list_that_counts_frames_is_compared(tmp_path, clip, capsys):
    Path("list.txt").write_text(f"{clip.name} 31 0\n")
    assert index("list.txt", "--root", clip.parent, "--out", "m.csv") == 0
    assert f"1 with another number of frames than in its list: {clip.name} (30, not 31)" in capsys.readouterr().out


def test_names_that_a_library_takes_for_something_else(tmp_path, clip):
    """FFmpeg takes 12: for a protocol and %03d for a pattern, and a packed clip has a # in its address."""
    names = ["12:30 clip.mp4", "x.beton#3.mp4", "%03d.mp4", "a\u202fPM.mp4", "concat:a|b.mp4"]
    for name in names:
        (tmp_path / "12:30/a").mkdir(parents=True, exist_ok=True)
        os.link(clip, tmp_path / "12:30/a" / name)
    assert index("12:30", "--out", "m.csv") == 0
    manifest = Manifest.read("m.csv", root="12:30")
    assert len(manifest) == len(names)
    for i in range(len(names)):
        assert read_window(manifest.file(i), 0.0, 1.0, 2).shape == (2, 48, 64, 3)
        assert probe(Path(os.path.relpath(manifest.file(i)))).frames == 30


def test_dry_run_opens_and_writes_nothing(clip_tree, capsys):
    assert index(clip_tree, "--out", "m.csv", "--name", "demo", "--dry-run") == 0
    assert "12 clips of 4 classes" in capsys.readouterr().out
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("argv", "noun"),
    [
        ("none --out m.csv", "none"),
        ("/dev/zero --root . --out m.csv", "/dev/zero"),
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


def is_read(fifo: Path) -> bool:
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno != errno.ENXIO  # no process has it open for reading
    return True


def test_an_interrupted_run_changes_no_file(clip_tree, tmp_path):
    """Press Ctrl-C, which reaches the whole process group, while a file hangs."""
    hanging = tmp_path / "tree" / "a" / "clip"
    hanging.mkdir(parents=True)
    os.mkfifo(hanging / "000001.jpg")
    Path("m.csv").write_text(before := ",".join(HEADER) + "\n")
    code = "import sys; from ppma.config.command import run; from ppma.data.index import main; sys.exit(run(main, sys.argv[1:], prog='p'))"
    command = [sys.executable, "-c", code, "tree", "--out", "m.csv", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: is_read(hanging / "000001.jpg"))
    workers = [worker.pid for worker in psutil.Process(process.pid).children()]
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == INTERRUPTED and error == "p: interrupted\n"
    assert workers
    wait_until(lambda: all(map(has_ended, workers)))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["m.csv", "tree"]
    assert Path("m.csv").read_text() == before


@pytest.fixture
def probed(monkeypatch, probe_here, owners_live):
    """The names of probed files, in chunks of three; Ctrl-C is pressed after `most`."""
    probed, probe = SimpleNamespace(files=[], most=99), index_command.probe_each

    def watched(files):
        for key, path in files:
            if len(probed.files) == probed.most:
                raise KeyboardInterrupt
            probed.files.append(path.name)
            yield key, path

    monkeypatch.setattr(probing, "CHUNK_FILES", 3)
    monkeypatch.setattr("ppma.data.index.probe_each", lambda files, **how: probe(watched(files), **how))
    return probed


def broken_tree(clip_tree, folder):
    """Copy the tree, with an empty file that comes second."""
    tree = shutil.copytree(clip_tree, folder / "tree")
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    whole = files[1].read_bytes()
    files[1].write_bytes(b"")
    return tree, files, whole


@pytest.mark.promise("R29")
def test_an_interrupted_run_resumes_with_the_same_bytes(clip_tree, tmp_path, probed):
    tree, files, whole = broken_tree(clip_tree, tmp_path)
    probed.most = 7
    with pytest.raises(KeyboardInterrupt):
        main([str(tree), "--out", "m.csv"])
    files[1].write_bytes(whole)  # repaired in the meantime: its chunk is probed again
    probed.most = 99
    assert index(tree, "--out", "m.csv") == 0 and len(probed.files) == 7 + 12 - 3
    assert index(tree, "--out", "whole.csv") == 0 and Path("m.csv").read_text() == Path("whole.csv").read_text()
    assert not list(Path().glob(".*"))
    probed.most = len(probed.files) + 4
    with pytest.raises(KeyboardInterrupt):
        main([str(tree), "--out", "m.csv"])
    probed.most = 999
    count = len(probed.files)
    assert index(tree, "--out", "m.csv", "--check", "full") == 0 and len(probed.files) == count + 12


def test_parts_write_the_manifest_of_one_run(clip_tree, tmp_path, probed, capsys):
    """Files that another task has begun are left to it; all others are probed by the only part that runs."""
    tree, files, _ = broken_tree(clip_tree, tmp_path)
    assert index(tree, "--out", "whole.csv") == 0
    probed.files.clear()
    flags = [tree, "--out", "m.csv", "--name", "made"]
    assert index(*flags, "--merge", "2") == WRONG_INPUT and not list(tmp_path.glob(".m*"))
    other = Share(tmp_path / f".m.csv{shares.FOLDER}", (0, 2))
    begun = next(next(other.rounds(["00000003"])))
    assert index(*flags, "--part", "1/2") == 0 and len(probed.files) == 9 and not Path("m.csv").exists()
    capsys.readouterr()
    assert index(*flags, "--merge", "2") == WRONG_INPUT and begun in capsys.readouterr().err
    assert index(*flags, "--part", "0/2", "--check", "full") == WRONG_INPUT and "check" in capsys.readouterr().err
    other.finish(begun)  # its task ends without it
    assert index(*flags, "--part", "0/2") == 0 and sorted(probed.files) == sorted(path.name for path in files)
    for _ in range(2):  # a merge that is queued again finds its result
        assert index(*flags, "--merge", "2") == 0 and len(probed.files) == 12, "though a file is refused"
    for name in ("{}.csv", "{}.rejected.csv"):
        made, whole = (Path(name.format(one)).read_text() for one in ("m", "whole"))
        assert made.replace(",made,", ",tree,") == whole
    assert catalog.find(Path("data.toml")).entry("made").manifest == tmp_path / "m.csv"
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".data.toml.lock"]


def test_a_full_disk_is_one_line(clip_tree, monkeypatch, capsys):
    def fail(path, clips):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Manifest, "write", staticmethod(fail))
    assert index(clip_tree, "--out", "m.csv", "--name", "demo") == RUN_AGAIN
    error = capsys.readouterr().err
    assert "m.csv" in error and error.count("\n") == 1
    assert not Path("m.csv").exists() and not Path("data.toml").exists()
