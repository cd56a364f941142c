"""Many independent jobs on several processes, each of which leaves its files complete or not at all.

    jobs  ->  spread(): spawned workers of one core each, or this process  ->  one result for each, as they are finished

Ctrl-C and errors are the parent's: jobs in work are finished, those that wait are dropped, and what is finished stays. A full disk becomes
DiskFullError, after which the same command goes on from there.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

import cv2

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class DiskFullError(Exception):
    """No space is left; finished clips are kept and the same command goes on from there."""


@contextmanager
def watch_disk(folder: Path) -> Iterator[None]:
    """Turn "no space left" into DiskFullError; every other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise DiskFullError(f"{folder}: {error.strerror}") from None


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


def spread(work: Callable[[JobT], ResultT], jobs: Sequence[JobT], workers: int) -> Iterator[ResultT]:
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
