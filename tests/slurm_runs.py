"""A tiny run on the throw-away SLURM cluster, and what can happen to it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tiny
from conftest import SlurmCluster

ROOT = Path(__file__).resolve().parents[1]
PLACE = ["--gpus-per-node", "0", "--tasks-per-node", "2", "--cpus-per-task", "2", "--mem-gib", "2", "--time", "60"]


def flags(data: Path, run_dir: Path, epochs: int, *more: str) -> list[str]:
    """Stage 1 of a tiny model, one step per epoch, on the clips of `clip_tree`."""
    named = f"--run-dir {run_dir} --runs {run_dir.parent} --data {data} --sources made --optim.epochs {epochs} --batch 8".split()
    return ["align", "--recipe", "mae_nohuman", *named, *tiny.FLAGS, *tiny.MAE_FLAGS, "--pictures-every", "0", *more]


def launch(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """python slurm/launch.py ARGUMENTS, as a user types it."""
    command = [sys.executable, "slurm/launch.py", *arguments]
    one_thread = {**environment, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False, timeout=1200)


def with_faults(environment: dict[str, str], folder: Path, nans: dict[int, int], pace_seconds: float) -> dict[str, str]:
    """Return the environment of ranks that take their faults from a new folder, and that much time before each step.

    Args:
        environment: What it is added to.
        folder: See `tests/faults/sitecustomize.py`.
        nans: The rank whose loss is NaN, by step.
        pace_seconds: How long a rank sleeps before each step.
    """
    folder.mkdir()
    (folder / "nan.json").write_text(json.dumps(nans))
    path = os.pathsep.join(filter(None, [str(ROOT / "tests/faults"), environment.get("PYTHONPATH")]))
    return environment | {"PYTHONPATH": path, "PPMA_FAULTS": str(folder), "PPMA_FAULTS_PACE": str(pace_seconds)}


class Run:
    """A submitted run of 2 x 2 tasks."""

    def __init__(self, cluster: SlurmCluster, data: Path, run_dir: Path, epochs: int, *more: str) -> None:
        self.cluster, self.folder = cluster, run_dir
        self.submitted = time.time()
        done = launch([*flags(data, run_dir, epochs), "--nodes", "2", *PLACE, *more], cluster.environment)
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout
        self.job = json.loads((run_dir / "launch.json").read_text())[-1]["jobs"][0]

    def rows(self) -> list[dict]:
        """Lines of metrics that are complete."""
        file = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []

    def step(self) -> int:
        """The newest step."""
        return max((row["step"] for row in self.rows()), default=0)

    def saved(self) -> int:
        """Step of the newest checkpoint."""
        return max((int(path.name[5:]) for path in self.folder.glob("checkpoints/step_*")), default=0)

    def log(self, rank: int = 0) -> str:
        """The log of a rank."""
        file = self.folder / "jobs" / f"{self.job}_{rank}_log.out"
        return file.read_text() if file.exists() else ""

    def fact(self, name: str) -> str:
        """A field of `scontrol show job`."""
        words = self.cluster("scontrol", "show", "job", self.job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait(self, what: str, true: Callable[[], bool], seconds: float = 150) -> None:
        """Wait for a condition; fail with the logs after a time-out."""
        end = time.monotonic() + seconds
        while not true():
            logs = "\n".join(self.log(rank)[-3000:] for rank in range(4))
            assert time.monotonic() < end, f"no {what} of job {self.job} after {seconds} s:\n{logs}"
            time.sleep(0.3)

    def wait_for_step(self, step: int) -> None:
        """Wait until that step is logged."""
        self.wait(f"step {step}", lambda: self.step() >= step)

    def wait_for_end(self, state: str = "COMPLETED") -> None:
        """Wait until the job has ended, in this state."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait("end", lambda: self.fact("JobState") in ends, 300)
        assert self.fact("JobState") == state, self.log()[-5000:]

    def restarts(self) -> int:
        """How often SLURM restarted it."""
        return int(self.fact("Restarts"))

    def preempt(self) -> None:
        """Let a job of higher priority take both nodes for a second."""
        before = self.restarts()
        both = ("-p", "high", "-N", "2", "--exclusive", "--mem=1G", "-o", "/dev/null")
        self.cluster("sbatch", *both, "--wrap", "sleep 1")
        self.wait("restart", lambda: self.restarts() > before)
