"""Inpainting: the background where other frames show it, no pixel changed outside the mask, no missed person painted back."""

import cv2
import numpy as np
import pytest

from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.removal.camera import Reference
from ppma.privacy.removal.exemplar import complete
from ppma.privacy.removal.figures import Figures, cores
from ppma.privacy.removal.fill import Memory, TemporalMedian, median_of_free

EYE = np.eye(3)
NO_PERSON = np.zeros((120, 160), bool)


@pytest.fixture(scope="module")
def place():
    rng = np.random.default_rng(2)
    return cv2.resize(rng.integers(0, 200, (30, 40, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)


def paint(frame, hidden, references=(), memory=None, here=EYE):
    figures = Figures.of(frame, hidden, cores(NONE_05, hidden.astype(np.uint8)))
    return TemporalMedian()(frame, hidden, here, references, memory or Memory(), figures)


def walker(place, t):
    """Return a frame with a person whose position depends on t, and their mask."""
    frame, person = place.copy(), np.zeros(place.shape[:2], bool)
    person[30:90, 12 * t : 12 * t + 20] = True
    frame[person] = (250, 10, 10)
    return frame, person


def reference(frame, hidden):
    return Reference(frame_HWC=frame, free_HW=(~hidden).astype(np.uint8), homography_33=EYE)


def references(place):
    return [reference(*walker(place, t)) for t in range(9)]


def test_the_background_comes_back_and_nothing_else_changes(place):
    frame, person = walker(place, 4)
    picture, seen = paint(frame, person, references(place))
    assert (seen == person).all() and (picture == place).all()
    assert (frame[person] == (250, 10, 10)).all(), "the input is not changed"


def test_references_are_warped_to_the_frame(place):
    shift = np.array([[1, 0, 5], [0, 1, 3], [0, 0, 1]], float)
    frame, person = walker(place, 4)
    moved = [
        Reference(
            frame_HWC=cv2.warpPerspective(one.frame_HWC, shift, (160, 120)),
            free_HW=cv2.warpPerspective(one.free_HW, shift, (160, 120)),
            homography_33=shift,
        )
        for one in references(place)
    ]
    picture, seen = paint(frame, person, moved)
    assert seen[person].mean() > 0.95 and np.abs(picture[seen].astype(int) - place[seen]).max() <= 1


def test_exposure_is_corrected(place):
    frame, person = walker(place, 4)
    brighter = np.clip(frame.astype(int) + 20, 0, 255).astype(np.uint8)
    picture, seen = paint(brighter, person, references(place))
    assert np.abs(picture[seen].astype(int) - place[seen] - 20).mean() < 1


def test_one_reference_with_a_missed_person_does_not_paint_them(place):
    frame, person = walker(place, 4)
    shown = references(place)
    shown[4] = reference(frame, NO_PERSON)
    picture, _ = paint(frame, person, shown)
    assert (picture == place).all()


def test_pixels_that_few_references_show_are_synthesized(place):
    frame, person = walker(place, 4)
    missed = [reference(frame, NO_PERSON)] * 2
    picture, seen = paint(frame, person, [*[reference(frame, person)] * 8, *missed])
    assert not seen.any() and not (picture[person] == (250, 10, 10)).all(-1).any()


def test_without_references_everything_is_synthesized(place):
    frame, person = walker(place, 4)
    picture, seen = paint(frame, person)
    assert (picture == complete(frame, person)).all() and not seen.any()
    picture, seen = paint(place, np.ones_like(person))
    assert (picture == np.rint(place.mean((0, 1)))).all() and not seen.any(), "one color, if all is hidden"


def standing(place, wider=0):
    """Return a frame with a person who never moves away, and their mask, wider by some pixels."""
    hidden = np.zeros(place.shape[:2], bool)
    hidden[30:90, 60 - wider : 90 + wider] = True
    return np.where(hidden[..., None], np.uint8(250), place), hidden


@pytest.mark.parametrize("others", [0, 6])
def test_a_still_person_whom_most_references_show_is_not_painted_back(place, others):
    """They are synthesized over, or painted from the references that show the background."""
    frame, hidden = standing(place)
    shown = [reference(frame, NO_PERSON)] * 12 + [reference(place, NO_PERSON)] * others
    picture, seen = paint(frame, hidden, shown)
    assert not (picture[hidden] > 240).any() and (seen == (hidden & (others > 0))).all()
    assert others == 0 or (picture == place).all()


def test_synthesized_pixels_stay_from_frame_to_frame(place):
    """With changing grain and mask, only newly hidden pixels are synthesized."""
    rng, memory = np.random.default_rng(5), Memory()
    first, hidden = standing(place)
    picture, _ = paint(first, hidden, memory=memory)
    for wider in (4, 0, 2):
        grain = np.clip(place + rng.normal(0, 3, place.shape), 0, 255).astype(np.uint8)
        frame, now = standing(grain, wider)
        following, seen = paint(frame, now, memory=memory)
        assert np.abs(following[hidden].astype(int) - picture[hidden]).max() <= 1 and not seen.any()
        assert following[now].max() < 230 and (following[~now] == frame[~now]).all()
    alone, _ = paint(frame, now)
    assert np.abs(alone[hidden].astype(int) - picture[hidden]).mean() > 1, "without memory it changes"


def test_synthesized_pixels_follow_light_and_camera_without_blur(place):
    """After forty frames of a shaking camera they are as sharp as in the first."""
    memory = Memory()
    first, hidden = standing(place)
    picture, _ = paint(first, hidden, memory=memory)
    for t in range(1, 41):
        shift = np.array([[1, 0, 5 * np.sin(t)], [0, 1, 3 * np.cos(t)], [0, 0, 1]])
        seen_there = cv2.warpPerspective(first, shift, (160, 120), borderMode=cv2.BORDER_REFLECT)
        frame = np.clip(seen_there.astype(int) + t // 2, 0, 255).astype(np.uint8)
        hidden_there = cv2.warpPerspective(hidden.astype(np.uint8), shift, (160, 120)) > 0
        following, _ = paint(frame, hidden_there, memory=memory, here=shift)
    inner = cv2.erode(hidden_there.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    expected = cv2.warpPerspective(picture, shift, (160, 120)).astype(int) + 20
    assert np.abs(following[inner] - expected[inner]).mean() < 1


@pytest.mark.parametrize("others", [0, 9], ids=["from memory", "from references"])
def test_no_dark_line_at_the_edge_of_the_picture(others):
    """A camera that shakes by less than a pixel, in front of a gray wall; the person reaches over the picture's height."""
    memory, hidden = Memory(), np.zeros((120, 160), bool)
    hidden[:, 60:90] = True
    frame = np.where(hidden[..., None], np.uint8([250, 10, 10]), np.uint8(180))
    here, there = (np.array([[1, 0, x], [0, 1, x], [0, 0, 1]]) for x in (0.4, -0.05))
    wall = np.full_like(frame, 180)
    seen = [Reference(frame_HWC=wall, free_HW=np.ones((120, 160), np.uint8), homography_33=there)] * others
    for t in range(8):
        hidden[:, 60 - 6 * t : 90] = True  # newly hidden pixels in each frame
        picture, _ = paint(frame, hidden, seen, memory=memory, here=(here, there)[t % 2])
        assert np.abs(picture.astype(int) - 180).max() <= 1


def test_synthesized_pixels_move_with_the_place_in_a_pan(place):
    """3 pixels per frame, beyond the canvas, so that a new one is taken."""
    memory, wide = Memory(), cv2.resize(place, (640, 480), interpolation=cv2.INTER_CUBIC)
    canvas = np.full((120, 640, 3), -1)
    changes = []
    for x in range(0, 150, 3):
        shift = np.array([[1, 0, -x], [0, 1, 0], [0, 0, 1]], float)
        hidden = np.zeros((120, 160), bool)
        hidden[30:90, max(0, 150 - x) : max(0, 190 - x)] = True
        frame = np.where(hidden[..., None], np.uint8(250), wide[100:220, x : x + 160])
        picture, _ = paint(frame, hidden, memory=memory, here=shift)
        assert picture[hidden].max() < 230 and (picture[~hidden] == frame[~hidden]).all()
        there = canvas[:, x : x + 160]
        again = hidden & (there[..., 0] >= 0)
        if again.any():
            changes.append(np.abs(picture[again].astype(int) - there[again]).mean())
        there[hidden] = picture[hidden]
    assert len(changes) > 40 and max(changes) < 1


def test_a_hole_keeps_its_pixels_when_the_mask_shrinks_or_sways(place):
    """It is surrounded only by synthesized pixels then, or by those of the median."""
    memory, pictures = Memory(), []
    core = standing(place)[1]
    for wider in (0, 8, 0, 8):
        pictures.append(paint(*standing(place, wider), memory=memory)[0])
    assert all((picture[core] == pictures[0][core]).all() for picture in pictures)
    sways = [np.roll(core, by, axis=1) for by in (-12, 0, 12)]
    shown = [np.where(sway[..., None], np.uint8(250), place) for sway in sways]
    others = [reference(frame, sway) for frame, sway in zip(shown, sways)] * 3
    never, memory = np.logical_and.reduce(sways), Memory()
    pictures = [paint(f, s, others, memory)[0] for f, s in zip(shown, sways)]
    assert all(np.abs(p[never].astype(int) - pictures[0][never]).max() <= 1 for p in pictures)


def test_a_change_of_light_is_corrected_once(place):
    """A hole that appears in brighter light than the canvas dims with the light later."""
    memory, both = Memory(), np.zeros(place.shape[:2], bool)
    both[30:90, 20:45] = both[30:90, 100:125] = True
    first = both.copy()
    first[:, 80:] = False
    levels = []
    for light, hidden in ((0, first), (25, both), (25, both), (0, both)):
        frame = np.where(hidden[..., None], 250, place.astype(int) + light).astype(np.uint8)
        picture, _ = paint(frame, hidden, memory=memory)
        levels.append([picture[part].mean() - light for part in (first, both & ~first)])
    assert np.ptp([level[0] for level in levels]) < 1.5 and np.ptp([level[1] for level in levels[1:]]) < 1.5


def test_a_change_behind_one_person_leaves_the_pixels_of_another(place):
    memory, left, right = Memory(), np.zeros(place.shape[:2], bool), np.zeros(place.shape[:2], bool)
    left[20:100, 10:60], right[60:90, 110:130] = True, True
    hidden = left | right
    first, _ = paint(np.where(hidden[..., None], np.uint8(250), place), hidden, memory=memory)
    door = place.copy()
    door[45:105, 95:145] = 230
    frame = np.where(hidden[..., None], np.uint8(0), door)
    for _ in range(2):
        picture, _ = paint(frame, hidden, memory=memory)
        assert (picture[left] == first[left]).all() and first[right].mean() < 150 < picture[right].mean()


def test_a_person_missed_in_the_previous_frame_is_not_painted_back(place):
    frame, hidden = standing(place)
    memory, elsewhere = Memory(), np.zeros_like(hidden)
    elsewhere[:10, :10] = True
    paint(frame, elsewhere, memory=memory)
    picture, _ = paint(frame, hidden, memory=memory)
    assert (picture == complete(frame, hidden)).all()


@pytest.mark.parametrize("previous", ["another place", "a frame that was hidden completely"])
def test_pixels_that_do_not_fit_are_not_recalled(place, previous):
    frame, hidden = standing(place)
    memory = Memory()
    if previous == "another place":
        paint(np.full_like(place, 128), hidden, memory=memory)
    else:
        paint(place, np.ones_like(hidden), memory=memory)
    picture, _ = paint(frame, hidden, memory=memory)
    assert (picture == complete(frame, hidden)).all()


def test_the_median_is_numpys():
    rng = np.random.default_rng(3)
    stack, free = rng.integers(0, 255, (7, 9, 11, 3), dtype=np.uint8), np.ones((7, 9, 11), np.uint8)
    out = np.zeros((9, 11, 3), np.uint8)
    assert median_of_free(stack, free, np.ones((9, 11), bool), 3, out).all()
    assert (out == np.median(stack, axis=0)).all()
