"""Many independent jobs on several processes, each of which leaves its files complete or not at all.

    jobs  ->  parallel_map(): spawned workers of one core each, or this process  ->  one result for each, as they are finished

Ctrl-C and errors are the parent's: jobs in work are finished, those that wait are dropped, and what is finished stays. A full disk becomes
DiskFullError, after which the same command goes on from there.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

import cv2

from ppma.config.errors import InputError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


def _leave_with_parent() -> None:
    """A pool's worker waits for its next job for ever, with its models in memory, when nobody is there to give it one."""
    parent = parent_process()
    assert parent is not None, "a worker is started by somebody"
    parent.join()
    os._exit(1)


def _settle_in() -> None:
    """Ctrl-C is for the parent, which lets jobs in work be finished; a worker takes one core, and does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


def parallel_map(work: Callable[[JobT], ResultT], jobs: Sequence[JobT], workers: int) -> Iterator[ResultT]:
    """Yield what `work`, a function of a module, returns for each job, as they are finished. Left early, it finishes jobs in work."""
    if workers == 1 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    waiting, running = iter(jobs), set[Future[ResultT]]()
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=_settle_in) as pool:
        running |= {pool.submit(work, job) for job in islice(waiting, 2 * workers)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(work, job) for job in islice(waiting, len(finished))}
            for future in finished:
                try:
                    result = future.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                yield result


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
