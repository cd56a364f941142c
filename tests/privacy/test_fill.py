"""Painting: the background where it was seen, nothing touched outside, nobody painted back."""

import cv2
import numpy as np
import pytest

from ppma.privacy.removal.camera import Reference
from ppma.privacy.removal.exemplar import complete
from ppma.privacy.removal.fill import Memory, TemporalMedian, median_of_free

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
    picture, seen = TemporalMedian()(frame, person, EYE, references(place, range(9)), Memory())
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
    picture, seen = TemporalMedian()(frame, person, EYE, moved, Memory())
    assert seen[person].mean() > 0.95 and np.abs(picture[seen].astype(int) - place[seen]).max() <= 1


def test_exposure_is_followed(place):
    frame, person = walker(place, 4)
    darker = (frame * 0.0 + np.clip(frame.astype(int) + 20, 0, 255)).astype(np.uint8)
    picture, seen = TemporalMedian()(darker, person, EYE, references(place, range(9)), Memory())
    assert np.abs(picture[seen].astype(int) - place[seen] - 20).mean() < 1


def test_one_frame_in_which_somebody_was_missed_paints_nobody(place):
    frame, person = walker(place, 4)
    shown = references(place, range(9))
    blind = Reference(frame_HWC=frame, free_HW=np.ones((120, 160), np.uint8), homography_33=EYE)
    picture, _ = TemporalMedian()(frame, person, EYE, [*shown[:4], blind, *shown[5:]], Memory())
    assert (picture == place).all()


def test_a_pixel_that_few_references_show_is_guessed(place):
    frame, person = walker(place, 4)
    stands = [Reference(frame_HWC=frame, free_HW=(~person).astype(np.uint8), homography_33=EYE)] * 8
    blind = Reference(frame_HWC=frame, free_HW=np.ones((120, 160), np.uint8), homography_33=EYE)
    picture, seen = TemporalMedian()(frame, person, EYE, [*stands, blind, blind], Memory())
    assert not seen.any() and not (picture[person] == (250, 10, 10)).all(-1).any()


def test_guessing_needs_no_references(place):
    frame, person = walker(place, 4)
    picture, seen = TemporalMedian()(frame, person, EYE, [], Memory())
    assert (picture == complete(frame, person)).all() and not seen.any()


def test_of_a_picture_that_is_hidden_whole_nothing_is_left(place):
    everywhere = np.ones(place.shape[:2], bool)
    picture, seen = TemporalMedian()(place, everywhere, EYE, [], Memory())
    assert (picture == np.rint(place.mean((0, 1)))).all() and not seen.any()


def standing(place, wider=0):
    """Somebody who never moves away, their mask wider by so many pixels."""
    hidden = np.zeros(place.shape[:2], bool)
    hidden[30:90, 60 - wider : 90 + wider] = True
    return np.where(hidden[..., None], np.uint8(250), place), hidden


def test_what_is_made_up_stays_from_frame_to_frame(place):
    """With grain that changes, and a mask that does: only what is newly hidden is made up anew."""
    rng, memory = np.random.default_rng(5), Memory()
    first, hidden = standing(place)
    picture, _ = TemporalMedian()(first, hidden, EYE, [], memory)
    for wider in (4, 0, 2):
        grain = np.clip(place + rng.normal(0, 3, place.shape), 0, 255).astype(np.uint8)
        frame, now = standing(grain, wider)
        following, seen = TemporalMedian()(frame, now, EYE, [], memory)
        assert np.abs(following[hidden].astype(int) - picture[hidden]).max() <= 1 and not seen.any()
        assert following[now].max() < 230 and (following[~now] == frame[~now]).all()
    alone, _ = TemporalMedian()(frame, now, EYE, [], Memory())
    assert np.abs(alone[hidden].astype(int) - picture[hidden]).mean() > 1, "which it would not do by itself"


def test_what_is_made_up_follows_light_and_camera_without_blur(place):
    """Forty frames of a camera that shakes by parts of a pixel: as sharp as the first."""
    memory = Memory()
    first, hidden = standing(place)
    picture, _ = TemporalMedian()(first, hidden, EYE, [], memory)
    for t in range(1, 41):
        shift = np.array([[1, 0, 5 * np.sin(t)], [0, 1, 3 * np.cos(t)], [0, 0, 1]])
        seen_there = cv2.warpPerspective(first, shift, (160, 120), borderMode=cv2.BORDER_REFLECT)
        frame = np.clip(seen_there.astype(int) + t // 2, 0, 255).astype(np.uint8)
        hidden_there = cv2.warpPerspective(hidden.astype(np.uint8), shift, (160, 120)) > 0
        following, _ = TemporalMedian()(frame, hidden_there, shift, [], memory)
    inner = cv2.erode(hidden_there.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    expected = cv2.warpPerspective(picture, shift, (160, 120)).astype(int) + 20
    assert np.abs(following[inner] - expected[inner]).mean() < 1


def test_what_is_made_up_is_there_again_after_a_pan(place):
    """3 pixels a frame, past what the canvas holds: paint moves with the place, until a new canvas is taken and after."""
    memory, wide = Memory(), cv2.resize(place, (640, 480), interpolation=cv2.INTER_CUBIC)
    paint = np.full((120, 640, 3), -1)
    changes = []
    for x in range(0, 150, 3):
        shift = np.array([[1, 0, -x], [0, 1, 0], [0, 0, 1]], float)
        hidden = np.zeros((120, 160), bool)
        hidden[30:90, max(0, 150 - x) : max(0, 190 - x)] = True
        frame = np.where(hidden[..., None], np.uint8(250), wide[100:220, x : x + 160])
        picture, _ = TemporalMedian()(frame, hidden, shift, [], memory)
        assert picture[hidden].max() < 230 and (picture[~hidden] == frame[~hidden]).all()
        there = paint[:, x : x + 160]
        again = hidden & (there[..., 0] >= 0)
        if again.any():
            changes.append(np.abs(picture[again].astype(int) - there[again]).mean())
        there[hidden] = picture[hidden]
    assert len(changes) > 40 and max(changes) < 1


def test_a_hole_keeps_its_paint_when_the_mask_shrinks_or_sways(place):
    """Around it there is nothing but paint then, or what the median brought."""
    memory, pictures = Memory(), []
    core = standing(place)[1]
    for wider in (0, 8, 0, 8):
        pictures.append(TemporalMedian()(*standing(place, wider), EYE, [], memory)[0])
    assert all((picture[core] == pictures[0][core]).all() for picture in pictures)
    sways = [np.roll(core, by, axis=1) for by in (-12, 0, 12)]
    shown = [np.where(sway[..., None], np.uint8(250), place) for sway in sways]
    others = [
        Reference(frame_HWC=f, free_HW=(~s).astype(np.uint8), homography_33=EYE) for f, s in zip(shown, sways)
    ] * 3
    never, memory = np.logical_and.reduce(sways), Memory()
    pictures = [TemporalMedian()(f, s, EYE, others, memory)[0] for f, s in zip(shown, sways)]
    assert all(np.abs(p[never].astype(int) - pictures[0][never]).max() <= 1 for p in pictures)


def test_light_that_changes_counts_once(place):
    """Somebody comes in brighter light than the canvas was taken in; when it dims, so does what was painted then."""
    memory, both = Memory(), np.zeros(place.shape[:2], bool)
    both[30:90, 20:45] = both[30:90, 100:125] = True
    first = both.copy()
    first[:, 80:] = False
    levels = []
    for light, hidden in ((0, first), (25, both), (25, both), (0, both)):
        frame = np.where(hidden[..., None], 250, place.astype(int) + light).astype(np.uint8)
        picture, _ = TemporalMedian()(frame, hidden, EYE, [], memory)
        levels.append([picture[part].mean() - light for part in (first, both & ~first)])
    assert np.ptp([level[0] for level in levels]) < 1.5 and np.ptp([level[1] for level in levels[1:]]) < 1.5


def test_a_change_behind_one_leaves_the_paint_of_another(place):
    memory, left, right = Memory(), np.zeros(place.shape[:2], bool), np.zeros(place.shape[:2], bool)
    left[20:100, 10:60], right[60:90, 110:130] = True, True
    hidden = left | right
    first, _ = TemporalMedian()(np.where(hidden[..., None], np.uint8(250), place), hidden, EYE, [], memory)
    door = place.copy()
    door[45:105, 95:145] = 230
    frame = np.where(hidden[..., None], np.uint8(0), door)
    for _ in range(2):
        picture, _ = TemporalMedian()(frame, hidden, EYE, [], memory)
        assert (picture[left] == first[left]).all() and first[right].mean() < 150 < picture[right].mean(), (
            "a door opened behind one"
        )


def test_only_paint_is_taken_over(place):
    """Somebody missed in the frame before, found in this one: they are not painted back."""
    frame, hidden = standing(place)
    memory, elsewhere = Memory(), np.zeros_like(hidden)
    elsewhere[:10, :10] = True
    TemporalMedian()(frame, elsewhere, EYE, [], memory)
    picture, _ = TemporalMedian()(frame, hidden, EYE, [], memory)
    assert (picture == complete(frame, hidden)).all()


def test_paint_of_another_place_is_not_taken_over(place):
    frame, hidden = standing(place)
    memory, grey = Memory(), np.full_like(place, 128)
    TemporalMedian()(grey, hidden, EYE, [], memory)
    picture, _ = TemporalMedian()(frame, hidden, EYE, [], memory)
    assert (picture == complete(frame, hidden)).all()


def test_one_colour_for_a_picture_hidden_whole_does_not_stay(place):
    frame, hidden = standing(place)
    memory = Memory()
    TemporalMedian()(place, np.ones_like(hidden), EYE, [], memory)
    picture, _ = TemporalMedian()(frame, hidden, EYE, [], memory)
    assert (picture == complete(frame, hidden)).all()


def test_the_median_is_numpys():
    rng = np.random.default_rng(3)
    stack, free = rng.integers(0, 255, (7, 9, 11, 3), dtype=np.uint8), np.ones((7, 9, 11), np.uint8)
    out = np.zeros((9, 11, 3), np.uint8)
    assert median_of_free(stack, free, np.ones((9, 11), bool), 3, out).all()
    assert (out == np.median(stack, axis=0)).all()
