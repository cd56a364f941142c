"""The classes: fifteen recorded actions, fifteen written ones, and the user's own BVH folders, all performed alike."""

from pathlib import Path

import numpy as np

from ppma.config.errors import InputError
from ppma.synthetic.motion import bvh, curves
from ppma.synthetic.motion.keyposes import KEYED
from ppma.synthetic.motion.motion import Motion, captured_names, play_captured

CLASSES: tuple[str, ...] = tuple(sorted((*captured_names(), *KEYED)))
"""The 30 classes that need nothing from the user."""


def bvh_classes(folder: Path | None) -> dict[str, tuple[Path, ...]]:
    """Files of each class in a folder <class>/<file>.bvh; every file is read once, so that a bad one is found before the long work."""
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
    taken = sorted(set(found) & set(CLASSES))
    if taken:
        raise InputError(f"--bvh {folder}: {', '.join(taken)} is a class already; give the folder another name")
    return found


def play(name: str, times_T: np.ndarray, rng: np.random.Generator, files: tuple[Path, ...] = ()) -> Motion:
    """One person doing the action `name` at `times_T` seconds (from 0); `files` are its BVH files if it is a class of the user."""
    if files:
        return bvh.play(files[rng.integers(len(files))], times_T, rng)
    if name in KEYED:
        return curves.play(KEYED[name], times_T, rng)
    return play_captured(name, times_T, rng)
