"""Compare painted frames with the original, so that no hidden person is painted back.

    hidden pixels, boxes  ->  core of each person (inner ellipse), territory (hidden pixels nearest to it)
    colors around the hidden pixels  ->  core pixels that they do not explain  ->  returned(): who is seen again

Background around a person is hidden too and rightly comes back; the core is mostly person. Where it has a color of the
surroundings, a fill that equals the original shows nothing.
Legend: H height, W width, N boxes or compared pixels, K people + 1, C channels.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ppma.privacy.removal.exemplar import smoothed

CORE_WIDE, CORE_TALL = 0.2, 0.4
"""Half axes of the core as shares of a box's sides."""
SAME_LEVELS = 12
"""Difference in levels of 255, in every channel, up to which a pixel is the original's."""
RETURNED_SHARE = 1 / 3
"""Share of the compared pixels from which a person is seen again."""
LEAST_PIXELS = 12
"""Fewest compared pixels for a judgment."""
AROUND_SHARE, AROUND_LEAST = 0.1, 12
"""Width of the surroundings as a share of the short side, and its minimum in pixels."""
COLOR_BITS = 5
"""Bits of a channel by which colors are told apart: with neighboring values, up to 15 levels are one color."""
RARE = 1e-4
"""Share of the surroundings up to which a color does not count as theirs."""


def draw_ellipses(
    mask_HW: np.ndarray, boxes_N5: np.ndarray, wide: float, tall: float, first: int | None = None
) -> None:
    """Draw an ellipse into each box.

    Args:
        mask_HW: Drawn on in place.
        boxes_N5: The boxes.
        wide: Half of the horizontal axis as a share of the box's width.
        tall: Half of the vertical axis as a share of its height.
        first: Value of the first ellipse, from which they are numbered (default: all are 1).
    """
    for n, (x0, y0, x1, y1) in enumerate(boxes_N5[:, :4].tolist()):
        center = (round((x0 + x1) / 2), round((y0 + y1) / 2))
        axes = (max(1, round((x1 - x0) * wide)), max(1, round((y1 - y0) * tall)))
        cv2.ellipse(mask_HW, center, axes, 0, 0, 360, (1 if first is None else first + n,), -1)


def cores(boxes_N5: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """Return the number of the person, from 1, at pixels that show almost surely a person, 0 elsewhere.

    Args:
        boxes_N5: Boxes of people and faces.
        mask_HW: Mask of people; without boxes, its connected components are the people.

    Returns:
        int32 (H, W).
    """
    if not len(boxes_N5):
        return np.asarray(cv2.connectedComponents(mask_HW)[1], np.int32)
    core_HW = np.zeros(mask_HW.shape, np.int32)
    draw_ellipses(core_HW, boxes_N5, CORE_WIDE, CORE_TALL, first=1)
    return core_HW


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The hidden people of a frame."""

    territory_HW: np.ndarray
    """int32: number of the nearest person, from 1, at hidden pixels; 0 elsewhere."""
    rows_N: np.ndarray
    columns_N: np.ndarray
    number_N: np.ndarray
    """The compared pixels and the person each belongs to."""
    colors_N3: np.ndarray
    """What the frame shows there."""

    @classmethod
    def of(cls, frame_HWC: np.ndarray, hidden_HW: np.ndarray, core_HW: np.ndarray) -> "Figures":
        """Compute the territories and the compared pixels of a frame, with bool `hidden_HW` and the `cores`."""
        core_HW = np.where(hidden_HW, core_HW, 0)
        _, nearest_HW = cv2.distanceTransformWithLabels(
            (core_HW == 0).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
        )
        number_of = np.zeros(nearest_HW.max() + 1, np.int32)
        number_of[nearest_HW[core_HW > 0]] = core_HW[core_HW > 0]
        territory_HW = np.where(hidden_HW, number_of[nearest_HW], 0)
        compared_HW = (core_HW > 0) & ~same(smoothed(frame_HWC, hidden_HW), frame_HWC)
        compared_HW[compared_HW] = ~_around(frame_HWC, hidden_HW)[_color(frame_HWC[compared_HW])]
        rows_N, columns_N = np.nonzero(compared_HW)
        return cls(
            territory_HW=territory_HW, rows_N=rows_N, columns_N=columns_N,
            number_N=core_HW[rows_N, columns_N], colors_N3=frame_HWC[rows_N, columns_N],
        )  # fmt: skip  # one field after the other

    def returned(self, picture_HWC: np.ndarray, shown_HW: np.ndarray | None = None) -> np.ndarray:
        """Return whom a picture shows as the original does, bool (K,), by number.

        Args:
            picture_HWC: A painted frame, or another frame of the clip.
            shown_HW: Pixels of the picture that count (default: all).
        """
        at_N = self.rows_N * picture_HWC.shape[1] + self.columns_N  # take is 3 times as fast as two indices
        same_N = same(picture_HWC.reshape(-1, 3).take(at_N, axis=0), self.colors_N3)
        if shown_HW is not None:
            same_N &= shown_HW.ravel().take(at_N) > 0
        people = int(self.territory_HW.max(initial=0)) + 1
        compared_K = np.bincount(self.number_N, minlength=people)
        same_K = np.bincount(self.number_N[same_N], minlength=people)
        result: np.ndarray = (same_K > RETURNED_SHARE * compared_K) & (compared_K >= LEAST_PIXELS)
        return result

    def cut(self, rows: slice, columns: slice) -> "Figures":
        """Return the figures of a part of the frame that has all hidden pixels."""
        return Figures(
            territory_HW=self.territory_HW[rows, columns], rows_N=self.rows_N - rows.start,
            columns_N=self.columns_N - columns.start, number_N=self.number_N, colors_N3=self.colors_N3,
        )  # fmt: skip  # one field after the other


def _color(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the coarse red, green and blue of pixels (..., 3)."""
    return tuple(np.moveaxis(pixels >> (8 - COLOR_BITS), -1, 0))


def _around(frame_HWC: np.ndarray, hidden_HW: np.ndarray) -> np.ndarray:
    """Return which coarse colors the surroundings of the hidden pixels have, bool (red, green, blue)."""
    side = 2 * max(AROUND_LEAST, round(AROUND_SHARE * min(hidden_HW.shape))) + 1
    around_HW = (cv2.dilate(hidden_HW.astype(np.uint8), np.ones((side, side), np.uint8)) > 0) & ~hidden_HW
    levels = 1 << COLOR_BITS
    numbers_N = np.ravel_multi_index(_color(frame_HWC[around_HW]), (levels,) * 3)
    common = np.bincount(numbers_N, minlength=levels**3).reshape((levels,) * 3) > RARE * len(numbers_N)
    for axis in range(3):
        padded = np.pad(common, [(int(axis == a),) * 2 for a in range(3)])
        common = common | padded.take(range(levels), axis) | padded.take(range(2, levels + 2), axis)
    return common


def same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """True where two pictures (..., 3), uint8, show the same color."""
    alike = np.maximum(first, second) - np.minimum(first, second) <= SAME_LEVELS
    return alike[..., 0] & alike[..., 1] & alike[..., 2]  # 4 times as fast as all(-1)
