"""Draw the plots of a report: accuracy by data set and method, gap to training with humans, cost against accuracy.

Findings  ->  matplotlib figures, drawn without a display
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppma.common.plots import BLUE, GRAY, ORANGE
from ppma.common.statistics import Accuracy
from ppma.study.findings import Cell, Findings

MARKERS = "osD^vP*X<>"
PANELS_PER_ROW = 2
MAX_LETTERS = 56
"""Letters of a title that fit next to a panel."""
LETTER_INCHES = 0.073


def _short(title: str) -> str:
    return title if len(title) <= MAX_LETTERS else title[: MAX_LETTERS - 1] + "…"


def _title_inches(findings: Findings) -> float:
    """Return the width of the longest title."""
    return 0.4 + LETTER_INCHES * max(len(_short(title)) for title in findings.collection.methods.values())


def _color(method: str, findings: Findings) -> str:
    names = findings.collection
    return BLUE if method == names.compare else ORANGE if method == names.humans else GRAY


def _panels(columns: Sequence[tuple[str, str]], findings: Findings, label: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel per column at fixed places, as matplotlib's automatic layout is slow."""
    titles, left = [_short(title) for title in findings.collection.methods.values()], _title_inches(findings)
    across = min(PANELS_PER_ROW, len(columns))
    down = -(-len(columns) // across)
    width, height = left + across * 4.6, down * (0.28 * len(titles) + 1.1)
    figure = Figure(figsize=(width, height))
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False, sharey=True).ravel())
    gap = 0.9 / (height / down - 0.9) if down > 1 else 0
    figure.subplots_adjust(
        left=left / width, right=1 - 0.15 / width, top=1 - 0.35 / height, bottom=0.5 / height, wspace=0.06, hspace=gap
    )
    for axes, (protocol, dataset) in zip(panels, columns):
        axes.set_yticks(range(len(titles)), titles)
        axes.set_ylim(len(titles) - 0.5, -0.5)
        axes.set_xlabel(label, fontsize=9)
        _style(axes, f"{findings.collection.protocols[protocol]}, {dataset}")
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    return figure, panels[: len(columns)]


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _interval(axes: Axes, place: int, value: Accuracy, color: str) -> None:
    ends = [100 * value.low, 100 * value.high]
    axes.plot(ends, [place, place], color=color, linewidth=2, solid_capstyle="round")
    axes.plot(100 * value.value, place, "o", color=color, markersize=5)


def accuracy(findings: Findings) -> Figure:
    """Draw a panel per protocol and data set; small gray dots are the seeds."""
    figure, panels = _panels(findings.columns, findings, "top-1, % (95 % interval)")
    for axes, column in zip(panels, findings.columns):
        for place, method in enumerate(findings.collection.methods):
            if cell := findings.cell(method, *column):
                seeds = [100 * value for value in cell.of_seeds.values()]
                axes.plot(seeds, [place + 0.28] * len(seeds), ".", color="#b9c1c9", markersize=4)
                _interval(axes, place, cell.top1, _color(method, findings))
    return figure


def gap(findings: Findings) -> Figure | None:
    """Draw how far each method is below training with humans; None if the study has no such method."""
    cells = [cell for cell in findings.cells.values() if cell.gap is not None]
    columns = [c for c in findings.columns if any((cell.protocol, cell.dataset) == c for cell in cells)]
    if not columns:
        return None
    methods = list(findings.collection.methods)
    figure, panels = _panels(columns, findings, "points below training with humans (95 % interval)")
    for axes, column in zip(panels, columns):
        axes.axvline(0, color="black", linewidth=0.8)
        for cell in cells:
            if (cell.protocol, cell.dataset) == column and cell.gap is not None:
                _interval(axes, methods.index(cell.method), cell.gap.by, _color(cell.method, findings))
    return figure


def cost(findings: Findings) -> Figure | None:
    """Draw mean accuracy over data sets against the time of pre-training, a panel per protocol; None without times."""
    protocols = list(dict.fromkeys(protocol for protocol, _ in findings.columns))
    timed = [cell for cell in findings.cells.values() if cell.pretrain_seconds is not None]
    if not timed:
        return None
    right = _title_inches(findings)
    width = 4.3 * len(protocols) + right
    figure = Figure(figsize=(width, 3.4))
    panels = figure.subplots(1, len(protocols), squeeze=False)[0]
    figure.subplots_adjust(left=0.7 / width, right=1 - right / width, top=0.9, bottom=0.16, wspace=0.25)
    for axes, protocol in zip(panels, protocols):
        for place, (method, title) in enumerate(findings.collection.methods.items()):
            cells = [cell for cell in timed if (cell.method, cell.protocol) == (method, protocol)]
            if cells:
                _dot(axes, cells, MARKERS[place % len(MARKERS)], _short(title), _color(method, findings))
        _style(axes, findings.collection.protocols[protocol])
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_xlabel("time of pre-training, hours", fontsize=9)
        axes.set_ylabel("top-1, %, mean over data sets", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    corner = (1 - (right - 0.1) / width, 0.92)
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=corner, fontsize=8, frameon=False)
    return figure


def _dot(axes: Axes, cells: Sequence[Cell], marker: str, label: str, color: str) -> None:
    hours = float(np.mean([cell.pretrain_seconds for cell in cells if cell.pretrain_seconds is not None])) / 3600
    height = 100 * float(np.mean([cell.top1.value for cell in cells]))
    axes.plot(
        hours, height, marker, color=color, label=label, markersize=7, markeredgecolor="black", markeredgewidth=0.5
    )
