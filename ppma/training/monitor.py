"""What a run reports: metrics.jsonl, TensorBoard, a progress line, and environment.json. Rank 0 writes.

    values by tag and step  ->  Monitor;   config, ranks, precision  ->  environment.json

Tags are train/*, perf/*, data/* and eval/*. On a resume, everything logged after the checkpoint is removed, so that a
file holds each step once. A full disk ends no run here: the files catch up when there is room.
"""

import contextlib
import json
import logging
import os
import platform
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from ppma.common.files import PatientFile, write_text
from ppma.common.packages import installed_versions
from ppma.config.run import RunConfig
from ppma.kernels import choice
from ppma.loaders.stream import choose_implementation
from ppma.training import run_folder
from ppma.training.compute import Compute
from ppma.training.distributed import Ranks

log = logging.getLogger(__name__)

PACKAGES = (
    "ppma", "torch", "torchvision", "timm", "numpy", "nvidia-dali-cuda130", "av", "opencv-python-headless", "ffcv", "triton",
)  # fmt: skip
"""Packages whose versions a result may depend on."""
SHORT = {
    "train/loss": "loss {:.4f}",
    "perf/clips_per_s": "{:.1f} clips/s",
    "perf/stall_percent": "stall {:.0f} %",
    "eval/top1": "top-1 {:.3f}",
    "data/bad_files": "{:.0f} bad files",
}
"""Values of the progress line."""


class EventFile:
    """A TensorBoard event file. SummaryWriter writes in a thread, which ends when the disk is full and loses its events."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        """Open a new file; TensorBoard then hides the events of earlier files from `purge_step` on."""
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = PatientFile(folder / name)
        self._records = RecordWriter(self.file)
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def _add(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def scalar(self, step: int, tag: str, value: float) -> None:
        """Write a value."""
        self._add(step=step, summary=summary.scalar(tag, value))

    def picture(self, step: int, tag: str, image_HWC: np.ndarray) -> None:
        """Write an RGB uint8 picture."""
        self._add(step=step, summary=summary.image(tag, image_HWC, dataformats="HWC"))


class Monitor:
    """Writes values by tag and step. A context manager.

    Args:
        run_dir: Run folder.
        writes: False on every rank but the first, where all methods do nothing.
        total_steps: Steps of the run.
        start_step: Step that a resumed run starts from.
        title: Label of the progress bar.
    """

    def __init__(self, run_dir: Path, *, writes: bool, total_steps: int, start_step: int = 0, title: str = "") -> None:
        self._writes, self._total = writes, total_steps
        self._began, self._start_step = time.monotonic(), start_step
        self._progress: Progress | None = None
        if not writes:
            return
        run_folder.rewind_metrics(run_dir, start_step)
        self._lines = PatientFile(run_dir / run_folder.METRICS)
        self._events = EventFile(run_dir, start_step + 1 if start_step else None)
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[values]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._progress = Progress(*columns, speed_estimate_period=120)
            self._task = self._progress.add_task(title, total=total_steps, completed=start_step, values="")
            self._progress.start()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._writes:
            return
        if self._progress is not None:
            with contextlib.suppress(OSError):  # the terminal is closed
                self._progress.stop()
        for file in (self._events.file, self._lines):
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():  # what ended the run comes first
                file.close()

    def catch_up(self) -> None:
        """Write what a full disk refused. Called before a checkpoint: a resume keeps the lines up to it."""
        if self._writes:
            self._lines.write()
            self._events.file.write()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def scalars(self, step: int, values: dict[str, float], *, epoch: int | None = None) -> None:
        """Write values by tag to metrics.jsonl and TensorBoard, and some of them to the terminal."""
        if not self._writes:
            return
        when = {"step": step, "time": round(time.time(), 3)} | ({} if epoch is None else {"epoch": epoch})
        row: dict[str, Any] = when | values
        self._lines.write((json.dumps(row) + "\n").encode())
        for tag, value in values.items():
            self._events.scalar(step, tag, value)
        shown = [text.format(values[tag]) for tag, text in SHORT.items() if tag in values]
        line = "  ".join(text for text in shown if text != "0 bad files")
        if self._progress is not None:
            self._progress.update(self._task, completed=step, values=line)
        else:
            log.info("step %d of %d  %s  %s", step, self._total, line, self._time_left(step))

    def _time_left(self, step: int) -> str:
        done = step - self._start_step
        if done <= 0 or step >= self._total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self._total - step)
        clock = time.strftime("%H:%M:%S", time.gmtime(seconds))
        return f"left {clock}" if seconds < 86400 else f"left {seconds / 3600:.0f} h"

    def picture(self, step: int, tag: str, image_HWC: np.ndarray) -> None:
        """Show an RGB uint8 picture in TensorBoard."""
        if self._writes:
            self._events.picture(step, tag, image_HWC)


def write_environment(config: RunConfig, ranks: Ranks, compute: Compute, *, began: float, step: int) -> None:
    """Append a record of this start to the JSON list in environment.json, before the metrics are rewound.

    Args:
        config: The run.
        ranks: Its processes.
        compute: Precision.
        began: When this start began, in seconds since the epoch.
        step: Step that it resumes from.
    """
    path, rows = config.run_dir / "environment.json", run_folder.read_metrics(config.run_dir)
    before = json.loads(path.read_text()) if path.exists() else []
    on_gpu = ranks.device.type == "cuda"
    start = {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "versions": installed_versions(PACKAGES),
        "host": platform.node(),
        "cpu_count": os.cpu_count(),
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else "cpu",
        "cuda": torch.version.cuda,
        "world_size": ranks.world_size,
        "weights": str(compute.weight_dtype),
        "products": str(compute.autocast_dtype),
        "implementations": implementations(config, ranks),
        "began": began,
        "step": step,
        "last_step": rows[-1].get("time") if rows else None,
        "lost_seconds": run_folder.step_seconds(rows, config.batch, after=step),
    }
    write_text(path, json.dumps([*before, start], indent=2) + "\n")


def implementations(config: RunConfig, ranks: Ranks) -> dict[str, str]:
    """Return the selected backend of loader and kernels, each with the reason."""
    loader, why = choose_implementation(config.loader, ranks.device)
    if config.loader.implementation == "auto" and ranks.device.type == "cuda":
        why += "; a training run measures the others and may switch, see its log"
    kernels, because = choice.explain(ranks.device)
    return {"loader": f"{loader} ({why})", "kernels": f"{kernels} ({because})"}


def resident_bytes() -> int:
    """Return the bytes of RAM that this process uses (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
