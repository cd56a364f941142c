"""What the scores of several seeds over the same videos are worth: intervals, paired differences, and their correction for many.

right_SV, right or wrong of each seed on each video  ->  mean with a 95 % interval over seeds and videos; differences with p

Both what varies is drawn again: the seeds and the videos, each with replacement (the pigeonhole bootstrap, Owen, Annals of Applied
Statistics 2007; it errs towards wide intervals). With one seed this is the usual bootstrap over videos, and says nothing of other seeds.
Once the seeds are drawn, a video counts by its sum over them, a small whole number, and the drawn videos matter only through how often
each such number comes: a multinomial over them is the same draw, a hundred times faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ppma.common.philox import Purpose, generator
from ppma.common.statistics import RESAMPLES, Accuracy


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


@cache
def _drawn_seeds(seeds: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed was drawn, (different ways, seeds), and how many resamples drew them that way; the same for all methods."""
    drawn_RS = generator(seed, Purpose.RESAMPLE).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    ways_WS, number_W = np.unique(drawn_RS, axis=0, return_counts=True)
    return ways_WS, number_W


def resampled_means(values_SV: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """(resamples,) means of whole numbers drawn again over seeds (rows) and videos (columns), in no particular order."""
    seeds, videos = values_SV.shape
    patterns_PS, videos_P = np.unique(values_SV.T.astype(np.float64), axis=0, return_counts=True)
    rng = generator(seed, Purpose.RESAMPLE, epoch=1)
    means = []
    for times_S, number in zip(*_drawn_seeds(seeds, resamples, seed)):
        sums_P = (patterns_PS @ times_S).astype(np.int64)  # float64 multiplies whole numbers exactly, and faster
        lowest = sums_P.min()
        share_K = np.bincount(sums_P - lowest, weights=videos_P) / videos
        drawn_NK = rng.multinomial(videos, share_K, size=number)
        means.append(drawn_NK @ (np.arange(len(share_K)) + lowest) / (videos * seeds))
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
    values_SV = first_SV.astype(np.int64) - second_SV
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
