"""The action classes: fifteen recorded, fifteen keyframed, and the user's BVH folders.

class name, frame times, RNG  ->  play()  ->  Motion
"""

from functools import cache
from pathlib import Path

import numpy as np

from ppma.config.errors import InputError
from ppma.synthetic.motion import bvh, keyframes, rotations
from ppma.synthetic.motion.motion import ASSETS, PARENTS, Motion

STORED_FPS = 30.0
"""Frame rate of assets/motions.npz."""


@cache
def _recordings() -> dict[str, np.ndarray]:
    with np.load(ASSETS / "motions.npz") as data:
        return dict(data)


RECORDED: tuple[str, ...] = tuple(name.removesuffix(".turns") for name in _recordings() if name.endswith(".turns"))
"""Classes recorded from people."""
CLASSES: tuple[str, ...] = tuple(sorted((*RECORDED, *keyframes.ACTIONS)))
"""The 30 classes that need no files from the user."""


def bvh_classes(folder: Path | None) -> dict[str, tuple[Path, ...]]:
    """Return the files of each class in a folder <class>/<file>.bvh, after parsing each of them once.

    Raises:
        InputError: The folder is missing or empty, a file cannot be used, or a class has the name of a built-in one.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise InputError(f"--bvh {folder}: no such folder; give a folder <class>/<file>.bvh")
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() == ".bvh")
    if not files:
        raise InputError(f"--bvh {folder}: holds no <class>/<file>.bvh")
    found: dict[str, tuple[Path, ...]] = {}
    for path in files:
        bvh.find_joints(bvh.read(path), path)
        found[path.parent.name] = (*found.get(path.parent.name, ()), path)
    if taken := sorted(set(found) & set(CLASSES)):
        raise InputError(f"--bvh {folder}: {', '.join(taken)} is a built-in class; rename the folder")
    return found


def play(name: str, times_T: np.ndarray, rng: np.random.Generator, files: tuple[Path, ...] = ()) -> Motion:
    """Return the motion of one person who performs an action.

    Args:
        name: The class.
        times_T: Seconds, from 0.
        rng: Chooses file, tempo, start, side and sway.
        files: BVH files of a user's class; empty for a built-in one.

    Returns:
        The motion at `times_T`.
    """
    if files:
        return bvh.play(files[rng.integers(len(files))], times_T, rng)
    if name in keyframes.ACTIONS:
        return keyframes.play(keyframes.ACTIONS[name], times_T, rng)
    return _play_recording(name, times_T, rng)


def world_turns(local_TJ4: np.ndarray) -> np.ndarray:
    """Return world rotation matrices (T, J, 3, 3) of joint-local quaternions (T, J, 4)."""
    world: list[np.ndarray] = []
    for joint, parent in enumerate(PARENTS):
        local = rotations.from_quaternion(local_TJ4[:, joint])
        world.append(local if parent < 0 else world[parent] @ local)
    return np.stack(world, 1)


def _play_recording(name: str, times_T: np.ndarray, rng: np.random.Generator) -> Motion:
    data = _recordings()
    turns_TJ4, path_T3 = data[f"{name}.turns"].astype(float), data[f"{name}.path"].astype(float)
    tempo, start, flip = rng.uniform(0.8, 1.25), rng.random(), rng.random() < 0.5
    last = len(turns_TJ4) - 1
    frame_T = times_T * tempo * STORED_FPS
    if data[f"{name}.loops"]:
        cycle_T, frame_T = np.divmod(frame_T + start * last, last)
    else:  # played once; the spare time is split between before and after
        spare = max(frame_T[-1] - last, 0.0)
        cycle_T, frame_T = 0 * frame_T, np.clip(frame_T - 0.6 * start * spare, 0, last)
    low_T = np.minimum(frame_T.astype(int), last - 1)
    share_T1 = (frame_T - low_T)[:, None]
    local_TJ4 = rotations.nlerp(turns_TJ4[low_T], turns_TJ4[low_T + 1], share_T1[:, None])
    at_T3 = path_T3[low_T] * (1 - share_T1) + path_T3[low_T + 1] * share_T1
    path_T2 = at_T3[:, :2] + cycle_T[:, None] * (path_T3[-1, :2] - path_T3[0, :2])
    motion = Motion(turns_TJ33=world_turns(local_TJ4), path_T2=path_T2, clearance_T=at_T3[:, 2])
    return motion.mirrored() if flip else motion
