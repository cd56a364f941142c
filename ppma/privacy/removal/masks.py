"""From boxes to the pixels that are hidden: generous on purpose, since a head that sticks out of a mask is a person left in the picture.

    boxes of people and faces  ->  segmentation inside each, an ellipse for each  ->  raw mask  ->  spool on disk
    raw masks of the frames around one  ->  union  ->  dilated: what is hidden in it

Legend: H height, W width, N boxes, T frames.
"""

import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import grown
from ppma.privacy.removal.plugins import Masks, Segmenter

LIKELY = 0.4
"""Probability from which on a pixel within somebody's box is theirs."""
LIKELY_ALONE = 0.6
"""The same for the picture as a whole."""
SMALLEST_CUT = 6
"""Pixels; less holds nothing to segment."""
UNION_FRAMES = 2
"""Frames before and after one whose masks count in it: a limb moves on while a detector blinks."""
DILATION_SHARE, DILATION_LEAST = 0.02, 3
"""Of the short side, and pixels, by which a mask grows at its edge: there segmentation is wrong by about as much."""

HIDDEN_WHOLE = 0.85
"""Share of a picture from which on all of it is hidden: in a close-up the rest is hair and clothes rather than a place."""
PUBLISHED_LIKELY, PUBLISHED_DILATIONS = 0.5, 4
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
"""The paper's threshold and dilation (PAPER: how humans were removed)."""


def heads(faces_N5: np.ndarray) -> np.ndarray:
    """Boxes around the heads of faces: hair above, ears beside, a chin below."""
    return grown(faces_N5, 0.4, 0.55, 0.4, 0.35)


def bodies(faces_N5: np.ndarray) -> np.ndarray:
    """Where the rest of somebody may be whose face was found: three heads wide, seven long. A place to segment, not a mask."""
    return grown(faces_N5, 1.5, 0.8, 1.5, 6.0)


def _ellipses(mask_HW: np.ndarray, boxes_N5: np.ndarray, wide: float, tall: float) -> None:
    """Draw an ellipse into each box, whose half axes are these shares of its sides."""
    for x0, y0, x1, y1 in boxes_N5[:, :4].tolist():
        centre = (round((x0 + x1) / 2), round((y0 + y1) / 2))
        axes = (max(1, round((x1 - x0) * wide)), max(1, round((y1 - y0) * tall)))
        cv2.ellipse(mask_HW, centre, axes, 0, 0, 360, (1,), -1)


def _outline(mask_HW: np.ndarray, frame_HWC: np.ndarray, places_N5: np.ndarray, segment: Segmenter) -> None:
    """Add what the segmenter sees in each place."""
    height, width = mask_HW.shape
    for x0, y0, x1, y1 in places_N5[:, :4].tolist():
        rows = slice(max(0, int(y0)), min(height, int(y1) + 1))
        columns = slice(max(0, int(x0)), min(width, int(x1) + 1))
        if rows.stop - rows.start < SMALLEST_CUT or columns.stop - columns.start < SMALLEST_CUT:
            continue
        mask_HW[rows, columns] |= segment(np.ascontiguousarray(frame_HWC[rows, columns])) > LIKELY


def raw_mask(
    frame_HWC: np.ndarray, people_N5: np.ndarray, faces_N5: np.ndarray, segment: Segmenter | None
) -> np.ndarray:
    """uint8 (H, W), 1 where somebody is in this frame. Without a segmenter the mask is of heads only.

    A segmenter that can tell people in the whole picture looks there, whoever was found; another one around those who were.
    """
    mask_HW = np.zeros(frame_HWC.shape[:2], np.uint8)
    if segment is not None and segment.alone:
        mask_HW |= segment(frame_HWC) > LIKELY
    if not len(people_N5) and not len(faces_N5):
        return mask_HW
    _ellipses(mask_HW, heads(faces_N5), 0.5, 0.5)
    if segment is None:
        return mask_HW
    if not segment.alone:
        mask_HW |= segment(frame_HWC) > LIKELY_ALONE
        _outline(mask_HW, frame_HWC, grown(people_N5, 0.2, 0.15, 0.2, 0.15), segment)
        _outline(mask_HW, frame_HWC, bodies(faces_N5), segment)
    _ellipses(mask_HW, people_N5, 0.5, 0.58)
    return mask_HW


def published_mask(frame_HWC: np.ndarray, segment: Segmenter) -> np.ndarray:
    """uint8 (H, W) as in the paper: the segmenter's map of the whole picture, cut at 0.5."""
    return (segment(frame_HWC) > PUBLISHED_LIKELY).astype(np.uint8)


class Spool:
    """Raw masks of a clip on disk, to be read in any order: memory does not grow with the clip."""

    def __init__(self, folder: Path) -> None:
        """The file has no name and is gone when this object is."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._places: list[tuple[int, int]] = []
        self._shape = (0, 0)
        self.filled = 0
        """Masks that are not empty."""

    def __len__(self) -> int:
        return len(self._places)

    def append(self, mask_HW: np.ndarray) -> None:
        """Add the mask of the next frame."""
        self.filled += bool(mask_HW.any())
        data = zlib.compress(np.packbits(mask_HW).tobytes(), 1)
        self._shape = mask_HW.shape[0], mask_HW.shape[1]
        self._places.append((self._file.seek(0, 2), len(data)))
        self._file.write(data)

    def read(self, t: int) -> np.ndarray:
        """uint8 (H, W) of frame `t`."""
        at, size = self._places[t]
        self._file.seek(at)
        bits = np.frombuffer(zlib.decompress(self._file.read(size)), np.uint8)
        return np.unpackbits(bits, count=self._shape[0] * self._shape[1]).reshape(self._shape)

    def close(self) -> None:
        """Remove it."""
        self._file.close()


def disc(radius: int) -> np.ndarray:
    """Kernel that dilates by so many pixels."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def dilation_pixels(height: int, width: int) -> int:
    """By how much masks of a picture of this size grow."""
    return max(DILATION_LEAST, round(DILATION_SHARE * min(height, width)))


def hidden(
    spool: Spool, t: int, *, before: int = UNION_FRAMES, after: int = UNION_FRAMES, masks: Masks = "generous"
) -> np.ndarray:
    """bool (H, W): what is hidden in frame `t`, from its mask and those of the frames around it; as published, from its own."""
    if masks == "published":
        return cv2.dilate(spool.read(t), CROSS, iterations=PUBLISHED_DILATIONS) > 0
    frames: Sequence[int] = range(max(0, t - before), min(len(spool), t + after + 1))
    union_HW = np.bitwise_or.reduce([spool.read(i) for i in frames])
    hidden_HW: np.ndarray = cv2.dilate(union_HW, disc(dilation_pixels(*union_HW.shape))) > 0
    return np.ones_like(hidden_HW) if hidden_HW.mean() > HIDDEN_WHOLE else hidden_HW
