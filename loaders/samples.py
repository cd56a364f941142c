"""What is drawn for a clip before anything is decoded: crops, flips, RandAugment, erasing boxes, as plain data.

    (seed, epoch, sample, view, size of the frame)  ->  ViewParams

Both forms of the loader, the DALI graph and the plain one, take these as arguments and draw nothing themselves: that
makes a sample independent of worker, rank and resume point. Every purpose has its own Philox stream, so switching
RandAugment on moves no crop. The drawing of windows and clips is the sampler's; the types of what it draws are here.
Numpy only: loader workers import this file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ppma.common import philox
from ppma.common.philox import Purpose
from ppma.config.loader import LoaderConfig

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""

MAX_LEVEL = 10.0
TRIES = 10
"""Attempts at a box that fits, for crops (torchvision, pytorchvideo) and erasing (timm) alike."""

# Reach of an operation at level 10: pytorchvideo's published RandAugment. OPERATIONS keeps its order: draws index it.
BLEND_REACH = 0.9
OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "saturation",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
BLENDS = ("brightness", "contrast", "saturation", "sharpness")
GEOMETRIC_REACH = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
POSTERIZE_BITS = 4


@dataclass(frozen=True, kw_only=True)
class ViewParams:
    """Everything drawn for one view, one row of a batch. The same for all its frames."""

    key: int
    """Philox row key: the device draws masks, mixing, drop path and erasing noise from it."""
    crop: Box
    """In the frame after its short side was scaled to `config.short_side`."""
    flip: bool
    ops: tuple[tuple[str, float], ...]
    """RandAugment operations to apply, in order: (name, argument)."""
    erase: Box
    """In the view; height 0: none. The training step fills it with noise after normalisation."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Everything drawn for one sample: which window of which clip, and its views."""

    epoch: int
    index: int
    """Sample index in the epoch."""
    source: int
    """Index of the manifest among the run's sources."""
    clip: int
    """Row of that manifest."""
    start_seconds: float
    end_seconds: float
    views: tuple[ViewParams, ...]


@dataclass(frozen=True, kw_only=True)
class DaliInput:
    """The bytes of one window on their way to its views.

    kind "frames": one decoded uint8 (T, H, W, 3) array; "video": one encoded container; "jpeg": encoded images. Encoded
    payloads are one-dimensional uint8 arrays.
    """

    kind: Literal["frames", "video", "jpeg"]
    payloads: tuple[np.ndarray, ...]
    frame_idx: tuple[int, ...]
    """The clip's frames in order: indices into the decoded frames ("frames", "video") or the payloads ("jpeg")."""
    height: int
    """Of a decoded frame, before scaling."""
    width: int


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with the short side at `short_side`, the long one rounded down, as pytorchvideo does."""
    if width < height:
        return height * short_side // width, short_side
    return short_side, width * short_side // height


def center_crop(height: int, width: int, size: int) -> Box:
    """The middle square of a frame."""
    return (height - size) // 2, (width - size) // 2, size, size


def evaluation_crops(height: int, width: int, size: int) -> tuple[Box, Box, Box]:
    """Three squares along the long side of a scaled frame: left, centre, right, or top, centre, bottom."""
    top, left, _, _ = center_crop(height, width, size)
    if width < height:
        return (0, left, size, size), (top, left, size, size), (height - size, left, size, size)
    return (top, 0, size, size), (top, left, size, size), (top, width - size, size, size)


def random_crop(rng: np.random.Generator, height: int, width: int, config: LoaderConfig) -> Box:
    """A box in a scaled frame: RandomResizedCrop as torchvision has it, or the middle square."""
    if config.crop == "center":
        return center_crop(height, width, config.size)
    low, high = config.crop_ratio
    for _ in range(TRIES):
        area = height * width * rng.uniform(*config.crop_scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w = max(1, min(width, round(height * high)))
    h = max(1, min(height, round(width / low)))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_flip(rng: np.random.Generator, config: LoaderConfig) -> bool:
    """Whether the view is mirrored left to right."""
    return bool(rng.random() < config.flip_probability)


def operation_argument(name: str, level: float, sign: int) -> float:
    """An operation's argument at a level of 0 to 10; `sign` +1 or -1 is its direction, where it has one.

    Blend factor, bits kept (posterize), threshold as a share of white (solarize), degrees counter-clockwise (rotate),
    slope (shear) or share of the size (translate); 0 for operations without an argument.
    """
    share = level / MAX_LEVEL
    if name in BLENDS:
        return 1.0 + sign * BLEND_REACH * share
    if name in GEOMETRIC_REACH:
        return sign * GEOMETRIC_REACH[name] * share
    if name == "posterize":
        return float(POSTERIZE_BITS - int(share * POSTERIZE_BITS))
    return 1.0 - share if name == "solarize" else 0.0


def warp_matrix(name: str, argument: float, size: int) -> np.ndarray:
    """The (2, 3) matrix of a geometric operation on a square view, from output to input coordinates in pixels.

    Pixel i spans [i, i + 1). Rotation is about the centre; a shear leaves the top row (x) or left column (y) in place and
    a positive translation moves the picture left or up, all as in pytorchvideo.
    """
    turn = math.radians(argument) if name == "rotate" else 0.0
    slope_x = argument if name == "shear_x" else 0.0
    slope_y = argument if name == "shear_y" else 0.0
    linear = np.array([[math.cos(turn), slope_x - math.sin(turn)], [slope_y + math.sin(turn), math.cos(turn)]])
    shift = np.array([slope_x / 2, slope_y / 2]) * size
    if name.startswith("translate"):
        shift[0 if name == "translate_x" else 1] = argument * size
    center = np.full(2, size / 2)
    return np.column_stack([linear, center + shift - linear @ center])


def random_operations(rng: np.random.Generator, config: LoaderConfig) -> tuple[tuple[str, float], ...]:
    """RandAugment: distinct operations in random order, each kept with its probability, its level jittered."""
    n = config.randaugment_ops
    if n == 0:
        return ()
    chosen = rng.choice(len(OPERATIONS), size=n, replace=False)
    applied = rng.random(n) < config.randaugment_probability
    levels = np.clip(rng.normal(config.randaugment_magnitude, config.randaugment_std, n), 0.0, MAX_LEVEL)
    signs = rng.integers(0, 2, n) * 2 - 1
    drawn = zip(chosen, applied, levels, signs)
    return tuple((OPERATIONS[i], operation_argument(OPERATIONS[i], float(lv), int(s))) for i, a, lv, s in drawn if a)


def random_erase_box(rng: np.random.Generator, config: LoaderConfig) -> Box:
    """A box of the view to erase, as timm's RandomErasing draws it; height 0: none."""
    if rng.random() >= config.erase_probability:
        return 0, 0, 0, 0
    low, high = config.erase_ratio
    for _ in range(TRIES):
        area = config.size**2 * rng.uniform(*config.erase_area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < config.size and 0 < w < config.size:
            return int(rng.integers(0, config.size - h + 1)), int(rng.integers(0, config.size - w + 1)), h, w
    return 0, 0, 0, 0


def view_params(
    seed: int,
    epoch: int,
    sample: int,
    view: int,
    height: int,
    width: int,
    config: LoaderConfig,
    crop: Box | None = None,
) -> ViewParams:
    """All draws of one view; `height` and `width` are those of a decoded frame, before scaling. Pure.

    `crop` fixes the box instead of drawing it (the three crops of an evaluation).
    """

    def rng(purpose: Purpose) -> np.random.Generator:
        return philox.generator(seed, purpose, epoch=epoch, sample=sample, view=view)

    scaled = scaled_size(height, width, config.short_side)
    return ViewParams(
        key=philox.row_key(seed, epoch=epoch, sample=sample, view=view),
        crop=random_crop(rng(Purpose.CROP), *scaled, config) if crop is None else crop,
        flip=draw_flip(rng(Purpose.FLIP), config),
        ops=random_operations(rng(Purpose.AUGMENT), config),
        erase=random_erase_box(rng(Purpose.ERASE), config),
    )


def check_crops(views: Sequence[ViewParams], height: int, width: int) -> None:
    """Raise ValueError if a box leaves the scaled frame: the file then has another size than its manifest says."""
    for draw in views:
        top, left, h, w = draw.crop
        if top < 0 or left < 0 or h < 1 or w < 1 or top + h > height or left + w > width:
            raise ValueError(f"crop {draw.crop} leaves the scaled frame of {height} x {width}; run ppma index again")
