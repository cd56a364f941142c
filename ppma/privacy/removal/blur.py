"""Blur or downsample, the methods to compare removal with: people stay in the picture.

    frame_HWC, hidden_HW  ->  blurred(): each hidden region as a few blobs
    frame_HWC             ->  downsampled(): the whole frame at a low resolution

Legend: H height, W width, C channels.
"""

import cv2
import numpy as np

BLUR_BLOBS = 6.0
"""Resolution that blurring leaves: pixels along the longer side of a hidden region."""


def blurred(frame_HWC: np.ndarray, hidden_HW: np.ndarray) -> np.ndarray:
    """Return the frame with each connected hidden region reduced to a few blobs."""
    picture_HWC = frame_HWC.copy()
    count, labels_HW, boxes, _ = cv2.connectedComponentsWithStats(hidden_HW.astype(np.uint8))
    for label in range(1, count):
        x, y, width, height = (int(value) for value in boxes[label, :4])
        cut = np.s_[y : y + height, x : x + width]
        small = _shrunk(frame_HWC[cut], BLUR_BLOBS / max(width, height))
        smooth_hwC = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        own_hw = labels_HW[cut] == label
        picture_HWC[cut][own_hw] = smooth_hwC[own_hw]
    return picture_HWC


def downsampled(frame_HWC: np.ndarray, short_side: int) -> np.ndarray:
    """Return the frame at the resolution of `short_side` pixels, scaled back to its own size."""
    height, width = frame_HWC.shape[:2]
    small = _shrunk(frame_HWC, short_side / min(height, width))
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _shrunk(frame_HWC: np.ndarray, scale: float) -> np.ndarray:
    height, width = frame_HWC.shape[:2]
    size = max(1, round(width * min(scale, 1.0))), max(1, round(height * min(scale, 1.0)))
    return cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
