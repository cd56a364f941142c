"""Camera tracking: still stays still, a known motion is found, a cut begins a shot, people are ignored."""

import cv2
import numpy as np
import pytest

from ppma.privacy.removal.camera import Tracker, moves

NO_PEOPLE = np.zeros((120, 160), np.uint8)


@pytest.fixture(scope="module")
def place():
    """A textured picture larger than the view."""
    rng = np.random.default_rng(1)
    small = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    return cv2.GaussianBlur(cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC), (3, 3), 0)


def test_a_still_camera_is_exactly_still(place):
    rng, tracker = np.random.default_rng(0), Tracker()
    for _ in range(8):
        noisy = np.clip(place[:120, :160] + rng.normal(0, 3, (120, 160, 3)), 0, 255).astype(np.uint8)
        pose = tracker.add(noisy, NO_PEOPLE)
        assert pose.shot == 0 and (pose.homography_33 == np.eye(3)).all()


def test_a_pan_is_tracked_beyond_the_first_frame(place):
    tracker = Tracker()
    for t in range(60):
        pose = tracker.add(place[40:160, 2 * t : 2 * t + 160].copy(), NO_PEOPLE)
    expected = np.array([[1, 0, -118], [0, 1, 0], [0, 0, 1]], float)
    assert pose.shot == 0 and moves(pose.homography_33 @ np.linalg.inv(expected), 120, 160) < 1.5


def test_a_passing_person_does_not_move_the_camera(place):
    tracker = Tracker()
    for t in range(10):
        frame, person = place[:120, :160].copy(), NO_PEOPLE.copy()
        frame[20:110, 10 * t : 10 * t + 40] = place[100:190, 200:240]
        person[15:115, max(0, 10 * t - 5) : 10 * t + 45] = 1
        pose = tracker.add(frame, person)
    assert moves(pose.homography_33, 120, 160) < 0.5


def test_a_cut_begins_a_shot(place):
    tracker = Tracker()
    other = np.random.default_rng(5).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    shots = [tracker.add(frame, NO_PEOPLE).shot for frame in (place[:120, :160], place[:120, :160], other, other)]
    assert shots == [0, 0, 1, 1]


def test_without_corners_the_same_brightness_is_the_same_place():
    tracker = Tracker()
    levels = (100, 101, 102, 200)
    assert [tracker.add(np.full((120, 160, 3), level, np.uint8), NO_PEOPLE).shot for level in levels] == [0, 0, 0, 1]


def test_poses_of_large_frames_are_in_their_own_pixels(place):
    large = cv2.resize(place, (1600, 1200))
    tracker, nobody = Tracker(), np.zeros((600, 800), np.uint8)
    for t in range(5):
        pose = tracker.add(large[:600, 20 * t : 20 * t + 800].copy(), nobody)
    assert pose.homography_33[0, 2] == pytest.approx(-80, abs=1.5)


def test_a_homography_without_an_inverse_begins_a_new_shot(monkeypatch):
    rng = np.random.default_rng(0)
    frame = cv2.resize(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8), (160, 120))
    nobody, tracker = np.zeros((120, 160), np.uint8), Tracker()
    assert tracker.add(frame, nobody).shot == tracker.add(frame, nobody).shot == 0
    flat = np.diag([1.0, 0.0, 1.0]), np.ones((999, 1), np.uint8)
    monkeypatch.setattr(cv2, "findHomography", lambda *_: flat)
    assert tracker.add(frame, nobody).shot == 1
