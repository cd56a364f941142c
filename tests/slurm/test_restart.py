"""The end of the job script: which exit codes requeue a job, and how often without progress."""

import subprocess
import sys

import pytest

from ppma.slurm import restart
from ppma.slurm.restart import Restart, decide, verdict


@pytest.mark.parametrize(
    ("codes", "srun", "code"),
    [
        ([0, 0], 0, 0),
        ([75, 75], 75, 75),
        ([75, 75], 137, 75),  # a task that did not answer was killed with its peers
        ([], 75, 75),
        ([], 137, 137),  # out of memory, or kill -9
        ([75, 1], 75, 1),
        ([1], 1, 1),
        ([2, 75], 75, 2),
        ([], 1, 1),
    ],
)
def test_verdict(codes, srun, code):
    assert verdict(codes, srun) == code


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A job that left 75, a run folder, and the calls of scontrol."""
    calls = []
    monkeypatch.setattr(restart.subprocess, "run", lambda command, **_: calls.append(command))
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "7_0_result.exit").write_text("75")
    return tmp_path, calls


def save(folder, step):
    (folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


def test_the_count_of_restarts_starts_again_with_each_checkpoint(run, capsys):
    folder, calls = run
    asked = Restart(logs=folder, run_dir=folder, code=75, max_restarts=2)
    assert [decide(asked) for _ in range(2)] == [75, 75] and calls == [["scontrol", "requeue", "7"]] * 2
    save(folder, 100)
    assert decide(asked) == 75 and len(calls) == 3
    assert decide(asked) == 75 and len(calls) == 4
    assert decide(asked) == 75 and len(calls) == 4
    assert "step 100" in capsys.readouterr().err


def test_other_codes_are_passed_on(run):
    folder, calls = run
    assert decide(Restart(logs=folder, run_dir=folder, code=0)) == 0
    (folder / "7_0_result.exit").unlink()
    assert decide(Restart(logs=folder, run_dir=folder, code=1)) == 1
    assert calls == [] and not (folder / "restarts.json").exists()


def test_a_task_of_an_array_is_queued_by_its_index(run, monkeypatch):
    folder, calls = run
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert decide(Restart(logs=folder, run_dir=folder, code=75)) == 75
    assert calls == [["scontrol", "requeue", "9_3"]]


def test_the_script_can_start_it(tmp_path):
    flags = f"--logs {tmp_path} --run-dir {tmp_path} --max-restarts 5 --code 3".split()
    command = [sys.executable, "-m", "ppma.slurm.restart", *flags]
    done = subprocess.run(command, env={"SLURM_JOB_ID": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
