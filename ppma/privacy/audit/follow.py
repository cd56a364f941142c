"""Follow people from one inspected frame to the next: who is seen in one was there between, too.

    people in an inspected frame, views of the frames to the next one  ->  Follower  ->  where they are there, and back

Detectors lose people who turn, blur or pass behind something. A person whom the auditors find in the inspected frame before
or after, and whom optical flow follows to this one, counts here from FOLLOWED of the operating point on. Where no auditor
finds anyone at its operating point there is no one to follow, so empty clips stay empty.

The tracker is median flow (Kalal et al., ICPR 2010): points on a grid in the box are followed to the next view and back; the
box moves and grows by the medians of those that come back, and is lost if most do not. It is none of the remover's.
Legend: H height, W width of a frame, h and w of a view in pixels, N boxes, V views, K points in a box.
"""

from collections.abc import Mapping
from itertools import pairwise

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import NONE_05, OVERLAP, SAME_PERSON, overlaps, suppress

FOLLOWED, CARRIED = 0.25, 0.4
"""Least scores, as shares of the operating point, of a person who is followed from another frame: to count here, and to be
followed further. Chosen on half of the labeled clips: with these no clip got a box off all people that had none before."""
STEP = 4
"""Every fourth frame is a view: at 25 frames/s a person moves by a fraction of their box from one to the next."""
LONGEST = 240
"""Most frames between two inspected ones over which people are followed: it bounds memory, and few would arrive."""
SHRINK = 8
"""Factor by which maps of what changed in the frames between are scaled down."""
LONG_SIDE = 640
"""Largest side of a view in pixels."""
GRID = 10
"""Points on each side of the grid in a box."""
BACK_PIXELS, LEAST_POINTS = 1.0, 10
"""Largest distance at which a point has come back, and the least number of them that move a box."""


def keep_detections(
    found: Mapping[str, np.ndarray], points: Mapping[str, float], followed_M5: np.ndarray, share: float = FOLLOWED
) -> dict[str, np.ndarray]:
    """Return the boxes of each detector that count as detections.

    Args:
        found: Boxes_N5 of each detector: x0, y0, x1, y1, score.
        points: Operating points of these detectors.
        followed_M5: People who were followed to this frame; those who are found in it need no weak box.
        share: Share of the operating point from which on boxes of the others count.
    """
    sure_N5 = np.concatenate([found[name][found[name][:, 4] >= point] for name, point in points.items()])
    lost_M5 = followed_M5[overlaps(followed_M5, sure_N5).max(1, initial=0) < OVERLAP]
    near = {name: overlaps(found[name], lost_M5).max(1, initial=0) >= SAME_PERSON for name in points}
    least = {name: np.where(near[name], share, 1) * point for name, point in points.items()}
    return {name: found[name][found[name][:, 4] >= least[name]] for name in points}


class Follower:
    """Follows the people of each inspected frame of a clip to the next one, and those of the next one back."""

    def __init__(self, points: Mapping[str, float]) -> None:
        """Begin before the first frame, with the operating point of each detector of people."""
        self._points = points
        self._people_N5 = NONE_05
        self._views: list[np.ndarray] = []
        self._changes: list[np.ndarray | None] = []
        self._since = 0
        self.uncovered: list[tuple[int, np.ndarray]] = []
        """Frames back and box_4 of each person who was followed to the last stop, and is seen there, past a frame without
        change in their place."""

    def skip(self, frame_HWC: np.ndarray | None, changed_HW: np.ndarray | None = None) -> None:
        """Pass a frame that is not inspected, and which of its pixels were changed; None where that is not known."""
        self._since += 1
        if frame_HWC is None or self._since > LONGEST:
            self._views, self._changes = [], []
        elif self._views:
            self._changes.append(None if changed_HW is None else _shrink(changed_HW))
            if self._since % STEP == 0:
                self._views.append(_view(frame_HWC))

    def stop(self, frame_HWC: np.ndarray | None, found: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return who was followed from the inspected frame before to this one, and from this one back to that.

        Args:
            frame_HWC: An inspected frame, uint8 RGB; None where there is no original.
            found: Boxes_N5 of each detector in it, from FOLLOWED of the operating points on.
        """
        self.uncovered = []
        if frame_HWC is None:
            return NONE_05, NONE_05
        scale, here = min(1.0, LONG_SIDE / max(frame_HWC.shape[:2])), _view(frame_HWC)
        way = [*self._views, here] if self._views else []
        ways_NV4 = _follow(self._people_N5, way, scale)
        arrived_N5 = _arrived(ways_NV4)
        seen_N = overlaps(arrived_N5, np.concatenate([NONE_05, *found.values()])).max(1, initial=0) >= SAME_PERSON
        for since, changed_hw in enumerate(self._changes, 1):
            near = slice(since // STEP, since // STEP + 2)  # the views before and after
            for way_V4 in ways_NV4[seen_N]:  # a box may stay where a person has left
                if changed_hw is not None and not _touches(changed_hw, way_V4[near]):
                    self.uncovered.append((self._since + 1 - since, way_V4[near][0]))
        people = np.concatenate([*keep_detections(found, self._points, arrived_N5, CARRIED).values()])
        self._people_N5, self._views, self._changes, self._since = suppress(people), [here], [], 0
        return arrived_N5, _arrived(_follow(self._people_N5, way[::-1], scale))


def _view(frame_HWC: np.ndarray) -> np.ndarray:
    scale = min(1.0, LONG_SIDE / max(frame_HWC.shape[:2]))
    gray_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray_HW


def _shrink(changed_HW: np.ndarray) -> np.ndarray:
    """Return where most pixels of a square of SHRINK changed; encoding alone changes fewer."""
    changed_HW = changed_HW.astype(np.float32)
    small_hw = cv2.resize(changed_HW, None, fx=1 / SHRINK, fy=1 / SHRINK, interpolation=cv2.INTER_AREA)
    most_hw: np.ndarray = small_hw > 0.5
    return most_hw


def _touches(changed_hw: np.ndarray, boxes_24: np.ndarray) -> bool:
    """Return True if something changed in the hull of two boxes, or that is out of the frame."""
    (x0, y0), (x1, y1) = np.floor(boxes_24[:, :2].min(0) / SHRINK), np.ceil(boxes_24[:, 2:].max(0) / SHRINK)
    part_hw = changed_hw[max(0, int(y0)) : max(0, int(y1)), max(0, int(x0)) : max(0, int(x1))]
    return not part_hw.size or bool(part_hw.any())


def _arrived(ways_NV4: np.ndarray) -> np.ndarray:
    """Return boxes_N5 in the last view, with score 0."""
    return np.pad(ways_NV4[:, -1], ((0, 0), (0, 1)))


def _follow(boxes_N5: np.ndarray, views: list[np.ndarray], scale: float) -> np.ndarray:
    """Return boxes_NV4 in each view, without those that are lost on the way; without views no one arrives."""
    ways_NV4 = boxes_N5[: len(boxes_N5) if views else 0, None, :4] * scale
    for now_hw, then_hw in pairwise(views):
        ways_NV4 = _step(ways_NV4, now_hw, then_hw) if len(ways_NV4) else ways_NV4
    return ways_NV4 / scale


def _step(ways_NV4: np.ndarray, now_hw: np.ndarray, then_hw: np.ndarray) -> np.ndarray:
    """Return the ways with the boxes in the next view, without those that are lost."""
    boxes_N4 = ways_NV4[:, -1]
    grid_K2 = (np.indices((GRID, GRID)).reshape(2, -1).T[:, ::-1] + 0.5) / GRID
    from_NK2 = boxes_N4[:, None, :2] + grid_K2 * (boxes_N4[:, None, 2:] - boxes_N4[:, None, :2])
    to_NK2, arrived_NK = _flow(now_hw, then_hw, from_NK2)
    back_NK2, returned_NK = _flow(then_hw, now_hw, to_NK2)
    inside_NK = ((from_NK2 >= 0) & (from_NK2 < now_hw.shape[::-1])).all(2)
    came_NK = inside_NK & arrived_NK & returned_NK & (np.linalg.norm(back_NK2 - from_NK2, axis=2) < BACK_PIXELS)
    moved = []
    for way_V4, from_K2, to_K2, inside_K, came_K in zip(ways_NV4, from_NK2, to_NK2, inside_NK, came_NK):
        if came_K.sum() < max(LEAST_POINTS, inside_K.sum() / 2):
            continue
        pairs_K = came_K & came_K[::-1]  # a point and the one opposite of the center
        across_2K = [np.linalg.norm(points_K2 - points_K2[::-1], axis=1)[pairs_K] for points_K2 in (from_K2, to_K2)]
        growth = float(np.median(across_2K[1] / across_2K[0])) if pairs_K.any() else 1.0
        box_4 = way_V4[-1]
        center_2 = (box_4[:2] + box_4[2:]) / 2 + np.median((to_K2 - from_K2)[came_K], axis=0)
        half_2 = growth * (box_4[2:] - box_4[:2]) / 2
        moved.append(np.vstack([way_V4, np.concatenate([center_2 - half_2, center_2 + half_2])]))
    return np.array(moved).reshape(-1, ways_NV4.shape[1] + 1, 4)


def _flow(now_hw: np.ndarray, then_hw: np.ndarray, points_NK2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the points are in the next view, and which of them were found."""
    points = points_NK2.reshape(-1, 1, 2).astype(np.float32)
    guess = points.copy()  # where the result goes
    to, found, _ = cv2.calcOpticalFlowPyrLK(now_hw, then_hw, points, guess, winSize=(11, 11), maxLevel=3)
    return to.reshape(points_NK2.shape), found.reshape(points_NK2.shape[:2]) > 0
