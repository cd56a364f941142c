"""Decide at the end of a job script whether the job runs again.

    exit codes of the tasks, progress, restarts so far  ->  scontrol requeue, or the job's exit code

The first node runs `python -m ppma.slurm.restart` after srun. A signalled preemption never gets here: rank 0 has
requeued the job by then, with a checkpoint of that very step. Whatever else ended a run gets here: a crash, a killed
process, a hang. It runs again unless that is useless (wrong input, clips that fail an audit, a loss that stays NaN), at
most `max_restarts` times in a row without progress, and not on a node on which it failed twice.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths
from submitit.helpers import DelayedSubmission

from ppma.common.files import write_json
from ppma.config.command import DONE, FAILED_AUDIT, RUN_AGAIN, WRONG_INPUT, parse, run
from ppma.config.errors import DiskFullError, InputError, reading
from ppma.slurm.cluster import ask
from ppma.training.run_folder import NAN_STOP, SCORED

RESTARTS = "restarts.json"
"""File in the run folder: a list with an `End` for every start that did not reach the end of the run."""
FAILURES_PER_NODE = 2
"""Failures of a run that started on a node, after which it runs elsewhere."""
TRIES, TRY_SECONDS = 5, 10.0
"""How often scontrol is asked to requeue a job, as the controller of a busy cluster may not answer."""
TAIL_BYTES = 200_000
_STEP = re.compile(r"step_(\d{8,})")
_START = re.compile(r"^(?:restart: |.*Starting with \w*JobEnvironment)", re.MULTILINE)
_TASK_ENDED = re.compile(r"^srun: error: (?P<node>[^\s,\[]+): tasks? (?P<task>\d+)[\d,-]*: (?P<how>.+)$", re.MULTILINE)
_ERROR = re.compile(
    r"(?:^|\s)([\w.]+(?:Error|Exception): .*|(?:Fatal Python error|train|evaluate|command): .*|no step for .*)",
    re.MULTILINE,
)
"""The last line of a traceback, the one line of a command, or that of the watchdog."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a start of a run ended before its time."""

    job: str
    """Number of the job; "" outside SLURM."""
    code: int
    step: int
    """Step of the newest checkpoint."""
    scored: int = 0
    """Batches of videos that a test, or a pass that computes features, has finished so far."""
    time: float
    """Seconds since the epoch."""
    node: str = ""
    """Node of the first task that failed; "" if unknown, and after a hang, which no single node is known to cause."""
    error: str = ""
    """One line from the logs."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Requeue a job that has just ended, or return its exit code. Called by the job script."""

    logs: Path
    """Folder of the job's logs, pickles and exit codes."""
    code: int
    """Exit code of srun."""


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 without one; needs no torch."""
    names = (_STEP.fullmatch(path.name) for path in (run_dir / "checkpoints").glob("step_*"))
    return max((int(name[1]) for name in names if name), default=0)


def job_name() -> str:
    """Return the job's number as submitit writes it, with the index of a task of an array; "" outside SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def verdict(codes: Sequence[int], code: int) -> int:
    """Return one exit code for the job.

    Args:
        codes: Exit codes that the tasks recorded.
        code: srun's exit code, the highest of all tasks; a task killed together with its peers has 137 or 143.
    """
    if code == DONE or WRONG_INPUT in codes:
        return WRONG_INPUT if code else DONE
    known = set(codes) | ({code} if code < 128 else set())
    if known <= {DONE, RUN_AGAIN}:
        return RUN_AGAIN if RUN_AGAIN in known else code
    return 1 if code == RUN_AGAIN else code


# ------------------------------------------------------------------------------------------------- the record of restarts


def read_ends(run_dir: Path) -> list[End]:
    """Return the starts of a run that ended before its time, oldest first."""
    file = run_dir / RESTARTS
    if not file.exists():
        return []
    with reading(file, "the restarts of a run"):
        return [End(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def record(run_dir: Path, code: int, node: str = "", error: str = "") -> list[End]:
    """Record that a start of this job has ended, and return all such ends of this job."""
    progress = {"step": newest_step(run_dir), "scored": len(list((run_dir / SCORED).glob("*/*")))}
    end = End(job=job_name(), code=code, **progress, time=time.time(), node=node, error=error)
    ends = [*read_ends(run_dir), end]
    try:
        write_json(run_dir / RESTARTS, [asdict(entry) for entry in ends])
    except (OSError, DiskFullError, InputError) as refusal:  # a full disk must not keep the job from running again
        _say(f"{run_dir / RESTARTS} cannot be written ({refusal})")
    return [entry for entry in ends if entry.job == end.job]


def without_progress(ends: Sequence[End]) -> int:
    """Return how often in a row a job ended without a checkpoint newer than any before, and without more scored videos."""
    number = step = scored = 0
    for end in ends:
        number = 0 if end.step > step or end.scored > scored else number + 1
        step, scored = max(step, end.step), end.scored  # a finished pass over the videos starts the next one at 0
    return number


# --------------------------------------------------------------------------------------------------- why the job has ended


def newest_lines(file: Path) -> str:
    """Return the end of a task's log, from its newest start on."""
    if not file.exists():
        return ""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
        text = opened.read().decode(errors="replace")
    return _START.split(text)[-1]


def last_error(text: str) -> str:
    """Return the last line of a log that reports an error; "" if none does."""
    return next((" ".join(found.split()) for found in reversed(_ERROR.findall(text))), "")


def first_failure(logs: Path, job: str) -> tuple[str, str]:
    """Return the node and the error of the task that failed first, as srun lists them; ("", error) if it lists none."""
    text = newest_lines(logs / f"{job}_0_log.out")
    first = _TASK_ENDED.search(text)
    if first is None or first["how"] == f"Exited with exit code {RUN_AGAIN}":
        return "", last_error(text)
    why = last_error(newest_lines(logs / f"{job}_{first['task']}_log.out")) or first["how"]
    return first["node"], f"task {first['task']} on {first['node']}: {why}"


# ------------------------------------------------------------------------------------------------------------ the decision


def decide(restart: Restart) -> int:
    """Requeue the job if it may run again; return its exit code."""
    name = job_name()
    files = restart.logs.glob(f"{name}_*_result.exit")
    code = verdict([int(file.read_text() or 1) for file in files], restart.code)
    if code == DONE:
        return code
    paths = JobPaths(restart.logs, job_id=name)
    job: Any = DelayedSubmission.load(paths.submitted_pickle).function  # a `slurm.job.Job`
    if job.run_dir is None:
        return code
    node, error = first_failure(restart.logs, name)
    ends = record(job.run_dir, code, "" if code == RUN_AGAIN else node, error)
    if why := _why_not(job.run_dir, job.max_restarts, ends):
        _say(f"exit code {code} ({error or 'no error in the log'}); not requeued, because {why}")
        return code
    count = f"{without_progress(ends)} of {job.max_restarts} restarts without progress"
    _say(f"exit code {code} ({error or 'no error in the log'}), requeued; {count}")
    _requeue(name, _avoided(ends, paths.submission_file))
    return code


def _why_not(run_dir: Path, max_restarts: int, ends: Sequence[End]) -> str:
    """Return why a job does not run again; empty if it does."""
    if ends[-1].code in (WRONG_INPUT, FAILED_AUDIT):
        return "it would fail again"
    if (marker := run_dir / NAN_STOP).exists():
        return f"of {marker}"
    if without_progress(ends) > max_restarts:
        return f"{max_restarts} restarts in a row made no progress beyond step {ends[-1].step}"
    return ""


def _avoided(ends: Sequence[End], script: Path) -> str:
    """Return the nodes that a job avoids from now on: those excluded before, and those on which it failed twice.

    Empty if there is none to add, or if the cluster could not run the job without them: SLURM would hold it for ever.
    """
    failures = Counter(end.node for end in ends if end.node)
    bad = [node for node, number in failures.items() if number >= FAILURES_PER_NODE]
    if not bad:
        return ""
    before = ask("squeue", "-h", "-o", "%x", "-j", ends[-1].job).stdout.strip()
    nodes = ",".join(filter(None, [before, *bad]))
    test = ask("sbatch", "--test-only", "--dependency=", f"--exclude={nodes}", str(script))
    if test.returncode:
        _say(f"cannot do without {nodes}: {' '.join(test.stderr.split())}")
        return ""
    _say(f"failed {FAILURES_PER_NODE} times on {', '.join(bad)}; excluded from now on: {nodes}")
    return nodes


def _requeue(job: str, avoided: str) -> None:
    """Requeue this job. SLURM lets only a pending job change its nodes, so this process must outlive the requeue for a moment."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number in range(TRIES):
        if number:
            time.sleep(TRY_SECONDS)
        done = ask("scontrol", "requeue", job)
        if not done.returncode:
            break
        _say(f"scontrol requeue: {' '.join(done.stderr.split())}")
    if avoided:
        done = ask("scontrol", "update", f"JobId={job}", f"ExcNodeList={avoided}")
        if done.returncode:
            _say(f"scontrol update: {' '.join(done.stderr.split())}")


def _say(line: str) -> None:
    """Write a line to the log of the job, which may be on a full disk."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"restart: {line}\n")


def main(argv: list[str]) -> int:
    """Run `python -m ppma.slurm.restart ARGV`."""
    return decide(parse(Restart, argv, prog="restart"))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="restart"))
