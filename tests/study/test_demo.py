"""The demo in its smallest form: stopped, run again, left alone when done; what it writes; what it refuses. The claim itself is slow."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from damaged_clips import CASES

from ppma.cli import main as ppma
from ppma.common.statistics import paired_bootstrap, top_k_correct
from ppma.config.command import DONE, RUN_AGAIN, WRONG_INPUT
from ppma.config.errors import DiskFullError
from ppma.study import demo
from ppma.study.demo import DemoConfig, run_config
from ppma.study.demo_report import ARMS, find
from ppma.synthetic import CLASSES
from ppma.train import Stopped, train
from ppma.training.distributed import Stop
from ppma.transfer.features import PLAIN_VIEWS

SMALL = [
    *[
        "--learned",
        "wave",
        "squat",
        "--new",
        "clap",
        "bow",
        "--learned-clips",
        "4",
        "--probe-clips",
        "4",
        "--test-clips",
        "3",
    ],
    *["--scenes-epochs", "1", "--actions-epochs", "1", "--workers", "1", "--device", "cpu"],
]


def run(out, *more):
    return ppma(["demo", "--out", str(out), *SMALL, *map(str, more)])


def written(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".mp4", ".safetensors", ".npz")
    }


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A demo that was asked to stop in stage 2 and then run again; what the folder held in between."""
    out, patch = tmp_path_factory.mktemp("demo") / "demo", pytest.MonkeyPatch()

    def stopped(config):
        if config.run_dir.name == "scratch":
            raise Stopped(Stop.SAVE)
        return train(config)

    patch.setattr(demo, "train", stopped)
    assert run(out) == RUN_AGAIN
    patch.undo()
    before = written(out)
    assert run(out) == DONE
    return out, before


def test_a_second_run_goes_on_and_keeps_what_is_there(once):
    out, before = once
    after = written(out)
    assert any("seed0/actions" in name for name in before) and not any("seed0/scratch/" in name for name in before)
    assert before.items() <= after.items() and any("seed0/scratch/" in name for name in after)


def test_a_finished_demo_is_not_done_again(once, monkeypatch, capsys):
    out, _ = once
    before = written(out)

    def never(config):
        raise AssertionError(f"{config.run_dir} was trained again")

    monkeypatch.setattr(demo, "train", never)
    assert run(out) == DONE and written(out) == before
    text = capsys.readouterr().out
    assert "What was shown" in text and "nothing was shown about real ones" in " ".join(text.split())


def test_table_and_figures(once):
    out, _ = once
    lines = (out / "report/table.md").read_text().splitlines()
    assert len(lines) == 3 + len(ARMS) and "| chance, 2 actions | 50.0 |" in lines[2] and "full method" in lines[-1]
    facts = json.loads((out / "report/findings.json").read_text())
    assert facts["clips"] == 6 and facts["classes"] == ["clap", "bow"]
    for row in facts["rows"]:
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
    assert [row["behind"] is None for row in facts["rows"]] == [False, False, False, True]
    for name in ("accuracy", "confusion", "clips", "reconstructions"):
        assert (out / f"report/{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert list((out / "report").glob("events.out.tfevents.*"))


def test_all_that_is_drawn_is_synthetic_and_the_splits_are_apart(once):
    out, _ = once
    tables = sorted((out / "clips").rglob("*.csv"))
    assert [path.name for path in tables] == ["train.csv", "train_empty.csv", "train.csv", "test.csv"]
    domains = {row["domain"] for path in tables for row in csv.DictReader(path.open())}
    assert domains == {"synthetic"}
    config = DemoConfig(out=out)
    assert not set(config.learned) & set(config.new) and len(config.learned) == 20 and len(config.new) == 10
    assert set(config.learned) | set(config.new) == set(CLASSES) and len(config.new) * config.test_clips >= 300


def test_other_settings_in_the_same_folder_are_refused(once, capsys):
    out, _ = once
    assert run(out, "--actions-epochs", 2) == WRONG_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "was started with other settings (optim.epochs: 1 -> 2)" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0"], "--seeds is 0; it must be 1 to 20"),
        (["--videos", "/nowhere"], "--videos /nowhere: no such folder"),
        (["--new", "wave", "bow"], "--new: wave would be learned in stage 2 already"),
        (["--learned", "juggle", "walk"], "there is no 'juggle'; classes are arm_circles,"),
        (["--test-clips", "0"], "--test-clips is 0; it must be at least 1"),
        (["--new", "bow"], "need two actions each"),
    ],
)
def test_wrong_input_is_one_line(flags, message, tmp_path, capsys):
    assert run(tmp_path / "demo", *flags) == WRONG_INPUT
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    "error", [DiskFullError("clips: No space left on device"), OSError(28, "No space left on device")]
)
def test_a_full_disk_asks_to_be_run_again(error, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(demo, "generate", full)
    assert run(tmp_path / "demo") == RUN_AGAIN
    said = capsys.readouterr().err
    assert "No space left on device; make room; what is finished is kept" in said and "Traceback" not in said


def test_ones_own_clips_take_the_place_of_the_scenes(once, clip_tree, tmp_path):
    """Indexed as human-removed because the user says so; their class folders are the labels of stage 2. A clip whose damage shows only
    when all of it is decoded is left out."""
    videos = shutil.copytree(clip_tree, tmp_path / "videos")
    damaged = next(path for path in videos.iterdir() if path.is_dir()) / "concealed.mp4"
    damaged.write_bytes(CASES["concealed_corruption.mp4"]())
    out, _ = once
    (tmp_path / "data.toml").write_text(re.sub(r'"(clips/|\w+\.beton)', rf'"{out}/\1', (out / "data.toml").read_text()))
    config = replace(DemoConfig(out=tmp_path), videos=videos)
    assert not demo._indexed(config)
    demo.index_videos(config)
    assert demo._indexed(config)
    assert damaged.name in (tmp_path / "real_as_found.csv").read_text()
    assert damaged.name not in (tmp_path / "real.csv").read_text()
    assert {row["domain"] for row in csv.DictReader((tmp_path / "real.csv").open())} == {"human-removed"}
    assert run_config(config, 0, "scenes", "scenes", None).sources == ("real",)
    assert run_config(config, 0, "actions", "actions", "scenes").sources == ("actions", "real")


def test_the_table_of_the_readme_is_the_one_that_the_demo_wrote():
    root = Path(__file__).resolve().parents[2]
    table, findings = (root / "docs/demo" / name for name in ("table.md", "findings.json"))
    assert table.read_text() in (root / "README.md").read_text()
    for row in json.loads(findings.read_text())["rows"]:
        assert f"| {100 * row['accuracy']['value']:.1f} (" in table.read_text()


def test_dry_run_lists_the_steps_and_writes_nothing(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert run(tmp_path / "demo", "--dry-run", "--seeds", 2) == DONE
    assert "stage 2 from scratch, to compare with, seed 1" in caplog.text and "minutes on two cores" in caplog.text
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_claim(tmp_path):
    """The demo as it stands: better than random weights and than stage 1 only, and told by motion, each with an interval above zero."""
    out = tmp_path / "demo"
    subprocess.run([sys.executable, "-m", "ppma", "demo", "--out", str(out)], check=True)
    findings = find(out, 1, demo.NEW)
    assert findings.clips >= 300
    behind = {row.arm.init: row.behind for row in findings.rows}
    assert behind[None].low > 0 and behind["scenes"].low > 0
    assert still_accuracy(out, tmp_path / "still").low > 0


def still_accuracy(out: Path, folder: Path):
    """How much better the probe of the full method is on clips than on single frames, each shown as a clip that stands still."""
    moving = run_config(DemoConfig(out=out), 0, "probe", ARMS[-1].run, ARMS[-1].init)
    still = replace(moving, run_dir=folder, resume=False, loader=replace(moving.loader, window_seconds=0.05))
    assert PLAIN_VIEWS.windows == 1
    train(still)
    right = []
    for run_dir in (moving.run_dir, folder):
        with np.load(run_dir / "scores.npz") as found:
            right.append(top_k_correct(found["scores"], found["label"], 1))
    return paired_bootstrap(*right)
