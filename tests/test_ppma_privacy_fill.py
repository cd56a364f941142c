"""Painting: the background where it was seen, nothing touched outside, nobody painted back."""

import cv2
import numpy as np
import pytest

from ppma.privacy.camera import Reference
from ppma.privacy.fill import Telea, TemporalMedian, guess, median_of_free, telea

EYE = np.eye(3)


@pytest.fixture(scope="module")
def place():
    rng = np.random.default_rng(2)
    return cv2.resize(rng.integers(0, 200, (30, 40, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)


def walker(place, t):
    """A frame with somebody at a place that depends on t, and where they are."""
    frame, person = place.copy(), np.zeros(place.shape[:2], bool)
    person[30:90, 12 * t : 12 * t + 20] = True
    frame[person] = (250, 10, 10)
    return frame, person


def references(place, frames, homography=EYE):
    made = []
    for t in frames:
        frame, person = walker(place, t)
        made.append(Reference(frame_HWC=frame, free_HW=(~person).astype(np.uint8), homography_33=homography))
    return made


def test_the_background_comes_back_and_nothing_else_changes(place):
    frame, person = walker(place, 4)
    picture, seen = TemporalMedian()(frame, person, EYE, references(place, range(9)))
    assert (seen == person).all() and (picture == place).all()
    assert (frame[person] == (250, 10, 10)).all(), "the frame given is not changed"


def test_a_moved_camera_is_undone(place):
    shift = np.array([[1, 0, 5], [0, 1, 3], [0, 0, 1]], float)
    frame, person = walker(place, 4)
    moved = [
        Reference(
            frame_HWC=cv2.warpPerspective(one.frame_HWC, shift, (160, 120)),
            free_HW=cv2.warpPerspective(one.free_HW, shift, (160, 120)),
            homography_33=shift,
        )
        for one in references(place, range(9))
    ]
    picture, seen = TemporalMedian()(frame, person, EYE, moved)
    assert seen[person].mean() > 0.95 and np.abs(picture[seen].astype(int) - place[seen]).max() <= 1


def test_exposure_is_followed(place):
    frame, person = walker(place, 4)
    darker = (frame * 0.0 + np.clip(frame.astype(int) + 20, 0, 255)).astype(np.uint8)
    picture, seen = TemporalMedian()(darker, person, EYE, references(place, range(9)))
    assert np.abs(picture[seen].astype(int) - place[seen] - 20).mean() < 1


def test_one_frame_in_which_somebody_was_missed_paints_nobody(place):
    frame, person = walker(place, 4)
    shown = references(place, range(9))
    blind = Reference(frame_HWC=frame, free_HW=np.ones((120, 160), np.uint8), homography_33=EYE)
    picture, _ = TemporalMedian()(frame, person, EYE, [*shown[:4], blind, *shown[5:]])
    assert (picture == place).all()


def test_a_pixel_that_few_references_show_is_guessed(place):
    frame, person = walker(place, 4)
    stands = [Reference(frame_HWC=frame, free_HW=(~person).astype(np.uint8), homography_33=EYE)] * 8
    blind = Reference(frame_HWC=frame, free_HW=np.ones((120, 160), np.uint8), homography_33=EYE)
    picture, seen = TemporalMedian()(frame, person, EYE, [*stands, blind, blind])
    assert not seen.any() and not (picture[person] == (250, 10, 10)).all(-1).any()


def test_guessing_needs_no_references(place):
    frame, person = walker(place, 4)
    picture, seen = Telea()(frame, person, EYE, [])
    assert (picture[~person] == place[~person]).all() and not seen.any()
    assert picture[person].max() < 230


@pytest.mark.parametrize("fill", [guess, telea])
@pytest.mark.parametrize("size", [(120, 160), (700, 900)])
def test_holes_of_any_size_are_filled_from_around(size, fill):
    frame, hole = np.full((*size, 3), 90, np.uint8), np.zeros(size, bool)
    hole[size[0] // 8 : -size[0] // 8, size[1] // 8 : -size[1] // 8] = True
    frame[hole] = 255
    off = np.abs(fill(frame, hole).astype(int) - 90)
    assert off.max() == 0, "nothing of the 255 seeps in, and slopes of rounding are not followed"


@pytest.mark.parametrize("fill", [guess, telea])
@pytest.mark.parametrize("rim", [1, 40])
def test_what_is_painted_does_not_depend_on_what_is_hidden(rim, fill):
    """Telea's method works on a smaller picture, in which a rim of one pixel is no more to be seen."""
    rng = np.random.default_rng(1)
    hole = np.ones((700, 900), bool)
    hole[:rim] = False
    first, second = (rng.integers(0, 256, (700, 900, 3), dtype=np.uint8) for _ in range(2))
    second[:rim] = first[:rim]
    assert (fill(first, hole) == fill(second, hole)).all()


@pytest.mark.parametrize("inpainter", [TemporalMedian(), Telea()])
def test_of_a_picture_that_is_hidden_whole_nothing_is_left(place, inpainter):
    everywhere = np.ones(place.shape[:2], bool)
    picture, seen = inpainter(place, everywhere, EYE, [])
    assert (picture == np.rint(place.mean((0, 1)))).all() and not seen.any()


def test_the_median_is_numpys():
    rng = np.random.default_rng(3)
    stack, free = rng.integers(0, 255, (7, 9, 11, 3), dtype=np.uint8), np.ones((7, 9, 11), np.uint8)
    out = np.zeros((9, 11, 3), np.uint8)
    assert median_of_free(stack, free, np.ones((9, 11), bool), 3, out).all()
    assert (out == np.median(stack, axis=0)).all()
