"""Stand in for a network file system: every operation on a shard takes 2 ms, unless its pages were asked for before.

Installed in loader workers by a `sitecustomize` on PYTHONPATH. Pages stay cached once they were read, and a page that
posix_fadvise asked for is cached 2 ms later, as in the kernel.
"""

import os
import time

LATENCY_SECONDS = 0.002
PAGE = 2**14

_open, _pread, _advise = os.open, os.pread, os.posix_fadvise
_due: dict[tuple[int, int], float] = {}
"""(inode, page) -> time at which it is in the cache."""


def _pages(fd: int, offset: int, size: int) -> list[tuple[int, int]]:
    inode = os.fstat(fd).st_ino
    return [(inode, page) for page in range(offset // PAGE, -(-(offset + size) // PAGE))]


def _slow_open(path, *arguments, **more):
    if str(path).endswith(".beton"):
        time.sleep(LATENCY_SECONDS)
    return _open(path, *arguments, **more)


def _slow_pread(fd, size, offset):
    answered = time.monotonic() + LATENCY_SECONDS
    pages = _pages(fd, offset, size)
    due = max(_due.setdefault(page, answered) for page in pages)
    time.sleep(max(0.0, due - time.monotonic()))
    return _pread(fd, size, offset)


def _slow_advise(fd, offset, size, advice):
    answered = time.monotonic() + LATENCY_SECONDS
    for page in _pages(fd, offset, size):
        _due.setdefault(page, answered)


def install() -> None:
    """Slow down reads of shards in this process."""
    os.open, os.pread, os.posix_fadvise = _slow_open, _slow_pread, _slow_advise
