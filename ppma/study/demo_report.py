"""Report on `ppma demo`: a table, figures, a TensorBoard page and a paragraph, from the scores of its probes.

    sealed runs  ->  right or wrong per clip, method and seed  ->  intervals and paired differences  ->  OUT/report/

Bootstraps resample clips; over several seeds a clip's value is its mean over them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Column, Table
from torch.utils.tensorboard import SummaryWriter

from ppma.common.files import write_json
from ppma.common.philox import Purpose, generator
from ppma.common.plots import BLUE
from ppma.common.statistics import RESAMPLES, Accuracy
from ppma.config.loader import LoaderConfig
from ppma.inference.samples import evenly_spaced, plain_views, subset
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.models import pictures
from ppma.models.mae import MaskedAutoencoder
from ppma.study.data import REAL, SCENES, DataConfig
from ppma.study.results import Collection, collect
from ppma.study.table import Grid, percent
from ppma.training import seal
from ppma.training.run import open_run

DPI = 110
GRAY = "#9aa5b1"
FULL = "full"
"""Name of the full method in demo.toml."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    method: str
    title: str
    accuracy: Accuracy
    of_seeds: tuple[float, ...]
    behind: Accuracy | None
    """How much better the full method is on the same clips; None for the full method."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All numbers of a demo."""

    rows: tuple[Row, ...]
    clips: int
    classes: tuple[str, ...]
    confusion_KK: np.ndarray
    """Full method: share of the clips of a class (row) that are taken for another (column), mean over seeds."""

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.classes)


def bootstrap(values_V: np.ndarray) -> Accuracy:
    """Return the mean over clips with its 95 % percentile bootstrap interval; the published table has its digits."""
    rng = generator(0, Purpose.RESAMPLE)
    means_R = [values_V[rng.integers(len(values_V), size=len(values_V))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means_R, [2.5, 97.5])
    return Accuracy(value=float(values_V.mean()), low=float(low), high=float(high))


def summarize(collection: Collection, classes: Sequence[str]) -> Findings:
    """Compute the table of a demo from the results of its runs; `classes` are the new actions by label."""
    right_SV = {
        method: np.concatenate([result.right_DV for result in collection.results if result.method == method])
        for method in collection.methods
    }
    confusion_KK, full_V = np.zeros((len(classes), len(classes))), right_SV[FULL].mean(axis=0)
    for result in collection.results:
        if result.method == FULL:
            with np.load(result.folder / "scores.npz") as scores:
                np.add.at(confusion_KK, (scores["label"], scores["scores"].argmax(axis=1)), 1)
    rows = tuple(
        Row(
            method=method, title=title, accuracy=bootstrap(right_SV[method].mean(axis=0)),
            of_seeds=tuple(right_SV[method].mean(axis=1).tolist()),
            behind=None if method == FULL else bootstrap(full_V - right_SV[method].mean(axis=0)),
        )
        for method, title in collection.methods.items()
    )  # fmt: skip
    confusion_KK /= confusion_KK.sum(axis=1, keepdims=True)
    return Findings(rows=rows, clips=len(full_V), classes=tuple(classes), confusion_KK=confusion_KK)


def table(findings: Findings) -> Grid:
    """Return the table of a demo."""
    rows = [(f"chance, {len(findings.classes)} actions", f"{100 * findings.chance:.1f}", "")]
    for row in findings.rows:
        seeds = f" [{', '.join(f'{100 * value:.1f}' for value in row.of_seeds)}]" if len(row.of_seeds) > 1 else ""
        title = f"{row.title} (full method)" if row.behind is None else row.title
        better = percent(row.behind, signed=True) if row.behind else ""
        rows.append((title, percent(row.accuracy) + seeds, better))
    heads = ("encoder under the probe", "top-1, % (95 %)", "full method better by, points (95 %)")
    return Grid(title=f"Linear probe on {findings.clips} clips of unseen people", heads=heads, rows=tuple(rows))


def _verdict(row: Row, behind: Accuracy) -> str:
    if behind.low > 0:
        return f"better than {row.title}"
    return f"worse than {row.title}" if behind.high < 0 else f"not significantly different from {row.title}"


def closing(findings: Findings, *, own_videos: bool) -> str:
    """Return a paragraph on what was shown, what was not, and what to type next."""
    verdicts = ", ".join(_verdict(row, row.behind) for row in findings.rows if row.behind)
    scenes = "your clips, which you vouch show no people," if own_videos else "rendered scenes without people"
    return f"""\
What was shown: an encoder trained on {scenes} and on virtual people doing other actions, with no real human, names \
{len(findings.classes)} new actions in {100 * findings.rows[-1].accuracy.value:.0f} of 100 clips; guessing gets \
{100 * findings.chance:.0f}. The clips show virtual people, cameras and backgrounds that it never saw. Over {findings.clips} of them \
it is {verdicts} (95 % intervals of the paired difference). All people here are rendered: nothing was shown about real ones. That takes \
real footage with the humans removed, more clips and a larger model.
What to type next, with your human-removed clips in DIR/<class>/:
    make demo VIDEOS=DIR
    ppma index DIR --out nohuman.csv --name no-human-kinetics --domain human-removed
    ppma train mae_nohuman --model tiny --optim.epochs 20
    python slurm/launch.py pretrain --nodes 2          (the paper's run, on a cluster)"""


def write_report(listing: Path, settings: DataConfig, console: Console) -> None:
    """Write table, figures and TensorBoard page to `report/` next to the demo's listing, and print table and paragraph."""
    folder, findings = listing.parent / "report", summarize(collect(listing), settings.new)
    folder.mkdir(parents=True, exist_ok=True)
    grid, words = table(findings), closing(findings, own_videos=settings.videos is not None)
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in (grid.heads, ("---",) * len(grid.heads), *grid.rows))
    (folder / "table.md").write_text(lines)
    (folder / "closing.txt").write_text(words + "\n")
    (stage1,) = (name for name in seal.verified(listing)["commands"] if Path(name).name.startswith("scenes-s0-"))
    values = {"clips": findings.clips, "seeds": len(findings.rows[0].of_seeds), "chance": findings.chance}
    rows = [asdict(row) for row in findings.rows]
    write_json(folder / "findings.json", values | {"classes": findings.classes, "rows": rows})
    figures = {
        "accuracy": accuracy_figure(findings), "confusion": confusion_figure(findings), "clips": clips_figure(settings),
        "reconstructions": reconstructions_figure(listing.parent / stage1, settings.data),
    }  # fmt: skip
    with SummaryWriter(str(folder)) as writer:
        for name, figure in figures.items():
            writer.add_image(name, _save(figure, folder / f"{name}.png"), dataformats="HWC")
        for row in findings.rows:
            writer.add_scalar(f"transfer/{row.title}", row.accuracy.value)
        writer.add_text("table", lines)
        writer.add_text("closing", words)
    first, *others = grid.heads
    shown = Table(first, *(Column(head, justify="right") for head in others), title=grid.title)
    for cells in grid.rows:
        shown.add_row(*cells)
    console.print(shown)
    console.print(f"\n{words}\n", soft_wrap=True, markup=False)


# --------------------------------------------------------------------------------------------------------------- figures


def _save(figure: Figure, path: Path) -> np.ndarray:
    """Write a PNG and return its pixels, (H, W, 3) uint8."""
    figure.savefig(path, dpi=DPI)
    return np.asarray(Image.open(path).convert("RGB"))


def accuracy_figure(findings: Findings) -> Figure:
    """Draw a bar with its 95 % interval per encoder, the full method last and in color."""
    figure = Figure(figsize=(7, 2.9), layout="constrained")
    axes, rows = figure.subplots(), findings.rows
    for place, row in enumerate(rows):
        low, high = 100 * row.accuracy.low, 100 * row.accuracy.high
        axes.barh(place, 100 * row.accuracy.value, color=BLUE if row.behind is None else GRAY, height=0.62)
        axes.plot([low, high], [place, place], color="black", linewidth=1.6)
        axes.text(high + 1, place, f"{100 * row.accuracy.value:.1f} %", va="center")
    axes.axvline(100 * findings.chance, color="black", linestyle=":", linewidth=1)
    axes.text(100 * findings.chance, len(rows) - 0.42, " chance", fontsize=9, va="bottom")
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.set_ylim(-0.5, len(rows) - 0.1)
    axes.set_xlim(0, min(100, 100 * max(row.accuracy.high for row in rows) + 10))
    axes.set_xlabel(f"top-1 on new actions, % of {findings.clips} clips of unseen people (95 % intervals)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusion_figure(findings: Findings) -> Figure:
    """Draw the confusion matrix of the full method."""
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(findings.confusion_KK, cmap="Blues", vmin=0, vmax=1)
    names = [name.replace("_", " ") for name in findings.classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (row, column), share in np.ndenumerate(findings.confusion_KK):
        if share >= 0.005:
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xlabel("predicted, % of an action's clips")
    axes.set_ylabel("true")
    return figure


def _first_of_each(manifest: Manifest, most: int) -> list[int]:
    """Return the first row of each class, or every row without classes, evenly thinned to `most`."""
    rows = [int(np.flatnonzero(manifest.labels == label)[0]) for label in sorted(manifest.class_names)]
    rows = rows or list(range(len(manifest)))
    return [rows[i] for i in evenly_spaced(len(rows), most)]


def clips_figure(settings: DataConfig) -> Figure:
    """Draw frames of scenes without people, of learned actions, and of new actions by unseen people."""
    data = catalog.read(settings.data)
    loader = LoaderConfig(size=96, frames=pictures.FRAMES_SHOWN, short_side=96, crop="center", views=1)
    parts = (
        ("stage 1: scenes without people", data.manifest(REAL if settings.videos else SCENES), 4),
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
        clips = plain_views(subset(manifest, rows), loader)
        for axes, frames_THWC, name in zip(band.subplots(len(rows), 1, squeeze=False)[:, 0], clips, names):
            axes.imshow(pictures.sheet([frames_THWC]), interpolation="nearest")
            axes.set_axis_off()
            axes.text(-0.01, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=9)
    return figure


def reconstructions_figure(run: Path, data: Path, count: int = 3) -> Figure:
    """Draw how a run of stage 1 reconstructs some clips of its source."""
    opened = open_run(run, device="cpu", precision="fp32")
    config, model = opened.config, opened.model
    assert isinstance(model, MaskedAutoencoder)
    manifest = catalog.read(data).manifest(config.sources[0])
    rows = list(range(0, len(manifest), max(1, len(manifest) // count)))[:count]
    size, frames = config.vit.size, config.vit.frames
    loader = LoaderConfig(size=size, frames=frames, short_side=size, crop="center", views=1)
    frames_BTHWC = torch.from_numpy(plain_views(subset(manifest, rows), loader))
    caption, strip = pictures.reconstructions(model, frames_BTHWC, torch.arange(count), clips=count)
    figure = Figure(figsize=(8, 8 * strip.shape[0] / strip.shape[1] + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(strip, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"Stage 1, {100 * config.mae.mask_ratio:.0f} % masked. Rows in threes: {caption}", fontsize=10)
    return figure
