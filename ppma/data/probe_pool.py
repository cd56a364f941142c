"""Many files probed at once, each where it can do no harm.

    paths  ->  worker programs, one file at a time each  ->  (position, VideoMetadata or the reason in words), as they come

A file can hang a decoder or crash it. Each worker is a process of its own: one that takes too long is killed, one that dies is missed, in
both cases the file it had is refused with the reason, and a fresh worker takes the next. Leaving the generator ends all workers.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import IO

from ppma.loaders.sources.probe import ProbeJob, VideoMetadata

PROGRAM = ("-c", "from ppma.loaders.sources.probe import main; main()")
START_SECONDS = 60.0
"""In which a worker must have started; a cold network file system takes ten."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]
    position: int | None = None
    deadline: float = field(default_factory=lambda: time.monotonic() + START_SECONDS)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # it hangs in the kernel on a dead file system: nothing can end it
            self.process.wait(timeout=5)
        self.log.close()

    def last_words(self) -> str:
        """What became of a dead process."""
        code = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return how + (f", {lines[-1]}" if lines else "")


def _start(program: Sequence[str]) -> _Worker:
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path)}
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _Worker.end
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", *program, str(theirs.fileno())],
            env=environment,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return _Worker(process, Connection(ours.detach()), log)


def probe_all(
    jobs: Sequence[ProbeJob], *, workers: int, timeout_seconds: float, program: Sequence[str] = PROGRAM
) -> Generator[tuple[int, VideoMetadata | str], None, None]:
    """Yield (position in `jobs`, VideoMetadata or reason) once for each job, in the order they are done.

    `program`: arguments of Python for a worker; it gets a file descriptor as its last argument (tests use their own).
    """
    waiting = iter(enumerate(jobs))
    left = len(jobs)
    team = [_start(program) for _ in range(min(workers, left))]
    try:
        while left:
            soonest = min(worker.deadline for worker in team) - time.monotonic()
            ready = wait([worker.connection for worker in team], timeout=max(0.0, soonest))
            for i, worker in enumerate(team):
                if worker.connection in ready:
                    answer, alive = _receive(worker)
                elif time.monotonic() >= worker.deadline and not worker.connection.poll():
                    answer, alive = f"took longer than {timeout_seconds:g} s to look into (--timeout-seconds)", False
                else:
                    continue
                if worker.position is not None:
                    left -= 1
                    yield worker.position, answer
                elif not alive:
                    raise RuntimeError(f"a worker of {program} did not start: {answer}")
                if not alive:
                    worker.end()
                    worker = team[i] = _start(program)
                else:
                    _give(worker, waiting, timeout_seconds)
    finally:
        for worker in team:
            worker.end()


def _receive(worker: _Worker) -> tuple[VideoMetadata | str, bool]:
    """(answer, whether the worker lives on)."""
    try:
        return worker.connection.recv(), True
    except (EOFError, ConnectionResetError):
        return f"crashed the reader ({worker.last_words()})", False


def _give(worker: _Worker, waiting: Iterator[tuple[int, ProbeJob]], timeout_seconds: float) -> None:
    worker.position, job = next(waiting, (None, None))
    worker.deadline = time.monotonic() + timeout_seconds if job else float("inf")
    if job:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died meanwhile: the next wait tells
            worker.connection.send(job)
