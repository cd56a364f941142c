"""MoveNet MultiPose, the remover's detector of people by their joints: it finds small ones and unusual poses.

    frame_HWC (RGB uint8)  ->  the frame and its tiles  ->  maps of centers, sizes, offsets  ->  boxes_N5

Legend: N boxes, h and w of a tile or of a map.
"""

from pathlib import Path

import cv2
import numpy as np

from ppma.privacy.detectors.tfjs import Graph
from ppma.privacy.detectors.tiles import TileDetector


class MoveNet(TileDetector):
    """MoveNet MultiPose Lightning (Google, 2021) on COCO and Active: predicts a heat map of people's centers, and
    sizes.

    A frame of 340 x 256 pixels takes about 0.32 s of one core.
    """

    side, stride = 320, 4
    _outputs = ("Sigmoid", "box_scale_0/conv2d_5/BiasAdd", "box_offset_0/conv2d_6/BiasAdd")
    _peak = np.ones((5, 5), np.uint8)
    """Neighborhood in grid cells in which a center is the maximum."""

    def __init__(self, files: dict[str, Path], threshold: float = 0.3) -> None:
        """Load `files["movenet.json"]` and `files["movenet.bin"]`."""
        self.threshold = threshold
        names = [f"StatefulPartitionedCall/{name}" for name in self._outputs]
        self._graph = Graph(files["movenet.json"], [files["movenet.bin"]], names)

    def in_tiles(self, tiles_BhwC: np.ndarray) -> list[np.ndarray]:
        """Return boxes_N5 of people in each tile."""
        heat_Bhw1, sizes_Bhw2, shifts_Bhw2 = self._graph(tiles_BhwC.astype(np.float32))
        return [self._boxes(*maps) for maps in zip(heat_Bhw1[..., 0], sizes_Bhw2, shifts_Bhw2)]

    def _boxes(self, heat_hw: np.ndarray, sizes_hw2: np.ndarray, shifts_hw2: np.ndarray) -> np.ndarray:
        peaks = (heat_hw >= self.threshold) & (heat_hw == cv2.dilate(heat_hw, self._peak))
        rows, columns = np.nonzero(peaks)
        height, width = np.maximum(sizes_hw2[rows, columns], 0).T
        y, x = (shifts_hw2[rows, columns] + np.stack([rows, columns], 1)).T
        corners_4N = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2]) * self.stride
        return np.vstack([corners_4N, heat_hw[rows, columns]]).T
