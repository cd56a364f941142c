"""Decide at the end of a job script whether the job runs again.

    exit codes of the tasks, newest checkpoint, restarts so far  ->  scontrol requeue, or the job's exit code

The first node runs `python -m ppma.slurm.restart` after srun. A signalled preemption never gets here: rank 0 has
requeued the job by then, with a checkpoint of that very step. What does get here is exit code 75 for another reason,
usually a hang. A job without progress must not hold its nodes forever: it runs again at most `max_restarts` times
without a newer checkpoint.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ppma.common.files import write_json
from ppma.config.command import DONE, RUN_AGAIN, WRONG_INPUT, parse, run

RESTARTS = "restarts.json"
"""File in the run folder: newest checkpoint at the last restart, and the number of restarts at that step."""
_STEP = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Requeue a job that has just ended, or return its exit code. Called by the job script."""

    logs: Path
    """Folder of the job's logs and exit codes."""
    run_dir: Path
    """Run folder."""
    code: int
    """Exit code of srun."""
    max_restarts: int = 5
    """Restarts without a newer checkpoint."""


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 without one; needs no torch."""
    names = (_STEP.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("step_*"))
    return max((int(name[1]) for name in names if name), default=0)


def job_name() -> str:
    """Return the job's number as submitit writes it; a task of an array has its index appended."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def verdict(codes: list[int], code: int) -> int:
    """Return one exit code for the job.

    Args:
        codes: Exit codes that the tasks recorded.
        code: srun's exit code, the highest of all tasks; a task killed together with its peers has 137.
    """
    if code == DONE or WRONG_INPUT in codes:
        return WRONG_INPUT if code else DONE
    known = set(codes) | ({code} if code < 128 else set())
    if known <= {DONE, RUN_AGAIN}:
        return RUN_AGAIN if RUN_AGAIN in known else code
    return 1 if code == RUN_AGAIN else code


def count(run_dir: Path) -> int:
    """Record one more restart and return the number of restarts since the newest checkpoint."""
    file, step = run_dir / RESTARTS, newest_step(run_dir)
    before = json.loads(file.read_text()) if file.exists() else {"step": step, "without_progress": 0}
    number = before["without_progress"] + 1 if before["step"] == step else 1
    write_json(file, {"step": step, "without_progress": number})
    return int(number)


def decide(restart: Restart) -> int:
    """Requeue the job if it may run again; return its exit code."""
    files = list(restart.logs.glob(f"{job_name()}_*_result.exit"))
    code = verdict([int(file.read_text() or 1) for file in files], restart.code)
    if code != RUN_AGAIN:
        return code
    number = count(restart.run_dir)
    if number > restart.max_restarts:
        sys.stderr.write(
            f"restart: {restart.max_restarts} restarts without a checkpoint newer than step {newest_step(restart.run_dir)}; "
            "giving up. The stacks above show where it hung\n"
        )
        return code
    sys.stderr.write(f"restart: exit code 75, requeued; restart {number} of {restart.max_restarts} at this step\n")
    subprocess.run(["scontrol", "requeue", job_name()], check=True, timeout=60)
    return code


def main(argv: list[str]) -> int:
    """Run `python -m ppma.slurm.restart ARGV`."""
    return decide(parse(Restart, argv, prog="restart"))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="restart"))
