"""Run `randaugment` as two Triton kernels per step: lookup tables, if any view needs one, then one pass over the views.

Both treat a frame as H x W x 3 consecutive bytes. A view without an operation in a step returns immediately. All
threads of a program take the same branch, so a view costs only its own operation.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppma.kernels.randaugment_program import FIELDS, Operation

NUMBERS = tl.constexpr(FIELDS)
COPY, WARP = tl.constexpr(int(Operation.COPY)), tl.constexpr(int(Operation.WARP))
SATURATION, SHARPNESS = tl.constexpr(int(Operation.SATURATION)), tl.constexpr(int(Operation.SHARPNESS))
AUTOCONTRAST, EQUALIZE = tl.constexpr(int(Operation.AUTOCONTRAST)), tl.constexpr(int(Operation.EQUALIZE))
CONTRAST, BRIGHTNESS = tl.constexpr(int(Operation.CONTRAST)), tl.constexpr(int(Operation.BRIGHTNESS))
INVERT, POSTERIZE = tl.constexpr(int(Operation.INVERT)), tl.constexpr(int(Operation.POSTERIZE))
FILL, EDGE = tl.constexpr(128.0), tl.constexpr(1 / 512)


@triton.jit
def histogram(frame, channel, pixels, BLOCK: tl.constexpr):
    """Return the histogram (256,) of a channel of a frame."""
    count = tl.zeros((256,), tl.int32)
    for start in range(0, pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        real = pixel < pixels
        levels = tl.load(frame + pixel * 3 + channel, mask=real, other=0).to(tl.int32)
        count += tl.histogram(levels, 256, mask=real)
    return count


@triton.jit
def mean_gray(frame, pixels, BLOCK: tl.constexpr):
    """Return the mean of a frame's rounded grays minus half a level."""
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        real = pixel < pixels
        red = tl.load(frame + pixel * 3, mask=real, other=0).to(tl.int32)
        green = tl.load(frame + pixel * 3 + 1, mask=real, other=0).to(tl.int32)
        blue = tl.load(frame + pixel * 3 + 2, mask=real, other=0).to(tl.int32)
        gray = (9798 * red + 19235 * green + 3735 * blue + 16384) >> 15
        total += tl.where(real, gray, 0)
    return tl.sum(total).to(tl.float32) / pixels - 0.5


@triton.jit
def levels_kernel(frames, previous, program, tables, T, pixels, BLOCK: tl.constexpr):
    """Write the lookup table of one channel of one frame, if the operation of its view uses one."""
    frame, channel = tl.program_id(0), tl.program_id(1)
    fields = program + frame // T * NUMBERS
    operation, value = tl.load(fields).to(tl.int32), tl.load(fields + 2)
    if operation >= AUTOCONTRAST:
        source = tl.where(tl.load(fields + 1) > 0, frames, previous) + frame.to(tl.int64) * pixels * 3
        level = tl.arange(0, 256)
        table = level
        if operation == AUTOCONTRAST:
            count = histogram(source, channel, pixels, BLOCK)
            low, high = tl.min(tl.where(count > 0, level, 255)), tl.max(tl.where(count > 0, level, 0))
            if high > low:
                scale = tl.div_rn(255.0, (high - low).to(tl.float32))
                table = tl.clamp((level - low).to(tl.float32) * scale, 0.0, 255.0).to(tl.int32)
        elif operation == EQUALIZE:
            count = histogram(source, channel, pixels, BLOCK)
            below = tl.cumsum(count, 0) - count
            last = tl.max(tl.where(count > 0, level, 0))
            step = tl.sum(tl.where(level == last, below, 0)) // 255
            if step > 0:
                table = tl.minimum((below + step // 2) // step, 255)
        elif operation == CONTRAST:
            mean = mean_gray(source, pixels, BLOCK)
            table = tl.clamp(level.to(tl.float32) * value + (1.0 - value) * mean, 0.0, 255.0).to(tl.int32)
        elif operation == BRIGHTNESS:
            table = tl.clamp(level.to(tl.float32) * value, 0.0, 255.0).to(tl.int32)
        elif operation == INVERT:
            table = 255 - level
        elif operation == POSTERIZE:
            table = level & value.to(tl.int32)
        else:
            table = tl.where(level >= value.to(tl.int32), 255 - level, level)
        tl.store(tables + (frame * 3 + channel) * 256 + level, table.to(tl.uint8))


@triton.jit
def tap(source, row, column, channel, H, W, real):
    """Return the pixels at (row, column) as float32, the fill value outside the frame."""
    there = real & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    level = tl.load(source + (row * W + column) * 3 + channel, mask=there, other=0).to(tl.float32)
    return tl.where(there, level, FILL)


@triton.jit
def warped(source, fields, pixel, channel, H, W, real):
    """Return the pixels of a bilinear warp, rounded."""
    y, x = (pixel // W).to(tl.float32) + 0.5, (pixel % W).to(tl.float32) + 0.5
    column = tl.load(fields + 2) * x + tl.load(fields + 3) * y + tl.load(fields + 4) - 0.5
    row = tl.load(fields + 5) * x + tl.load(fields + 6) * y + tl.load(fields + 7) - 0.5
    left, top = tl.floor(column), tl.floor(row)
    right, down = column - left, row - top
    c, r = left.to(tl.int32), top.to(tl.int32)
    upper_left = tap(source, r, c, channel, H, W, real)
    upper = upper_left + (tap(source, r, c + 1, channel, H, W, real) - upper_left) * right
    lower_left = tap(source, r + 1, c, channel, H, W, real)
    lower = lower_left + (tap(source, r + 1, c + 1, channel, H, W, real) - lower_left) * right
    return (upper + (lower - upper) * down + 0.5).to(tl.uint8)


@triton.jit
def blended(level, other, factor):
    """Return level * factor + other * (1 - factor), clamped and truncated."""
    return tl.clamp(level * factor + other * (1.0 - factor) + EDGE, 0.0, 255.0).to(tl.uint8)


@triton.jit
def sharpened(source, level, factor, place, pixel, H, W, real):
    """Blend with the rounded 3 x 3 smoothing (center weight 5); the outermost pixels stay."""
    y, x = pixel // W, pixel % W
    inner = real & (y > 0) & (y < H - 1) & (x > 0) & (x < W - 1)
    total = 4 * level.to(tl.int32)
    for dy in tl.static_range(-1, 2):
        for dx in tl.static_range(-1, 2):
            total += tl.load(source + place + (dy * W + dx) * 3, mask=inner, other=0).to(tl.int32)
    smooth = ((2 * total + 13) // 26).to(tl.float32)
    return tl.where(inner, blended(level.to(tl.float32), smooth, factor), level)


@triton.jit
def randaugment_kernel(frames, previous, out, program, tables, T, H, W, BLOCK: tl.constexpr):
    """Apply one step of a view's operations to BLOCK bytes of a frame."""
    frame = tl.program_id(0)
    fields = program + frame // T * NUMBERS
    operation, factor = tl.load(fields).to(tl.int32), tl.load(fields + 2)
    if operation >= COPY:
        offset = frame.to(tl.int64) * (H * W * 3)
        source = tl.where(tl.load(fields + 1) > 0, frames, previous) + offset
        place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        real = place < H * W * 3
        pixel, channel = place // 3, place % 3
        level = tl.load(source + place, mask=real, other=0)
        if operation >= AUTOCONTRAST:
            level = tl.load(tables + (frame * 3 + channel) * 256 + level.to(tl.int32), mask=real, other=0)
        elif operation == WARP:
            level = warped(source, fields, pixel, channel, H, W, real)
        elif operation == SATURATION:
            red = tl.load(source + pixel * 3, mask=real, other=0).to(tl.float32)
            green = tl.load(source + pixel * 3 + 1, mask=real, other=0).to(tl.float32)
            blue = tl.load(source + pixel * 3 + 2, mask=real, other=0).to(tl.float32)
            level = blended(level.to(tl.float32), 0.2989 * red + 0.587 * green + 0.114 * blue - 0.5, factor)
        elif operation == SHARPNESS:
            level = sharpened(source, level, factor, place, pixel, H, W, real)
        tl.store(out + offset + place, level, mask=real)


def randaugment_triton(frames_VTHWC: Tensor, program_SVF: Tensor) -> Tensor:
    """Return the augmented views. A step reads the input or the previous step's output; the last writes the result."""
    V, T, H, W, _ = frames_VTHWC.shape
    device, steps, block = frames_VTHWC.device, len(program_SVF), 1024
    with_table = (program_SVF[..., 0] >= Operation.AUTOCONTRAST).any(dim=1).tolist()
    pinned = program_SVF.pin_memory() if device.type == "cuda" else program_SVF
    program = pinned.to(device, non_blocking=True)
    tables = torch.empty((V * T, 3, 256) if any(with_table) else 0, dtype=torch.uint8, device=device)
    result = torch.empty_like(frames_VTHWC)
    scratch = torch.empty_like(frames_VTHWC) if steps > 1 else result
    with torch.cuda.device_of(frames_VTHWC):
        for step in range(steps):
            out, previous = (result, scratch) if (steps - step) % 2 else (scratch, result)
            given = (frames_VTHWC, previous)
            if with_table[step]:
                levels_kernel[(V * T, 3)](*given, program[step], tables, T, H * W, BLOCK=2048, num_warps=8)
            grid = (V * T, triton.cdiv(H * W * 3, block))
            randaugment_kernel[grid](*given, out, program[step], tables, T, H, W, BLOCK=block, num_warps=8)
    return result
