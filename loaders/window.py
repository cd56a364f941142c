"""Which frames of a clip a window takes: arithmetic on times alone.

times of the frames (ascending seconds), [start, end)  ->  their indices
"""

import math
from collections.abc import Sequence

import numpy as np


def inside(times: Sequence[float] | np.ndarray, start: float, end: float) -> tuple[int, int]:
    """First and last + 1 of the frames whose (ascending) time lies in [start, end), or of the one that is on screen where none does."""
    # Half a microsecond of slack: a start that equals a frame's time as a fraction may differ from it as a float.
    first, stop = np.searchsorted(times, (start - 5e-7, end - 5e-7)).tolist()
    if first < stop:
        return first, stop
    shown = max(int(np.searchsorted(times, start, side="right")) - 1, 0)
    return shown, shown + 1


def choose_frames(times: Sequence[float] | np.ndarray, start: float, end: float, count: int) -> list[int]:
    """Indices into `times` (ascending seconds) of `count` frames, uniformly spaced over those in [start, end).

    linspace from the first to the last, truncated; a window with fewer frames repeats some. A window in which no frame begins shows the
    frame that was on screen: the last one before it, or the first of all.
    """
    first, stop = inside(times, start, end)
    return [first + int(i) for i in np.linspace(0, stop - first - 1, count)]


def thinned(times: Sequence[float] | np.ndarray, first: int, stop: int, fps: float | None) -> list[int]:
    """Those of the frames [first, stop) that are kept at `fps` a second: each the first one due; None keeps all."""
    if fps is None:
        return list(range(first, stop))
    kept: list[int] = []
    due = times[first]
    for i in range(first, stop):
        if times[i] >= due - 5e-7:
            kept.append(i)
            due += max(1, math.floor((times[i] - due) * fps + 1e-6) + 1) / fps
    return kept
