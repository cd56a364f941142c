"""Compare many clips: nearest neighbors across sources, a map of embeddings, and the most confused classes.

embeddings_VD of several sources  ->  cosine neighbors, a plane by PCA
scores.npz of a test              ->  the pairs of classes that are confused most
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppma.common.statistics import predictions
from ppma.loaders.sources.manifest import Manifest

PALETTE = ("#1f6fb2", "#c8621b", "#2c8f4e", "#b23a48", "#6d4fa3", "#8a5a3b", "#c458a0", "#5f6b76", "#9a9a1f", "#1f9aa8")
"""Colors of the most frequent classes; more would look alike."""
OTHERS = "#d5dbe1"


def cosines(features_VD: np.ndarray) -> np.ndarray:
    """Return the (V, V) cosine of every pair, after the mean of all clips is subtracted: they share a large common part."""
    centered = features_VD - features_VD.mean(axis=0)
    unit = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def nearest(cosine_VV: np.ndarray, query: int, candidates: np.ndarray, most: int) -> np.ndarray:
    """Return the `most` candidates closest to a clip, without the clip itself, closest first."""
    others = candidates[candidates != query]
    return others[np.argsort(-cosine_VV[query, others], kind="stable")[:most]]


def plane(features_VD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two principal components.

    Returns:
        (V, 2) coordinates, with signs such that the largest weight of a component is positive, and (2,) shares of the variance.
    """
    centered = features_VD - features_VD.mean(axis=0)
    _, singular, directions = np.linalg.svd(centered, full_matrices=False)
    directions = directions[:2]
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    variance = singular**2
    return centered @ (directions * signs[:, None]).T, variance[:2] / max(float(variance.sum()), 1e-12)


def maps(place_V2: np.ndarray, share_2: np.ndarray, sources: Sequence[str], classes: Sequence[str]) -> Figure:
    """Draw the plane twice: colored by source and by class."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _scatter(left, place_V2, sources, "by source")
    _scatter(right, place_V2, classes, "by class")
    for axes in (left, right):
        axes.set_xlabel(f"first component ({100 * share_2[0]:.0f} % of the variance)")
        axes.set_ylabel(f"second component ({100 * share_2[1]:.0f} %)")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scatter(axes: Axes, place_V2: np.ndarray, names: Sequence[str], title: str) -> None:
    name_V = np.array(names)
    found, counts = np.unique(name_V, return_counts=True)
    shown = [str(name) for name in found[np.argsort(-counts, kind="stable")] if name][: len(PALETTE)]
    rest = ~np.isin(name_V, shown)
    if rest.any():
        axes.scatter(place_V2[rest, 0], place_V2[rest, 1], s=9, color=OTHERS, label=f"{len(set(name_V[rest]))} others")
    for color, name in zip(PALETTE, shown):
        own = name_V == name
        axes.scatter(place_V2[own, 0], place_V2[own, 1], s=13, color=color, label=name.replace("_", " "), alpha=0.8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A class that a test predicted as another."""

    label: int
    named: int
    """The predicted class."""
    count: int
    of: int
    """Clips of the class."""
    videos: tuple[str, ...]
    """Paths of the confused clips, highest wrong score first."""


def confused(scores: Path, most: int) -> list[Confusion]:
    """Return the `most` confused pairs of a test's scores.npz, by number, then by share of the class."""
    with np.load(scores) as found:
        scores_VC, label_V, video_V = found["scores"], found["label"], found["video"]
    named_V = predictions(scores_VC, label_V)
    pairs = []
    for label, named in {(int(a), int(b)) for a, b in zip(label_V, named_V) if 0 <= b != a}:
        rows = np.flatnonzero((label_V == label) & (named_V == named))
        surest = rows[np.argsort(-scores_VC[rows, named], kind="stable")]
        videos = tuple(str(video) for video in video_V[surest])
        of = int((label_V == label).sum())
        pairs.append(Confusion(label=label, named=named, count=len(rows), of=of, videos=videos))
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.count / pair.of, pair.label, pair.named))[:most]


def rows_of(source: Manifest, videos: Sequence[str]) -> list[int]:
    """Return the rows of a source that have these paths."""
    places = {path: row for row, path in enumerate(source.texts("path"))}
    return [places[video] for video in videos if video in places]
