"""What is painted where people were: the background as other frames saw it, and pieces of the picture where none did.

    frame, hidden pixels, references with their homographies  ->  warped onto the frame, median of what is free
    hidden pixels that are left  ->  as in the frame before, moved along with the camera  ->  the rest from around (exemplar.complete)

The median over frames in which nobody is there is the background itself wherever people or camera move. Where somebody never moves away
there is nothing to be seen; what is made up there stays as it is from frame to frame, since what flickers looks like motion.
Legend: H height, W width of the frame, h w of the cut that holds the hidden pixels, R references.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numba
import numpy as np

from ppma.privacy.camera import Reference, seen_from
from ppma.privacy.exemplar import complete

RING = 6
"""Pixels around the hidden ones on which painted and real brightness are compared."""
LEAST_RING = 50
"""Pixels of it that tell anything."""
LEAST_SIGHTS = 3
"""References that must show a pixel: one or two may show a person whom nobody found."""
LEAST_SHARE = 0.15
"""The same as a share of all references."""
MAX_OFFSET = 40.0
"""Levels by which a painted background is made brighter or darker at most."""
CHANGED = 16.0
"""Mean difference on the ring, in levels, above which the frame before shows another place: its paint no longer fits in."""


@numba.njit(cache=True)
def _sorted_free(values_R: np.ndarray, free_R: np.ndarray, sorted_R: np.ndarray) -> int:
    """Put the values that are free into `sorted_R`, by insertion; how many there are."""
    sights = 0
    for r in range(len(values_R)):
        if free_R[r]:
            value, k = values_R[r], sights
            while k > 0 and sorted_R[k - 1] > value:
                sorted_R[k] = sorted_R[k - 1]
                k -= 1
            sorted_R[k] = value
            sights += 1
    return sights


@numba.njit(cache=True)
def median_of_free(
    stack_RhwC: np.ndarray, free_Rhw: np.ndarray, wanted_hw: np.ndarray, least: int, out_hwC: np.ndarray
) -> np.ndarray:
    """Median over the references that are free at a wanted pixel; returns seen_hw where there are `least` of them."""
    count, height, width, channels = stack_RhwC.shape
    seen_hw = np.zeros((height, width), np.bool_)
    sorted_R = np.empty(count, np.uint8)
    for y in range(height):
        for x in range(width):
            seen_hw[y, x] = wanted_hw[y, x] and free_Rhw[:, y, x].sum() >= least
            if seen_hw[y, x]:
                for c in range(channels):
                    sights = _sorted_free(stack_RhwC[:, y, x, c], free_Rhw[:, y, x], sorted_R)
                    out_hwC[y, x, c] = sorted_R[sights // 2]
    return seen_hw


def _cut(hidden_HW: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns that hold the hidden pixels, and a margin."""
    rows, columns = np.flatnonzero(hidden_HW.any(1)), np.flatnonzero(hidden_HW.any(0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + 1 + margin),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + 1 + margin),
    )


class TemporalMedian:
    """Background from other frames where it was seen; elsewhere what the frame before got, and a guess where that has nothing."""

    def __init__(self, guess_rest: Callable[[np.ndarray, np.ndarray], np.ndarray] = complete) -> None:
        """`guess_rest`: (frame_HWC, hole_HW) to the frame with the hole filled."""
        self._guess = guess_rest

    def __call__(
        self,
        frame_HWC: np.ndarray,
        hidden_HW: np.ndarray,
        here: np.ndarray,
        references: Sequence[Reference],
        before: Reference | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(picture_HWC, seen_HW); see `plugins.Inpainter`."""
        seen_HW = np.zeros_like(hidden_HW)
        if not hidden_HW.any():
            return frame_HWC, seen_HW
        picture_HWC = frame_HWC.copy()
        least = max(LEAST_SIGHTS, round(LEAST_SHARE * len(references)))
        if len(references) >= least:
            cut = _cut(hidden_HW, RING)
            hidden_hw = hidden_HW[cut]
            stack_RhwC, free_Rhw = _warp(references, here, frame_HWC.shape[:2], cut)
            median_hwC = np.zeros((*hidden_hw.shape, 3), np.uint8)
            seen_hw = median_of_free(stack_RhwC, free_Rhw, _widened(hidden_hw), least, median_hwC)
            offset_C = _offset(frame_HWC[cut], median_hwC, seen_hw & ~hidden_hw)
            painted_hw = seen_hw & hidden_hw
            picture_HWC[cut][painted_hw] = _shifted(median_hwC[painted_hw], offset_C)
            seen_HW[cut] = painted_hw
        rest_HW = hidden_HW & ~seen_HW
        if before is not None and rest_HW.any():
            rest_HW &= ~_carry(picture_HWC, frame_HWC, hidden_HW, rest_HW, here, before)
        return self._guess(picture_HWC, rest_HW), seen_HW


def _carry(
    picture_HWC: np.ndarray,
    frame_HWC: np.ndarray,
    hidden_HW: np.ndarray,
    rest_HW: np.ndarray,
    here: np.ndarray,
    before: Reference,
) -> np.ndarray:
    """Paint what was painted in the frame before too; kept_HW. Only paint is taken over: what was free there may be a limb nobody found."""
    cut = _cut(rest_HW, RING)
    size, rest_hw = rest_HW.shape, rest_HW[cut]
    shown_hwC, free_hw = seen_from(before, here, size, cut, sharp=True)
    _, painted_hw = seen_from(replace(before, free_HW=1 - before.free_HW), here, size, cut)
    ring_hw = _widened(rest_hw) & ~hidden_HW[cut] & (free_hw > 0)
    kept_HW = np.zeros_like(rest_HW)
    if ring_hw.sum() >= LEAST_RING:  # less says nothing on whether it is the same place
        offset_C = _offset(frame_HWC[cut], shown_hwC, ring_hw)
        off_NC = frame_HWC[cut][ring_hw] - _shifted(shown_hwC[ring_hw], offset_C).astype(np.float32)
        if np.abs(off_NC).mean() <= CHANGED:
            kept_HW[cut] = rest_hw & (painted_hw > 0)
            picture_HWC[kept_HW] = _shifted(shown_hwC[kept_HW[cut]], offset_C)
    return kept_HW


def _widened(mask_hw: np.ndarray) -> np.ndarray:
    return cv2.dilate(mask_hw.astype(np.uint8), np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)) > 0


def _shifted(values_NC: np.ndarray, offset_C: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values_NC + offset_C), 0, 255).astype(np.uint8)


def _warp(
    references: Sequence[Reference], here: np.ndarray, size: tuple[int, int], cut: tuple[slice, slice]
) -> tuple[np.ndarray, np.ndarray]:
    """(stack_RhwC, free_Rhw): the references as seen from the frame, within the cut."""
    height, width = (len(range(*part.indices(side))) for part, side in zip(cut, size))
    stack_RhwC = np.empty((len(references), height, width, 3), np.uint8)
    free_Rhw = np.empty((len(references), height, width), np.uint8)
    for r, reference in enumerate(references):
        stack_RhwC[r], free_Rhw[r] = seen_from(reference, here, size, cut)
    return stack_RhwC, free_Rhw


def _offset(frame_hwC: np.ndarray, median_hwC: np.ndarray, known_hw: np.ndarray) -> np.ndarray:
    """How much brighter each channel of the frame is than its background on the pixels known of both: exposure changes over a clip."""
    if known_hw.sum() < LEAST_RING:
        return np.zeros(3)
    difference_NC = frame_hwC[known_hw].astype(np.float32) - median_hwC[known_hw]
    return np.clip(np.median(difference_NC, axis=0), -MAX_OFFSET, MAX_OFFSET)
