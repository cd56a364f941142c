"""Accuracies and intervals against worked figures."""

import numpy as np
import pytest

from ppma.common.statistics import (
    Z95,
    bootstrap,
    calibration,
    class_accuracies,
    confusion,
    over_draws,
    paired_bootstrap,
    predictions,
    student95,
    top_k,
    top_k_correct,
    wilson,
)


def test_wilson_against_worked_figures():
    """Newcombe (Statistics in Medicine 1998, table I): 81 of 263, 15 of 148, 0 of 20, 1 of 29, without continuity correction."""
    for correct, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(correct, total)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5) and found.value == correct / total
    with pytest.raises(ValueError, match="no video"):
        wilson(0, 0)


def test_wilson_covers_as_it_says():
    """Of many draws with p = 0.1 and 50 videos, about 95 % of the intervals hold p (Wilson's mean coverage: 0.92 to 0.98 there)."""
    draws = np.random.default_rng(0).binomial(50, 0.1, 4000)
    covered = np.mean([wilson(int(k), 50).low <= 0.1 <= wilson(int(k), 50).high for k in draws])
    assert 0.92 < covered < 0.99


def test_top_k_counts_ties_against_the_model():
    scores = np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [np.nan] * 3])
    labels = np.array([1, 0, 2, 0])
    assert top_k_correct(scores, labels, 1).tolist() == [True, False, False, False]
    assert top_k_correct(scores, labels, 2).tolist() == [True, True, False, False]
    assert top_k_correct(scores, labels, 5).tolist() == [True, True, True, False]
    assert top_k(scores, labels, 1).value == 0.25


def test_bootstrap_agrees_with_the_normal_interval_where_that_holds():
    values = (np.arange(400) % 10 < 3).astype(float)
    found, half = bootstrap(values), Z95 * np.sqrt(0.3 * 0.7 / 400)
    assert found.value == pytest.approx(0.3)
    # 10,000 resamples place a 2.5 % point of a mean that moves in steps of 1/400 within one such step and a half
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.00375)
    assert bootstrap(values) == bootstrap(values)


def test_pairing_cancels_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    easy = rng.random(300) < 0.5
    better = easy | (rng.random(300) < 0.1)
    paired = paired_bootstrap(better, easy)
    assert paired.value == pytest.approx(better.mean() - easy.mean()) and paired.low > 0
    shuffled = paired_bootstrap(better, rng.permutation(easy))
    assert shuffled.high - shuffled.low > 2 * (paired.high - paired.low)


def test_a_difference_of_nothing_is_zero_with_an_interval_around_it():
    right = np.arange(200) % 2 == 0
    same = paired_bootstrap(right, right)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    swapped = paired_bootstrap(right, ~right)
    assert swapped.low < 0 < swapped.high


def test_other_videos_cannot_be_paired():
    with pytest.raises(ValueError, match="3 and 4 videos cannot be paired"):
        paired_bootstrap(np.ones(3), np.ones(4))


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
    """Ten videos at 0.75, of which six are right, and ten sure ones, all right: (10 * |0.6 - 0.75| + 10 * 0) / 20."""
    scores = np.array([[0.75, 0.25]] * 10 + [[0.0, 1.0]] * 10 + [[np.nan, np.nan]])
    labels = np.array([0] * 6 + [1] * 4 + [1] * 10 + [1])
    error, bins = calibration(scores, labels, bins=4)
    assert error == pytest.approx(0.075)
    assert [b.videos for b in bins] == [0, 0, 10, 10]  # 0.75 belongs to the bin that ends there
    assert (bins[2].confidence, bins[2].accuracy, bins[3].accuracy) == (0.75, 0.6, 1.0)
    assert bins[0].confidence is None


def test_scores_that_say_their_own_accuracy_have_hardly_any_calibration_error():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 20_000)
    scores, labels = np.stack([sure, 1 - sure], axis=1), (rng.random(20_000) > sure).astype(int)
    assert calibration(scores, labels)[0] < 0.02 < calibration(np.sqrt(scores), labels)[0]


def test_student_against_the_tables():
    assert (student95(1), student95(9), student95(30)) == (12.706, 2.262, 2.042)
    assert (student95(40), student95(120)) == pytest.approx((2.0211, 1.9799), abs=1e-3)


def test_the_interval_over_draws():
    """Ten values of mean 5.5 and standard deviation 3.0277: half 2.262 * 3.0277 / sqrt(10)."""
    found = over_draws(range(1, 11))
    assert (found.value, found.high - found.value) == pytest.approx((5.5, 2.1657), abs=1e-3)
    assert np.isnan(over_draws([1.0]).low)
