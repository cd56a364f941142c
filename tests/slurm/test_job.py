"""Jobs on a real SLURM, two nodes of two tasks: training through the launcher, and everything that ends a job early."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from processes import ppma_on_ranks
from slurm_runs import ROOT, Run, flags, launch, with_faults
from tiny import equal, weights
from waiting import wait_until

from ppma.config.command import RUN_AGAIN, WRONG_INPUT
from ppma.slurm.launch import main
from ppma.slurm.restart import read_ends

EPOCHS, PACE_SECONDS = 60, 0.2
"""Steps too: ranks that sleep before each step are preempted, which takes SLURM at most five seconds, long before the last one."""


@pytest.fixture(scope="module")
def data(tmp_path_factory, clip_tree):
    """A data catalog with the source `made`."""
    return tiny.make_data(tmp_path_factory.mktemp("data"), clip_tree, "train")


@pytest.fixture
def cluster(slurm_cluster):
    """The cluster, its queue empty again after the test."""
    yield slurm_cluster
    slurm_cluster("scancel", "-u", "root")


def never_stopped(data, run_dir, epochs, ranks=4):
    """Return the weights of the same run on ranks of this machine."""
    words = flags(data, run_dir, epochs)
    argv = ["train", "mae_nohuman", "--run-dir", str(run_dir), *words[words.index("--data") :]]
    codes, output = ppma_on_ranks(ranks, argv, run_dir.with_name("logs"))
    assert codes == [0] * ranks, output
    return weights(run_dir)


def steps_at_stop(run):
    """Steps at which rank 0 wrote a last line before it was queued again, and those at which it resumed."""
    log = run.log()
    resumed = [int(step) for step in re.findall(r"resumed at step (\d+)", log)]
    parts = log.split("Loading pickle")[1:]
    last = [max((int(step) for step in re.findall(r"(?<!at )\bstep (\d+) of", part)), default=0) for part in parts]
    return last[:-1], resumed


@pytest.mark.slurm
@pytest.mark.promise("R5")
@pytest.mark.timeout(1200)  # the start of the cluster included
def test_slurm_trains_on_two_nodes_and_survives_a_preemption_to_the_bit(cluster, data, tmp_path):
    paced = with_faults(cluster.environment, tmp_path / "faults", {}, PACE_SECONDS)
    run = Run(replace(cluster, environment=paced), data, tmp_path / "run", EPOCHS)
    assert all(words in run.printed for words in ("follow the log:", "tensorboard --logdir", f"scancel {run.job}"))
    run.wait_for_step(5)
    run.preempt()
    assert 5 <= run.step() < EPOCHS
    shown = launch(["status", str(run.folder)], cluster.environment)
    assert shown.returncode == 0 and re.search(r"state +(running|completing|pending) \(job", shown.stdout), shown
    whole = never_stopped(data, tmp_path / "whole", EPOCHS)
    run.wait_for_end()
    stopped, resumed = steps_at_stop(run)
    assert resumed == stopped  # no step was lost
    assert equal(weights(run.folder), whole)
    assert [row["step"] for row in run.rows()] == list(range(1, EPOCHS + 1))
    ranks = [re.search(r"rank \d of 4 on (\w+) joins at node1:\d+ over gloo", run.log(rank)) for rank in range(4)]
    assert [rank[1] for rank in ranks] == ["node1", "node1", "node2", "node2"]
    assert "4 ranks on 2 nodes: node1, node2" in run.log()
    assert not any("Traceback" in run.log(rank) for rank in range(4))
    shown = launch(["status", str(run.folder)], cluster.environment).stdout
    assert "completed" in shown and f"{EPOCHS} of {EPOCHS}" in shown and re.search(r"restarts +1", shown)
    assert re.search(r"ETTR +\d+\.\d% of 0:\d\d:\d\d; queue \d", shown) and "lost steps 0.0%" in shown


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("--partition long", "high, main"),
        ("--nodes 3", "partition main has 2"),
        ("--gpus-per-node 8 --tasks-per-node 1", "nodes of partition main have up to 4"),
        ("--time 8-00:00:00", "partition main allows up to 7-00:00:00"),
        ("--cpus-per-task 100", "have up to"),
        ("--account nobody", "--account takes lab"),
        ("--qos fastest", "--qos takes"),
        ("--nodelist node7", "node1, node2"),
        ("--constraint fast", "--constraint takes even, fake, odd"),
        ("--mem-gib 4000", "MB of memory that nodes have: 65536"),
        ("--sources nowhere", "has no source nowhere.train"),
        ("--init gone", "no checkpoint here"),
    ],
)
def test_slurm_refuses_in_one_line_and_submits_nothing(wrong, words, cluster, data, tmp_path, monkeypatch, capsys):
    for name in ("PATH", "SLURM_CONF", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, cluster.environment[name])
    few = ["--gpus-per-node", "0", "--cpus-per-task", "1", "--batch", "12"]
    assert main([*flags(data, tmp_path / "runs" / "run", 2), *few, *wrong.split()]) == WRONG_INPUT
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "runs" / "run").exists() and cluster("squeue", "-h") == ""


@pytest.mark.slurm
def test_slurm_whole_nodes_are_the_default(cluster, data, tmp_path):
    """Four GPUs and 16 cores a node: a rank for each GPU, with a fourth of the cores."""
    done = launch([*flags(data, tmp_path / "run", 2), "--nodes", "1", "--dry-run"], cluster.environment)
    assert done.returncode == 0 and done.stderr == ""
    sizes = ("gpus-per-node=4", "ntasks-per-node=4", "cpus-per-task=4")
    assert all(f"#SBATCH --{size}\n" in done.stdout for size in sizes)


# ------------------------------------------------------------------------------------------------------- make slow


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_a_node_that_is_down_is_refused_by_name(cluster, data, tmp_path):
    cluster.power("kill-node", "node2")
    try:
        wait_until(lambda: "down" in cluster("sinfo", "-h", "-N", "-n", "node2", "-o", "%T"), 150)
        few = ["--gpus-per-node", "0", "--cpus-per-task", "1", "--nodelist", "node2"]
        done = launch([*flags(data, tmp_path / "run", 2), *few], cluster.environment)
        assert done.returncode == WRONG_INPUT and done.stderr.count("\n") == 1
        assert re.search(r"--nodelist: node2 is down\S*; usable nodes of partition main are node1", done.stderr)
        assert not (tmp_path / "run").exists() and cluster("squeue", "-h") == ""
    finally:
        cluster.power("boot-node", "node2")


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(2400)
@pytest.mark.promise("R5")
def test_slurm_ten_preemptions_change_nothing(cluster, data, tmp_path, figure):
    epochs = 1500  # a preemption takes SLURM five seconds, in which an idle machine makes a hundred steps
    run = Run(cluster, data, tmp_path / "run", epochs)
    for number in range(10):
        before = run.saved()
        run.wait_for_step(before + 15)
        if number % 2:
            run.preempt()
        else:  # what submitit sends for its tests, and SLURM at the end of the time
            restarts = run.restarts()
            cluster("scancel", "--signal=USR2", run.job)
            run.wait("restart", lambda: run.restarts() > restarts)  # noqa: B023
    run.wait_for_end()
    assert run.restarts() == 10
    stopped, resumed = steps_at_stop(run)
    assert resumed == stopped and len(resumed) == 10
    assert equal(weights(run.folder), never_stopped(data, tmp_path / "whole", epochs))
    figure("R5", "10 preemptions of 4 ranks on SLURM: 0 steps lost, 0 differing bits")


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_time_limit_is_a_preemption(cluster, data, tmp_path):
    """SLURM announces the end of two minutes half a minute before; the job goes on under the same number."""
    limit = ["--time", "2", "--signal-delay-s", "30", "--checkpoint-every", "100000"]
    run = Run(cluster, data, tmp_path / "run", 100_000, *limit)
    run.wait("restart", lambda: run.restarts() >= 1, 240)
    assert run.saved() == run.step() > 0


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_a_cancelled_job_stays_cancelled(cluster, data, tmp_path):
    run = Run(cluster, data, tmp_path / "run", 100_000)
    run.wait_for_step(5)
    cluster("scancel", run.job)
    run.wait_for_end("CANCELLED")
    time.sleep(10)  # it would be queued again by now
    assert run.fact("JobState") == "CANCELLED" and run.restarts() == 0
    assert run.saved() == run.step() > 0


def node_dies(run):
    run.cluster.power("kill-node", "node2")
    run.wait("requeue", lambda: run.restarts() >= 1, 120)
    run.cluster.power("boot-node", "node2")


def administrator_requeues(run):
    run.cluster("scontrol", "requeue", run.job)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("what", [node_dies, administrator_requeues])
def test_slurm_requeues_lose_one_checkpoint_interval_at_most(what, cluster, data, tmp_path):
    epochs, interval = 300, 20
    run = Run(cluster, data, tmp_path / "run", epochs, "--checkpoint-every", str(interval))
    run.wait_for_step(50)
    what(run)
    run.wait_for_end()
    stopped, resumed = steps_at_stop(run)
    # A minute after a lost node is back SLURM 22.05 may end the job there once more: that is a clean stop, with nothing lost.
    assert run.restarts() == len(resumed) >= 1
    assert all(0 <= last - first <= interval for last, first in zip(stopped, resumed, strict=True))
    assert equal(weights(run.folder), never_stopped(data, tmp_path / "whole", epochs))


def processes_of_rank(run, rank):
    """Processes of this machine that are that task of the job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        # The cluster's configuration too: another test run may have a cluster, whose jobs have the same numbers.
        conf = run.cluster.environment["SLURM_CONF"]
        wanted = {f"SLURM_JOB_ID={run.job}", f"SLURM_PROCID={rank}", f"SLURM_CONF={conf}"}
        if {word.encode() for word in wanted} <= set(variables) and b"submitit.core._submit" in command:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_a_killed_rank_is_requeued_and_leaves_a_node_after_two_failures(cluster, data, tmp_path):
    epochs, interval = 300, 20
    run = Run(cluster, data, tmp_path / "run", epochs, "--checkpoint-every", str(interval), "--nodes", "1")
    lost_at = []
    for number in (1, 2):
        run.wait_for_step(50 * number)
        (victim,) = processes_of_rank(run, 1)
        os.kill(victim, signal.SIGKILL)
        run.wait("restart", lambda: run.restarts() == number)  # noqa: B023
        lost_at.append(run.step())
    first, second = read_ends(run.folder)
    assert first.node == second.node == "node1" and first.error == "task 1 on node1: Killed"
    run.wait_for_end()
    assert run.fact("ExcNodeList") == "node1" and run.fact("NodeList") == "node2"
    _, resumed = steps_at_stop(run)
    assert all(0 <= lost - step <= interval for lost, step in zip(lost_at, resumed, strict=True))
    assert equal(weights(run.folder), never_stopped(data, tmp_path / "whole", epochs, ranks=2))


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.promise("R16")
def test_slurm_a_hang_is_logged_and_requeued(cluster, data, tmp_path):
    run = Run(cluster, data, tmp_path / "run", 200, "--checkpoint-every", "20", "--hang-seconds", "30")
    run.wait_for_step(50)
    (victim,) = processes_of_rank(run, 3)
    os.kill(victim, signal.SIGSTOP)
    run.wait("restart", lambda: run.restarts() == 1, 120)
    assert "the run hangs" in run.log() and "/ppma/training/trainer.py" in run.log()
    assert "requeued; 0 of 5 restarts without progress" in run.log()
    run.wait_for_end()
    (end,) = read_ends(run.folder)
    assert end.code == RUN_AGAIN and end.step >= 20 and "the run hangs" in end.error


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_jobs_run_the_code_of_their_submission(cluster, data, tmp_path):
    """A change in the copy is seen by the job that is queued again, so it is the copy that runs."""
    run = Run(cluster, data, tmp_path / "run", 150)
    run.wait_for_step(20)
    job = run.folder / "code" / "slurm" / "job.py"
    job.write_text(job.read_text().replace("faulthandler.enable()", 'faulthandler.enable(); print("the copy runs")', 1))
    run.preempt()
    run.wait_for_end()
    assert run.log().count("the copy runs") == 1


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_a_run_continues_on_another_number_of_nodes(cluster, data, tmp_path):
    """Two nodes, then one, then two again: global batch and samples stay, so in float64 only rounding is left."""
    epochs, double = 300, ["--precision", "fp64"]
    for number, place in enumerate((["--nodes", "2"], ["--nodes", "1"], ["--nodes", "2", "--tasks-per-node", "1"])):
        run = Run(cluster, data, tmp_path / "run", epochs, *double, *place, "--resume")
        if number < 2:
            run.wait_for_step(80 * number + 20)
            cluster("scancel", run.job)
            run.wait_for_end("CANCELLED")
            assert 80 * number + 20 <= run.saved() == run.step() < epochs
    run.wait_for_end()
    starts = json.loads((run.folder / "environment.json").read_text())
    assert [start["world_size"] for start in starts] == [4, 2, 2]
    assert [row["step"] for row in run.rows()] == list(range(1, epochs + 1))
    words = [*flags(data, tmp_path / "whole", epochs), *double, "--cluster", "local", "--gpus-per-node", "0"]
    done = launch(words, cluster.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = weights(tmp_path / "whole")
    assert all((value - whole[name]).abs().max() < 1e-10 for name, value in weights(run.folder).items())


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_packs_in_parts_and_trains_from_the_nodes_disk(cluster, data, tmp_path):
    """An array of two tasks and the job that merges them, then a training that copies the store and reads it into memory first."""
    catalog = tmp_path / "data.toml"
    catalog.write_text(data.read_text().replace('"made_train.csv"', f'"{data.parent}/made_train.csv"'))
    few = ["--cpus-per-task", "1", "--mem-gib", "2", "--time", "10", "--runs", str(tmp_path / "runs")]
    words = f"pack made --data {catalog} --out {tmp_path}/made.beton --workers 1 --parts 2".split()
    done = launch([*words, *few], cluster.environment)
    assert done.returncode == 0, done.stderr
    parts, merge = (json.loads(file.read_text())[-1]["jobs"] for file in sorted(tmp_path.glob("runs/**/launch.json")))
    wait_until(lambda: not cluster("squeue", "-h"), 300)
    assert len(parts) == 2 and "COMPLETED" in cluster("scontrol", "show", "job", merge[0])
    assert "store = " in catalog.read_text() and not list(tmp_path.glob("made.beton/.ppma-parts"))
    run = Run(cluster, catalog, tmp_path / "run", 5, "--stage-to", str(tmp_path / "disk"), "--warm")
    run.wait_for_end()
    logs = [run.log(rank) for rank in range(4)]
    assert sum("staged made.train" in log for log in logs) == 1  # the nodes of this cluster share their disk
    assert sum("made.train" in log and "already in" in log for log in logs) == 3
    assert [("warmed 1 sources" in log) for log in logs] == [True, False, True, False]
    config = json.loads((run.folder / "config.json").read_text())
    assert Path(config["data"]).parent == tmp_path / "disk"


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_launcher_costs_less_than_15_seconds(cluster, data, tmp_path):
    """Submission to first step, against the same four processes started by hand on this machine."""
    run = Run(cluster, data, tmp_path / "run", 20)
    run.wait_for_end()
    first = run.submitted, min(p.stat().st_mtime for p in run.folder.glob("checkpoints/step_*"))
    began = time.time()
    words = flags(data, tmp_path / "hand", 20)
    torchrun = f"-m torch.distributed.run --nproc-per-node 4 -m ppma train mae_nohuman --run-dir {tmp_path}/hand"
    command = [sys.executable, *torchrun.split(), *words[words.index("--data") :]]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    by_hand = min(p.stat().st_mtime for p in (tmp_path / "hand").glob("checkpoints/step_*")) - began
    assert first[1] - first[0] - by_hand < 15
