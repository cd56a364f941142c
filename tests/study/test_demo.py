"""The demo in its smallest form: stopped, resumed, left alone when finished; its files; its refusals. The claim itself is slow."""

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
from matplotlib.figure import Figure

from ppma import phases as training
from ppma.cli import main as ppma
from ppma.common.statistics import Accuracy, difference, top_k_correct
from ppma.config.command import DONE, RUN_AGAIN, WRONG_INPUT
from ppma.config.errors import Stopped
from ppma.study import data, demo, demo_report, work
from ppma.study.demo_report import summarize
from ppma.study.results import collect
from ppma.synthetic import CLASSES
from ppma.training.distributed import Stop
from tests.study.test_work import DRAW, written

SMALL = demo.SPEC.read_text().replace("draw = {}", f'flags = "--batch 8 --optim.epochs 1 --pictures-every 0"\n{DRAW}')


def run(out, *more):
    return ppma(["demo", "--out", str(out), "--workers", "1", "--device", "cpu", *map(str, more)])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A demo that was stopped in stage 2 and then resumed; its files in between; the spec of all demos here."""
    folder, patch, train = tmp_path_factory.mktemp("demo"), pytest.MonkeyPatch(), training.train
    (folder / "demo.toml").write_text(SMALL)
    patch.setattr(demo, "SPEC", folder / "demo.toml")

    def stopped(config):
        if config.run_dir.name.startswith("scratch"):
            raise Stopped(Stop.SAVE)
        return train(config)

    with patch.context() as stopping:
        stopping.setattr(training, "train", stopped)
        assert run(folder / "demo") == RUN_AGAIN
    before = written(folder / "demo")
    assert run(folder / "demo") == DONE
    yield folder / "demo", before
    patch.undo()


def test_a_second_start_continues_and_keeps_finished_runs(once):
    out, before = once
    after = written(out)
    assert any("runs/scenes-s0" in name for name in before) and not any("runs/scratch" in name for name in before)
    assert before.items() <= after.items() and any("runs/scratch-s0" in name for name in after)


def test_a_finished_demo_only_reports_again(once, tmp_path, monkeypatch, capsys):
    """On its own stage 1, not on an older one in the same folder, as `--videos` leaves one."""
    out, seen = shutil.copytree(once[0], tmp_path / "demo"), []
    (planned,) = out.glob("runs/scenes-s0-*")
    before = written(out / "runs")
    for number in range(20):
        (out / f"runs/scenes-s0-{number:012}").mkdir()
    monkeypatch.setattr(training, "train", lambda config: pytest.fail(f"{config.run_dir} was trained again"))
    for name in ("accuracy_figure", "confusion_figure", "clips_figure"):  # drawn once: test_table_and_figures
        monkeypatch.setattr(demo_report, name, lambda *_: Figure((1, 1)))
    monkeypatch.setattr(demo_report, "reconstructions_figure", lambda folder, _: seen.append(folder) or Figure((1, 1)))
    assert run(out) == DONE and written(out / "runs") == before and seen == [planned]
    assert "What was shown" in capsys.readouterr().out


def test_table_and_figures(once):
    out, _ = once
    lines = (out / "report/table.md").read_text().splitlines()
    assert len(lines) == 7 and "| chance, 2 actions | 50.0 |" in lines[2] and "full method" in lines[-1]
    found = json.loads((out / "report/findings.json").read_text())
    assert found["clips"] == 6 and found["classes"] == ["clap", "bow"]
    for row in found["rows"]:
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
    assert [row["behind"] is None for row in found["rows"]] == [False, False, False, True]
    for name in ("accuracy", "confusion", "clips", "reconstructions"):
        assert (out / f"report/{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert list((out / "report").glob("events.out.tfevents.*"))


def test_all_clips_are_synthetic_and_the_splits_are_disjoint(once):
    out, _ = once
    tables = sorted((out / "clips").rglob("*.csv"))
    assert [path.name for path in tables] == ["train.csv", "train_empty.csv", "train.csv", "test.csv"]
    assert {row["domain"] for path in tables for row in csv.DictReader(path.open())} == {"synthetic"}
    full = data.DataConfig(out=out)
    assert not set(full.learned) & set(full.new) and len(full.learned) == 20 and len(full.new) == 10
    assert set(full.learned) | set(full.new) == set(CLASSES) and len(full.new) * full.test_clips >= 300


@pytest.mark.parametrize(
    ("flags", "word"), [(["--seeds", "0"], "--seeds is 0"), (["--videos", "/nowhere"], "--videos /nowhere")]
)
def test_wrong_input_is_one_line(flags, word, tmp_path, capsys):
    assert run(tmp_path / "demo", *flags) == WRONG_INPUT
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not (tmp_path / "demo").exists()


def test_a_full_disk_asks_for_the_same_command_again(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "generate", full)
    assert run(tmp_path / "demo") == RUN_AGAIN and "No space left" in capsys.readouterr().err


def test_own_clips_replace_the_scenes(once, clip_tree, tmp_path):
    """They are indexed as human-removed on the user's word, and their folders are the labels of stage 2. A clip whose damage only a full
    decode shows is left out."""
    videos = shutil.copytree(clip_tree, tmp_path / "videos")
    damaged = next(path for path in videos.iterdir() if path.is_dir()) / "concealed.mp4"
    damaged.write_bytes(CASES["concealed_corruption.mp4"]())
    out, _ = once
    (tmp_path / "data.toml").write_text(re.sub(r'"(clips/|\w+\.beton)', rf'"{out}/\1', (out / "data.toml").read_text()))
    study = demo.study_of(demo.DemoConfig(out=tmp_path))
    settings = data.data_config(study, tmp_path, videos, 1)
    assert not data.is_packed(settings, data.REAL)
    data.index_videos(settings, videos)
    assert data.is_packed(settings, data.REAL)
    assert damaged.name in (tmp_path / "real_as_found.csv").read_text()
    assert damaged.name not in (tmp_path / "real.csv").read_text()
    assert {row["domain"] for row in csv.DictReader((tmp_path / "real.csv").open())} == {"human-removed"}
    planned = work.plan_runs(demo.on_own_clips(study, settings), tmp_path, settings.data, device="cpu")
    sources = {planned_run.name: planned_run.config.sources for planned_run in planned.runs}
    assert sources["scenes"] == ("real",) and sources["full"] == sources["scratch"] == ("actions", "real")


def test_the_table_of_the_readme_is_the_one_that_the_demo_wrote():
    root = Path(__file__).resolve().parents[2]
    table, findings = (root / "docs/demo" / name for name in ("table.md", "findings.json"))
    assert table.read_text() in (root / "README.md").read_text()
    for row in json.loads(findings.read_text())["rows"]:
        assert f"| {100 * row['accuracy']['value']:.1f} (" in table.read_text()


def test_the_intervals_keep_the_digits_of_the_published_table():
    """Another way to resample the clips gives others."""
    first_V, second_V = np.arange(400) * 7919 % 25 < 11, np.arange(400) * 104729 % 27 < 8
    assert demo_report.bootstrap(first_V.astype(float)) == Accuracy(value=0.44, low=0.3925, high=0.49)
    behind = demo_report.bootstrap(first_V.astype(float) - second_V)
    assert (behind.value, behind.low, behind.high) == pytest.approx((0.1425, 0.075, 0.21), abs=1e-12)


def test_dry_run_lists_the_runs_and_writes_nothing(tmp_path, capsys):
    assert run(tmp_path / "demo", "--dry-run", "--seeds", 2) == DONE
    assert "scratch, seed 1" in capsys.readouterr().out and not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_claim(tmp_path):
    """The demo as it is: better than random weights and than stage 1 alone, and by motion, each with an interval above zero."""
    out = tmp_path / "demo"
    subprocess.run([sys.executable, "-m", "ppma", "demo", "--out", str(out)], check=True)
    findings = summarize(collect(out), data.NEW)
    assert findings.clips >= 300
    behind = {row.method: row.behind for row in findings.rows}
    assert behind["random"].low > 0 and behind["scenes"].low > 0
    assert motion_gain(out, tmp_path / "still").low > 0


def motion_gain(out: Path, folder: Path):
    """How much better the probe of the full method is on clips than on single frames, each shown as a still clip."""
    planned = work.plan_runs(demo.study_of(demo.DemoConfig(out=out)), out, out / "data.toml", device="auto")
    moving = next(run.config for run in planned.runs if run.name == "full.probe.transfer")
    still = replace(moving, run_dir=folder, resume=False, loader=replace(moving.loader, window_seconds=0.05))
    training.train(still)
    right = []
    for run_dir in (moving.run_dir, folder):
        with np.load(run_dir / "scores.npz") as scores:
            right.append(top_k_correct(scores["scores"], scores["label"], 1)[None])
    return difference(*right).by
