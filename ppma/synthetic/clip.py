"""One clip, from its address to its frames: who, where, seen by whom, then frame after frame.

    (seed, split, class, number)  ->  sample_clip(): cast, camera, scene  ->  Shot  ->  render(): frame, mask and empty twin, one at a time

People, camera and scene draw from streams of their own (Philox), so the empty twin and a clip in another run are the same to the bit.
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

SCENE_KINDS = tuple(f"{place}, camera {way}" for place in PLACES for way in CAMERA_MOTIONS)
"""What is known of a scene without anybody in it: the classes of empty scenes."""
STREAMS = ("people", "camera", "scene", "place")
"""What draws apart from what; the position is the `view` of the address."""
BODY_METERS = 1.7
"""Height of a person, about."""
ELBOW_ROOM_METERS = 1.35
"""Between neighbours when several people are asked for."""


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """What a clip is drawn from, and all it is drawn from."""

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
    """At most so many, at least one."""
    bvh_files: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    """The user's clips that may serve as background; none: procedural."""

    def stream(self, name: str) -> np.random.Generator:
        """The draws for one concern."""
        sample = zlib.crc32(self.class_name.encode()) << 24 | self.number
        return generator(
            self.seed, Purpose.SYNTHESIS, epoch=SPLITS.index(self.split), sample=sample, view=STREAMS.index(name)
        )


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person over the whole clip."""

    vertices_TV3: np.ndarray
    albedo_V3: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A clip before it is drawn."""

    people: tuple[Person, ...]
    camera: Camera
    scene: Scene
    size: int
    pictures_TPP3: np.ndarray | None

    def __len__(self) -> int:
        return len(self.camera.eye_T3)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame: with people, whose pixels they are, and the same without them."""

    picture_PP3: np.ndarray
    mask_PP: np.ndarray
    empty_PP3: np.ndarray | None


def _draw_people(address: ClipSpec) -> tuple[Person, ...]:
    """Everyone does the same action, each in their own body, clothes, tempo and place."""
    rng, everybody = address.stream("people"), bodies.load()
    times_T = np.arange(address.frames) / address.fps
    count = int(rng.integers(1, address.people + 1))
    facing = rng.uniform(-25, 25)
    chosen = rng.choice(list(everybody.split(address.split)), count, replace=False)
    people = []
    for place, body in enumerate(int(b) for b in chosen):
        motion = actions.play(address.class_name, times_T, rng, address.bvh_files)
        shift_2 = np.array(
            [(place - (count - 1) / 2) * ELBOW_ROOM_METERS, rng.uniform(-0.6, 0.6)]
        ) / everybody.leg_length(body)
        motion = motion.turned(facing + rng.uniform(-12, 12), shift_2)
        people.append(
            Person(
                vertices_TV3=bodies.stand(everybody, body, motion),
                albedo_V3=dress(everybody, body, rng, address.split),
            )
        )
    return tuple(people)


def scene_kind(address: ClipSpec) -> str | None:
    """Which of SCENE_KINDS a clip shows, from its address alone; None in front of the user's own footage, of which nothing is known."""
    if address.videos:
        return None
    return f"{sample_place(address.stream('scene'))}, camera {sample_camera_motion(address.stream('camera'))}"


def sample_clip(address: ClipSpec, *, body_pixels: float | None = None) -> Shot:
    """Everything about the clip that is drawn at random.

    `body_pixels`: the camera goes back or comes near until people are about so tall, instead of showing all of them.
    """
    people = _draw_people(address)
    feet_NT2 = np.stack([person.vertices_TV3[:, :, :2].mean(1) for person in people])
    middle_T2 = feet_NT2.mean(0)
    wide = 1.2 + 2 * float(np.linalg.norm(feet_NT2 - middle_T2, axis=-1).max())
    tall = max(float(person.vertices_TV3[:, :, 2].max()) for person in people)
    camera = sample_camera(middle_T2, wide, tall, address.stream("camera"), address.split, still=bool(address.videos))
    if body_pixels is not None:
        camera = camera.at_distance(BODY_METERS * camera.focal * address.size / body_pixels, middle_T2)
    scene = sample_scene(feet_NT2.reshape(-1, 2), camera, address.stream("scene"), address.split)
    pictures = None
    if address.videos:
        rng = address.stream("place")
        video = address.videos[rng.integers(len(address.videos))]
        pictures = backgrounds.pictures(video, address.frames, address.fps, address.size, rng)
    return Shot(people=people, camera=camera, scene=scene, size=address.size, pictures_TPP3=pictures)


def render(take: Shot, *, empty: bool = False) -> Iterator[Frame]:
    """Draw frame after frame, with the empty twin when asked for; the arrays are new for each."""
    stage = SceneRenderer(take.scene, take.camera, take.size, take.pictures_TPP3)
    faces_F3, darkness = bodies.load().faces_F3, np.float32(take.scene.light.darkness)
    for t in range(len(take)):
        stage.frame(t)
        canvas = stage.canvas.copy()
        for person in take.people:
            stage.add(t, person.vertices_TV3[t], faces_F3, person.albedo_V3, raster.PERSON, canvas)
        picture_PP3, mask_PP = canvas.settle(darkness)
        empty_PP3 = stage.canvas.settle(darkness)[0] if empty else None
        yield Frame(picture_PP3=picture_PP3, mask_PP=mask_PP, empty_PP3=empty_PP3)
