"""Make the views of a clip in OpenCV and numpy: the plain reader, and the loader's hot path on a CPU.

    frames_THWC, any size  ->  scale the short side once  ->  per view: crop, resize, flip, RandAugment  ->  views_VTHWC

It matches the DALI graph: resizing is bilinear with half-pixel centers and no antialiasing, and RandAugment's operations
are torchvision's on uint8 frames, with means and histograms per frame. Nothing is random here. Pixelwise operations see
all frames as one tall image, which saves fifteen of sixteen calls and changes no pixel.
"""

from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np

from ppma.config.loader import LoaderConfig
from ppma.loaders.samples import GEOMETRIC_REACH, ViewParams, check_crops, scaled_size, warp_matrix

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Of red, green, blue (torchvision's rgb_to_grayscale)."""
WARP_FILL = 128
"""Value outside a view: pytorchvideo's 0.5, as uint8."""
# OpenCV rounds to the nearest integer where torchvision truncates. Half a step down makes the two agree; the 1/512
# keeps sums that are integers by construction (gray pixels, flat areas) from falling to the integer below.
_TRUNCATE = -0.5 + 1 / 512


def make_views(
    frames_THWC: np.ndarray | Sequence[np.ndarray],
    views: Sequence[ViewParams],
    config: LoaderConfig,
    out_VTHWC: np.ndarray | None = None,
) -> np.ndarray:
    """Make the views of one clip.

    Args:
        frames_THWC: uint8 RGB of any size, one array or a list of frames of one size.
        views: Parameters of each view; each crop is in the frame scaled to `config.short_side`.
        config: Size of the views, and the short side.
        out_VTHWC: C-contiguous array to fill; a new one by default.

    Returns:
        uint8 (V, T, size, size, 3): `out_VTHWC` if given.

    Raises:
        ValueError: A crop leaves the scaled frame.
    """
    first_HWC = frames_THWC[0]
    if out_VTHWC is None:
        out_VTHWC = np.empty((len(views), len(frames_THWC), config.size, config.size, 3), np.uint8)
    height, width = scaled_size(first_HWC.shape[0], first_HWC.shape[1], config.short_side)
    check_crops(views, height, width)
    scaled_THWC = frames_THWC
    if first_HWC.shape[:2] != (height, width):
        scaled_THWC = np.empty((len(frames_THWC), height, width, 3), np.uint8)
        _resize(frames_THWC, scaled_THWC)
    for params, view_THWC in zip(views, out_VTHWC):
        _make_view(scaled_THWC, params, view_THWC)
    return out_VTHWC


def _make_view(scaled_THWC: np.ndarray | Sequence[np.ndarray], params: ViewParams, view_THWC: np.ndarray) -> None:
    top, left, h, w = params.crop
    _resize((frame_HWC[top : top + h, left : left + w] for frame_HWC in scaled_THWC), view_THWC)
    if params.flip:
        cv2.flip(_tall(view_THWC), 1, dst=_tall(view_THWC))
    for name, argument in params.ops:
        apply_operation(view_THWC, name, argument)


def apply_operation(frames_THWC: np.ndarray, name: str, argument: float) -> None:
    """Apply one RandAugment operation in place to contiguous, square uint8 frames."""
    if name in GEOMETRIC_REACH:
        _warp(frames_THWC, warp_matrix(name, argument, frames_THWC.shape[1]))
    else:
        _PIXELWISE[name](frames_THWC, argument)


def _resize(frames_THWC: Iterable[np.ndarray], out_THWC: np.ndarray) -> None:
    """Resize bilinearly; OpenCV's fixed-point arithmetic stays within 1 of the exact value (tested)."""
    size = out_THWC.shape[2], out_THWC.shape[1]
    for frame_HWC, out_HWC in zip(frames_THWC, out_THWC):
        cv2.resize(frame_HWC, size, dst=out_HWC, interpolation=cv2.INTER_LINEAR)


def _tall(frames_THWC: np.ndarray) -> np.ndarray:
    """Return all frames as one (T * H, W, 3) image, without a copy."""
    return frames_THWC.reshape(-1, *frames_THWC.shape[2:])


def _lookup(frames_THWC: np.ndarray, table_256: np.ndarray) -> None:
    """Apply one table to all frames and channels."""
    flat = frames_THWC.reshape(-1, frames_THWC.shape[2] * 3)
    cv2.LUT(flat, table_256, dst=flat)


def _lookup_each(frames_THWC: np.ndarray, table_TC256: np.ndarray) -> None:
    """Apply a separate table to each frame and channel."""
    for frame_HWC, table_C256 in zip(frames_THWC, table_TC256):
        cv2.LUT(frame_HWC, np.ascontiguousarray(table_C256.T)[None], dst=frame_HWC)


_RAMP = np.arange(256, dtype=np.float32)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Convert floats to uint8 as torchvision does: clamp, then truncate."""
    return np.clip(values, 0, 255).astype(np.uint8)


def _brightness(frames_THWC: np.ndarray, factor: float) -> None:
    _lookup(frames_THWC, _to_uint8(_RAMP * np.float32(factor)))


def _contrast(frames_THWC: np.ndarray, factor: float) -> None:
    """Blend with the mean gray of each frame."""
    gray_THW = cv2.cvtColor(_tall(frames_THWC), cv2.COLOR_RGB2GRAY).reshape(frames_THWC.shape[:3])
    mean_T = np.array([cv2.mean(gray_HW)[0] for gray_HW in gray_THW]) - 0.5  # torchvision truncates each gray
    table_T256 = _to_uint8(_RAMP * np.float32(factor) + ((1 - factor) * mean_T[:, None]).astype(np.float32))
    for frame_HWC, table_256 in zip(frames_THWC, table_T256):
        _lookup(frame_HWC[None], table_256)


def _saturation(frames_THWC: np.ndarray, factor: float) -> None:
    """Blend with each pixel's gray: one 3 x 3 matrix."""
    matrix = np.eye(3) * factor + (1 - factor) * np.array(GRAY_WEIGHTS)
    # torchvision truncates the gray before it blends: on average half a step
    offset = np.full((3, 1), _TRUNCATE - (1 - factor) / 2)
    cv2.transform(_tall(frames_THWC), np.hstack([matrix, offset]), dst=_tall(frames_THWC))


def _sharpness(frames_THWC: np.ndarray, factor: float) -> None:
    """Blend with a 3 x 3 smoothed frame; the outermost pixels stay as they are."""
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    blurred_THWC = cv2.filter2D(_tall(frames_THWC), -1, kernel / kernel.sum()).reshape(frames_THWC.shape)
    inner = np.s_[:, 1:-1, 1:-1]
    mixed = cv2.addWeighted(_tall(frames_THWC), factor, _tall(blurred_THWC), 1 - factor, _TRUNCATE)
    frames_THWC[inner] = mixed.reshape(frames_THWC.shape)[inner]


def _autocontrast(frames_THWC: np.ndarray, _: float) -> None:
    """Stretch each channel of each frame to 0..255; a flat channel stays as it is."""
    low_TC = frames_THWC.min(axis=1).min(axis=1).astype(np.float32)
    high_TC = frames_THWC.max(axis=1).max(axis=1).astype(np.float32)
    flat_TC = high_TC == low_TC
    scale_TC = np.where(flat_TC, 1, 255 / np.where(flat_TC, 1, high_TC - low_TC)).astype(np.float32)
    low_TC = np.where(flat_TC, 0, low_TC).astype(np.float32)
    _lookup_each(frames_THWC, _to_uint8((_RAMP - low_TC[..., None]) * scale_TC[..., None]))


def _equalize(frames_THWC: np.ndarray, _: float) -> None:
    """Equalize each channel's histogram with Pillow's integer formula, which torchvision follows."""
    hist_TC256 = np.array(
        [[cv2.calcHist([f], [c], None, [256], [0, 256]).ravel() for c in range(3)] for f in frames_THWC], np.int64
    )
    below_TC256 = hist_TC256.cumsum(axis=-1) - hist_TC256
    last_TC1 = 255 - (hist_TC256[..., ::-1] > 0).argmax(axis=-1)[..., None]
    step_TC1 = np.take_along_axis(below_TC256, last_TC1, axis=-1) // 255
    table_TC256 = (below_TC256 + step_TC1 // 2) // np.maximum(step_TC1, 1)
    table_TC256 = np.where(step_TC1 == 0, np.arange(256), table_TC256)
    _lookup_each(frames_THWC, np.clip(table_TC256, 0, 255).astype(np.uint8))


def _invert(frames_THWC: np.ndarray, _: float) -> None:
    np.bitwise_not(frames_THWC, out=frames_THWC)


def _posterize(frames_THWC: np.ndarray, bits: float) -> None:
    np.bitwise_and(frames_THWC, np.uint8(256 - 2 ** (8 - int(bits)) if bits else 0), out=frames_THWC)


def _solarize(frames_THWC: np.ndarray, threshold: float) -> None:
    ramp = np.arange(256)
    _lookup(frames_THWC, np.where(ramp >= threshold * 255, 255 - ramp, ramp).astype(np.uint8))


def _warp(frames_THWC: np.ndarray, matrix_23: np.ndarray) -> None:
    """Warp bilinearly. OpenCV rounds source coordinates to 1/32 pixel: up to 1/64 of a step between neighbors."""
    shifted_23 = matrix_23.copy()
    shifted_23[:, 2] += matrix_23[:, :2].sum(axis=1) / 2 - 0.5  # OpenCV's pixel i has its center at i, not i + 1/2
    size = frames_THWC.shape[2], frames_THWC.shape[1]
    flags, fill = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, (WARP_FILL,) * 3
    for frame_HWC in frames_THWC:
        warped_HWC = cv2.warpAffine(
            frame_HWC, shifted_23, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        )
        frame_HWC[...] = warped_HWC


_PIXELWISE: dict[str, Callable[[np.ndarray, float], None]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "sharpness": _sharpness,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
}
