"""Rotations that scipy lacks; quaternions are (w, x, y, z), matrices multiply column vectors, z points up.

Legend: T frames, 4 quaternion, 33 rotation matrix; `...` stands for any leading axes.
"""

import numpy as np
from scipy.spatial.transform import Rotation


def unit(values: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1 along the last axis."""
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def from_quaternion(quaternion_T4: np.ndarray) -> np.ndarray:
    """Return the rotation matrices (T, 3, 3) of quaternions (T, 4)."""
    return Rotation.from_quat(quaternion_T4, scalar_first=True).as_matrix()


def from_euler(axes: str, degrees: np.ndarray | float) -> np.ndarray:
    """Return the rotation matrices of Euler angles.

    Args:
        axes: One to three of "X", "Y", "Z", in the order in which they are multiplied (intrinsic rotations).
        degrees: Angles, (T, number of axes), or a scalar for a single rotation about one axis.

    Returns:
        Matrices (T, 3, 3), or (3, 3) for a scalar.
    """
    return Rotation.from_euler(axes, degrees, degrees=True).as_matrix()


def nlerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Interpolate quaternions linearly along the shorter arc, `share` of the way from a to b, and normalize them."""
    sign = np.where((a * b).sum(-1, keepdims=True) < 0, -1.0, 1.0)
    return unit(a * (1 - share) + sign * b * share)


def between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the smallest rotations (..., 3, 3) that turn unit vectors `start` to `end`, which must not be opposite."""
    x, y, z = np.moveaxis(np.cross(start, end), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    cosine = (start * end).sum(-1)[..., None, None]
    return np.eye(3) + cross + cross @ cross / (1 + np.maximum(cosine, -0.999))


def mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Interpolate rotation matrices, `share` of the way from a to b, and make them orthonormal again."""
    mixed = (1 - share) * a + share * b
    x = unit(mixed[..., :, 0])
    y = mixed[..., :, 1]
    y = unit(y - (x * y).sum(-1, keepdims=True) * x)
    return np.stack([x, y, np.cross(x, y)], -1)
