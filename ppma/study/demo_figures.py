"""The pictures of `ppma demo`, drawn by matplotlib without a display.

accuracies, confusion, clips, a stage 1 checkpoint  ->  figures  ->  PNG and pixels for TensorBoard
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppma.common.statistics import Accuracy
from ppma.config.loader import LoaderConfig
from ppma.inference.samples import plain_views, subset
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.models import pictures
from ppma.models.mae import MaskedAutoencoder
from ppma.training.run import open_run

DPI = 110
GREY, BLUE = "#9aa5b1", "#1f6fb2"


def save(figure: Figure, path: Path) -> np.ndarray:
    """Write a PNG and return its pixels (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI)
    figure.set_dpi(DPI)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def accuracy(bars: Sequence[tuple[str, Accuracy]], chance: float, clips: int) -> Figure:
    """A bar with its 95 % interval for each encoder, the full method last and in colour."""
    figure = Figure(figsize=(7, 2.9), layout="constrained")
    axes = figure.subplots()
    for place, (_, found) in enumerate(bars):
        colour = BLUE if place == len(bars) - 1 else GREY
        axes.barh(place, 100 * found.value, color=colour, height=0.62)
        axes.plot([100 * found.low, 100 * found.high], [place, place], color="black", linewidth=1.6)
        axes.text(100 * found.high + 1, place, f"{100 * found.value:.1f} %", va="center")
    axes.axvline(100 * chance, color="black", linestyle=":", linewidth=1)
    axes.text(100 * chance, len(bars) - 0.42, " chance", fontsize=9, va="bottom")
    axes.set_yticks(range(len(bars)), [title for title, _ in bars])
    axes.set_ylim(-0.5, len(bars) - 0.1)
    axes.set_xlim(0, min(100, 100 * max(found.high for _, found in bars) + 10))
    axes.set_xlabel(f"new actions named right, % of {clips} clips of unseen people (95 % intervals)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusion(share_KK: np.ndarray, classes: Sequence[str]) -> Figure:
    """What the full method takes for what."""
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    names = [name.replace("_", " ") for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (row, column), share in np.ndenumerate(share_KK):
        if share >= 0.005:
            axes.text(
                column,
                row,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share > 0.5 else "black",
            )
    axes.set_xlabel("named, % of an action's clips")
    axes.set_ylabel("done")
    return figure


def _views(manifest: Manifest, rows: Sequence[int], loader: LoaderConfig) -> np.ndarray:
    """(N, T, H, W, 3) plain views of some clips, through the loader."""
    return plain_views(subset(manifest, rows), loader)


def _rows(axes: Sequence[Axes], frames: np.ndarray, names: Sequence[str]) -> None:
    for cell, frames_THWC, name in zip(axes, frames, names):
        cell.imshow(pictures.sheet([frames_THWC]), interpolation="nearest")
        cell.set_axis_off()
        cell.text(-0.01, 0.5, name, transform=cell.transAxes, ha="right", va="center", fontsize=9)


def _first_of_each(manifest: Manifest, most: int) -> list[int]:
    """The first row of each class, evenly thinned to `most`; evenly spaced rows where there are no classes."""
    rows = [int(np.flatnonzero(manifest.labels == label)[0]) for label in sorted(manifest.class_names)]
    rows = rows or list(range(len(manifest)))
    return [rows[i] for i in np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


def clips(out: Path, *, own_videos: bool) -> Figure:
    """Frames of clips: scenes without people, learned actions, and the new ones done by unseen people."""
    data = catalog.read(out / "data.toml")
    loader = LoaderConfig(size=96, frames=pictures.FRAMES_SHOWN, short_side=96, crop="center", views=1)
    parts = (
        ("stage 1: scenes without people", data.manifest("real" if own_videos else "scenes"), 4),
        ("stage 2: actions to learn", data.manifest("actions"), 4),
        ("transfer: new actions, unseen people, cameras and places", data.manifest("transfer", "val"), 10),
    )
    chosen = [_first_of_each(manifest, most) for _, manifest, most in parts]
    heights = [len(rows) + 0.4 for rows in chosen]
    figure = Figure(figsize=(9.6, 0.98 * sum(heights)), layout="constrained")
    bands = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)
    for band, (title, manifest, _), rows in zip(bands[:, 0], parts, chosen):
        band.suptitle(title, fontsize=11, x=0.02, ha="left", weight="bold")
        names = [manifest.clip(row).class_name.replace("_", " ").replace(", ", ",\n") for row in rows]
        _rows(band.subplots(len(rows), 1, squeeze=False)[:, 0], _views(manifest, rows, loader), names)
    return figure


def reconstructions(out: Path, each: int = 3) -> Figure:
    """What stage 1 makes of clips with most patches hidden; the caption says where brightness and contrast come from."""
    run = open_run(out / "seed0" / "scenes", device="cpu", precision="fp32")
    model, vit = run.model, run.config.vit
    assert isinstance(model, MaskedAutoencoder)
    manifest = catalog.read(out / "data.toml").manifest(run.config.sources[0])
    rows = list(range(0, len(manifest), max(1, len(manifest) // each)))[:each]
    loader = LoaderConfig(size=vit.size, frames=vit.frames, short_side=vit.size, crop="center", views=1)
    frames_BTHWC = torch.from_numpy(_views(manifest, rows, loader))
    caption, strip = pictures.reconstructions(model, frames_BTHWC, torch.arange(each), clips=each)
    figure = Figure(figsize=(8, 8 * strip.shape[0] / strip.shape[1] + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(strip, interpolation="nearest")
    axes.set_axis_off()
    hidden = round(100 * model.mae.mask_ratio)
    axes.set_title(f"Stage 1, {hidden} % hidden. Rows in threes: {caption}", fontsize=10)
    return figure
