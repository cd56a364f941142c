"""Painting: the background where it was seen, nothing touched outside, nobody painted back."""

import cv2
import numpy as np
import pytest

from ppma.privacy.camera import Reference
from ppma.privacy.exemplar import complete
from ppma.privacy.fill import TemporalMedian, median_of_free

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
    picture, seen = TemporalMedian()(frame, person, EYE, [])
    assert (picture == complete(frame, person)).all() and not seen.any()


def test_of_a_picture_that_is_hidden_whole_nothing_is_left(place):
    everywhere = np.ones(place.shape[:2], bool)
    picture, seen = TemporalMedian()(place, everywhere, EYE, [])
    assert (picture == np.rint(place.mean((0, 1)))).all() and not seen.any()


def painted(picture, hidden, homography=EYE):
    """What the frame before is handed on as."""
    return Reference(frame_HWC=picture, free_HW=(~hidden).astype(np.uint8), homography_33=homography)


def standing(place, wider=0):
    """Somebody who never moves away, their mask wider by so many pixels."""
    hidden = np.zeros(place.shape[:2], bool)
    hidden[30:90, 60 - wider : 90 + wider] = True
    return np.where(hidden[..., None], np.uint8(250), place), hidden


def test_what_is_made_up_stays_from_frame_to_frame(place):
    """With grain that changes, and a mask that does: only what is newly hidden is made up anew."""
    rng = np.random.default_rng(5)
    first, hidden = standing(place)
    picture, _ = TemporalMedian()(first, hidden, EYE, [])
    second, wider = standing(np.clip(place + rng.normal(0, 3, place.shape), 0, 255).astype(np.uint8), wider=4)
    following, seen = TemporalMedian()(second, wider, EYE, [], painted(picture, hidden))
    assert np.abs(following[hidden].astype(int) - picture[hidden]).max() <= 1 and not seen.any()
    assert following[wider].max() < 230 and (following[~wider] == second[~wider]).all()
    alone, _ = TemporalMedian()(second, wider, EYE, [])
    assert np.abs(alone[hidden].astype(int) - picture[hidden]).mean() > 1, "which it would not do by itself"


def test_what_is_made_up_follows_light_and_camera(place):
    shift = np.array([[1, 0, 5], [0, 1, 3], [0, 0, 1]], float)
    first, hidden = standing(place)
    picture, _ = TemporalMedian()(first, hidden, EYE, [])
    moved = cv2.warpPerspective(np.clip(first.astype(int) + 20, 0, 255).astype(np.uint8), shift, (160, 120))
    hidden_there = cv2.warpPerspective(hidden.astype(np.uint8), shift, (160, 120)) > 0
    following, _ = TemporalMedian()(moved, hidden_there, shift, [], painted(picture, hidden))
    inner = cv2.erode(hidden_there.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    expected = cv2.warpPerspective(picture, shift, (160, 120)).astype(int) + 20
    assert np.abs(following[inner] - expected[inner]).mean() < 1.5


def test_only_paint_is_taken_over(place):
    """Somebody missed in the frame before, found in this one: they are not painted back."""
    frame, hidden = standing(place)
    nobody = np.zeros_like(hidden)
    picture, _ = TemporalMedian()(frame, hidden, EYE, [], painted(frame, nobody))
    assert (picture == complete(frame, hidden)).all()


@pytest.mark.parametrize("change", ["another place", "nothing known around it"])
def test_paint_of_another_place_is_not_taken_over(place, change):
    frame, hidden = standing(place)
    grey = painted(np.full_like(place, 128), hidden)
    if change == "nothing known around it":
        grey = painted(np.full_like(place, 128), np.ones_like(hidden))
    picture, _ = TemporalMedian()(frame, hidden, EYE, [], grey)
    assert (picture == complete(frame, hidden)).all()


def test_the_median_is_numpys():
    rng = np.random.default_rng(3)
    stack, free = rng.integers(0, 255, (7, 9, 11, 3), dtype=np.uint8), np.ones((7, 9, 11), np.uint8)
    out = np.zeros((9, 11, 3), np.uint8)
    assert median_of_free(stack, free, np.ones((9, 11), bool), 3, out).all()
    assert (out == np.median(stack, axis=0)).all()
