"""Planted clips: virtual people in scenes without people, so that every pixel of each person is known.

    (seed, number)  ->  design(): body height, people, camera, light, place  ->  plant(): frames, masks, the empty scene

A place is rendered, or is a plate: the user's picture or video without people, over which the camera may pan.
People are those of `ppma synthesize`, at the distance at which they have the designed height.
Legend: T frames, P pixels along a side, N people.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from ppma.common.philox import Purpose, generator
from ppma.config.errors import InputError
from ppma.synthetic.clip import ClipSpec, Shot, render, sample_clip
from ppma.synthetic.motion import actions
from ppma.synthetic.render import backgrounds

HEIGHTS = (24, 32, 48, 64, 96, 128, 160, 200)
"""Pixels from head to feet; clips take turns."""
MOST_PEOPLE = (1, 1, 2, 3, 5, 8)
"""Largest number of people, chosen at random; the clip has 1 to that many."""
LONG_EVERY = 8
"""One in this many clips is long and has a still camera, so that the place behind people is seen sooner or later."""
Light = Literal["day", "dim"]
LIGHTS: tuple[Light, ...] = get_args(Light)
DIM, GRAIN = 0.35, 4.0
"""Factor of the light, and standard deviation of the sensor noise in levels, of a dim clip."""
PAN_SHARE = 0.1
"""Share of the side over which a camera pans during the clip."""
STILLS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class Design:
    """Parameters of a planted clip."""

    number: int
    seed: int
    action: str
    body_pixels: int
    most_people: int
    light: Light
    plate: Path | None
    """Picture or video without people; None: the place is rendered."""
    pans: bool
    """The camera moves: a pan over a plate; in a rendered place it may also circle, drift and follow."""
    size: int
    frames: int
    fps: float

    @property
    def name(self) -> str:
        """The clip's name, <class>/<video>."""
        return f"{self.action}/{self.number:04d}"

    def rng(self, view: int) -> np.random.Generator:
        """Return one of the clip's random streams."""
        return generator(self.seed, Purpose.SYNTHESIS, sample=self.number, view=view)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A planted clip and its ground truth."""

    design: Design
    frames_TPP3: np.ndarray
    empty_TPP3: np.ndarray
    people_NTPP: np.ndarray
    """bool: visible pixels of each person."""
    moving: bool
    """The place moves in the picture."""


def list_plates(folder: Path) -> tuple[Path, ...]:
    """Return the pictures and videos in a folder and its subfolders; InputError if there are none."""
    wanted = {*STILLS, *backgrounds.SUFFIXES}
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in wanted and p.is_file())
    if not found:
        raise InputError(f"--plates {folder}: has no picture or video ({', '.join(sorted(wanted))})")
    return tuple(found)


def design(
    number: int, *, seed: int, size: int, frames: int, long_frames: int, fps: float, plates: Sequence[Path]
) -> Design:
    """Return the design of clip `number`: heights take turns, one clip in LONG_EVERY is long, the rest is random.

    Half of the clips get one of the `plates`, if there are any.
    """
    rng = generator(seed, Purpose.SYNTHESIS, sample=number, view=9)
    long = number % LONG_EVERY == LONG_EVERY - 1
    turn = number // LONG_EVERY if long else number
    return Design(
        number=number,
        seed=seed,
        action="walk" if long else actions.CLASSES[int(rng.integers(len(actions.CLASSES)))],
        plate=plates[int(rng.integers(len(plates)))] if plates and rng.random() < 0.5 else None,
        body_pixels=min(HEIGHTS[turn % len(HEIGHTS)], round(0.8 * size)),
        most_people=1 if long else MOST_PEOPLE[int(rng.integers(len(MOST_PEOPLE)))],
        light=LIGHTS[int(rng.random() < 0.3)],
        pans=not long and bool(rng.random() < 0.5),
        size=size,
        frames=long_frames if long else frames,
        fps=fps,
    )


def plant(design: Design) -> Planted:
    """Render a planted clip, with and without its people."""
    spec = ClipSpec(
        seed=design.seed, split="test", class_name=design.action, number=design.number, size=design.size,
        frames=design.frames, fps=design.fps, people=design.most_people,
    )  # fmt: skip  # one field after the other
    shot = sample_clip(spec, body_pixels=design.body_pixels)
    if design.plate is not None or not design.pans:
        shot = _with_still_camera(shot)
    if design.plate is not None:
        shot = replace(shot, background_TPP3=_read_plate(design, design.plate))
    frames = list(render(shot, empty=True))
    return Planted(
        design=design,
        frames_TPP3=_light(np.stack([frame.picture_PP3 for frame in frames]), design),
        empty_TPP3=_light(np.stack([frame.empty_PP3 for frame in frames if frame.empty_PP3 is not None]), design),
        people_NTPP=np.stack([[frame.person_mask(n) for frame in frames] for n in range(len(shot.people))]),
        moving=design.pans if design.plate is not None else shot.camera.moving,
    )


def _with_still_camera(shot: Shot) -> Shot:
    """Return the shot with the camera fixed at its position in the middle of the clip."""
    camera, middle = shot.camera, [len(shot) // 2] * len(shot)
    still = replace(camera, eye_T3=camera.eye_T3[middle], axes_T33=camera.axes_T33[middle], moving=False)
    return replace(shot, camera=still)


def _read_plate(design: Design, plate: Path) -> np.ndarray:
    """Read a plate, a video or a picture, as (T, P, P, 3) uint8; the camera pans over it if the design says so."""
    rng = design.rng(view=10)
    side = round(design.size * (1 + PAN_SHARE)) if design.pans else design.size
    if plate.suffix.lower() in STILLS:
        picture = cv2.imread(str(plate))
        if picture is None:
            raise InputError(f"{plate}: cannot be read as a picture; remove it from --plates")
        whole = backgrounds.crop_square(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), side, float(rng.random()))[None]
    else:
        whole = backgrounds.read_background(plate, design.frames, design.fps, side, rng)
    starts = np.linspace(0, side - design.size, design.frames).round().astype(int)
    size = design.size
    return np.stack([whole[t % len(whole), s : s + size, s : s + size] for t, s in enumerate(starts)])


def _light(frames_TPP3: np.ndarray, design: Design) -> np.ndarray:
    """Apply the light of the design; noise is the same with people and without."""
    if design.light == "day":
        return frames_TPP3
    noise = design.rng(view=11).normal(0, GRAIN, frames_TPP3.shape).astype(np.float32)
    return np.clip(np.rint(frames_TPP3 * np.float32(DIM) + noise), 0, 255).astype(np.uint8)
