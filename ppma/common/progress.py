"""Report the progress of a long task: a bar on a terminal, a line every ten seconds elsewhere.

Progress("clips")  ->  called with (done, total)  ->  a bar, or lines in the log
"""

import logging
import time

from rich import progress as rich_progress
from rich.console import Console

log = logging.getLogger(__name__)

LINE_EVERY_SECONDS = 10.0
"""Seconds between lines where the output is not a terminal."""


class Progress:
    """A context manager, called with (done, total) as often as needed; it removes the bar at its end."""

    def __init__(self, unit: str) -> None:
        """Start counting; `unit` is what is counted, in the plural."""
        self.unit = unit
        self.console = Console(stderr=True)
        columns = (
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[note]}"),
            rich_progress.TimeRemainingColumn(),
        )
        quiet = not self.console.is_terminal
        self.bar = rich_progress.Progress(*columns, console=self.console, disable=quiet, transient=True)
        self.task = self.bar.add_task("", total=None, note="")
        self.began = self.reported = time.monotonic()
        self.before: int | None = None

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` are finished; the first call gives what was finished before, which the rate leaves out."""
        self.before = done if self.before is None else self.before
        now = time.monotonic()
        rate = (done - self.before) / max(now - self.began, 1e-3)
        self.bar.update(self.task, completed=done, total=total, note=f"{rate:.1f} {self.unit}/s, left:")
        if not self.console.is_terminal and rate and now - self.reported >= LINE_EVERY_SECONDS:
            self.reported = now
            log.info("%d of %d %s, %.1f/s, %.0f s left", done, total, self.unit, rate, (total - done) / rate)
