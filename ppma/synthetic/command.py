"""`ppma synthesize`: labelled clips of virtual people.

flags -> SynthesisConfig -> generate(), with progress -> what was written
"""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ppma.command import DONE, RUN_AGAIN, parse
from ppma.synthetic.production import DiskFullError, SynthesisConfig, generate, plan

LINE_EVERY_SECONDS = 10.0
"""Between progress lines where the output is no terminal."""


class _Report:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task("", total=None, note="")
        self.began = self.said = time.monotonic()
        self.kept: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` clips are there."""
        self.kept = done if self.kept is None else self.kept
        now = time.monotonic()
        rate = (done - self.kept) / max(now - self.began, 1e-3)
        self.bar.update(self.task, completed=done, total=total, note=f"{rate:.1f} clips/s, left:")
        if not self.console.is_terminal and rate and now - self.said >= LINE_EVERY_SECONDS:
            self.said = now
            sys.stderr.write(f"{done} of {total} clips, {rate:.1f}/s, {(total - done) / rate:.0f} s left\n")


def main(argv: list[str]) -> int:
    """Run `ppma synthesize ARGV`."""
    config = parse(SynthesisConfig, argv, prog="ppma synthesize")
    report = Console(highlight=False, soft_wrap=True)
    if config.dry_run:
        jobs = plan(config)
        classes = len(jobs) // config.clips
        size = f"{config.frames} frames of {config.size} x {config.size} pixels at {config.fps:g}/s"
        report.print(f"{len(jobs)} clips of {classes} classes, {size}; would write {config.out}", markup=False)
        return DONE
    progress = _Report()
    try:
        with progress.bar:
            manifest = generate(config, on_progress=progress)
    except DiskFullError as error:
        sys.stderr.write(
            f"ppma synthesize: {error}; finished clips are kept: make room and run the same command again\n"
        )
        return RUN_AGAIN
    rows = sum(1 for _ in manifest.open()) - 1
    report.print(f"{manifest}: {rows} clips, {rows * config.seconds / 3600:.2f} hours", markup=False)
    return DONE
