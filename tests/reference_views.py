"""What a view is, in plain torch and torchvision, one obvious step after another: both forms of the loader are held to it.

frames_THWC uint8 -> short side scaled -> crop -> resized -> flipped -> RandAugment -> view_THWC uint8. After every step the values are
rounded to uint8, as they are in the loader.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ppma.config.loader import LoaderConfig
from ppma.loaders.samples import ViewParams
from ppma.models.torchvision_shim import ensure_torchvision

ensure_torchvision()

from torchvision.transforms import functional as F  # noqa: E402

FILL = 128.0


def picture_frames(frames: int, height: int, width: int, seed: int = 0, noise: float = 6.0) -> np.ndarray:
    """Moving colored waves and an edge under a little noise: as smooth as a photograph, and different in every frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    clip = np.empty((frames, height, width, 3))
    for t in range(frames):
        for c in range(3):
            phase = rng.uniform(0, 2 * math.pi) + 0.2 * t
            clip[t, ..., c] = 120 + 70 * np.sin(9 * x + 5 * (c - 1) * y + phase) + 40 * (x + 0.3 * y > 0.5 + 0.02 * t)
    return np.clip(clip + rng.normal(0, noise, clip.shape), 0, 255).astype(np.uint8)


def resize(frames_TCHW: Tensor, height: int, width: int) -> Tensor:
    size = (height, width)
    scaled = torch.nn.functional.interpolate(frames_TCHW.double(), size=size, mode="bilinear", align_corners=False)
    return scaled.round().to(torch.uint8)


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    if width < height:
        return math.floor(height / width * short_side + 1e-9), short_side
    return short_side, math.floor(width / height * short_side + 1e-9)


def affine(frames_TCHW: Tensor, matrix: list[float]) -> Tensor:
    """torchvision's inverse affine map about the center, matrix (a, b, c, d, e, f) in pixels, filled with gray.

    torchvision's own fill multiplies by the share of the picture twice where a pixel straddles its border; here it counts once.
    """
    h, w = frames_TCHW.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h) + 0.5 - h / 2, torch.arange(w) + 0.5 - w / 2, indexing="ij")
    a, b, c, d, e, f = matrix
    grid = torch.stack([(a * x + b * y + c) / (w / 2), (d * x + e * y + f) / (h / 2)], dim=-1).double()
    sampled = torch.nn.functional.grid_sample(
        frames_TCHW.double() - FILL, grid.expand(len(frames_TCHW), -1, -1, -1), align_corners=False
    )
    return (sampled + FILL).round().to(torch.uint8)


def geometric(frames_TCHW: Tensor, name: str, argument: float) -> Tensor:
    h, w = frames_TCHW.shape[-2:]
    turn = math.radians(argument)
    matrices = {
        "rotate": [math.cos(turn), -math.sin(turn), 0, math.sin(turn), math.cos(turn), 0],
        "shear_x": [1, argument, h * argument / 2, 0, 1, 0],
        "shear_y": [1, 0, 0, argument, 1, w * argument / 2],
        "translate_x": [1, 0, w * argument, 0, 1, 0],
        "translate_y": [1, 0, 0, 0, 1, h * argument],
    }
    return affine(frames_TCHW, matrices[name])


PIXELWISE = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "sharpness": F.adjust_sharpness,
    "posterize": lambda x, bits: F.posterize(x, int(bits)),
    "solarize": lambda x, threshold: F.solarize(x, threshold * 255),
    "autocontrast": lambda x, _: F.autocontrast(x),
    "equalize": lambda x, _: F.equalize(x),
    "invert": lambda x, _: F.invert(x),
}


def operation(frames_THWC: np.ndarray, name: str, argument: float) -> np.ndarray:
    frames_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    apply = PIXELWISE.get(name)
    out = apply(frames_TCHW, argument) if apply else geometric(frames_TCHW, name, argument)
    return np.ascontiguousarray(out.permute(0, 2, 3, 1).numpy())


def view(frames_THWC: np.ndarray, draw: ViewParams, config: LoaderConfig) -> np.ndarray:
    frames_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    frames_TCHW = resize(frames_TCHW, *short_side_size(*frames_THWC.shape[1:3], config.short_side))
    top, left, h, w = draw.crop
    frames_TCHW = resize(frames_TCHW[:, :, top : top + h, left : left + w], config.size, config.size)
    frames_TCHW = frames_TCHW.flip(-1) if draw.flip else frames_TCHW
    out = np.ascontiguousarray(frames_TCHW.permute(0, 2, 3, 1).numpy())
    for name, argument in draw.ops:
        out = operation(out, name, argument)
    return out


def steps(frames_THWC: np.ndarray) -> np.ndarray:
    """The largest step from each pixel to its neighbors, borders to the fill included: what 1 px of displacement can do."""
    padded = np.pad(frames_THWC.astype(int), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=int(FILL))
    return max(int(np.abs(np.diff(padded, axis=axis)).max()) for axis in (1, 2))
