"""A run that hangs says where, and ends: steps, batches of a feature pass -> beats -> nothing, or all stacks in the log and exit code 75.

A lost packet, a dead file system or a deadlock leaves a job that holds its nodes until the time is over and computes nothing. Whoever
started the process runs it again on 75, from its newest checkpoint.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable

from ppma.config.command import RUN_AGAIN

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""Between the stacks and the exit: the peers of a hung rank hang too, and the first one that leaves takes them down."""
STDERR = 2
"""File descriptor: sys.stderr may be somebody's object, without one."""


class Watchdog:
    """A thread that calls `leave(75)` when `beat` is not called for `seconds`. A context manager, which watches inside its block only."""

    def __init__(self, seconds: float, leave: Callable[[int], None] = os._exit) -> None:
        self._seconds, self._leave = seconds, leave
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """A step was done, or a batch of clips encoded."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(max(self._last + self._seconds - time.monotonic(), 0.01)):
            if time.monotonic() - self._last < self._seconds:
                continue
            log.error("no step for %.0f s (hang_seconds): the run hangs. Stacks of all threads:", self._seconds)
            faulthandler.dump_traceback(file=STDERR, all_threads=True)
            if not self._over.wait(GRACE_SECONDS):
                self._leave(RUN_AGAIN)
            return
