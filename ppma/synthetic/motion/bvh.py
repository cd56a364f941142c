"""The user's own motion capture: files <class>/<file>.bvh, retargeted to our bodies.

    file  ->  read()  ->  Bvh (every joint, every frame)  ->  play()  ->  Motion

BVH has no fixed skeleton: joints are found by the names of CMU, Mixamo and Biovision, and a file that lacks one is
refused. Axes: y up, facing +z at rest, as in all of these. Lengths are measured in leg lengths, so any unit will do.
Legend: T frames, J joints of the file, C channels.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ppma.config.errors import InputError
from ppma.synthetic.motion import rotations
from ppma.synthetic.motion.motion import JOINTS, SIDES, Motion

FROM_Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
DOWN = np.array([0.0, 0.0, -1.0])
FLIGHT_MARGIN = 0.06
"""Leg lengths by which the lowest joint may rise above its usual lowest height without the body leaving the floor."""
TRUNK = {
    "root": ("hips", "hip", "pelvis", "root"),
    "chest": ("chest", "chest2", "spine3", "spine2", "spine1", "spine", "upperchest", "torso", "abdomen"),
    "neck": ("head", "neck", "neck1"),
}
"""Common names of the trunk's joints, best first; lower case, without prefix."""
LIMBS = {
    "hip": ("upleg", "thigh", "hip", "upperleg", "hipjoint"),
    "knee": ("leg", "shin", "knee", "lowerleg", "lowleg"),
    "ankle": ("foot", "ankle"),
    "shoulder": ("arm", "shldr", "shoulder", "upperarm", "uparm"),
    "elbow": ("forearm", "elbow", "lowerarm", "lowarm"),
    "wrist": ("hand", "wrist"),
}
"""Common names of a limb's joints, after "left" or "l"; best first."""


@dataclass(frozen=True, kw_only=True)
class Bvh:
    """A parsed BVH file; z up, facing -y."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets_J3: np.ndarray
    """Position relative to the parent at rest."""
    turns_TJ33: np.ndarray
    """World rotations."""
    positions_TJ3: np.ndarray
    """World positions, in the file's unit."""
    fps: float


def _parse_hierarchy(text: str) -> tuple[list[str], list[int], np.ndarray, list[list[str]]]:
    """Return names, parents, offsets (J, 3) and channels of the joints, without end sites."""
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[str]] = []
    opened: list[int] = []  # joints whose braces are open; an end site repeats its parent
    end_site = -1  # its depth
    for line in text.splitlines():
        match line.split():
            case ["ROOT" | "JOINT", *name]:
                parents.append(opened[-1] if opened else -1)
                names.append(" ".join(name))
            case ["End", *_]:
                end_site = len(opened)
            case ["{"]:
                opened.append(len(names) - 1)
            case ["}"]:
                opened.pop()
                end_site = -1 if len(opened) == end_site else end_site
            case ["OFFSET", *numbers] if end_site < 0:
                offsets.append([float(n) for n in numbers])
            case ["CHANNELS", _, *kinds]:
                channels.append(kinds)
    if not names or not len(names) == len(offsets) == len(channels):
        raise ValueError(f"{len(names)} joints, {len(offsets)} offsets, {len(channels)} channel lists")
    return names, parents, np.array(offsets).reshape(-1, 3), channels


def _forward(
    rows_TC: np.ndarray, parents: list[int], offsets_J3: np.ndarray, channels: list[list[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return world rotations (T, J, 3, 3) and positions (T, J, 3), y up (forward kinematics)."""
    turns: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    first = 0
    for parent, offset_3, kinds in zip(parents, offsets_J3, channels):
        values_TC = rows_TC[:, first : first + len(kinds)]
        first += len(kinds)
        turning = [kind.endswith("rotation") for kind in kinds]
        axes = "".join(kind[0].upper() for kind, turns_it in zip(kinds, turning) if turns_it)
        local = rotations.from_euler(axes, values_TC[:, turning]) if axes else np.eye(3)
        shift_T3 = np.tile(offset_3, (len(rows_TC), 1))
        for kind, value_T in zip(kinds, values_TC.T):
            if kind.endswith("position"):  # replaces the offset
                shift_T3[:, "XYZ".index(kind[0].upper())] = value_T
        turns.append(local if parent < 0 else turns[parent] @ local)
        positions.append(shift_T3 if parent < 0 else positions[parent] + (turns[parent] @ shift_T3[..., None])[..., 0])
    return np.stack([np.broadcast_to(turn, (len(rows_TC), 3, 3)) for turn in turns], 1), np.stack(positions, 1)


@lru_cache(maxsize=64)
def read(path: Path) -> Bvh:
    """Parse a BVH file; InputError if it is damaged."""
    try:
        hierarchy, frames = path.read_text(encoding="utf-8", errors="replace").split("MOTION")
        names, parents, offsets_J3, channels = _parse_hierarchy(hierarchy)
        words = frames.split()  # Frames: n Frame Time: s, then the numbers
        rows_TC = np.array(words[5:], float).reshape(int(words[1]), sum(map(len, channels)))
        if len(rows_TC) < 2 or not np.isfinite(rows_TC).all() or float(words[4]) <= 0:
            raise ValueError("fewer than 2 frames, or numbers that are not finite")
        turns_TJ33, positions_TJ3 = _forward(rows_TC, parents, offsets_J3, channels)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: cannot be read as BVH ({error}); export it again or remove it from --bvh") from None
    return Bvh(
        names=tuple(names),
        parents=tuple(parents),
        offsets_J3=offsets_J3 @ FROM_Y_UP.T,
        turns_TJ33=FROM_Y_UP @ turns_TJ33 @ FROM_Y_UP.T,
        positions_TJ3=positions_TJ3 @ FROM_Y_UP.T,
        fps=1 / float(words[4]),
    )


def find_joints(bvh: Bvh, path: Path) -> dict[str, int]:
    """Return the index of the file's joint for each of ours, by name; wrists may be missing.

    Raises:
        InputError: A joint cannot be found; the message names it and `path`.
    """
    plain = [re.sub(r"[^a-z0-9]", "", name.split(":")[-1].lower()) for name in bvh.names]
    found: dict[str, int] = {}
    for joint in JOINTS:
        side, _, part = joint.partition("_")
        options = TRUNK.get(joint) or [prefix + name for name in LIMBS[part] for prefix in (side, side[0])]
        index = next((plain.index(option) for option in options if option in plain), None)
        if index is not None:
            found[joint] = index
        elif part != "wrist":
            wanted = f"{joint.replace('_', ' ')} ({', '.join(options)})"
            raise InputError(f"{path}: no joint for the {wanted} among {', '.join(bvh.names)}")
    return found


def _limb_rest(bvh: Bvh, joint: int) -> np.ndarray:
    """Return the rotation from a limb that points down to the file's rest pose, toward the joint's first child."""
    child = next((i for i, parent in enumerate(bvh.parents) if parent == joint), None)
    along = bvh.offsets_J3[child] if child is not None else DOWN
    return rotations.between(DOWN, rotations.unit(along)) if np.linalg.norm(along) > 0 else np.eye(3)


def retarget(bvh: Bvh, path: Path, frame_T: np.ndarray) -> Motion:
    """Return the file's frames `frame_T` (indices) as a motion that starts at the origin, facing -y."""
    found = find_joints(bvh, path)
    turns = {name: bvh.turns_TJ33[frame_T, i] for name, i in found.items()}
    for name, i in found.items():
        if name.partition("_")[2] in ("hip", "knee", "shoulder", "elbow"):
            turns[name] = turns[name] @ _limb_rest(bvh, i)
    for side in SIDES:  # the hand continues the forearm
        turns[f"{side}_wrist"] = turns[f"{side}_elbow"]
    leg = sum(float(np.linalg.norm(bvh.offsets_J3[found[f"left_{joint}"]])) for joint in ("knee", "ankle"))
    lowest_T = bvh.positions_TJ3[:, :, 2].min(1) / leg
    above_T = lowest_T[frame_T] - np.percentile(lowest_T, 5) - FLIGHT_MARGIN
    path_T2 = bvh.positions_TJ3[frame_T, found["root"], :2] / leg
    left_3 = turns["root"][0, :, 0]
    motion = Motion(
        turns_TJ33=np.stack([turns[joint] for joint in JOINTS], 1),
        path_T2=path_T2 - path_T2[0],
        clearance_T=np.maximum(above_T, 0),
    )
    return motion.turned(-float(np.rad2deg(np.arctan2(left_3[1], left_3[0]))))


def play(path: Path, times_T: np.ndarray, rng: np.random.Generator) -> Motion:
    """Play a random stretch of the file at `times_T` seconds, at a random tempo and side; it holds its last pose."""
    bvh = read(path)
    tempo, start, flip = rng.uniform(0.9, 1.15), rng.random(), rng.random() < 0.5
    last = len(bvh.turns_TJ33) - 1
    frame_T = times_T * tempo * bvh.fps
    frame_T = frame_T + start * max(last - frame_T[-1], 0)
    motion = retarget(bvh, path, np.clip(np.rint(frame_T).astype(int), 0, last))
    return motion.mirrored() if flip else motion
