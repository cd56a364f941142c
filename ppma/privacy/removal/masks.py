"""Turn boxes of people and faces into hidden pixels, generously: a head outside the mask is a person in the picture.

    boxes of people and faces  ->  segmentation inside each, an ellipse for each  ->  raw mask  ->  spool on disk
    raw masks of the neighboring frames  ->  union  ->  dilation, holes filled  ->  hidden pixels of a frame

Legend: H height, W width, N boxes.
"""

import math
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import grown
from ppma.privacy.removal.figures import draw_ellipses
from ppma.privacy.removal.plugins import Masks, Segmenter, Takes

LIKELY = 0.4
"""Probability threshold within the box of a person."""
LIKELY_ANYWHERE = 0.6
"""Probability threshold in the whole frame, for a segmenter that needs boxes."""
SMALLEST_CUT = 6
"""Pixels along a side; smaller boxes are not segmented."""
UNION_FRAMES = 2
"""Neighboring frames on each side whose masks count too: limbs move on while a detector misses them."""
DILATION_SHARE, DILATION_LEAST = 0.02, 3
"""Dilation as a share of the short side, and its minimum in pixels: segmentation is wrong by about as much at edges."""
HIDDEN_WHOLE = 0.85
"""Hidden share above which the whole frame is hidden: in a close-up the rest is hair and clothes."""
PUBLISHED_LIKELY, PUBLISHED_DILATIONS = 0.5, 4
"""The paper's threshold, and how often it dilates by CROSS."""
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
MOVING_LEVELS = 15
"""Change in gray levels, against the frames before and after, from which a pixel moves."""
LIMB_SHARE = 0.5
"""Largest limb outside the mask, as a share of the mask: what is larger is no limb."""
LIMB_REACH = 0.4
"""Longest reach of a limb, as a share of the square root of the mask's area."""
MOST_MOVING = 0.1
"""Share of the frame outside the mask that moves, above which the camera does or the shot ends."""
PERSON_REACH, BODY_REACH = (0.2, 0.15, 0.2, 0.15), (1.5, 0.8, 1.5, 6.0)
"""Where the pixels of a person are segmented: a box of a person or of a face, `grown` by these."""
HEAD_REACH = (0.4, 0.55, 0.4, 0.35)
"""The head with hair, ears and chin: a box of a face, `grown` by these."""


def _draw_outlines(mask_HW: np.ndarray, frame_HWC: np.ndarray, boxes_N5: np.ndarray, segment: Segmenter) -> None:
    """Add what the segmenter finds in each box."""
    height, width = mask_HW.shape
    for x0, y0, x1, y1 in boxes_N5[:, :4].tolist():
        rows = slice(max(0, int(y0)), min(height, int(y1) + 1))
        columns = slice(max(0, int(x0)), min(width, int(x1) + 1))
        if rows.stop - rows.start >= SMALLEST_CUT and columns.stop - columns.start >= SMALLEST_CUT:
            mask_HW[rows, columns] |= segment(np.ascontiguousarray(frame_HWC[rows, columns])) > LIKELY


def raw_mask(
    frame_HWC: np.ndarray, people_N5: np.ndarray, faces_N5: np.ndarray, segment: Segmenter | None, takes: Takes
) -> np.ndarray:
    """Return the mask of people in a frame by itself, uint8 (H, W), 1 on people.

    Without a segmenter it covers the heads of the faces only. For what a segmenter `takes` see `plugins.Plugin`.
    """
    mask_HW = np.zeros(frame_HWC.shape[:2], np.uint8)
    if segment is not None and takes == "frames":
        mask_HW |= segment(frame_HWC) > LIKELY
    if not len(people_N5) and not len(faces_N5):
        return mask_HW
    draw_ellipses(mask_HW, grown(faces_N5, *HEAD_REACH), 0.5, 0.5)
    if segment is None:
        return mask_HW
    if takes == "boxes":  # each one: two people may overlap as much as two boxes of one person
        mask_HW |= segment(frame_HWC, np.concatenate([people_N5, grown(faces_N5, *BODY_REACH)])) > LIKELY
    elif takes == "cuts":
        mask_HW |= segment(frame_HWC) > LIKELY_ANYWHERE
        _draw_outlines(mask_HW, frame_HWC, grown(people_N5, *PERSON_REACH), segment)
        _draw_outlines(mask_HW, frame_HWC, grown(faces_N5, *BODY_REACH), segment)
    draw_ellipses(mask_HW, people_N5, 0.5, 0.58)
    return mask_HW


def limbs(mask_HW: np.ndarray, before_hw: np.ndarray, now_hw: np.ndarray, after_hw: np.ndarray) -> np.ndarray:
    """Return what moves and reaches out of a mask, uint8 (H, W): hands in fast motion are blurred, and not segmented.

    Args:
        mask_HW: Mask of people, uint8.
        before_hw: Gray view of the frame before, uint8, of any size, at the camera pose of this one.
        now_hw: View of this frame.
        after_hw: View of the frame after.
    """
    body_hw = cv2.resize(mask_HW, now_hw.shape[::-1], interpolation=cv2.INTER_NEAREST)
    near_hw = cv2.dilate(body_hw, disc(dilation_pixels(*now_hw.shape)))
    change_hw = np.minimum(cv2.absdiff(now_hw, before_hw), cv2.absdiff(now_hw, after_hw))
    moving_hw: np.ndarray = (change_hw > MOVING_LEVELS).astype(np.uint8)
    for step, size in ((cv2.MORPH_CLOSE, 5), (cv2.MORPH_OPEN, 3)):  # opened: edges of the background tremble
        moving_hw = cv2.morphologyEx(moving_hw, step, np.ones((size, size), np.uint8))
    moving_hw[cv2.distanceTransform(1 - near_hw, cv2.DIST_L2, 3) > LIMB_REACH * np.sqrt(body_hw.sum())] = 0
    outside_hw = (moving_hw > 0) & (near_hw == 0)
    limbs_hw = np.zeros_like(moving_hw)
    if outside_hw.any() and outside_hw.mean() <= MOST_MOVING:
        count, labels_hw = cv2.connectedComponents(moving_hw)
        areas = np.bincount(labels_hw[outside_hw], minlength=count)
        reaching = np.bincount(labels_hw[near_hw > 0], minlength=count) > 0
        limb = reaching & (areas > 0) & (areas <= LIMB_SHARE * body_hw.sum())
        limb[0] = False
        limbs_hw = limb[labels_hw].astype(np.uint8)
    return cv2.resize(limbs_hw, mask_HW.shape[::-1], interpolation=cv2.INTER_NEAREST)


def published_mask(frame_HWC: np.ndarray, segment: Segmenter) -> np.ndarray:
    """Return the paper's mask, uint8 (H, W): the segmentation of the whole frame, thresholded at 0.5."""
    return (segment(frame_HWC) > PUBLISHED_LIKELY).astype(np.uint8)


class Spool:
    """Planes of a clip in a temporary file, readable in any order, so that memory does not grow with the clip."""

    def __init__(self, folder: Path, *, bits: bool = True) -> None:
        """Create an unnamed file in `folder`, which disappears when it is closed; `bits`: for masks of 0 and 1."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._bits = bits
        self._places: list[tuple[int, int]] = []
        self._shape: tuple[int, ...] = ()
        self._filled: list[bool] = []

    @property
    def filled(self) -> int:
        """Number of planes that are not 0 everywhere."""
        return sum(self._filled)

    def __len__(self) -> int:
        return len(self._places)

    def append(self, plane_HW: np.ndarray) -> None:
        """Add the plane of the next frame, uint8 of one shape."""
        self._places.append((0, 0))
        self._filled.append(False)
        self.replace(len(self) - 1, plane_HW)

    def replace(self, t: int, plane_HW: np.ndarray) -> None:
        """Write the plane of frame `t` again."""
        data = zlib.compress((np.packbits(plane_HW) if self._bits else plane_HW).tobytes(), 1)
        self._shape = plane_HW.shape
        self._places[t], self._filled[t] = (self._file.seek(0, 2), len(data)), bool(plane_HW.any())
        self._file.write(data)

    def read(self, t: int) -> np.ndarray:
        """Return the plane of frame `t`."""
        start, size = self._places[t]
        self._file.seek(start)
        values = np.frombuffer(zlib.decompress(self._file.read(size)), np.uint8)
        if self._bits:
            values = np.unpackbits(values, count=math.prod(self._shape))
        return values.reshape(self._shape)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


def disc(radius: int) -> np.ndarray:
    """Return the kernel that dilates by `radius` pixels."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def dilation_pixels(height: int, width: int) -> int:
    """Return the radius by which masks of this size are dilated."""
    return max(DILATION_LEAST, round(DILATION_SHARE * min(height, width)))


def hidden(spool: Spool, t: int, *, around: int = UNION_FRAMES, masks: Masks = "generous") -> np.ndarray:
    """Return the hidden pixels of frame `t`, bool (H, W).

    Args:
        spool: Raw masks of the clip.
        t: Frame number.
        around: Frames before and after it whose masks count too.
        masks: generous, or published: from the frame's own mask.
    """
    if masks == "published":
        return cv2.dilate(spool.read(t), CROSS, iterations=PUBLISHED_DILATIONS) > 0
    frames = range(max(0, t - around), min(len(spool), t + around + 1))
    union_HW = np.bitwise_or.reduce([spool.read(i) for i in frames])
    dilated_HW = cv2.dilate(union_HW, disc(dilation_pixels(*union_HW.shape)))
    outlines, _ = cv2.findContours(dilated_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hidden_HW: np.ndarray = cv2.drawContours(dilated_HW, outlines, -1, (1,), cv2.FILLED) > 0  # a hole may show an arm
    return np.ones_like(hidden_HW) if hidden_HW.mean() > HIDDEN_WHOLE else hidden_HW
