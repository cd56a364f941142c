"""Turns in space for motions: quaternions are (w, x, y, z), matrices act on column vectors, the world is z up.

legend: T frames, J joints, 4 quaternion, 33 matrix
"""

import numpy as np


def unit(values: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The turn b followed by the turn a, as quaternions (..., 4)."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def blend(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Quaternions `share` of the short way from a to b (normalised linear blending)."""
    same_side = np.where((a * b).sum(-1, keepdims=True) < 0, -1.0, 1.0)
    return unit(a * (1 - share) + same_side * b * share)


def to_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) of quaternions (..., 4)."""
    w, x, y, z = np.moveaxis(unit(quaternion), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def about(axis: str, degrees: np.ndarray | float) -> np.ndarray:
    """Matrices (..., 3, 3) that turn counter-clockwise about "x", "y" or "z"."""
    angle = np.deg2rad(np.asarray(degrees, float))
    c, s = np.cos(angle), np.sin(angle)
    zero, one = np.zeros_like(c), np.ones_like(c)
    rows = {
        "x": [[one, zero, zero], [zero, c, -s], [zero, s, c]],
        "y": [[c, zero, s], [zero, one, zero], [-s, zero, c]],
        "z": [[c, -s, zero], [s, c, zero], [zero, zero, one]],
    }[axis]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The smallest turns (..., 3, 3) that take the unit vectors `start` to `end`; they must not be opposite."""
    x, y, z = np.moveaxis(np.cross(start, end), -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    cross = np.stack([np.stack(row, -1) for row in rows], -2)
    cosine = (start * end).sum(-1)[..., None, None]
    return np.eye(3) + cross + cross @ cross / (1 + np.maximum(cosine, -0.999))


def mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Matrices `share` of the way from a to b: blended and made orthonormal again."""
    mixed = (1 - share) * a + share * b
    x = unit(mixed[..., :, 0])
    y = mixed[..., :, 1]
    y = unit(y - (x * y).sum(-1, keepdims=True) * x)
    return np.stack([x, y, np.cross(x, y)], -1)
