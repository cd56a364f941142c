"""A whole study in its smallest form: drawn, stopped, resumed, left alone when finished, reported; killed in `make slow`."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from filelock import FileLock

from ppma import phases as training
from ppma.cli import main as ppma
from ppma.config.command import DONE, RUN_AGAIN, WRONG_INPUT
from ppma.config.errors import InputError, Stopped
from ppma.study import work
from ppma.study.plan import Row
from ppma.training import seal
from ppma.training.distributed import Stop

DRAW = 'draw = {learned = ["wave", "squat"], new = ["clap", "bow"], learned_clips = 4, probe_clips = 4, test_clips = 3}'
SPEC = f"""
name = "tiny"
title = "Tiny"
seeds = [0]
datasets = ["transfer"]
compare = "full"
flags = "--batch 8 --optim.epochs 1 --loader.workers 1 --pictures-every 0"
{DRAW}
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


def run(out, *more, spec="spec.toml"):
    argv = ["study", out.parent / spec, "--out", out, "--device", "cpu", "--workers", "1", *more]
    return ppma([str(word) for word in argv])


def written(folder):
    kinds = (".mp4", ".safetensors", ".npz", ".json")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in kinds)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def hashes(out):
    """Hashes of the scores and weights of every run."""
    sealed = {path.parent.name: seal.read(path.parent) for path in (out / "runs").glob("*/seal.json")}
    return {name: (found.weights, found.files.get("scores.npz")) for name, found in sealed.items()}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A study that was stopped in stage 2 and then resumed; its files in between."""
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


def test_a_second_start_continues_and_keeps_finished_runs(once):
    out, before = once
    assert any("runs/stage1.probe" in name for name in before) and not any("/full" in name for name in before)
    assert before.items() <= written(out).items()
    assert len(hashes(out)) == len(list((out / "runs").glob("*-s0-*"))) == RUNS


def test_a_finished_study_is_not_repeated_under_any_name(once, monkeypatch, caplog):
    out, _ = once
    before = written(out / "runs")
    monkeypatch.setattr(training, "train", lambda config: pytest.fail(f"{config.run_dir} was trained again"))
    assert run(out) == DONE and written(out / "runs") == before
    (out.parent / "other.toml").write_text(SPEC.replace('"tiny"', '"other"').replace("stage1", "first"))
    with caplog.at_level("INFO"):
        assert run(out, spec="other.toml") == DONE
    assert f"{RUNS} of {RUNS} runs are done" in caplog.text
    (out / "other.study.json").unlink()


def test_the_report_has_the_numbers_of_the_runs(once, tmp_path):
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


def test_the_dry_run_lists_states_and_writes_nothing(once, capsys, tmp_path):
    out, _ = once
    (out.parent / "more.toml").write_text(SPEC.replace("seeds = [0]", "seeds = [0, 1]"))
    assert run(out, "--dry-run", spec="more.toml") == DONE
    text = capsys.readouterr().out
    assert text.count(" done ") == text.count(" open ") == RUNS
    (tmp_path / "spec.toml").write_text(SPEC)
    assert run(tmp_path / "out", "--dry-run") == DONE and not (tmp_path / "out").exists()


def test_one_run_alone_by_its_folder(once, monkeypatch, capsys):
    out, _ = once
    trained = []
    monkeypatch.setattr(training, "train", lambda config: trained.append(config.run_dir.name))
    (out.parent / "spec1.toml").write_text(SPEC.replace("seeds = [0]", "seeds = [1]"))
    assert run(out, "--dry-run", spec="spec1.toml") == DONE
    name = next(word for word in capsys.readouterr().out.split() if word.startswith("stage1-s1-"))
    assert run(out, "--only", name, spec="spec1.toml") == DONE and trained == [name]
    assert run(out, "--only", "stage9", spec="spec1.toml") == WRONG_INPUT
    assert "--only stage9" in capsys.readouterr().err


def made_plan(monkeypatch, listing, kinds):
    """Runs that do nothing, one for each (row, config)."""
    monkeypatch.setattr(work, "write_listing", lambda *_: listing)
    return tuple(
        SimpleNamespace(title=f"run{i}", folder=i, row=row, config=config, needs=())
        for i, (row, config) in enumerate(kinds)
    )


def test_each_start_tells_the_time_left(tmp_path, monkeypatch, caplog):
    """A run takes as long as finished ones of its kind: protocol and data set of a test, recipe and phase of a pre-training."""
    mae, probe = SimpleNamespace(recipe="demo", phase="mae"), Row(method="m", protocol="probe", dataset="transfer")
    kinds = ((None, mae), (probe, mae), (None, mae), (probe, mae), (None, None))
    runs = made_plan(monkeypatch, tmp_path, kinds)
    monkeypatch.setattr(work, "run_one", lambda run: None)
    monkeypatch.setattr(work.seal, "read", lambda folder: SimpleNamespace(seconds=(100, 10, 300, 30, 1)[folder]))
    with caplog.at_level("INFO"):
        work.run_missing(work.Planned(study=None, runs=runs, states=("open",) * 5), tmp_path)
        work.run_missing(work.Planned(study=None, runs=runs, states=("open",) + ("done",) * 4), tmp_path)
    left = [line.partition("left: ")[2] for line in caplog.messages if "left: " in line]
    assert left[:3] == ["not known yet", "more than 0:01:40", "more than 0:01:50"]
    assert left[3:] == ["more than 0:00:10", "not known yet", "about 0:05:00"]


@pytest.mark.parametrize("error", [FloatingPointError("the loss stays NaN"), InputError("no such film")])
def test_a_run_that_fails_takes_only_those_that_start_from_it(error, tmp_path, monkeypatch, caplog):
    runs = made_plan(monkeypatch, tmp_path, [(None, None)] * 4)
    runs[1].needs, runs[2].needs = (runs[0],), (runs[1],)
    monkeypatch.setattr(work.seal, "read", lambda folder: SimpleNamespace(seconds=1))
    done = []

    def run_one(run):
        if run.folder == 0:
            raise error
        done.append(run.folder)

    monkeypatch.setattr(work, "run_one", run_one)
    with pytest.raises(type(error), match=str(error)):
        work.run_missing(work.Planned(study=None, runs=runs, states=("open",) * 4), tmp_path)
    assert done == [3] and "run2: not done" in caplog.text


def test_two_studies_do_not_run_in_one_folder(once, capsys):
    out, _ = once
    with FileLock(out / ".lock"):
        assert run(out) == WRONG_INPUT
    assert str(out) in capsys.readouterr().err


def test_a_killed_study_leaves_no_lock(tmp_path):
    code = f"import os\nfrom pathlib import Path\nfrom ppma.study import work\nwith work.lock(Path({str(tmp_path)!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with work.lock(tmp_path):
        pass


def test_an_edited_run_stops_the_study_and_the_report(once, tmp_path, capsys):
    out, _ = once
    (file,) = (out / "runs").glob("full.probe*/result.json")
    before = file.read_bytes()
    file.write_bytes(before.replace(b'"top1": ', b'"top1": 1'))
    capsys.readouterr()
    assert run(out) == ppma(["report", str(out), "--out", str(tmp_path / "r")]) == WRONG_INPUT
    assert [("result.json" in line) for line in capsys.readouterr().err.splitlines()] == [True, True]
    file.write_bytes(before)
    assert not (tmp_path / "r").exists()


def test_own_clips_are_read_in_addition_to_the_scenes(once, clip_tree):
    """They are indexed as human-removed on the user's word; stage 1 is then another run, and so is what starts from it."""
    out, _ = once
    options = work.StudyConfig(spec=out.parent / "spec.toml", out=out, videos=clip_tree, workers=1, device="cpu")
    planned = work.plan(options, make_data=True)
    runs = {run.name: (run.config, state) for run, state in zip(planned.runs, planned.states)}
    assert runs["stage1"][0].sources == ("scenes", "real") and runs["full"][0].sources == ("actions", "scenes")
    assert {name for name, (_, state) in runs.items() if state == "done"} == {"random.probe.transfer"}
    assert {row["domain"] for row in csv.DictReader((out / "data/real.csv").open())} == {"human-removed"}


@pytest.mark.parametrize(
    ("draw", "word"),
    [
        ('{color = "red"}', "'color'"),
        ('{test_clips = "3"}', "test_clips = '3'"),
        ("{test_clips = 0}", "test_clips is 0"),
        ('{learned = ["clap", "bow"], new = ["clap", "wave"]}', "clap"),
        ('{learned = ["clap", "wave"], new = ["bow"]}', "at least two"),
        ('{learned = ["juggle", "walk"]}', "'juggle'"),
    ],
)
def test_a_wrong_draw_table_is_one_line(draw, word, tmp_path, capsys):
    (tmp_path / "spec.toml").write_text(SPEC.replace(DRAW, f"draw = {draw}"))
    assert run(tmp_path / "out") == WRONG_INPUT
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1 and not (tmp_path / "out" / "data").exists()


def test_own_videos_need_a_study_that_draws(tmp_path, capsys):
    (tmp_path / "spec.toml").write_text(SPEC.replace(DRAW, ""))
    assert run(tmp_path / "out", "--videos", tmp_path) == WRONG_INPUT
    assert "--videos" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_and_interrupted_again_and_again_it_ends_with_the_same_weights(once, tmp_path):
    """SIGKILL and SIGINT in turn, a little later each time, until the study is done."""
    out, _ = once
    (tmp_path / "spec.toml").write_text(SPEC)
    flags = f"study {tmp_path}/spec.toml --out {tmp_path}/out --device cpu --workers 1"
    codes = []
    for attempt in range(60):
        command = [sys.executable, "-m", "ppma", *flags.split()]
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
