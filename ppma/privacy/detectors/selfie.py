"""Segmenters: which pixels of a picture are a person's.

frame_HWC (RGB uint8)  ->  probability_HW float32, of the same size
"""

from pathlib import Path

import cv2
import numpy as np


class Selfie:
    """MediaPipe's selfie segmentation: one large person, 256 x 256 inside. Good within a box, takes furniture for people without one."""

    alone = False

    def __init__(self, files: dict[str, Path]) -> None:
        """`files`: selfie_segmentation.tflite."""
        self._net = cv2.dnn.readNetFromTFLite(str(files["selfie_segmentation.tflite"]))

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """probability_HW."""
        height, width = frame_HWC.shape[:2]
        self._net.setInput(cv2.dnn.blobFromImage(frame_HWC, 1 / 255, (256, 256)))
        return cv2.resize(self._net.forward()[0, 0], (width, height), interpolation=cv2.INTER_LINEAR)
