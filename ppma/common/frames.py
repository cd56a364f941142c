"""Folders of frames: which pictures of a folder are the frames of a clip, and in which order.

    a/clip          ->  its one series of numbered pictures, 000001.jpg or img_00001.jpg, by number
    a/clip/img_*    ->  its series img_, where it holds several (`ppma index --frames-prefix img_` writes such paths)

A number ends a frame's name: folder.jpg, cover.png and clip_thumb.jpg are no frames. Everything that reads a clip goes
through `is_frames` and `list_frames`, so that index, loader and audit agree on its frames.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np

from ppma.config.errors import InputError, first_few

FRAME_FOLDER_FPS = 25.0
"""Frames per second of a folder of frames, which stores no rate (paper: 25)."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
SERIES = "*"
"""Ends the path of one series of a folder."""
SHOWN = 3
"""Names that a message lists."""

AnyPath = TypeVar("AnyPath", bound=PurePath)
Numbered = tuple[int, str]
"""Number and name of a picture."""


@dataclass(frozen=True)
class FrameFolder:
    """What a folder of frames holds."""

    files: list[Path]
    """The frames, in order."""
    numbers: list[int]
    """Number of each frame; empty where numbers do not end the names."""
    left_out: list[str]
    """Names of the other pictures, sorted."""

    @property
    def missing(self) -> tuple[list[int], int]:
        """First SHOWN numbers that the series skips, and how many it skips; a series may count in steps, as 0, 5, 10."""
        pairs = list(pairwise(self.numbers))
        step = min((after - before for before, after in pairs), default=1)
        skipped = (number for before, after in pairs for number in range(before + step, after, step))
        # counted, not listed: one picture with a date for its number would fill the memory
        return list(islice(skipped, SHOWN)), sum((after - before - 1) // step for before, after in pairs)


def is_frames(path: Path) -> bool:
    """Return True if the path of a clip means a folder of frames, or one series of a folder, rather than a video."""
    return path.name.endswith(SERIES) or path.is_dir()


def clip_place(path: AnyPath) -> AnyPath:
    """Return the file or folder that holds a clip: its path, without the name of a series."""
    return path.parent if path.name.endswith(SERIES) else path


def list_frames(path: Path) -> list[Path]:
    """Return the frames of a folder, or of one series of it, in the order of their numbers.

    Raises:
        InputError: There are none, several series, both JPEG and PNG, or a number twice.
    """
    return read_folder(path).files


def read_folder(path: Path) -> FrameFolder:
    """Return the frames of a folder, or of one series of it, and what else it holds. Raises as `list_frames` does."""
    folder = clip_place(path)
    with os.scandir(folder) as scan:
        found = (entry.name for entry in scan if entry.name[0] != ".")
        names = [name for name in found if name.lower().endswith(PICTURE_SUFFIXES)]
    series: defaultdict[str, list[Numbered]] = defaultdict(list)
    for name in names:
        stem = name.rpartition(".")[0]
        prefix = stem.rstrip("0123456789")
        if len(prefix) < len(stem):
            series[prefix].append((int(stem[len(prefix) :]), name))
    chosen = _choose(path, series)
    if chosen is None:
        frames, numbers = _numbered_within(path, names), []
    else:
        numbers, frames = [number for number, _ in chosen], [name for _, name in chosen]
    _check(path, frames, numbers)
    left_out = sorted(set(names) - set(frames)) if len(frames) < len(names) else []
    return FrameFolder(files=[folder / name for name in frames], numbers=numbers, left_out=left_out)


def _choose(path: Path, series: dict[str, list[Numbered]]) -> list[Numbered] | None:
    """Return the series that a path means, sorted; None if the numbers of its pictures do not end their names."""
    if path.name.endswith(SERIES):
        prefix = path.name.removesuffix(SERIES)
        if prefix not in series:
            found = f"it has {_listed(series)}" if series else "it has no numbered pictures"
            raise InputError(f"{path}: holds no frames {prefix}1.jpg, {prefix}2.jpg, ...; {found}")
        return sorted(series[prefix])
    long = {prefix: pictures for prefix, pictures in series.items() if len(pictures) > 1}
    if len(long) > 1:
        several = f"{path}: holds {len(long)} series of pictures, {_listed(long)}"
        raise InputError(f"{several}; say which are the frames: `ppma index --frames-prefix`")
    return sorted(*long.values()) if long else None


def _numbered_within(path: Path, names: Sequence[str]) -> list[str]:
    """Return the frames of names such as frame_10_delay-0.04s.jpg in natural order (2 before 10)."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if (kind := re.sub(r"\d+", "#", name.rpartition(".")[0])) != name.rpartition(".")[0]:
            kinds[kind].append(name)
    several = [f"{min(alike)} ({len(alike)})" for _, alike in sorted(kinds.items()) if len(alike) > 1]
    if len(several) > 1:
        found = f"{path}: holds {len(several)} series of pictures, {', '.join(several[:SHOWN])}"
        raise InputError(f"{found}; move all but one to other folders")
    return sorted((name for alike in kinds.values() for name in alike), key=_natural)


def _listed(series: dict[str, list[Numbered]]) -> str:
    names = [f"{min(pictures)[1]} (prefix {prefix!r}, {len(pictures)})" for prefix, pictures in sorted(series.items())]
    return first_few(names, SHOWN)


def _check(path: Path, frames: Sequence[str], numbers: Sequence[int]) -> None:
    if not frames:
        raise InputError(f"{path}: holds no frames; name them 000001.jpg, 000002.jpg, ... (or .png)")
    if len({name.lower().endswith(".png") for name in frames}) > 1:
        raise InputError(f"{path}: holds both JPEG and PNG frames; keep one kind, they may be the same frames twice")
    for i, (before, after) in enumerate(pairwise(numbers)):
        if before == after:
            raise InputError(f"{path}: {frames[i]} and {frames[i + 1]} have the same number; keep one of them")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def clips_of(frames: object) -> list[np.ndarray]:
    """Return the clips (T, H, W, 3) of frames in memory, an array or tensor of one clip or of a batch of them.

    Raises:
        InputError: They are not uint8 RGB in this order of axes.
    """
    found = np.asarray(frames.cpu() if hasattr(frames, "cpu") else frames)
    if found.dtype != np.uint8 or found.ndim not in (4, 5) or found.shape[-1] != 3 or 0 in found.shape:
        raise InputError(
            f"frames are {found.dtype} of shape {tuple(found.shape)}; give uint8 RGB of shape (T, H, W, 3) or (B, T, H, W, 3), "
            "for example clip.permute(0, 2, 3, 1) for (T, 3, H, W)"
        )
    return [found] if found.ndim == 4 else list(found)
