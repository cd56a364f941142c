"""`patchify` as one Triton kernel: a program reads the bytes of one wanted patch and writes its normalised values.

    frames_BTHWC uint8 (any strides), idx_BV or None  ->  patches_BVP

Traffic is the least there is: the bytes of the V wanted patches in, V x P values out. Registered as the operator
ppma::patchify, so that torch.compile takes it whole.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def patch_pixels(
    frames, idx, idx_stride_b, idx_stride_v, stride_b, stride_t, stride_h, stride_w, stride_c, nh, nw,
    HAS_IDX: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The bytes (BLOCK, 4) of this program's patch as float32, pixels down and colours across; and which of them are real."""
    v, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token = v
    if HAS_IDX:
        token = tl.load(idx + b * idx_stride_b + v * idx_stride_v).to(tl.int32)
    pixel, colour = tl.arange(0, BLOCK)[:, None], tl.arange(0, 4)[None, :]
    real = (pixel < PT * PH * PW) & (colour < 3)
    t = token // (nh * nw) * PT + pixel // (PH * PW)
    y = token // nw % nh * PH + pixel // PW % PH
    x = token % nw * PW + pixel % PW
    place = t.to(tl.int64) * stride_t + y.to(tl.int64) * stride_h + x * stride_w + colour * stride_c
    return tl.load(frames + b * stride_b + place, mask=real, other=0).to(tl.float32), real


@triton.jit
def patchify_kernel(
    frames, idx, out, idx_stride_b, idx_stride_v, stride_b, stride_t, stride_h, stride_w, stride_c, nh, nw, V,
    scale_r, scale_g, scale_b, shift_r, shift_g, shift_b,
    HAS_IDX: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x * scale + shift per colour; stored with the colours outermost."""
    values, real = patch_pixels(
        frames, idx, idx_stride_b, idx_stride_v, stride_b, stride_t, stride_h, stride_w, stride_c, nh, nw,
        HAS_IDX, PT, PH, PW, BLOCK,
    )  # fmt: skip
    pixel, colour = tl.arange(0, BLOCK)[:, None], tl.arange(0, 4)[None, :]
    scale = tl.where(colour == 0, scale_r, tl.where(colour == 1, scale_g, scale_b))
    shift = tl.where(colour == 0, shift_r, tl.where(colour == 1, shift_g, shift_b))
    row = out + (tl.program_id(1).to(tl.int64) * V + tl.program_id(0)) * (3 * PT * PH * PW)
    values = values * scale + shift
    tl.store(row + colour * (PT * PH * PW) + pixel, values.to(out.dtype.element_ty), mask=real)


def warps(pixels: int) -> int:
    """Warps of a program that holds a patch of so many pixels: 16 values a thread, at least 1 and at most 8 warps."""
    return max(1, min(8, triton.next_power_of_2(pixels) * 4 // (16 * 32)))


@torch.library.custom_op("ppma::patchify", mutates_args=())
def patchify_triton(
    frames_BTHWC: Tensor,
    idx_BV: Tensor | None,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """(B, V, P); the checks stand in the seam."""
    B, T, H, W, _ = frames_BTHWC.shape
    t, h, w = patch
    V = T // t * (H // h) * (W // w) if idx_BV is None else idx_BV.shape[1]
    out_BVP = frames_BTHWC.new_empty((B, V, 3 * t * h * w), dtype=dtype)
    idx_strides = (0, 0) if idx_BV is None else idx_BV.stride()
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    patchify_kernel[(V, B)](
        frames_BTHWC, frames_BTHWC if idx_BV is None else idx_BV, out_BVP, *idx_strides, *frames_BTHWC.stride(),
        H // h, W // w, V, *scale, *shift, HAS_IDX=idx_BV is not None, PT=t, PH=h, PW=w,
        BLOCK=triton.next_power_of_2(t * h * w), num_warps=warps(t * h * w),
    )  # fmt: skip
    return out_BVP


@patchify_triton.register_fake
def _(
    frames_BTHWC: Tensor,
    idx_BV: Tensor | None,
    patch: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    B, T, H, W, _ = frames_BTHWC.shape
    t, h, w = patch
    V = T // t * (H // h) * (W // w) if idx_BV is None else idx_BV.shape[1]
    return frames_BTHWC.new_empty((B, V, 3 * t * h * w), dtype=dtype)
