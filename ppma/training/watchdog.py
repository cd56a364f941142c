"""End a run that hangs: no finished step for `hang_seconds`  ->  stacks of all threads on stderr, exit code 75.

A lost packet, a dead file system or a deadlock would otherwise hold the nodes of a job until its time limit. Launchers
start the run again on 75, from its newest checkpoint.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable

from ppma.config.command import RUN_AGAIN

log = logging.getLogger(__name__)

DUMP_SECONDS = 0.5
"""faulthandler walks the stacks without the interpreter lock, and crashes if this thread runs Python code meanwhile."""
GRACE_SECONDS = 5.0
"""Time between stacks and exit: the first rank to exit takes down its peers, which should report first."""
STDERR = 2
"""File descriptor, because sys.stderr may be replaced by an object without one."""


class Watchdog:
    """Calls `leave(75)` from a thread when `beat` is not called for `seconds`. Watches inside its `with` block only.

    The stacks come from faulthandler, which needs no interpreter lock: a hang inside C code is shown too.
    """

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
        faulthandler.cancel_dump_traceback_later()
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """Report progress: a finished step, or an encoded batch of clips."""
        faulthandler.dump_traceback_later(self._seconds, file=STDERR)
        self._last = time.monotonic()

    def _watch(self) -> None:
        limit = self._seconds + DUMP_SECONDS
        while not self._over.wait(max(self._last + limit - time.monotonic(), 0.01)):
            if time.monotonic() - self._last < limit:
                continue
            log.error("no step for %.0f s (hang_seconds): the run hangs. Stacks of all threads:", self._seconds)
            if not self._over.wait(GRACE_SECONDS):
                self._leave(RUN_AGAIN)
            return
