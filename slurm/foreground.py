"""A local job in the foreground: its log on the terminal, Ctrl-C that saves a checkpoint first, an exit code at the end.

    executor, Job  ->  follow  ->  lines of rank 0's log on stdout, an exit code

submitit's local controller outlives whoever started it, gives its tasks one second after Ctrl-C, and waits for ever for the peers of a
failed task. So it is started deaf to Ctrl-C; here Ctrl-C and SIGTERM become SIGTERM for the tasks, which stop in good order, and the peers
of a failed task are ended after a while.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

import submitit
from submitit.local.local import LocalJob

from ppma.config.command import DONE, INTERRUPTED, RUN_AGAIN, WRONG_INPUT
from ppma.slurm.job import Job, exit_file

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
        """Write the new lines to stdout."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.decode("utf-8", errors="replace").splitlines(keepends=True):
            if not line.startswith("submitit "):  # its own account of pickles and signals stays in the file
                sys.stdout.write(line)
        sys.stdout.flush()


def _submit_deaf(executor: submitit.Executor, job: Job) -> LocalJob[None]:
    """Submit with SIGINT ignored, which the controller and, until they say otherwise, its tasks inherit."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        submitted = executor.submit(job)
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(submitted, LocalJob)
    return submitted


def _tasks(job: LocalJob[None]) -> list[LocalJob[None]]:
    return list(job._sub_jobs) or [job]


def _codes(job: LocalJob[None]) -> list[int | None]:
    """Exit code of each task; None while it runs, and for one that was killed."""
    found: list[int | None] = []
    for task in _tasks(job):
        left = exit_file(task.paths)
        if left.exists() and (text := left.read_text()):
            found.append(int(text))
        else:
            found.append(FAILED if task.paths.result_pickle.exists() else None)  # an exception, which submitit keeps
    return found


def _verdict(codes: list[int | None], asked: int) -> int:
    """One exit code for all tasks and the number of times a stop was asked for."""
    if asked > 1:
        return INTERRUPTED
    if WRONG_INPUT in codes:
        return WRONG_INPUT
    if not set(codes) <= {DONE, RUN_AGAIN}:
        return FAILED
    return RUN_AGAIN if asked or RUN_AGAIN in codes else DONE


def _children(job: LocalJob[None]) -> list[int]:
    """Process ids of the tasks that live, which are the controller's children."""
    listed = Path(f"/proc/{job.job_id}/task/{job.job_id}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def _all_spoke(job: LocalJob[None]) -> bool:
    """Whether each task has written a line, so has lived: one that dies at once may never be seen among the children."""
    logs = [task.paths.stdout for task in _tasks(job)]
    return all(log.exists() and log.stat().st_size for log in logs)


def _kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.kill(process, signal.SIGKILL)


class _Failure:
    """Whether a task has failed, or is gone without a word, while others go on."""

    def __init__(self, job: LocalJob[None]) -> None:
        self._job, self._started, self._since = job, False, float("inf")

    def seconds(self) -> float:
        """How long ago that was seen first; 0 or less where all is well."""
        living = len(_children(self._job))
        codes = _codes(self._job)  # after the count: a task leaves its code before it goes
        self._started = self._started or living == len(codes) or _all_spoke(self._job)
        gone = self._started and codes.count(None) > living
        if gone or set(codes) - {None, DONE, RUN_AGAIN}:
            self._since = min(self._since, time.monotonic())
        return time.monotonic() - self._since


def _watch(job: LocalJob[None]) -> int:
    """Copy rank 0's log until the job is over; returns how often a stop was asked for."""
    tail, failure = _Tail(_tasks(job)[0].paths.stdout), _Failure(job)
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
            if len(asked) > 1 or failure.seconds() > GRACE_SECONDS:
                _kill(_children(job))
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    tail.copy()
    return len(asked)


def follow(executor: submitit.Executor, job: Job) -> int:
    """Run a job to its end in the foreground.

    0 when every task ended well, 75 when it was stopped in good order, 130 when it was ended at once, 2 for a wrong input, else 1.
    """
    submitted = _submit_deaf(executor, job)
    asked = _watch(submitted)
    codes = _codes(submitted)
    for rank, (task, code) in enumerate(zip(_tasks(submitted), codes)):
        if code not in (DONE, RUN_AGAIN, WRONG_INPUT):
            log.error("rank %d failed; its log: %s", rank, task.paths.stdout)
    return _verdict(codes, asked)
