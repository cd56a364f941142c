"""Boxes around people: how overlapping ones are merged, and how a box that flickers is followed through time.

    boxes_N5 of each frame: x0, y0, x1, y1 in pixels (the end outside), score  ->  suppress()  ->  bridge() over frames

Legend: N boxes.
"""

from collections.abc import Sequence

import cv2
import numpy as np

NONE_05 = np.zeros((0, 5), np.float32)
OVERLAP = 0.5
"""Intersection over union from which on two boxes show one person."""
SAME_PERSON = 0.25
"""The same for boxes in different frames: between them the person has moved."""

SPEED_FRAMES = 5
"""Frames over which somebody's speed is taken: boxes shake by some pixels, which a gap would multiply."""


def suppress(boxes_N5: np.ndarray, overlap: float = OVERLAP) -> np.ndarray:
    """The boxes without those that overlap a better one."""
    if not len(boxes_N5):
        return NONE_05
    xywh_N4 = np.concatenate([boxes_N5[:, :2], boxes_N5[:, 2:4] - boxes_N5[:, :2]], 1)
    kept = cv2.dnn.NMSBoxes(xywh_N4.tolist(), boxes_N5[:, 4].tolist(), 0.0, overlap)
    return boxes_N5[np.ravel(kept).astype(int)].astype(np.float32)


def overlaps(first_N5: np.ndarray, second_M5: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M) of every pair."""
    a, b = first_N5[:, None, :4], second_M5[None, :, :4]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    area_a, area_b = (np.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (a, b))
    both = np.prod(sides, axis=-1)
    return both / np.maximum(area_a + area_b - both, 1e-6)


def grown(boxes_N5: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Boxes with so many of their widths and heights added on each side."""
    width, height = boxes_N5[:, 2] - boxes_N5[:, 0], boxes_N5[:, 3] - boxes_N5[:, 1]
    out = boxes_N5.copy()
    out[:, 0] -= left * width
    out[:, 1] -= top * height
    out[:, 2] += right * width
    out[:, 3] += bottom * height
    return out


def linger(frames: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The boxes of each frame, and those of people found for the first or last time `count` frames before and after, moving on as they did.

    Detectors miss whoever is half outside the picture, and that is where people come from and go to.
    """
    forward = _linger_after(frames, count)
    backward = _linger_after(frames[::-1], count)[::-1]
    return [np.concatenate(parts) for parts in zip(frames, forward, backward)]


def _linger_after(frames: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Boxes to be added after the last sight of each person; one sight alone is no person yet."""
    added: list[list[np.ndarray]] = [[NONE_05] for _ in frames]
    for now in range(1, len(frames) - 1):
        before, boxes_N5, after = frames[now - 1 : now + 2]
        known_N = overlaps(boxes_N5, before).max(1, initial=0) >= SAME_PERSON
        lost_N = overlaps(boxes_N5, after).max(1, initial=0) < SAME_PERSON
        for box_5 in boxes_N5[known_N & lost_N]:
            speed_4 = _speed(frames, now, box_5)
            for t in range(now + 1, min(now + count + 1, len(frames))):
                moved_5 = box_5.copy()
                moved_5[:4] += speed_4 * (t - now)
                added[t].append(moved_5[None])
    return [np.concatenate(boxes) for boxes in added]


def bridge(frames: Sequence[np.ndarray], gap: int) -> list[np.ndarray]:
    """The boxes of each frame, and for a person who is found, lost for at most `gap` frames and found again, boxes in between.

    `frames`: boxes_N5 of each frame, of one kind of detector. Two boxes are one person where they overlap, or would if the first went on
    moving as it did; those in between are drawn from the one to the other in a straight line.
    """
    added: list[list[np.ndarray]] = [[] for _ in frames]
    for now, boxes_N5 in enumerate(frames):
        for box_5 in boxes_N5:
            later = _next_sight(frames, now, box_5, gap)
            if later is None:
                continue
            then, other_5 = later
            for t in range(now + 1, then):
                added[t].append(box_5 + (other_5 - box_5) * ((t - now) / (then - now)))
    return [np.concatenate([found, np.stack(more)]) if more else found for found, more in zip(frames, added)]


def _next_sight(frames: Sequence[np.ndarray], now: int, box_5: np.ndarray, gap: int) -> tuple[int, np.ndarray] | None:
    """(frame, box) in which a person is found again after having been lost; None where nothing is lost, or all."""
    speed_4: np.ndarray | None = None
    for then in range(now + 1, min(now + gap + 2, len(frames))):
        if not len(frames[then]):
            continue
        match_M = overlaps(box_5[None], frames[then])[0]
        if then > now + 1 and match_M.max() < SAME_PERSON:
            speed_4 = _speed(frames, now, box_5) if speed_4 is None else speed_4
            moved_5 = box_5.copy()
            moved_5[:4] += speed_4 * (then - now)
            match_M = overlaps(moved_5[None], frames[then])[0]
        if match_M.max() >= SAME_PERSON:
            return (then, frames[then][int(match_M.argmax())]) if then > now + 1 else None
    return None


def _speed(frames: Sequence[np.ndarray], now: int, box_5: np.ndarray) -> np.ndarray:
    """How far somebody's box moves from frame to frame (x, y, x, y), from the frames before in which they were followed without a gap."""
    first_5, followed = box_5, 0
    for t in range(now - 1, max(-1, now - SPEED_FRAMES - 1), -1):
        if not len(frames[t]):
            break
        match_M = overlaps(first_5[None], frames[t])[0]
        if match_M.max() < SAME_PERSON:
            break
        first_5, followed = frames[t][int(match_M.argmax())], followed + 1
    if not followed:
        return np.zeros(4, np.float32)
    shift_2 = ((box_5[:2] + box_5[2:4]) - (first_5[:2] + first_5[2:4])) / (2 * followed)
    return np.tile(shift_2, 2).astype(np.float32)
