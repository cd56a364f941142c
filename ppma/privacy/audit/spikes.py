"""Spike known people into a cleaned clip, to measure how many of them its auditors find there.

    cut-outs: drawn people, or the user's  ->  spike(): one of each height in a frame  ->  the auditors  ->  found or not

The share found again is the auditors' sensitivity on this very clip, with its light, blur and clutter. Drawn people are
those of `ppma synthesize`. They are pasted after decoding, so the clip's own compression does not blur them.
Legend: H height, W width of a frame, h and w of a cut-out in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from ppma.common.philox import Purpose, generator
from ppma.config.errors import InputError
from ppma.synthetic.clip import ClipSpec, render, sample_clip

HEIGHTS = (24, 48, 96)
"""Heights of the spiked people in pixels."""
ACTIONS = ("arm_circles", "bow", "clap", "walk")
"""What drawn people do: actions of `ppma synthesize` in which they stand upright."""
EACH = 3
"""Drawn people of each action."""
TRIES = 40
"""Places tried for a person before the frame counts as too small for them."""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A person pasted into one frame, and which auditors found them."""

    frame: int
    height: int
    found: dict[str, bool]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a cut-out was pasted."""

    height: int
    box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels of the frame."""


@lru_cache(maxsize=1)
def drawn_people() -> tuple[np.ndarray, ...]:
    """Return the cut-outs of drawn people, each uint8 RGBA (h, w, 4), trimmed to the person."""
    found = []
    for action in ACTIONS:
        for number in range(EACH):
            spec = ClipSpec(
                seed=0, split="test", class_name=action, number=number, size=256, frames=3, fps=10.0, people=1
            )
            frame = list(render(sample_clip(spec, body_pixels=190)))[-1]
            found.append(_trim(np.dstack([frame.picture_PP3, 255 * frame.person_mask(0).astype(np.uint8)])))
    return tuple(found)


@lru_cache(maxsize=1)
def read_people(folder: Path) -> tuple[np.ndarray, ...]:
    """Return the user's cut-outs, PNG files whose transparency outlines the person.

    Raises:
        InputError: There are none, or one has no transparency or is mostly transparent everywhere.
    """
    found = []
    for path in sorted(folder.glob("*.png")):
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if picture is None or picture.ndim != 3 or picture.shape[2] != 4 or not (picture[..., 3] > 127).any():
            raise InputError(f"{path}: is not a PNG whose transparency outlines a person")
        found.append(_trim(cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA)))
    if not found:
        raise InputError(f"--people {folder}: has no PNG file; give cut-outs of people with transparency")
    return tuple(found)


def _trim(person_hw4: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero((person_hw4[..., 3] > 127).any(axis)) for axis in (1, 0))
    return np.ascontiguousarray(person_hw4[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def spike(frame_HWC: np.ndarray, people: Sequence[np.ndarray], seed: int, t: int) -> tuple[np.ndarray, list[Placed]]:
    """Return a copy of a frame with a person of each height that fits, none on another.

    Args:
        frame_HWC: uint8 RGB.
        people: Cut-outs, RGBA.
        seed: Of the clip.
        t: Number of the frame. People and places depend on both alone.
    """
    rng = generator(seed, Purpose.SPIKE, sample=t)
    spiked_HWC, placed = frame_HWC.copy(), list[Placed]()
    for height in sorted(HEIGHTS, reverse=True):
        person_hw4 = _scaled(people[int(rng.integers(len(people)))], height)
        box = _free_place(frame_HWC.shape[:2], person_hw4.shape[:2], placed, rng)
        if box is not None:
            _paste(spiked_HWC, person_hw4, box)
            placed.append(Placed(height=height, box=box))
    return spiked_HWC, placed


def _scaled(person_hw4: np.ndarray, height: int) -> np.ndarray:
    """Scale a cut-out; colors are weighted by opacity, so that what is transparent does not bleed in."""
    weighted = person_hw4.astype(np.float32)
    weighted[..., :3] *= weighted[..., 3:] / 255
    width = max(1, round(person_hw4.shape[1] * height / person_hw4.shape[0]))
    smooth = cv2.INTER_AREA if height < person_hw4.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(weighted, (width, height), interpolation=smooth)


def _free_place(
    frame: tuple[int, ...], person: tuple[int, ...], placed: Sequence[Placed], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    (height, width), (h, w) = frame, person
    if h > height or w > width:
        return None
    for _ in range(TRIES):
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        if all(x + w <= x0 or x1 <= x or y + h <= y0 or y1 <= y for x0, y0, x1, y1 in (one.box for one in placed)):
            return x, y, x + w, y + h
    return None


def _paste(frame_HWC: np.ndarray, person_hw4: np.ndarray, box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    place = frame_HWC[y0:y1, x0:x1]
    place[...] = np.rint(person_hw4[..., :3] + place * (1 - person_hw4[..., 3:] / 255)).astype(np.uint8)
