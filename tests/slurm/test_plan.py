"""Verbs as jobs: arrays over data sets and seeds, commands in parts, and studies as one array per level."""

import json
import sys
import types

import pytest
from slurm_runs import PLACE
from slurm_runs import launch as submit
from waiting import wait_until

from ppma import cli
from ppma.cli import main as ppma
from ppma.config.command import DONE, WRONG_INPUT
from ppma.config.errors import InputError
from ppma.slurm.job import command
from ppma.slurm.launch import _arrays as arrays
from ppma.slurm.launch import main as launch
from ppma.slurm.plan import SHARDED, plan
from tests.study.test_plan import TEXT, data, end  # noqa: F401  # data is a fixture
from tests.study.test_work import RUNS, SPEC


@pytest.fixture
def tested(tmp_path, monkeypatch):
    """Runs of two data sets and two seeds, and a catalog that knows the data sets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made.csv").write_text("x\n")
    names = ("ucf101", "hmdb51")
    (tmp_path / "data.toml").write_text("".join(f'[{name}.val]\nmanifest = "made.csv"\nroot = "."\n' for name in names))
    for name in names:
        for seed in (0, 1):
            (tmp_path / "runs" / f"{name}-{seed}").mkdir(parents=True)
            (tmp_path / "runs" / f"{name}-{seed}" / "config.json").write_text(json.dumps({}))
    return tmp_path


def test_evaluate_is_an_array_over_data_sets_and_seeds(tested):
    flags = "--checkpoint runs/{dataset}-{seed} --dataset ucf101 hmdb51 --seed 0 1 --workers 3"
    _, (stage,) = plan("evaluate", flags.split())
    calls = [job.config for job in stage.jobs]
    runs = [f"{dataset}-{seed}" for dataset in ("ucf101", "hmdb51") for seed in (0, 1)]
    assert [call[1] for call in calls] == [str(tested / "runs" / run) for run in runs]
    assert all(call[-2:] == ["--data", str(tested / "data.toml")] and "--workers" in call for call in calls)
    assert stage.folder.parent == tested / "runs"
    progress_in = tested / "runs" / "ucf101-0" / "evaluate-ucf101-val"
    assert stage.jobs[0].run_dir == progress_in


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--checkpoint runs/ucf101-0", "--dataset"),
        ("--checkpoint runs/ucf101-0 --dataset ucf101 --seed 0 1", "{seed}"),
        ("--checkpoint runs/ucf101-{seed} --dataset ucf101 --seed 7", "runs/ucf101-7"),
        ("--checkpoint runs/ucf101-0 --dataset k400", "k400.val"),
        ("--checkpoint runs/ucf101-0 --dataset ucf101 --wrokers 2", "--wrokers"),
    ],
)
def test_impossible_evaluations_are_refused(flags, word, tested):
    with pytest.raises(InputError, match=word):
        plan("evaluate", flags.split())


# ------------------------------------------------------------------------------------------------------ commands in parts


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_commands_have_the_flags_that_the_table_promises(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        ppma([name, "--help"])
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--part ", "--merge ", "--dry-run"))


@pytest.fixture
def sharded(monkeypatch):
    """A command `pack`, and what it was called with."""
    calls = []

    def main(argv):
        calls.append(argv)
        if "wrong" in argv:
            raise InputError("wrong is not a source")
        first = calls.count(argv) == 1 and "0/2" in argv
        if "--part" in argv and ("fails" in argv or ("fails-once" in argv and first)):
            return 1
        if "--part" in argv and "refused" in argv:
            return WRONG_INPUT
        return 75 if "unfinished" in argv else 0

    monkeypatch.setitem(sys.modules, "sharded", module := types.ModuleType("sharded"))
    module.main = main
    monkeypatch.setitem(cli.COMMANDS, "pack", cli.Command("sharded", "", shards=True))
    return calls


def test_parts_are_an_array_and_a_job_that_merges_them(sharded):
    shards, (parts, merge) = plan("pack", ["made", "--out", "x", "--parts", "3"])
    assert shards.gpus_per_node == 0 and sharded == [["made", "--out", "x", "--dry-run"]]
    assert [job.config for job in parts.jobs] == [["pack", "made", "--out", "x", "--part", f"{i}/3"] for i in range(3)]
    assert [job.config for job in merge.jobs] == [["pack", "made", "--out", "x", "--merge", "3"]]
    assert command(parts.jobs[2].config) == 0 and sharded[-1] == ["made", "--out", "x", "--part", "2/3"]


def test_a_failed_part_is_retried_and_the_merge_waits_for_its_end_only(sharded, tmp_path, capsys):
    """Other parts may have done what it left: the merge sees for itself."""
    _, (parts, merge) = plan("pack", ["made", "--parts", "2"])
    jobs = (*parts.jobs, *merge.jobs)
    assert [job.retries for job in jobs] == [2, 2, 2] and len({job.run_dir for job in jobs}) == 3
    assert launch(["pack", "made", "--parts", "2", "--dry-run", "--runs", str(tmp_path)]) == DONE
    assert "--dependency=afterany:STAGE-1\n" in capsys.readouterr().out
    flags = ["--cluster", "debug", "--runs", str(tmp_path), "--parts", "2", "--out", "x"]
    for word, retries, tries, code in (("fails-once", 2, 4, 0), ("fails", 1, 2, 1), ("refused", 2, 1, WRONG_INPUT)):
        sharded.clear()
        assert launch(["pack", word, *flags, "--retries", str(retries)]) == code
        assert len([call for call in sharded if "--dry-run" not in call]) == tries
    with pytest.raises(InputError, match="--retries"):
        plan("pack", ["--retries", "-1"])


def test_flags_that_the_command_refuses_are_not_submitted(sharded, capsys):
    assert launch(["pack", "wrong", "--dry-run"]) == WRONG_INPUT
    assert capsys.readouterr().err == "launch.py pack: wrong is not a source\n"
    with pytest.raises(InputError, match="exits with 75"):
        plan("pack", ["unfinished"])
    with pytest.raises(InputError, match="--parts"):
        plan("pack", ["--nodes", "2"])


def test_people_are_removed_by_an_array_and_a_merge(tmp_path, write_clip, monkeypatch, capsys):
    """The command itself, without models: the parts do their clips and the merge writes the manifest."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_clip(tmp_path / "videos" / "a" / f"{i}.mp4", frames=6)
    flags = ["videos", "--out", "removed", "--method", "downsample", "--workers", "1"]
    _, (parts, merge) = plan("remove-humans", [*flags, "--parts", "2"])
    assert "3 clips" in capsys.readouterr().out and not (tmp_path / "removed").exists()
    assert [command(job.config) for job in (*parts.jobs, *merge.jobs)] == [0, 0, 0]
    assert len((tmp_path / "removed" / "manifest.csv").read_text().splitlines()) == 4


# --------------------------------------------------------------------------------------------------------------- studies


@pytest.fixture
def spec(data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.toml").write_text(TEXT)
    return "spec.toml"


ARGV = ["--out", "runs/study", "--gpus-per-node", "0"]


def test_each_array_waits_for_what_it_starts_from(spec, tmp_path):
    """Averages get the flags of the study, which decide the names of its runs, by which `--only` finds one."""
    cluster, stages = plan("study", [spec, *ARGV, "--nodes", "2", "--device", "cpu"])
    assert [(stage.name, len(stage.jobs), stage.config) for stage in stages] == [
        ("study-0", 6, None), ("study-1", 4, None), ("study-2", 6, None), ("study-3", 4, None)
    ]  # fmt: skip
    configs = [[job.config for job in stage.jobs] for stage in stages]
    assert {config.recipe for config in configs[0]} == {"probe", "mae_nohuman"}
    assert {config.phase for config in configs[1]} == {"classify"}
    averages = [config[:-1] for config in configs[2] if isinstance(config, list)]
    assert averages == [["study", spec, "--out", "runs/study", "--device", "cpu", "--only"]] * 2
    assert all(job.ranks == 2 for stage in stages for job in stage.jobs) and cluster.nodes == 2
    listing = json.loads((tmp_path / "runs/study/made.study.json").read_text())
    assert len(listing["rows"]) == 12 and len({stage.folder for stage in stages}) == 4


def test_a_failed_run_cancels_only_what_starts_from_it(spec):
    """An array waits for the jobs that its runs start from: when stage 1 of seed 0 fails, seed 1 and random weights go on."""
    _, stages = plan("study", [spec, *ARGV])
    ids = [[f"{41 + level}_{job}" for job in range(len(stage.jobs))] for level, stage in enumerate(stages)]
    names = {
        ids[level][number]: job.config[-1] if job.run_dir is None else job.run_dir.name
        for level, stage in enumerate(stages)
        for number, job in enumerate(stage.jobs)
    }
    failed = {job for job, name in names.items() if name.startswith("stage1-s0-")}
    for level, stage in enumerate(stages):
        for after, members in arrays(stage, ids[:level]).items():
            failed |= {ids[level][number] for number in members if failed & set(after)}
    seed_0 = {job for job, name in names.items() if "-s0-" in name and not name.startswith("random.")}
    assert failed == seed_0 and len(failed) == 8


def test_finished_runs_are_not_submitted_again(spec, tmp_path):
    from ppma.study.work import StudyConfig
    from ppma.study.work import plan as planned

    options = StudyConfig(spec=tmp_path / spec, out=tmp_path / "runs/study")
    for run in planned(options, make_data=False).runs:
        if run.seed == 0 or run.name == "stage1":
            end(run)
    assert [len(stage.jobs) for stage in plan("study", [spec, *ARGV])[1]] == [4, 3, 2]
    for run in planned(options, make_data=False).runs:
        if run.state() == "open":
            end(run)
    with pytest.raises(InputError, match="ppma report runs/study"):
        plan("study", [spec, *ARGV])


def test_the_dry_run_shows_arrays_and_each_fault_of_the_data_once(spec, tmp_path, capsys):
    assert launch(["study", spec, *ARGV, "--dry-run"]) == WRONG_INPUT  # the clips do not exist
    text, refused = capsys.readouterr()
    assert text.count("#SBATCH --array=0-") == 7 and text.count("afterok:STAGE-1_2\n") == 1 and "full, seed 1" in text
    assert [refused.count(f"[{name}.train]") for name in ("ucf101", "no-human-kinetics")] == [1, 1]
    assert not (tmp_path / "runs").exists()


def test_impossible_studies_are_refused(spec, tmp_path, capsys):
    assert launch(["study", spec, *ARGV, "--nodes", "3", "--dry-run"]) == WRONG_INPUT
    assert "3 ranks" in capsys.readouterr().err
    (tmp_path / "spec.toml").write_text(TEXT.replace('compare = "full"', 'compare = "full"\ndraw = {}'))
    assert launch(["study", spec, *ARGV, "--dry-run"]) == WRONG_INPUT
    assert "ppma study spec.toml --out runs/study --only data" in capsys.readouterr().err


@pytest.mark.slurm
@pytest.mark.slow
def test_slurm_runs_a_study_in_arrays(slurm_cluster, tmp_path):
    """Draw here, train there on two ranks, one array after the other; then nothing is left to submit, and the report is complete."""
    out = tmp_path / "out"
    argv = ["study", str(tmp_path / "spec.toml"), "--out", str(out), "--device", "cpu"]
    (tmp_path / "spec.toml").write_text(SPEC)
    assert ppma([*argv, "--only", "data", "--workers", "1"]) == DONE
    done = submit([*argv, *PLACE, "--runs", str(tmp_path / "jobs")], slurm_cluster.environment)
    assert done.returncode == DONE, done.stderr
    assert [f"submitted study-{level}" in done.stdout for level in range(4)] == [True] * 4
    wait_until(lambda: not slurm_cluster("squeue", "-h").strip(), 500)
    ends = [log.read_text()[-2000:] for log in tmp_path.glob("jobs/*/*/jobs/*_0_log.out")]
    assert len(list(out.glob("runs/*/seal.json"))) == RUNS, ends
    assert ppma(["report", str(out), "--out", str(tmp_path / "report")]) == DONE
    again = submit([*argv, *PLACE, "--runs", str(tmp_path / "jobs")], slurm_cluster.environment)
    assert again.returncode == WRONG_INPUT and "ppma report" in again.stderr
