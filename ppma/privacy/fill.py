"""What is painted where people were: the background as other frames saw it, and a smooth guess where none did.

    frame, hidden pixels, references with their homographies  ->  warped onto the frame, median of what is free  ->  holes guessed

The median over frames in which nobody is there is the background itself wherever people or camera move. Where somebody never moves away
there is nothing to be seen, and the guess is a smear: good enough to hide a person, not to look real.
Legend: H height, W width of the frame, h w of the cut that holds the hidden pixels, R references.
"""

from collections.abc import Callable, Sequence

import cv2
import numba
import numpy as np

from ppma.privacy.camera import Reference, seen_from

RING = 6
"""Pixels around the hidden ones on which painted and real brightness are compared."""
LEAST_SIGHTS = 3
"""References that must show a pixel: one or two may show a person whom nobody found."""
LEAST_SHARE = 0.15
"""The same as a share of all references."""
TELEA_RADIUS = 5
TELEA_SIDE = 256
"""Long side of the cut on which holes are guessed; larger ones are scaled down, the guess is smooth anyway."""
MAX_OFFSET = 40.0
"""Levels by which a painted background is made brighter or darker at most."""


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


def guess(frame_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """The frame with the hole filled smoothly: averages of what is known in ever larger squares, and back (Gortler et al., 1996).

    Nothing runs into the hole as streaks, which detectors take for limbs. Where nothing is known, all of it gets one colour, the mean.
    """
    if not hole_HW.any():
        return frame_HWC
    sums_HWC, shares_HW = frame_HWC * (~hole_HW)[..., None].astype(np.float32), (~hole_HW).astype(np.float32)
    levels: list[tuple[np.ndarray, np.ndarray]] = [(sums_HWC, shares_HW)]
    while max(shares_HW.shape) > 1:
        half = [(side + 1) // 2 for side in shares_HW.shape[::-1]]
        sums_HWC = cv2.resize(sums_HWC, half, interpolation=cv2.INTER_AREA).reshape(*half[::-1], 3)
        shares_HW = cv2.resize(shares_HW, half, interpolation=cv2.INTER_AREA).reshape(half[::-1])
        levels.append((sums_HWC, shares_HW))
    sums_113, share_11 = levels[-1]
    filled_HWC = sums_113 / share_11 if share_11[0, 0] else frame_HWC.mean((0, 1), dtype=np.float32, keepdims=True)
    for sums_HWC, shares_HW in reversed(levels):
        wider_HWC = cv2.resize(filled_HWC, shares_HW.shape[::-1], interpolation=cv2.INTER_LINEAR)
        filled_HWC = sums_HWC + (1 - shares_HW[..., None]) * wider_HWC.reshape(sums_HWC.shape)
    picture_HWC = frame_HWC.copy()
    picture_HWC[hole_HW] = np.rint(filled_HWC[hole_HW])
    return picture_HWC


def telea(frame_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """The frame with the hole filled from its border inwards (Telea, 2004).

    It starts from a guess: OpenCV leaves what it finds where there is no border to start from, and that must not be the person.
    """
    if not hole_HW.any():
        return frame_HWC
    picture_HWC, cut = guess(frame_HWC, hole_HW), _cut(hole_HW, 4 * TELEA_RADIUS)
    part_hwC, hole_hw = picture_HWC[cut], hole_HW[cut].astype(np.uint8)
    scale = min(1.0, TELEA_SIDE / max(hole_hw.shape))
    if scale == 1.0:
        painted_hwC = cv2.inpaint(part_hwC, hole_hw, TELEA_RADIUS, cv2.INPAINT_TELEA)
    else:
        width, height = (max(1, round(side * scale)) for side in hole_hw.shape[::-1])
        # a pixel of the small picture is known only where all those it stands for are
        small_hole = (cv2.resize(hole_hw.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0).astype(
            np.uint8
        )
        small = cv2.resize(part_hwC, (width, height), interpolation=cv2.INTER_AREA)
        painted = cv2.inpaint(small, small_hole, TELEA_RADIUS, cv2.INPAINT_TELEA)
        painted_hwC = cv2.resize(painted, hole_hw.shape[::-1], interpolation=cv2.INTER_LINEAR)
    if (
        known_NC := part_hwC[hole_hw == 0]
    ).size:  # the method extrapolates slopes, far beyond what is around in a large hole
        painted_hwC = np.clip(painted_hwC, known_NC.min(0), known_NC.max(0))
    part_hwC[hole_hw > 0] = painted_hwC[hole_hw > 0]
    return picture_HWC


class Telea:
    """Guesses from the frame alone, by Telea's method."""

    def __call__(
        self, frame_HWC: np.ndarray, hidden_HW: np.ndarray, here: np.ndarray, references: Sequence[Reference]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(picture_HWC, seen_HW); see `plugins.Inpainter`."""
        return telea(frame_HWC, hidden_HW), np.zeros_like(hidden_HW)


class TemporalMedian:
    """Background from other frames where it was seen, a guess elsewhere."""

    def __init__(self, guess_rest: Callable[[np.ndarray, np.ndarray], np.ndarray] = guess) -> None:
        """`guess_rest`: (frame_HWC, hole_HW) to the frame with the hole filled."""
        self._guess = guess_rest

    def __call__(
        self, frame_HWC: np.ndarray, hidden_HW: np.ndarray, here: np.ndarray, references: Sequence[Reference]
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
            ring_hw = cv2.dilate(hidden_hw.astype(np.uint8), np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)) > 0
            median_hwC = np.zeros((*hidden_hw.shape, 3), np.uint8)
            seen_hw = median_of_free(stack_RhwC, free_Rhw, ring_hw, least, median_hwC)
            offset_C = _offset(frame_HWC[cut], median_hwC, seen_hw & ~hidden_hw)
            painted_hw = seen_hw & hidden_hw
            picture_HWC[cut][painted_hw] = np.clip(np.rint(median_hwC[painted_hw] + offset_C), 0, 255)
            seen_HW[cut] = painted_hw
        return self._guess(picture_HWC, hidden_HW & ~seen_HW), seen_HW


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
    if known_hw.sum() < 50:
        return np.zeros(3)
    difference_NC = frame_hwC[known_hw].astype(np.float32) - median_hwC[known_hw]
    return np.clip(np.median(difference_NC, axis=0), -MAX_OFFSET, MAX_OFFSET)
