"""Looks at a picture: all of it, and overlapping parts of it, in which small people are found.

    frame_HWC  ->  tile_batch(): batch_BhwC, the parts scaled to one size, and where each lies  ->  network  ->  gather(): boxes

Legend: H height, W width of a picture in pixels, h and w of a network's input, N boxes, B parts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import NONE_05, suppress

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


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of the picture in a network's input: where it lies and how much it was enlarged."""

    x: int
    y: int
    scale: float

    def back(self, boxes_N5: np.ndarray) -> np.ndarray:
        """Boxes in the network's input as boxes in the picture."""
        corners_N4 = boxes_N5[:, :4] / self.scale + np.array([self.x, self.y, self.x, self.y])
        return np.hstack([corners_N4, boxes_N5[:, 4:]]).astype(np.float32)


def tile_batch(frame_HWC: np.ndarray, side: int, multiple: int = 32) -> tuple[np.ndarray, list[Tile]]:
    """(batch_BhwC uint8, where each lies): the whole picture and its tiles, each scaled into the picture's proportions with grey beside it.

    `side`: long side of a look, whose sides are multiples of `multiple`. No tiles of a picture that is enlarged MOST_ENLARGED times as a
    whole: more shows nothing more.
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
    """boxes_N5 in the picture, of those found in each look; overlapping ones once."""
    boxes = [place.back(boxes_N5) for place, boxes_N5 in zip(places, found) if len(boxes_N5)]
    return suppress(np.concatenate(boxes), overlap) if boxes else NONE_05
