"""What every source of motion hands to the bodies: a Motion, the same for captured, written and imported motions.

    captured (motions.npz), curves.py, bvh.py  ->  Motion  ->  bodies.pose

Joints turn rigid segments; at rest the person stands straight, arms and legs pointing down, facing -y, z up.
Legend: T frames, J joints.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from ppma.synthetic.motion import rotations

ASSETS = Path(__file__).parents[1] / "assets"

SIDES = ("right", "left")
JOINTS = (
    "root", "chest", "neck",
    *(f"{side}_{joint}" for side in SIDES for joint in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")),
)  # fmt: skip
PARENTS = (-1, 0, 1, 0, 3, 4, 1, 6, 7, 0, 9, 10, 1, 12, 13)
STORED_FPS = 30.0
"""Frames a second of the motions in assets/motions.npz."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """One person's movement at the frames of a clip."""

    turns_TJ33: np.ndarray
    """World turn of each joint's segment from the rest pose."""
    path_T2: np.ndarray
    """Where the root is on the floor, in leg lengths."""
    clearance_T: np.ndarray
    """Height of the body's lowest point above the floor, in leg lengths: 0 whenever something touches it."""

    def turned(self, degrees: float, shift_2: np.ndarray | None = None) -> "Motion":
        """The same movement by a person who faces elsewhere, and starts `shift_2` leg lengths away."""
        turn = rotations.about("z", degrees)
        path = self.path_T2 @ turn[:2, :2].T
        return replace(self, turns_TJ33=turn @ self.turns_TJ33, path_T2=path if shift_2 is None else path + shift_2)


def world_turns(local_TJ4: np.ndarray) -> np.ndarray:
    """World matrices (T, J, 3, 3) of joint-local quaternions (T, J, 4)."""
    world: list[np.ndarray] = []
    for joint, parent in enumerate(PARENTS):
        local = rotations.to_matrix(local_TJ4[:, joint])
        world.append(local if parent < 0 else world[parent] @ local)
    return np.stack(world, 1)


@cache
def _captured() -> dict[str, np.ndarray]:
    with np.load(ASSETS / "motions.npz") as data:
        return {name: data[name] for name in data.files}


def captured_names() -> tuple[str, ...]:
    """Classes recorded from people and baked into the assets."""
    return tuple(name.removesuffix(".turns") for name in _captured() if name.endswith(".turns"))


def play_captured(name: str, times_T: np.ndarray, rng: np.random.Generator) -> Motion:
    """A captured motion at `times_T` seconds, at a tempo, a start and a side of its own."""
    data = _captured()
    turns_TJ4, path_T3 = data[f"{name}.turns"].astype(float), data[f"{name}.path"].astype(float)
    tempo, begin, flip = rng.uniform(0.8, 1.25), rng.random(), rng.random() < 0.5
    last = len(turns_TJ4) - 1
    frame_T = times_T * tempo * STORED_FPS
    if data[f"{name}.loops"]:
        frame_T = frame_T + begin * last
        cycle_T, frame_T = np.divmod(frame_T, last)
    else:  # once, with the wait shared between before and after
        spare = max(frame_T[-1] - last, 0.0)
        cycle_T, frame_T = 0 * frame_T, np.clip(frame_T - 0.6 * begin * spare, 0, last)
    low_T = np.minimum(frame_T.astype(int), last - 1)
    share_T1 = (frame_T - low_T)[:, None]
    local_TJ4 = rotations.blend(turns_TJ4[low_T], turns_TJ4[low_T + 1], share_T1[:, None])
    at_T3 = path_T3[low_T] * (1 - share_T1) + path_T3[low_T + 1] * share_T1
    travel_2 = path_T3[-1, :2] - path_T3[0, :2]
    motion = Motion(
        turns_TJ33=world_turns(local_TJ4), path_T2=at_T3[:, :2] + cycle_T[:, None] * travel_2, clearance_T=at_T3[:, 2]
    )
    return mirrored(motion) if flip else motion


def mirrored(motion: Motion) -> Motion:
    """The movement as seen in a mirror: left and right change places."""
    swap = [JOINTS.index(_other_side(name)) for name in JOINTS]
    flip = np.diag([-1.0, 1.0, 1.0])
    turns = flip @ motion.turns_TJ33[:, swap] @ flip
    return replace(motion, turns_TJ33=turns, path_T2=motion.path_T2 * [-1.0, 1.0])


def _other_side(name: str) -> str:
    if name.startswith("right_"):
        return name.replace("right_", "left_")
    return name.replace("left_", "right_")
