"""Cut a frame into overlapping tiles, in which detectors find small people.

    frames  ->  detect_frames(): on a GPU all in one call of the network, on a CPU one by one
    frame_HWC  ->  tile_batch(): the frame and its tiles at one size  ->  network  ->  gather(): boxes in the frame

Legend: H height, W width of a frame in pixels, h and w of a network's input, N boxes, B tiles.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import NONE_05, suppress
from ppma.privacy.detectors.runtime import on_gpu
from ppma.privacy.detectors.tools import Detector

TILE_SHARE = 0.6
"""Side of a tile as a share of the frame's: tiles overlap by more than the width of the people who need them."""
TILE_PIXELS = 480
"""Long side of a tile up to which small people are found in it; larger frames get more tiles."""
MOST_ENLARGED = 2.0
"""Largest enlargement of a frame for a network: more shows nothing more."""


def tiles(frame_HWC: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield overlapping tiles of a frame with their x and y: 2 x 2 of them up to 800 pixels, more above."""
    height, width = frame_HWC.shape[:2]
    count = max(2, math.ceil(max(height, width) * TILE_SHARE * 2 / TILE_PIXELS))
    h, w = (math.ceil(side * 2 * TILE_SHARE / count) for side in (height, width))
    for y in np.linspace(0, height - h, count).astype(int).tolist():
        for x in np.linspace(0, width - w, count).astype(int).tolist():
            yield np.ascontiguousarray(frame_HWC[y : y + h, x : x + w]), x, y


def network_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Return (width, height) of a network's input in the frame's proportions, both multiples of 32."""
    scale = min(long_side / max(height, width), MOST_ENLARGED)
    return max(32, round(width * scale / 32) * 32), max(32, round(height * scale / 32) * 32)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The position of a tile in the frame and its enlargement in the network's input."""

    x: int
    y: int
    scale: float

    def back(self, boxes_N5: np.ndarray) -> np.ndarray:
        """Convert boxes from the network's input to the frame."""
        corners_N4 = boxes_N5[:, :4] / self.scale + np.array([self.x, self.y, self.x, self.y])
        return np.hstack([corners_N4, boxes_N5[:, 4:]]).astype(np.float32)


def tile_batch(frame_HWC: np.ndarray, side: int, multiple: int = 32) -> tuple[np.ndarray, list[Tile]]:
    """Scale a frame and its tiles to one size, in the frame's proportions with gray padding.

    There are no tiles if the whole frame is already enlarged MOST_ENLARGED times.

    Args:
        frame_HWC: uint8 RGB.
        side: Long side of the network's input.
        multiple: Both sides of the input are multiples of it.

    Returns:
        batch_BhwC (uint8), and the position of each tile.
    """
    parts, places = [], []
    sides_2 = np.array(frame_HWC.shape[:2])
    h, w = (max(multiple, round(n * side / sides_2.max() / multiple) * multiple) for n in sides_2.tolist())
    enough = side >= MOST_ENLARGED * sides_2.max()
    for part_HWC, x, y in [(frame_HWC, 0, 0), *(() if enough else tiles(frame_HWC))]:
        height, width = part_HWC.shape[:2]
        scale = min(h / height, w / width)
        tile_hwC = np.full((h, w, 3), 114, np.uint8)
        rows, columns = (min(n, max(1, round(s * scale))) for n, s in ((h, height), (w, width)))
        smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        tile_hwC[:rows, :columns] = cv2.resize(part_HWC, (columns, rows), interpolation=smooth)
        parts.append(tile_hwC)
        places.append(Tile(x=x, y=y, scale=scale))
    return np.stack(parts), places


def gather(places: Sequence[Tile], found: Sequence[np.ndarray], overlap: float = 0.5) -> np.ndarray:
    """Return boxes_N5 in the frame from those found in each tile; of boxes that overlap by `overlap`, the best one."""
    boxes = [place.back(boxes_N5) for place, boxes_N5 in zip(places, found) if len(boxes_N5)]
    return suppress(np.concatenate(boxes), overlap) if boxes else NONE_05


class TileDetector:
    """Detects in a frame and its tiles."""

    side: int
    multiple, overlap = 32, 0.5
    """Arguments of tile_batch() and of gather()."""

    def in_tiles(self, tiles_BhwC: np.ndarray) -> Iterable[np.ndarray]:
        """Return boxes_N5 in each tile of a batch, in pixels of the tile."""
        raise NotImplementedError

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return boxes_N5 in each of these frames of one size."""
        batches = [tile_batch(frame_HWC, self.side, self.multiple) for frame_HWC in frames]
        tiles_BhwC = batches[0][0] if len(batches) == 1 else np.concatenate([tiles for tiles, _ in batches])  # no copy
        found = iter(self.in_tiles(tiles_BhwC))
        return [gather(places, list(islice(found, len(places))), self.overlap) for _, places in batches]

    def __call__(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return boxes_N5 in a frame."""
        return self.detect([frame_HWC])[0]


def detect_frames(detectors: Mapping[str, Detector], frames: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the boxes_N5 of each detector in each of these frames of one size.

    On a GPU the frames are one batch of a network. On a CPU larger batches are not faster, and need more memory.
    """
    found = {
        name: detect.detect(frames)
        if isinstance(detect, TileDetector) and on_gpu()
        else [detect(frame_HWC) for frame_HWC in frames]
        for name, detect in detectors.items()
    }
    return [{name: boxes[i] for name, boxes in found.items()} for i in range(len(frames))]
