"""Worker processes behind one call: submit tasks, take replies.

A worker that dies is replaced and its tasks are given out again; a task is a pure function of its draw, so nothing is lost, repeated or
changed. A task that kills its worker twice is answered as a bad file. A task that takes long is named in the log.
"""

import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from ppma.loaders.config import LoaderConfig
from ppma.loaders.worker import Reply, Task

log = logging.getLogger(__name__)

STRIKES = 2
"""How often a task may take its worker down before its file counts as bad."""
POLL_SECONDS = 1.0
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
"""glibc hands frames back to the kernel after every clip and gets them anew, a page fault for each 4 kB: 4 ms of a packed clip's 16."""
RUN_WORKER = "from ppma.loaders.worker import main; main()"


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    tasks: dict[int, Task] = field(default_factory=dict)
    last_reply: float = field(default_factory=time.monotonic)


class WorkerPool:
    """`config.workers` processes that share `memory`, an anonymous mapping which is gone when the last of them is."""

    def __init__(self, config: LoaderConfig, memory_bytes: int) -> None:
        self._config = config
        self._memory_fd = os.memfd_create("ppma-views", 0)
        os.ftruncate(self._memory_fd, max(memory_bytes, mmap.PAGESIZE))
        self.memory = mmap.mmap(self._memory_fd, max(memory_bytes, mmap.PAGESIZE))
        self.restarts = 0
        self._strikes: dict[int, int] = {}
        self._named: set[int] = set()
        self._failed: list[Reply] = []
        self._workers = [self._start() for _ in range(config.workers)]

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-c", RUN_WORKER, str(theirs.fileno()), str(self._memory_fd)]
        environment = {
            **os.environ,
            **_KEEP_MEMORY,
            "PYTHONPATH": os.pathsep.join(entry or os.curdir for entry in sys.path),
        }
        process = subprocess.Popen(
            command, env=environment, pass_fds=(theirs.fileno(), self._memory_fd), stdin=subprocess.DEVNULL
        )
        theirs.close()
        worker = _Worker(process, Connection(ours.detach()))
        worker.connection.send(self._config)
        return worker

    def submit(self, task: Task) -> None:
        """Give a task to the worker with the fewest."""
        worker = min(self._workers, key=lambda w: len(w.tasks))
        worker.tasks[task.ticket] = task
        try:
            worker.connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            self._replace(worker)

    def replies(self) -> list[Reply]:
        """At least one reply, waiting for it as long as it takes; slow files are named meanwhile."""
        waiting_since = time.monotonic()
        while True:
            replies, self._failed = self._failed, []
            for ready in wait([w.connection for w in self._workers], timeout=0 if replies else POLL_SECONDS):
                worker = next(w for w in self._workers if w.connection is ready)
                try:
                    reply: Reply = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    self._replace(worker)
                    continue
                worker.tasks.pop(reply.ticket)
                worker.last_reply = time.monotonic()
                replies.append(reply)
            if replies:
                return replies
            self._name_slow_files(waiting_since)

    def _name_slow_files(self, waiting_since: float) -> None:
        now = time.monotonic()
        for worker in self._workers:
            task = next(iter(worker.tasks.values()), None)
            seconds = now - max(worker.last_reply, waiting_since)
            if task is not None and task.ticket not in self._named and seconds > self._config.stall_seconds:
                self._named.add(task.ticket)
                log.warning("waiting for %s since %.0f s; is its file system up?", task.path, seconds)

    def _replace(self, worker: _Worker) -> None:
        """Start another worker in the place of a dead one and hand its tasks on."""
        worker.connection.close()
        code = worker.process.wait()
        if (
            code >= 0
        ):  # it was not killed and did not crash: an exception of ours, and every other worker would meet it too
            raise RuntimeError(f"a loader worker failed with code {code}; its traceback stands above")
        first = next(iter(worker.tasks.values()), None)  # tasks are served in order: the first is the one it died on
        where = f" while reading {first.path}" if first else ""
        log.warning("a loader worker was ended by %s%s; starting another", signal.Signals(-code).name, where)
        self.restarts += 1
        fresh = self._start()
        self._workers[self._workers.index(worker)] = fresh
        for task in worker.tasks.values():
            if task is first:
                self._strikes[task.ticket] = self._strikes.get(task.ticket, 0) + 1
                if self._strikes[task.ticket] >= STRIKES:
                    self._failed.append(
                        Reply(ticket=task.ticket, reason=f"ended {STRIKES} workers ({signal.Signals(-code).name})")
                    )
                    continue
            fresh.tasks[task.ticket] = task
            fresh.connection.send(task)

    def close(self) -> None:
        """End the workers. Idempotent."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        if self._workers:
            os.close(self._memory_fd)
        self._workers = []
