"""A sample: which frames of a clip it shows, and the crop, flip and augmentations of each of its views, as plain data.

    (seed, epoch, sample, view, frame size)  ->  ViewParams        frame times, [start, end)  ->  indices of frames

All randomness of a view is decided here, so a sample does not depend on worker, rank or resume point. Each purpose has
its own Philox RNG stream: enabling RandAugment moves no crop. Numpy only: loader workers import this file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppma.common import philox
from ppma.common.philox import Purpose
from ppma.config.loader import LoaderConfig

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""
NO_BOX: Box = (0, 0, 0, 0)

MAX_LEVEL = 10.0
TRIES = 10
"""Attempts at a box that fits, for crops (torchvision, pytorchvideo) and erasing (timm) alike."""

# Range of each operation at level 10, from pytorchvideo's RandAugment. RNG streams index OPERATIONS: keep its order.
BLEND_REACH = 0.9
OPERATIONS = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "saturation", "contrast"),
    *("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)
BLENDS = ("brightness", "contrast", "saturation", "sharpness")
GEOMETRIC_REACH = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
POSTERIZE_BITS = 4

TIME_TOLERANCE = 5e-7
"""Seconds by which a frame's time, a fraction, may differ from the same time as a float."""


@dataclass(frozen=True, kw_only=True)
class ViewParams:
    """Crop, flip and augmentations of one view: one row of a batch, the same for all its frames."""

    key: int
    """Philox key of the row: the device draws masks, mixing, drop path and erasing noise from it."""
    crop: Box
    """In the frame after its short side was scaled to `config.short_side`."""
    flip: bool
    ops: tuple[tuple[str, float], ...]
    """RandAugment operations to apply, in order: (name, argument)."""
    erase: Box
    """In the view, height 0 for none. The training step fills it with noise after normalization."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One window of one clip, and its views."""

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


# --------------------------------------------------------------------------------------------------- frames of a window


def frames_in_window(times: Sequence[float] | np.ndarray, start: float, end: float) -> tuple[int, int]:
    """Return the range [first, stop) of frames whose time is in [start, end); if there is none, the frame on screen.

    Args:
        times: Presentation times of the frames in seconds, ascending.
        start: First moment of the window in seconds.
        end: End of the window in seconds, exclusive.
    """
    first, stop = np.searchsorted(times, (start - TIME_TOLERANCE, end - TIME_TOLERANCE)).tolist()
    if first < stop:
        return first, stop
    shown = max(int(np.searchsorted(times, start, side="right")) - 1, 0)
    return shown, shown + 1


def choose_frames(times: Sequence[float] | np.ndarray, start: float, end: float, count: int) -> list[int]:
    """Return the indices of `count` uniformly spaced frames of the window [start, end) (truncated linspace).

    A window with fewer frames repeats some; one in which no frame begins shows the frame on screen.
    """
    first, stop = frames_in_window(times, start, end)
    return [first + int(i) for i in np.linspace(0, stop - first - 1, count)]


def thin_to_fps(times: Sequence[float] | np.ndarray, first: int, stop: int, fps: float | None) -> list[int]:
    """Return the frames of [first, stop) to keep at `fps` frames per second; None keeps all."""
    if fps is None:
        return list(range(first, stop))
    kept: list[int] = []
    due = times[first]
    for i in range(first, stop):
        if times[i] >= due - TIME_TOLERANCE:
            kept.append(i)
            due += max(1, math.floor((times[i] - due) * fps + 1e-6) + 1) / fps
    return kept


# --------------------------------------------------------------------------------------------------------------- crops


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) scaled to `short_side`; the long side is rounded down, as in pytorchvideo."""
    if width < height:
        return height * short_side // width, short_side
    return short_side, width * short_side // height


def center_crop(height: int, width: int, size: int) -> Box:
    """Return the middle square of a frame; half a pixel is rounded up, as in pytorchvideo's uniform_crop."""
    return (height - size + 1) // 2, (width - size + 1) // 2, size, size


def evaluation_crops(height: int, width: int, size: int) -> tuple[Box, Box, Box]:
    """Return three squares along the long side of a scaled frame: both ends, with the center between them."""
    top, left, _, _ = center_crop(height, width, size)
    if width < height:
        return (0, left, size, size), (top, left, size, size), (height - size, left, size, size)
    return (top, 0, size, size), (top, left, size, size), (top, width - size, size, size)


def random_crop(rng: np.random.Generator, height: int, width: int, config: LoaderConfig) -> Box:
    """Return a random box of a scaled frame as torchvision's RandomResizedCrop does, or the middle square."""
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


def check_crops(views: Sequence[ViewParams], height: int, width: int) -> None:
    """Raise ValueError if a crop leaves the scaled frame: the file's size then differs from its manifest's."""
    for view in views:
        top, left, h, w = view.crop
        if top < 0 or left < 0 or h < 1 or w < 1 or top + h > height or left + w > width:
            raise ValueError(f"crop {view.crop} leaves the scaled frame of {height} x {width}; run ppma index again")


# ------------------------------------------------------------------------------------------------------- augmentations


def operation_argument(name: str, level: float, sign: int) -> float:
    """Return the argument of a RandAugment operation.

    Args:
        name: One of OPERATIONS.
        level: Strength, 0 to 10.
        sign: Direction, +1 or -1, for operations that have one.

    Returns:
        Blend factor, bits kept (posterize), threshold as a share of white (solarize), degrees counterclockwise
        (rotate), slope (shear) or share of the size (translate); 0 for operations without an argument.
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
    """Return the (2, 3) matrix of a geometric operation on a square view, from output to input coordinates in pixels.

    Pixel i spans [i, i + 1). As in pytorchvideo, rotation is about the center, a shear keeps the top row (x) or left
    column (y) in place, and a positive translation moves the picture left or up.
    """
    angle = math.radians(argument) if name == "rotate" else 0.0
    slope_x = argument if name == "shear_x" else 0.0
    slope_y = argument if name == "shear_y" else 0.0
    linear = np.array([[math.cos(angle), slope_x - math.sin(angle)], [slope_y + math.sin(angle), math.cos(angle)]])
    shift = np.array([slope_x / 2, slope_y / 2]) * size
    if name.startswith("translate"):
        shift[0 if name == "translate_x" else 1] = argument * size
    center = np.full(2, size / 2)
    return np.column_stack([linear, center + shift - linear @ center])


def random_operations(rng: np.random.Generator, config: LoaderConfig) -> tuple[tuple[str, float], ...]:
    """Return RandAugment's (name, argument) pairs: distinct operations in random order, each kept by chance."""
    n = config.randaugment_ops
    if n == 0:
        return ()
    chosen = rng.choice(len(OPERATIONS), size=n, replace=False)
    applied = rng.random(n) < config.randaugment_probability
    levels = np.clip(rng.normal(config.randaugment_magnitude, config.randaugment_std, n), 0.0, MAX_LEVEL)
    signs = rng.integers(0, 2, n) * 2 - 1
    return tuple(
        (OPERATIONS[i], operation_argument(OPERATIONS[i], float(level), int(sign)))
        for i, keep, level, sign in zip(chosen, applied, levels, signs)
        if keep
    )


def random_erase_box(rng: np.random.Generator, config: LoaderConfig) -> Box:
    """Return a box of the view to erase, as timm's RandomErasing chooses it, or NO_BOX."""
    if rng.random() >= config.erase_probability:
        return NO_BOX
    low, high = config.erase_ratio
    for _ in range(TRIES):
        area = config.size**2 * rng.uniform(*config.erase_area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < config.size and 0 < w < config.size:
            return int(rng.integers(0, config.size - h + 1)), int(rng.integers(0, config.size - w + 1)), h, w
    return NO_BOX


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
    """Return the parameters of one view: a pure function of its arguments.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        sample: Sample index in the epoch.
        view: View index in the sample.
        height: Height in pixels of a decoded frame, before scaling.
        width: Width in pixels of a decoded frame, before scaling.
        config: Ranges and probabilities of the augmentations.
        crop: Fixed crop in place of a random one (evaluation).
    """

    def rng(purpose: Purpose) -> np.random.Generator:
        return philox.generator(seed, purpose, epoch=epoch, sample=sample, view=view)

    scaled = scaled_size(height, width, config.short_side)
    return ViewParams(
        key=philox.row_key(seed, epoch=epoch, sample=sample, view=view),
        crop=random_crop(rng(Purpose.CROP), *scaled, config) if crop is None else crop,
        flip=bool(rng(Purpose.FLIP).random() < config.flip_probability),
        ops=random_operations(rng(Purpose.AUGMENT), config),
        erase=random_erase_box(rng(Purpose.ERASE), config),
    )
