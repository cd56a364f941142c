"""Run `patchify` as one Triton kernel: a program reads the bytes of one patch and writes its normalized values.

    frames_BTHWC uint8 (any strides), idx_BV or None  ->  patches_BVP

Each byte of the V chosen patches is read once, and each of the V x P values is written once. A program is one warp that
holds the patch as lines of 16 pixels. Where the pixels of a line are 48 contiguous bytes (`is_wide`), it
reads them 16 bytes at a time and separates the colors in registers; otherwise it reads byte by byte. Triton checks the
alignment of base and strides at each launch and narrows the loads where it is less than 16 bytes.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppma.kernels.operators import triton_op, wrap_triton


@triton.jit
def pixel_offset(
    token, row, column, stride_t, stride_h, stride_w, nh, nw, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr
):
    """Return the offset in a clip of the pixel at (row, column) of a patch, whose PT frames have PH rows each."""
    t = token // (nh * nw) * PT + row // PH
    y = token // nw % nh * PH + row % PH
    x = token % nw * PW + column
    return t.to(tl.int64) * stride_t + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w


@triton.jit
def patchify_kernel(
    frames, idx, out, idx_stride_b, idx_stride_v, stride_b, stride_t, stride_h, stride_w, stride_c, nh, nw, V,
    scale_r, scale_g, scale_b, shift_r, shift_g, shift_b,
    HAS_IDX: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LINES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Write x * scale + shift for one patch, as one plane per color."""
    v, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token = v
    if HAS_IDX:
        token = tl.load(idx + b * idx_stride_b + v * idx_stride_v).to(tl.int32)
    K: tl.constexpr = PT * PH * PW
    line, lane = tl.arange(0, LINES)[:, None], tl.arange(0, 16)[None, :]
    pixel = 16 * line + lane
    real = pixel < K
    clip = frames + b * stride_b
    if WIDE:  # 48 bytes per line: three loads of 16 bytes, sorted into planes by selects that fold at compile time
        IN_ROW: tl.constexpr = PW // 16
        start = pixel_offset(
            token, line // IN_ROW, line % IN_ROW * 16, stride_t, stride_h, stride_w, nh, nw, PT, PH, PW
        )
        red = tl.zeros((LINES, 16), tl.float32)
        green = tl.zeros((LINES, 16), tl.float32)
        blue = tl.zeros((LINES, 16), tl.float32)
        for part in tl.static_range(3):
            bytes_16 = tl.load(clip + start + (16 * part + lane), mask=real, other=0).to(tl.float32)
            for i in tl.static_range(16):
                value = tl.sum(tl.where(lane == i, bytes_16, 0.0), axis=1)[:, None]
                at = lane == (16 * part + i) // 3
                if (16 * part + i) % 3 == 0:
                    red = tl.where(at, value, red)
                elif (16 * part + i) % 3 == 1:
                    green = tl.where(at, value, green)
                else:
                    blue = tl.where(at, value, blue)
    else:
        place = clip + pixel_offset(token, pixel // PW, pixel % PW, stride_t, stride_h, stride_w, nh, nw, PT, PH, PW)
        red = tl.load(place, mask=real, other=0).to(tl.float32)
        green = tl.load(place + stride_c, mask=real, other=0).to(tl.float32)
        blue = tl.load(place + stride_c * 2, mask=real, other=0).to(tl.float32)
    # Scales and shifts are cast because inductor passes a Python float as float64.
    red = red * tl.cast(scale_r, tl.float32) + tl.cast(shift_r, tl.float32)
    green = green * tl.cast(scale_g, tl.float32) + tl.cast(shift_g, tl.float32)
    blue = blue * tl.cast(scale_b, tl.float32) + tl.cast(shift_b, tl.float32)
    patch = out + (b * V + v) * (3 * K)
    tl.store(patch + pixel, red.to(out.dtype.element_ty), mask=real)
    tl.store(patch + (K + pixel), green.to(out.dtype.element_ty), mask=real)
    tl.store(patch + (2 * K + pixel), blue.to(out.dtype.element_ty), mask=real)


def is_wide(frames_BTHWC: Tensor, patch: Sequence[int]) -> bool:
    """True if every 16 pixels of a patch row are 48 contiguous bytes."""
    return frames_BTHWC.stride()[3:] == (3, 1) and patch[2] % 16 == 0


def tile_of(values: int, wide: bool) -> tuple[int, int]:
    """Return the number of lines of 16 that hold `values`, and of warps: at most 8, with 4 lines per thread if wide.

    Loads of single bytes need an address each, so those tiles get four times the threads.
    """
    lines = triton.next_power_of_2(triton.cdiv(values, 16))
    return lines, max(1, min(8, lines // (128 if wide else 32)))


@triton_op("ppma::patchify")
def patchify_triton(
    frames_BTHWC: Tensor,
    idx_BV: Tensor | None,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Return the patches (B, V, P); `patchify` has checked the arguments."""
    B, T, H, W, _ = frames_BTHWC.shape
    t, h, w = patch
    V = T // t * (H // h) * (W // w) if idx_BV is None else idx_BV.shape[1]
    out_BVP = frames_BTHWC.new_empty((B, V, 3 * t * h * w), dtype=dtype)
    idx_strides = (0, 0) if idx_BV is None else idx_BV.stride()
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    wide = is_wide(frames_BTHWC, patch)
    lines, warps = tile_of(t * h * w, wide)
    wrap_triton(patchify_kernel)[(V, B)](
        frames_BTHWC, frames_BTHWC if idx_BV is None else idx_BV, out_BVP, *idx_strides, *frames_BTHWC.stride(),
        H // h, W // w, V, *scale, *shift, HAS_IDX=idx_BV is not None, PT=t, PH=h, PW=w, LINES=lines,
        WIDE=wide, num_warps=warps,
    )  # fmt: skip
    return out_BVP
