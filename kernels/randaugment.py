"""Apply RandAugment to uint8 views: each step applies one operation to every view of the batch, in one pass.

    frames_VTHWC uint8, program_SVF (host)  ->  frames_VTHWC uint8

Most operations are a lookup table of 256 levels, per view or per frame and channel; the others are a bilinear warp, a
blend with gray and a 3 x 3 stencil. All give the results of torchvision on uint8 frames, like
`loaders/decode/augment.py` on a CPU.
V views, T frames, H x W pixels, C channels.
"""

import torch
from torch import Tensor

from ppma.kernels import choice
from ppma.kernels.randaugment_program import FIELDS, Operation

if choice.LOADED:
    from ppma.kernels.randaugment_triton import randaugment_triton


FILL = 128.0
"""Value of pixels that a warp takes from outside the view."""
GRAY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue (torchvision's rgb_to_grayscale)."""
GRAY_15_BITS = (9798, 19235, 3735)
"""GRAY as integers that sum to 2**15, rounded like OpenCV's, for the mean gray of a frame."""
EDGE = 1 / 512
"""Added before truncation, so that sums that should be integers do not become the integer below."""


def randaugment(frames_VTHWC: Tensor, program_SVF: Tensor) -> Tensor:
    """Return the augmented views; the input is not changed.

    Args:
        frames_VTHWC: uint8 RGB, contiguous.
        program_SVF: Program from `write_program`, on the host, because it decides what is launched.

    Raises:
        ValueError: The frames are not contiguous uint8 RGB, or the program has another number of views.
    """
    if frames_VTHWC.dtype != torch.uint8 or frames_VTHWC.shape[-1] != 3 or not frames_VTHWC.is_contiguous():
        raise ValueError(f"frames are {frames_VTHWC.dtype} {tuple(frames_VTHWC.shape)}; contiguous uint8 RGB is needed")
    if program_SVF.shape[1:] != (len(frames_VTHWC), FIELDS):
        raise ValueError(f"the program has shape {tuple(program_SVF.shape)}, the batch {len(frames_VTHWC)} views")
    if choice.runs_triton(frames_VTHWC.device):
        return randaugment_triton(frames_VTHWC, program_SVF)
    out_VTHWC = torch.empty_like(frames_VTHWC)
    for view, (frames_THWC, steps) in enumerate(zip(frames_VTHWC, program_SVF.transpose(0, 1).tolist(), strict=True)):
        for operation, _, *values in steps:
            if operation != Operation.SKIP:
                frames_THWC = _apply(frames_THWC, Operation(int(operation)), values)
        out_VTHWC[view] = frames_THWC
    return out_VTHWC


def _apply(frames_THWC: Tensor, operation: Operation, values: list[float]) -> Tensor:
    if operation == Operation.COPY:
        return frames_THWC
    if operation == Operation.WARP:
        return _warp(frames_THWC, values)
    if operation == Operation.SATURATION:
        return _saturation(frames_THWC, values[0])
    if operation == Operation.SHARPNESS:
        return _sharpness(frames_THWC, values[0])
    table_TC256 = _table(frames_THWC, operation, values[0])
    levels_TCP = frames_THWC.flatten(1, 2).transpose(1, 2).long()
    return table_TC256.expand(*levels_TCP.shape[:2], 256).gather(2, levels_TCP).transpose(1, 2).view_as(frames_THWC)


def _to_uint8(values: Tensor) -> Tensor:
    """Clamp and truncate, as torchvision does."""
    return (values + EDGE).clamp(0, 255).to(torch.uint8)


def _table(frames_THWC: Tensor, operation: Operation, value: float) -> Tensor:
    """Return the lookup table of levels, uint8 (T or 1, C or 1, 256)."""
    level_256 = torch.arange(256, device=frames_THWC.device)
    if operation == Operation.INVERT:
        table = 255 - level_256
    elif operation == Operation.POSTERIZE:
        table = level_256 & int(value)
    elif operation == Operation.SOLARIZE:
        table = torch.where(level_256 >= value, 255 - level_256, level_256)
    elif operation == Operation.BRIGHTNESS:
        table = (level_256 * value).clamp(0, 255)
    elif operation == Operation.CONTRAST:
        mean_T11 = _mean_gray(frames_THWC).view(-1, 1, 1)
        table = (level_256 * value + (1 - value) * mean_T11).clamp(0, 255)
    elif operation == Operation.AUTOCONTRAST:
        low_TC1, high_TC1 = frames_THWC.flatten(1, 2).aminmax(dim=1)
        low_TC1, high_TC1 = low_TC1.float()[..., None], high_TC1.float()[..., None]
        scale_TC1 = torch.full_like(low_TC1, 255) / (high_TC1 - low_TC1)  # 255 / x would be 255 * (1 / x)
        stretched = ((level_256 - low_TC1) * scale_TC1).clamp(0, 255)
        table = torch.where(high_TC1 == low_TC1, level_256.float(), stretched)  # a flat channel stays
    else:
        table = _equalizing(frames_THWC, level_256)
    return table.to(torch.uint8).expand(-1, -1, 256) if table.ndim == 3 else table.to(torch.uint8)[None, None]


def _mean_gray(frames_THWC: Tensor) -> Tensor:
    """Return the mean gray (T,) of each frame, minus half a level because torchvision truncates each gray."""
    weights_C = torch.tensor(GRAY_15_BITS, device=frames_THWC.device)
    gray_THW = ((frames_THWC * weights_C).sum(dim=-1) + (1 << 14)) >> 15
    return gray_THW.double().mean(dim=(1, 2)).float() - 0.5


def _equalizing(frames_THWC: Tensor, level_256: Tensor) -> Tensor:
    """Return the tables (T, C, 256) that equalize each channel's histogram, by Pillow's integer formula."""
    levels_TCP = frames_THWC.flatten(1, 2).transpose(1, 2).long()
    count_TC256 = levels_TCP.new_zeros((*levels_TCP.shape[:2], 256))
    count_TC256.scatter_add_(2, levels_TCP, torch.ones_like(levels_TCP))
    below_TC256 = count_TC256.cumsum(dim=2) - count_TC256
    last_TC1 = levels_TCP.amax(dim=2, keepdim=True)
    step_TC1 = below_TC256.gather(2, last_TC1) // 255
    table_TC256 = ((below_TC256 + step_TC1 // 2) // step_TC1.clamp(min=1)).clamp(max=255)
    return torch.where(step_TC1 == 0, level_256, table_TC256)


def _saturation(frames_THWC: Tensor, factor: float) -> Tensor:
    red, green, blue = frames_THWC.float().unbind(-1)
    gray_THW1 = (red * GRAY[0] + green * GRAY[1] + blue * GRAY[2] - 0.5)[..., None]
    return _to_uint8(frames_THWC * factor + (1 - factor) * gray_THW1)


def _sharpness(frames_THWC: Tensor, factor: float) -> Tensor:
    out_THWC = frames_THWC.clone()
    _, H, W, _ = frames_THWC.shape
    if min(H, W) < 3:
        return out_THWC
    levels_THWC, center = frames_THWC.short(), frames_THWC[:, 1:-1, 1:-1].short()
    total = 4 * center  # weights 1, center 5
    for y in range(3):
        for x in range(3):
            total += levels_THWC[:, y : H - 2 + y, x : W - 2 + x]
    smooth = (2 * total + 13) // 26  # the nearest integer to a thirteenth
    out_THWC[:, 1:-1, 1:-1] = _to_uint8(center * factor + (1 - factor) * smooth)
    return out_THWC


def _warp(frames_THWC: Tensor, matrix: list[float]) -> Tensor:
    _, H, W, _ = frames_THWC.shape
    y_H1 = torch.arange(H, device=frames_THWC.device)[:, None] + 0.5
    x_1W = torch.arange(W, device=frames_THWC.device)[None, :] + 0.5
    column_HW = matrix[0] * x_1W + matrix[1] * y_H1 + matrix[2] - 0.5
    row_HW = matrix[3] * x_1W + matrix[4] * y_H1 + matrix[5] - 0.5
    left_HW, top_HW = column_HW.floor(), row_HW.floor()

    def taps(row_HW: Tensor, column_HW: Tensor) -> Tensor:
        there_HW = (row_HW >= 0) & (row_HW < H) & (column_HW >= 0) & (column_HW < W)
        row_HW, column_HW = row_HW.clamp(0, H - 1).long(), column_HW.clamp(0, W - 1).long()
        return torch.where(there_HW[..., None], frames_THWC[:, row_HW, column_HW].float(), FILL)

    right_HW1, down_HW1 = (column_HW - left_HW)[..., None], (row_HW - top_HW)[..., None]
    upper = torch.lerp(taps(top_HW, left_HW), taps(top_HW, left_HW + 1), right_HW1)
    lower = torch.lerp(taps(top_HW + 1, left_HW), taps(top_HW + 1, left_HW + 1), right_HW1)
    return (torch.lerp(upper, lower, down_HW1) + 0.5).to(torch.uint8)
