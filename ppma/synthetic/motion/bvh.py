"""The user's own motion capture: BVH files, <class>/<file>.bvh, on the same bodies.

    file -> read() -> Bvh (every joint, every frame) -> play() -> Motion

BVH has no fixed skeleton, so joints are found by the names in use (CMU's, Mixamo's, Biovision's); a file that lacks one is refused.
Axes: y up, facing +z at rest, as all of these have it; the unit does not matter, lengths are taken in leg lengths.
Legend: T frames, J joints of the file.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ppma.config.errors import InputError
from ppma.synthetic.motion import rotations
from ppma.synthetic.motion.motion import JOINTS, Motion, mirrored

FROM_Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
DOWN = np.array([0.0, 0.0, -1.0])
FLIGHT_MARGIN = 0.06
"""Leg lengths that the lowest joint may rise above its usual lowest place without the body leaving the floor."""
TRUNK = {
    "root": ("hips", "hip", "pelvis", "root"),
    "chest": ("chest", "chest2", "spine3", "spine2", "spine1", "spine", "upperchest", "torso", "abdomen"),
    "neck": ("head", "neck", "neck1"),
}
"""Names in use for the joints of the trunk, best first; lower case, without prefix."""
LIMBS = {
    "hip": ("upleg", "thigh", "hip", "upperleg", "hipjoint"),
    "knee": ("leg", "shin", "knee", "lowerleg", "lowleg"),
    "ankle": ("foot", "ankle"),
    "shoulder": ("arm", "shldr", "shoulder", "upperarm", "uparm"),
    "elbow": ("forearm", "elbow", "lowerarm", "lowarm"),
    "wrist": ("hand", "wrist"),
}
"""Names in use for the joints of a limb, after "left" or "l"; best first."""


@dataclass(frozen=True, kw_only=True)
class Bvh:
    """One file."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets_J3: np.ndarray
    """From the parent at rest; z up, facing -y."""
    turns_TJ33: np.ndarray
    """World turns; z up."""
    places_TJ3: np.ndarray
    """World places of the joints, file units; z up."""
    fps: float


def _plain(name: str) -> str:
    """A joint's name without prefix, case and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.split(":")[-1].lower())


def _parse_hierarchy(text: str) -> tuple[list[str], list[int], list[list[float]], list[list[str]]]:
    """Names, parents, offsets and channels of the joints; end sites are left out."""
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[str]] = []
    opened: list[int] = []
    end_site = -1
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
    return names, parents, offsets, channels


def _move(
    rows_TC: np.ndarray, parents: list[int], offsets_J3: np.ndarray, channels: list[list[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """World turns (T, J, 3, 3) and places (T, J, 3), y up."""
    turns: list[np.ndarray] = []
    places: list[np.ndarray] = []
    at = 0
    for joint, (parent, kinds) in enumerate(zip(parents, channels)):
        local, shift = np.broadcast_to(np.eye(3), (len(rows_TC), 3, 3)), np.tile(offsets_J3[joint], (len(rows_TC), 1))
        for kind in kinds:
            axis = kind[0].lower()
            if kind.endswith("rotation"):
                local = local @ rotations.about(axis, rows_TC[:, at])
            else:
                shift[:, "xyz".index(axis)] = rows_TC[:, at]  # stands for the offset
            at += 1
        turns.append(local if parent < 0 else turns[parent] @ local)
        places.append(shift if parent < 0 else places[parent] + (turns[parent] @ shift[..., None])[..., 0])
    return np.stack(turns, 1), np.stack(places, 1)


@lru_cache(maxsize=64)
def read(path: Path) -> Bvh:
    """Read a file; InputError says what is wrong with it."""
    try:
        hierarchy, motion = path.read_text(encoding="utf-8", errors="replace").split("MOTION")
        names, parents, offsets, channels = _parse_hierarchy(hierarchy)
        words = motion.split()  # Frames: n Frame Time: s, then the numbers
        rows_TC = np.array(words[5:], float).reshape(int(words[1]), sum(map(len, channels)))
        if len(rows_TC) < 2 or not np.isfinite(rows_TC).all() or float(words[4]) <= 0:
            raise ValueError("fewer than 2 frames, or numbers that are not finite")
        offsets_J3 = np.array(offsets).reshape(-1, 3)
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{path}: is no BVH file that can be read ({error}); export it again or take it out of --bvh"
        ) from None
    turns_TJ33, places_TJ3 = _move(rows_TC, parents, offsets_J3, channels)
    return Bvh(
        names=tuple(names),
        parents=tuple(parents),
        offsets_J3=offsets_J3 @ FROM_Y_UP.T,
        turns_TJ33=FROM_Y_UP @ turns_TJ33 @ FROM_Y_UP.T,
        places_TJ3=places_TJ3 @ FROM_Y_UP.T,
        fps=1 / float(words[4]),
    )


def find_joints(bvh: Bvh, path: Path) -> dict[str, int]:
    """Index of the file's joint for each of ours; wrists may be missing. InputError names what cannot be found."""
    plain = [_plain(name) for name in bvh.names]
    found: dict[str, int] = {}
    for joint in JOINTS:
        side, _, part = joint.partition("_")
        options = (
            TRUNK[joint] if joint in TRUNK else [prefix + name for name in LIMBS[part] for prefix in (side, side[0])]
        )
        index = next((plain.index(option) for option in options if option in plain), None)
        if index is None and part != "wrist":
            raise InputError(
                f"{path}: no joint for the {joint.replace('_', ' ')} ({', '.join(options)}) among {', '.join(bvh.names)}"
            )
        if index is not None:
            found[joint] = index
    return found


def _limb_rest(bvh: Bvh, joint: int) -> np.ndarray:
    """Turn from a limb that points down to the limb as the file's rest pose has it (towards its first child)."""
    child = next((i for i, parent in enumerate(bvh.parents) if parent == joint), None)
    along = bvh.offsets_J3[child] if child is not None else DOWN
    return rotations.between(DOWN, rotations.unit(along)) if np.linalg.norm(along) > 0 else np.eye(3)


def convert(bvh: Bvh, path: Path, frame_T: np.ndarray) -> Motion:
    """The file's frames `frame_T` (indices) as a Motion that begins by facing -y at the origin."""
    found = find_joints(bvh, path)
    turns = {name: bvh.turns_TJ33[frame_T, i] for name, i in found.items()}
    for name, i in found.items():
        if name.partition("_")[2] in ("hip", "knee", "shoulder", "elbow"):
            turns[name] = turns[name] @ _limb_rest(bvh, i)
    for side in ("left", "right"):  # a hand goes on from its forearm
        turns[f"{side}_wrist"] = turns[f"{side}_elbow"]
    leg = sum(float(np.linalg.norm(bvh.offsets_J3[found[f"left_{joint}"]])) for joint in ("knee", "ankle"))
    lowest_T = bvh.places_TJ3[:, :, 2].min(1) / leg
    above_T = lowest_T[frame_T] - np.percentile(lowest_T, 5) - FLIGHT_MARGIN
    path_T2 = bvh.places_TJ3[frame_T, found["root"], :2] / leg
    left = turns["root"][0, :2, 0]
    facing = float(np.rad2deg(np.arctan2(left[1], left[0])))
    motion = Motion(
        turns_TJ33=np.stack([turns[joint] for joint in JOINTS], 1),
        path_T2=path_T2 - path_T2[0],
        clearance_T=np.maximum(above_T, 0),
    )
    return motion.turned(-facing)


def play(path: Path, times_T: np.ndarray, rng: np.random.Generator) -> Motion:
    """A stretch of the file at `times_T` seconds, at a tempo, a start and a side of its own; a short file ends in its last pose."""
    bvh = read(path)
    tempo, begin, flip = rng.uniform(0.9, 1.15), rng.random(), rng.random() < 0.5
    last = len(bvh.turns_TJ33) - 1
    frame_T = times_T * tempo * bvh.fps
    frame_T = frame_T + begin * max(last - frame_T[-1], 0)
    motion = convert(bvh, path, np.clip(np.rint(frame_T).astype(int), 0, last))
    return mirrored(motion) if flip else motion
