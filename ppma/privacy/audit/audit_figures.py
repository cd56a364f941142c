"""The plots of an audit: rates before and after by detector, and what is left by class.

rates of audit.json  ->  figures drawn by matplotlib without a display
"""

from typing import Any

from matplotlib.figure import Figure

from ppma.common.plots import BLUE, GRAY, ORANGE

MOST_CLASSES = 40
"""In the plot; the table has all of them."""


def _dress(figure: Figure, names: list[str], label: str) -> None:
    (axes,) = figure.axes
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles))
    if once:
        axes.legend(once.values(), once.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def paired(rates: dict[str, dict[str, Any]]) -> Figure:
    """Share of frames with a hit, before and after, of the clips that each detector can tell of."""
    figure = Figure(figsize=(8.6, 0.42 * len(rates) + 1.0), layout="constrained")
    axes = figure.subplots()
    for place, rate in enumerate(rates.values()):
        if not rate["frames"]:
            axes.text(50, place, "cannot tell", ha="center", va="center", color=GRAY, fontsize=9)
            continue
        before, after, low, high = (100 * rate[name] for name in ("before", "after", "low", "high"))
        axes.plot([before, after], [place, place], color="#d5dce3", linewidth=3, zorder=1)
        axes.plot([low, high], [place, place], color=BLUE, linewidth=3, solid_capstyle="round", zorder=2)
        axes.plot(before, place, "o", color=ORANGE, label="before", zorder=3)
        axes.plot(after, place, "o", color=BLUE, label="after (95 %)", zorder=3)
    names = ["any of them" if name == "any" else name for name in rates]
    _dress(figure, names, "% of the frames looked at with a hit")
    return figure


def classes(found: dict[str, Any]) -> Figure:
    """Of each class, the share of clips in which any detector still hits, and the exact bound on it."""
    shown = dict(list(found.items())[:MOST_CLASSES])
    figure = Figure(figsize=(8.6, 0.3 * len(shown) + 1.1), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(shown.values()):
        rate = one["rates"]["any"]
        if not rate["sighted"]:
            axes.text(50, place, "cannot tell", ha="center", va="center", color=GRAY, fontsize=9)
            continue
        share, upper = 100 * rate["hits"] / rate["sighted"], 100 * rate["upper"]
        axes.plot([share, upper], [place, place], color=BLUE, linewidth=3, alpha=0.4, solid_capstyle="round")
        axes.plot(share, place, "o", color=BLUE, label="clips with a hit")
        axes.plot(upper, place, "|", color=BLUE, markersize=11, label="at most (95 %)")
    _dress(figure, list(shown), "% of clips with a hit of any detector")
    return figure
