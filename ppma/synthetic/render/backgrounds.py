"""The user's own human-removed clips as backgrounds, in place of a rendered room or landscape.

folder  ->  list_videos(): alternate files for each split  ->  read_background(): square frames at the clip's frame rate
"""

from pathlib import Path

import av
import cv2
import numpy as np

from ppma.config.errors import InputError
from ppma.synthetic.splits import SPLITS, Split

SUFFIXES = {".mp4", ".avi", ".mkv", ".webm", ".mov"}


def list_videos(folder: Path, split: Split) -> tuple[Path, ...]:
    """Return the split's videos in a folder: alternate ones in order of name, so that the splits share none.

    Raises:
        InputError: There is not a video for the split.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    chosen = tuple(files[SPLITS.index(split) :: 2])
    if not chosen:
        kinds = ", ".join(sorted(SUFFIXES))
        raise InputError(
            f"--backgrounds {folder}: {len(files)} videos ({kinds}), none for the {split} split; give at least 2"
        )
    return chosen


def crop_square(picture_HW3: np.ndarray, size: int, where: float) -> np.ndarray:
    """Crop a square at the share `where` of the longer side and resize it to `size` pixels."""
    side = min(picture_HW3.shape[:2])
    top, left = (int(where * (length - side)) for length in picture_HW3.shape[:2])
    return cv2.resize(picture_HW3[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)


def read_background(path: Path, count: int, fps: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Read square RGB frames from a random moment of a video.

    Args:
        path: The video.
        count: Number of frames wanted.
        fps: Frame rate wanted; frames are repeated or skipped.
        size: Pixels along a side.
        rng: Chooses crop and start.

    Returns:
        uint8 (at most count, size, size, 3); fewer frames when the video is short.

    Raises:
        InputError: The video cannot be decoded.
    """
    where, start = rng.random(), rng.random()
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 25)
            spare = max((stream.frames or 0) - count * rate / fps, 0)
            first = int(start * min(spare, 10 * rate))  # decoding up to a later start would cost more than rendering
            for number, frame in enumerate(container.decode(stream)):
                if number >= first + len(frames) * rate / fps:
                    frames.append(crop_square(frame.to_ndarray(format="rgb24"), size, where))
                if len(frames) == count:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise InputError(f"{path}: cannot be used as a background ({error}); remove it from --backgrounds") from None
    if not frames:
        raise InputError(f"{path}: has no frame to use as a background; remove it from --backgrounds")
    return np.stack(frames)
