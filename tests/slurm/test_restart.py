"""The end of the job script: which ends of a run requeue it, how often, and on which nodes."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.helpers import DelayedSubmission

from ppma.common import files
from ppma.config.run import RunConfig
from ppma.slurm import restart
from ppma.slurm.job import Job, command, train
from ppma.slurm.restart import Restart, decide, read_ends, verdict
from ppma.training.run_folder import NAN_STOP


def test_one_exit_code_for_those_of_the_tasks_and_of_srun():
    """Of (75, 75) and 137 a task did not answer and was killed with its peers; 137 alone is out of memory, or kill -9."""
    cases = {((0, 0), 0): 0, ((75, 75), 75): 75, ((75, 75), 137): 75, ((), 75): 75, ((), 137): 137, ((75, 1), 75): 1, ((1,), 1): 1,
             ((2, 75), 75): 2, ((), 1): 1}  # fmt: skip
    assert {case: verdict(*case) for case in cases} == cases


class Cluster:
    """A run as job 7, and commands of SLURM that record their calls; `sbatch --test-only` refuses what `refused` names."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, job: object = None) -> None:
        self.folder, self.calls, self.refused, self.excluded = folder, list[list[str]](), "nothing", ""
        config = RunConfig(recipe="mae_nohuman", phase="mae", sources=("made",), run_dir=folder)
        self.pickle(job or Job(work=train, config=config, max_restarts=2))
        monkeypatch.setattr(restart, "ask", self._ask)
        monkeypatch.setattr(restart.signal, "signal", lambda *_: None)
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", "7")

    def pickle(self, job: object, name: str = "7") -> None:
        DelayedSubmission(job).dump(self.folder / f"{name}_submitted.pkl")

    def _ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.calls.append(list(words))
        refused = words[0] == "sbatch" and self.refused in " ".join(words)
        return subprocess.CompletedProcess(words, int(refused), self.excluded if words[0] == "squeue" else "", "no")

    def ends(self, code: int, *lines: str) -> int:
        """Let a start of the job end with `code`, after these lines in the log of the first task; returns the decision."""
        with (self.folder / "7_0_log.out").open("a") as log:
            log.write("\n".join(["submitit INFO (now) - Starting with JobEnvironment(job_id=7)", *lines, ""]))
        return decide(Restart(logs=self.folder, code=code))

    def requeues(self) -> int:
        """How often the job was requeued."""
        return self.calls.count(["scontrol", "requeue", "7"])

    def save(self, step: int) -> None:
        (self.folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return Cluster(tmp_path, monkeypatch)


@pytest.mark.parametrize("code", [1, 75, 137, 139])
def test_any_end_is_requeued_until_restarts_make_no_progress(code, cluster, capsys):
    """Two are allowed without a newer checkpoint; one that moved the checkpoint is not counted."""
    assert [cluster.ends(code) for _ in range(2)] == [code] * 2 and cluster.requeues() == 2
    cluster.save(100)
    assert [cluster.ends(code) for _ in range(4)] == [code] * 4 and cluster.requeues() == 5
    assert "step 100" in capsys.readouterr().err


def test_a_checkpoint_that_was_damaged_meanwhile_is_no_progress(cluster):
    cluster.save(100)
    cluster.save(200)
    cluster.ends(1)
    newest = cluster.folder / "checkpoints" / "step_00000200"
    newest.rename(newest.with_name("step_00000200.damaged"))
    for _ in range(3):
        cluster.ends(1)
    assert cluster.requeues() == 3


def test_scored_videos_are_progress(cluster):
    """Also where the next pass over videos begins at 0; a pass that does not go on is given up."""
    for scored in (3, 7, 0, 2, 2, 2):
        shutil.rmtree(cluster.folder / "scored", ignore_errors=True)
        for number in range(scored):
            (cluster.folder / "scored" / "key").mkdir(parents=True, exist_ok=True)
            (cluster.folder / "scored" / "key" / f"{number:08d}.safetensors").touch()
        cluster.ends(1)
    assert cluster.requeues() == 6
    cluster.ends(1)
    assert cluster.requeues() == 6


@pytest.mark.parametrize(("code", "requeues"), [(1, 2), (75, 2), (137, 2), (2, 0), (3, 0)])
def test_a_failed_part_of_a_data_job_is_retried(code, requeues, tmp_path, monkeypatch):
    """A preemption is no failure: it is requeued as often as it comes."""
    job = Job(work=command, config=["pack"], results=tmp_path / "failures-0", max_restarts=2)
    cluster = Cluster(tmp_path, monkeypatch, job)
    assert all(job.checkpoint() for _ in range(5))
    assert [cluster.ends(code) for _ in range(4)] == [code] * 4 and cluster.requeues() == requeues


def test_a_new_submission_has_all_its_restarts(cluster, monkeypatch):
    for _ in range(3):
        cluster.ends(1)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    cluster.pickle(DelayedSubmission.load(cluster.folder / "7_submitted.pkl").function, "8")
    assert decide(Restart(logs=cluster.folder, code=1)) == 1
    assert cluster.requeues() == 2 and cluster.calls[-1] == ["scontrol", "requeue", "8"]


def test_a_full_disk_does_not_keep_a_job_from_running_again(cluster, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda _: Path("/dev/full").write_text("x"))
    with Path("/dev/full").open("w", buffering=1) as log:
        monkeypatch.setattr(restart.sys, "stderr", log)
        assert cluster.ends(75) == 75 and cluster.requeues() == 1
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            log.close()


def test_what_would_fail_again_is_not_requeued(cluster):
    (cluster.folder / "7_0_result.exit").write_text("2")
    assert cluster.ends(2) == 2
    (cluster.folder / "7_0_result.exit").write_text("3")
    assert cluster.ends(3) == 3
    (cluster.folder / "7_0_result.exit").write_text("1")
    (cluster.folder / NAN_STOP).write_text("the loss stays NaN")
    assert cluster.ends(1) == 1
    assert cluster.requeues() == 0 and [end.code for end in read_ends(cluster.folder)] == [2, 3, 1]
    (cluster.folder / NAN_STOP).unlink()
    cluster.save(1)
    assert cluster.ends(1) == 1 and cluster.requeues() == 1


def test_a_success_and_a_job_that_trains_nothing_are_left_alone(tmp_path, monkeypatch):
    cluster = Cluster(tmp_path, monkeypatch, Job(work=command, config=["pack"]))
    assert cluster.ends(0) == 0 and cluster.ends(1) == 1
    assert cluster.calls == [] and not (tmp_path / "restarts.json").exists()


def test_a_task_of_an_array_is_queued_by_its_index(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    cluster.pickle(DelayedSubmission.load(cluster.folder / "7_submitted.pkl").function, "9_3")
    assert decide(Restart(logs=cluster.folder, code=75)) == 75
    assert cluster.calls == [["scontrol", "requeue", "9_3"]]


def test_a_controller_that_does_not_answer_is_asked_again(cluster, monkeypatch):
    answers = iter([1, 0])
    monkeypatch.setattr(restart, "TRY_SECONDS", 0)
    monkeypatch.setattr(restart, "ask", lambda *words: subprocess.CompletedProcess(words, next(answers), "", "down"))
    assert cluster.ends(1) == 1 and next(answers, "asked twice") == "asked twice"


KILLED = ("srun: error: node2: task 3: Killed", "srun: error: node1: tasks 0-1: Exited with exit code 1")


def test_a_node_that_failed_twice_is_excluded_from_then_on(cluster):
    cluster.excluded = "node9\n"
    cluster.ends(137, *KILLED)
    cluster.ends(1, "srun: error: node1: task 0: Exited with exit code 1")
    assert not any("ExcNodeList" in call[-1] for call in cluster.calls)
    cluster.save(10)
    cluster.ends(137, *KILLED)
    assert cluster.calls[-2:] == [
        ["scontrol", "requeue", "7"],
        ["scontrol", "update", "JobId=7", "ExcNodeList=node9,node2"],
    ]


def test_a_node_is_kept_without_which_the_job_could_never_start(cluster, capsys):
    cluster.refused = "--exclude=node2"
    for _ in range(2):
        cluster.ends(137, *KILLED)
    assert cluster.requeues() == 2 and cluster.calls[-1] == ["scontrol", "requeue", "7"]
    assert "cannot do without node2" in capsys.readouterr().err


def test_a_hang_blames_no_node(cluster):
    """The watchdog ends all ranks, and SLURM kills those that have not exited with the first."""
    hang = ("srun: error: node1: task 0: Exited with exit code 75", "srun: error: node2: task 3: Killed")
    for _ in range(2):
        cluster.ends(75, "no step for 30 s (hang_seconds): the run hangs", *hang)
    assert not any("ExcNodeList" in call[-1] for call in cluster.calls)
    assert read_ends(cluster.folder)[0].error.startswith("no step for 30 s")


def test_the_error_is_that_of_the_task_that_failed_first(cluster):
    (cluster.folder / "7_3_log.out").write_text("Traceback (most recent call last):\nRuntimeError: no luck\n")
    cluster.ends(1, "RuntimeError: connection closed by peer", "srun: error: node2: task 3: Exited with exit code 1")
    (end,) = read_ends(cluster.folder)
    assert (end.node, end.error) == ("node2", "task 3 on node2: RuntimeError: no luck")


def test_the_end_of_an_earlier_start_is_not_that_of_this_one(cluster):
    """A preemption and an administrator's requeue leave srun's lines in the log, and no line of `restart`."""
    (cluster.folder / "7_0_log.out").write_text("srun: error: node2: task 3: Killed\n")
    cluster.ends(137, "srun: error: node1: task 0: Killed")
    (end,) = read_ends(cluster.folder)
    assert (end.node, end.error) == ("node1", "task 0 on node1: Killed")


def test_the_script_can_start_it(tmp_path):
    """No run folder and no scontrol: the exit code of srun is passed on."""
    DelayedSubmission(Job(work=command, config=[])).dump(tmp_path / "1_submitted.pkl")
    line = [sys.executable, "-m", "ppma.slurm.restart", "--logs", str(tmp_path), "--code", "3"]
    variables = {"SLURM_JOB_ID": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
