"""Run independent jobs on several processes.

    jobs  ->  spawned workers of one core each, one job at a time  ->  results, in the order in which they are finished

parallel_map()     one result for each job; a job that kills its worker or takes too long can get its own result
parallel_events()  several results for each job, and `Lost` for a job whose worker died

Ctrl-C and errors belong to the parent. Workers are one core each, and none outlives its parent.
"""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from ppma.config.errors import InputError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Lost:
    """A job without a result: its worker died or took too long."""

    reason: str
    """For example "SIGSEGV", "exit code 1" or "took longer than 60 s"."""


def parallel_map(
    work: Callable[[JobT], ResultT],
    jobs: Sequence[JobT],
    workers: int,
    *,
    timeout_seconds: float = float("inf"),
    on_lost: Callable[[JobT, str], ResultT] | None = None,
) -> Iterator[ResultT]:
    """Yield the result of each job as it is finished; one worker runs in this process.

    An error of a job is raised here. On an error, Ctrl-C, or when the iterator is closed, waiting jobs are dropped and running jobs are
    finished; with `on_lost` they are killed.

    Args:
        work: A function of a module, so that it can be pickled.
        jobs: Its arguments, one for each job.
        workers: Number of processes.
        timeout_seconds: With `on_lost`, kill a job that takes longer.
        on_lost: Returns the result of a job whose worker died or took too long, from the job and the reason. Without it such a death is
            an error. With it every job runs in another process.

    Raises:
        RuntimeError: A worker died.
    """
    if on_lost is None and (workers == 1 or len(jobs) < 2):
        yield from map(work, jobs)
        return
    kill = on_lost is not None
    with closing(_run(_one_result, (work,), deque(jobs), workers, timeout_seconds, kill=kill)) as results:
        for job, result in results:
            if not isinstance(result, Lost):
                yield result
            elif on_lost is None:
                raise RuntimeError(f"the worker of {job} died ({result.reason})")
            else:
                yield on_lost(job, result.reason)


def parallel_events(
    work: Callable[[JobT], Iterable[ResultT]], jobs: deque[JobT], workers: int
) -> Generator[tuple[JobT, ResultT | Lost], None, None]:
    """Yield (job, event) for everything that `work(job)` yields, and (job, Lost) when its worker dies.

    Args:
        work: A generator function of a module.
        jobs: Taken from the left; the caller may append more while this runs, for example to repeat a lost one.
        workers: Number of processes; jobs always run in another process. They are killed when the generator is closed.
    """
    yield from _run(work, (), jobs, workers, float("inf"), kill=True)


def _one_result(work: Callable[[JobT], ResultT], job: JobT) -> Iterable[ResultT]:
    yield work(job)


# ------------------------------------------------------------------------------------------------------------ the parent


@dataclass
class _Worker(Generic[JobT]):
    process: BaseProcess
    connection: Connection
    job: JobT
    started: bool = False
    deadline: float = float("inf")

    def send(self, job: JobT, timeout_seconds: float) -> None:
        self.job, self.deadline = job, time.monotonic() + timeout_seconds
        with suppress(ConnectionError):  # it died meanwhile: the next read of its connection reports that
            self.connection.send(job)

    def end(self, *, kill: bool) -> str:
        """Let the worker finish its job, or kill it; return how its process ended."""
        self.connection.close()
        if kill:
            self.process.kill()
        self.process.join(5 if kill else None)  # a process that waits for a dead file system cannot be killed
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C, also in processes started here, which would otherwise print a traceback before they can ignore it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run(
    work: Callable[..., Iterable[Any]],
    first: tuple[Any, ...],
    jobs: deque[JobT],
    workers: int,
    timeout_seconds: float,
    *,
    kill: bool,
) -> Generator[tuple[JobT, Any], None, None]:
    context = get_context("spawn")
    team: dict[Connection, _Worker[JobT]] = {}
    try:
        while jobs or team:
            while jobs and len(team) < workers:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, work, first))
                team[ours] = _Worker(process, ours, jobs.popleft())
                with _interrupts_blocked():
                    process.start()
                theirs.close()
            soonest = min(worker.deadline for worker in team.values())
            timeout = max(0.0, soonest - time.monotonic()) if soonest < float("inf") else None
            ready = wait(list(team), timeout)
            for worker in list(team.values()):
                if worker.connection in ready:
                    yield from _receive(team, worker, jobs, timeout_seconds)
                elif time.monotonic() >= worker.deadline:
                    del team[worker.connection]
                    worker.end(kill=True)
                    yield worker.job, Lost(f"took longer than {timeout_seconds:g} s")
    finally:
        for worker in team.values():
            worker.connection.close()  # all of them, before any is waited for
        for worker in team.values():
            if worker.process.pid is not None:
                worker.end(kill=kill)


def _receive(
    team: dict[Connection, _Worker[JobT]], worker: _Worker[JobT], jobs: deque[JobT], timeout_seconds: float
) -> Iterator[tuple[JobT, Any]]:
    """Handle one message of a worker: yield a result, raise an error, give the next job, or notice its death."""
    try:
        kind, value = worker.connection.recv()
    except (EOFError, ConnectionError):
        del team[worker.connection]
        how = worker.end(kill=False)
        if not worker.started:
            raise RuntimeError(f"a worker did not start ({how})") from None
        yield worker.job, Lost(how)
        return
    if kind == "error":
        raise value
    if kind == "result":
        yield worker.job, value
    elif not worker.started:
        worker.started = True
        worker.send(worker.job, timeout_seconds)
    elif jobs:
        worker.send(jobs.popleft(), timeout_seconds)
    else:
        del team[worker.connection]
        worker.end(kill=False)


# ------------------------------------------------------------------------------------------------------------ the worker


def _exit_with_parent() -> None:
    """End this process when its parent dies: it would wait for its next job forever, with its models in memory."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(connection: Connection, work: Callable[..., Iterable[Any]], first: tuple[Any, ...]) -> None:
    """Run jobs from the connection until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if cv2 := sys.modules.get("cv2"):  # imported by the module of `work`, if that needs it
        cv2.setNumThreads(1)
    with suppress(EOFError, ConnectionError):  # the parent needs no more results
        while True:
            connection.send(("ready", None))
            job = connection.recv()
            try:
                for result in work(*first, job):
                    connection.send(("result", result))
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - raised again in the parent
                error.add_note(traceback.format_exc())
                connection.send(("error", error))
                raise SystemExit(1) from None


# ------------------------------------------------------------------------------------------------------------- job arrays


def parse_shard(part: str | None, merge: int | None = None) -> tuple[int, int]:
    """Return (I, N) of `--part I/N`, (0, 1) without it.

    Args:
        part: The share of an array task, "I/N" with I from 0 to N - 1.
        merge: The number of parts to gather, when this call only gathers them.

    Raises:
        InputError: `part` is not of that form, both are given, or `merge` is below 1.
    """
    if part is not None and merge is not None:
        raise InputError("--part does a share of the work, --merge only gathers them; give one of the two")
    if merge is not None and merge < 1:
        raise InputError(f"--merge is {merge}; give the number of parts, at least 1")
    if part is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None or int(found[1]) >= int(found[2]):
        raise InputError(f"--part is {part!r}; write I/N with I from 0 to N - 1")
    return int(found[1]), int(found[2])
