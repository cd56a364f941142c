"""Bounding boxes of people: merge overlapping ones, and track people over frames where a detector misses them.

    boxes_N5 of each frame: x0, y0, x1, y1 in pixels, score  ->  suppress()  ->  bridge(), linger() over frames

Legend: N, M boxes.
"""

from collections.abc import Sequence

import cv2
import numpy as np

NONE_05 = np.zeros((0, 5), np.float32)
OVERLAP = 0.5
"""Intersection over union from which two boxes of a frame are one person."""
SAME_PERSON = 0.25
"""The same for boxes in different frames, between which the person moves."""
SPEED_FRAMES = 5
"""Frames over which speed is averaged: a jitter of some pixels would be multiplied over a gap."""


def suppress(boxes_N5: np.ndarray, overlap: float = OVERLAP) -> np.ndarray:
    """Return the boxes without those that overlap a better one by at least `overlap` (non-maximum suppression)."""
    if not len(boxes_N5):
        return NONE_05
    xywh_N4 = np.concatenate([boxes_N5[:, :2], boxes_N5[:, 2:4] - boxes_N5[:, :2]], 1)
    kept = cv2.dnn.NMSBoxes(xywh_N4.tolist(), boxes_N5[:, 4].tolist(), 0.0, overlap)
    return boxes_N5[np.ravel(kept).astype(int)].astype(np.float32)


def overlaps(first_N5: np.ndarray, second_M5: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every pair, shape (N, M)."""
    a, b = first_N5[:, None, :4], second_M5[None, :, :4]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    area_a, area_b = (np.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (a, b))
    both = np.prod(sides, axis=-1)
    return both / np.maximum(area_a + area_b - both, 1e-6)


def grown(boxes_N5: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Return the boxes enlarged on each side by these multiples of their width or height."""
    size_N2 = boxes_N5[:, 2:4] - boxes_N5[:, :2]
    out = boxes_N5.copy()
    out[:, :2] -= size_N2 * np.array((left, top), np.float32)
    out[:, 2:4] += size_N2 * np.array((right, bottom), np.float32)
    return out


def linger(frames: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Extend every track at both ends along its motion, since detectors miss people who enter or leave the frame.

    Args:
        frames: boxes_N5 of each frame.
        count: Frames by which a track is extended.

    Returns:
        boxes_N5 of each frame, the added ones included.
    """
    after = _linger_after(frames, count)
    before = _linger_after(frames[::-1], count)[::-1]
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
    """Interpolate the boxes of people who are detected, missed and detected again.

    Two boxes are one person if they overlap, or would if the first went on at its speed.

    Args:
        frames: boxes_N5 of each frame, of one detector.
        gap: Longest number of missed frames that is filled.

    Returns:
        boxes_N5 of each frame, the added ones included.
    """
    added: list[list[np.ndarray]] = [[] for _ in frames]
    for now, boxes_N5 in enumerate(frames):
        for box_5 in boxes_N5:
            later = _next_detection(frames, now, box_5, gap)
            if later is None:
                continue
            then, other_5 = later
            for t in range(now + 1, then):
                added[t].append(box_5 + (other_5 - box_5) * ((t - now) / (then - now)))
    return [np.concatenate([found, np.stack(more)]) if more else found for found, more in zip(frames, added)]


def _next_detection(
    frames: Sequence[np.ndarray], now: int, box_5: np.ndarray, gap: int
) -> tuple[int, np.ndarray] | None:
    """Return (frame, box) of the next detection after a gap; None if there is no gap or no further detection."""
    for then in range(now + 1, min(now + gap + 2, len(frames))):
        if not len(frames[then]):
            continue
        match_M = overlaps(box_5[None], frames[then])[0]
        if then > now + 1 and match_M.max() < SAME_PERSON:
            moved_5 = box_5 + _speed(frames, now, box_5) * (then - now)
            match_M = overlaps(moved_5[None], frames[then])[0]
        if match_M.max() >= SAME_PERSON:
            return (then, frames[then][int(match_M.argmax())]) if then > now + 1 else None
    return None


def _speed(frames: Sequence[np.ndarray], now: int, box_5: np.ndarray) -> np.ndarray:
    """Return the motion of a box per frame (x, y, x, y, 0), over the preceding frames that detect it without a gap."""
    first_5, tracked = box_5, 0
    for t in range(now - 1, max(-1, now - SPEED_FRAMES - 1), -1):
        if not len(frames[t]):
            break
        match_M = overlaps(first_5[None], frames[t])[0]
        if match_M.max() < SAME_PERSON:
            break
        first_5, tracked = frames[t][int(match_M.argmax())], tracked + 1
    if not tracked:
        return np.zeros(5, np.float32)
    x, y = ((box_5[:2] + box_5[2:4]) - (first_5[:2] + first_5[2:4])) / (2 * tracked)
    return np.array([x, y, x, y, 0], np.float32)
