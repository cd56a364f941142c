"""Worker processes behind one call: submit tasks, take replies.

    submit(task) -> waiting, in order -> a worker with a free place -> replies -> replies()
                         ^                       |
                         +------ a worker died --+

A thread of the pool hands out tasks and collects replies, so workers stay busy while the caller computes, and the caller never blocks in a
pipe. Each worker has at most IN_FLIGHT tasks: they fit the buffer of its pipe, which is why handing one out cannot block either.

A worker that dies is replaced and its tasks are given out again; a task is a pure function of its draw, so nothing is lost, repeated or
changed. A task that kills its worker twice is answered as a bad file. A task that takes long is named in the log.
"""

import contextlib
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from queue import SimpleQueue
from typing import Any

from ppma.config.loader import LoaderConfig
from ppma.loaders.decode.workers import Reply, Task

log = logging.getLogger(__name__)

IN_FLIGHT = 4
"""Tasks that a worker has at once: one at work, the others so that it never waits. About 1 kB each; a pipe holds 200 kB."""
STRIKES = 2
"""How often a task may take its worker down before its file counts as bad."""
POLL_SECONDS = 1.0
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
"""glibc hands frames back to the kernel after every clip and gets them anew, a page fault for each 4 kB: 4 ms of a packed clip's 16."""
RUN_WORKER = "from ppma.loaders.decode.workers import main; main()"


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    tasks: dict[int, Task] = field(default_factory=dict)
    """Those it has, in the order in which it serves them."""
    busy_since: float = 0.0
    """When it began the first of them, on the monotonic clock."""


class _Workers:
    """The processes and the tasks that are out. `serve` runs in a thread until `stop`; `lock` guards everything but `replies`."""

    def __init__(self, config: LoaderConfig, memory_fd: int) -> None:
        self.restarts = 0
        self.replies: SimpleQueue[Reply | RuntimeError] = SimpleQueue()
        self._config, self._memory_fd = config, memory_fd
        self._lock = threading.Lock()
        self._waiting: deque[Task] = deque()
        self._strikes: dict[int, int] = {}
        self._named: set[int] = set()
        self._stop_read, self._stop_write = Pipe(duplex=False)
        self.workers = [self._start() for _ in range(config.workers)]

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

    def add(self, task: Task) -> None:
        with self._lock:
            self._waiting.append(task)
            self._hand_out()

    def _hand_out(self) -> None:
        """Give waiting tasks to the workers with the fewest, as far as they have places."""
        while self._waiting:
            worker = min(self.workers, key=lambda w: len(w.tasks))
            if len(worker.tasks) >= IN_FLIGHT:
                return
            task = self._waiting.popleft()
            if not worker.tasks:
                worker.busy_since = time.monotonic()
            worker.tasks[task.ticket] = task
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: `serve` replaces it
                worker.connection.send(task)

    def serve(self) -> None:
        """Collect replies and hand out tasks until `stop`. The last thing in `replies` is why it ended."""
        end = RuntimeError("the loader's thread failed; see its traceback above")
        try:
            while self._stop_read not in (ready := self._ready()):
                for worker in [w for w in self.workers if w.connection in ready]:
                    self._collect(worker)
                self._name_slow_files()
            end = RuntimeError("the pool of loader workers was closed")
        except RuntimeError as error:
            end = error
        finally:
            self.replies.put(end)

    def _ready(self) -> list[Any]:
        return wait([self._stop_read, *(w.connection for w in self.workers)], timeout=POLL_SECONDS)

    def _collect(self, worker: _Worker) -> None:
        try:
            reply: Reply = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            with self._lock:
                self._replace(worker)
                self._hand_out()
            return
        with self._lock:
            worker.tasks.pop(reply.ticket)
            worker.busy_since = time.monotonic()
            self._hand_out()
        self.replies.put(reply)

    def _name_slow_files(self) -> None:
        with self._lock:
            slowest = [(next(iter(w.tasks.values())), time.monotonic() - w.busy_since) for w in self.workers if w.tasks]
        for task, seconds in slowest:
            if task.ticket not in self._named and seconds > self._config.stall_seconds:
                self._named.add(task.ticket)
                log.warning("waiting for %s since %.0f s; is its file system up?", task.path, seconds)

    def _replace(self, worker: _Worker) -> None:
        """Start another worker in the place of a dead one; its tasks are the next to be handed out."""
        worker.connection.close()
        code = worker.process.wait()
        if code >= 0:  # not killed, no crash: an exception of ours, and every other worker would meet it too
            raise RuntimeError(f"a loader worker failed with code {code}; see its traceback above")
        first = next(iter(worker.tasks.values()), None)  # tasks are served in order: the first is the one it died on
        where = f" while reading {first.path}" if first else ""
        log.warning("a loader worker was ended by %s%s; starting another", signal.Signals(-code).name, where)
        self.restarts += 1
        self.workers[self.workers.index(worker)] = self._start()
        again = list(worker.tasks.values())
        if first is not None:
            self._strikes[first.ticket] = self._strikes.get(first.ticket, 0) + 1
            if self._strikes[first.ticket] >= STRIKES:
                why = f"ended {STRIKES} workers ({signal.Signals(-code).name})"
                self.replies.put(Reply(ticket=first.ticket, reason=why))
                again = again[1:]
        self._waiting.extendleft(reversed(again))

    def stop(self) -> None:
        self._stop_write.close()

    def end(self) -> None:
        """End the processes, once `serve` has returned."""
        self._stop_read.close()
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            try:
                worker.process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


class WorkerPool:
    """`config.workers` processes that share `memory`, an anonymous mapping which is gone when the last of them is."""

    def __init__(self, config: LoaderConfig, memory_bytes: int) -> None:
        self._memory_fd = os.memfd_create("ppma-views", 0)
        os.ftruncate(self._memory_fd, max(memory_bytes, mmap.PAGESIZE))
        self.memory = mmap.mmap(self._memory_fd, max(memory_bytes, mmap.PAGESIZE))
        # The thread holds no reference to the pool: one that is dropped without `close` ends its workers all the same.
        self._shared = _Workers(config, self._memory_fd)
        self._thread: threading.Thread | None = threading.Thread(target=self._shared.serve, daemon=True)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers that run now."""
        return [worker.process.pid for worker in self._shared.workers]

    @property
    def restarts(self) -> int:
        """Number of workers that died and were replaced."""
        return self._shared.restarts

    def submit(self, task: Task) -> None:
        """Queue a task. Tasks begin in the order in which they are submitted."""
        self._shared.add(task)

    def replies(self) -> list[Reply]:
        """Return at least one reply, waiting for it as long as it takes."""
        queue = self._shared.replies
        found = [queue.get()]
        while not queue.empty():
            found.append(queue.get())
        if isinstance(found[-1], RuntimeError):
            raise found[-1]
        return [reply for reply in found if isinstance(reply, Reply)]

    def close(self) -> None:
        """End the workers. Idempotent."""
        if self._thread is None:
            return
        self._shared.stop()
        self._thread.join()
        self._thread = None
        self._shared.end()
        os.close(self._memory_fd)

    def __del__(self) -> None:
        if getattr(self, "_thread", None) is not None:
            self.close()
