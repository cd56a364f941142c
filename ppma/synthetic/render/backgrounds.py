"""Regions from the user's own human-removed clips: a stretch of one of them stands in for floor and walls.

folder -> list_videos(), every other file for each split -> pictures(): square frames at the clip's size and frame rate
"""

from pathlib import Path

import av
import cv2
import numpy as np

from ppma.config.errors import InputError
from ppma.synthetic.splits import SPLITS, Split

SUFFIXES = {".mp4", ".avi", ".mkv", ".webm", ".mov"}


def list_videos(folder: Path, split: Split) -> tuple[Path, ...]:
    """The split's videos below a folder: every other one by name, so the two splits share none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    mine = tuple(files[SPLITS.index(split) :: 2])
    if not mine:
        raise InputError(
            f"--backgrounds {folder}: {len(files)} videos ({', '.join(sorted(SUFFIXES))}), none for the {split} split; give at least 2"
        )
    return mine


def square(picture_HW3: np.ndarray, size: int, where: float) -> np.ndarray:
    """A square cut from the longer side at the share `where`, scaled to size."""
    side = min(picture_HW3.shape[:2])
    top, left = (int(where * (length - side)) for length in picture_HW3.shape[:2])
    return cv2.resize(picture_HW3[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)


def pictures(path: Path, count: int, fps: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Frames (at most count, size, size, 3) RGB uint8 at about `fps`, from a moment drawn; fewer when the video is short."""
    where, begin = rng.random(), rng.random()
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 25)
            spare = max((stream.frames or 0) - count * rate / fps, 0)
            first = int(begin * min(spare, 10 * rate))  # a start further in would cost more decoding than drawing
            for number, frame in enumerate(container.decode(stream)):
                if number >= first + len(frames) * rate / fps:
                    frames.append(square(frame.to_ndarray(format="rgb24"), size, where))
                if len(frames) == count:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise InputError(f"{path}: cannot be used as a background ({error}); take it out of --backgrounds") from None
    if not frames:
        raise InputError(f"{path}: has no frame to use as a background; take it out of --backgrounds")
    return np.stack(frames)
