"""The end of the job script: was the job stopped in good order, and may it run again?

    exit codes of the tasks, newest checkpoint, restarts so far  ->  scontrol requeue, or the job's exit code

`python -m ppma.slurm.restart` runs on the first node after srun. A signalled preemption never comes here: rank 0 has queued the job again
by then, with a checkpoint of that very step. What comes here is exit code 75 for another reason, above all a hang. A job that gets nowhere
must not hold its nodes for ever: it runs again at most `max_restarts` times without a newer checkpoint.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ppma.config.command import DONE, RUN_AGAIN, WRONG_INPUT, parse, run

RESTARTS = "restarts.json"
"""In the run folder: the step of the newest checkpoint at the last restart, and how often the job has restarted since it was there."""
_STEP = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Decide whether a job that has just ended runs again. Called by the job script."""

    logs: Path
    """Folder of the job's logs and exit codes."""
    run_dir: Path
    """Run folder."""
    code: int
    """Exit code of srun."""
    max_restarts: int = 5
    """Restarts without a newer checkpoint."""


def newest_step(run_dir: Path) -> int:
    """Step of the newest complete checkpoint, 0 without one; needs no torch."""
    folder = run_dir / "checkpoints"
    names = (_STEP.fullmatch(entry.name) for entry in folder.iterdir()) if folder.is_dir() else ()
    return max((int(name[1]) for name in names if name), default=0)


def job_name() -> str:
    """The job's number as submitit writes it: an array's with the index of the task."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def verdict(codes: list[int], code: int) -> int:
    """One exit code for the job from those its tasks left and srun's, the highest: a task that was ended with its peers has 137."""
    if code == DONE or WRONG_INPUT in codes:
        return WRONG_INPUT if code else DONE
    left = set(codes) | ({code} if code < 128 else set())
    if left <= {DONE, RUN_AGAIN}:
        return RUN_AGAIN if RUN_AGAIN in left else code
    return 1 if code == RUN_AGAIN else code


def count(run_dir: Path) -> int:
    """Note one more restart; returns how many there were without a newer checkpoint, this one included."""
    file, step = run_dir / RESTARTS, newest_step(run_dir)
    before = json.loads(file.read_text()) if file.exists() else {"step": step, "without_progress": 0}
    number = before["without_progress"] + 1 if before["step"] == step else 1
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps({"step": step, "without_progress": number}) + "\n")
    beside.replace(file)
    return number


def decide(restart: Restart) -> int:
    """Queue the job again where it wants to and may, else return the exit code."""
    files = list(restart.logs.glob(f"{job_name()}_*_result.exit"))
    code = verdict([int(file.read_text() or 1) for file in files], restart.code)
    if code != RUN_AGAIN:
        return code
    number = count(restart.run_dir)
    if number > restart.max_restarts:
        sys.stderr.write(
            f"restart: {restart.max_restarts} restarts without a checkpoint newer than step {newest_step(restart.run_dir)}; given up. "
            "The stacks above say where it hung\n"
        )
        return code
    sys.stderr.write(f"restart: exit code 75, queued again; restart {number} of {restart.max_restarts} at this step\n")
    subprocess.run(["scontrol", "requeue", job_name()], check=True, timeout=60)
    return code


def main(argv: list[str]) -> int:
    """The command."""
    return decide(parse(Restart, argv, prog="restart"))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="restart"))
