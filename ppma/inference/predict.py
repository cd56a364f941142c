"""`ppma predict VIDEO`: recognize the action in a video, overall and over time.

video  ->  probe  ->  a row for each window, `every` seconds apart  ->  softmax of each, their mean  ->  table, FILE.json, FILE.svg
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ppma.common.files import write_json, write_text
from ppma.common.plots import svg
from ppma.config.command import DONE, OutFile, parse
from ppma.config.errors import InputError, require
from ppma.config.run import EvaluationConfig
from ppma.inference.samples import embed
from ppma.loaders.sources.formats import read_classes
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.probe import Unusable, VideoMetadata, probe
from ppma.training.run import FinishedRun, RunOptions
from ppma.transfer.result import mean_over_views

log = logging.getLogger(__name__)

MAX_WINDOWS = 5000
"""Of one video: four hours at the default distance."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions(RunOptions):
    """Recognize the action in a video: the most likely classes overall, and the most likely one in each window.

    For example: ppma predict clip.mp4 --checkpoint runs/finetune-ucf101
    """

    video: tyro.conf.Positional[Path]
    """A video file, or a folder of frames."""
    checkpoint: Path
    """Run folder of any recipe that trains a classifier, or one of its checkpoint folders."""
    space: str | None = None
    """Label space (the data set whose classes to use); required where the run has several."""
    classes: Path | None = None
    """Class names, one per line by label, for a run of an older version, whose head has no names."""
    every_seconds: float | None = None
    """Distance between the starts of two windows; none: half a window."""
    crops: int = 3
    """Squares along the long side of a frame, 1 or 3 (paper: 3)."""
    top: int = 5
    """Number of classes to show."""
    out: OutFile | None = None
    """FILE.json for all scores; their plot over time goes to FILE.svg."""

    def __post_init__(self) -> None:
        if self.every_seconds is not None and self.every_seconds <= 0:
            raise InputError(f"--every-seconds is {self.every_seconds}; it must be above 0")
        if self.top < 1:
            raise InputError(f"--top is {self.top}; it must be at least 1")
        if self.out is not None and self.out.suffix != ".json":
            raise InputError(f"--out is {self.out}; give a FILE.json")


def windows(video: Path, metadata: VideoMetadata, seconds: float, every: float) -> Manifest:
    """Return a manifest with a row for each window of a video, the last one ending with it.

    Args:
        video: The file, or a folder of frames.
        metadata: What the probe found in it.
        seconds: Length of a window.
        every: Distance between the starts of two windows, in seconds.

    Raises:
        InputError: There are more than MAX_WINDOWS windows.
    """
    last = max(0.0, metadata.duration_seconds - seconds)
    count = int(np.ceil(last / every)) + 1
    if count > MAX_WINDOWS:
        raise InputError(
            f"{video} has {count} windows in {metadata.duration_seconds:.0f} s; give --every-seconds {last / MAX_WINDOWS:.2g} or more"
        )
    known = {name: getattr(metadata, name) for name in VideoMetadata.__slots__ if name != "remarks"}
    starts = np.minimum(np.arange(count) * every, last)
    ends = np.minimum(starts + seconds, metadata.duration_seconds)
    rows = [
        Clip(path=video.name, start_seconds=start, end_seconds=end, **known)
        for start, end in zip(starts.tolist(), ends.tolist())
    ]
    return Manifest.from_clips(rows, root=video.absolute().parent, name=video.name)


@torch.inference_mode()
def scores(run: FinishedRun, rows: Manifest, space: str, crops: int) -> np.ndarray:
    """Return (W, C) float64 class probabilities of W windows, averaged over crops as in an evaluation."""
    found = embed(run, rows, EvaluationConfig(windows=1, crops=crops, on_bad="fail"))
    logits_WVC = run.classifier().logits_of_space(found.features_VWD, space)
    return mean_over_views(logits_WVC.double().softmax(dim=-1), found.decoded_V)


def _space(run: FinishedRun, asked: str | None) -> str:
    """Return the label space to predict in; InputError where several fit or none does."""
    spaces = run.classifier().label_spaces
    if asked is None and len(spaces) == 1:
        return next(iter(spaces))
    if asked not in spaces:
        raise InputError(f"--space is {asked}; the run has the label spaces {', '.join(spaces)}: choose one")
    return asked


def class_names(head: Sequence[str], file: Path | None) -> list[str]:
    """Return the class names of a head by label; InputError for --classes that does not fit, or that is missing."""
    if any(head):
        require(file is None, f"--classes {file}: the run has the names of its classes; leave --classes out")
        return [name or f"class {label}" for label, name in enumerate(head)]
    if file is None:
        raise InputError("the run has no class names; give them with --classes FILE, one per line by label")
    names = read_classes(file)
    require(len(names) == len(head), f"--classes {file} has {len(names)} names, the run {len(head)} classes")
    return names


def main(argv: list[str]) -> int:
    """Run `ppma predict`."""
    options = parse(PredictOptions, argv, prog="ppma predict")
    if not options.video.exists():
        raise InputError(f"{options.video}: no such file or folder")
    run = options.open(options.checkpoint)
    space = _space(run, options.space)
    names = class_names(run.class_names[space], options.classes)
    try:
        metadata = probe(options.video)
    except Unusable as error:
        raise InputError(f"{options.video}: {error}") from None
    seconds = run.loader.window_seconds
    rows = windows(options.video, metadata, seconds, options.every_seconds or seconds / 2)
    scores_WC = scores(run, rows, space, options.crops)
    _show(names, rows, scores_WC, options.top)
    if options.out is not None:
        _write(options.out, run, names, rows, scores_WC, options.top)
    return DONE


def _show(names: Sequence[str], rows: Manifest, scores_WC: np.ndarray, top: int) -> None:
    """Print two tables: the top classes of the whole video, and the top class of each window."""
    mean_C = scores_WC.mean(axis=0)
    console = Console(highlight=False)
    whole = Table("action", "mean score", box=None, pad_edge=False)
    moments = Table("seconds", "action", "score", box=None, pad_edge=False)
    for label in np.argsort(-mean_C, kind="stable")[:top]:
        whole.add_row(escape(names[label]), f"{mean_C[label]:.3f}")
    for start, end, row_C in zip(rows.starts, rows.ends, scores_WC):
        best = int(row_C.argmax())
        moments.add_row(f"{start:.1f} to {end:.1f}", escape(names[best]), f"{row_C[best]:.3f}")
    console.print(whole)
    console.print()
    console.print(moments)


def _write(path: Path, run: FinishedRun, names: Sequence[str], rows: Manifest, scores_WC: np.ndarray, top: int) -> None:
    """Write all scores as JSON, and the top classes over time as SVG next to it."""
    mean_C = scores_WC.mean(axis=0)
    content: dict[str, Any] = {
        "video": rows.name,
        "checkpoint": str(run.weights),
        "classes": list(names),
        "mean": [round(float(value), 6) for value in mean_C],
        "windows": [
            {"start_seconds": float(start), "end_seconds": float(end), "scores": [round(float(v), 6) for v in row_C]}
            for start, end, row_C in zip(rows.starts, rows.ends, scores_WC)
        ],
    }
    write_json(path, content)
    shown = np.argsort(-mean_C, kind="stable")[:top]
    middles = (rows.starts + rows.ends) / 2
    plot = scores_over_time(middles, [(names[label], scores_WC[:, label]) for label in shown])
    write_text(path.with_suffix(".svg"), plot)
    log.info("%s and %s", path, path.with_suffix(".svg"))


def scores_over_time(seconds_W: np.ndarray, curves: Sequence[tuple[str, np.ndarray]]) -> str:
    """Return a line plot as SVG text: one curve for each (class, scores_W), the first one thicker."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for place, (name, score_W) in enumerate(curves):
        axes.plot(seconds_W, score_W, marker="o", markersize=3, linewidth=2.4 if place == 0 else 1.2, label=name)
    axes.set_ylim(0, 1)
    axes.set_xlabel("middle of the window (seconds)")
    axes.set_ylabel("score")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return svg(figure)
