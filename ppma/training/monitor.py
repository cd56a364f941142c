"""What a run tells while it runs: metrics.jsonl, TensorBoard and a progress line. Rank 0 writes, the others keep silent.

Tags are those of DESIGN.md: train/*, perf/*, data/*, eval/*. On a resume everything logged after the checkpoint is withdrawn, so a file
holds each step once.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


def _withdraw(path: Path, step: int) -> None:
    """Drop the lines after `step` from a metrics file."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(line + "\n" for line in kept))
    beside.replace(path)


class Monitor:
    """Takes numbers by tag and step. `writes` is False on every rank but the first. A context manager."""

    def __init__(self, run_dir: Path, *, writes: bool, total_steps: int, start_step: int = 0, title: str = "") -> None:
        self._writes, self._total = writes, total_steps
        self._began, self._start_step = time.monotonic(), start_step
        self._progress: Progress | None = None
        if not writes:
            return
        _withdraw(run_dir / "metrics.jsonl", start_step)
        self._file = (run_dir / "metrics.jsonl").open("a", buffering=1)
        self.writer = SummaryWriter(str(run_dir), purge_step=start_step + 1 if start_step else None)
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._progress = Progress(*columns, speed_estimate_period=120)
            self._task = self._progress.add_task(title, total=total_steps, completed=start_step, facts="")
            self._progress.start()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._writes:
            return
        if self._progress is not None:
            self._progress.stop()
        self.writer.close()
        self._file.close()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def scalars(self, step: int, values: dict[str, float], *, epoch: int | None = None) -> None:
        """Write numbers to the file, to TensorBoard and, in short, to the terminal."""
        if not self._writes:
            return
        row: dict[str, Any] = {"step": step, **({} if epoch is None else {"epoch": epoch}), **values}
        self._file.write(json.dumps(row) + "\n")
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        facts = self._facts(values)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, facts=facts)
        else:
            log.info("step %d of %d  %s  %s", step, self._total, facts, self._left(step))

    def _facts(self, values: dict[str, float]) -> str:
        short = {"train/loss": "loss {:.4f}", "perf/clips_per_s": "{:.1f} clips/s", "perf/stall_percent": "stall {:.0f} %",
                 "eval/top1": "top-1 {:.3f}", "data/bad_files": "{:.0f} bad files"}  # fmt: skip
        shown = [text.format(values[tag]) for tag, text in short.items() if values.get(tag) is not None]
        return "  ".join(text for text in shown if text != "0 bad files")

    def _left(self, step: int) -> str:
        done = step - self._start_step
        if done <= 0 or step >= self._total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self._total - step)
        return (
            f"left {time.strftime('%H:%M:%S', time.gmtime(seconds))}"
            if seconds < 86400
            else f"left {seconds / 3600:.0f} h"
        )

    def picture(self, step: int, tag: str, image_HWC: np.ndarray) -> None:
        """Show an RGB uint8 picture."""
        if self._writes:
            self.writer.add_image(tag, image_HWC, step, dataformats="HWC")

    def text(self, tag: str, text: str) -> None:
        """Show a text once."""
        if self._writes:
            self.writer.add_text(tag, text)
