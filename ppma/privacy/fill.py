"""What is painted where people were: the background as other frames saw it, and pieces of the picture where none did.

    frame, hidden pixels, references with their homographies  ->  warped onto the frame, median of what is free
    hidden pixels that are left  ->  as made up before (Memory), moved along with the camera  ->  the rest from around (exemplar.complete)

The median over frames in which nobody is there is the background itself wherever people or camera move. Where somebody never moves away
there is nothing to be seen; what is made up there stays as it is from frame to frame, since what flickers looks like motion.
Legend: H height, W width of the frame, h w of the cut that holds the hidden pixels, R references.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numba
import numpy as np

from ppma.privacy.camera import Reference, moves, seen_from
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
"""Mean difference on the ring, in levels, above which the canvas shows another place: its paint no longer fits in."""
FAR_SHARE = 0.5
"""Of the short side, by which the camera may move before a new canvas is taken."""


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


class Memory:
    """What was made up in a shot so far: a canvas, seen as the camera saw one of its frames.

    Paint goes to the canvas and from there to each frame, so it is interpolated twice at most, however long it stays.
    """

    def __init__(self) -> None:
        """Of a shot that begins."""
        self._canvas: Reference | None = None
        """Free where nothing is made up."""

    def recall(
        self, frame_HWC: np.ndarray, hidden_HW: np.ndarray, wanted_HW: np.ndarray, here: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(colours_NC, kept_HW): what the canvas holds of the wanted pixels; nothing when it shows another place than is around them."""
        kept_HW = np.zeros_like(wanted_HW)
        if self._canvas is None or not wanted_HW.any():
            return np.zeros((0, 3), np.uint8), kept_HW
        cut, size = _cut(wanted_HW, RING), wanted_HW.shape
        canvas_hwC, free_hw = seen_from(self._canvas, here, size, cut)
        _, made_hw = seen_from(replace(self._canvas, free_HW=1 - self._canvas.free_HW), here, size, cut)
        ring_hw = _widened(wanted_HW[cut]) & ~hidden_HW[cut] & (free_hw > 0)
        offset_C = _offset(frame_HWC[cut], canvas_hwC, ring_hw)
        off_NC = frame_HWC[cut][ring_hw] - _shifted(canvas_hwC[ring_hw], offset_C).astype(np.float32)
        if len(off_NC) < LEAST_RING or np.abs(off_NC).mean() > CHANGED:
            self._canvas = None
            return np.zeros((0, 3), np.uint8), kept_HW
        kept_HW[cut] = wanted_HW[cut] & (made_hw > 0)
        return _shifted(canvas_hwC[kept_HW[cut]], offset_C), kept_HW

    def keep(self, picture_HWC: np.ndarray, made_HW: np.ndarray, here: np.ndarray) -> None:
        """Put what is made up in a painted frame onto the canvas, where there is none yet."""
        own = Reference(frame_HWC=picture_HWC, free_HW=(~made_HW).astype(np.uint8), homography_33=here)
        if self._canvas is None or self._is_far(here):
            self._canvas = own
            return
        canvas = self._canvas
        shown_HWC, made_there_HW = seen_from(replace(own, free_HW=1 - own.free_HW), canvas.homography_33, made_HW.shape)
        new_HW = (made_there_HW > 0) & (canvas.free_HW > 0)
        if new_HW.any():
            frame_HWC, free_HW = canvas.frame_HWC.copy(), canvas.free_HW.copy()
            frame_HWC[new_HW], free_HW[new_HW] = shown_HWC[new_HW], 0
            self._canvas = replace(canvas, frame_HWC=frame_HWC, free_HW=free_HW)

    def _is_far(self, here: np.ndarray) -> bool:
        assert self._canvas is not None
        height, width = self._canvas.free_HW.shape
        moved = moves(here @ np.linalg.inv(self._canvas.homography_33), height, width)
        return moved > FAR_SHARE * min(height, width)


class TemporalMedian:
    """Background from other frames where it was seen; elsewhere what was made up before, and a guess where nothing was."""

    def __init__(self, guess_rest: Callable[[np.ndarray, np.ndarray], np.ndarray] = complete) -> None:
        """`guess_rest`: (frame_HWC, hole_HW) to the frame with the hole filled."""
        self._guess = guess_rest

    def __call__(
        self,
        frame_HWC: np.ndarray,
        hidden_HW: np.ndarray,
        here: np.ndarray,
        references: Sequence[Reference],
        memory: Memory,
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
        made_HW = hidden_HW & ~seen_HW
        colours_NC, kept_HW = memory.recall(frame_HWC, hidden_HW, made_HW, here)
        picture_HWC[kept_HW] = colours_NC
        picture_HWC = self._guess(picture_HWC, made_HW & ~kept_HW)
        memory.keep(picture_HWC, made_HW, here)
        return picture_HWC, seen_HW


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
