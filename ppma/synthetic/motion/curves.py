"""Actions written as joint curves: a few key poses each, blended in time; no recording behind them.

    KeyedAction (key poses, order, tempo)  ->  perform(): tempo, range, side and beginning drawn  ->  Motion

A key pose says where the limbs point, in the person's own frame: vectors are (outward, ahead, up), lengths are leg lengths, angles degrees.
Legs follow from where pelvis and feet are (two-bone inverse kinematics, knees ahead), so feet stay where they stand.
"""

from dataclasses import dataclass, fields
from typing import TypedDict

import numpy as np

from ppma.synthetic.motion import rotations
from ppma.synthetic.motion.motion import JOINTS, SIDES, Motion, mirrored

Vector = tuple[float, float, float]
DOWN: Vector = (0.12, 0.02, -1.0)
HANG: Vector = (0.1, 0.22, -1.0)
REST: Vector = (0.0, 0.0, 0.0)
HIP_WIDTH = 0.115
"""Leg lengths from the middle to a hip."""
THIGH = 0.51
"""Share of the leg above the knee (mean of the baked bodies)."""
KNEES_AHEAD = 0.18
"""How far outward knees point for each unit ahead."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key pose; every field's default is that of a person who stands at ease."""

    right_upper: Vector = DOWN
    """Where the right upper arm points: outward, ahead, up."""
    right_fore: Vector = HANG
    left_upper: Vector = DOWN
    left_fore: Vector = HANG
    pelvis: Vector = REST
    """Shift of the pelvis to the left, ahead and up."""
    lean: Vector = REST
    """Turn of the pelvis: forward, to the left, twist to the left."""
    bend: Vector = REST
    """Turn of the chest on the pelvis, likewise."""
    nod: Vector = REST
    """Turn of the head on the chest, likewise."""
    right_foot: Vector = REST
    """Shift of the right foot: outward, ahead, up."""
    left_foot: Vector = REST
    right_toe: float = 0.0
    """Pitch of the right foot, toe down positive."""
    left_toe: float = 0.0
    air: float = 0.0
    """Height of the lowest point above the floor."""


DIRECTIONS = ("right_upper", "right_fore", "left_upper", "left_fore")
NEUTRAL = Key()


@dataclass(frozen=True, kw_only=True)
class KeyedAction:
    """An action: key poses at moments of one period."""

    keys: tuple[tuple[float, Key], ...]
    """(moment in [0, 1], pose), in order; cycles return to the first."""
    seconds: float
    """One period at tempo 1."""
    cycles: bool = True
    """Repeated without end, or done once with the waits before and after drawn."""
    ease: bool = True
    """Slow in and out of each key pose; otherwise at even speed."""
    tempo: tuple[float, float] = (0.75, 1.3)
    """Between how slow and how fast it is done."""
    reach: tuple[float, float] = (0.8, 1.12)
    """Between how little and how much of each key pose is taken."""


class Arms(TypedDict):
    """The four fields of a Key that place both arms."""

    right_upper: Vector
    right_fore: Vector
    left_upper: Vector
    left_fore: Vector


def both(upper: Vector, fore: Vector) -> Arms:
    """Both arms alike."""
    return Arms(right_upper=upper, right_fore=fore, left_upper=upper, left_fore=fore)


def _columns(key: Key) -> np.ndarray:
    """A key pose as one row of numbers, in the order of its fields."""
    return np.concatenate([np.atleast_1d(np.asarray(getattr(key, f.name), float)) for f in fields(Key)])


def _split(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of _columns for rows (T, numbers): (T, 3) or (T,) by field."""
    values, at = {}, 0
    for f in fields(Key):
        width = np.size(getattr(NEUTRAL, f.name))
        values[f.name] = rows[:, at : at + width] if width > 1 else rows[:, at]
        at += width
    return values


def _ranged(key: Key, reach: float) -> np.ndarray:
    """The key pose `reach` of the way from standing."""
    return _columns(NEUTRAL) + reach * (_columns(key) - _columns(NEUTRAL))


def blend_keys(action: KeyedAction, moment_T: np.ndarray, reach: float) -> dict[str, np.ndarray]:
    """Values of every field at the moments in [0, 1]."""
    at_K = np.array([moment for moment, _ in action.keys])
    rows_KC = np.stack([_ranged(key, reach) for _, key in action.keys])
    if action.cycles:
        at_K, rows_KC = np.append(at_K, at_K[0] + 1), np.concatenate([rows_KC, rows_KC[:1]])
        moment_T = (moment_T - at_K[0]) % 1 + at_K[0]
    moment_T = np.clip(moment_T, at_K[0], at_K[-1])
    low_T = np.clip(np.searchsorted(at_K, moment_T, side="right") - 1, 0, len(at_K) - 2)
    share_T = (moment_T - at_K[low_T]) / (at_K[low_T + 1] - at_K[low_T])
    if action.ease:
        share_T = share_T * share_T * (3 - 2 * share_T)
    values = _split(rows_KC[low_T] * (1 - share_T[:, None]) + rows_KC[low_T + 1] * share_T[:, None])
    return values | {name: rotations.unit(values[name]) for name in DIRECTIONS}


def _world(vector_T3: np.ndarray, side: str) -> np.ndarray:
    """(outward, ahead, up) of a side to x to the left, y to the back, z up."""
    return vector_T3 * np.array([1.0 if side == "left" else -1.0, -1.0, 1.0])


def _turn(angles_T3: np.ndarray) -> np.ndarray:
    """Matrices of (forward, left, twist) angles: twist first, then sideways, then forward."""
    forward, left, twist = angles_T3.T
    return rotations.about("z", twist) @ rotations.about("y", left) @ rotations.about("x", forward)


def _segment(along_T3: np.ndarray, hinge_T3: np.ndarray) -> np.ndarray:
    """Turns that point a segment (down at rest) along a direction, its x axis as near as can be to the hinge."""
    z = -along_T3
    x = rotations.unit(hinge_T3 - (hinge_T3 * z).sum(-1, keepdims=True) * z)
    return np.stack([x, np.cross(z, x), z], -1)


def _arm(values: dict[str, np.ndarray], side: str, chest_T33: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World turns of upper arm and forearm."""
    upper, fore = _world(values[f"{side}_upper"], side), _world(values[f"{side}_fore"], side)
    bent = np.cross(fore, upper)  # the elbow's hinge, along x at rest; vanishes for a straight arm
    swing = rotations.between(np.broadcast_to([0.0, 0.0, -1.0], upper.shape), upper)
    hinge = bent + 0.08 * swing[..., 0]
    return chest_T33 @ _segment(upper, hinge), chest_T33 @ _segment(fore, hinge)


def _leg(values: dict[str, np.ndarray], side: str, pelvis_T33: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World turns of thigh, shin and foot, from where hip and foot are."""
    outward = 1.0 if side == "left" else -1.0
    hip = values["pelvis"] * [1.0, -1.0, 1.0] + pelvis_T33 @ np.array([outward * HIP_WIDTH, 0.0, 0.0])
    foot = _world(values[f"{side}_foot"], side) + np.array([outward * HIP_WIDTH * 1.15, 0.0, -0.995])
    reach = foot - hip
    length = np.clip(np.linalg.norm(reach, axis=-1), 0.25, 0.999)
    ahead = pelvis_T33 @ np.array([outward * KNEES_AHEAD, -1.0, 0.0])
    down = rotations.unit(reach)
    knee_out = rotations.unit(ahead - (ahead * down).sum(-1, keepdims=True) * down)
    shin = 1 - THIGH
    cosine = np.clip((THIGH**2 + length**2 - shin**2) / (2 * THIGH * length), -1, 1)[:, None]
    knee = THIGH * (cosine * down + np.sqrt(1 - cosine**2) * knee_out)
    hinge = np.cross(down, -knee_out)
    pitch = rotations.about("x", values[f"{side}_toe"])
    heading = rotations.unit(ahead * [1.0, 1.0, 0.0])
    facing = np.stack(
        [
            np.stack([-heading[:, 1], heading[:, 0], 0 * heading[:, 0]], -1),
            -heading,
            np.broadcast_to([0.0, 0.0, 1.0], heading.shape),
        ],
        -1,
    )
    return (
        _segment(rotations.unit(knee), hinge),
        _segment(rotations.unit(down * length[:, None] - knee), hinge),
        facing @ pitch,
    )


def assemble(values: dict[str, np.ndarray]) -> Motion:
    """World turns and path from the values of a pose's fields over time."""
    root = _turn(values["lean"])
    chest = root @ _turn(values["bend"])
    turns = {"root": root, "chest": chest, "neck": chest @ _turn(values["nod"])}
    for side in SIDES:
        names = [f"{side}_{joint}" for joint in ("hip", "knee", "ankle", "shoulder", "elbow")]
        turns |= dict(zip(names, (*_leg(values, side, root), *_arm(values, side, chest))))
        turns[f"{side}_wrist"] = turns[f"{side}_elbow"]
    return Motion(
        turns_TJ33=np.stack([turns[joint] for joint in JOINTS], 1),
        path_T2=values["pelvis"][:, :2] * [1.0, -1.0],
        clearance_T=np.maximum(values["air"], 0),
    )


def play(action: KeyedAction, times_T: np.ndarray, rng: np.random.Generator) -> Motion:
    """The action at `times_T` seconds, at a tempo, range, side, beginning and sway of its own."""
    tempo, reach, begin, flip = rng.uniform(*action.tempo), rng.uniform(*action.reach), rng.random(), rng.random() < 0.5
    moment_T = times_T * tempo / action.seconds
    moment_T = moment_T + (begin if action.cycles else -0.7 * begin * max(moment_T[-1] - 1, 0.0))
    values = blend_keys(action, moment_T, reach)
    sway_C = rng.uniform(-4, 4, (2, 3))
    breath_T1 = np.sin(2 * np.pi * (times_T * rng.uniform(0.2, 0.4) + rng.random()))[:, None]
    values["bend"] = values["bend"] + rng.uniform(-3, 3, 3) + 0.3 * sway_C[0] * breath_T1
    values["nod"] = values["nod"] + sway_C[1] * breath_T1
    motion = assemble(values)
    return mirrored(motion) if flip else motion
