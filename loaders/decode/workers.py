"""Worker processes that turn tasks into frames.

    submit(Task) -> waiting, in order -> a worker with a free place -> Reply -> replies()
                         ^                       |                    views go through shared memory,
                         +------ a worker died --+                    encoded bytes through the pipe

A thread of the pool hands out tasks and collects replies, so workers stay busy while the caller computes. Each worker
has at most IN_FLIGHT tasks: they fit the buffer of its pipe, so handing one out never blocks.

A task is a pure function of its sample: when a worker dies, it is replaced and its tasks are repeated, and no batch
changes. The one that it died on is repeated alone, while no other task runs: if that ends a worker too, its file is bad
(after SIGKILL only at the third time in a row: `common.workers.to_blame`); else perhaps another process had used up the
memory. A task that takes long is named in the log.

Workers are started as a program, not forked: they import no torch, do not run the user's script again, and end with
their parent.
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
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import numpy as np

from ppma.common.workers import to_blame
from ppma.config.errors import KilledError, RefusedError, UnreachableError
from ppma.config.loader import LoaderConfig
from ppma.loaders.decode.dali_input import Codecs, DaliInput
from ppma.loaders.samples import Sample, check_crops, scaled_size

log = logging.getLogger(__name__)

IN_FLIGHT = 4
"""Tasks that a worker has at once, one at work and the others queued. About 1 kB each; a pipe holds 200 kB."""
START_DEATHS = 10
"""How many workers in a row may be killed before they are ready for their first task."""
POLL_SECONDS = 1.0
CLOSE_SECONDS = 2.0
"""How long the workers have to end when the pool is closed; those that read on are killed."""
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
"""Otherwise glibc returns frames to the kernel after every clip, a page fault per 4 kB: 4 ms of a packed clip's 16."""
RUN_WORKER = "from ppma.loaders.decode.workers import main; main()"

Product = Literal["views", "input", "read_ahead"]
"""views: finished views in shared memory; input: a DaliInput in the reply; read_ahead: the file in the page cache."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One sample to read."""

    ticket: int
    path: Path
    sample: Sample
    product: Product
    codecs: Codecs
    """What DALI decodes ("input" only); none after DALI has refused the file: PyAV and OpenCV decode it."""
    offset: int
    """Where the views go in the shared memory, in bytes ("views" only)."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The result of a task; it failed if `reason` is not empty."""

    ticket: int
    reason: str = ""
    """Why the file is bad."""
    failure: RefusedError | UnreachableError | None = None
    """Why nothing can be read from a server: the run ends with it."""
    fallback: str = ""
    """Why PyAV decoded a clip that was meant for DALI."""
    clip: DaliInput | None = None
    seconds: float = 0.0
    bytes_read: int = 0


# --------------------------------------------------------------------------------------------------------------- pool


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: bool = False
    tasks: dict[int, Task] = field(default_factory=dict)
    """Its tasks by ticket, in the order in which it serves them."""
    busy_since: float = 0.0
    """Monotonic time at which it began the first of them."""


class WorkerPool:
    """Run `config.workers` worker processes that share an anonymous memory mapping. Close it after use."""

    def __init__(self, config: LoaderConfig, memory_bytes: int) -> None:
        """Start the workers and the thread that serves them.

        Args:
            config: Sent to every worker.
            memory_bytes: Size of the shared memory for views.
        """
        self.restarts = 0
        """Number of workers that died and were replaced."""
        self._config = config
        self._memory_fd = os.memfd_create("ppma-views", 0)
        os.ftruncate(self._memory_fd, max(memory_bytes, mmap.PAGESIZE))
        self.memory = mmap.mmap(self._memory_fd, max(memory_bytes, mmap.PAGESIZE))
        self._replies: SimpleQueue[Reply | Exception] = SimpleQueue()
        self._lock = threading.Lock()  # guards everything below
        self._waiting: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._alone_ends = 0
        self._start_deaths = 0
        self._named: set[int] = set()
        self._stop_read, self._stop_write = Pipe(duplex=False)
        self._workers = [self._start() for _ in range(config.workers)]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """Process IDs of the current workers."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, task: Task) -> None:
        """Queue a task. Tasks begin in the order in which they are submitted."""
        with self._lock:
            self._waiting.append(task)
            self._hand_out()

    def replies(self) -> list[Reply]:
        """Wait for at least one reply and return all that are ready.

        Raises:
            RuntimeError: The pool was closed, or a worker failed by a defect of this program.
            KilledError: No worker can start, because there is too little memory.
        """
        found = [self._replies.get()]
        while not self._replies.empty():
            found.append(self._replies.get())
        if isinstance(found[-1], Exception):
            raise found[-1]
        return [reply for reply in found if isinstance(reply, Reply)]

    def close(self) -> None:
        """End the workers. Idempotent."""
        if self._stop_write.closed:
            return
        self._stop_write.close()
        self._thread.join()
        self._stop_read.close()
        with self._lock:  # a thread may be handing out a task
            for worker in self._workers:
                worker.connection.close()
        os.close(self._memory_fd)
        for worker in self._wait(CLOSE_SECONDS):
            worker.process.kill()
        for worker in self._wait(CLOSE_SECONDS):  # a process that waits for a dead file system cannot be killed
            log.warning("loader worker %d cannot be ended; is its file system up?", worker.process.pid)

    def _wait(self, seconds: float) -> list[_Worker]:
        """Wait for all workers together; return those that still run."""
        end = time.monotonic() + seconds
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=max(0.0, end - time.monotonic()))
        return [worker for worker in self._workers if worker.process.poll() is None]

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-c", RUN_WORKER, str(theirs.fileno()), str(self._memory_fd)]
        python_path = os.pathsep.join(entry or os.curdir for entry in sys.path)
        process = subprocess.Popen(
            command,
            env={**os.environ, **_KEEP_MEMORY, "PYTHONPATH": python_path},
            pass_fds=(theirs.fileno(), self._memory_fd),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        worker = _Worker(process, Connection(ours.detach()))
        with contextlib.suppress(OSError):  # dead, or closed already: `_collect` replaces it or raises its defect
            worker.connection.send(self._config)
        return worker

    def _hand_out(self) -> None:
        """Give waiting tasks to the workers with the fewest, as far as they have places; suspects first, each alone."""
        while self._waiting or self._suspects:
            worker = min(self._workers, key=lambda w: len(w.tasks))
            if (self._suspects and any(w.tasks for w in self._workers)) or len(worker.tasks) >= IN_FLIGHT:
                return
            task = self._suspects[0] if self._suspects else self._waiting.popleft()
            if not worker.tasks:
                worker.busy_since = time.monotonic()
            worker.tasks[task.ticket] = task
            with contextlib.suppress(OSError):  # dead: `_collect` replaces it or raises its defect
                worker.connection.send(task)

    def _serve(self) -> None:
        """Collect replies and hand out tasks until `close`. The last item of the queue says why it ended."""
        end: Exception = RuntimeError("the loader's thread failed; see its traceback above")
        try:
            while True:
                connections = [worker.connection for worker in self._workers]
                ready = wait([self._stop_read, *connections], timeout=POLL_SECONDS)
                if self._stop_read in ready:
                    break
                for worker in [w for w in self._workers if w.connection in ready]:
                    self._collect(worker)
                self._name_slow_files()
            end = RuntimeError("the pool of loader workers was closed")
        except (RuntimeError, KilledError) as error:
            end = error
        finally:
            self._replies.put(end)

    def _collect(self, worker: _Worker) -> None:
        try:
            reply: Reply | None = worker.connection.recv()
        except (EOFError, OSError):  # an OSError where it was killed in the middle of a reply
            with self._lock:
                self._replace(worker)
                self._hand_out()
            return
        if reply is None:
            worker.ready, self._start_deaths = True, 0
            return
        with self._lock:
            if worker.tasks.pop(reply.ticket) in self._suspects:
                self._suspects.popleft()
                self._alone_ends = 0
            worker.busy_since = time.monotonic()
            self._hand_out()
        self._replies.put(reply)

    def _name_slow_files(self) -> None:
        with self._lock:
            current = [(next(iter(w.tasks.values())), w.busy_since) for w in self._workers if w.tasks]
        for task, since in current:
            seconds = time.monotonic() - since
            if task.ticket not in self._named and seconds > self._config.stall_seconds:
                self._named.add(task.ticket)
                log.warning("waiting for %s for %.0f s; is its file system up?", task.path, seconds)

    def _replace(self, worker: _Worker) -> None:
        """Replace a dead worker; its tasks are the next to be handed out."""
        worker.connection.close()
        code = worker.process.wait()
        if code >= 0:  # an exception, not a signal: a defect of this program that every other worker would meet too
            raise RuntimeError(f"a loader worker failed with code {code}; see its traceback above")
        name = signal.Signals(-code).name
        again = list(worker.tasks.values())
        where = f" while reading {again[0].path}" if again else ""
        log.warning("a loader worker was killed by %s%s; starting another", name, where)
        self.restarts += 1
        self._workers[self._workers.index(worker)] = self._start()
        if not worker.ready:  # no task is to blame
            self._start_deaths += 1
            if self._start_deaths == START_DEATHS:
                memory = "fewer --loader.workers need less memory"
                raise KilledError(f"{START_DEATHS} loader workers were killed at their start ({name}); {memory}")
            self._waiting.extendleft(reversed([task for task in again if task not in self._suspects]))
            return
        self._waiting.extendleft(reversed(again[1:]))
        if again and again[0] in self._suspects:  # tasks are served in order: the first is the one it died on
            self._alone_ends += 1
            if to_blame(name, self._alone_ends):
                self._alone_ends = 0
                self._suspects.popleft()
                self._replies.put(Reply(ticket=again[0].ticket, reason=f"killed its workers ({name}), also alone"))
        elif again:
            self._suspects.append(again[0])


# ------------------------------------------------------------------------------------------------------------- worker


def _run(task: Task, config: LoaderConfig, memory: mmap.mmap) -> tuple[DaliInput | None, str]:
    """Carry out a task; return (input for DALI, why PyAV decoded it instead of DALI)."""
    from ppma.loaders.decode.augment import make_views
    from ppma.loaders.decode.fetch import read_ahead, read_frames, read_window
    from ppma.loaders.decode.remux import NotForDali, encoded_window

    sample, fallback = task.sample, ""
    path, start, end = task.path, sample.start_seconds, sample.end_seconds
    if task.product == "read_ahead":
        read_ahead(path, start, end, config.frames)
        return None, ""
    if task.product == "views":
        shape = (len(sample.views), config.frames, config.size, config.size, 3)
        out_VTHWC = np.frombuffer(memory, dtype=np.uint8, count=int(np.prod(shape)), offset=task.offset).reshape(shape)
        make_views(read_frames(path, start, end, config.frames), sample.views, config, out_VTHWC)
        return None, ""
    try:
        if not task.codecs:
            raise NotForDali("its decoder refused the file")
        clip = encoded_window(path, start, end, config.frames, task.codecs)
    except NotForDali as reason:
        fallback = str(reason)
        frames_THWC = read_window(path, start, end, config.frames)
        count, height, width, _ = frames_THWC.shape
        clip = DaliInput(
            kind="frames", payloads=(frames_THWC,), frame_idx=tuple(range(count)), height=height, width=width
        )
    check_crops(sample.views, *scaled_size(clip.height, clip.width, config.short_side))
    return clip, fallback


def _bytes_read() -> int:
    """Return the bytes that this process has read from files, pipes and caches (Linux)."""
    with Path("/proc/self/io").open() as file:
        return int(file.readline().split()[1])


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Answer tasks until the other end closes. The first message is the LoaderConfig; None answers it."""
    import cv2

    from ppma.config.errors import BadClip

    cv2.setNumThreads(1)
    config: LoaderConfig = connection.recv()
    connection.send(None)  # ready
    while True:
        task: Task = connection.recv()
        began, read_before = time.perf_counter(), _bytes_read()
        reason, clip, fallback, failure = "", None, "", None
        try:
            clip, fallback = _run(task, config, memory)
        except (RefusedError, UnreachableError) as error:
            failure = error
        except (BadClip, ValueError) as error:  # ValueError: a crop leaves a file that changed after it was indexed
            reason = str(error)
        seconds, size = time.perf_counter() - began, _bytes_read() - read_before
        connection.send(
            Reply(
                ticket=task.ticket, reason=reason, failure=failure, fallback=fallback, clip=clip, seconds=seconds,
                bytes_read=size,
            )
        )  # fmt: skip


def main() -> None:
    """Attach to the file descriptors on the command line (pipe, memory) and serve."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C and SLURM signal the whole group; the parent closes the pipe
    pipe_fd, memory_fd = int(sys.argv[1]), int(sys.argv[2])
    size = os.fstat(memory_fd).st_size
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone: the normal end
        serve(Connection(pipe_fd), mmap.mmap(memory_fd, size))
