"""Run independent jobs on several processes.

    jobs  ->  spawned workers of one core each, one job at a time  ->  results, in the order in which they are finished

parallel_map()     one result for each job
parallel_events()  several results for each job, and `Lost` for a job whose worker died

What goes wrong is blamed on what caused it:

    a worker is killed            perhaps another process used up the memory: the job is repeated alone, after the others;
                                  it is to blame if it crashes again, or is killed by SIGKILL three times in a row (`to_blame`)
    an exception, a full disk     the program or the machine is to blame: it is raised in the parent and stops the command

Ctrl-C and errors belong to the parent. Workers are one core each, and none outlives its parent.
"""

import os
import pickle
import re
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from ppma.config.errors import InputError, KilledError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


START_DEATHS = 10
"""How many workers in a row may be killed before their first job."""

ALONE_KILLS = 3
"""How often in a row SIGKILL must end a job that runs alone, before it is to blame."""


def to_blame(reason: str, ends: int) -> bool:
    """True if a job that ran alone is to blame for the end of its worker, here and in the loader's pool.

    A crash is the job's own. SIGKILL comes from the kernel, because of this process or another, or from a person.

    Args:
        reason: How the worker ended, such as "SIGSEGV".
        ends: How often in a row a worker has ended at the job while it ran alone.
    """
    return reason != "SIGKILL" or ends >= ALONE_KILLS


@dataclass(frozen=True)
class Lost:
    """A job without a result: its worker died or took too long."""

    reason: str
    """For example "SIGSEGV", "exit code 1" or "took longer than 60 s"."""
    guilty: bool
    """True if the job is to blame: it took too long, or was killed while it ran alone. Else it deserves a second try, alone."""
    events: int
    """How many results it had given."""


class Queue(deque[JobT]):
    """Jobs of an iterator, each taken from it only when a worker is free; jobs that are put back come first."""

    def __init__(self, jobs: Iterable[JobT]) -> None:
        super().__init__()
        self._more = iter(jobs)

    def __bool__(self) -> bool:
        if not len(self):
            self.extend(islice(self._more, 1))
        return len(self) > 0


Engine = Callable[..., Generator[tuple[Any, Any], None, None]]
"""Does what `parallel_events` does, here or on a cluster (see ppma.common.engines)."""


def parallel_events(
    work: Callable[[JobT], Iterable[ResultT]],
    jobs: deque[JobT],
    alone: deque[JobT],
    workers: int,
    *,
    timeout_seconds: float = float("inf"),
    kill: bool = True,
) -> Generator[tuple[JobT, ResultT | Lost], None, None]:
    """Yield (job, event) for everything that `work(job)` yields, and (job, Lost) when its worker dies.

    Args:
        work: A generator function of a module.
        jobs: Taken from the left. The caller may append more to both while this runs, for example to repeat a lost one.
        alone: Jobs to run one at a time, when no other job is running or waiting.
        workers: Number of processes; jobs always run in another process.
        timeout_seconds: Kill a job that takes longer.
        kill: Kill running jobs when the generator is closed, as on Ctrl-C, instead of finishing them.
    """
    yield from _Pool(work, jobs, alone, workers, timeout_seconds, kill).run()


def parallel_map(
    work: Callable[[JobT], ResultT],
    jobs: Iterable[JobT],
    workers: int,
    *,
    on_lost: Callable[[JobT, str], ResultT] | None = None,
    timeout_seconds: float | None = None,
    engine: Engine = parallel_events,
) -> Iterator[ResultT]:
    """Yield the result of each job as it is finished.

    A single worker without a time limit runs in this process. An error of a job is raised here. On an error, or when the iterator is
    closed, waiting jobs are dropped and running jobs are finished; on Ctrl-C, and with a time limit, they are killed.

    Args:
        work: A function of a module, so that it can be pickled.
        jobs: Its arguments, one for each job; an iterator is asked for the next one only when a worker is free.
        workers: Number of processes.
        on_lost: Returns the result of a job that killed its worker twice or took too long, from the job and the reason.
        timeout_seconds: Kill a job that takes longer; every job then runs in another process.
        engine: Where the jobs run, from `ppma.common.engines.find`.

    Raises:
        KilledError: Without `on_lost`, such a job; or workers are killed before they begin.
    """
    kill = timeout_seconds is not None
    if workers == 1 and not kill and engine is parallel_events:
        yield from map(work, jobs)
        return
    alone: deque[JobT] = deque()
    work_once, limit = partial(_one_result, work), timeout_seconds or float("inf")
    with closing(engine(work_once, Queue(jobs), alone, workers, timeout_seconds=limit, kill=kill)) as results:
        for job, result in results:
            if not isinstance(result, Lost):
                yield result
            elif result.events:  # its worker died after it had sent the result
                continue
            elif not result.guilty:
                alone.append(job)
            elif on_lost is not None:
                yield on_lost(job, result.reason)
            else:
                raise KilledError(f"{job}: its process was killed ({result.reason}), again when no other was running")


def _one_result(work: Callable[[JobT], ResultT], job: JobT) -> Iterable[ResultT]:
    yield work(job)


# ------------------------------------------------------------------------------------------------------------ the parent


@dataclass
class _Worker(Generic[JobT]):
    process: BaseProcess
    connection: Connection
    job: JobT
    alone: bool
    started: bool = False
    deadline: float = float("inf")
    events: int = 0

    def send(self, timeout_seconds: float) -> None:
        self.deadline, self.events = time.monotonic() + timeout_seconds, 0
        with suppress(ConnectionError):  # it died meanwhile: the next read of its connection reports that
            self.connection.send(self.job)

    def end(self, *, kill: bool) -> str:
        """Let the worker finish its job, or kill it; return how its process ended."""
        self.connection.close()
        if kill:
            self.process.kill()
        self.process.join(5 if kill else None)  # a process that waits for a dead file system cannot be killed
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextmanager
def _spawning() -> Iterator[None]:
    """Hide the user's script from processes started here: they would run it again, and `work` is in a module of ours.

    A Ctrl-C waits until the process has all it reads at its start; it is blocked in the process, which is to ignore it.
    """
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and unblocks Ctrl-C then
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        with _ctrl_c_held_back():
            yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Block Ctrl-C here and in processes started meanwhile; one that comes has its effect at the end.

    To block it is not enough: another thread of this process takes it, and Python calls the handler in this one.
    """
    came: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    handled_here = callable(handler) and threading.current_thread() is threading.main_thread()
    if handled_here:
        signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if handled_here:
            signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


@dataclass
class _Pool(Generic[JobT]):
    work: Callable[[JobT], Iterable[Any]]
    jobs: deque[JobT]
    alone: deque[JobT]
    workers: int
    timeout_seconds: float
    kill: bool
    team: dict[Connection, _Worker[JobT]] = field(default_factory=dict)
    start_deaths: int = 0
    alone_kills: int = 0

    def run(self) -> Generator[tuple[JobT, Any], None, None]:
        """Yield (job, result or Lost) until no job is left."""
        try:
            while self.team or self.jobs or self.alone:
                while len(self.team) < self.workers and (self.jobs or (self.alone and not self.team)):
                    self._start()
                soonest = min(worker.deadline for worker in self.team.values())
                ready = wait(list(self.team), max(0.0, soonest - time.monotonic()) if soonest < float("inf") else None)
                for worker in list(self.team.values()):
                    if worker.connection in ready:
                        yield from self._receive(worker)
                    elif time.monotonic() >= worker.deadline and not worker.connection.poll():
                        self._end(worker, kill=True)
                        reason = f"took longer than {self.timeout_seconds:g} s"
                        yield worker.job, Lost(reason, guilty=True, events=worker.events)
        except KeyboardInterrupt:  # a person waits: a job may take an hour
            self.kill = True
            raise
        finally:
            for worker in self.team.values():
                worker.connection.close()  # all of them, before any is waited for
            for worker in self.team.values():
                if worker.process.pid is not None:
                    worker.end(kill=self.kill)

    def _take(self) -> tuple[JobT, bool]:
        """Return the next job, and whether it runs alone."""
        return (self.jobs.popleft(), False) if self.jobs else (self.alone.popleft(), True)

    def _start(self) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.work))
        self.team[ours] = _Worker(process, ours, *self._take())
        with _spawning():
            process.start()
        theirs.close()

    def _end(self, worker: _Worker[JobT], *, kill: bool) -> str:
        del self.team[worker.connection]
        return worker.end(kill=kill)

    def _receive(self, worker: _Worker[JobT]) -> Iterator[tuple[JobT, Any]]:
        """Handle one message of a worker: yield a result, raise an error, give the next job, or notice its death."""
        try:
            kind, value = worker.connection.recv()
        except (EOFError, OSError):  # an OSError where it was killed in the middle of a message
            reason = self._end(worker, kill=False)
            if not worker.started:
                self._restart(worker, reason)
            elif worker.alone and not to_blame(reason, self.alone_kills + 1):
                self.alone_kills += 1
                self.alone.appendleft(worker.job)
            else:
                self.alone_kills = 0
                yield worker.job, Lost(reason, guilty=worker.alone, events=worker.events)
            return
        if kind == "error":
            raise value
        if kind == "result":
            worker.events += 1
            yield worker.job, value
        elif not worker.started:
            worker.started, self.start_deaths = True, 0
            worker.send(self.timeout_seconds)
        elif self.jobs or (self.alone and len(self.team) == 1):
            self.alone_kills = 0
            worker.job, worker.alone = self._take()
            worker.send(self.timeout_seconds)
        else:
            self._end(worker, kill=False)

    def _restart(self, worker: _Worker[JobT], reason: str) -> None:
        """Put back the job of a worker that was killed before it began."""
        self.start_deaths += 1
        if reason.startswith("exit code"):  # what its module prints when it is imported is above
            raise RuntimeError(f"a worker did not start ({reason})")
        if self.start_deaths == START_DEATHS:
            killed = f"{START_DEATHS} workers were killed at their start ({reason})"
            raise KilledError(f"{killed}; fewer --workers need less memory")
        (self.alone if worker.alone else self.jobs).appendleft(worker.job)


# ------------------------------------------------------------------------------------------------------------ the worker


def _exit_with_parent() -> None:
    """End this process when its parent dies: it would wait for its next job forever, with its models in memory."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(connection: Connection, work: Callable[[Any], Iterable[Any]]) -> None:
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
                for result in work(job):
                    _send_result(connection, result)
            except MemoryError:  # as the kernel does, which may be late: the job is repeated alone
                os.kill(os.getpid(), signal.SIGKILL)
            except Exception as error:  # noqa: BLE001 - raised again in the parent
                error.add_note(traceback.format_exc())
                connection.send(("error", _picklable(error)))
                raise SystemExit(1) from None


def _send_result(connection: Connection, result: object) -> None:
    try:
        connection.send(("result", result))
    except ConnectionError:  # the parent needs no more results; a ConnectionError of the job is an error like any other
        raise SystemExit from None


def _picklable(error: Exception) -> Exception:
    """Return the error, or a RuntimeError with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except (AttributeError, TypeError, pickle.PicklingError):
        same = RuntimeError(f"{type(error).__name__}: {error}")
        same.__notes__ = error.__notes__
        return same
    return error


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
