"""Scores of an evaluation and what they are worth: accuracies with intervals, from one row of scores a video."""

import math
from dataclasses import dataclass

import numpy as np

from ppma.loaders.philox import Purpose, generator

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


RESAMPLES = 10_000
"""Of a bootstrap: the ends of a 95 % interval then move by less than a twentieth of its length from seed to seed."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of videos, or a difference of two, and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(correct: int, total: int) -> Accuracy:
    """Share of `correct` in `total` with Wilson's score interval (JASA 1927), which stays in [0, 1] and holds for few videos too."""
    if total < 1:
        raise ValueError("an accuracy over no video does not exist")
    p, z2 = correct / total, Z95**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return Accuracy(value=p, low=max(0.0, centre - half), high=min(1.0, centre + half))


def top_k_correct(scores_VC: np.ndarray, labels_V: np.ndarray, k: int) -> np.ndarray:
    """bool (V,): whether the label is among the k largest scores.

    Classes that tie with the label count against it, so a model that says nothing is never right by luck of the order. A row of NaN
    (a video that could not be decoded) is wrong.
    """
    own_V1 = np.take_along_axis(scores_VC, labels_V[:, None], axis=1)
    at_least = (scores_VC >= own_V1).sum(axis=1)  # the label itself included
    return (at_least <= k) & ~np.isnan(own_V1[:, 0])


def top_k(scores_VC: np.ndarray, labels_V: np.ndarray, k: int) -> Accuracy:
    """Top-k accuracy over videos."""
    return wilson(int(top_k_correct(scores_VC, labels_V, k).sum()), len(labels_V))


def bootstrap(values_V: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Accuracy:
    """The mean over videos with its 95 % percentile interval (Efron, 1979): videos are drawn again with replacement."""
    if len(values_V) < 1:
        raise ValueError("a mean over no video does not exist")
    rng = generator(seed, Purpose.RESAMPLE)
    means = [values_V[rng.integers(len(values_V), size=len(values_V))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Accuracy(value=float(values_V.mean()), low=float(low), high=float(high))


def paired_bootstrap(
    first_V: np.ndarray, second_V: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Accuracy:
    """How much larger the first mean is than the second over the same videos, with its 95 % interval.

    Rows are whatever two models got on a video: right or wrong, or the mean of that over seeds. Each resample takes the same videos for
    both, so what makes a video hard for both cancels; the interval excludes zero where the difference is more than luck of the videos.
    """
    if first_V.shape != second_V.shape:
        raise ValueError(f"{len(first_V)} and {len(second_V)} videos cannot be paired; score both on the same list")
    return bootstrap(first_V.astype(np.float64) - second_V, resamples=resamples, seed=seed)
