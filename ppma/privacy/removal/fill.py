"""Paint the background behind people: as other frames show it, and synthesized from the frame where none does.

    frame, hidden pixels, references with their homographies  ->  warped to the frame, without those that show the
                                 hidden person (figures.py)   ->  median of the free pixels
    remaining hidden pixels  ->  as synthesized earlier in the shot (Memory), warped to the frame
                             ->  else synthesized from the surroundings (exemplar.complete)

The median over frames without people is the background, provided people or the camera move. Behind a person who never
moves away it is unknown; what is synthesized there is kept from frame to frame, since flicker looks like motion.
Legend: H height, W width of the frame, h w of the cut around the hidden pixels, R references, N pixels, C channels.
"""

from collections.abc import Callable, Sequence

import cv2
import numba
import numpy as np

from ppma.privacy.removal.camera import Reference, moves, seen_from, shift
from ppma.privacy.removal.exemplar import complete
from ppma.privacy.removal.figures import Figures

RING = 6
"""Width in pixels of the ring around hidden pixels on which painted and real brightness are compared."""
LEAST_RING = 50
"""Fewest pixels of the ring for a comparison."""
LEAST_VIEWS = 3
"""References that must show a pixel: one or two may show a missed person."""
LEAST_SHARE = 0.15
"""The same as a share of all references."""
MAX_OFFSET = 40.0
"""Largest correction of the painted background's brightness, in levels of 255."""
CHANGED = 16.0
"""Mean difference around a hole, in levels, above which the canvas shows another place and is not used."""
FAR_SHARE = 0.5
"""Margin of the canvas around the frame as a share of the short side; a larger camera motion starts a new canvas."""


@numba.njit(cache=True)
def _sorted_free(values_R: np.ndarray, free_R: np.ndarray, sorted_R: np.ndarray) -> int:
    """Insertion-sort the free values into `sorted_R`; return their number."""
    views = 0
    for r in range(len(values_R)):
        if free_R[r]:
            value, k = values_R[r], views
            while k > 0 and sorted_R[k - 1] > value:
                sorted_R[k] = sorted_R[k - 1]
                k -= 1
            sorted_R[k] = value
            views += 1
    return views


@numba.njit(cache=True)
def median_of_free(
    stack_RhwC: np.ndarray, free_Rhw: np.ndarray, wanted_hw: np.ndarray, least: int, out_hwC: np.ndarray
) -> np.ndarray:
    """Write the median over free references to `out_hwC` at wanted pixels that `least` of them show; return which."""
    count, height, width, channels = stack_RhwC.shape
    seen_hw = np.zeros((height, width), np.bool_)
    sorted_R = np.empty(count, np.uint8)
    for y in range(height):
        for x in range(width):
            seen_hw[y, x] = wanted_hw[y, x] and free_Rhw[:, y, x].sum() >= least
            if seen_hw[y, x]:
                for c in range(channels):
                    views = _sorted_free(stack_RhwC[:, y, x, c], free_Rhw[:, y, x], sorted_R)
                    out_hwC[y, x, c] = sorted_R[views // 2]
    return seen_hw


def _cut(hidden_HW: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Return the rows and columns of the hidden pixels, with a margin."""
    rows, columns = np.flatnonzero(hidden_HW.any(1)), np.flatnonzero(hidden_HW.any(0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + 1 + margin),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + 1 + margin),
    )


class Memory:
    """What was synthesized in a shot so far, on a canvas larger than the frame at the camera pose of one of its frames.

    Pixels are warped to the canvas and from there to each frame, so twice if the camera moves less than half a frame.
    """

    def __init__(self) -> None:
        """Start with an empty canvas."""
        self._colors_HWC = np.zeros((0, 0, 3), np.uint8)
        self._made_HW = self._known_HW = np.zeros((0, 0), np.uint8)
        """255 where the canvas is synthesized, and where it shows the frame that it was taken from."""
        self._to_canvas_33: np.ndarray | None = None
        """Homography from the shot's first frame."""
        self._offset_C = np.zeros(3)
        """Brightness of the last frame minus that of the canvas."""

    def recall(self, picture_HWC: np.ndarray, wanted_HW: np.ndarray, here_33: np.ndarray) -> np.ndarray:
        """Paint wanted pixels from the canvas, in place, except in holes whose surroundings changed; return which."""
        kept_HW = np.zeros_like(wanted_HW)
        self._offset_C = np.zeros(3)
        if self._to_canvas_33 is None or not wanted_HW.any():
            return kept_HW
        # 1. warp the canvas to the frame, around the wanted pixels
        cut = _cut(wanted_HW, RING)
        rows, columns = cut[0].indices(wanted_HW.shape[0]), cut[1].indices(wanted_HW.shape[1])
        warp_33 = shift(-columns[0], -rows[0]) @ here_33 @ np.linalg.inv(self._to_canvas_33)
        size = rows[1] - rows[0], columns[1] - columns[0]
        colors_hwC, made_hw, known_hw = (
            cv2.warpPerspective(plane, warp_33, size[::-1], flags=cv2.INTER_LINEAR)
            for plane in (self._colors_HWC, self._made_HW, self._known_HW)
        )
        # 2. match its brightness on the known pixels around the holes
        widened_hw = _widened(wanted_HW[cut])
        around_hw = widened_hw & ~wanted_HW[cut] & (known_hw == 255)
        self._offset_C = _offset(picture_HWC[cut], colors_hwC, around_hw)
        shifted_hwC = _shifted(colors_hwC, self._offset_C)
        # 3. paint the holes whose surroundings still look the same
        off_hw = np.abs(picture_HWC[cut].astype(np.float32) - shifted_hwC).mean(2)
        count, holes_hw = cv2.connectedComponents(widened_hw.astype(np.uint8))
        pixels = np.bincount(holes_hw[around_hw], minlength=count)
        off = np.bincount(holes_hw[around_hw], weights=off_hw[around_hw], minlength=count)
        fits = (pixels < LEAST_RING) | (off <= CHANGED * pixels)
        kept_HW[cut] = wanted_HW[cut] & (made_hw == 255) & fits[holes_hw]
        picture_HWC[kept_HW] = shifted_hwC[kept_HW[cut]]
        return kept_HW

    def keep(self, picture_HWC: np.ndarray, made_HW: np.ndarray, fresh_HW: np.ndarray, here_33: np.ndarray) -> None:
        """Store synthesized pixels on the canvas, or on a new one if the camera is far from the old one.

        Args:
            picture_HWC: The painted frame.
            made_HW: Its synthesized pixels.
            fresh_HW: Those of them that were not recalled.
            here_33: Homography of the frame.
        """
        if not fresh_HW.any() or made_HW.all():  # of a frame that is hidden completely, nothing is worth keeping
            return
        height, width = made_HW.shape
        margin = round(FAR_SHARE * min(height, width))
        if (
            self._to_canvas_33 is None
            or moves(shift(-margin, -margin) @ self._to_canvas_33 @ np.linalg.inv(here_33), height, width) > margin
        ):
            around = ((margin, margin), (margin, margin))
            self._colors_HWC = np.pad(picture_HWC, (*around, (0, 0)))
            self._made_HW, self._known_HW = (np.pad(part * np.uint8(255), around) for part in (made_HW, ~made_HW))
            self._to_canvas_33 = shift(margin, margin) @ here_33
            return
        warp_33, size = self._to_canvas_33 @ np.linalg.inv(here_33), self._made_HW.shape[::-1]
        plain_HWC = _shifted(picture_HWC, -self._offset_C)
        edge = cv2.BORDER_REPLICATE  # else the outermost pixels are mixed with black
        colors_HWC = cv2.warpPerspective(plain_HWC, warp_33, size, flags=cv2.INTER_LINEAR, borderMode=edge)
        fresh_there_HW = cv2.warpPerspective(fresh_HW * np.uint8(255), warp_33, size, flags=cv2.INTER_NEAREST) > 0
        self._colors_HWC[fresh_there_HW] = colors_HWC[fresh_there_HW]
        self._made_HW[fresh_there_HW], self._known_HW[fresh_there_HW] = 255, 0


class TemporalMedian:
    """Paints the background that other frames show, and synthesizes the rest consistently over the shot."""

    def __init__(self, synthesize: Callable[[np.ndarray, np.ndarray], np.ndarray] = complete) -> None:
        """Set `synthesize(frame_HWC, hole_HW)`, which returns the frame with the hole filled."""
        self._synthesize = synthesize

    def __call__(
        self,
        frame_HWC: np.ndarray,
        hidden_HW: np.ndarray,
        here_33: np.ndarray,
        references: Sequence[Reference],
        memory: Memory,
        figures: Figures,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paint the hidden pixels; see `plugins.Inpainter`."""
        seen_HW = np.zeros_like(hidden_HW)
        if not hidden_HW.any():
            return frame_HWC, seen_HW
        # 1. the median of the references that show the background and not the person
        picture_HWC = frame_HWC.copy()
        least = max(LEAST_VIEWS, round(LEAST_SHARE * len(references)))
        if len(references) >= least:
            cut = _cut(hidden_HW, RING)
            hidden_hw = hidden_HW[cut]
            shown = [seen_from(reference, here_33, cut) for reference in references]
            stack_RhwC, free_Rhw = map(np.stack, zip(*shown))
            people = figures.cut(*cut)
            for other_hwC, free_hw in zip(stack_RhwC, free_Rhw):
                returned_K = people.returned(other_hwC, free_hw)
                if returned_K.any():
                    free_hw[returned_K[people.territory_HW]] = 0
            median_hwC = np.zeros((*hidden_hw.shape, 3), np.uint8)
            seen_hw = median_of_free(stack_RhwC, free_Rhw, _widened(hidden_hw), least, median_hwC)
            offset_C = _offset(frame_HWC[cut], median_hwC, seen_hw & ~hidden_hw)
            median_hwC = _shifted(median_hwC, offset_C)
            painted_hw = seen_hw & hidden_hw & ~people.returned(median_hwC, seen_hw)[people.territory_HW]
            picture_HWC[cut][painted_hw] = median_hwC[painted_hw]
            seen_HW[cut] = painted_hw
        # 2. the rest: as synthesized earlier in the shot, else synthesized now
        made_HW = hidden_HW & ~seen_HW
        kept_HW = memory.recall(picture_HWC, made_HW, here_33)
        picture_HWC = self._synthesize(picture_HWC, made_HW & ~kept_HW)
        memory.keep(picture_HWC, made_HW, made_HW & ~kept_HW, here_33)
        return picture_HWC, seen_HW


def _widened(mask_hw: np.ndarray) -> np.ndarray:
    return cv2.dilate(mask_hw.astype(np.uint8), np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)) > 0


def _shifted(values_NC: np.ndarray, offset_C: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values_NC + offset_C), 0, 255).astype(np.uint8)


def _offset(frame_hwC: np.ndarray, median_hwC: np.ndarray, known_hw: np.ndarray) -> np.ndarray:
    """Return the brightness of the frame minus that of its background, by channel: exposure changes over a clip."""
    if known_hw.sum() < LEAST_RING:
        return np.zeros(3)
    difference_NC = frame_hwC[known_hw].astype(np.float32) - median_hwC[known_hw]
    return np.clip(np.median(difference_NC, axis=0), -MAX_OFFSET, MAX_OFFSET)
