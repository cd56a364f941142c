"""A local job in the foreground: its log on the terminal, Ctrl-C that saves a checkpoint first, an exit code at the end.

    executor, Job  ->  follow  ->  lines of rank 0's log on stdout, 0 | 1 | 75

submitit's local controller outlives whoever started it, gives its tasks one second after Ctrl-C, and waits for ever for the peers of a
failed task. So it is started deaf to Ctrl-C; here Ctrl-C and SIGTERM become SIGTERM for the tasks, which stop in good order, and the peers
of a failed task are ended after a while.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import submitit
from submitit.local.local import LocalJob

from ppma.command import DONE, INTERRUPTED, RUN_AGAIN
from ppma.slurm.job import Job

log = logging.getLogger(__name__)

FAILED = 1
GRACE_SECONDS = 30.0
"""How long the other tasks of a job may go on after one has failed; gloo and NCCL usually notice sooner."""
POLL_SECONDS = 0.2


class _Tail:
    """What was appended to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def copy(self) -> None:
        """Write the new part to stdout."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        sys.stdout.write(new.decode("utf-8", errors="replace"))
        sys.stdout.flush()


def _submit_deaf(executor: submitit.Executor, job: Job) -> LocalJob[str]:
    """Submit with SIGINT ignored, which the controller and, until they say otherwise, its tasks inherit."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        submitted = executor.submit(job)
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(submitted, LocalJob)
    return submitted


def _tasks(job: LocalJob[str]) -> list[LocalJob[str]]:
    return list(job._sub_jobs) or [job]


def _outcomes(job: LocalJob[str]) -> list[str | None]:
    """success, error, or None without a result, of each task."""
    return [task._get_outcome_and_result()[0] if task.paths.result_pickle.exists() else None for task in _tasks(job)]


def _kill_tasks(job: LocalJob[str]) -> None:
    """End the children of the controller, which ends by itself then."""
    children = Path(f"/proc/{job.job_id}/task/{job.job_id}/children")
    for child in children.read_text().split() if children.exists() else ():
        os.kill(int(child), signal.SIGKILL)


def _watch(job: LocalJob[str]) -> int:
    """Copy rank 0's log until the job is over; returns how often a stop was asked for."""
    tail, failed_at = _Tail(_tasks(job)[0].paths.stdout), None
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        log.warning("%s: the run saves a checkpoint and stops; once more ends it at once", signal.Signals(number).name)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not job.done():
            tail.copy()
            if asked and job._process is not None:
                job._process.send_signal(signal.SIGTERM)  # each time round: a task may not have been listening yet
            if failed_at is None and "error" in _outcomes(job):
                failed_at = time.monotonic()
            if len(asked) > 1 or (failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS):
                _kill_tasks(job)
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    tail.copy()
    return len(asked)


def follow(executor: submitit.Executor, job: Job) -> int:
    """Run a job to its end in the foreground: 0 when every task ended well, 75 when it was stopped in good order, 130 at once, else 1."""
    submitted = _submit_deaf(executor, job)
    asked = _watch(submitted)
    outcomes = _outcomes(submitted)
    if asked > 1:
        return INTERRUPTED
    if asked and "error" not in outcomes:
        return RUN_AGAIN
    for rank, (task, outcome) in enumerate(zip(_tasks(submitted), outcomes)):
        if outcome != "success":
            log.error("rank %d failed; its log: %s", rank, task.paths.stdout)
    return DONE if set(outcomes) == {"success"} else FAILED
