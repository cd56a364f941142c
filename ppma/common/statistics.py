"""Scores of an evaluation and what they are worth, from one row of scores a video: accuracies with intervals, in all and by class, which
classes are taken for which, and whether the scores can be believed as probabilities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppma.common.philox import Purpose, generator

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


STUDENT95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % points of Student's t with 1 to 30 degrees of freedom."""


def student95(degrees: int) -> float:
    """Two-sided 95 % point of Student's t; above 30 degrees by the first terms of its expansion, within 0.001."""
    if degrees <= len(STUDENT95):
        return STUDENT95[degrees - 1]
    return Z95 + (Z95**3 + Z95) / (4 * degrees) + (5 * Z95**5 + 16 * Z95**3 + 3 * Z95) / (96 * degrees**2)


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


def predictions(scores_VC: np.ndarray, labels_V: np.ndarray) -> np.ndarray:
    """int64 (V,): the class with the largest score; -1 for a row of NaN. A tie with the label goes to the other class, as in `top_k`."""
    rivals_VC = np.nan_to_num(scores_VC, nan=-np.inf)
    tied_V = ~top_k_correct(scores_VC, labels_V, 1)
    rivals_VC[tied_V, labels_V[tied_V]] = -np.inf
    return np.where(np.isnan(scores_VC[:, 0]), -1, rivals_VC.argmax(axis=1))


def confusion(scores_VC: np.ndarray, labels_V: np.ndarray) -> np.ndarray:
    """int64 (C, C + 1): videos of each class (row) by what they were taken for (column); the last column counts undecodable videos."""
    classes = scores_VC.shape[1]
    counts_CC = np.zeros((classes, classes + 1), dtype=np.int64)
    np.add.at(counts_CC, (labels_V, predictions(scores_VC, labels_V)), 1)
    return counts_CC


def class_accuracies(confusion_CC: np.ndarray) -> np.ndarray:
    """float64 (C,): share of each class's videos that were recognised; NaN for a class without videos. Its mean is over classes alike."""
    with np.errstate(invalid="ignore"):
        return np.diagonal(confusion_CC) / confusion_CC.sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Videos whose largest score lies in (low, high]."""

    low: float
    high: float
    videos: int
    confidence: float | None
    """Mean of their largest scores; None where there is no video."""
    accuracy: float | None
    """Share of them that is right."""


def calibration(scores_VC: np.ndarray, labels_V: np.ndarray, bins: int = 15) -> tuple[float, list[Bin]]:
    """Expected calibration error (Guo et al., ICML 2017) with its equal bins: the mean over videos of |accuracy - confidence| in their bin.

    Undecodable videos have no confidence and are left out.
    """
    fine_V = ~np.isnan(scores_VC[:, 0])
    largest_V, right_V = scores_VC[fine_V].max(axis=1), top_k_correct(scores_VC[fine_V], labels_V[fine_V], 1)
    place_V = np.clip(np.ceil(largest_V * bins).astype(int) - 1, 0, bins - 1)
    found, error = [], 0.0
    for number in range(bins):
        inside_V = place_V == number
        videos = int(inside_V.sum())
        confidence = float(largest_V[inside_V].mean()) if videos else None
        accuracy = float(right_V[inside_V].mean()) if videos else None
        found.append(
            Bin(low=number / bins, high=(number + 1) / bins, videos=videos, confidence=confidence, accuracy=accuracy)
        )
        if confidence is not None and accuracy is not None:
            error += videos / len(largest_V) * abs(accuracy - confidence)
    return error, found


def over_draws(values: Sequence[float]) -> Accuracy:
    """The mean of a few repetitions with Student's 95 % interval of it; a single one has no interval, and its ends are NaN."""
    values_N = np.asarray(values, dtype=np.float64)
    if len(values_N) < 2:
        return Accuracy(value=float(values_N.mean()), low=math.nan, high=math.nan)
    half = student95(len(values_N) - 1) * values_N.std(ddof=1) / math.sqrt(len(values_N))
    return Accuracy(value=float(values_N.mean()), low=float(values_N.mean() - half), high=float(values_N.mean() + half))


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
