"""Accuracies, intervals and corrections against worked figures, scipy, brute force and coverage."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from ppma.common.philox import Purpose, generator
from ppma.common.statistics import (
    calibration,
    class_accuracies,
    confusion,
    difference,
    holm,
    mean_over_seeds,
    pooled_share,
    predictions,
    resampled_means,
    student_interval,
    top_k,
    top_k_correct,
    upper_bound,
    wilson,
)

# ------------------------------------------------------------------------------------------------------------- scores


def test_top_k_counts_ties_against_the_model():
    scores = np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [np.nan] * 3])
    labels = np.array([1, 0, 2, 0])
    assert top_k_correct(scores, labels, 1).tolist() == [True, False, False, False]
    assert top_k_correct(scores, labels, 2).tolist() == [True, True, False, False]
    assert top_k_correct(scores, labels, 5).tolist() == [True, True, True, False]
    assert top_k(scores, labels, 1).value == 0.25


def test_predictions_and_confusion_agree_with_top_1_whatever_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (500, 5)) / 3.0  # many ties
    scores[::50] = np.nan
    labels = rng.integers(0, 5, 500)
    counts, predicted = confusion(scores, labels), predictions(scores, labels)
    right = top_k_correct(scores, labels, 1)
    assert ((predicted == labels) == right).all() and (predicted[::50] == -1).all()
    assert counts.sum() == 500 and np.diagonal(counts).sum() == right.sum() and counts[:, 5].sum() == 10
    assert class_accuracies(counts) == pytest.approx([right[labels == c].mean() for c in range(5)])


def test_a_class_without_videos_has_no_accuracy():
    counts = confusion(np.eye(3)[[0, 2, 2]], np.array([0, 2, 2]))
    assert class_accuracies(counts)[[0, 2]].tolist() == [1, 1] and np.isnan(class_accuracies(counts)[1])


def test_calibration_against_worked_figures():
    """Ten videos at 0.75, six of them correct, and ten at 1, all correct: (10 * |0.6 - 0.75| + 10 * 0) / 20."""
    scores = np.array([[0.75, 0.25]] * 10 + [[0.0, 1.0]] * 10 + [[np.nan, np.nan]])
    labels = np.array([0] * 6 + [1] * 4 + [1] * 10 + [1])
    error, bins = calibration(scores, labels, bins=4)
    assert error == pytest.approx(0.075)
    assert [b.videos for b in bins] == [0, 0, 10, 10]  # 0.75 belongs to the bin that ends there
    assert (bins[2].confidence, bins[2].accuracy, bins[3].accuracy) == (0.75, 0.6, 1.0)
    assert bins[0].confidence is None


# ---------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("count", [2, 3, 20, 3783, 100_000])
def test_closed_forms_equal_those_of_scipy_stats(count):
    for hits in (0, 1, count // 2, count - 1, count):
        found, theirs = wilson(hits, count), stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
        assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=1e-13)
        if hits < count:
            assert upper_bound(hits, count) == pytest.approx(stats.beta.ppf(0.95, hits + 1, count - hits), abs=1e-13)
    found = student_interval(np.arange(min(count, 20)))
    half = stats.t.ppf(0.975, min(count, 20) - 1) * stats.sem(np.arange(min(count, 20)))
    assert found.high - found.value == pytest.approx(half, rel=1e-13)
    assert upper_bound(0, count) == pytest.approx(1 - 0.05 ** (1 / count), abs=1e-12)
    assert np.isnan(student_interval([1.0]).low)


def test_statistics_import_no_scipy_stats():
    """It takes longer to import than the rest of a report."""
    code = "import sys, ppma.common.statistics; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_pooled_share_is_the_bootstrap_of_scipy_from_the_same_stream():
    rng = np.random.default_rng(0)
    frames = rng.integers(5, 30, 150)
    hits = rng.binomial(frames, 0.2)

    def ratio(h, f, axis):
        return h.sum(axis) / f.sum(axis)

    how = {"method": "percentile", "batch": 100, "paired": True, "n_resamples": 2000, "vectorized": True}
    ci = stats.bootstrap((hits, frames), ratio, rng=generator(0, Purpose.RESAMPLE), **how)
    share, low, high = pooled_share(hits.tolist(), frames.tolist())
    assert (low, high) == pytest.approx(tuple(ci.confidence_interval), abs=1e-12) and share == hits.sum() / frames.sum()


def test_frames_of_one_clip_are_not_independent():
    """One clip of ten has a hit in every frame: far wider than an interval over a thousand independent frames."""
    rate, low, high = pooled_share([100] + [0] * 9, [100] * 10)
    assert rate == 0.1 and low == 0.0 and high >= 0.3
    assert pooled_share([10] * 10, [100] * 10) == pytest.approx((0.1, 0.1, 0.1))


def test_without_counts_every_share_is_possible():
    assert upper_bound(0, 0) == upper_bound(10, 10) == 1.0 and pooled_share([], []) == (0.0, 0.0, 1.0)


# -------------------------------------------------------------------------------------------------- paired differences


def test_pairing_cancels_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    easy = rng.random(300) < 0.5
    better = easy | (rng.random(300) < 0.1)
    paired, shuffled = (difference(better[None], other[None]).by for other in (easy, rng.permutation(easy)))
    assert paired.value == pytest.approx(better.mean() - easy.mean()) and paired.low > 0
    assert shuffled.high - shuffled.low > 2 * (paired.high - paired.low)


def test_a_difference_has_a_sign_a_p_value_and_a_verdict():
    rng = np.random.default_rng(3)
    easy_SV = np.stack([rng.random(300) < 0.5] * 3)
    better_SV = easy_SV | (rng.random((3, 300)) < 0.15)
    found, back, same = (difference(*pair) for pair in ((better_SV, easy_SV), (easy_SV, better_SV), (easy_SV, easy_SV)))
    assert found.by.low > 0 and found.verdict == "better" and found.p < 0.01
    assert back.by.value == -found.by.value and back.verdict == "worse"
    assert (same.by.value, same.p, same.verdict) == (0, 1, "not significantly different")


def test_equal_methods_are_seldom_significantly_different():
    rng = np.random.default_rng(4)
    ps = [difference(rng.random((1, 200)) < 0.4, rng.random((1, 200)) < 0.4).p for _ in range(60)]
    assert np.mean(np.array(ps) < 0.05) < 0.15  # 9 or more of 60 at 0.05 come once in three hundred


def test_holm_against_a_worked_example():
    """Holm (1979) on 0.01, 0.04, 0.03, 0.005: 4 x 0.005, 3 x 0.01, 2 x 0.03, and no smaller one after."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(0, 0),
        lambda: mean_over_seeds(np.ones((2, 0))),
        lambda: difference(np.ones((3, 9)), np.ones((2, 9))),
    ],
)
def test_no_video_and_unpaired_videos_are_errors(call):
    with pytest.raises(ValueError):
        call()


# ------------------------------------------------------------------------------------------------------- several seeds


def test_one_seed_is_the_bootstrap_over_videos():
    """That of scipy. Both place a 2.5 % point of a mean that moves in steps of 1/400, from 10,000 resamples each: within two steps."""
    right_V = (np.arange(400) % 10 < 3).astype(float)
    ours, rng = mean_over_seeds(right_V[None]), np.random.default_rng(0)
    usual = stats.bootstrap((right_V,), np.mean, n_resamples=10_000, method="percentile", batch=100, rng=rng)
    assert ours.value == right_V.mean()
    assert (ours.low, ours.high) == pytest.approx(tuple(usual.confidence_interval), abs=0.005)


def test_sums_are_the_same_draw_as_drawing_rows_and_columns():
    """Compare mean and standard deviation with the pigeonhole bootstrap written out."""
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
    narrow, wide = mean_over_seeds(alike), mean_over_seeds(apart)
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    normal = 2 * 1.96 * (0.25 / 300) ** 0.5  # over videos alone
    assert narrow.high - narrow.low == pytest.approx(normal, rel=0.1)


def test_intervals_over_seeds_cover_at_least_as_often_as_they_promise():
    """Seeds and videos both vary; the interval of the mean holds the truth in 95 % or more (Owen: it errs toward wide)."""
    rng, held = np.random.default_rng(2), []
    for _ in range(150):
        ease_V, skill_S1 = rng.normal(0, 1, 100), rng.normal(0, 0.3, (5, 1))
        right = ease_V + skill_S1 + rng.normal(0, 1, (5, 100)) > 0
        low, high = np.percentile(resampled_means(right, resamples=1000), [2.5, 97.5])
        held.append(low <= 0.5 <= high)
    assert np.mean(held) > 0.9  # of 150 draws at 0.95 fewer than 136 come once in a hundred
