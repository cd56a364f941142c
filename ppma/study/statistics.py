"""What the scores of several seeds over the same videos are worth: intervals, paired differences, and their correction for many.

right_SV, right or wrong of each seed on each video  ->  mean with a 95 % interval over seeds and videos; differences with p

Both what varies is drawn again: the seeds and the videos, each with replacement (the pigeonhole bootstrap, Owen, Annals of Applied
Statistics 2007; it errs towards wide intervals). With one seed this is the usual bootstrap over videos, and says nothing of other seeds.
A mean depends on the drawn videos only through how often each pattern of right and wrong over the seeds was drawn, and there are few such
patterns: a multinomial over them is the same draw, a hundred times faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppma.loaders.philox import Purpose, generator
from ppma.metrics import RESAMPLES, Accuracy

AT_A_TIME = 1000
"""Resamples drawn in one go, which bounds memory where there are many patterns."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better one method is than another over the same videos and seeds."""

    by: Accuracy
    p: float
    """Two-sided, from the same resamples; at least 2 / (RESAMPLES + 1)."""

    @property
    def verdict(self) -> str:
        """better, worse or not told apart."""
        return "better" if self.by.low > 0 else "worse" if self.by.high < 0 else "not told apart"


def resampled_means(values_SV: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples,) means of values drawn again over seeds (rows) and videos (columns)."""
    seeds, videos = values_SV.shape
    patterns_PS, counts_P = np.unique(values_SV.T.astype(np.float64), axis=0, return_counts=True)
    rng = generator(seed, Purpose.RESAMPLE)
    means = []
    for start in range(0, resamples, AT_A_TIME):
        some = min(AT_A_TIME, resamples - start)
        videos_RP = rng.multinomial(videos, counts_P / videos, size=some)
        seeds_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=some)
        means.append((videos_RP @ patterns_PS * seeds_RS).sum(axis=1) / (videos * seeds))
    return np.concatenate(means)


def _interval(value: float, means_R: np.ndarray) -> Accuracy:
    low, high = np.percentile(means_R, [2.5, 97.5])
    return Accuracy(value=value, low=float(low), high=float(high))


def mean(values_SV: np.ndarray) -> Accuracy:
    """Mean over seeds and videos with its 95 % interval."""
    if values_SV.size == 0:
        raise ValueError("a mean over no video does not exist")
    return _interval(float(values_SV.mean()), resampled_means(values_SV))


def difference(first_SV: np.ndarray, second_SV: np.ndarray) -> Difference:
    """First less second; row s of both is one seed, column v one video. What is hard for both cancels."""
    if first_SV.shape != second_SV.shape:
        raise ValueError(f"{first_SV.shape} and {second_SV.shape} cannot be paired: other seeds or other videos")
    values_SV = first_SV.astype(np.float64) - second_SV
    means_R = resampled_means(values_SV)
    beyond = min(int((means_R <= 0).sum()), int((means_R >= 0).sum()))
    return Difference(by=_interval(float(values_SV.mean()), means_R), p=min(1.0, 2 * (beyond + 1) / (len(means_R) + 1)))


def holm(ps: Sequence[float]) -> list[float]:
    """The same p values corrected for their number (Holm, Scandinavian Journal of Statistics 1979), in the given order."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted
