"""One synthetic clip: people, camera and scene are sampled from its spec, then rendered frame by frame.

    ClipSpec (seed, split, class, number, ...)  ->  sample_clip()  ->  Shot  ->  render(): frame, mask, empty twin

People, camera and scene have their own random streams (Philox), so the same spec gives the same clip bit for bit, and the
empty twin has the same scene.
Legend: T frames, P pixels along a side, V vertices.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppma.common.philox import Purpose, generator
from ppma.synthetic.motion import actions
from ppma.synthetic.render import backgrounds, bodies, raster
from ppma.synthetic.render.outfit import dress
from ppma.synthetic.render.scene import (
    CAMERA_MOTIONS,
    PLACES,
    Camera,
    Scene,
    SceneRenderer,
    sample_camera,
    sample_camera_motion,
    sample_place,
    sample_scene,
)
from ppma.synthetic.splits import SPLITS, Split

SCENE_KINDS = tuple(f"{place}, camera {motion}" for place in PLACES for motion in CAMERA_MOTIONS)
"""The classes of empty scenes: what is known of a scene without its people."""
STREAMS = ("people", "camera", "scene", "place")
"""Independent random streams; the index is the `view` of the Philox counter."""
BODY_METERS = 1.7
"""Typical height of a person."""
SPACING_METERS = 1.35
"""Distance between neighbors when there are several people."""


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Everything that a clip depends on."""

    seed: int
    split: Split
    class_name: str
    number: int
    """Of this class, from 0."""
    size: int
    """Pixels along a side."""
    frames: int
    fps: float
    people: int
    """Largest number of people; at least one is there."""
    bvh_files: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    """The user's clips that may serve as background; none: rendered scenes."""

    def stream(self, name: str) -> np.random.Generator:
        """Return the random stream of that name."""
        sample = zlib.crc32(self.class_name.encode()) << 24 | self.number
        epoch, view = SPLITS.index(self.split), STREAMS.index(name)
        return generator(self.seed, Purpose.SYNTHESIS, epoch=epoch, sample=sample, view=view)


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person over the whole clip."""

    vertices_TV3: np.ndarray
    albedo_V3: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A clip ready to render."""

    people: tuple[Person, ...]
    camera: Camera
    scene: Scene
    size: int
    background_TPP3: np.ndarray | None

    def __len__(self) -> int:
        return len(self.camera.eye_T3)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame, the pixels of people in it, and the same frame without people."""

    picture_PP3: np.ndarray
    mask_PP: np.ndarray
    empty_PP3: np.ndarray | None
    layer_SS: np.ndarray
    """Layer of each sample (two per pixel and axis), see `raster`."""

    def person_mask(self, person: int) -> np.ndarray:
        """Return the pixels (P, P) bool in which one of the people is visible."""
        size = len(self.mask_PP)
        return (self.layer_SS == raster.PERSON + person).reshape(size, 2, size, 2).any((1, 3))


def _sample_people(spec: ClipSpec) -> tuple[Person, ...]:
    """Sample people who perform the same action, each with their own body, clothes, tempo and position."""
    rng, meshes = spec.stream("people"), bodies.load()
    times_T = np.arange(spec.frames) / spec.fps
    count = int(rng.integers(1, spec.people + 1))
    facing = rng.uniform(-25, 25)
    chosen = rng.choice(list(meshes.split(spec.split)), count, replace=False)
    people = []
    for place, body in enumerate(chosen.tolist()):
        motion = actions.play(spec.class_name, times_T, rng, spec.bvh_files)
        shift_2 = np.array([(place - (count - 1) / 2) * SPACING_METERS, rng.uniform(-0.6, 0.6)])
        motion = motion.turned(facing + rng.uniform(-12, 12), shift_2 / meshes.leg_length(body))
        vertices_TV3 = bodies.animate(meshes, body, motion)
        people.append(Person(vertices_TV3=vertices_TV3, albedo_V3=dress(meshes, body, rng, spec.split)))
    return tuple(people)


def scene_kind(spec: ClipSpec) -> str | None:
    """Return the entry of SCENE_KINDS for a clip, from its spec alone; None with the user's own background."""
    if spec.videos:
        return None
    return f"{sample_place(spec.stream('scene'))}, camera {sample_camera_motion(spec.stream('camera'))}"


def sample_clip(spec: ClipSpec, *, body_pixels: float | None = None) -> Shot:
    """Sample everything random about a clip.

    Args:
        spec: The clip.
        body_pixels: Move the camera until people are about this tall, instead of showing all of them.
    """
    people = _sample_people(spec)
    feet_NT2 = np.stack([person.vertices_TV3[:, :, :2].mean(1) for person in people])
    middle_T2 = feet_NT2.mean(0)
    wide = 1.2 + 2 * float(np.linalg.norm(feet_NT2 - middle_T2, axis=-1).max())
    tall = max(float(person.vertices_TV3[:, :, 2].max()) for person in people)
    camera = sample_camera(middle_T2, wide, tall, spec.stream("camera"), spec.split, still=bool(spec.videos))
    if body_pixels is not None:
        camera = camera.at_distance(BODY_METERS * camera.focal * spec.size / body_pixels, middle_T2)
    scene = sample_scene(feet_NT2.reshape(-1, 2), camera, spec.stream("scene"), spec.split)
    background = None
    if spec.videos:
        rng = spec.stream("place")
        video = spec.videos[rng.integers(len(spec.videos))]
        background = backgrounds.read_background(video, spec.frames, spec.fps, spec.size, rng)
    return Shot(people=people, camera=camera, scene=scene, size=spec.size, background_TPP3=background)


def render(shot: Shot, *, empty: bool = False) -> Iterator[Frame]:
    """Render frame after frame, with the empty twin if `empty`; each frame has its own arrays."""
    renderer = SceneRenderer(shot.scene, shot.camera, shot.size, shot.background_TPP3)
    faces_F3, darkness = bodies.load().faces_F3, np.float32(shot.scene.light.darkness)
    for t in range(len(shot)):
        renderer.render_empty(t)
        canvas = renderer.canvas.copy()
        for n, person in enumerate(shot.people):
            renderer.add(t, person.vertices_TV3[t], faces_F3, person.albedo_V3, raster.PERSON + n, canvas)
        picture_PP3, mask_PP = canvas.resolve(darkness)
        empty_PP3 = renderer.canvas.resolve(darkness)[0] if empty else None
        yield Frame(picture_PP3=picture_PP3, mask_PP=mask_PP, empty_PP3=empty_PP3, layer_SS=canvas.layer_SS)
