"""Virtual people in places without people: clips in which every pixel of everybody is known.

    (seed, number)  ->  design(): how tall, how many, which camera, light and place  ->  plant(): frames, who is where, the place alone

A place is drawn, or a picture or a stretch of video without people that the user gives; a camera that pans over it makes it move. People
are those of `ppma synthesize`, at the distance at which they are as tall as the design says.
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
from ppma.synthetic.clip import ClipSpec, Shot, sample_clip
from ppma.synthetic.motion import actions
from ppma.synthetic.render import backgrounds, bodies
from ppma.synthetic.render.scene import SceneRenderer

HEIGHTS = (24, 32, 48, 64, 96, 128, 160, 200)
"""Pixels from head to feet; every eighth clip has each."""
MOST_PEOPLE = (1, 1, 2, 3, 5, 8)
"""At most so many: a draw of these, and of one to that."""
LONG_EVERY = 8
"""Every so many clips one is long, its camera still: there the place behind people is seen sooner or later."""
Light = Literal["day", "dim"]
LIGHTS: tuple[Light, ...] = get_args(Light)
DIM, GRAIN = 0.35, 4.0
"""What is left of the light, and the noise of the sensor in levels then."""
PAN_SHARE = 0.1
"""Of the side that a camera pans over the whole clip."""
STILLS = (".png", ".jpg", ".jpeg")
FIRST_LAYER = 100
"""Of the renderer: who is where is told by the layer that each is drawn on."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a planted clip is to show."""

    number: int
    seed: int
    action: str
    body_pixels: int
    most_people: int
    light: Light
    plate: Path | None
    """Picture or video without people; None: the place is drawn."""
    pans: bool
    """The camera moves; over a drawn place it may also circle, drift and follow."""
    size: int
    frames: int
    fps: float

    @property
    def name(self) -> str:
        """<class>/<video>"""
        return f"{self.action}/{self.number:04d}"


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A clip of which everything is known."""

    design: Design
    frames_TPP3: np.ndarray
    empty_TPP3: np.ndarray
    people_NTPP: np.ndarray
    """bool: pixels of each."""
    moving: bool
    """The place moves in the picture."""


def list_plates(folder: Path) -> tuple[Path, ...]:
    """Pictures and videos below a folder."""
    wanted = {*STILLS, *backgrounds.SUFFIXES}
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in wanted and p.is_file())
    if not found:
        raise InputError(f"--plates {folder}: has no picture or video ({', '.join(sorted(wanted))})")
    return tuple(found)


def design(
    number: int, *, seed: int, size: int, frames: int, long_frames: int, fps: float, plates: Sequence[Path]
) -> Design:
    """The clip of that number: heights take turns, long clips come every LONG_EVERY, the rest is drawn. With plates, half of the places."""
    rng = generator(seed, Purpose.SYNTHESIS, sample=number, view=9)
    long = number % LONG_EVERY == LONG_EVERY - 1
    turn = number // LONG_EVERY if long else number
    action = "walk" if long else actions.CLASSES[int(rng.integers(len(actions.CLASSES)))]
    plate = plates[int(rng.integers(len(plates)))] if plates and rng.random() < 0.5 else None
    return Design(
        number=number,
        seed=seed,
        action=action,
        body_pixels=min(HEIGHTS[turn % len(HEIGHTS)], round(0.8 * size)),
        most_people=MOST_PEOPLE[int(rng.integers(len(MOST_PEOPLE)))] if not long else 1,
        light=LIGHTS[int(rng.random() < 0.3)],
        plate=plate,
        pans=not long and bool(rng.random() < 0.5),
        size=size,
        frames=long_frames if long else frames,
        fps=fps,
    )


def plant(wanted: Design) -> Planted:
    """Draw the clip."""
    address = ClipSpec(
        seed=wanted.seed, split="test", class_name=wanted.action, number=wanted.number, size=wanted.size,
        frames=wanted.frames, fps=wanted.fps, people=wanted.most_people,
    )  # fmt: skip
    take = sample_clip(address, body_pixels=wanted.body_pixels)
    if wanted.plate is not None or not wanted.pans:
        take = _still(take)
    if wanted.plate is not None:
        take = replace(take, pictures_TPP3=_plate(wanted))
    frames, empties, owners = zip(*_shoot(take))
    frames_TPP3, empty_TPP3 = _lit(np.stack(frames), wanted), _lit(np.stack(empties), wanted)
    moving = wanted.pans if wanted.plate is not None else take.camera.moving
    people_NTPP = np.stack(owners).transpose(1, 0, 2, 3)
    return Planted(
        design=wanted, frames_TPP3=frames_TPP3, empty_TPP3=empty_TPP3, people_NTPP=people_NTPP, moving=moving
    )


def _still(take: Shot) -> Shot:
    """The same with the camera where it is in the middle of the clip."""
    camera, middle = take.camera, len(take) // 2
    eye_T3, axes_T33 = (
        np.repeat(array[middle : middle + 1], len(take), 0) for array in (camera.eye_T3, camera.axes_T33)
    )
    return replace(take, camera=replace(camera, eye_T3=eye_T3, axes_T33=axes_T33, moving=False))


def _shoot(take: Shot) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(picture_PP3, empty_PP3, owned_NPP) of each frame."""
    stage = SceneRenderer(take.scene, take.camera, take.size, take.pictures_TPP3)
    faces_F3, darkness = bodies.load().faces_F3, np.float32(take.scene.light.darkness)
    shots = []
    for t in range(len(take)):
        stage.frame(t)
        canvas = stage.canvas.copy()
        for n, person in enumerate(take.people):
            stage.add(t, person.vertices_TV3[t], faces_F3, person.albedo_V3, FIRST_LAYER + n, canvas)
        samples_NSS = canvas.layer_SS[None] == FIRST_LAYER + np.arange(len(take.people))[:, None, None]
        size = take.size
        owned_NPP = samples_NSS.reshape(len(take.people), size, 2, size, 2).any((2, 4))
        shots.append((canvas.settle(darkness)[0], stage.canvas.settle(darkness)[0], owned_NPP))
    return shots


def _plate(wanted: Design) -> np.ndarray:
    """(T, P, P, 3) of the plate: a stretch of a video, or a still picture, over which the camera pans when it is to."""
    assert wanted.plate is not None
    rng = generator(wanted.seed, Purpose.SYNTHESIS, sample=wanted.number, view=10)
    side = round(wanted.size * (1 + PAN_SHARE)) if wanted.pans else wanted.size
    if wanted.plate.suffix.lower() in STILLS:
        picture = cv2.imread(str(wanted.plate))
        if picture is None:
            raise InputError(f"{wanted.plate}: is no picture; take it out of --plates")
        square = backgrounds.square(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), side, float(rng.random()))
        whole = np.repeat(square[None], wanted.frames, 0)
    else:
        whole = backgrounds.pictures(wanted.plate, wanted.frames, wanted.fps, side, rng)
        whole = whole[np.arange(wanted.frames) % len(whole)]
    steps = np.linspace(0, side - wanted.size, wanted.frames).round().astype(int)
    return np.stack([frame[s : s + wanted.size, s : s + wanted.size] for frame, s in zip(whole, steps)])


def _lit(frames_TPP3: np.ndarray, wanted: Design) -> np.ndarray:
    """In the light of the design; noise is the same with people and without."""
    if wanted.light == "day":
        return frames_TPP3
    rng = generator(wanted.seed, Purpose.SYNTHESIS, sample=wanted.number, view=11)
    noise = rng.normal(0, GRAIN, frames_TPP3.shape).astype(np.float32)
    return np.clip(np.rint(frames_TPP3 * np.float32(DIM) + noise), 0, 255).astype(np.uint8)
