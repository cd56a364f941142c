"""Processes that write the shards of a store.

    shards to do  ->  one worker process each at a time  ->  Started for every row, Shard for every finished file

A row that takes its worker down (a decoder crashed, the machine ran out of memory) is refused with that reason, and its shard is begun
again without it. Workers end with their parent.
"""

import ctypes
import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2

from ppma.data.shard_writer import PackRow, pack_shard
from ppma.loaders.sources.store import PackParameters, Shard


@dataclass(frozen=True)
class Job:
    """One shard to write."""

    number: int
    rows: Sequence[PackRow]
    refused: dict[int, str] = field(default_factory=dict)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job
    row: PackRow


def _work(connection: Connection, folder: Path, parameters: PackParameters) -> None:
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG (Linux)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    cv2.setNumThreads(1)
    while (job := connection.recv()) is not None:
        shard = pack_shard(folder, job.number, job.rows, parameters, refused=job.refused, started=connection.send)
        connection.send(shard)


def pack_all(
    folder: Path, jobs: Sequence[Job], parameters: PackParameters, *, workers: int
) -> Generator[PackRow | tuple[int, Shard], None, None]:
    """Every row when it is begun, and (number, Shard) for every finished shard, in the order in which they happen."""
    context = multiprocessing.get_context("spawn")
    waiting = deque(jobs)
    busy: dict[Connection, _Worker] = {}

    def start(job: Job) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, folder, parameters), daemon=True)
        process.start()
        theirs.close()
        busy[ours] = _Worker(process, ours, job, job.rows[0])
        ours.send(job)

    try:
        while waiting and len(busy) < workers:
            start(waiting.popleft())
        while busy:
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # only what is in `busy` was waited for
                try:
                    told = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    start(_without_culprit(worker, busy))
                    continue
                if isinstance(told, PackRow):
                    worker.row = told
                    yield told
                    continue
                yield worker.job.number, told
                if waiting:
                    worker.job = waiting.popleft()
                    worker.connection.send(worker.job)
                else:
                    del busy[worker.connection]
                    worker.connection.send(None)
                    worker.process.join()
    finally:
        for worker in busy.values():
            worker.process.kill()
            worker.process.join()


def _without_culprit(worker: _Worker, busy: dict[Connection, _Worker]) -> Job:
    """The job of a worker that died, less the row it died on."""
    worker.process.join()
    del busy[worker.connection]
    reason = f"ended the process that decoded it (code {worker.process.exitcode})"
    return Job(worker.job.number, worker.job.rows, {**worker.job.refused, worker.row.row: reason})
