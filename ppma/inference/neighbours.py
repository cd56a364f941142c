"""What `ppma inspect` says of many clips: where they lie to each other, and which classes are taken for which.

embeddings_VD of several sources  ->  cosine neighbours across sources, a plane by PCA
scores.npz of a test              ->  pairs of classes that are confused most
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppma.common.statistics import predictions
from ppma.loaders.sources.manifest import Manifest

CLASSES_IN_COLOUR = 10
"""The most frequent ones; more colours cannot be told apart."""
PALETTE = ("#1f6fb2", "#c8621b", "#2c8f4e", "#b23a48", "#6d4fa3", "#8a5a3b", "#c458a0", "#5f6b76", "#9a9a1f", "#1f9aa8")
OTHERS = "#d5dbe1"


def cosines(features_VD: np.ndarray) -> np.ndarray:
    """(V, V) cosine of every pair, about the mean of all clips: embeddings share a large common part that tells nothing."""
    centred = features_VD - features_VD.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def nearest(cosine_VV: np.ndarray, query: int, candidates: np.ndarray, most: int) -> np.ndarray:
    """The nearest of `candidates` to a clip, itself left out, nearest first."""
    others = candidates[candidates != query]
    return others[np.argsort(-cosine_VV[query, others], kind="stable")[:most]]


def plane(features_VD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((V, 2) places on the two directions of most variance, (2,) their shares of it); signs so that the largest weight is positive."""
    centred = features_VD - features_VD.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    variance = singular**2
    return centred @ (directions * signs[:, None]).T, variance[:2] / max(float(variance.sum()), 1e-12)


def maps(place_V2: np.ndarray, share_2: np.ndarray, sources: Sequence[str], classes: Sequence[str]) -> Figure:
    """The plane twice: coloured by source, and by class."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _scatter(left, place_V2, sources, "by source")
    _scatter(right, place_V2, classes, "by class")
    for axes in (left, right):
        axes.set_xlabel(f"first component ({100 * share_2[0]:.0f} % of the variance)")
        axes.set_ylabel(f"second ({100 * share_2[1]:.0f} %)")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scatter(axes: Axes, place_V2: np.ndarray, names: Sequence[str], title: str) -> None:
    words = np.array(names)
    found, counts = np.unique(words, return_counts=True)
    shown = [str(name) for name in found[np.argsort(-counts, kind="stable")] if name][:CLASSES_IN_COLOUR]
    rest = ~np.isin(words, shown)
    if rest.any():
        axes.scatter(place_V2[rest, 0], place_V2[rest, 1], s=9, color=OTHERS, label=f"{len(set(words[rest]))} others")
    for colour, name in zip(PALETTE, shown):
        own = words == name
        axes.scatter(place_V2[own, 0], place_V2[own, 1], s=13, color=colour, label=name.replace("_", " "), alpha=0.8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """One class taken for another in a test."""

    label: int
    named: int
    count: int
    of: int
    """Clips of the class."""
    videos: tuple[str, ...]
    """Paths of those that were taken for the other, surest first."""


def confused(scores: Path, most: int) -> list[Confusion]:
    """The pairs of a test's scores.npz that are confused most, by number, then by share of the class."""
    with np.load(scores) as found:
        scores_VC, label_V, video_V = found["scores"], found["label"], found["video"]
    named_V = predictions(scores_VC, label_V)
    pairs = {}
    for label, named in {(int(a), int(b)) for a, b in zip(label_V, named_V) if 0 <= b != a}:
        rows = np.flatnonzero((label_V == label) & (named_V == named))
        surest = rows[np.argsort(-scores_VC[rows, named], kind="stable")]
        videos = tuple(str(video) for video in video_V[surest])
        pairs[label, named] = Confusion(
            label=label, named=named, count=len(rows), of=int((label_V == label).sum()), videos=videos
        )
    return sorted(pairs.values(), key=lambda pair: (-pair.count, -pair.count / pair.of, pair.label, pair.named))[:most]


def rows_of(source: Manifest, videos: Sequence[str]) -> list[int]:
    """Rows of these paths."""
    places = {path: row for row, path in enumerate(source.texts("path"))}
    return [places[video] for video in videos if video in places]
