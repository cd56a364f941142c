"""Bounds against what is known: tables, the rule of three, coverage over draws, and the fractions themselves."""

import math
from fractions import Fraction

import numpy as np
import pytest

from ppma.common.audit_bounds import at_most, frame_rate, interval, upper_bound


def test_nothing_in_200_clips_means_one_and_a_half_percent():
    assert upper_bound(0, 200) == pytest.approx(1 - 0.05 ** (1 / 200), abs=1e-12)
    assert 0.0148 < upper_bound(0, 200) < 0.015


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 3), (4, 10), (10, 10), (37, 90)])
def test_the_tail_is_the_sum_of_fractions(hits, count):
    share = Fraction(3, 10)
    exact = sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits + 1))
    assert at_most(hits, count, 0.3) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (1, 10, 0.0025, 0.4450),
        (5, 10, 0.1871, 0.8129),
        (10, 10, 0.6915, 1.0),
        (8, 100, 0.0352, 0.1516),
    ],
)
def test_intervals_are_those_of_the_tables(hits, count, low, high):
    """Clopper and Pearson's two-sided 95 % intervals, as printed in tables."""
    assert interval(hits, count) == pytest.approx((low, high), abs=6e-5)


def test_bounds_cover_at_least_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3):
        bounds = {k: upper_bound(k, 60) for k in range(61)}
        covered = np.mean([bounds[int(k)] >= share for k in rng.binomial(60, share, 4000)])
        assert covered >= 0.94


def test_nothing_counted_says_nothing():
    assert upper_bound(0, 0) == 1.0 and interval(0, 0) == (0.0, 1.0) and frame_rate([], []) == (0.0, 0.0, 1.0)


def test_frames_of_one_clip_are_no_independent_witnesses():
    """One bad clip of ten: its frames are all hits, and the interval is far wider than frames by themselves would have it."""
    rate, low, high = frame_rate([100] + [0] * 9, [100] * 10)
    assert rate == 0.1 and low == 0.0 and high >= 0.3
    assert (rate, low, high) == frame_rate([100] + [0] * 9, [100] * 10), "the same draws each time"
    assert frame_rate([10] * 10, [100] * 10) == pytest.approx((0.1, 0.1, 0.1))
