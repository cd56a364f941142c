"""`ppma index --dataset`: every data set becomes manifests, missing files are counted, a new data set is one table."""

import csv
import os
from pathlib import Path

import pytest
from dataset_trees import GONE, TREES

from ppma.config.command import WRONG_INPUT, run
from ppma.data import dataset, probing
from ppma.data.dataset import find
from ppma.data.index import main
from ppma.loaders.sources import catalog

NEW_SET = r"""
title = "Kitchen: what people do in ours"
classes = 2
published = { train = 3, val = 2 }
splits = "the folders train and test"
layout = ["train/*/*.mp4", "test/*/*.mp4"]
files = "train/stir/0001.mp4"
license = "ours"
terms = ""
home = "https://kitchen.example"
citation = "none"

[read]
path = '(?P<split>train|test)/(?P<class>[^/]+)/[^/]+'
"""


pytestmark = pytest.mark.usefixtures("probe_here")


@pytest.fixture(scope="session")
def clip(tmp_path_factory, write_clip) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=8, width=96, height=64)


def index(*argv: str | Path) -> int:
    return run(main, [*map(str, argv), "--workers", "1"], prog="ppma index")


@pytest.mark.parametrize("name", TREES)
def test_every_data_set_becomes_manifests(name, clip, capsys):
    TREES[name](Path("root"), clip)
    assert index("--dataset", name, "--root", "root") == 0
    known = find(name)
    source, output = known.source or name, capsys.readouterr().out
    splits = {(entry.name, entry.split) for entry in catalog.find().entries.values()}
    numbers = ("", "2", "3") if name in ("ucf101", "hmdb51") else ("", "2") if name == "uav-human" else ("",)
    assert splits == {(f"{source}-{n}" if n else source, part) for n in numbers for part in ("train", "val")}
    manifest = catalog.find().manifest(source, "train")
    first = manifest.clip(0)
    assert manifest.file(0).exists() and first.domain == known.domain and first.licence == known.license
    assert first.class_name and first.codec == ("jpeg" if name == "no-human-kinetics150" else "h264")
    assert f"entered as {source}.train" in output
    for count in known.published.values():
        assert f"{count} were published" in output, "a tree this small has other counts"
    with Path(f"{source}_train.rejected.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == GONE.get(name, 0)


def test_a_new_data_set_is_one_table(tmp_path, monkeypatch, clip, capsys):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/kitchen.toml").write_text(NEW_SET)
    monkeypatch.setattr(dataset, "TABLES", tmp_path / "tables")
    for name in ("train/stir/1.mp4", "train/stir/2.mp4", "train/pour/1.mp4", "test/stir/3.mp4", "test/pour/2.mp4"):
        (Path("root") / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(clip, Path("root") / name)
    assert index("--dataset", "kitchen", "--root", "root") == 0
    assert len(catalog.find().manifest("kitchen", "val")) == 2
    assert "kitchen.train: 3 listed, as published" in capsys.readouterr().out
    assert index("--dataset", "kitchem", "--root", "root") == WRONG_INPUT
    assert "kitchen" in capsys.readouterr().err


def test_missing_files_are_counted_listed_and_a_choice(clip, capsys):
    TREES["ucf101"](Path("root"), clip)
    gone = "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi"
    (Path("root") / gone).unlink()
    argv = ["--dataset", "ucf101", "--root", "root", "--out", "out", "--name", "ucf"]
    Path("out").mkdir()
    assert index(*argv) == WRONG_INPUT
    error = capsys.readouterr().err
    assert "1 of 4 in ucf.train, 1 of 2 in ucf-2.val, 1 of 4 in ucf-3.train are not below root" in error
    assert gone in error and "--missing skip" in error and error.count("\n") == 1
    assert [path.name for path in Path("out").iterdir()] == ["ucf.missing.csv"] and not Path("data.toml").exists()
    with Path("out/ucf.missing.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["split"] for row in rows] == ["ucf.train", "ucf-2.val", "ucf-3.train"] and rows[0]["path"] == gone
    assert index(*argv, "--missing", "skip") == 0
    assert len(catalog.find().manifest("ucf", "train")) == 3 and not Path("out/ucf.missing.csv").exists()
    assert "4 listed, 1 missing (25.0%)" in capsys.readouterr().out


def test_labels_follow_the_list_that_classes_names(clip, capsys):
    TREES["synapt150"](Path("root"), clip)
    numbered = {"smoking": 0, "reading": 1, "clapping": 2, "a27": 3}
    lines = [f"{name}/PRE_{i}.mp4;{label}" for name, label in numbered.items() for i in range(2)]
    Path("list.csv").write_text("\n".join(lines))
    flags = ["--dataset", "synapt150", "--root", "root", "--classes", "list.csv"]
    assert index(*flags) == 0
    for split in ("train", "val"):
        manifest = catalog.find().manifest("synapt", split)
        assert [numbered[name] for name in manifest.texts("class_name")] == manifest.labels.tolist(), split
    for wrong, word in (
        ("", "is empty"),
        (f"{lines[0]}\na/1;0\n", "another class"),
        (f"{lines[0]}\na/1;2\n", "no clip"),
        ("a\nb\n", "lacks 4"),
    ):
        Path("list.csv").write_text(wrong)
        assert index(*flags) == WRONG_INPUT and word in capsys.readouterr().err


def test_clips_that_vanish_from_the_web_are_skipped(clip, capsys):
    TREES["kinetics150"](Path("root"), clip)
    assert index("--dataset", "kinetics150", "--root", "root", "--missing", "stop") == WRONG_INPUT
    assert index("--dataset", "kinetics150", "--root", "root") == 0
    assert "kinetics.train: 2 listed, 1 missing (50.0%)" in capsys.readouterr().out


def test_linked_classes_are_followed_on_demand(clip, capsys):
    TREES["hmdb51"](Path("root"), clip)
    Path("elsewhere").mkdir()
    for name in ("brush_hair", "climb", "wave"):
        Path("root", name).rename(Path("elsewhere", name))
        Path("root", name).symlink_to(Path("elsewhere", name).absolute())
    assert index("--dataset", "hmdb51", "--root", "root") == WRONG_INPUT
    assert "--follow-links" in capsys.readouterr().err
    assert index("--dataset", "hmdb51", "--root", "root", "--follow-links") == 0
    manifest = catalog.find().manifest("hmdb51", "train")
    assert len(manifest) == 3 and manifest.file(0).is_file()


def test_a_split_without_a_usable_clip_stops_before_another_is_written(clip, capsys):
    TREES["ucf101"](Path("root"), clip)
    for path in Path("root/UCF-101").glob("*/*_g01_*"):
        path.unlink()  # a link to the one clip
        path.touch()
    assert index("--dataset", "ucf101", "--root", "root") == WRONG_INPUT
    assert "ucf101_val" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["root", "ucf101_val.rejected.csv"]


def test_videos_that_were_encoded_again_are_counted(clip, capsys):
    TREES["ucf101"](Path("root"), clip)
    for path in Path("root/UCF-101").glob("*/*"):
        path.rename(path.with_suffix(".mp4"))
    assert index("--dataset", "ucf101", "--root", "root") == 0
    assert "6 clips with another suffix than in their list" in capsys.readouterr().out, (
        "each counts once for three splits"
    )


def test_a_list_of_the_owners_is_never_overwritten(clip, monkeypatch, capsys):
    """`kinetics_train.csv` may be their list, and is the name of our manifest."""
    TREES["kinetics150"](Path("root"), clip)
    monkeypatch.chdir("root")
    own = Path("annotations/train.csv").rename("kinetics_train.csv").read_text()
    assert index("--dataset", "kinetics150", "--root", ".") == WRONG_INPUT
    assert "would be overwritten" in capsys.readouterr().err
    assert Path("kinetics_train.csv").read_text() == own and not Path("data.toml").exists()


def test_the_frames_of_one_series(clip, capsys):
    TREES["no-human-kinetics150"](Path("root"), clip)
    for picture in list(Path("root").glob("*/inp/*/*/*.jpg")):
        picture.with_name(f"mask_{picture.name}").write_bytes(picture.read_bytes())
    assert index("--dataset", "no-human-kinetics150", "--root", "root") == WRONG_INPUT
    assert "--frames-prefix" in capsys.readouterr().err
    argv = ["--dataset", "no-human-kinetics150", "--root", "root", "--frames-prefix", ""]
    assert index(*argv) == 0
    manifest = catalog.find().manifest("no-human-kinetics", "val")
    assert manifest.file(0).name == "*" and set(manifest.frames) == {3}
    assert index(*argv, "--resize", "32") == 0
    manifest = catalog.find().manifest("no-human-kinetics", "val")
    assert sorted(path.name for path in manifest.file(0).iterdir()) == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert set(manifest.heights) == {32}


def test_a_dry_run_writes_nothing(clip, capsys):
    TREES["hmdb51"](Path("root"), clip)
    assert index("--dataset", "hmdb51", "--root", "root", "--dry-run") == 0
    assert "3 listed, 3570 were published" in capsys.readouterr().out
    assert [path.name for path in Path().iterdir()] == ["root"]


def test_large_clips_are_encoded_once(clip, monkeypatch):
    """Two splits of UAV-Human share each clip; a second run keeps finished clips."""
    TREES["uav-human"](Path("root"), clip)
    argv = ["--dataset", "uav-human", "--root", "root", "--resize", "32"]
    assert index(*argv) == 0
    manifest = catalog.find().manifest("uav-human-2", "val")
    assert manifest.root == Path("root-short32").absolute() and set(manifest.heights) == {32}
    assert manifest.file(0).is_file() and manifest.clip(0).path.endswith(".avi.mp4")
    before = {path: path.stat().st_mtime_ns for path in Path("root-short32").rglob("*.mp4")}
    text = Path("uav-human_train.csv").read_text()
    assert len(before) == 4 and index(*argv) == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("root-short32").rglob("*.mp4")}
    assert Path("uav-human_train.csv").read_text() == text
    # the parts of an array make the same
    whole = {path: path.read_bytes() for path in before}
    manifests = {path: path.read_text() for path in Path().glob("*.csv")}
    for path in (*before, *manifests):
        path.unlink()
    monkeypatch.setattr(probing, "CHUNK_FILES", 1)
    assert index(*argv, "--part", "1/3") == 0 and not list(Path().glob("*.csv"))
    assert {path: path.read_bytes() for path in Path("root-short32").rglob("*.mp4")} == whole
    assert index(*argv, "--merge", "3") == 0
    assert {path: path.read_text() for path in Path().glob("*.csv")} == manifests
    assert not list(Path().glob(".uav*"))


@pytest.mark.parametrize(
    ("argv", "noun"),
    [
        (["--dataset", "ucf102", "--root", "root"], "ucf101"),
        (["--dataset", "ucf101"], "--root is missing"),
        (["--dataset", "ucf101", "--root", "none"], "none"),
        (["--dataset", "ucf101", "--root", "root"], "8 of 8"),
        (["root", "--dataset", "ucf101", "--root", "root"], "SOURCE"),
        (["--dataset", "ucf101", "--root", "root", "--out", "m.csv"], "m.csv"),
        (["--dataset", "ucf101", "--root", "root", "--resize", "33"], "--resize"),
        (["--dataset", "ucf101", "--root", "root", "--name", "a.b"], "--name"),
        (["root", "--out", "m.csv", "--resize", "32"], "--dataset"),
        (["--out", "m.csv"], "SOURCE"),
        (["--dataset", "ikea-fa", "--root", "odd"], "no clip"),
    ],
)
def test_a_wrong_input_costs_one_line(argv, noun, capsys):
    Path("root").mkdir()
    Path("odd/videos/spin_in").mkdir(parents=True)
    Path("odd/videos/spin_in/GOPR0022.MP4").touch()
    before = sorted(Path().rglob("*"))
    assert index(*argv) == WRONG_INPUT
    error = capsys.readouterr().err
    assert noun in error and error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
