# mypy: disable-error-code="no-untyped-def"
"""What stands behind everything: the camera's rays against floor and walls of a room, or against the ground and a panorama outdoors.

    eye, axes, room, textures  ->  cast()  ->  color of every sample, and which samples are floor

Compiled by numba like raster.py. Legend: S samples along a side; colors are RGB, 0 to 255, float32; meters, z up.
"""

import numba
import numpy as np

from ppma.synthetic.render.raster import BEYOND, FAR, FLOOR

TEXTURE_SIDE = 256
"""Texels along a side of a texture's finest level."""
OUTDOORS = 1e4
"""Where the walls of the open are, meters."""
FOG_METERS = 60.0
CORNER_METERS = 0.35
"""How far into a room its corners darken."""


@numba.njit(cache=True)
def _reach(low, high, eye, direction):
    """How far along a ray the slab from low to high is left, one axis."""
    if direction > 0:
        return (high - eye) / direction
    if direction < 0:
        return (low - eye) / direction
    return np.float32(FAR)


@numba.njit(cache=True)
def _fill(pyramid, u, v, footprint, light):
    """A texture's color at (u, v) in tiles, from the level whose texels are about `footprint` tiles wide, times light."""
    level = 0
    width = footprint * TEXTURE_SIDE
    while width > 1.5 and level < pyramid.shape[0] - 1:
        width *= 0.5
        level += 1
    side = TEXTURE_SIDE >> level
    column = int((u - np.floor(u)) * side) & (side - 1)
    row = int((v - np.floor(v)) * side) & (side - 1)
    return (
        pyramid[level, row, column, 0] * light,
        pyramid[level, row, column, 1] * light,
        pyramid[level, row, column, 2] * light,
    )


@numba.njit(cache=True)
def _dim(low_a, high_a, a, low_b, high_b, b):
    """Light that reaches a point (a, b) of a room's surface that spans low to high: less near its edges."""
    nearest = min(min(a - low_a, high_a - a), min(b - low_b, high_b - b))
    if nearest > np.float32(5 * CORNER_METERS):
        return np.float32(1.0)
    return np.float32(1.0) - np.float32(0.35) * np.exp(-nearest / np.float32(CORNER_METERS))


@numba.njit(cache=True)
def _look_out(panorama, dx, dy, dz):
    """The panorama in a direction: horizon at its last row, 45 degrees up at the first."""
    rows, columns = panorama.shape[0], panorama.shape[1]
    slope = dz / np.sqrt(dx * dx + dy * dy)
    row = min(rows - 1, max(0, int((np.float32(1.0) - slope) * rows)))
    column = int((np.arctan2(dy, dx) / np.float32(2 * np.pi) + np.float32(0.5)) * columns) % columns
    return panorama[row, column, 0], panorama[row, column, 1], panorama[row, column, 2]


@numba.njit(cache=True)
def _fade(color, haze_3, distance):
    """Haze over far ground."""
    clear = np.exp(-distance / np.float32(FOG_METERS))
    fog = np.float32(1.0) - clear
    return clear * color[0] + fog * haze_3[0], clear * color[1] + fog * haze_3[1], clear * color[2] + fog * haze_3[2]


@numba.njit(cache=True, inline="always")  # handing over a dozen arrays at every sample would take half the time
def _ray(eye_3, dx, dy, dz, focal, room_23, floor, wall, panorama, tile, light_5, haze_3):
    """Layer and color of one sample."""
    x0, y0, z0 = room_23[0, 0], room_23[0, 1], room_23[0, 2]
    x1, y1, z1 = room_23[1, 0], room_23[1, 1], room_23[1, 2]
    tx, ty, tz = _reach(x0, x1, eye_3[0], dx), _reach(y0, y1, eye_3[1], dy), _reach(z0, z1, eye_3[2], dz)
    t = min(min(tx, ty), tz)
    x, y, z = eye_3[0] + t * dx, eye_3[1] + t * dy, eye_3[2] + t * dz
    footprint = t / (focal * tile)
    if dz < 0 and t == tz:
        slanted = np.float32(0.6) * footprint / max(np.float32(0.08), -dz)
        ground = _fill(floor, x / tile, y / tile, slanted, light_5[4] * _dim(x0, x1, x, y0, y1, y))
        return FLOOR, _fade(ground, haze_3, t) if z1 >= OUTDOORS else ground
    if z1 >= OUTDOORS:
        return BEYOND, _look_out(panorama, dx, dy, dz)
    if t == tz:
        edge = _dim(x0, x1, x, y0, y1, y)
        return BEYOND, (haze_3[0] * edge, haze_3[1] * edge, haze_3[2] * edge)
    if t == tx:
        light = light_5[0 if dx > 0 else 1] * _dim(y0, y1, y, z0, z1, z)
        return BEYOND, _fill(wall, y / tile, z / tile, footprint, light)
    light = light_5[2 if dy > 0 else 3] * _dim(x0, x1, x, z0, z1, z)
    return BEYOND, _fill(wall, x / tile, z / tile, footprint, light)


@numba.njit(cache=True)
def cast(eye_3, axes_33, focal, room_23, floor, wall, panorama, tile, light_5, haze_3, color_SS3, layer_SS):
    """Fill the picture. `room_23`: lower and upper corner, OUTDOORS for the open; `tile`: meters a texture covers;
    `light_5`: on the walls at +x, -x, +y, -y and on the floor; `haze_3`: color of far ground, or of a room's ceiling."""
    side = layer_SS.shape[0]
    for row in range(side):
        for column in range(side):
            sx, sy = np.float32(column + 0.5 - side * 0.5) / focal, np.float32(row + 0.5 - side * 0.5) / focal
            dx = axes_33[0, 0] * sx + axes_33[1, 0] * sy + axes_33[2, 0]
            dy = axes_33[0, 1] * sx + axes_33[1, 1] * sy + axes_33[2, 1]
            dz = axes_33[0, 2] * sx + axes_33[1, 2] * sy + axes_33[2, 2]
            layer_SS[row, column], color = _ray(
                eye_3, dx, dy, dz, focal, room_23, floor, wall, panorama, tile, light_5, haze_3
            )
            for k in range(3):
                color_SS3[row, column, k] = color[k]
