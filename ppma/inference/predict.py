"""`ppma predict VIDEOS`: recognize the actions in videos, overall and over time.

videos  ->  Model.predict  ->  tables; FILE.json and FILE.svg, or a row for each window in FILE.npz or FILE.parquet
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ppma.common.files import write_json, write_text
from ppma.common.plots import svg
from ppma.config.command import DONE, OutFile, parse
from ppma.config.errors import require
from ppma.inference.embeddings import WRITERS, VideoOptions, provenance, write_rows
from ppma.inference.model import Model, Prediction

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(VideoOptions):
    """Recognize the actions in videos: the most likely classes overall, and the most likely one in each window.

    For example:
      ppma predict clip.mp4 --checkpoint runs/finetune-ucf101
      ppma predict clips --checkpoint runs/finetune-ucf101 --out clips.parquet
      ppma predict --dataset ucf101 --checkpoint runs/finetune-ucf101 --out ucf101.npz
    """

    space: str | None = None
    """Label space (the data set whose classes to use); required where the run has several."""
    crops: int = 3
    """Squares along the long side of a frame, 1 or 3 (paper: 3)."""
    top: int = 5
    """Number of classes to show."""
    out: OutFile | None = None
    """FILE.json for all scores, with a plot of a single video in FILE.svg; FILE.npz or FILE.parquet for a row per window
    (path, start_seconds, end_seconds, scores)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = (".json", *WRITERS)
        fits = self.out is None or self.out.suffix in kinds
        require(fits, f"--out is {self.out}; give a FILE{' or FILE'.join(kinds)}")


def main(argv: list[str]) -> int:
    """Run `ppma predict`."""
    options = parse(PredictOptions, argv, prog="ppma predict")
    model = Model(options.open(options.checkpoint))
    found = [
        prediction
        for one in options.find()
        for prediction in model.predict(
            one, top=options.top, space=options.space, window=options.window, stride=options.stride, crops=options.crops,
            on_bad=options.on_bad,
        )
    ]  # fmt: skip
    _show(found)
    if options.out is not None:
        _write(options.out, model, found)
    return DONE


def _show(found: Sequence[Prediction]) -> None:
    """Print the top classes of a video and of its windows; of several videos, the top class of each."""
    console = Console(highlight=False)
    if len(found) > 1:
        table = Table("video", "action", "mean score", box=None, pad_edge=False)
        for one in found:
            name, score = one.top[0]
            table.add_row(escape(one.video), escape(name) if score == score else "cannot be read", f"{score:.3f}")
        console.print(table)
        return
    (one,) = found
    whole = Table("action", "mean score", box=None, pad_edge=False)
    moments = Table("seconds", "action", "score", box=None, pad_edge=False)
    for name, score in one.top:
        whole.add_row(escape(name), f"{score:.3f}")
    for start, end, row_C in zip(one.start_seconds, one.end_seconds, one.window_scores):
        best = int(row_C.argmax())
        moments.add_row(f"{start:.1f} to {end:.1f}", escape(one.class_names[best]), f"{row_C[best]:.3f}")
    console.print(whole, "", moments, sep="\n")


def _write(path: Path, model: Model, found: Sequence[Prediction]) -> None:
    """Write all scores: as JSON, with a plot of a single video, or as a row for each window."""
    names = found[0].class_names
    if path.suffix in WRITERS:
        columns = {"path": np.repeat([one.video for one in found], [len(one.window_scores) for one in found])}
        columns["start_seconds"] = np.concatenate([one.start_seconds for one in found])
        columns["end_seconds"] = np.concatenate([one.end_seconds for one in found])
        columns["scores"] = np.concatenate([one.window_scores for one in found]).astype(np.float32)
        write_rows(path, columns, provenance(model) | {"classes": list(names)})
        log.info("%s: %d windows of %d videos", path, len(columns["path"]), len(found))
        return
    write_json(path, {"checkpoint": str(model.run.weights), "classes": names, "videos": list(map(_as_json, found))})
    log.info("%s", path)
    if len(found) == 1:
        (one,) = found
        middles = (one.start_seconds + one.end_seconds) / 2
        curves = [(name, one.window_scores[:, names.index(name)]) for name, _ in one.top]
        write_text(path.with_suffix(".svg"), scores_over_time(middles, curves))
        log.info("%s", path.with_suffix(".svg"))


def _as_json(one: Prediction) -> dict[str, Any]:
    if np.isnan(one.scores).any():
        return {"video": one.video, "mean": None, "windows": []}
    windows = [
        {"start_seconds": float(start), "end_seconds": float(end), "scores": row_C.round(6).tolist()}
        for start, end, row_C in zip(one.start_seconds, one.end_seconds, one.window_scores)
    ]
    return {"video": one.video, "mean": one.scores.round(6).tolist(), "windows": windows}


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
