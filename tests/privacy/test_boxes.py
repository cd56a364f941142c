"""Boxes: what overlaps is one person, and whoever is lost and found again was there in between."""

import numpy as np
import pytest

from ppma.privacy.detectors.boxes import NONE_05, bridge, grown, linger, overlaps, suppress


def box(x, y, width=10, height=20, score=0.9):
    return np.array([[x, y, x + width, y + height, score]], np.float32)


def test_the_better_of_two_boxes_on_one_person_stays():
    kept = suppress(np.concatenate([box(0, 0, score=0.4), box(1, 0, score=0.8), box(50, 0)]))
    assert sorted(kept[:, 0].tolist()) == [1, 50]
    assert suppress(NONE_05).shape == (0, 5)


def test_overlap_is_intersection_over_union():
    assert overlaps(box(0, 0), box(5, 0))[0, 0] == pytest.approx(1 / 3)
    assert overlaps(box(0, 0), box(10, 0))[0, 0] == 0


def test_grown_adds_shares_of_the_sides():
    assert grown(box(10, 10), 0.1, 0.5, 0.2, 0.0)[0, :4].tolist() == [9, 0, 22, 30]


def test_somebody_lost_in_between_is_filled_in_on_a_line():
    frames = [box(0, 0), NONE_05, NONE_05, box(6, 0)]
    bridged = bridge(frames, gap=2)
    assert [len(boxes) for boxes in bridged] == [1, 1, 1, 1]
    assert [float(boxes[0, 0]) for boxes in bridged] == pytest.approx([0, 2, 4, 6])
    assert [len(boxes) for boxes in frames] == [1, 0, 0, 1], "the boxes given are not changed"


def test_somebody_fast_is_followed_over_a_gap():
    frames = [box(6 * t, 0) for t in range(4)] + [NONE_05] * 4 + [box(48, 0)]
    bridged = bridge(frames, gap=4)
    assert [float(boxes[0, 0]) for boxes in bridged] == pytest.approx([6 * t for t in range(9)])
    assert not len(bridge([box(0, 0), NONE_05, NONE_05, box(48, 0)], gap=4)[1]), "without a speed it is somebody else"


def test_somebody_comes_before_the_first_sight_and_goes_after_the_last():
    frames = [NONE_05, NONE_05, NONE_05, box(20, 0), box(26, 0), NONE_05, NONE_05, NONE_05]
    stayed = linger(frames, 2)
    assert [len(boxes) for boxes in stayed] == [0, 1, 1, 1, 1, 1, 1, 0]
    assert [float(boxes[0, 0]) for boxes in stayed[1:7]] == pytest.approx([8, 14, 20, 26, 32, 38])
    assert [len(boxes) for boxes in frames] == [0, 0, 0, 1, 1, 0, 0, 0], "the boxes given are not changed"


def test_a_single_sight_and_the_ends_of_a_clip_are_not_drawn_out():
    assert [len(boxes) for boxes in linger([NONE_05, box(0, 0), NONE_05], 2)] == [0, 1, 0]
    assert [len(boxes) for boxes in linger([box(0, 0), box(2, 0)], 2)] == [1, 1]
    assert linger([], 2) == []


def test_too_long_a_gap_and_other_people_are_not_bridged():
    assert not len(bridge([box(0, 0), NONE_05, NONE_05, box(2, 0)], gap=1)[1])
    assert not len(bridge([box(0, 0), NONE_05, box(40, 0)], gap=5)[1])
    assert [len(boxes) for boxes in bridge([box(0, 0), box(1, 0), box(2, 0)], gap=5)] == [1, 1, 1]
