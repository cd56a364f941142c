"""People are followed from one inspected frame to the next, and count there where an auditor is nearly sure."""

import cv2
import numpy as np
import pytest

from ppma.privacy.audit.follow import CARRIED, FOLLOWED, LONGEST, STEP, Follower, keep_detections
from ppma.privacy.detectors.boxes import NONE_05, overlaps

POINT, LENGTH = 0.4, 13
RNG = np.random.default_rng(0)
PLACE, PERSON = (RNG.integers(0, 255, size, np.uint8) for size in ((96, 160, 3), (50, 20, 3)))


def frame(t, person=True):
    """A person who walks one pixel a frame over a textured place."""
    out_HWC = PLACE.copy()
    if person:
        out_HWC[30:80, 40 + t : 60 + t] = PERSON
    return out_HWC


def boxes(t, score):
    return np.array([[40 + t, 30, 60 + t, 80, score]], np.float32)


def followed(frames, first, last, follower=None):
    """Return who arrives in the last frame, and who comes back to the first."""
    follower = follower or Follower({"net": POINT})
    follower.stop(frames[0], {"net": first})
    for one in frames[1:-1]:
        follower.skip(one)
    return follower.stop(frames[-1], {"net": last})


def test_a_person_who_is_found_in_one_frame_is_followed_to_the_next_and_back():
    frames = [frame(t) for t in range(LENGTH)]
    arrived, _ = followed(frames, boxes(0, 0.9), NONE_05)
    assert overlaps(arrived, boxes(LENGTH - 1, 1)) > 0.9
    _, back = followed(frames, NONE_05, boxes(LENGTH - 1, 0.9))
    assert overlaps(back, boxes(0, 1)) > 0.9


@pytest.mark.parametrize(
    ("frames", "score"),
    [
        ([frame(0), *[np.zeros_like(PLACE)] * LENGTH], 0.9),  # a cut
        ([frame(t) for t in range(LENGTH)], POINT - 0.01),  # below the operating point, and followed from nowhere
        ([frame(0)] * (LONGEST + 3), 0.9),  # too far
        ([frame(0), None, frame(0)], 0.9),  # without an original
    ],
)
def test_who_is_not_followed(frames, score):
    arrived, _ = followed(frames, boxes(0, score), NONE_05)
    assert not len(arrived)


@pytest.mark.parametrize("gap", [2, STEP, 2 * STEP + 3])
@pytest.mark.parametrize(("masked", "left"), [("person", 0), ("elsewhere", 1), ("nothing", 1)])
def test_a_mask_that_misses_who_is_followed_past_it_is_noticed(gap, masked, left):
    follower = Follower({"net": POINT})
    follower.stop(frame(0), {"net": boxes(0, 0.9)})
    for t in range(1, gap):
        hidden = np.zeros(PLACE.shape[:2], bool)
        if masked == "person" or t != gap // 2:
            hidden[32:64, 40 + t : 60 + t] = True
        hidden[:20, :20] |= masked == "elsewhere"
        follower.skip(frame(t), hidden)
    follower.stop(frame(gap), {"net": boxes(gap, FOLLOWED * POINT)})
    assert len(follower.uncovered) == left
    for back, box_4 in follower.uncovered:
        assert back == gap - gap // 2 and overlaps(box_4[None], boxes(gap // 2, 1)) > 0.6
    follower.stop(frame(gap + 1), {"net": NONE_05})
    assert not follower.uncovered


def test_a_box_that_stays_where_a_person_has_left_is_no_one_whom_the_mask_misses():
    """The background in the box is followed, since cloth that is new in each frame is not."""
    place = cv2.normalize(cv2.GaussianBlur(PLACE, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    views = [place.copy() for _ in range(2 * LENGTH)]
    for t, view in enumerate(views):
        view[20:80, 40 + t : 48 + t] = RNG.integers(0, 255, (60, 8, 3), np.uint8)
    first, last = (np.array([[34 + t, 18, 64 + t, 82, 0.9]], np.float32) for t in (0, len(views) - 1))
    follower = Follower({"net": POINT})
    follower.stop(views[0], {"net": first})
    for t, view in enumerate(views[1:-1], 1):
        hidden = np.zeros(place.shape[:2], bool)
        hidden[20:80, 40 + t : 48 + t] = True
        follower.skip(view, hidden)
    arrived, _ = follower.stop(views[-1], {"net": last})
    assert overlaps(arrived, first) > 0.6
    assert not follower.uncovered


@pytest.mark.parametrize(("share", "carried"), [(CARRIED, True), (CARRIED - 0.01, False)])
def test_a_person_who_is_nearly_found_is_followed_further(share, carried):
    follower, frames = Follower({"net": POINT}), [frame(t) for t in range(2 * STEP + 1)]
    followed(frames[: STEP + 1], boxes(0, 0.9), boxes(STEP, share * POINT + 1e-6), follower)
    for one in frames[STEP + 1 : -1]:
        follower.skip(one)
    arrived, _ = follower.stop(frames[-1], {"net": NONE_05})
    assert len(arrived) == carried


def test_a_weak_box_counts_only_where_a_person_is_followed_to_and_not_found():
    def count(followed_M5, *scored):
        return len(keep_detections({"net": np.concatenate(scored)}, {"net": POINT}, followed_M5)["net"])

    weak, weaker, strong = (boxes(0, share * POINT + 1e-6) for share in (FOLLOWED, FOLLOWED - 0.01, 1))
    assert (count(NONE_05, weak), count(NONE_05, strong)) == (0, 1)
    assert (count(boxes(3, 0), weak), count(boxes(80, 0), weak), count(boxes(3, 0), weaker)) == (1, 0, 0)
    assert count(boxes(3, 0), weak, boxes(4, 0.9)) == 1, "a person who is found needs no weak box"
