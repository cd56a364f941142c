"""A study as arrays: levels in order, only what is missing, each run with its own config."""

import json
import time
from types import SimpleNamespace

import pytest
from slurm_runs import PLACE
from slurm_runs import launch as submit

from ppma.cli import main as ppma
from ppma.config.command import DONE, WRONG_INPUT
from ppma.config.errors import InputError
from ppma.slurm.launch import main as launch
from ppma.slurm.plan import plan
from ppma.slurm.study import levels
from tests.study.test_plan import TEXT, data, end  # noqa: F401  # data is a fixture
from tests.study.test_work import RUNS, SPEC


@pytest.fixture
def spec(data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.toml").write_text(TEXT)
    return "spec.toml"


ARGV = ["--out", "runs/study", "--gpus-per-node", "0"]


def test_each_array_waits_for_what_it_starts_from(spec, tmp_path):
    cluster, stages = plan("study", [spec, *ARGV, "--nodes", "2"])
    assert [(stage.name, len(stage.jobs), stage.config) for stage in stages] == [
        ("study-0", 6, None), ("study-1", 4, None), ("study-2", 6, None), ("study-3", 4, None)
    ]  # fmt: skip
    configs = [[job.config for job in stage.jobs] for stage in stages]
    assert {config.recipe for config in configs[0]} == {"probe", "mae_nohuman"} and {c.phase for c in configs[1]} == {
        "classify"
    }
    assert [c[:1] for c in configs[2] if isinstance(c, list)] == [["study"]] * 2
    assert all(job.ranks == 2 for stage in stages for job in stage.jobs) and cluster.nodes == 2
    listing = json.loads((tmp_path / "runs/study/made.study.json").read_text())
    assert len(listing["rows"]) == 12
    assert len({stage.folder for stage in stages}) == 4


def test_what_is_there_is_not_submitted_again(spec, tmp_path):
    from ppma.study.work import StudyConfig
    from ppma.study.work import plan as planned

    for run in planned(StudyConfig(spec=tmp_path / spec, out=tmp_path / "runs/study"), draw=False).runs:
        if run.seed == 0 or run.name == "stage1":
            end(run)
    _, stages = plan("study", [spec, *ARGV])
    assert [len(stage.jobs) for stage in stages] == [4, 3, 2]
    for run in planned(StudyConfig(spec=tmp_path / spec, out=tmp_path / "runs/study"), draw=False).runs:
        if run.state() == "open":
            end(run)
    with pytest.raises(InputError, match="all 20 runs are there already; the table: ppma report runs/study"):
        plan("study", [spec, *ARGV])


def test_the_dry_run_shows_arrays_and_writes_nothing(spec, tmp_path, capsys):
    assert launch(["study", spec, *ARGV, "--dry-run"]) == DONE
    text = capsys.readouterr().out
    assert text.count("#SBATCH --array=0-") == 4 and text.count("afterok") == 3 and "full, seed 1" in text
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_does_not_divide_is_told_beforehand(spec, capsys):
    assert launch(["study", spec, *ARGV, "--nodes", "3", "--dry-run"]) == WRONG_INPUT
    assert "batch 128 does not divide by 3 ranks" in capsys.readouterr().err


def test_data_must_be_drawn_first(spec, tmp_path, capsys):
    (tmp_path / "spec.toml").write_text(TEXT.replace('compare = "full"', 'compare = "full"\ndraw = {}'))
    assert launch(["study", spec, *ARGV, "--dry-run"]) == WRONG_INPUT
    assert "is not drawn yet: ppma study spec.toml --out runs/study --only data" in capsys.readouterr().err


def test_levels_of_a_chain_that_is_half_done():
    runs = [SimpleNamespace(folder=name, needs=()) for name in "ab"]
    runs.append(SimpleNamespace(folder="c", needs=tuple(runs)))
    half = SimpleNamespace(runs=runs, states=["done", "started", "open"])
    assert [[run.folder for run in array] for array in levels(half)] == [["b"], ["c"]]


@pytest.mark.slurm
@pytest.mark.slow
def test_slurm_runs_a_study_in_arrays(slurm_cluster, tmp_path):
    """Draw here, train there on two ranks, one array after the other; then there is nothing to submit, and the report is whole."""
    out, argv = (
        tmp_path / "out",
        ["study", str(tmp_path / "spec.toml"), "--out", str(tmp_path / "out"), "--device", "cpu"],
    )
    (tmp_path / "spec.toml").write_text(SPEC)
    assert ppma([*argv, "--only", "data", "--workers", "1"]) == DONE
    done = submit([*argv, *PLACE, "--runs", str(tmp_path / "jobs")], slurm_cluster.environment)
    assert done.returncode == DONE, done.stderr
    assert [f"submitted study-{level}" in done.stdout for level in range(4)] == [True] * 4
    end_of_patience = time.monotonic() + 300
    while slurm_cluster("squeue", "-h").strip():
        assert time.monotonic() < end_of_patience, [
            log.read_text()[-2000:] for log in tmp_path.glob("jobs/*/*/jobs/*_0_log.out")
        ]
        time.sleep(1)
    logs = [log.read_text()[-2000:] for log in tmp_path.glob("jobs/*/*/jobs/*_0_log.out")]
    assert len(list(out.glob("runs/*/seal.json"))) == RUNS, logs
    assert ppma(["report", str(out), "--out", str(tmp_path / "report")]) == DONE
    assert "planned runs are not there" not in (tmp_path / "report/report.html").read_text()
    again = submit([*argv, *PLACE, "--runs", str(tmp_path / "jobs")], slurm_cluster.environment)
    assert again.returncode == WRONG_INPUT and f"all {RUNS} runs are there already" in again.stderr
