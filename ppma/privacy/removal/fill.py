"""What is painted where people were: the background as other frames saw it, and pieces of the picture where none did.

    frame, hidden pixels, references with their homographies  ->  warped onto the frame, median of what is free
    hidden pixels that are left  ->  as made up before (Memory), moved along with the camera  ->  the rest from around (exemplar.complete)

The median over frames in which nobody is there is the background itself wherever people or camera move. Where somebody
never moves away there is nothing to be seen; what is made up there stays as it is from frame to frame, since what
flickers looks like motion. Legend: H height, W width of the frame, h w of the cut that holds the hidden pixels, R
references, N pixels, C channels.
"""

from collections.abc import Callable, Sequence

import cv2
import numba
import numpy as np

from ppma.privacy.removal.camera import Reference, moves, seen_from
from ppma.privacy.removal.exemplar import complete

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
"""Mean difference around a hole, in levels, above which the canvas shows another place: its paint no longer fits in."""
FAR_SHARE = 0.5
"""Of the short side: how far the canvas reaches beyond the picture, and the camera may move before a new one is
taken."""


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
    """What was made up in a shot so far: a canvas around the picture, seen as the camera saw one of its frames.

    Paint goes to the canvas, and from there to each frame: it is interpolated twice as long as the camera stays within
    half a picture.
    """

    def __init__(self) -> None:
        """Of a shot that begins."""
        self._colours_HWC = np.zeros((0, 0, 3), np.uint8)
        self._made_HW = self._known_HW = np.zeros((0, 0), np.uint8)
        """255 where the canvas holds paint, and where it holds what was seen when it was taken."""
        self._to_canvas_33: np.ndarray | None = None
        """From pixels of the shot's first frame."""
        self._offset_C = np.zeros(3)
        """How much brighter the last frame was than the canvas."""

    def recall(self, picture_HWC: np.ndarray, wanted_HW: np.ndarray, here: np.ndarray) -> np.ndarray:
        """Paint what the canvas holds of the wanted pixels into the picture; kept_HW. Holes in another place than its
        own are left out."""
        kept_HW = np.zeros_like(wanted_HW)
        self._offset_C = np.zeros(3)
        if self._to_canvas_33 is None or not wanted_HW.any():
            return kept_HW
        cut = _cut(wanted_HW, RING)
        rows, columns = cut[0].indices(wanted_HW.shape[0]), cut[1].indices(wanted_HW.shape[1])
        warp_33 = _shift(-columns[0], -rows[0]) @ here @ np.linalg.inv(self._to_canvas_33)
        size = rows[1] - rows[0], columns[1] - columns[0]
        colours_hwC, made_hw, known_hw = (
            cv2.warpPerspective(plane, warp_33, size[::-1], flags=cv2.INTER_LINEAR)
            for plane in (self._colours_HWC, self._made_HW, self._known_HW)
        )
        widened_hw = _widened(wanted_HW[cut])
        around_hw = widened_hw & ~wanted_HW[cut] & (known_hw == 255)
        self._offset_C = _offset(picture_HWC[cut], colours_hwC, around_hw)
        shifted_hwC = _shifted(colours_hwC, self._offset_C)
        off_hw = np.abs(picture_HWC[cut].astype(np.float32) - shifted_hwC).mean(2)
        count, holes_hw = cv2.connectedComponents(widened_hw.astype(np.uint8))
        pixels = np.bincount(holes_hw[around_hw], minlength=count)
        off = np.bincount(holes_hw[around_hw], weights=off_hw[around_hw], minlength=count)
        fits = (pixels < LEAST_RING) | (off <= CHANGED * pixels)  # a few pixels tell nothing
        kept_HW[cut] = wanted_HW[cut] & (made_hw == 255) & fits[holes_hw]
        picture_HWC[kept_HW] = shifted_hwC[kept_HW[cut]]
        return kept_HW

    def keep(self, picture_HWC: np.ndarray, made_HW: np.ndarray, fresh_HW: np.ndarray, here: np.ndarray) -> None:
        """Put onto the canvas what is fresh of what is made up in a painted frame; a new canvas where the camera is far
        from the last."""
        if not fresh_HW.any() or made_HW.all():  # of a picture that is hidden whole nothing is worth keeping
            return
        height, width = made_HW.shape
        margin = round(FAR_SHARE * min(height, width))
        if (
            self._to_canvas_33 is None
            or moves(_shift(-margin, -margin) @ self._to_canvas_33 @ np.linalg.inv(here), height, width) > margin
        ):
            around = ((margin, margin), (margin, margin))
            self._colours_HWC = np.pad(picture_HWC, (*around, (0, 0)))
            self._made_HW, self._known_HW = (np.pad(part * np.uint8(255), around) for part in (made_HW, ~made_HW))
            self._to_canvas_33 = _shift(margin, margin) @ here
            return
        warp_33, size = self._to_canvas_33 @ np.linalg.inv(here), self._made_HW.shape[::-1]
        plain_HWC = _shifted(picture_HWC, -self._offset_C)
        colours_HWC = cv2.warpPerspective(plain_HWC, warp_33, size, flags=cv2.INTER_LINEAR)
        fresh_there_HW = cv2.warpPerspective(fresh_HW * np.uint8(255), warp_33, size, flags=cv2.INTER_NEAREST) > 0
        self._colours_HWC[fresh_there_HW] = colours_HWC[fresh_there_HW]
        self._made_HW[fresh_there_HW], self._known_HW[fresh_there_HW] = 255, 0


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


class TemporalMedian:
    """Background from other frames where it was seen; elsewhere what was made up before, and a guess where nothing
    was."""

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
        kept_HW = memory.recall(picture_HWC, made_HW, here)
        picture_HWC = self._guess(picture_HWC, made_HW & ~kept_HW)
        memory.keep(picture_HWC, made_HW, made_HW & ~kept_HW, here)
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
    """How much brighter each channel of the frame is than its background on the pixels known of both: exposure changes
    over a clip."""
    if known_hw.sum() < LEAST_RING:
        return np.zeros(3)
    difference_NC = frame_hwC[known_hw].astype(np.float32) - median_hwC[known_hw]
    return np.clip(np.median(difference_NC, axis=0), -MAX_OFFSET, MAX_OFFSET)
