"""Ways in which people lay out clips, read as one stream of `Listed` rows."""

import re
from pathlib import Path

from ppma.loaders.errors import InputError

FRAME_FOLDER_FPS = 25.0
"""Rate of a folder of frames, in frames per second: it stores none (paper: frame folders count as 25 frames/s)."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")


def list_frames(folder: Path) -> list[Path]:
    """The pictures of a folder of frames in natural order (2 before 10).

    InputError when it has none, or JPEG and PNG mixed.
    """
    paths = [path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != "."]
    if not paths:
        raise InputError(f"{folder}: holds no frames; name them 000001.jpg, 000002.jpg, ... (or .png)")
    if len({path.suffix.lower() == ".png" for path in paths}) > 1:
        raise InputError(f"{folder}: holds both JPEG and PNG frames; keep one kind, they may be the same frames twice")
    if len({len(path.name) for path in paths}) == 1:
        return sorted(paths)
    return sorted(paths, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", path.name)]
