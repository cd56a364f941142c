"""Actions written as a few key poses each (assets/actions.toml), interpolated in time.

    KeyedAction  ->  play(): random tempo, range, side, start and sway  ->  pose over time  ->  assemble()  ->  Motion

Legs follow from the positions of pelvis and feet (two-bone inverse kinematics), so planted feet do not slide.
Legend: T frames, K key poses.
"""

import tomllib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppma.synthetic.motion import rotations
from ppma.synthetic.motion.motion import ASSETS, JOINTS, SIDES, Motion, other_side

Pose = dict[str, np.ndarray]
"""A value for each name of STANDING; (T, 3) or (T,) over time."""
STANDING: Pose = {
    # directions of the upper arms and forearms: outward, ahead, up
    **{f"{side}_upper": np.array([0.12, 0.02, -1.0]) for side in SIDES},
    **{f"{side}_fore": np.array([0.1, 0.22, -1.0]) for side in SIDES},
    "pelvis": np.zeros(3),  # shift to the left, ahead, up, in leg lengths
    # degrees forward, to the left, and twist to the left: pelvis, chest on the pelvis, head on the chest
    **{name: np.zeros(3) for name in ("lean", "bend", "nod")},
    **{f"{side}_foot": np.zeros(3) for side in SIDES},  # shift outward, ahead, up, in leg lengths
    **{f"{side}_toe": np.zeros(()) for side in SIDES},  # degrees, toes down
    "air": np.zeros(()),  # height of the lowest point above the floor, in leg lengths
}
"""The pose of a person who stands at ease: every other pose lists what differs from it."""
MIRROR_SIGNS = {"pelvis": [-1, 1, 1], "lean": [1, -1, -1], "bend": [1, -1, -1], "nod": [1, -1, -1]}
HIP_WIDTH = 0.115
"""Distance of a hip from the middle, in leg lengths."""
THIGH = 0.51
"""Share of the leg above the knee (mean of the baked bodies)."""
KNEES_OUTWARD = 0.18
"""How far outward knees point for each unit ahead."""
DOWN, UP = np.array([0.0, 0.0, -1.0]), np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class KeyedAction:
    """Key poses at moments of one period."""

    keys: tuple[tuple[float, Pose], ...]
    """(moment in [0, 1], pose), in order."""
    seconds: float
    """Length of a period at tempo 1."""
    cycles: bool = True
    """Repeat, returning to the first pose; otherwise play once, with a random wait before and after."""
    ease: bool = True
    """Slow in and out of each key pose instead of constant speed."""
    tempo: tuple[float, float] = (0.75, 1.3)
    """Range of the random tempo."""
    reach: tuple[float, float] = (0.8, 1.12)
    """Range of the random scale of each pose's difference from standing."""


def _mirror(pose: Pose) -> Pose:
    """Exchange left and right."""
    return {other_side(name): value * MIRROR_SIGNS.get(name, 1) for name, value in pose.items()}


def _read_actions() -> dict[str, KeyedAction]:
    """Read assets/actions.toml; its head explains the format."""
    content = tomllib.loads((ASSETS / "actions.toml").read_text(encoding="utf-8"))
    poses: dict[str, Pose] = {"stand": STANDING}
    for name, fields in content["pose"].items():
        poses[name] = poses[fields.pop("like", "stand")] | _pose_fields(fields)

    def named(key: str | dict[str, Any]) -> Pose:
        if isinstance(key, dict):
            return STANDING | _pose_fields(key)
        name, _, mirrored = key.partition(" ")
        return _mirror(poses[name]) if mirrored else poses[name]

    return {
        name: KeyedAction(**{**action, "keys": tuple((moment, named(key)) for moment, key in action["keys"])})
        for name, action in content["action"].items()
    }


def _pose_fields(fields: dict[str, Any]) -> Pose:
    arms = fields.pop("arms", None)
    if arms is not None:
        fields |= {f"{side}_{part}": arm for side in SIDES for part, arm in zip(("upper", "fore"), arms)}
    return {name: np.asarray(value, float) for name, value in fields.items()}


ACTIONS: dict[str, KeyedAction] = _read_actions()
"""The fifteen keyframed classes."""


def interpolate(action: KeyedAction, moment_T: np.ndarray, reach: float) -> Pose:
    """Interpolate the key poses.

    Args:
        action: The action.
        moment_T: Moments in periods; cycles repeat, other actions hold their first and last pose.
        reach: Scale of each pose's difference from standing.

    Returns:
        (T, 3) or (T,) by name, directions normalized.
    """
    at_K = np.array([moment for moment, _ in action.keys])
    poses = [pose for _, pose in action.keys]
    if action.cycles:
        at_K, poses = np.append(at_K, at_K[0] + 1), [*poses, poses[0]]
        moment_T = (moment_T - at_K[0]) % 1 + at_K[0]
    moment_T = np.clip(moment_T, at_K[0], at_K[-1])
    low_T = np.clip(np.searchsorted(at_K, moment_T, side="right") - 1, 0, len(at_K) - 2)
    share_T = (moment_T - at_K[low_T]) / (at_K[low_T + 1] - at_K[low_T])
    if action.ease:
        share_T = share_T * share_T * (3 - 2 * share_T)
    values = {}
    for name, standing in STANDING.items():
        values_K = np.stack([standing + reach * (pose[name] - standing) for pose in poses])
        share = share_T[:, None] if standing.ndim else share_T
        values[name] = values_K[low_T] * (1 - share) + values_K[low_T + 1] * share
        if name.endswith(("upper", "fore")):
            values[name] = rotations.unit(values[name])
    return values


def _world(vector_T3: np.ndarray, side: str) -> np.ndarray:
    """Turn a side's (outward, ahead, up) to x to the left, y to the back, z up."""
    return vector_T3 * np.array([1.0 if side == "left" else -1.0, -1.0, 1.0])


def _turn(angles_T3: np.ndarray) -> np.ndarray:
    """Return the rotations (T, 3, 3) of (forward, left, twist) degrees: forward first, twist last."""
    return rotations.from_euler("ZYX", angles_T3[:, ::-1])


def _reject(vector_T3: np.ndarray, axis_T3: np.ndarray) -> np.ndarray:
    """Return the direction of the vector's part that is perpendicular to a unit axis."""
    return rotations.unit(vector_T3 - (vector_T3 * axis_T3).sum(-1, keepdims=True) * axis_T3)


def _segment(along_T3: np.ndarray, hinge_T3: np.ndarray) -> np.ndarray:
    """Return rotations that point a segment (down at rest) along a direction, with its x axis nearest to the hinge."""
    z = -along_T3
    x = _reject(hinge_T3, z)
    return np.stack([x, np.cross(z, x), z], -1)


def _arm(pose: Pose, side: str, chest_T33: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return world rotations of upper arm and forearm."""
    upper, fore = _world(pose[f"{side}_upper"], side), _world(pose[f"{side}_fore"], side)
    swing = rotations.between(np.broadcast_to(DOWN, upper.shape), upper)
    hinge = np.cross(fore, upper) + 0.08 * swing[..., 0]  # the second term decides for a straight arm
    return chest_T33 @ _segment(upper, hinge), chest_T33 @ _segment(fore, hinge)


def _leg(pose: Pose, side: str, pelvis_T33: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return world rotations of thigh, shin and foot by two-bone inverse kinematics."""
    outward = 1.0 if side == "left" else -1.0
    hip = pose["pelvis"] * [1.0, -1.0, 1.0] + pelvis_T33 @ np.array([outward * HIP_WIDTH, 0.0, 0.0])
    foot = _world(pose[f"{side}_foot"], side) + np.array([outward * HIP_WIDTH * 1.15, 0.0, -0.995])
    length = np.clip(np.linalg.norm(foot - hip, axis=-1), 0.25, 0.999)
    down = rotations.unit(foot - hip)
    ahead = pelvis_T33 @ np.array([outward * KNEES_OUTWARD, -1.0, 0.0])
    knee_out = _reject(ahead, down)
    cosine = np.clip((THIGH**2 + length**2 - (1 - THIGH) ** 2) / (2 * THIGH * length), -1, 1)[:, None]
    knee = THIGH * (cosine * down + np.sqrt(1 - cosine**2) * knee_out)
    hinge = np.cross(down, -knee_out)
    heading = rotations.unit(ahead * [1.0, 1.0, 0.0])
    facing = np.stack([np.cross(UP, heading), -heading, np.broadcast_to(UP, heading.shape)], -1)
    thigh, shin = _segment(rotations.unit(knee), hinge), _segment(rotations.unit(down * length[:, None] - knee), hinge)
    return thigh, shin, facing @ rotations.from_euler("X", pose[f"{side}_toe"][:, None])


def assemble(pose: Pose) -> Motion:
    """Return the motion of pose values over time."""
    root = _turn(pose["lean"])
    chest = root @ _turn(pose["bend"])
    turns = {"root": root, "chest": chest, "neck": chest @ _turn(pose["nod"])}
    for side in SIDES:
        names = [f"{side}_{joint}" for joint in ("hip", "knee", "ankle", "shoulder", "elbow")]
        turns |= dict(zip(names, (*_leg(pose, side, root), *_arm(pose, side, chest))))
        turns[f"{side}_wrist"] = turns[f"{side}_elbow"]
    return Motion(
        turns_TJ33=np.stack([turns[joint] for joint in JOINTS], 1),
        path_T2=pose["pelvis"][:, :2] * [1.0, -1.0],
        clearance_T=np.maximum(pose["air"], 0),
    )


def play(action: KeyedAction, times_T: np.ndarray, rng: np.random.Generator) -> Motion:
    """Perform the action at `times_T` seconds, with random tempo, range, side, start and sway."""
    tempo, reach, start, flip = rng.uniform(*action.tempo), rng.uniform(*action.reach), rng.random(), rng.random() < 0.5
    moment_T = times_T * tempo / action.seconds
    moment_T = moment_T + (start if action.cycles else -0.7 * start * max(moment_T[-1] - 1, 0.0))
    pose = interpolate(action, moment_T, reach)
    sway_C = rng.uniform(-4, 4, (2, 3))
    breath_T1 = np.sin(2 * np.pi * (times_T * rng.uniform(0.2, 0.4) + rng.random()))[:, None]
    pose["bend"] = pose["bend"] + rng.uniform(-3, 3, 3) + 0.3 * sway_C[0] * breath_T1
    pose["nod"] = pose["nod"] + sway_C[1] * breath_T1
    motion = assemble(pose)
    return motion.mirrored() if flip else motion
