"""One run on two nodes and twenty faults at random times: it ends by itself, with the weights of an undisturbed run.

    seed  ->  faults and their steps  ->  one submission  ->  timeline, ETTR, weights equal to the bit

The run to compare with skips the steps whose loss was NaN. `tests/faults/sitecustomize.py` makes the faults inside the ranks.
"""

import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tiny
from slurm_runs import Run, flags, launch, with_faults
from tiny import equal, weights

from tests.slurm.test_job import processes_of_rank

RANKS, STEPS, EVERY, HANG_SECONDS, PACE_SECONDS = 4, 1500, 20, 30, 0.1
EARLY = 0.25
"""Share of the faults that come some seconds after the one before."""
DISK_MIB, FULL_SECONDS = 64, 10
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
TELLING = re.compile(
    r"resumed at step|damaged|the run hangs|taking over|^restart: |does not see|killed by|[Nn]o space|exclude"
)
"""Lines of logs that the timeline repeats."""


class FaultyRun(Run):
    """A run whose state is watched, and what happens to it."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.timeline: list[str] = []
        self.state, self.damaged, self.read = ("", 0), set[str](), dict.fromkeys(range(RANKS), 0)

    def note(self, text: str) -> None:
        """Add a line to the timeline, with the time and the newest step."""
        self.timeline.append(f"{time.time() - self.submitted:6.1f} s  step {self.step():5d}  {text}")
        sys.stdout.write(self.timeline[-1] + "\n")
        sys.stdout.flush()

    def look(self) -> str:
        """Return the job's state; note a change, and what the ranks say of it."""
        words = dict(word.partition("=")[::2] for word in self.cluster("scontrol", "show", "job", self.job).split())
        state = words["JobState"], int(words["Restarts"])
        if state != self.state:
            self.state = state
            why = f", {words['Reason']}" if words["Reason"] != "None" else ""
            self.note(f"    {state[0].lower()}, {state[1]} restarts{why}")
        for rank, begin in self.read.items():
            text = self.log(rank)
            self.read[rank] = text.rfind("\n") + 1
            lines = filter(TELLING.search, text[begin : self.read[rank]].splitlines())
            for line in dict.fromkeys(lines if rank == 0 else (line for line in lines if "resumed" not in line)):
                self.note(f"    rank {rank}: {line.replace(str(self.folder.parent) + '/', '')[:200]}")
        return state[0]

    def follow(self, what: str, true: Callable[[], bool], seconds: float) -> None:
        """Wait for a condition as long as the run is alive."""
        end = time.monotonic() + seconds
        while not true():
            state = self.look()
            if state in ENDS or time.monotonic() > end:
                logs = "\n".join(f"--- rank {rank}\n{self.log(rank)[-3000:]}" for rank in range(RANKS))
                pytest.fail("\n".join([logs, *self.timeline, f"{state}: no {what}"]), pytrace=False)
            time.sleep(0.3)

    def follow_step(self) -> None:
        """Wait until the run takes a step; after a resume the steps are counted from an older one."""
        steps = [self.step()]

        def taken() -> bool:
            steps.append(self.step())
            return steps[-1] > steps[-2]

        self.follow("step", taken, 300)

    def requeue(self) -> None:
        """Requeue the job and wait until none of its processes is left."""
        self.follow("start", lambda: self.look() == "RUNNING", 180)
        before = self.state[1]
        self.cluster("scontrol", "requeue", self.job)
        self.follow("requeue", lambda: self.look() == "PENDING" and self.state[1] > before, 120)

    def intact(self) -> list[Path]:
        """Checkpoints that no fault has damaged, oldest first."""
        found = sorted(self.folder.glob("checkpoints/step_????????"))
        return [path for path in found if str(path) not in self.damaged]


def pick_rank(run: FaultyRun, dice: random.Random) -> tuple[int, int]:
    """Return a rank whose process is alive, and its process ID."""
    alive: dict[int, int] = {}

    def find() -> bool:
        alive.update({rank: pid for rank in range(RANKS) for pid in processes_of_rank(run, rank)})
        return len(alive) == RANKS

    run.follow("process of a rank", find, 180)
    rank = dice.randrange(RANKS)
    return rank, alive[rank]


def kill_rank(run: FaultyRun, dice: random.Random) -> str:
    rank, pid = pick_rank(run, dice)
    os.kill(pid, signal.SIGKILL)
    return f"SIGKILL of rank {rank}"


def kill_worker(run: FaultyRun, dice: random.Random) -> str:
    run.follow_step()
    rank, parent = pick_rank(run, dice)
    for child in psutil.Process(parent).children():
        if any("loaders.decode.workers" in word for word in child.cmdline()):
            child.kill()
    return f"SIGKILL of the loader worker of rank {rank}"


def stop_rank(run: FaultyRun, dice: random.Random) -> str:
    run.follow_step()
    rank, pid = pick_rank(run, dice)
    os.kill(pid, signal.SIGSTOP)
    return f"SIGSTOP of rank {rank}"


def crash_node(run: FaultyRun, dice: random.Random) -> str:
    node = f"node{dice.randrange(2) + 1}"
    run.cluster.power("kill-node", node)
    off = time.monotonic() + dice.uniform(0, 20)
    run.follow("reboot", lambda: time.monotonic() > off, 60)
    run.cluster.power("boot-node", node)
    return f"{node} lost power"


def fail_node(run: FaultyRun, dice: random.Random) -> str:
    node = f"node{dice.randrange(2) + 1}"
    run.cluster("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=fault")
    time.sleep(dice.uniform(1, 5))
    run.cluster("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)  # it may be back by itself
    return f"{node} set DOWN for a moment"


def preempt(run: FaultyRun, dice: random.Random) -> str:
    run.cluster("sbatch", "-p", "high", "-N", "2", "--exclusive", "--mem=1G", "-o", "/dev/null", "--wrap", "sleep 1")
    return "preemption"


def fill_disk(run: FaultyRun, dice: random.Random) -> str:
    filler = run.folder.parent / "filler"
    end = time.monotonic() + FULL_SECONDS
    with filler.open("wb", buffering=0) as file:
        while time.monotonic() < end:
            try:
                file.write(bytes(4096))
            except OSError:
                time.sleep(0.1)
    filler.unlink()
    return f"the disk was full for {FULL_SECONDS} s"


def damage_checkpoint(run: FaultyRun, dice: random.Random) -> str:
    run.follow("two checkpoints to choose from", lambda: len(run.intact()) > 1, 180)
    run.requeue()
    *_, newest = run.intact()
    file = dice.choice(sorted(newest.iterdir()))
    content = bytearray(file.read_bytes())
    if dice.random() < 0.5:
        bit = dice.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        what = f"bit {bit} flipped"
    else:
        del content[len(content) // 2 :]
        what = "cut in half"
    file.write_bytes(content)
    run.damaged.add(str(newest))
    return f"requeued, {newest.name}/{file.name} {what}"


def hide_checkpoint(run: FaultyRun, dice: random.Random) -> str:
    run.follow("a checkpoint", lambda: bool(run.intact()), 180)
    run.requeue()
    rank, hidden = dice.randrange(RANKS), run.intact()[-1].name
    Path(run.cluster.environment["PPMA_FAULTS"], f"stale-{rank}").write_text(hidden)
    return f"requeued, rank {rank} does not see {hidden}"


FAULTS: dict[Callable[[FaultyRun, random.Random], str], int] = {
    kill_rank: 4, kill_worker: 2, stop_rank: 2, crash_node: 2, fail_node: 1, preempt: 1, fill_disk: 1, damage_checkpoint: 2,
    hide_checkpoint: 2,
}  # fmt: skip
NANS = 3
"""Faults that the driver makes, and how many; the rest of the twenty are steps with a NaN."""


@pytest.fixture
def small_disk(slurm_cluster, tmp_path):
    """A disk of a few MiB that both nodes see: mounted here, then the nodes boot."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "faults", mount], check=True)
    for node in ("node1", "node2"):
        slurm_cluster.power("boot-node", node)
    yield mount
    slurm_cluster("scancel", "-u", "root")
    shutil.rmtree(mount / "runs", ignore_errors=True)
    subprocess.run(["umount", "-l", mount], check=True)


def set_up(seed: int, folder: Path, environment: dict[str, str]) -> tuple[random.Random, list[int], dict[str, str]]:
    """Return the dice, the steps with a NaN, and the environment of ranks that make them."""
    dice = random.Random(seed)
    nans = {dice.randrange(20, STEPS - 20): dice.randrange(RANKS) for _ in range(NANS)}
    return dice, sorted(nans), with_faults(environment, folder, nans, PACE_SECONDS)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(3600)
@pytest.mark.promise("R1")
@pytest.mark.parametrize("seed", [0])
def test_slurm_twenty_faults_in_one_run_change_no_bit(seed, slurm_cluster, small_disk, clip_tree, tmp_path, figure):
    data = tiny.make_data(tmp_path, clip_tree, "train")
    dice, nans, environment = set_up(seed, tmp_path / "faults", slurm_cluster.environment)
    cluster = replace(slurm_cluster, environment=environment)
    faults = [fault for fault, count in FAULTS.items() for _ in range(count)]
    dice.shuffle(faults)
    settings = ["--checkpoint-every", str(EVERY), "--hang-seconds", str(HANG_SECONDS)]
    run = FaultyRun(cluster, data, small_disk / "runs" / "run", STEPS, *settings)
    run.note(f"seed {seed}; NaN in steps {nans}")
    part = STEPS // (len(faults) + 1)
    for number, fault in enumerate(faults):
        step, end = dice.randrange(part * number + 1, part * (number + 1)), time.monotonic() + dice.uniform(0, 25)
        early = dice.random() < EARLY and fault is not stop_rank  # perhaps while the run starts again
        moment = (lambda: time.monotonic() > end) if early else (lambda: run.step() >= step)  # noqa: B023
        run.follow("early fault" if early else f"step {step}", moment, 300)
        run.note(f"{number + 1}: {fault.__name__}")
        run.note(f"{number + 1}: {fault(run, dice)}")
    run.follow("last step", lambda: run.look() == "COMPLETED" or run.step() == STEPS, 600)
    run.follow("end", lambda: run.look() == "COMPLETED", 120)
    wall = time.time() - run.submitted
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    step_seconds = statistics.median(8 / row["perf/clips_per_s"] for row in rows)
    ettr = STEPS * step_seconds / wall
    run.note(f"ETTR {ettr:.2f}: {STEPS} steps of {step_seconds:.3f} s in {wall:.0f} s, {run.restarts()} restarts")
    place = ["--cluster", "local", "--gpus-per-node", "0", "--tasks-per-node", str(RANKS)]
    whole = [*flags(data, tmp_path / "whole", STEPS), *place]
    done = launch(whole, {**environment, "PPMA_FAULTS_SKIP": "1", "PPMA_FAULTS_PACE": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert equal(weights(run.folder), weights(tmp_path / "whole"))
    figure("R1", f"{len(faults) + NANS} faults in one run on SLURM: ends by itself, 0 bits differ, ETTR {ettr:.2f}")
