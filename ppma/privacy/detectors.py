"""Detectors that find people on a CPU, each with weights that come inside a package.

    frame_HWC (RGB uint8)  ->  boxes_N5: x0, y0, x1, y1, score

They complement each other: YOLOv3-tiny finds people who stand, CenterFace faces and with them close-ups. Small people are found in tiles
only, so detectors of bodies look at the whole picture and at overlapping parts of it. Thresholds are low: a box too many costs a little
background, a box too few leaves somebody in the picture.
Legend: H height, W width of a picture in pixels, N boxes.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ppma.privacy.boxes import NONE_05, suppress

TILE_SHARE = 0.6
"""Of a picture's side: two tiles a side overlap by a fifth, which is wider than the people who need tiles."""
TILE_PIXELS = 480
"""Long side of a tile up to which small people are still found in it; larger pictures get more tiles."""


MOST_ENLARGED = 2.0
"""Times that a picture is enlarged for a network at most: more shows nothing more."""


def tiles(frame_HWC: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """Overlapping parts of a picture, each with its x and y: 2 x 2 of them up to 800 pixels, more above."""
    height, width = frame_HWC.shape[:2]
    count = max(2, math.ceil(max(height, width) * TILE_SHARE * 2 / TILE_PIXELS))
    h, w = (math.ceil(side * 2 * TILE_SHARE / count) for side in (height, width))
    for y in np.linspace(0, height - h, count).astype(int).tolist():
        for x in np.linspace(0, width - w, count).astype(int).tolist():
            yield np.ascontiguousarray(frame_HWC[y : y + h, x : x + w]), x, y


def network_size(height: int, width: int, long_side: int, multiple: int = 32) -> tuple[int, int]:
    """(width, height) of a network's input in the picture's proportions, both multiples of its stride."""
    scale = min(long_side / max(height, width), MOST_ENLARGED)
    return (
        max(multiple, round(width * scale / multiple) * multiple),
        max(multiple, round(height * scale / multiple) * multiple),
    )


class YoloV3Tiny:
    """YOLOv3-tiny on 80 classes of COCO, of which 0 is a person (Redmon and Farhadi, 2018). About 0.25 s a picture of 340 x 256."""

    finds = "person"
    whole, part = 416, 320
    """Long side of the network's input for the picture, the published one, and for a tile of it, which is still enlarged in that."""

    def __init__(self, files: dict[str, Path], threshold: float = 0.2) -> None:
        """`files`: yolov3-tiny.cfg and yolov3-tiny.weights."""
        self.threshold = threshold
        self._files = str(files["yolov3-tiny.cfg"]), str(files["yolov3-tiny.weights"])
        self._nets: dict[tuple[int, int], cv2.dnn.Net] = {}

    def _net(self, size: tuple[int, int]) -> cv2.dnn.Net:
        """A network for each input size: changing the size of one lays out its memory anew."""
        if size not in self._nets:
            self._nets[size] = cv2.dnn.readNetFromDarknet(*self._files)
        return self._nets[size]

    def _look(self, frame_HWC: np.ndarray, long_side: int) -> np.ndarray:
        height, width = frame_HWC.shape[:2]
        size = network_size(height, width, long_side)
        net = self._net(size)
        net.setInput(cv2.dnn.blobFromImage(frame_HWC, 1 / 255, size))
        rows_N85 = np.vstack(net.forward(net.getUnconnectedOutLayersNames()))
        rows_N85 = rows_N85[rows_N85[:, 5] > self.threshold]
        half_N2 = rows_N85[:, 2:4] / 2
        corners_N4 = np.hstack([rows_N85[:, :2] - half_N2, rows_N85[:, :2] + half_N2]) * [width, height, width, height]
        return np.hstack([corners_N4, rows_N85[:, 5:6]]).astype(np.float32)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of people."""
        found = [self._look(frame_HWC, self.whole)]
        for tile_HWC, x, y in tiles(frame_HWC):
            found.append(self._look(tile_HWC, self.part) + np.array([x, y, x, y, 0], np.float32))
        return suppress(np.concatenate(found))


class CenterFace:
    """CenterFace (Xu et al., 2020): faces from about 5 pixels on; looks at the picture small, for close-ups, and enlarged."""

    finds = "face"
    small, large = 288, 704
    """Long sides of the network's input."""

    def __init__(self, files: dict[str, Path], threshold: float = 0.35) -> None:
        """`files`: centerface.onnx. Below 0.3 it takes texture for faces."""
        self.threshold = threshold
        self._file = str(files["centerface.onnx"])
        self._nets: dict[tuple[int, int], cv2.dnn.Net] = {}

    def _look(self, frame_HWC: np.ndarray, long_side: int) -> np.ndarray:
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
        sizes_2N = (
            4 * np.exp(scale[0, :, rows, columns]).T
        )  # height, width; the maps have a quarter of the input's side
        centres_2N = 4 * (offset[0, :, rows, columns].T + np.stack([rows, columns]) + 0.5)
        low, high = centres_2N - sizes_2N / 2, centres_2N + sizes_2N / 2
        x, y = width / size[0], height / size[1]
        corners_5N = np.stack([low[1] * x, low[0] * y, high[1] * x, high[0] * y, heat[0, 0, rows, columns]])
        return suppress(corners_5N.T.astype(np.float32), 0.3)

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """boxes_N5 of faces."""
        long_side = min(max(self.large, max(frame_HWC.shape[:2])), 2 * self.large)
        return suppress(np.concatenate([self._look(frame_HWC, side) for side in (self.small, long_side)]), 0.3)
