"""How much a count of findings says: exact bounds where clips are counted, a bootstrap over clips where frames are.

    hits of clips          ->  upper_bound(), interval()     Clopper and Pearson, 1934: from the binomial tail itself
    hits of frames by clip ->  frame_rate()                  clips are drawn anew, since frames of one clip are no independent witnesses

Nothing found in n clips still allows a share of 1 - 0.05 ** (1 / n): 1.5 % of 200 clips.
"""

import math
from collections.abc import Sequence

import numpy as np

from ppma.common.philox import Purpose, generator

CONFIDENCE = 0.95
RESAMPLES = 2000


def _tail(hits: int, count: int) -> np.ndarray:
    """Logarithms of the binomial coefficients of 0 .. hits."""
    i = range(hits + 1)
    return np.array([math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in i])


def at_most(hits: int, count: int, share: float) -> float:
    """Probability of `hits` or fewer of `count` when each is one with probability `share`."""
    if not 0 < share < 1:
        return 1.0 if share <= 0 or hits >= count else 0.0
    i = np.arange(hits + 1)
    logs = _tail(hits, count) + i * math.log(share) + (count - i) * math.log1p(-share)
    return float(min(1.0, np.exp(logs - logs.max()).sum() * math.exp(logs.max())))


def upper_bound(hits: int, count: int, confidence: float = CONFIDENCE) -> float:
    """The largest share under which so few hits still happen with probability 1 - confidence; 1 when nothing was counted."""
    if hits >= count:
        return 1.0
    low, high = hits / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(hits, count, middle) > 1 - confidence else (low, middle)
    return high


def interval(hits: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two-sided interval: each end is missed with probability (1 - confidence) / 2; (0, 1) when nothing was counted."""
    one_sided = (1 + confidence) / 2
    return 1 - upper_bound(count - hits, count, one_sided), upper_bound(hits, count, one_sided)


def frame_rate(hits_C: Sequence[int], frames_C: Sequence[int], *, seed: int = 0) -> tuple[float, float, float]:
    """(share of frames with a hit, low, high): the ends are quantiles over clips drawn anew; (0, 0, 1) without frames.

    Where no clip has a hit every draw gives 0, and the bound on clips is the one to read.
    """
    hits, frames = np.array(hits_C, float), np.array(frames_C, float)
    if not frames.sum():
        return 0.0, 0.0, 1.0
    rng = generator(seed, Purpose.RESAMPLE)
    drawn_RC = rng.integers(0, len(hits), (RESAMPLES, len(hits)))
    shares = hits[drawn_RC].sum(1) / np.maximum(frames[drawn_RC].sum(1), 1)
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(hits.sum() / frames.sum()), float(low), float(high)
