"""Which frames are looked at, and what is measured of pixels."""

import numpy as np
import pytest

from ppma.privacy.audit.clip import chosen, decibels


def test_frames_are_evenly_spread_with_both_ends():
    assert chosen(100, 5) == [0, 25, 50, 74, 99] and chosen(3, 12) == [0, 1, 2] and chosen(4, 0) == [0, 1, 2, 3]
    assert chosen(1, 1) == [0]


def test_decibels_are_those_of_the_definition():
    noise = np.full((10, 10), 2.55)
    assert decibels(float((noise**2).sum()), noise.size) == pytest.approx(40.0)
    assert decibels(0.0, 100) == 100.0
