"""Boxes of the frames between two detected ones, where nothing happens that they do not show.

    frames  ->  search(): groups of frames, the last of each detected
    boxes of two frames, small gray views of all between  ->  between(): interpolated boxes, or None: detect them

Two frames agree if every box of one has its counterpart in the other, or is within a person of the other. A picture in
between agrees if it changes only within people. Someone who appears between the two, or enters, moves away fast or is
lost, is a disagreement, and so are a cut and a moving camera.
Legend: H height, W width of a view, N and M boxes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import NONE_05, OVERLAP, grown, overlaps
from ppma.privacy.detectors.runtime import on_gpu

STEP = 4
"""Frames from one detected frame to the next while they agree."""
GPU_GROUPS = 4
"""Groups of frames whose last ones are one batch on a GPU."""
INSIDE = 0.9
"""Share of a box within a person of the other frame, from which it is of that person: a hand, a second box."""
AROUND = (0.1, 0.1, 0.1, 0.1)
"""A person for this comparison: a box, `grown` by these."""
SLACK = (0.05, 0.05, 0.05, 0.05)
"""Growth of interpolated boxes."""
MOVED_LEVELS = 15
"""Change in gray levels from which a pixel of a view changes."""
LEAST_BLOB = 3
"""Side in pixels of the smallest square of changed pixels of a view that counts: smaller ones are noise."""

Sides = tuple[float, float, float, float]
Found = dict[str, np.ndarray]
"""Detector name -> boxes_N5 of a frame."""


def search(
    frames: Iterator[np.ndarray], find: Callable[[list[np.ndarray]], list[Found]]
) -> Iterator[tuple[list[np.ndarray], Found]]:
    """Yield the first frame, then groups of STEP frames, each with what is found in its last frame.

    Args:
        frames: The frames of a clip, frame_HWC.
        find: Returns the boxes in each of several frames.
    """
    groups = filter(None, chain([[*islice(frames, 1)]], iter(lambda: [*islice(frames, STEP)], [])))
    while ahead := [*islice(groups, GPU_GROUPS if on_gpu() else 1)]:
        yield from zip(ahead, find([group[-1] for group in ahead]))


def between(
    first: Found, last: Found, views: Sequence[np.ndarray], scale: float, reach: Mapping[str, Sides]
) -> list[Found] | None:
    """Interpolate the boxes of the frames between two detected ones.

    Args:
        first: Boxes of the first frame.
        last: Boxes of the last frame, of the same detectors.
        views: gray_HW (uint8) of all frames from the first to the last.
        scale: Pixels of a view per pixel of a box.
        reach: Detector name -> growth (left, top, right, bottom) of its boxes within which a picture may change.

    Returns:
        The boxes of each frame between, or None if the frames do not agree.
    """
    people_first, people_last = _people(first), _people(last)
    tracks = {name: _tracks(first[name], last[name], people_first, people_last) for name in first}
    found = list[Found]()
    for t, view_HW in enumerate(views[1:], 1):
        share, boxes = np.float32(t / (len(views) - 1)), Found()
        for name, pairs in tracks.items():
            if pairs is None:
                return None
            boxes[name] = pairs[0] + (pairs[1] - pairs[0]) * share
        areas = [grown(boxes_N5, *reach[name]) * scale for name, boxes_N5 in boxes.items()]
        if _changes(views[0], view_HW, np.concatenate([NONE_05, *areas])):
            return None
        found.append({name: grown(boxes_N5, *SLACK) for name, boxes_N5 in boxes.items()})
    return found[:-1]


def _people(found: Found) -> np.ndarray:
    return grown(np.concatenate([NONE_05, *found.values()]), *AROUND)


def _tracks(
    first_N5: np.ndarray, last_M5: np.ndarray, people_first: np.ndarray, people_last: np.ndarray
) -> np.ndarray | None:
    """Return the boxes of everyone at both frames, shape (2, people, 5), or None if someone is in one only."""
    to_last, from_first = _partners(first_N5, last_M5, people_last), _partners(last_M5, first_N5, people_first)
    if to_last is None or from_first is None:
        return None
    pairs = np.stack([np.concatenate([first_N5, from_first]), np.concatenate([to_last, last_M5])])
    return np.unique(pairs, axis=1)


def _partners(boxes_N5: np.ndarray, others_M5: np.ndarray, people_K5: np.ndarray) -> np.ndarray | None:
    """Return the counterpart of each box among the others, or the box if it is within someone; None if one is not."""
    shared_NM, partners_N5 = overlaps(boxes_N5, others_M5), boxes_N5.copy()
    alone_N = shared_NM.max(1, initial=0) < OVERLAP
    if (overlaps(boxes_N5[alone_N], people_K5, of_first=True).max(1, initial=0) < INSIDE).any():
        return None
    if not alone_N.all():
        partners_N5[~alone_N] = others_M5[shared_NM[~alone_N].argmax(1)]
    return partners_N5


def _changes(first_HW: np.ndarray, view_HW: np.ndarray, areas_N5: np.ndarray) -> bool:
    """True if two views differ outside the areas."""
    changed_HW = (cv2.absdiff(view_HW, first_HW) > MOVED_LEVELS).astype(np.uint8)
    for x0, y0, x1, y1 in areas_N5[:, :4].round().astype(int).clip(0).tolist():
        changed_HW[y0 : y1 + 1, x0 : x1 + 1] = 0
    return bool(cv2.erode(changed_HW, np.ones((LEAST_BLOB, LEAST_BLOB), np.uint8)).any())
