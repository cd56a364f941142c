"""Scores of an evaluation and what they are worth: accuracies with intervals, from one row of scores a video."""

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of videos and its 95 % interval."""

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
