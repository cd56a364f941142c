"""Scores of a video over time as an SVG.

moments in seconds, (class, its score at each)  ->  text of an SVG file
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ppma.common.plots import svg


def scores_over_time(seconds_W: np.ndarray, curves: Sequence[tuple[str, np.ndarray]]) -> str:
    """A line for each class, the likeliest first and strongest."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for place, (name, score_W) in enumerate(curves):
        axes.plot(seconds_W, score_W, marker="o", markersize=3, linewidth=2.4 if place == 0 else 1.2, label=name)
    axes.set_ylim(0, 1)
    axes.set_xlabel("middle of the window, seconds")
    axes.set_ylabel("score")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return svg(figure)
