"""Intervals over seeds and videos against brute force, closed forms and coverage."""

import numpy as np
import pytest

from ppma.common.bootstrap import difference, holm, mean, resampled_means
from ppma.common.philox import Purpose, generator
from ppma.common.statistics import Z95, bootstrap


def test_one_seed_is_the_bootstrap_over_videos():
    right_V = (np.arange(400) % 10 < 3).astype(float)
    ours, usual = mean(right_V[None]), bootstrap(right_V)
    assert ours.value == usual.value
    # both place a 2.5 % point of a mean that moves in steps of 1/400, from 10,000 resamples each: within two steps
    assert (ours.low, ours.high) == pytest.approx((usual.low, usual.high), abs=0.005)


def test_sums_are_the_same_draw_as_drawing_rows_and_columns():
    """Against the pigeonhole bootstrap written out: mean and standard deviation of the resampled means."""
    rng = np.random.default_rng(1)
    values_SV = rng.random((3, 120)) < np.array([[0.3], [0.5], [0.6]])
    plain, draws = [], generator(9, Purpose.RESAMPLE)
    for _ in range(4000):
        rows, columns = draws.integers(3, size=3), draws.integers(120, size=120)
        plain.append(values_SV[np.ix_(rows, columns)].mean())
    ours = resampled_means(values_SV, resamples=4000)
    # the standard error of a mean of 4,000 is 0.016 standard deviations, that of a standard deviation 0.011: four of each, both sides
    assert ours.mean() == pytest.approx(np.mean(plain), abs=4 * 2**0.5 * 0.016 * np.std(plain))
    assert ours.std() == pytest.approx(np.std(plain), rel=4 * 2**0.5 * 0.011)


def test_seeds_that_differ_widen_the_interval():
    videos = np.arange(300) % 2 == 0
    alike, apart = np.stack([videos] * 3), np.stack([videos, np.ones(300, bool), np.zeros(300, bool)])
    narrow, wide = mean(alike), mean(apart)
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert narrow.high - narrow.low == pytest.approx(
        2 * Z95 * (0.25 / 300) ** 0.5, rel=0.1
    )  # videos alone; 10,000 resamples


def test_it_covers_at_least_as_it_says():
    """Seeds and videos both vary; the interval of the mean holds the truth in 95 % or more (Owen: it errs towards wide)."""
    rng, truth, held = np.random.default_rng(2), 0.5, []
    for _ in range(150):
        ease_V, skill_S1 = rng.normal(0, 1, 100), rng.normal(0, 0.3, (5, 1))
        right = ease_V + skill_S1 + rng.normal(0, 1, (5, 100)) > 0
        low, high = np.percentile(resampled_means(right, resamples=1000), [2.5, 97.5])
        held.append(low <= truth <= high)
    assert np.mean(held) > 0.9  # of 150 draws at 0.95 fewer than 136 come once in a hundred


def test_a_difference_is_paired_and_signed():
    rng = np.random.default_rng(3)
    easy_SV = np.stack([rng.random(300) < 0.5] * 3)
    better_SV = easy_SV | (rng.random((3, 300)) < 0.15)
    found, back = difference(better_SV, easy_SV), difference(easy_SV, better_SV)
    assert found.by.low > 0 and found.verdict == "better" and found.p < 0.01
    assert back.by.value == -found.by.value and back.verdict == "worse"
    same = difference(easy_SV, easy_SV)
    assert (same.by.value, same.p, same.verdict) == (0, 1, "not told apart")
    with pytest.raises(ValueError, match="cannot be paired"):
        difference(easy_SV, easy_SV[:2])


def test_nothing_real_is_seldom_significant():
    rng = np.random.default_rng(4)
    ps = [difference(rng.random((1, 200)) < 0.4, rng.random((1, 200)) < 0.4).p for _ in range(60)]
    assert np.mean(np.array(ps) < 0.05) < 0.15  # 9 or more of 60 at 0.05 come once in three hundred


def test_holm_against_a_worked_example():
    """Holm (1979) on 0.01, 0.04, 0.03, 0.005: 4 x 0.005, 3 x 0.01, 2 x 0.03, and no smaller one after."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
