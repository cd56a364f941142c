"""The plots of a report as SVG: accuracy by data set and method, gap to training with humans, cost against accuracy.

Findings  ->  figures drawn by matplotlib without a display  ->  text for the page, the same bytes for the same findings
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppma.common.plots import BLUE, GRAY, ORANGE
from ppma.common.statistics import Accuracy
from ppma.study.findings import Cell, Findings

MARKERS = "osD^vP*X<>"
PANELS_A_ROW = 2
SHORT = 56
"""Letters of a title that fit beside a panel."""
LETTER = 0.073
"""Inches of a letter of a title."""


def _short(title: str) -> str:
    return title if len(title) <= SHORT else title[: SHORT - 1] + "…"


def _room(findings: Findings) -> float:
    """Inches that the longest title takes."""
    return 0.4 + LETTER * max(len(_short(title)) for title in findings.collection.methods.values())


def _panels(count: int, findings: Findings) -> tuple[Figure, list[Axes]]:
    """Panels at fixed places: matplotlib's own layout takes longer than all the rest of a report."""
    methods, left = len(findings.collection.methods), _room(findings)
    across = min(PANELS_A_ROW, count)
    down = -(-count // across)
    width, height = left + across * 4.6, down * (0.28 * methods + 1.1)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    gap = 0.9 / (height / down - 0.9) if down > 1 else 0
    figure.subplots_adjust(
        left=left / width, right=1 - 0.15 / width, top=1 - 0.35 / height, bottom=0.5 / height, wspace=0.06, hspace=gap
    )
    for cell in axes[count:]:
        cell.set_axis_off()
    return figure, list(axes[:count])


def _points(axes: Axes, values: Sequence[tuple[int, Accuracy, str]]) -> None:
    for place, value, colour in values:
        axes.plot(
            [100 * value.low, 100 * value.high], [place, place], color=colour, linewidth=2, solid_capstyle="round"
        )
        axes.plot(100 * value.value, place, "o", color=colour, markersize=5)


def _colour(method: str, findings: Findings) -> str:
    names = findings.collection
    return BLUE if method == names.compare else ORANGE if method == names.humans else GRAY


def _dress(axes: Axes, findings: Findings, title: str) -> None:
    titles = [_short(title) for title in findings.collection.methods.values()]
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def accuracy(findings: Findings) -> Figure:
    """A panel for each protocol and data set; small grey dots are the seeds."""
    methods = list(findings.collection.methods)
    figure, panels = _panels(len(findings.columns), findings)
    for axes, (protocol, dataset) in zip(panels, findings.columns):
        cells = [(place, findings.cell(method, protocol, dataset)) for place, method in enumerate(methods)]
        there = [(place, cell) for place, cell in cells if cell is not None]
        for place, cell in there:
            axes.plot(
                [100 * v for v in cell.of_seeds.values()],
                [place + 0.28] * len(cell.of_seeds),
                ".",
                color="#b9c1c9",
                markersize=4,
            )
        _points(axes, [(place, cell.top1, _colour(cell.method, findings)) for place, cell in there])
        _dress(axes, findings, f"{findings.collection.protocols[protocol]}, {dataset}")
        axes.set_xlabel("top-1, % (95 % interval)", fontsize=9)
    return figure


def gap(findings: Findings) -> Figure | None:
    """How far each method is below training with humans; None where no such method is in the study."""
    cells = [cell for cell in findings.cells.values() if cell.gap is not None]
    if not cells:
        return None
    methods = list(findings.collection.methods)
    columns = [c for c in findings.columns if any((cell.protocol, cell.dataset) == c for cell in cells)]
    figure, panels = _panels(len(columns), findings)
    for axes, (protocol, dataset) in zip(panels, columns):
        here = [cell for cell in cells if (cell.protocol, cell.dataset) == (protocol, dataset)]
        points = [(methods.index(c.method), c.gap.by, _colour(c.method, findings)) for c in here if c.gap is not None]
        axes.axvline(0, color="black", linewidth=0.8)
        _points(axes, points)
        _dress(axes, findings, f"{findings.collection.protocols[protocol]}, {dataset}")
        axes.set_xlabel("points below training with humans (95 % interval)", fontsize=9)
    return figure


def cost(findings: Findings) -> Figure | None:
    """Mean accuracy over the data sets of a protocol against the time of pre-training; None where no time is known."""
    protocols = list(dict.fromkeys(protocol for protocol, _ in findings.columns))
    timed = [cell for cell in findings.cells.values() if cell.pretrain_seconds is not None]
    if not timed:
        return None
    right = _room(findings)
    width = 4.3 * len(protocols) + right
    figure = Figure(figsize=(width, 3.4))
    panels = figure.subplots(1, len(protocols), squeeze=False)[0]
    figure.subplots_adjust(left=0.7 / width, right=1 - right / width, top=0.9, bottom=0.16, wspace=0.25)
    for axes, protocol in zip(panels, protocols):
        for place, (method, title) in enumerate(findings.collection.methods.items()):
            cells = [cell for cell in timed if (cell.method, cell.protocol) == (method, protocol)]
            if cells:
                _dot(axes, cells, place, title, _colour(method, findings))
        axes.set_title(findings.collection.protocols[protocol], fontsize=10, loc="left")
        axes.set_xlabel("time of pre-training, hours", fontsize=9)
        axes.set_ylabel("top-1, %, mean over data sets", fontsize=9)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1 - (right - 0.1) / width, 0.92), fontsize=8, frameon=False
    )
    return figure


def _dot(axes: Axes, cells: Sequence[Cell], place: int, title: str, colour: str) -> None:
    hours = float(np.mean([cell.pretrain_seconds for cell in cells if cell.pretrain_seconds is not None])) / 3600
    height = 100 * float(np.mean([cell.top1.value for cell in cells]))
    marker = MARKERS[place % len(MARKERS)]
    axes.plot(
        hours,
        height,
        marker,
        color=colour,
        label=_short(title),
        markersize=7,
        markeredgecolor="black",
        markeredgewidth=0.5,
    )
