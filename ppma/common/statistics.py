"""Accuracies, rates and differences with 95 % intervals, and what else is reported of an evaluation.

scores_VC, labels_V         ->  top_k, confusion, class_accuracies, calibration
videos right or wrong       ->  wilson
right_SV over several seeds ->  mean_over_seeds, difference, holm
clips with a detection      ->  upper_bound (Clopper-Pearson)      frames with a detection  ->  pooled_share

Shapes: S seeds, V videos, C classes or clips, R resamples. Resampling uses fixed Philox streams, so intervals are reproducible.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special  # scipy.stats would take most of a second to import

from ppma.common.philox import Purpose, generator

CONFIDENCE = 0.95
RESAMPLES = 10_000
"""Bootstrap resamples of accuracies: the ends of an interval vary with the seed by less than a twentieth of its length."""
RATE_RESAMPLES = 2000
"""Bootstrap resamples of the rates of an audit."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of videos, or a difference of two shares, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two methods over the same videos and seeds."""

    by: Accuracy
    p: float
    """Two-sided p-value from the same resamples; at least 2 / (RESAMPLES + 1)."""

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "not significantly different", by the 95 % interval."""
        return "better" if self.by.low > 0 else "worse" if self.by.high < 0 else "not significantly different"


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Videos whose largest score is in (low, high]."""

    low: float
    high: float
    videos: int
    confidence: float | None
    """Mean of their largest scores; None without videos."""
    accuracy: float | None
    """Share of them classified correctly; None without videos."""


# ------------------------------------------------------------------------------------------------------------- scores


def top_k_correct(scores_VC: np.ndarray, labels_V: np.ndarray, k: int) -> np.ndarray:
    """Return bool (V,), True where the label is among the k largest scores.

    Classes that tie with the label rank above it, so equal scores never count as correct by their order. A label whose score is NaN
    (a video that cannot be decoded) or -inf (a class that the head lacks) is wrong.
    """
    own_V1 = np.take_along_axis(scores_VC, labels_V[:, None], axis=1)
    rank_V = (scores_VC >= own_V1).sum(axis=1)  # from 1: the label itself counts
    return (rank_V <= k) & np.isfinite(own_V1[:, 0])


def top_k(scores_VC: np.ndarray, labels_V: np.ndarray, k: int) -> Accuracy:
    """Return the top-k accuracy over videos with Wilson's interval."""
    return wilson(int(top_k_correct(scores_VC, labels_V, k).sum()), len(labels_V))


def predictions(scores_VC: np.ndarray, labels_V: np.ndarray) -> np.ndarray:
    """Return int64 (V,), the class with the largest score, or -1 for a row of NaN. As in `top_k`, a tie goes to the wrong class."""
    rivals_VC = np.nan_to_num(scores_VC, nan=-np.inf)
    tied_V = ~top_k_correct(scores_VC, labels_V, 1)
    rivals_VC[tied_V, labels_V[tied_V]] = -np.inf
    return np.where(np.isnan(scores_VC[:, 0]), -1, rivals_VC.argmax(axis=1))


def confusion(scores_VC: np.ndarray, labels_V: np.ndarray) -> np.ndarray:
    """Return int64 (C, C + 1): videos by class (row) and predicted class (column). The last column counts undecodable videos."""
    classes = scores_VC.shape[1]
    counts_CC = np.zeros((classes, classes + 1), dtype=np.int64)
    np.add.at(counts_CC, (labels_V, predictions(scores_VC, labels_V)), 1)
    return counts_CC


def class_accuracies(confusion_CC: np.ndarray) -> np.ndarray:
    """Return float64 (C,), the accuracy of each class; NaN for a class without videos."""
    with np.errstate(invalid="ignore"):
        return np.diagonal(confusion_CC) / confusion_CC.sum(axis=1)


def calibration(scores_VC: np.ndarray, labels_V: np.ndarray, bins: int = 15) -> tuple[float, list[Bin]]:
    """Return the expected calibration error (Guo et al., ICML 2017) and its bins of equal width.

    The error is the mean over videos of |accuracy - confidence| of their bin. Undecodable videos are left out.
    """
    decoded_V = ~np.isnan(scores_VC[:, 0])
    largest_V, right_V = scores_VC[decoded_V].max(axis=1), top_k_correct(scores_VC[decoded_V], labels_V[decoded_V], 1)
    place_V = np.clip(np.ceil(largest_V * bins).astype(int) - 1, 0, bins - 1)
    found, error = [], 0.0
    for number in range(bins):
        inside_V = place_V == number
        videos, confidence, accuracy = int(inside_V.sum()), None, None
        if videos:
            confidence, accuracy = float(largest_V[inside_V].mean()), float(right_V[inside_V].mean())
            error += videos / len(largest_V) * abs(accuracy - confidence)
        low, high = number / bins, (number + 1) / bins
        found.append(Bin(low=low, high=high, videos=videos, confidence=confidence, accuracy=accuracy))
    return error, found


# --------------------------------------------------------------------------------------------- intervals of one method


def wilson(correct: int, total: int) -> Accuracy:
    """Return the share with Wilson's score interval (JASA 1927), which stays in [0, 1] and is accurate for few videos.

    Raises:
        ValueError: `total` is 0.
    """
    if total < 1:
        raise ValueError("an accuracy needs at least one video")
    share, z = correct / total, float(special.ndtri((1 + CONFIDENCE) / 2))
    middle = (correct + z**2 / 2) / (total + z**2)
    half = z * math.sqrt(total * share * (1 - share) + z**2 / 4) / (total + z**2)
    return Accuracy(value=share, low=middle - half if correct else 0.0, high=middle + half if correct < total else 1.0)


def student_interval(values: Sequence[float]) -> Accuracy:
    """Return the mean of a few repetitions with Student's t interval; the ends are NaN for a single one."""
    values_N = np.asarray(values, dtype=np.float64)
    mean, count = float(values_N.mean()), len(values_N)
    if count < 2:
        return Accuracy(value=mean, low=math.nan, high=math.nan)
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * values_N.std(ddof=1) / math.sqrt(count)
    return Accuracy(value=mean, low=mean - half, high=mean + half)


def _percentiles(value: float, resampled_R: Sequence[float] | np.ndarray) -> Accuracy:
    low, high = np.percentile(resampled_R, [2.5, 97.5])
    return Accuracy(value=value, low=float(low), high=float(high))


# ------------------------------------------------------------------------------------------- several seeds, many tests


@cache
def _seed_resamples(seeds: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Resample seeds: return the distinct counts per seed (W, S), and the number of resamples with each (W,); equal for all methods."""
    drawn_RS = generator(0, Purpose.RESAMPLE).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    ways_WS, number_W = np.unique(drawn_RS, axis=0, return_counts=True)
    return ways_WS, number_W


def resampled_means(values_SV: np.ndarray, *, resamples: int = RESAMPLES) -> np.ndarray:
    """Return (R,) means of integer values resampled over seeds and videos, in no particular order.

    This is the pigeonhole bootstrap (Owen, Annals of Applied Statistics 2007), which errs toward wide intervals; with one seed it is the
    usual bootstrap over videos. Given the drawn seeds, a video counts by its sum over them, a small integer, so a multinomial over these
    sums is the same draw as picking videos one by one, and a hundred times faster.
    """
    seeds, videos = values_SV.shape
    patterns_PS, videos_P = np.unique(values_SV.T.astype(np.float64), axis=0, return_counts=True)
    rng = generator(0, Purpose.RESAMPLE, epoch=1)
    means = []
    for times_S, number in zip(*_seed_resamples(seeds, resamples)):
        sums_P = (patterns_PS @ times_S).astype(np.int64)  # float64 multiplies integers exactly, and faster
        lowest = sums_P.min()
        share_K = np.bincount(sums_P - lowest, weights=videos_P) / videos
        drawn_NK = rng.multinomial(videos, share_K, size=number)
        means.append(drawn_NK @ (np.arange(len(share_K)) + lowest) / (videos * seeds))
    return np.concatenate(means)


def mean_over_seeds(values_SV: np.ndarray) -> Accuracy:
    """Return the mean over seeds and videos with its pigeonhole bootstrap interval; ValueError without videos."""
    if values_SV.size == 0:
        raise ValueError("a mean needs at least one video")
    return _percentiles(float(values_SV.mean()), resampled_means(values_SV))


def difference(first_SV: np.ndarray, second_SV: np.ndarray) -> Difference:
    """Return the first method minus the second, paired by seed (row) and video (column).

    Raises:
        ValueError: The two do not have the same shape.
    """
    if first_SV.shape != second_SV.shape:
        raise ValueError(f"{first_SV.shape} and {second_SV.shape} cannot be paired: seeds or videos differ")
    values_SV = first_SV.astype(np.int64) - second_SV
    means_R = resampled_means(values_SV)
    beyond = min(int((means_R <= 0).sum()), int((means_R >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(means_R) + 1))
    return Difference(by=_percentiles(float(values_SV.mean()), means_R), p=p)


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm-Bonferroni-adjusted p-values (Scandinavian Journal of Statistics 1979) in input order."""
    ps_N = np.asarray(ps, dtype=np.float64)
    order_N = ps_N.argsort(kind="stable")
    adjusted_N = np.empty_like(ps_N)
    adjusted_N[order_N] = np.maximum.accumulate(np.minimum(1.0, np.arange(len(ps_N), 0, -1) * ps_N[order_N]))
    return adjusted_N.tolist()


# ------------------------------------------------------------------------------------------------------ counts of an audit


def upper_bound(hits: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided Clopper-Pearson upper bound of a share; 1 when nothing was counted.

    No detection in n clips still allows a share of 1 - 0.05 ** (1 / n): 1.5 % of 200 clips.
    """
    return float(special.betaincinv(hits + 1, count - hits, confidence)) if hits < count else 1.0


def pooled_share(hits_C: Sequence[int], frames_C: Sequence[int]) -> tuple[float, float, float]:
    """Return (share, low, high) of the frames of all clips with a detection; (0, 0, 1) without frames.

    The interval resamples clips, because frames of one clip are not independent. Without any detection it is (0, 0): then the bound on
    clips, `upper_bound`, is the one to report.

    Args:
        hits_C: Frames with a detection in each clip.
        frames_C: Frames examined in each clip.
    """
    hits, frames = np.array(hits_C, float), np.array(frames_C, float)
    if not frames.sum():
        return 0.0, 0.0, 1.0
    drawn_RC = generator(0, Purpose.RESAMPLE).integers(0, len(hits), (RATE_RESAMPLES, len(hits)))
    shares_R = hits[drawn_RC].sum(1) / np.maximum(frames[drawn_RC].sum(1), 1)
    found = _percentiles(float(hits.sum() / frames.sum()), shares_R)
    return found.value, found.low, found.high
