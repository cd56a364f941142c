"""Random scenes and cameras, and the renderer that puts meshes into them.

    sample_camera_motion(), sample_place()  ->  how the camera moves, room or open: first in their random streams
    sample_camera()  path of the people     ->  Camera: position and axes per frame
    sample_scene()   people and camera      ->  Scene: no wall or box between them
    SceneRenderer    Scene, Camera          ->  frames; a still scene is rendered once

Scene and camera have their own random streams; nothing about them depends on the class but where the people walk.
Legend: T frames, S samples along a side, P pixels along a side, V vertices, F triangles.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import cv2
import numpy as np

from ppma.synthetic.motion.rotations import unit
from ppma.synthetic.render import raster
from ppma.synthetic.render.outfit import sample_color
from ppma.synthetic.render.raster import OUTDOORS
from ppma.synthetic.render.textures import outlook, surface
from ppma.synthetic.splits import Split, sample_in_split

BOX_CORNERS = np.array([(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]).ravel()
"""Corners of a box's six sides, counterclockwise from outside; corner n is at bit 0 (x), bit 1 (y), bit 2 (z) of n.
Sides share no corners, so that edges stay sharp."""
BOX_FACES = np.concatenate([np.array([(0, 1, 2), (0, 2, 3)]) + 4 * n for n in range(6)]).astype(np.int32)

CameraMotion = Literal["still", "circling", "drifting", "handheld"]
CAMERA_MOTIONS: tuple[CameraMotion, ...] = get_args(CameraMotion)
"""How a camera moves; it may also follow people who walk away."""
Place = Literal["room", "open"]
PLACES: tuple[Place, ...] = get_args(Place)
ROOM_SHARE = 0.6
TARGET_METERS = 0.85
"""Height of the middle of a person."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera per frame; square frames."""

    eye_T3: np.ndarray
    axes_T33: np.ndarray
    """Rows: right, down, ahead."""
    focal: float
    """Focal length in frame widths."""
    moving: bool

    def at_distance(self, meters: float, middle_T2: np.ndarray) -> "Camera":
        """Return the camera moved along its view to this mean distance from people whose middle is middle_T2."""
        ahead_T3 = self.axes_T33[:, 2]
        people_T3 = np.concatenate([middle_T2, np.full((len(middle_T2), 1), TARGET_METERS)], 1)
        distance_T = np.einsum("tk,tk->t", people_T3 - self.eye_T3, ahead_T3)
        step_T1 = (distance_T * (1 - meters / distance_T.mean()))[:, None]
        return replace(self, eye_T3=self.eye_T3 + step_T1 * ahead_T3)


@dataclass(frozen=True, kw_only=True)
class Light:
    """One sun or lamp, and ambient light."""

    direction_3: np.ndarray
    """Towards the sun, unit length, z > 0."""
    ambient_3: np.ndarray
    direct_3: np.ndarray
    darkness: float
    """Share of the floor's light that a shadow takes away."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A place without people: room or open ground, textures, furniture and light."""

    room_23: np.ndarray
    """Lower and upper corner in meters; OUTDOORS away where there is no wall."""
    floor: np.ndarray
    wall: np.ndarray
    panorama: np.ndarray
    haze_3: np.ndarray
    tile_meters: float
    boxes_V3: np.ndarray
    boxes_F3: np.ndarray
    boxes_albedo_V3: np.ndarray
    light: Light


def _look_at(eye_T3: np.ndarray, target_T3: np.ndarray) -> np.ndarray:
    """Return axes (T, 3, 3) of upright cameras that look from eye to target."""
    ahead = unit(target_T3 - eye_T3)
    right = unit(np.cross(ahead, [0.0, 0.0, 1.0]))
    return np.stack([right, np.cross(ahead, right), ahead], 1)


def _smooth(values_T: np.ndarray, frames: int) -> np.ndarray:
    """Return the moving average along time."""
    kernel = np.ones(2 * frames + 1) / (2 * frames + 1)
    return np.stack([np.convolve(np.pad(column, frames, mode="edge"), kernel, "valid") for column in values_T.T], -1)


def sample_camera_motion(rng: np.random.Generator, *, still: bool = False) -> CameraMotion:
    """Sample how the camera moves: two in five stand still, or all of them with `still`."""
    number = int(rng.integers(len(CAMERA_MOTIONS) + 1))
    return CAMERA_MOTIONS[0] if still else CAMERA_MOTIONS[max(number - 1, 0)]


def sample_place(rng: np.random.Generator) -> Place:
    """Sample a room or the open."""
    return PLACES[int(rng.random() >= ROOM_SHARE)]


def sample_camera(
    feet_T2: np.ndarray, wide: float, tall: float, rng: np.random.Generator, split: Split, *, still: bool = False
) -> Camera:
    """Sample a camera for people who face about -y.

    Args:
        feet_T2: Path of their middle on the floor, in meters.
        wide: Width that they occupy around it, in meters.
        tall: Height of the tallest, in meters.
        rng: Random numbers.
        split: Decides which angles and focal lengths are possible.
        still: No movement but to follow people who walk away.
    """
    motion = sample_camera_motion(rng, still=still)
    count = len(feet_T2)
    time = np.linspace(-0.5, 0.5, count)
    azimuth = np.deg2rad(-90 + sample_in_split(rng, split, -72, 72, sectors=12))
    elevation = np.deg2rad(sample_in_split(rng, split, 1, 26, sectors=6))
    focal = sample_in_split(rng, split, 1.0, 1.7)
    # 1. target: the people's middle, followed or fixed
    travel = np.ptp(feet_T2, axis=0).max()
    follows = travel > 1.2 or rng.random() < 0.3
    center_T2 = _smooth(feet_T2, count // 5) if follows else np.tile((feet_T2.min(0) + feet_T2.max(0)) / 2, (count, 1))
    middle = TARGET_METERS + rng.uniform(-0.08, 0.12)
    target_T3 = np.concatenate([center_T2, np.full((count, 1), middle)], 1)
    # 2. distance: all people fit into the frame
    stray = 2 * np.linalg.norm(feet_T2 - center_T2, axis=1).max()
    distance = focal * max(rng.uniform(2.1, 3.1), wide + stray, 2.4 * (tall - middle), 2.2 * middle)
    # 3. movement
    azimuth_T = azimuth + (np.deg2rad(rng.uniform(-30, 30)) * time if motion == "circling" else 0 * time)
    distance_T = distance * (1 + (rng.uniform(-0.25, 0.25) * time if motion == "drifting" else 0 * time))
    flat = np.cos(elevation)
    around_T3 = np.stack([flat * np.cos(azimuth_T), flat * np.sin(azimuth_T), np.full(count, np.sin(elevation))], 1)
    eye_T3 = target_T3 + distance_T[:, None] * around_T3
    if motion == "handheld":
        waves_T3 = np.sum(
            [np.sin(time[:, None] * rng.uniform(4, 14, 3) + rng.uniform(0, 6.28, 3)) for _ in range(2)], 0
        )
        target_T3 = target_T3 + 0.03 * waves_T3
        eye_T3 = eye_T3 + 0.03 * waves_T3[:, ::-1]
    moving = bool(follows and travel > 0) or motion != "still"
    return Camera(eye_T3=eye_T3, axes_T33=_look_at(eye_T3, target_T3).astype(np.float32), focal=focal, moving=moving)


def sample_light(rng: np.random.Generator, split: Split) -> Light:
    """Sample a sun or lamp above the scene, its tint, and the darkness of its shadow."""
    azimuth, height = np.deg2rad(sample_in_split(rng, split, 0, 360)), np.deg2rad(rng.uniform(35, 80))
    flat = np.cos(height)
    direction = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(height)], np.float32)
    ambient = rng.uniform(0.45, 0.7)
    tint = rng.uniform(0.88, 1.05, 3)
    return Light(
        direction_3=direction,
        ambient_3=(ambient * rng.uniform(0.9, 1.05, 3)).astype(np.float32),
        direct_3=((1.2 - ambient) * tint).astype(np.float32),
        darkness=float(rng.uniform(0.3, 0.6)),
    )


def _sample_boxes(keep_out: np.ndarray, eye_2: np.ndarray, room_23: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return corners (n * 24, 3) of furniture-like boxes that neither touch people nor hide them."""
    corners = []
    middle, reach = keep_out.mean(0), np.ptp(keep_out, axis=0).max() / 2 + 0.9
    ahead = unit(middle - eye_2)
    for _ in range(int(rng.integers(0, 5))):
        half, height = rng.uniform(0.2, 0.7, 2), rng.uniform(0.3, 1.8)
        angle, away = rng.uniform(0, 2 * np.pi), reach + np.hypot(*half) + rng.uniform(0.1, 2.5)
        center = middle + away * np.array([np.cos(angle), np.sin(angle)])
        turn, margin = rng.uniform(0, np.pi), np.hypot(*half)
        in_view = (center - middle) @ ahead <= -0.35 * away
        if in_view or (center - margin < room_23[0, :2]).any() or (center + margin > room_23[1, :2]).any():
            continue
        axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        signs = np.array([[n & 1, n >> 1 & 1] for n in range(8)]) * 2 - 1
        flat = center + (signs * half) @ axes
        corners.append(np.concatenate([flat, np.repeat([[0.0], [height]], 4, axis=0)], 1)[BOX_CORNERS])
    return np.concatenate(corners).astype(np.float32) if corners else np.zeros((0, 3), np.float32)


def sample_scene(feet_N2: np.ndarray, camera: Camera, rng: np.random.Generator, split: Split) -> Scene:
    """Sample a room or the open around people at the points feet_N2 (meters), with the camera inside."""
    place = sample_place(rng)
    inside = np.concatenate([feet_N2, camera.eye_T3[:, :2]])
    walls = np.stack([inside.min(0) - rng.uniform(1.0, 3.5, 2), inside.max(0) + rng.uniform(1.0, 3.5, 2)])
    height = max(rng.uniform(2.5, 4.5), camera.eye_T3[:, 2].max() + 0.3)
    light = sample_light(rng, split)
    nothing = np.zeros((1, raster.TEXTURE_SIDE, raster.TEXTURE_SIDE, 3), np.float32)
    if place == "room":
        room_23 = np.concatenate([walls, [[0.0], [height]]], 1)
        wall, panorama = surface(rng, split, (0.5, 0.95)), nothing[0, :1, :1]
        haze_3 = sample_color(rng, split, (0.7, 0.95)) * 0.5 + 110  # the ceiling
    else:
        room_23 = np.array([[-OUTDOORS, -OUTDOORS, 0], [OUTDOORS, OUTDOORS, OUTDOORS]])
        wall, (panorama, haze_3) = nothing, outlook(rng, split)
    boxes_V3 = _sample_boxes(feet_N2, camera.eye_T3[:, :2].mean(0), room_23, rng)
    floor, tile_meters = surface(rng, split, (0.45, 0.95)), float(rng.uniform(1.2, 3.0))
    count = len(boxes_V3) // 24
    albedo = np.array([sample_color(rng, split) for _ in range(count)], np.float32).reshape(-1, 3)
    return Scene(
        room_23=room_23.astype(np.float32),
        floor=floor,
        wall=wall,
        panorama=panorama,
        haze_3=haze_3.astype(np.float32),
        tile_meters=tile_meters,
        boxes_V3=boxes_V3,
        boxes_F3=np.concatenate([np.zeros((0, 3), np.int32), *(BOX_FACES + 24 * n for n in range(count))]),
        boxes_albedo_V3=np.repeat(albedo, 24, axis=0),
        light=light,
    )


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The buffers of one frame."""

    color_SS3: np.ndarray
    depth_SS: np.ndarray
    layer_SS: np.ndarray
    shadow_PP: np.ndarray

    @classmethod
    def blank(cls, size: int) -> "Canvas":
        """Return a canvas for frames of `size` pixels a side."""
        side = size * raster.SUPERSAMPLE
        return cls(
            color_SS3=np.zeros((side, side, 3), np.float32),
            depth_SS=np.full((side, side), raster.FAR, np.float32),
            layer_SS=np.zeros((side, side), np.uint8),
            shadow_PP=np.zeros((size, size), np.float32),
        )

    def copy(self) -> "Canvas":
        """Return a canvas to draw on without changing this one."""
        return Canvas(**{name: buffer.copy() for name, buffer in vars(self).items()})

    def resolve(self, darkness: np.float32) -> tuple[np.ndarray, np.ndarray]:
        """Return the frame (P, P, 3) uint8, with soft shadows, and the mask of people (P, P) bool."""
        size = len(self.shadow_PP)
        soft_PP = cv2.GaussianBlur(self.shadow_PP, (0, 0), max(0.5, size / 110))
        frame_PP3, mask_PP = np.empty((size, size, 3), np.uint8), np.empty((size, size), bool)
        raster.resolve(self.color_SS3, self.layer_SS, soft_PP, darkness, frame_PP3, mask_PP)
        return frame_PP3, mask_PP


class SceneRenderer:
    """Renders a scene onto its `canvas`, and people onto copies of it."""

    def __init__(self, scene: Scene, camera: Camera, size: int, background_TPP3: np.ndarray | None = None) -> None:
        """Set up the canvas.

        Args:
            scene: What to render.
            camera: From where.
            size: Pixels along a side.
            background_TPP3: Frames of real footage (uint8, repeated if too few) in place of floor, walls, furniture.
        """
        self.scene, self.camera, self.size, self.background_TPP3 = scene, camera, size, background_TPP3
        self.canvas = Canvas.blank(size)
        self._rendered = False

    def render_empty(self, t: int) -> None:
        """Render frame t of the scene without people onto `canvas`."""
        if self._rendered and not self.camera.moving and self.background_TPP3 is None:
            return
        scene, canvas = self.scene, self.canvas
        eye_3, axes_33 = self.camera.eye_T3[t].astype(np.float32), self.camera.axes_T33[t]
        raster.cast(
            eye_3, axes_33, self._focal(len(canvas.depth_SS)), scene.room_23, scene.floor, scene.wall, scene.panorama,
            np.float32(scene.tile_meters), self._wall_light_5(), scene.haze_3, canvas.color_SS3, canvas.layer_SS,
        )  # fmt: skip  # twelve positional arrays
        canvas.depth_SS[:] = raster.FAR
        canvas.shadow_PP[:] = 0
        if self.background_TPP3 is not None:
            background_PP3 = self.background_TPP3[t % len(self.background_TPP3)]
            canvas.color_SS3[:] = background_PP3.repeat(raster.SUPERSAMPLE, 0).repeat(raster.SUPERSAMPLE, 1)
        elif len(scene.boxes_V3):
            self.add(t, scene.boxes_V3, scene.boxes_F3, scene.boxes_albedo_V3, raster.THING, canvas)
        self._rendered = True

    def add(
        self, t: int, vertices_V3: np.ndarray, faces_F3: np.ndarray, albedo_V3: np.ndarray, layer: int, canvas: Canvas
    ) -> None:
        """Draw a mesh and its shadow on a canvas, as the camera of frame t sees them."""
        light, eye_3, axes_33 = self.scene.light, self.camera.eye_T3[t].astype(np.float32), self.camera.axes_T33[t]
        screen_V3, lit_V3 = np.empty_like(vertices_V3), np.empty_like(vertices_V3)
        flat_V3 = vertices_V3 - vertices_V3[:, 2:] * (light.direction_3 / light.direction_3[2])
        raster.project(flat_V3, eye_3, axes_33, self._focal(self.size), np.float32(self.size / 2), screen_V3)
        raster.cover(screen_V3, faces_F3, canvas.shadow_PP)
        raster.light_up(vertices_V3, faces_F3, light.direction_3, light.ambient_3, light.direct_3, lit_V3)
        side = len(canvas.depth_SS)
        raster.project(vertices_V3, eye_3, axes_33, self._focal(side), np.float32(side / 2), screen_V3)
        raster.paint(screen_V3, faces_F3, albedo_V3, lit_V3, layer, canvas.color_SS3, canvas.depth_SS, canvas.layer_SS)

    def _focal(self, side: int) -> np.float32:
        return np.float32(self.camera.focal * side)

    def _wall_light_5(self) -> np.ndarray:
        """Return the light on the inside of white walls at +x, -x, +y, -y, and on a white floor."""
        light = self.scene.light
        normals = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, 1]])
        sun = np.maximum(normals @ light.direction_3, 0) * light.direct_3.mean()
        return (light.ambient_3.mean() + 0.8 * sun).astype(np.float32)
