"""Procedural textures: floors, walls, and the view outdoors.

A pattern is a number in [0, 1] per texel that blends two colors. A texture is a pyramid of coarser and coarser levels,
so that distant surfaces do not flicker.
"""

from collections.abc import Callable

import cv2
import numpy as np

from ppma.synthetic.render.outfit import sample_color
from ppma.synthetic.render.raster import TEXTURE_SIDE
from ppma.synthetic.splits import Split

LEVELS = 5
MUTED = 0.5
"""Largest saturation of floors and walls, so that people stand out."""
_ROW, _COLUMN = np.mgrid[0:TEXTURE_SIDE, 0:TEXTURE_SIDE].astype(np.float32) / TEXTURE_SIDE
Pattern = Callable[[np.random.Generator], np.ndarray]


def noise(rng: np.random.Generator, cells: int, shape: tuple[int, int] = (TEXTURE_SIDE, TEXTURE_SIDE)) -> np.ndarray:
    """Return smooth noise in about [0, 1] that tiles in both directions, with features of 1 / cells of the width."""
    grid = rng.random((cells, cells), dtype=np.float32)
    padded = (shape[1] * (cells + 4) // cells, shape[0] * (cells + 4) // cells)
    large = cv2.resize(np.pad(grid, 2, mode="wrap"), padded, interpolation=cv2.INTER_CUBIC)
    top, left = 2 * shape[0] // cells, 2 * shape[1] // cells
    return large[top : top + shape[0], left : left + shape[1]]


def fractal(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Return noise summed over three scales."""
    return 0.5 * noise(rng, cells) + 0.3 * noise(rng, 4 * cells) + 0.2 * noise(rng, 16 * cells)


def _cells(rng: np.random.Generator, rows: int, columns: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a random tone per cell of a grid, and the distance to the cell's edge in texture widths."""
    row = _ROW * rows
    column = _COLUMN * columns + shift * (row.astype(int) % 2)
    tones = rng.random((rows, columns), dtype=np.float32)[row.astype(int), column.astype(int) % columns]
    inside_row, inside_column = np.abs(row % 1 - 0.5), np.abs(column % 1 - 0.5)
    return tones, np.minimum((0.5 - inside_row) / rows, (0.5 - inside_column) / columns)


def _joints(distance: np.ndarray, width: float = 0.008) -> np.ndarray:
    return (distance > width).astype(np.float32)


def _planks(rng: np.random.Generator) -> np.ndarray:
    tones, edge = _cells(rng, int(rng.integers(4, 9)), 2, 0.5)
    return (0.3 + 0.5 * tones + 0.2 * noise(rng, 8)) * _joints(edge, 0.004)


def _tiles(rng: np.random.Generator) -> np.ndarray:
    count = int(rng.integers(3, 7))
    tones, edge = _cells(rng, count, count)
    return (0.75 + 0.25 * tones) * _joints(edge)


def _carpet(rng: np.random.Generator) -> np.ndarray:
    return 0.6 * fractal(rng, 4) + 0.4 * rng.random((TEXTURE_SIDE, TEXTURE_SIDE), dtype=np.float32)


def _clouds(rng: np.random.Generator) -> np.ndarray:
    return fractal(rng, 4)


def _bars(rng: np.random.Generator) -> np.ndarray:
    return (_COLUMN * int(rng.integers(3, 12)) % 1 < rng.uniform(0.3, 0.7)).astype(np.float32)


def _bricks(rng: np.random.Generator) -> np.ndarray:
    rows = 2 * int(rng.integers(3, 8))
    tones, edge = _cells(rng, rows, rows // 2, 0.5)
    return (0.45 + 0.55 * tones) * _joints(edge)


def _checks(rng: np.random.Generator) -> np.ndarray:
    count = 2 * int(rng.integers(2, 5))
    return ((_ROW * count).astype(int) + (_COLUMN * count).astype(int)) % 2 + 0.15 * noise(rng, 8)


def _marble(rng: np.random.Generator) -> np.ndarray:
    return np.abs(np.sin(2 * np.pi * (_ROW + _COLUMN + 0.8 * fractal(rng, 3))))


def _gravel(rng: np.random.Generator) -> np.ndarray:
    return 0.5 * (noise(rng, 64) > 0.5) + 0.5 * fractal(rng, 8)


def _dots(rng: np.random.Generator) -> np.ndarray:
    count = int(rng.integers(4, 10))
    radius = np.hypot(_ROW * count % 1 - 0.5, _COLUMN * count % 1 - 0.5)
    return (radius < rng.uniform(0.15, 0.35)).astype(np.float32)


PATTERNS: dict[Split, tuple[Pattern, ...]] = {
    "train": (_planks, _tiles, _carpet, _clouds, _bars),
    "test": (_bricks, _checks, _marble, _gravel, _dots),
}
"""The splits share no pattern."""


def _pyramid(texture: np.ndarray) -> np.ndarray:
    """Return levels (L, side, side, 3) float32; level l fills the top left corner, side / 2^l wide."""
    levels = np.zeros((LEVELS, TEXTURE_SIDE, TEXTURE_SIDE, 3), np.float32)
    for level in range(LEVELS):
        side = TEXTURE_SIDE >> level
        levels[level, :side, :side] = texture
        texture = cv2.resize(texture, (side // 2, side // 2), interpolation=cv2.INTER_AREA)
    return levels


def surface(rng: np.random.Generator, split: Split, bright: tuple[float, float]) -> np.ndarray:
    """Sample a texture pyramid of the split, with values (brightness) in the range `bright`."""
    patterns = PATTERNS[split]
    share = np.clip(patterns[rng.integers(len(patterns))](rng), 0, 1).astype(np.float32)[..., None]
    muted = (rng, split, bright, MUTED)
    base = sample_color(*muted)
    other = base * (0.5 + 0.4 * rng.random(3, dtype=np.float32)) if rng.random() < 0.7 else sample_color(*muted)
    return _pyramid(base * share + other * (1 - share))


def outlook(
    rng: np.random.Generator, split: Split, rows: int = 128, columns: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Sample the view outdoors: sky, clouds, and one to three skylines of houses or hills.

    Returns:
        The panorama (rows, columns, 3), from 45 degrees up to the horizon, and the color of its haze.
    """
    up = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None]
    sky = (np.array([110, 160, 220]) * rng.uniform(0.6, 1.1) + rng.uniform(-20, 20, 3)).astype(np.float32)
    haze = 0.5 * sky + np.float32(0.5 * rng.uniform(170, 235))
    view = sky * up + haze * (1 - up)
    cover = np.clip(noise(rng, 6, (rows, columns)) * 2 - np.float32(rng.uniform(0.6, 1.4)), 0, 1)[..., None]
    view = view * (1 - 0.7 * cover) + 235 * 0.7 * cover
    for layer in range(int(rng.integers(1, 4))):
        blocks = int(rng.integers(12, 50))
        heights = rng.uniform(0.05, 0.35, blocks) * (0.5**layer)
        houses = rng.random() < 0.5
        skyline = (
            np.repeat(heights, columns // blocks + 1)[:columns] if houses else _hills(rng, columns) * heights.max()
        )
        below = up[:, :, 0] < skyline[None, :]
        color = sample_color(rng, split, (0.2, 0.6)) * (0.7 + 0.3 * noise(rng, 32, (rows, columns)))[..., None]
        view = np.where(below[..., None], color * 0.75 + haze * 0.25, view)
    return np.clip(view, 0, 255).astype(np.float32), haze


def _hills(rng: np.random.Generator, columns: int) -> np.ndarray:
    around = np.linspace(0, 2 * np.pi, columns)
    waves = [rng.random() / n * np.sin(n * around + rng.uniform(0, 6.28)) for n in range(1, 16)]
    return np.clip(0.5 + 0.4 * np.sum(waves, 0), 0.1, 1)
