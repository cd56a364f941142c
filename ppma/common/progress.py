"""How far a long piece of work has come: a bar on a terminal, a line now and then elsewhere.

Progress("clips")  ->  called with (done, total)  ->  rate and time left on stderr
"""

import sys
import time
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console

LINE_EVERY_SECONDS = 10.0
"""Between lines where the output is no terminal."""


class Progress:
    """Callable with (done, total), as often as one likes; a context that takes the bar away at its end."""

    def __init__(self, unit: str) -> None:
        """`unit`: what is counted, in the plural."""
        self.unit = unit
        self.console = Console(stderr=True)
        columns = (
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[note]}"),
            rich_progress.TimeRemainingColumn(),
        )
        self.bar = rich_progress.Progress(
            *columns, console=self.console, disable=not self.console.is_terminal, transient=True
        )
        self.task = self.bar.add_task("", total=None, note="")
        self.began = self.said = time.monotonic()
        self.kept: int | None = None

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` are there; the first call says what was there before."""
        self.kept = done if self.kept is None else self.kept
        now = time.monotonic()
        rate = (done - self.kept) / max(now - self.began, 1e-3)
        self.bar.update(self.task, completed=done, total=total, note=f"{rate:.1f} {self.unit}/s, left:")
        if not self.console.is_terminal and rate and now - self.said >= LINE_EVERY_SECONDS:
            self.said = now
            sys.stderr.write(f"{done} of {total} {self.unit}, {rate:.1f}/s, {(total - done) / rate:.0f} s left\n")
