"""A whole study in its smallest form: drawn, stopped, gone on with, left alone when done, reported; killed for real in `make slow`."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ppma import train as training
from ppma.cli import main as ppma
from ppma.config.command import DONE, RUN_AGAIN, WRONG_INPUT
from ppma.study.work import StudyConfig, plan
from ppma.train import Stopped
from ppma.training import seal
from ppma.training.distributed import Stop

SPEC = """
name = "tiny"
title = "Tiny"
seeds = [0]
datasets = ["transfer"]
compare = "full"
flags = "--batch 8 --optim.epochs 1 --loader.workers 1 --pictures-every 0"
draw = {learned = ["wave", "squat"], new = ["clap", "bow"], learned_clips = 4, probe_clips = 4, test_clips = 3}
[pretrain.random]
title = "Random weights"
[pretrain.stage1]
title = "Stage 1"
recipe = "demo --stage scenes"
[pretrain.full]
title = "Full"
recipe = "demo --stage actions"
init = "stage1"
[pretrain.average]
title = "Average"
average = ["full", "stage1"]
[protocol.probe]
title = "Linear probe"
recipe = "demo --stage probe"
"""
RUNS = 7


def run(out, *more):
    return ppma(
        [
            "study",
            str(out.parent / "spec.toml"),
            "--out",
            str(out),
            "--device",
            "cpu",
            "--workers",
            "1",
            *map(str, more),
        ]
    )


def written(folder):
    kinds = (".mp4", ".safetensors", ".npz", ".json")
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix in kinds
    }


def hashes(out):
    """Scores and weights of every run: what two ways to the same study must agree in."""
    sealed = {path.parent.name: seal.read(path.parent) for path in (out / "runs").glob("*/seal.json")}
    return {name: (found.weights, found.files.get("scores.npz")) for name, found in sealed.items()}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A study that was asked to stop in stage 2 and then run again; what the folder held in between."""
    train = training.train
    folder, patch = tmp_path_factory.mktemp("study"), pytest.MonkeyPatch()
    (folder / "spec.toml").write_text(SPEC)

    def stopped(config):
        if config.run_dir.name.startswith("full-"):
            raise Stopped(Stop.SAVE)
        return train(config)

    patch.setattr(training, "train", stopped)
    assert run(folder / "out") == RUN_AGAIN
    patch.undo()
    before = written(folder / "out")
    assert run(folder / "out") == DONE
    return folder / "out", before


def test_a_second_start_goes_on_and_keeps_what_is_there(once):
    out, before = once
    after = written(out)
    assert any("runs/stage1.probe" in name for name in before) and not any("/full" in name for name in before)
    assert before.items() <= after.items()
    assert len(hashes(out)) == RUNS
    assert (
        len([folder for folder in (out / "runs").iterdir() if folder.name != "features"]) == RUNS
    )  # which the runs share


def test_a_finished_study_is_not_done_again_whatever_it_is_called(once, monkeypatch, caplog):
    out, _ = once
    before = written(out / "runs")

    def never(config):
        raise AssertionError(f"{config.run_dir} was trained again")

    monkeypatch.setattr(training, "train", never)
    assert run(out) == DONE and written(out / "runs") == before
    (out.parent / "other.toml").write_text(SPEC.replace('"tiny"', '"other"').replace("stage1", "first"))
    with caplog.at_level("INFO"):
        assert (
            ppma(["study", str(out.parent / "other.toml"), "--out", str(out), "--device", "cpu", "--workers", "1"])
            == DONE
        )
    assert f"{RUNS} of {RUNS} runs are there already" in caplog.text
    (out / "other.study.json").unlink()


def test_the_report_is_made_of_the_runs(once, tmp_path):
    out, _ = once
    assert ppma(["report", str(out), "--out", str(tmp_path)]) == DONE
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert list(rows) == ["random", "stage1", "full", "average"]
    for name, row in rows.items():
        (result,) = (json.loads(path.read_text()) for path in (out / "runs").glob(f"{name}.probe*/result.json"))
        assert float(row["top1"]) == pytest.approx(result["top1"]) and int(row["videos"]) == 6
    costs = {name: float(row["pretrain_seconds"]) for name, row in rows.items()}
    assert costs["random"] == 0 < costs["stage1"] < costs["full"] < costs["average"]
    page = (tmp_path / "report.html").read_text()
    assert f"--init {out}/runs/average-s0-" in page and "ppma average" in page


def test_the_dry_run_says_what_is_left(once, capsys, tmp_path):
    out, _ = once
    assert run(out, "--dry-run") == DONE
    assert "left: nothing" in capsys.readouterr().out
    (out.parent / "more.toml").write_text(SPEC.replace("seeds = [0]", "seeds = [0, 1]"))
    flags = ["--device", "cpu", "--workers", "1", "--price-per-hour", "3600"]
    assert ppma(["study", str(out.parent / "more.toml"), "--out", str(out), "--dry-run", *flags]) == DONE
    text = capsys.readouterr().out
    assert f"{RUNS} runs, about 0:00:" in text and "which costs" in text and text.count(" open ") == RUNS
    (tmp_path / "spec.toml").write_text(SPEC)
    assert run(tmp_path / "out", "--dry-run") == DONE
    assert "left: not known before the data is there" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_one_run_alone_by_its_folder(once, monkeypatch, capsys):
    out, _ = once
    asked = []
    monkeypatch.setattr(training, "train", lambda config: asked.append(config.run_dir.name))
    (out.parent / "spec1.toml").write_text(SPEC.replace("seeds = [0]", "seeds = [1]"))
    argv = ["study", str(out.parent / "spec1.toml"), "--out", str(out), "--device", "cpu"]
    assert ppma([*argv, "--dry-run"]) == DONE
    name = next(word for word in capsys.readouterr().out.split() if word.startswith("stage1-s1-"))
    assert ppma([*argv, "--only", name]) == DONE and asked == [name]
    assert ppma([*argv, "--only", "stage9"]) == WRONG_INPUT
    assert "--only stage9: the study has no such run" in capsys.readouterr().err


def test_two_studies_do_not_work_in_one_folder(once, capsys):
    out, _ = once
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(out) == WRONG_INPUT
    assert "another `ppma study` is at work there" in capsys.readouterr().err


def test_an_edited_run_stops_the_study_and_the_report(once, tmp_path, capsys):
    out, _ = once
    (file,) = (out / "runs").glob("full.probe*/result.json")
    before = file.read_bytes()
    file.write_bytes(before.replace(b'"top1": ', b'"top1": 1'))
    for argv in (
        ["study", str(out.parent / "spec.toml"), "--out", str(out), "--device", "cpu"],
        ["report", str(out), "--out", str(tmp_path / "r")],
    ):
        assert ppma(argv) == WRONG_INPUT
        error = capsys.readouterr().err
        assert "result.json was edited after the run had ended" in error and error.count("\n") == 1
    file.write_bytes(before)
    assert not (tmp_path / "r").exists()


def test_ones_own_clips_are_read_beside_the_scenes(once, clip_tree):
    """Indexed as human-removed on the user's word; stage 1 is then another run, and so is what starts from it."""
    out, _ = once
    options = StudyConfig(spec=out.parent / "spec.toml", out=out, videos=clip_tree, workers=1, device="cpu")
    planned = plan(options, draw=True)
    runs = {run.name: (run.config, state) for run, state in zip(planned.runs, planned.states)}
    assert runs["stage1"][0].sources == ("scenes", "real") and runs["full"][0].sources == ("actions", "scenes")
    assert {name for name, (_, state) in runs.items() if state == "done"} == {"random.probe.transfer"}
    assert {row["domain"] for row in csv.DictReader((out / "data/real.csv").open())} == {"human-removed"}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ('{colour = "red"}', "[draw]: there is no key 'colour'; the keys are learned, new, learned_clips"),
        ('{test_clips = "3"}', "[draw]: test_clips = '3'; its default is 40"),
        ('{learned = ["clap", "bow"], new = ["clap", "wave"]}', "clap would be learned in stage 2 already"),
    ],
)
def test_a_wrong_draw_table_is_one_line(draw, message, tmp_path, capsys):
    (tmp_path / "spec.toml").write_text(
        "\n".join(f"draw = {draw}" if line.startswith("draw") else line for line in SPEC.splitlines())
    )
    assert run(tmp_path / "out") == WRONG_INPUT
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "out" / "data").exists()


def test_own_videos_need_a_study_that_draws(tmp_path, capsys):
    (tmp_path / "spec.toml").write_text("\n".join(line for line in SPEC.splitlines() if not line.startswith("draw")))
    assert run(tmp_path / "out", "--videos", tmp_path) == WRONG_INPUT
    assert "--videos: tiny draws no data; index your clips" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_interrupted_again_and_again_it_ends_with_the_same_weights(once, tmp_path):
    """SIGKILL and SIGINT in turn, a little later each time, until the study is done."""
    out, _ = once
    (tmp_path / "spec.toml").write_text(SPEC)
    command = [
        sys.executable,
        "-m",
        "ppma",
        "study",
        str(tmp_path / "spec.toml"),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--workers",
        "1",
    ]
    codes = []
    for attempt in range(60):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(8 + attempt)
        if process.poll() is None and attempt % 2:
            process.send_signal(signal.SIGINT)
        elif process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        codes.append(process.wait())
        if codes[-1] == DONE:
            break
    assert codes[-1] == DONE and -signal.SIGKILL in codes and hashes(tmp_path / "out") == hashes(out)
