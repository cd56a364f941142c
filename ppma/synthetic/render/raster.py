# mypy: disable-error-code="no-untyped-def"
"""The renderer's inner loops, compiled by numba: one thread, no OpenGL, no GPU.

    cast()     camera rays against room or open ground              -> color and layer of every sample
    project()  vertices                                             -> screen points
    light_up() vertices, sun, sky                                   -> light on every vertex
    paint()    lit triangles through a z-buffer                     -> color, layer
    cover()    triangles flattened on the floor along the light     -> shadow
    resolve()  four samples to one pixel, shadow laid on the floor  -> uint8 frame, mask of people

Legend: S samples along a side (twice the pixels), P pixels along a side, V vertices, F triangles. Colors are RGB,
0 to 255, float32; lengths are meters, z up. No fastmath: a clip must be identical on every machine.
"""

import numba
import numpy as np

SUPERSAMPLE = 2
BEYOND, FLOOR, THING, PERSON = 0, 1, 2, 3
"""Layers: sky and walls, floor (it receives shadows), furniture, people (person n is on PERSON + n)."""
NEAR = 0.1
"""Meters in front of the eye within which triangles are not drawn."""
FAR = 1e6
TEXTURE_SIDE = 256
"""Texels along a side of a texture's finest level."""
OUTDOORS = 1e4
"""Distance of the walls outdoors."""
FOG_METERS = 60.0
CORNER_METERS = 0.35
"""How far from its edges a room's surface is darker."""


@numba.njit(cache=True)
def project(vertices_V3, eye_3, axes_33, focal, center, out_V3):
    """Write screen x, y and depth of each vertex to out_V3; focal length and center in samples."""
    for v in range(vertices_V3.shape[0]):
        x, y, z = vertices_V3[v, 0] - eye_3[0], vertices_V3[v, 1] - eye_3[1], vertices_V3[v, 2] - eye_3[2]
        depth = axes_33[2, 0] * x + axes_33[2, 1] * y + axes_33[2, 2] * z
        scale = focal / max(depth, np.float32(NEAR))
        out_V3[v, 0] = (axes_33[0, 0] * x + axes_33[0, 1] * y + axes_33[0, 2] * z) * scale + center
        out_V3[v, 1] = (axes_33[1, 0] * x + axes_33[1, 1] * y + axes_33[1, 2] * z) * scale + center
        out_V3[v, 2] = depth


@numba.njit(cache=True)
def _edge(vertices_V3, a, b):
    """Return the vector from vertex a to vertex b."""
    return (
        vertices_V3[b, 0] - vertices_V3[a, 0],
        vertices_V3[b, 1] - vertices_V3[a, 1],
        vertices_V3[b, 2] - vertices_V3[a, 2],
    )


@numba.njit(cache=True)
def light_up(vertices_V3, faces_F3, light_3, ambient_3, direct_3, out_V3):
    """Write RGB light factors of each vertex to out_V3: a sky that fades toward the ground, and one sun at light_3."""
    normals = np.zeros((vertices_V3.shape[0], 3), np.float32)
    for f in range(faces_F3.shape[0]):
        a, b, c = faces_F3[f, 0], faces_F3[f, 1], faces_F3[f, 2]
        ux, uy, uz = _edge(vertices_V3, a, b)
        vx, vy, vz = _edge(vertices_V3, a, c)
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            normals[i, 0] += nx
            normals[i, 1] += ny
            normals[i, 2] += nz
    for i in range(vertices_V3.shape[0]):
        nx, ny, nz = normals[i, 0], normals[i, 1], normals[i, 2]
        length = np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-12)
        sun = max(np.float32(0.0), (nx * light_3[0] + ny * light_3[1] + nz * light_3[2]) / length)
        sky = np.float32(0.75) + np.float32(0.25) * nz / length
        for k in range(3):
            out_V3[i, k] = ambient_3[k] * sky + direct_3[k] * sun


@numba.njit(cache=True)
def _span(a, b, c, side):
    """Return the first and last sample whose center may lie within three coordinates."""
    return max(0, int(np.ceil(min(a, b, c) - 0.5))), min(side - 1, int(np.floor(max(a, b, c) - 0.5)))


@numba.njit(cache=True)
def paint(screen_V3, faces_F3, albedo_V3, light_V3, layer, color_SS3, depth_SS, layer_SS):
    """Draw the triangles that face the eye into a z-buffer; color and light are interpolated across each."""
    side = depth_SS.shape[0]
    for f in range(faces_F3.shape[0]):
        a, b, c = faces_F3[f, 0], faces_F3[f, 1], faces_F3[f, 2]
        za, zb, zc = screen_V3[a, 2], screen_V3[b, 2], screen_V3[c, 2]
        if min(za, zb, zc) < NEAR:
            continue
        xa, xb, xc = screen_V3[a, 0], screen_V3[b, 0], screen_V3[c, 0]
        ya, yb, yc = screen_V3[a, 1], screen_V3[b, 1], screen_V3[c, 1]
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area >= 0:  # seen from behind (y points down)
            continue
        left, right = _span(xa, xb, xc, side)
        top, bottom = _span(ya, yb, yc, side)
        for y in range(top, bottom + 1):
            py = np.float32(y + 0.5)
            for x in range(left, right + 1):
                px = np.float32(x + 0.5)
                wa = ((xb - px) * (yc - py) - (xc - px) * (yb - py)) / area
                wb = ((xc - px) * (ya - py) - (xa - px) * (yc - py)) / area
                wc = np.float32(1.0) - wa - wb
                if min(wa, wb, wc) < -1e-5:
                    continue
                z = np.float32(1.0) / (wa / za + wb / zb + wc / zc)
                if z >= depth_SS[y, x]:
                    continue
                depth_SS[y, x] = z
                layer_SS[y, x] = layer
                for k in range(3):
                    albedo = wa * albedo_V3[a, k] + wb * albedo_V3[b, k] + wc * albedo_V3[c, k]
                    light = wa * light_V3[a, k] + wb * light_V3[b, k] + wc * light_V3[c, k]
                    color_SS3[y, x, k] = albedo * light


@numba.njit(cache=True)
def cover(screen_V3, faces_F3, shadow_PP):
    """Set to 1 every pixel whose center is in a triangle, seen from either side."""
    side = shadow_PP.shape[0]
    for f in range(faces_F3.shape[0]):
        a, b, c = faces_F3[f, 0], faces_F3[f, 1], faces_F3[f, 2]
        if min(screen_V3[a, 2], screen_V3[b, 2], screen_V3[c, 2]) < NEAR:
            continue
        xa, xb, xc = screen_V3[a, 0], screen_V3[b, 0], screen_V3[c, 0]
        ya, yb, yc = screen_V3[a, 1], screen_V3[b, 1], screen_V3[c, 1]
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area == 0:
            continue
        left, right = _span(xa, xb, xc, side)
        top, bottom = _span(ya, yb, yc, side)
        for y in range(top, bottom + 1):
            py = np.float32(y + 0.5)
            for x in range(left, right + 1):
                px = np.float32(x + 0.5)
                wa = ((xb - px) * (yc - py) - (xc - px) * (yb - py)) / area
                wb = ((xc - px) * (ya - py) - (xa - px) * (yc - py)) / area
                if wa >= 0 and wb >= 0 and wa + wb <= 1:
                    shadow_PP[y, x] = 1.0


@numba.njit(cache=True)
def resolve(color_SS3, layer_SS, shadow_PP, darkness, frame_PP3, mask_PP):
    """Average samples to pixels with the shadow on the floor; a pixel belongs to people if one of its samples does."""
    for y, x in np.ndindex(mask_PP.shape):
        dimmed = np.float32(1.0) - darkness * shadow_PP[y, x]
        person = False
        for k in range(3):
            total = np.float32(0.0)
            for j in range(2 * y, 2 * y + 2):
                for i in range(2 * x, 2 * x + 2):
                    factor = dimmed if layer_SS[j, i] == FLOOR else np.float32(1.0)
                    total += min(color_SS3[j, i, k] * factor, np.float32(255.0))
                    person |= layer_SS[j, i] >= PERSON
            frame_PP3[y, x, k] = np.uint8(total * np.float32(0.25) + np.float32(0.5))
        mask_PP[y, x] = person


# ------------------------------------------------------------------------------------------------------ surroundings


@numba.njit(cache=True)
def _reach(low, high, eye, direction):
    """Return the distance along a ray to the far end of the slab from low to high, on one axis."""
    if direction > 0:
        return (high - eye) / direction
    if direction < 0:
        return (low - eye) / direction
    return np.float32(FAR)


@numba.njit(cache=True)
def _fill(pyramid, u, v, footprint, light):
    """Return a texture's lit color at (u, v) in tiles, from the level whose texels are about `footprint` tiles wide."""
    level = 0
    width = footprint * TEXTURE_SIDE
    while width > 1.5 and level < pyramid.shape[0] - 1:
        width *= 0.5
        level += 1
    side = TEXTURE_SIDE >> level
    column = int((u - np.floor(u)) * side) & (side - 1)
    row = int((v - np.floor(v)) * side) & (side - 1)
    texel = pyramid[level, row, column]
    return texel[0] * light, texel[1] * light, texel[2] * light


@numba.njit(cache=True)
def _dim(low_a, high_a, a, low_b, high_b, b):
    """Return the share of light at point (a, b) of a room's surface, which is darker near its edges."""
    nearest = min(min(a - low_a, high_a - a), min(b - low_b, high_b - b))
    if nearest > np.float32(5 * CORNER_METERS):
        return np.float32(1.0)
    return np.float32(1.0) - np.float32(0.35) * np.exp(-nearest / np.float32(CORNER_METERS))


@numba.njit(cache=True)
def _look_out(panorama, dx, dy, dz):
    """Return the panorama's color in a direction: its last row is the horizon, its first 45 degrees up."""
    rows, columns = panorama.shape[0], panorama.shape[1]
    slope = dz / np.sqrt(dx * dx + dy * dy)
    row = min(rows - 1, max(0, int((np.float32(1.0) - slope) * rows)))
    column = int((np.arctan2(dy, dx) / np.float32(2 * np.pi) + np.float32(0.5)) * columns) % columns
    return panorama[row, column, 0], panorama[row, column, 1], panorama[row, column, 2]


@numba.njit(cache=True)
def _fade(color, haze_3, distance):
    """Blend a color into the haze over distant ground."""
    clear = np.exp(-distance / np.float32(FOG_METERS))
    fog = np.float32(1.0) - clear
    return clear * color[0] + fog * haze_3[0], clear * color[1] + fog * haze_3[1], clear * color[2] + fog * haze_3[2]


@numba.njit(cache=True, inline="always")  # passing a dozen arrays at every sample would take half the time
def _ray(eye_3, dx, dy, dz, focal, room_23, floor, wall, panorama, tile, light_5, haze_3):
    """Return layer and color of one sample."""
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
    if t == tz:  # the ceiling
        edge = _dim(x0, x1, x, y0, y1, y)
        return BEYOND, (haze_3[0] * edge, haze_3[1] * edge, haze_3[2] * edge)
    if t == tx:
        light = light_5[0 if dx > 0 else 1] * _dim(y0, y1, y, z0, z1, z)
        return BEYOND, _fill(wall, y / tile, z / tile, footprint, light)
    light = light_5[2 if dy > 0 else 3] * _dim(x0, x1, x, z0, z1, z)
    return BEYOND, _fill(wall, x / tile, z / tile, footprint, light)


@numba.njit(cache=True)
def cast(eye_3, axes_33, focal, room_23, floor, wall, panorama, tile, light_5, haze_3, color_SS3, layer_SS):
    """Fill color_SS3 and layer_SS with the scene behind people and furniture.

    Args:
        eye_3: Position of the camera.
        axes_33: Its right, down and ahead axes.
        focal: Focal length in samples.
        room_23: Lower and upper corner; OUTDOORS where there is no wall.
        floor: Texture pyramid, (L, TEXTURE_SIDE, TEXTURE_SIDE, 3).
        wall: Texture pyramid.
        panorama: View outdoors, (rows, columns, 3).
        tile: Meters that a texture covers.
        light_5: Light on the walls at +x, -x, +y, -y and on the floor.
        haze_3: Color of distant ground, or of a room's ceiling.
        color_SS3: Output.
        layer_SS: Output.
    """
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
