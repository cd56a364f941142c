# mypy: disable-error-code="no-untyped-def"
"""The drawing itself, compiled by numba: world to pixels, one thread, no GL and no GPU.

    project()  vertices                                           -> screen points
    paint()    lit triangles through a z-buffer                   -> color, layer (whose pixel it is)
    cover()    triangles flattened on the floor along the light   -> shadow
    settle()   four samples to one pixel, shadow laid on the floor -> uint8 frame, mask of people

Legend: S samples along a side (twice the pixels), P pixels along a side, V vertices, F triangles. Colors are RGB, 0 to 255, float32.
No fastmath: a clip must come out the same wherever it is drawn.
"""

import numba
import numpy as np

SUPERSAMPLE = 2
BEYOND, FLOOR, THING, PERSON = 0, 1, 2, 3
"""Layers: sky and walls, floor (it takes shadows), furniture, people."""
NEAR = 0.1
"""Metres before the eye inside which triangles are not drawn."""
FAR = 1e6


@numba.njit(cache=True)
def project(vertices_V3, eye_3, axes_33, focal, center, out_V3):
    """Screen x, y and depth of each vertex; focal and center in samples."""
    for v in range(vertices_V3.shape[0]):
        x, y, z = vertices_V3[v, 0] - eye_3[0], vertices_V3[v, 1] - eye_3[1], vertices_V3[v, 2] - eye_3[2]
        depth = axes_33[2, 0] * x + axes_33[2, 1] * y + axes_33[2, 2] * z
        scale = focal / max(depth, np.float32(NEAR))
        out_V3[v, 0] = (axes_33[0, 0] * x + axes_33[0, 1] * y + axes_33[0, 2] * z) * scale + center
        out_V3[v, 1] = (axes_33[1, 0] * x + axes_33[1, 1] * y + axes_33[1, 2] * z) * scale + center
        out_V3[v, 2] = depth


@numba.njit(cache=True)
def light_up(vertices_V3, faces_F3, light_3, ambient_3, direct_3, out_V3):
    """Light on each vertex, RGB factors: a sky that fades towards the ground, and one sun."""
    normals = np.zeros((vertices_V3.shape[0], 3), np.float32)
    for f in range(faces_F3.shape[0]):
        a, b, c = faces_F3[f, 0], faces_F3[f, 1], faces_F3[f, 2]
        ux, uy, uz = (
            vertices_V3[b, 0] - vertices_V3[a, 0],
            vertices_V3[b, 1] - vertices_V3[a, 1],
            vertices_V3[b, 2] - vertices_V3[a, 2],
        )
        vx, vy, vz = (
            vertices_V3[c, 0] - vertices_V3[a, 0],
            vertices_V3[c, 1] - vertices_V3[a, 1],
            vertices_V3[c, 2] - vertices_V3[a, 2],
        )
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
def paint(screen_V3, faces_F3, albedo_V3, light_V3, layer, color_SS3, depth_SS, layer_SS):
    """Draw the triangles that face the eye, nearest first by z-buffer; color and light are blended across each."""
    side = depth_SS.shape[0]
    for f in range(faces_F3.shape[0]):
        a, b, c = faces_F3[f, 0], faces_F3[f, 1], faces_F3[f, 2]
        za, zb, zc = screen_V3[a, 2], screen_V3[b, 2], screen_V3[c, 2]
        if min(za, zb, zc) < NEAR:
            continue
        xa, ya, xb, yb, xc, yc = (
            screen_V3[a, 0],
            screen_V3[a, 1],
            screen_V3[b, 0],
            screen_V3[b, 1],
            screen_V3[c, 0],
            screen_V3[c, 1],
        )
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area >= 0:  # seen from behind (y points down)
            continue
        left, right = max(0, int(np.ceil(min(xa, xb, xc) - 0.5))), min(side - 1, int(np.floor(max(xa, xb, xc) - 0.5)))
        top, bottom = max(0, int(np.ceil(min(ya, yb, yc) - 0.5))), min(side - 1, int(np.floor(max(ya, yb, yc) - 0.5)))
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
                    paint = wa * albedo_V3[a, k] + wb * albedo_V3[b, k] + wc * albedo_V3[c, k]
                    light = wa * light_V3[a, k] + wb * light_V3[b, k] + wc * light_V3[c, k]
                    color_SS3[y, x, k] = paint * light


@numba.njit(cache=True)
def cover(screen_V3, faces_F3, shadow_PP):
    """Set to 1 every pixel whose center lies in a triangle (either way round)."""
    side = shadow_PP.shape[0]
    for f in range(faces_F3.shape[0]):
        a, b, c = faces_F3[f, 0], faces_F3[f, 1], faces_F3[f, 2]
        if min(screen_V3[a, 2], screen_V3[b, 2], screen_V3[c, 2]) < NEAR:
            continue
        xa, ya, xb, yb, xc, yc = (
            screen_V3[a, 0],
            screen_V3[a, 1],
            screen_V3[b, 0],
            screen_V3[b, 1],
            screen_V3[c, 0],
            screen_V3[c, 1],
        )
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area == 0:
            continue
        left, right = max(0, int(np.ceil(min(xa, xb, xc) - 0.5))), min(side - 1, int(np.floor(max(xa, xb, xc) - 0.5)))
        top, bottom = max(0, int(np.ceil(min(ya, yb, yc) - 0.5))), min(side - 1, int(np.floor(max(ya, yb, yc) - 0.5)))
        for y in range(top, bottom + 1):
            py = np.float32(y + 0.5)
            for x in range(left, right + 1):
                px = np.float32(x + 0.5)
                wa = ((xb - px) * (yc - py) - (xc - px) * (yb - py)) / area
                wb = ((xc - px) * (ya - py) - (xa - px) * (yc - py)) / area
                if wa >= 0 and wb >= 0 and wa + wb <= 1:
                    shadow_PP[y, x] = 1.0


@numba.njit(cache=True)
def settle(color_SS3, layer_SS, shadow_PP, darkness, frame_PP3, mask_PP):
    """Average samples to pixels with shadow on the floor; a pixel is a person's as soon as one of its samples is."""
    for y in range(frame_PP3.shape[0]):
        for x in range(frame_PP3.shape[1]):
            dimmed = np.float32(1.0) - darkness * shadow_PP[y, x]
            red, green, blue = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            person = False
            for j in range(2 * y, 2 * y + 2):
                for i in range(2 * x, 2 * x + 2):
                    factor = dimmed if layer_SS[j, i] == FLOOR else np.float32(1.0)
                    red += min(color_SS3[j, i, 0] * factor, np.float32(255.0))
                    green += min(color_SS3[j, i, 1] * factor, np.float32(255.0))
                    blue += min(color_SS3[j, i, 2] * factor, np.float32(255.0))
                    person |= layer_SS[j, i] == PERSON
            frame_PP3[y, x, 0] = np.uint8(red * np.float32(0.25) + np.float32(0.5))
            frame_PP3[y, x, 1] = np.uint8(green * np.float32(0.25) + np.float32(0.5))
            frame_PP3[y, x, 2] = np.uint8(blue * np.float32(0.25) + np.float32(0.5))
            mask_PP[y, x] = person
