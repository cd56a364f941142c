"""Bounding boxes of people: merge overlapping ones, and track people over frames where a detector misses them.

    boxes_N5 of each frame: x0, y0, x1, y1 in pixels, score  ->  suppress()  ->  stay(), bridge(), linger() over frames

Legend: N, M boxes, H height, W width of a frame, h and w of a box.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

NONE_05 = np.zeros((0, 5), np.float32)
OVERLAP = 0.5
"""Intersection over union from which two boxes of a frame are one person."""
SAME_PERSON = 0.25
"""The same for boxes in different frames, between which the person moves."""
SPEED_FRAMES = 5
"""Frames over which speed is averaged: a jitter of some pixels would be multiplied over a gap."""
SURE = 0.5
"""Score from which a detection is a person without a second detector that confirms it."""
WITHIN = 0.6
"""Share of a box in one of another frame from which that person is not lost: one may be of the upper body only."""
ALIKE_LEVELS = 12
"""Difference in gray levels up to which two pixels are the same but for noise."""
EXPOSURE_LEVELS = 40
"""Largest change in the brightness of a place that counts as exposure: by more, a plain wall would pass for dark hair."""
ALIKE_SHARE = 0.7
"""Share of a box's pixels that stay the same while the person is still there; a hand may move."""
INNER = (-0.2, -0.05, -0.2, -0.05)
"""Inner part of a box, which a person fills: `grown` by these."""
SEARCH_SHARE, SEARCH_LEAST = 0.06, 4
"""Distance searched around a still person per frame, as a share of the box, and its minimum in pixels of the view: people
sway, and cameras pan."""


def suppress(boxes_N5: np.ndarray, overlap: float = OVERLAP) -> np.ndarray:
    """Return the boxes without those that overlap a better one by at least `overlap` (non-maximum suppression)."""
    if not len(boxes_N5):
        return NONE_05
    xywh_N4 = np.concatenate([boxes_N5[:, :2], boxes_N5[:, 2:4] - boxes_N5[:, :2]], 1)
    kept = cv2.dnn.NMSBoxes(xywh_N4.tolist(), boxes_N5[:, 4].tolist(), 0.0, overlap)
    return boxes_N5[np.ravel(kept).astype(int)].astype(np.float32)


def overlaps(first_N5: np.ndarray, second_M5: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """Return the intersection over union, or over the area `of_first`, of every pair, shape (N, M)."""
    a, b = first_N5[:, None, :4], second_M5[None, :, :4]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    area_a, area_b = (np.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (a, b))
    both = np.prod(sides, axis=-1)
    whole = area_a if of_first else area_a + area_b - both
    return both / np.maximum(whole, 1e-6)


def grown(boxes_N5: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Return the boxes enlarged on each side by these multiples of their width or height."""
    size_N2 = boxes_N5[:, 2:4] - boxes_N5[:, :2]
    out = boxes_N5.copy()
    out[:, :2] -= size_N2 * np.array((left, top), np.float32)
    out[:, 2:4] += size_N2 * np.array((right, bottom), np.float32)
    return out


def warped(boxes_N5: np.ndarray, homography_33: np.ndarray) -> np.ndarray:
    """Return the bounding boxes of the boxes moved by a homography, as a copy."""
    out, (x0, y0, x1, y1) = boxes_N5.copy(), boxes_N5[:, :4].T
    if len(boxes_N5):
        corners_N42 = np.stack([x0, y0, x1, y0, x0, y1, x1, y1], 1).reshape(-1, 4, 2).astype(np.float64)
        moved_N42 = cv2.perspectiveTransform(corners_N42, homography_33)
        out[:, :2], out[:, 2:4] = moved_N42.min(1), moved_N42.max(1)
    return out


def keep_sure(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the boxes_N5 of each frame that have a score of SURE, or are tracked into the next frame by one that has."""
    kept = [NONE_05] * (len(frames) + 1)
    for t in range(len(frames) - 1, -1, -1):
        boxes_N5 = frames[t]
        kept[t] = boxes_N5[(boxes_N5[:, 4] >= SURE) | (overlaps(boxes_N5, kept[t + 1]).max(1, initial=0) >= OVERLAP)]
    return kept[:-1]


@dataclass
class _Still:
    """A person whom the detector has lost, as last seen; coordinates in pixels of the view."""

    box_5: np.ndarray
    """In pixels of the frame, where the person is now."""
    look_hw: np.ndarray
    """The inner part of the box when the person was detected last: its margin is background, which does not change."""
    x: int
    y: int
    last: int
    """Last frame that looked like that."""

    @classmethod
    def of(cls, box_5: np.ndarray, gray_HW: np.ndarray, scale: float, t: int) -> "_Still":
        """Remember a person who is detected in frame `t` for the last time."""
        x0, y0, x1, y1 = (grown(box_5[None], *INNER)[0, :4] * scale).round().astype(int).clip(0).tolist()
        return cls(box_5=box_5, look_hw=gray_HW[y0:y1, x0:x1].copy(), x=x0, y=y0, last=t)

    def follow(self, gray_HW: np.ndarray, scale: float) -> bool:
        """Move to the nearest place that looks like the person; False if none does."""
        height, width = self.look_hw.shape
        if self._is_at(gray_HW, self.x, self.y):
            return True
        reach = max(SEARCH_LEAST, round(SEARCH_SHARE * max(height, width)))
        top, left = max(0, self.y - reach), max(0, self.x - reach)
        around_hw = gray_HW[top : self.y + height + reach, left : self.x + width + reach]
        _, _, (right, down), _ = cv2.minMaxLoc(cv2.matchTemplate(around_hw, self.look_hw, cv2.TM_SQDIFF))
        x, y = left + right, top + down
        if not self._is_at(gray_HW, x, y):
            return False
        by = np.array([x - self.x, y - self.y, x - self.x, y - self.y, 0], np.float32) / scale
        self.box_5, self.x, self.y = self.box_5 + by, x, y
        return True

    def _is_at(self, gray_HW: np.ndarray, x: int, y: int) -> bool:
        height, width = self.look_hw.shape
        off_hw = gray_HW[y : y + height, x : x + width].astype(np.int16) - self.look_hw
        exposure = np.clip(np.median(off_hw), -EXPOSURE_LEVELS, EXPOSURE_LEVELS).astype(np.int16)
        return bool((np.abs(off_hw - exposure) <= ALIKE_LEVELS).mean() >= ALIKE_SHARE)


def stay(
    frames: Sequence[np.ndarray], view: Callable[[int], np.ndarray], scale: float, patience: int
) -> list[np.ndarray]:
    """Keep every lost person for as long as the pixels in their last box do not change, forward and backward in time.

    Args:
        frames: boxes_N5 of each frame, of one detector.
        view: Returns gray_HW (uint8) of frame t, which may be scaled down.
        scale: Pixels of a view per pixel of a box.
        patience: Frames for which a place may look different, as when someone passes in front.

    Returns:
        boxes_N5 of each frame, the added ones included.
    """
    last = len(frames) - 1
    after = _stay_after(frames, view, scale, patience)
    before = _stay_after(frames[::-1], lambda t: view(last - t), scale, patience)[::-1]
    return [np.concatenate([found, suppress(np.concatenate(added))]) for found, *added in zip(frames, after, before)]


def _stay_after(
    frames: Sequence[np.ndarray], view: Callable[[int], np.ndarray], scale: float, patience: int
) -> list[np.ndarray]:
    """Return the boxes to add after the last detection of each track; a single weak detection is not a track."""
    added: list[list[np.ndarray]] = [[NONE_05] for _ in frames]
    lost: list[_Still] = []
    before_N5 = NONE_05
    for t, boxes_N5 in enumerate(frames):
        following_N5 = frames[t + 1] if t + 1 < len(frames) else boxes_N5
        ends_N = overlaps(boxes_N5, following_N5, of_first=True).max(1, initial=0) < WITHIN
        known_N = (boxes_N5[:, 4] >= SURE) | (overlaps(boxes_N5, before_N5).max(1, initial=0) >= SAME_PERSON)
        before_N5 = boxes_N5
        if not lost and not ends_N.any():
            continue
        gray_HW = view(t)
        for one in lost:
            found = overlaps(one.box_5[None], boxes_N5, of_first=True).max(initial=0) >= WITHIN
            if one.follow(gray_HW, scale) or found:
                for between in range(one.last + 1, t + (not found)):
                    added[between].append(one.box_5[None])
                one.last = -1 - patience if found else t
        lost = [one for one in lost if t - one.last <= patience]
        ended = (_Still.of(box_5, gray_HW, scale, t) for box_5 in boxes_N5[ends_N & known_N])
        lost += [one for one in ended if one.look_hw.size]
    return [np.concatenate(boxes) for boxes in added]


def linger(frames: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Extend every track by `count` frames at both ends along its motion; return all boxes_N5 of each frame.

    Detectors miss people who enter or leave the frame.
    """
    after, before = _linger_after(frames, count), _linger_after(frames[::-1], count)[::-1]
    return [np.concatenate(parts) for parts in zip(frames, after, before)]


def _linger_after(frames: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Return the boxes to add after the last detection of each track; a single detection is not a track."""
    added: list[list[np.ndarray]] = [[NONE_05] for _ in frames]
    for now in range(1, len(frames) - 1):
        before, boxes_N5, after = frames[now - 1 : now + 2]
        known_N = overlaps(boxes_N5, before).max(1, initial=0) >= SAME_PERSON
        lost_N = overlaps(boxes_N5, after).max(1, initial=0) < SAME_PERSON
        for box_5 in boxes_N5[known_N & lost_N]:
            speed_5 = _speed(frames, now, box_5)
            for t in range(now + 1, min(now + count + 1, len(frames))):
                added[t].append((box_5 + speed_5 * (t - now))[None])
    return [np.concatenate(boxes) for boxes in added]


def bridge(frames: Sequence[np.ndarray], gap: int) -> list[np.ndarray]:
    """Interpolate the boxes of people whom a detector misses in up to `gap` frames; return all boxes_N5 of each frame.

    Two boxes are one person if they overlap, or would if the first went on at its speed.
    """
    bridged = [[boxes_N5] for boxes_N5 in frames]
    for now, boxes_N5 in enumerate(frames):
        for box_5 in boxes_N5:
            then, other_5 = _next_detection(frames, now, box_5, gap)
            for t in range(now + 1, then):
                bridged[t].append((box_5 + (other_5 - box_5) * ((t - now) / (then - now)))[None])
    return [np.concatenate(boxes) for boxes in bridged]


def _next_detection(frames: Sequence[np.ndarray], now: int, box_5: np.ndarray, gap: int) -> tuple[int, np.ndarray]:
    """Return (frame, box) of the next detection, at most a gap later; the present one if there is none."""
    for then in range(now + 1, min(now + gap + 2, len(frames))):
        other_5 = _same_person(box_5, frames[then])
        if other_5 is None and then > now + 1 and len(frames[then]):
            other_5 = _same_person(box_5 + _speed(frames, now, box_5) * (then - now), frames[then])
        if other_5 is not None:
            return then, other_5
    return now, box_5


def _same_person(box_5: np.ndarray, boxes_N5: np.ndarray) -> np.ndarray | None:
    """Return the box that overlaps one of another frame most; None if none overlaps it by SAME_PERSON."""
    match_N = overlaps(box_5[None], boxes_N5)[0]
    return boxes_N5[match_N.argmax()] if match_N.max(initial=0) >= SAME_PERSON else None


def _speed(frames: Sequence[np.ndarray], now: int, box_5: np.ndarray) -> np.ndarray:
    """Return the motion of a box per frame (x, y, x, y, 0), over the preceding frames that detect it without a gap."""
    first_5, tracked = box_5, 0
    for boxes_N5 in frames[max(0, now - SPEED_FRAMES) : now][::-1]:
        earlier_5 = _same_person(first_5, boxes_N5)
        if earlier_5 is None:
            break
        first_5, tracked = earlier_5, tracked + 1
    x, y = ((box_5[:2] + box_5[2:4]) - (first_5[:2] + first_5[2:4])) / max(1, 2 * tracked)
    return np.array([x, y, x, y, 0], np.float32)
