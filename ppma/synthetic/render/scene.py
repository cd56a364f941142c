"""Where a clip takes place and who looks: a room or the open, furniture, a light, and a camera that stands, drifts, circles or follows.

    sample_camera_motion(), sample_place()                    -> how the camera moves, room or open: the first draws of their streams
    sample_camera()  where people are             -> eye and target per frame
    sample_scene()   people and camera, so that no wall or box stands between them  -> Scene
    SceneRenderer          draws the scene frame by frame, once if the camera stands
Scene and camera draw from their own streams; nothing about them depends on the class but where the people walk.
Legend: T frames, S samples along a side, P pixels along a side.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import cv2
import numpy as np

from ppma.synthetic.motion.rotations import unit
from ppma.synthetic.render import raster, surroundings
from ppma.synthetic.render.outfit import color
from ppma.synthetic.render.surroundings import OUTDOORS
from ppma.synthetic.render.textures import outlook, surface
from ppma.synthetic.splits import Split, sample_in_split

SIDES_OF_BOX = ((0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5))
"""Corner n of a box lies at bit 0 (x), bit 1 (y) and bit 2 (z) of n; each side counter-clockwise from outside.

Sides share no corners, so that edges stay sharp."""
BOX_CORNERS = np.array(SIDES_OF_BOX).ravel()
BOX_FACES = np.concatenate([np.array([(0, 1, 2), (0, 2, 3)]) + 4 * n for n in range(6)]).astype(np.int32)


CameraMotion = Literal["still", "circling", "drifting", "handheld"]
CAMERA_MOTIONS: tuple[CameraMotion, ...] = get_args(CameraMotion)
"""How a camera moves of its own accord; one that follows somebody who walks off does so besides."""
Place = Literal["room", "open"]
PLACES: tuple[Place, ...] = get_args(Place)
ROOM_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole per frame; square pictures."""

    eye_T3: np.ndarray
    axes_T33: np.ndarray
    """Rows: right, down, ahead."""
    focal: float
    """Focal length in picture widths."""
    moving: bool

    def at_distance(self, meters: float, middle_T2: np.ndarray) -> "Camera":
        """The camera moved along its view until it is so far, on average, from people whose middle is middle_T2; it turns as before."""
        ahead_T3 = self.axes_T33[:, 2]
        people_T3 = np.concatenate([middle_T2, np.full((len(middle_T2), 1), 0.85)], 1)
        distance_T = np.einsum("tk,tk->t", people_T3 - self.eye_T3, ahead_T3)
        step_T1 = (distance_T * (1 - meters / distance_T.mean()))[:, None]
        return replace(self, eye_T3=self.eye_T3 + step_T1 * ahead_T3)


@dataclass(frozen=True, kw_only=True)
class Light:
    """One sun or lamp, and what comes from everywhere."""

    direction_3: np.ndarray
    """Towards the sun, unit length, z > 0."""
    ambient_3: np.ndarray
    direct_3: np.ndarray
    darkness: float
    """How much of the floor's light a shadow takes."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that is there without people."""

    room_23: np.ndarray
    """Lower and upper corner, meters; OUTDOORS away where there is no wall."""
    floor: np.ndarray
    wall: np.ndarray
    panorama: np.ndarray
    haze_3: np.ndarray
    tile_meters: float
    boxes_V3: np.ndarray
    boxes_F3: np.ndarray
    boxes_albedo_V3: np.ndarray
    light: Light


def _look(eye_T3: np.ndarray, target_T3: np.ndarray) -> np.ndarray:
    """Axes (T, 3, 3) of cameras that look from eye to target, upright."""
    ahead = unit(target_T3 - eye_T3)
    right = unit(np.cross(ahead, [0.0, 0.0, 1.0]))
    return np.stack([right, np.cross(ahead, right), ahead], 1)


def _smooth(values_T: np.ndarray, frames: int) -> np.ndarray:
    """Moving average along time."""
    kernel = np.ones(2 * frames + 1) / (2 * frames + 1)
    return np.stack([np.convolve(np.pad(column, frames, mode="edge"), kernel, "valid") for column in values_T.T], -1)


def sample_camera_motion(rng: np.random.Generator, *, still: bool = False) -> CameraMotion:
    """How the camera moves: two in five stand; all of them where `still`."""
    drawn = int(rng.integers(len(CAMERA_MOTIONS) + 1))
    return CAMERA_MOTIONS[0] if still else CAMERA_MOTIONS[max(drawn - 1, 0)]


def sample_place(rng: np.random.Generator) -> Place:
    """A room or the open."""
    return PLACES[int(rng.random() >= ROOM_SHARE)]


def sample_camera(
    feet_T2: np.ndarray, wide: float, tall: float, rng: np.random.Generator, split: Split, *, still: bool = False
) -> Camera:
    """A camera for people whose middle moves along feet_T2 and who are `wide` around it and `tall`, all meters; they face -y, more or less.

    `still`: no movement but to follow who walks off.
    """
    way = sample_camera_motion(rng, still=still)
    count = len(feet_T2)
    time = np.linspace(-0.5, 0.5, count)
    azimuth = np.deg2rad(-90 + sample_in_split(rng, split, -72, 72, sectors=12))
    elevation = np.deg2rad(sample_in_split(rng, split, 1, 26, sectors=6))
    focal = sample_in_split(rng, split, 1.0, 1.7)
    travel = np.ptp(feet_T2, axis=0).max()
    follows = travel > 1.2 or rng.random() < 0.3
    center_T2 = _smooth(feet_T2, count // 5) if follows else np.tile((feet_T2.min(0) + feet_T2.max(0)) / 2, (count, 1))
    middle = 0.85 + rng.uniform(-0.08, 0.12)
    stray = 2 * np.linalg.norm(feet_T2 - center_T2, axis=1).max()
    distance = focal * max(rng.uniform(2.1, 3.1), wide + stray, 2.4 * (tall - middle), 2.2 * middle)
    azimuth_T = azimuth + (np.deg2rad(rng.uniform(-30, 30)) * time if way == "circling" else 0 * time)
    distance_T = distance * (1 + (rng.uniform(-0.25, 0.25) * time if way == "drifting" else 0 * time))
    target_T3 = np.concatenate([center_T2, np.full((count, 1), middle)], 1)
    around_T3 = np.stack(
        [
            np.cos(elevation) * np.cos(azimuth_T),
            np.cos(elevation) * np.sin(azimuth_T),
            np.full(count, np.sin(elevation)),
        ],
        1,
    )
    eye_T3 = target_T3 + distance_T[:, None] * around_T3
    if way == "handheld":
        waves = np.stack(
            [np.sin(time[:, None] * rng.uniform(4, 14, 3) + rng.uniform(0, 6.28, 3)) for _ in range(2)]
        ).sum(0)
        target_T3 = target_T3 + 0.03 * waves
        eye_T3 = eye_T3 + 0.03 * waves[:, ::-1]
    return Camera(
        eye_T3=eye_T3,
        axes_T33=_look(eye_T3, target_T3).astype(np.float32),
        focal=focal,
        moving=bool(follows and travel > 0) or way != "still",
    )


def sample_light(rng: np.random.Generator, split: Split) -> Light:
    """A sun or lamp from above, a color cast, and how hard its shadow is."""
    azimuth, height = np.deg2rad(sample_in_split(rng, split, 0, 360)), np.deg2rad(rng.uniform(35, 80))
    direction = np.array(
        [np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)], np.float32
    )
    ambient = rng.uniform(0.45, 0.7)
    tint = rng.uniform(0.88, 1.05, 3)
    return Light(
        direction_3=direction,
        ambient_3=(ambient * rng.uniform(0.9, 1.05, 3)).astype(np.float32),
        direct_3=((1.2 - ambient) * tint).astype(np.float32),
        darkness=float(rng.uniform(0.3, 0.6)),
    )


def _boxes(keep_out: np.ndarray, eye_2: np.ndarray, room_23: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Corners (n * 24, 3) of furniture-like boxes that neither touch people nor stand before the eye."""
    corners = []
    middle, reach = keep_out.mean(0), np.ptp(keep_out, axis=0).max() / 2 + 0.9
    ahead = unit(middle - eye_2)
    for _ in range(int(rng.integers(0, 5))):
        half, height = rng.uniform(0.2, 0.7, 2), rng.uniform(0.3, 1.8)
        angle, away = rng.uniform(0, 2 * np.pi), reach + np.hypot(*half) + rng.uniform(0.1, 2.5)
        center = middle + away * np.array([np.cos(angle), np.sin(angle)])
        turn, margin = rng.uniform(0, np.pi), np.hypot(*half)
        beside = (center - middle) @ ahead > -0.35 * away
        if not beside or (center - margin < room_23[0, :2]).any() or (center + margin > room_23[1, :2]).any():
            continue
        axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        signs = np.array([[n & 1, n >> 1 & 1] for n in range(8)]) * 2 - 1
        flat = center + (signs * half) @ axes
        corners.append(np.concatenate([flat, np.repeat([[0.0], [height]], 4, axis=0)], 1)[BOX_CORNERS])
    return np.concatenate(corners).astype(np.float32) if corners else np.zeros((0, 3), np.float32)


def sample_scene(feet_N2: np.ndarray, camera: Camera, rng: np.random.Generator, split: Split) -> Scene:
    """A room or the open around people who stand within the points feet_N2, with the camera inside."""
    place = sample_place(rng)
    inside = np.concatenate([feet_N2, camera.eye_T3[:, :2]])
    room_23 = np.array([[-OUTDOORS, -OUTDOORS, 0], [OUTDOORS, OUTDOORS, OUTDOORS]])
    walls = np.stack([inside.min(0) - rng.uniform(1.0, 3.5, 2), inside.max(0) + rng.uniform(1.0, 3.5, 2)])
    height = max(rng.uniform(2.5, 4.5), camera.eye_T3[:, 2].max() + 0.3)
    if place == "room":
        room_23 = np.concatenate([walls, [[0.0], [height]]], 1)
    light = sample_light(rng, split)
    nothing = np.zeros((1, surroundings.TEXTURE_SIDE, surroundings.TEXTURE_SIDE, 3), np.float32)
    if place == "room":
        wall, panorama, haze_3 = (
            surface(rng, split, (0.5, 0.95)),
            nothing[0, :1, :1],
            color(rng, split, (0.7, 0.95)) * 0.5 + 110,
        )  # the ceiling
    else:
        wall, (panorama, haze_3) = nothing, outlook(rng, split)
    boxes_V3 = _boxes(feet_N2, camera.eye_T3[:, :2].mean(0), room_23, rng)
    count = len(boxes_V3) // 24
    return Scene(
        room_23=room_23.astype(np.float32),
        floor=surface(rng, split, (0.45, 0.95)),
        wall=wall,
        panorama=panorama,
        haze_3=haze_3.astype(np.float32),
        tile_meters=float(rng.uniform(1.2, 3.0)),
        boxes_V3=boxes_V3,
        boxes_F3=np.concatenate([np.zeros((0, 3), np.int32), *(BOX_FACES + 24 * n for n in range(count))]),
        boxes_albedo_V3=np.repeat(
            np.array([color(rng, split) for _ in range(count)], np.float32).reshape(-1, 3), 24, axis=0
        ),
        light=light,
    )


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What a frame is drawn on."""

    color_SS3: np.ndarray
    depth_SS: np.ndarray
    layer_SS: np.ndarray
    shadow_PP: np.ndarray

    @classmethod
    def blank(cls, size: int) -> "Canvas":
        """A canvas for pictures of `size` pixels a side."""
        side = size * raster.SUPERSAMPLE
        return cls(
            color_SS3=np.zeros((side, side, 3), np.float32),
            depth_SS=np.full((side, side), raster.FAR, np.float32),
            layer_SS=np.zeros((side, side), np.uint8),
            shadow_PP=np.zeros((size, size), np.float32),
        )

    def copy(self) -> "Canvas":
        """A canvas to go on drawing on, this one left as it is."""
        return Canvas(
            color_SS3=self.color_SS3.copy(),
            depth_SS=self.depth_SS.copy(),
            layer_SS=self.layer_SS.copy(),
            shadow_PP=self.shadow_PP.copy(),
        )

    def settle(self, darkness: np.float32) -> tuple[np.ndarray, np.ndarray]:
        """The picture (P, P, 3) uint8 and the mask of people (P, P) bool; shadows get an edge about a hundredth of the picture wide."""
        size = len(self.shadow_PP)
        soft_PP = cv2.GaussianBlur(self.shadow_PP, (0, 0), max(0.5, size / 110))
        picture_PP3, mask_PP = np.empty((size, size, 3), np.uint8), np.empty((size, size), bool)
        raster.settle(self.color_SS3, self.layer_SS, soft_PP, darkness, picture_PP3, mask_PP)
        return picture_PP3, mask_PP


class SceneRenderer:
    """The scene without people through one camera, on a canvas."""

    def __init__(self, scene: Scene, camera: Camera, size: int, pictures_TPP3: np.ndarray | None = None) -> None:
        """`pictures_TPP3`: frames of a real place to stand in for floor and walls (uint8, repeated when too few)."""
        self.scene, self.camera, self.size, self.pictures_TPP3 = scene, camera, size, pictures_TPP3
        self.canvas = Canvas.blank(size)
        self._drawn_once = False

    def frame(self, t: int) -> None:
        """Draw the empty scene of frame t on this stage's canvas."""
        if self._drawn_once and not self.camera.moving and self.pictures_TPP3 is None:
            return
        scene, canvas = self.scene, self.canvas
        surroundings.cast(
            self.camera.eye_T3[t].astype(np.float32),
            self.camera.axes_T33[t],
            self._focal(len(canvas.depth_SS)),
            scene.room_23,
            scene.floor,
            scene.wall,
            scene.panorama,
            np.float32(scene.tile_meters),
            self._wall_light_5(),
            scene.haze_3,
            canvas.color_SS3,
            canvas.layer_SS,
        )
        canvas.depth_SS[:] = raster.FAR
        canvas.shadow_PP[:] = 0
        if self.pictures_TPP3 is not None:
            picture_PP3 = self.pictures_TPP3[t % len(self.pictures_TPP3)]
            canvas.color_SS3[:] = picture_PP3.repeat(raster.SUPERSAMPLE, 0).repeat(raster.SUPERSAMPLE, 1)
        elif len(scene.boxes_V3):
            self.add(t, scene.boxes_V3, scene.boxes_F3, scene.boxes_albedo_V3, raster.THING, canvas)
        self._drawn_once = True

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
        """Light on the walls towards +x, -x, +y, -y (their insides) and on the floor, for white surfaces."""
        light = self.scene.light
        normals = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, 1]])
        sun = np.maximum(normals @ light.direction_3, 0) * light.direct_3.mean()
        return (light.ambient_3.mean() + 0.8 * sun).astype(np.float32)
