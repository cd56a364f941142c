"""The skeleton, and the Motion that recorded, keyframed and imported actions all become.

    actions.py (recorded), keyframes.py, bvh.py  ->  Motion  ->  render/bodies.py

Joints rotate rigid segments. In the rest pose a person stands upright, arms and legs pointing down, facing -y, z up.
Legend: T frames, J joints.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ppma.synthetic.motion import rotations

ASSETS = Path(__file__).parents[1] / "assets"

SIDES = ("right", "left")
JOINTS = (
    *("root", "chest", "neck"),
    *(f"{side}_{joint}" for side in SIDES for joint in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")),
)
PARENTS = (-1, 0, 1, 0, 3, 4, 1, 6, 7, 0, 9, 10, 1, 12, 13)


@dataclass(frozen=True, kw_only=True)
class Motion:
    """One person's movement, sampled at the frames of a clip."""

    turns_TJ33: np.ndarray
    """World rotation of each joint's segment from the rest pose."""
    path_T2: np.ndarray
    """Position of the root on the floor, in leg lengths."""
    clearance_T: np.ndarray
    """Height of the body's lowest point above the floor, in leg lengths; 0 on contact."""

    def turned(self, degrees: float, shift_2: np.ndarray | None = None) -> "Motion":
        """Return the same movement rotated about the vertical, and shifted by `shift_2` leg lengths."""
        turn = rotations.from_euler("Z", degrees)
        path = self.path_T2 @ turn[:2, :2].T
        return replace(self, turns_TJ33=turn @ self.turns_TJ33, path_T2=path if shift_2 is None else path + shift_2)

    def mirrored(self) -> "Motion":
        """Return the movement with left and right exchanged."""
        swap = [JOINTS.index(other_side(name)) for name in JOINTS]
        flip = np.diag([-1.0, 1.0, 1.0])
        return replace(self, turns_TJ33=flip @ self.turns_TJ33[:, swap] @ flip, path_T2=self.path_T2 * [-1.0, 1.0])


def other_side(name: str) -> str:
    """Replace a name's "left" by "right" and the reverse; names of the trunk stay."""
    side, _, rest = name.partition("_")
    return f"{SIDES[1 - SIDES.index(side)]}_{rest}" if side in SIDES else name
