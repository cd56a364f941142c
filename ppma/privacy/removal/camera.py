"""Track the camera: a homography from the first frame of a shot to each of its frames, estimated on the background.

    gray frame, mask of people  ->  corners tracked from a key frame (Lucas-Kanade)  ->  RANSAC  ->  Pose

Tracking from a key frame rather than from frame to frame keeps a still camera exactly still: errors accumulate only at
a new key frame, which is taken when half of the corners are lost. Where tracking fails a new shot begins; frames of
other shots are not used for painting.
Legend: H height, W width, C channels, N corners.
"""

from dataclasses import dataclass

import cv2
import numpy as np

CORNERS = 400
LEAST_CORNERS = 12
"""A homography needs four corners; three times as many guard against chance."""
STILL_PIXELS = 0.35
"""Motion of the frame's corners below which the camera counts as still: interpolation would only blur."""
SAME_PLACE_LEVELS = 12.0
"""Mean difference in gray levels below which two frames without corners belong to one shot."""
FLAT = 1e-6
"""Determinant below which a homography is degenerate."""
LONG_SIDE = 480
"""Pixels to which larger frames are scaled down for tracking."""
PAN_PIXELS, PAN_PEAK = 1.0, 0.3
"""Least motion between two small views, and least share of them that moves so, from which the camera pans."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """The camera pose of one frame."""

    shot: int
    """Index of the shot."""
    homography_33: np.ndarray
    """Maps pixels of the shot's first frame to pixels of this one."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A frame from which others are painted."""

    frame_HWC: np.ndarray
    free_HW: np.ndarray
    """uint8, 1 where no person is, in this frame and its neighbors."""
    homography_33: np.ndarray
    """As in `Pose`."""


def moves(homography_33: np.ndarray, height: int, width: int) -> float:
    """Return the largest distance in pixels by which a homography moves a corner of the frame."""
    corners_42 = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    moved_42 = cv2.perspectiveTransform(corners_42[:, None], homography_33)[:, 0]
    return float(np.abs(moved_42 - corners_42).max())


def shift(x: float, y: float) -> np.ndarray:
    """Return the homography that moves by x and y pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def seen_from(
    reference: Reference, here_33: np.ndarray, cut: tuple[slice, slice] = np.s_[0:, 0:]
) -> tuple[np.ndarray, np.ndarray]:
    """Warp a reference to the camera pose of another frame of its size.

    Args:
        reference: The frame to warp.
        here_33: Homography of the other frame.
        cut: Rows and columns to return.

    Returns:
        frame_hwC and free_hw, as in `Reference`.
    """
    warp_33 = here_33 @ np.linalg.inv(reference.homography_33)
    frame_hwC, free_hw = reference.frame_HWC[cut], reference.free_HW[cut]
    if moves(warp_33, *reference.free_HW.shape) < STILL_PIXELS:
        return frame_hwC, free_hw
    warp_33, size = shift(-cut[1].start, -cut[0].start) @ warp_33, free_hw.shape[::-1]
    edge = cv2.BORDER_REPLICATE  # else the outermost pixels are mixed with black
    frame = cv2.warpPerspective(reference.frame_HWC, warp_33, size, flags=cv2.INTER_LINEAR, borderMode=edge)
    free = cv2.warpPerspective(reference.free_HW, warp_33, size, flags=cv2.INTER_NEAREST)
    return frame, cv2.erode(free, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=(1,))


def pan(before_hw: np.ndarray, now_hw: np.ndarray) -> np.ndarray:
    """Return by how many pixels (x, y) a small gray view moves to the next one; zeros for a still camera and at a cut.

    Phase correlation finds a fast pan, whose blur leaves `Tracker` no corners.
    """
    window_hw = cv2.createHanningWindow(now_hw.shape[::-1], cv2.CV_32F)
    by_2, peak = cv2.phaseCorrelate(before_hw.astype(np.float32), now_hw.astype(np.float32), window_hw)
    pans = np.linalg.norm(by_2) >= PAN_PIXELS and peak >= PAN_PEAK
    return np.array(by_2) if pans else np.zeros(2)


def view_from(view_hw: np.ndarray, pose: Pose, here: Pose, scale: float, here_hw: np.ndarray) -> np.ndarray:
    """Warp a small view to the camera pose of another frame.

    Args:
        view_hw: Gray view, uint8.
        pose: Its pose.
        here: The pose of the other frame.
        scale: Pixels of a view per pixel of a frame.
        here_hw: View of the other frame, of the same shot, returned where the view shows nothing.
    """
    stretch = np.diag([scale, scale, 1.0])
    warp_33 = stretch @ here.homography_33 @ np.linalg.inv(stretch @ pose.homography_33)
    if moves(warp_33, *view_hw.shape) < STILL_PIXELS:
        return view_hw
    size = view_hw.shape[::-1]
    return cv2.warpPerspective(
        view_hw, warp_33, size, dst=here_hw.copy(), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT
    )


class Tracker:
    """Estimates the pose of each frame in turn; holds one key frame."""

    def __init__(self) -> None:
        """Start before the first frame."""
        self._shot = -1
        self._key: np.ndarray | None = None
        self._corners_N12: np.ndarray = np.zeros((0, 1, 2), np.float32)
        self._tracked_N12: np.ndarray = self._corners_N12
        self._at_key_33 = np.eye(3)
        self._before: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def add(self, frame_HWC: np.ndarray, person_HW: np.ndarray) -> Pose:
        """Return the pose of the next frame; `person_HW` (uint8) is nonzero on people."""
        scale = min(1.0, LONG_SIDE / max(frame_HWC.shape[:2]))
        gray = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
        if scale < 1.0:
            gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        free = (cv2.resize(person_HW, gray.shape[::-1], interpolation=cv2.INTER_NEAREST) == 0).astype(np.uint8)
        found_33 = self._locate(gray)
        if found_33 is None and self._before is not None:
            self._take_key(*self._before)  # the pose of the previous frame is known: retry from it
            found_33 = self._locate(gray)
        if found_33 is None:
            self._shot += 1
            found_33 = np.eye(3)
            self._take_key(gray, free, found_33)
        self._before = gray, free, found_33
        stretch = np.diag([scale, scale, 1.0])
        return Pose(shot=self._shot, homography_33=np.linalg.inv(stretch) @ found_33 @ stretch)

    def _take_key(self, gray: np.ndarray, free: np.ndarray, at_33: np.ndarray) -> None:
        corners = cv2.goodFeaturesToTrack(gray, CORNERS, 0.01, 6, mask=free)
        self._key, self._at_key_33 = gray, at_33
        self._corners_N12 = self._tracked_N12 = np.zeros((0, 1, 2), np.float32) if corners is None else corners

    def _locate(self, gray: np.ndarray) -> np.ndarray | None:
        """Return the homography from the shot's first frame to this one, or None if tracking fails."""
        if self._key is None:
            return None
        if len(self._corners_N12) < LEAST_CORNERS:
            same = float(cv2.absdiff(cv2.blur(self._key, (9, 9)), cv2.blur(gray, (9, 9))).mean()) < SAME_PLACE_LEVELS
            return self._at_key_33 if same else None
        moved_N12, status, _ = cv2.calcOpticalFlowPyrLK(
            self._key, gray, self._corners_N12, self._tracked_N12.copy(), flags=cv2.OPTFLOW_USE_INITIAL_FLOW
        )
        good = status.ravel() == 1
        if good.sum() < LEAST_CORNERS:
            return None
        step_33, inliers = cv2.findHomography(self._corners_N12[good], moved_N12[good], cv2.RANSAC, 1.5)
        if step_33 is None or abs(np.linalg.det(step_33)) < FLAT or inliers.sum() < max(LEAST_CORNERS, len(good) // 2):
            return None
        self._tracked_N12 = moved_N12
        if moves(step_33, *gray.shape) < STILL_PIXELS:
            return self._at_key_33
        return step_33 @ self._at_key_33
