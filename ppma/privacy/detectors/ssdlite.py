"""SSDLite, which confirms what MoveNet detects with a low score: is that a person, or a chair?

    frame_HWC (RGB uint8), weak boxes_N5  ->  each cut out and looked at  ->  confirm_weak()

Legend: H height, W width of a frame in pixels, N boxes or anchors, B tiles, S side of the network's input.
"""

from pathlib import Path

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import OVERLAP, SAME_PERSON, SURE, grown, overlaps, suppress
from ppma.privacy.detectors.runtime import sigmoid
from ppma.privacy.detectors.tfjs import Graph
from ppma.privacy.detectors.tiles import TileDetector
from ppma.privacy.detectors.tools import Detector

AROUND = (0.3, 0.2, 0.3, 0.2)
"""What is cut out with a box: `grown` by these."""
CUT_SIDE = 150
"""Long side in pixels to which larger cuts are shrunk, so that they are looked at once, without tiles."""


class SsdLite(TileDetector):
    """SSDLite on MobileNetV2 (Sandler et al., 2018) on COCO: predicts offsets of 1917 anchor boxes."""

    side = multiple = 300  # the anchors are for square inputs
    parts, maps = 5, 6
    person, classes = 1, 91

    def __init__(self, files: dict[str, Path], threshold: float = 0.1) -> None:
        """Load `files["ssdlite.json"]` and `files["ssdlite-1.bin"]` to `files["ssdlite-5.bin"]`."""
        self.threshold = threshold
        kinds = ("BoxEncoding", "Class")
        names = [f"BoxPredictor_{k}/{kind}Predictor/BiasAdd" for kind in kinds for k in range(self.maps)]
        parts = [files[f"ssdlite-{number + 1}.bin"] for number in range(self.parts)]
        self._graph = Graph(files["ssdlite.json"], parts, names, start="Preprocessor/sub")
        self._anchors_N4 = self._graph.constant("Postprocessor/ExpandDims")[0]

    def in_tiles(self, tiles_BSS3: np.ndarray) -> list[np.ndarray]:
        """Return boxes_N5 of people in each tile."""
        batch = len(tiles_BSS3)
        maps = self._graph(tiles_BSS3.astype(np.float32) / np.float32(127.5) - 1)
        shifts, logits = maps[: self.maps], maps[self.maps :]
        shifts_BN4 = np.concatenate([m.reshape(batch, -1, 4) for m in shifts], 1)
        logits_BN = np.concatenate([m.reshape(batch, -1, self.classes)[..., self.person] for m in logits], 1)
        scores_BN = sigmoid(logits_BN)
        return [self._boxes(*both) for both in zip(scores_BN, shifts_BN4)]

    def _boxes(self, score_N: np.ndarray, shifts_N4: np.ndarray) -> np.ndarray:
        kept_N = score_N >= self.threshold
        y0, x0, y1, x1 = self._anchors_N4[kept_N].T
        dy, dx, dh, dw = shifts_N4[kept_N].T
        height, width = y1 - y0, x1 - x0
        y, x = (y0 + y1) / 2 + dy / 10 * height, (x0 + x1) / 2 + dx / 10 * width
        height, width = height * np.exp(dh / 5), width * np.exp(dw / 5)
        corners_4N = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2]) * self.side
        return suppress(np.vstack([corners_4N, score_N[kept_N]]).T)


def confirm_weak(frame_HWC: np.ndarray, boxes_N5: np.ndarray, known_M5: np.ndarray, detect: Detector) -> np.ndarray:
    """Raise the scores of boxes below SURE to it if they are people.

    Args:
        frame_HWC: RGB uint8.
        boxes_N5: Boxes of people.
        known_M5: People in the previous frame, who need no confirmation.
        detect: A second detector, of a low operating point.

    Returns:
        The boxes, boxes_N5; those that are not confirmed keep their scores.
    """
    boxes_N5 = boxes_N5.copy()
    height, width = frame_HWC.shape[:2]
    tracked_N = overlaps(boxes_N5, known_M5).max(1, initial=0) >= OVERLAP
    weak_N = boxes_N5[:, 4] < SURE
    boxes_N5[weak_N & tracked_N, 4] = SURE
    for n in np.flatnonzero(weak_N & ~tracked_N):
        x0, y0, x1, y1 = grown(boxes_N5[n : n + 1], *AROUND)[0, :4].astype(int).tolist()
        x0, y0 = max(0, x0), max(0, y0)
        cut_hwC = np.ascontiguousarray(frame_HWC[y0 : min(height, y1), x0 : min(width, x1)])
        if not cut_hwC.size:
            continue
        scale = min(1.0, CUT_SIDE / max(cut_hwC.shape))
        if scale < 1.0:
            cut_hwC = cv2.resize(cut_hwC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        own_15 = (boxes_N5[n : n + 1] - np.array([x0, y0, x0, y0, 0], np.float32)) * np.float32(scale)
        if overlaps(own_15, detect(cut_hwC)).max(initial=0) >= SAME_PERSON:
            boxes_N5[n, 4] = SURE
    return boxes_N5
