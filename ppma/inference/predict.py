"""`ppma predict VIDEO`: which action a video shows, by a trained classifier, and how sure it is from moment to moment.

video  ->  probe  ->  a row for each window, `every` seconds apart  ->  softmax of each, their mean  ->  table, FILE.json, FILE.svg
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ppma.common.files import write_json, write_text
from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.config.run import EvaluationConfig, Precision
from ppma.inference.curves_figure import scores_over_time
from ppma.inference.open_run import Look, open_run
from ppma.loaders.sources import catalog
from ppma.loaders.sources.formats import read_classes
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.probe import Unusable, VideoMetadata, probe

log = logging.getLogger(__name__)

MOST_WINDOWS = 5000
"""Of one video: four hours at the default distance."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Name the action in a video: the likeliest classes over all of it, and the likeliest at each moment.

    For example: ppma predict clip.mp4 --checkpoint runs/finetune-ucf101
    """

    video: tyro.conf.Positional[Path]
    """A video file, or a folder of frames."""
    checkpoint: Path
    """Run folder of a finetune, probe or align run, or one of its checkpoint folders."""
    space: str | None = None
    """Label space (the data set whose classes are meant); needed where the run has several."""
    classes: Path | None = None
    """Class names, one a line, in the order of the labels; none: those of the label space's manifest in the data catalog."""
    every_seconds: float | None = None
    """From the start of one window to the next; none: half a window."""
    crops: int = 3
    """Squares along the long side of a frame, 1 or 3 (paper: 3)."""
    top: int = 5
    """Classes that are shown."""
    out: Path | None = None
    """FILE.json for all scores; FILE.svg beside it shows them over time."""
    data: Path | None = None
    """The data catalog; none: $PPMA_DATA, else ./data.toml."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    precision: Precision = "auto"
    """auto: bf16 products on a GPU, float32 on a CPU."""

    def __post_init__(self) -> None:
        if self.every_seconds is not None and self.every_seconds <= 0:
            raise InputError(f"--every-seconds is {self.every_seconds}; it must be above 0")
        if self.top < 1:
            raise InputError(f"--top is {self.top}; it must be at least 1")
        if self.out is not None and (self.out.suffix != ".json" or not self.out.absolute().parent.is_dir()):
            raise InputError(f"--out is {self.out}; give a FILE.json in a folder that is there")


def windows(video: Path, facts: VideoMetadata, seconds: float, every: float) -> Manifest:
    """A manifest with a row for each window of the video, the last one ending with it."""
    last = max(0.0, facts.duration_seconds - seconds)
    count = int(np.ceil(last / every)) + 1
    if count > MOST_WINDOWS:
        raise InputError(
            f"{video} is {facts.duration_seconds:.0f} s long: {count} windows; give --every-seconds {last / MOST_WINDOWS:.2g} or more"
        )
    starts = np.minimum(np.arange(count) * every, last)
    known = {name: getattr(facts, name) for name in VideoMetadata.__slots__ if name != "remarks"}
    rows = [
        Clip(
            path=video.name, start_seconds=float(s), end_seconds=float(min(s + seconds, facts.duration_seconds)), **known
        )
        for s in starts
    ]  # fmt: skip
    return Manifest.from_clips(rows, root=video.absolute().parent, name=video.name)


@torch.inference_mode()
def scores(look: Look, rows: Manifest, space: str, crops: int) -> np.ndarray:
    """(windows, classes) float64 probabilities, views averaged as in an evaluation."""
    model = look.model
    found = look.embed(rows, EvaluationConfig(windows=1, crops=crops, on_bad="fail"))
    index = 0 if hasattr(model, "head") else list(model.label_spaces).index(space)
    logits_VWC = model.logits_of_heads(model.fc_norm(found.features_VWD))[index][..., : model.label_spaces[space]]
    return logits_VWC.double().softmax(dim=-1).mean(dim=1).cpu().numpy()


def _space(look: Look, asked: str | None) -> str:
    spaces = look.model.label_spaces
    if not look.has_heads:
        raise InputError(
            f"{look.folder} is a stage 1 run and names no action; run `ppma train probe --init {look.folder}`"
        )
    if asked is None and len(spaces) == 1:
        return next(iter(spaces))
    if asked not in spaces:
        raise InputError(f"--space is {asked}; the run names the classes of {', '.join(spaces)}: say which are meant")
    return asked


def class_names(options: Options, space: str, classes: int) -> list[str]:
    """By label. InputError where nobody knows them: numbers would mean nothing."""
    if options.classes is not None:
        names = read_classes(options.classes)
        if len(names) != classes:
            raise InputError(f"--classes {options.classes} has {len(names)} names, the run {classes} classes")
        return names
    known = catalog.find(options.data)
    splits = [split for name, split in known.entries if name == space]
    if not splits:
        raise InputError(f"{known.path} has no source {space}, whose classes are meant; give --data, or --classes FILE")
    found = known.manifest(space, "train" if "train" in splits else splits[0]).class_names
    return [found.get(label, f"class {label}") for label in range(classes)]


def main(argv: list[str]) -> int:
    """The command."""
    options = parse(Options, argv, prog="ppma predict")
    if not options.video.exists():
        raise InputError(f"{options.video}: no such file or folder")
    look = open_run(options.checkpoint, device=options.device, precision=options.precision, workers=1)
    space = _space(look, options.space)
    names = class_names(options, space, look.model.label_spaces[space])
    try:
        facts = probe(options.video)
    except Unusable as error:
        raise InputError(f"{options.video}: {error}") from None
    seconds = look.loader.window_seconds
    rows = windows(options.video, facts, seconds, options.every_seconds or seconds / 2)
    scores_WC = scores(look, rows, space, options.crops)
    _tell(names, rows, scores_WC, options.top)
    if options.out is not None:
        _write(options.out, look, names, rows, scores_WC, options.top)
    return DONE


def _tell(names: Sequence[str], rows: Manifest, scores_WC: np.ndarray, top: int) -> None:
    """Two tables on stdout: over the whole video, and the likeliest class of each window."""
    mean_C = scores_WC.mean(axis=0)
    console = Console(highlight=False)
    whole = Table(box=None, pad_edge=False)
    for heading in ("action", "mean score"):
        whole.add_column(heading)
    for label in np.argsort(-mean_C, kind="stable")[:top]:
        whole.add_row(escape(names[label]), f"{mean_C[label]:.3f}")
    console.print(whole)
    console.print()
    moments = Table(box=None, pad_edge=False)
    for heading in ("seconds", "action", "score"):
        moments.add_column(heading)
    for start, end, row_C in zip(rows.starts, rows.ends, scores_WC):
        best = int(row_C.argmax())
        moments.add_row(f"{start:.1f} to {end:.1f}", escape(names[best]), f"{row_C[best]:.3f}")
    console.print(moments)


def _write(path: Path, look: Look, names: Sequence[str], rows: Manifest, scores_WC: np.ndarray, top: int) -> None:
    mean_C = scores_WC.mean(axis=0)
    content: dict[str, Any] = {
        "video": rows.name,
        "checkpoint": str(look.weights),
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
    drawing = scores_over_time(middles, [(names[label], scores_WC[:, label]) for label in shown])
    write_text(path.with_suffix(".svg"), drawing)
    log.info("%s and %s", path, path.with_suffix(".svg"))
