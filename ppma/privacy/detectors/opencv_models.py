"""The remover's models that OpenCV runs on a CPU: CenterFace for faces, selfie segmentation for outlines.

    frame_HWC (RGB uint8)  ->  boxes_N5: x0, y0, x1, y1, score; or probability_HW float32

MoveNet detects people who are mostly visible; CenterFace adds close-ups. Thresholds are low: a false positive costs some
background, a miss leaves a person in the picture.
Legend: H height, W width of a frame in pixels, N boxes.
"""

from pathlib import Path

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import NONE_05, suppress
from ppma.privacy.detectors.tiles import network_size


class CenterFace:
    """CenterFace (Xu et al., 2020): detects faces from about 5 pixels, in the shrunk and in the enlarged frame."""

    small, large = 288, 704
    """Long sides of the network's input."""

    def __init__(self, files: dict[str, Path], threshold: float = 0.35) -> None:
        """Use `files["centerface.onnx"]`; thresholds below 0.3 mistake texture for faces."""
        self.threshold = threshold
        self._file = str(files["centerface.onnx"])
        self._nets: dict[tuple[int, int], cv2.dnn.Net] = {}

    def _detect(self, frame_HWC: np.ndarray, long_side: int) -> np.ndarray:
        height, width = frame_HWC.shape[:2]
        size = network_size(height, width, long_side)
        if size not in self._nets:
            self._nets[size] = cv2.dnn.readNetFromONNX(self._file)
        net = self._nets[size]
        net.setInput(cv2.dnn.blobFromImage(frame_HWC, 1.0, size))
        heat, scale, offset = net.forward(["537", "538", "539"])  # its outputs have numbers for names
        rows, columns = np.where(heat[0, 0] > self.threshold)
        if not len(rows):
            return NONE_05
        sizes_2N = 4 * np.exp(scale[0, :, rows, columns]).T  # height, width; the maps are a quarter of the input
        centers_2N = 4 * (offset[0, :, rows, columns].T + np.stack([rows, columns]) + 0.5)
        low, high = centers_2N - sizes_2N / 2, centers_2N + sizes_2N / 2
        x, y = width / size[0], height / size[1]
        corners_5N = np.stack([low[1] * x, low[0] * y, high[1] * x, high[0] * y, heat[0, 0, rows, columns]])
        return suppress(corners_5N.T.astype(np.float32), 0.3)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return boxes_N5 of faces."""
        long_side = min(max(self.large, max(frame_HWC.shape[:2])), 2 * self.large)
        return suppress(np.concatenate([self._detect(frame_HWC, side) for side in (self.small, long_side)]), 0.3)


class Selfie:
    """MediaPipe's selfie segmentation of one large person: good inside a box; without one it mistakes furniture for people."""

    def __init__(self, files: dict[str, Path]) -> None:
        """Load `files["selfie_segmentation.tflite"]`."""
        self._net = cv2.dnn.readNetFromTFLite(str(files["selfie_segmentation.tflite"]))

    def __call__(self, frame_HWC: np.ndarray, boxes_N5: np.ndarray = NONE_05) -> np.ndarray:
        """Return probability_HW."""
        height, width = frame_HWC.shape[:2]
        self._net.setInput(cv2.dnn.blobFromImage(frame_HWC, 1 / 255, (256, 256)))
        return cv2.resize(self._net.forward()[0, 0], (width, height), interpolation=cv2.INTER_LINEAR)
