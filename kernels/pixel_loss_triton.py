"""Run `pixel_loss` as one Triton kernel, launched for the error of the masked patches and again for its gradient.

    prediction_BMP, frames_BTHWC uint8, masked_idx_BM  ->  loss
    the same and the loss's gradient                   ->  prediction_gradient_BMP

Targets exist in registers only, and the backward pass recomputes them from the bytes, so only the arguments are kept.
With 16-bit predictions and P values per patch, forward and backward together move 3 P + 5 P bytes per patch. Storing
the difference and scaling it in a separate pass would move 5 P + 4 P. The gradient is scaled in float32 and rounded
once, so a loss scale keeps it above the underflow of float16.

A program is one warp that holds a patch as chunks of 16 consecutive values, in the order (t, h, w, c) of both the bytes
and the prediction. Source of the loss: see `pixel_loss`.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppma.kernels.operators import triton_op, wrap_triton
from ppma.kernels.patchify_triton import is_wide, pixel_offset, tile_of


@triton.jit
def patch_bytes(
    clip, token, stride_t, stride_h, stride_w, stride_c, nh, nw,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, CHUNKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return a patch's bytes (CHUNKS, 16) as int32, zeros past its end."""
    chunk, lane = tl.arange(0, CHUNKS)[:, None], tl.arange(0, 16)[None, :]
    value = 16 * chunk + lane
    if WIDE:
        IN_ROW: tl.constexpr = 3 * PW // 16
        start = pixel_offset(token, chunk // IN_ROW, 0, stride_t, stride_h, stride_w, nh, nw, PT, PH, PW)
        offset = start + (chunk % IN_ROW * 16 + lane)
    else:
        pixel = value // 3
        start = pixel_offset(token, pixel // PW, pixel % PW, stride_t, stride_h, stride_w, nh, nw, PT, PH, PW)
        offset = start + value % 3 * stride_c
    real = value < 3 * PT * PH * PW
    # The select repeats the mask where the compiler sees it: chunks past the end cost no instruction.
    return tl.where(real, tl.load(clip + offset, mask=real, other=0), 0).to(tl.int32)


@triton.jit
def color_moments(x, K: tl.constexpr, CHUNKS: tl.constexpr, COLOR: tl.constexpr):
    """Return the mean and variance of one color, from int32 sums of x and x * x, exact up to 33,025 pixels.

    The color of value i of chunk n is (16 n + i) % 3 = (n + i) % 3. Sums over the three classes i % 3 of a chunk come
    first, because their members are known at compile time; n % 3 then picks the class. K * squares - total^2 is exact
    too, so bright patches with little contrast lose no precision.
    """
    kind, turn = tl.arange(0, 16)[None, :] % 3, tl.arange(0, CHUNKS) % 3
    total = tl.zeros((CHUNKS,), tl.int32)
    squares = tl.zeros((CHUNKS,), tl.int32)
    for i in tl.static_range(3):
        of_class = tl.where(kind == i, x, 0)
        chosen = turn == (COLOR - i + 3) % 3
        total += tl.where(chosen, tl.sum(of_class, axis=1), 0)
        squares += tl.where(chosen, tl.sum(of_class * of_class, axis=1), 0)
    total = tl.sum(total, axis=0)
    spread = tl.sum(squares, axis=0).to(tl.int64) * K - total.to(tl.int64) * total
    return total.to(tl.float32) / K, spread.to(tl.float32) / (K * (K - 1.0))


@triton.jit
def pixel_loss_kernel(
    prediction, frames, idx, factor, out, p_stride_b, p_stride_m, p_stride_p, idx_stride_b, idx_stride_m,
    stride_b, stride_t, stride_h, stride_w, stride_c, nh, nw, M, variance_floor,
    GRADIENT: tl.constexpr, NORMALIZE: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    CHUNKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Write the sum of squared differences of a patch or, for the gradient, the differences times `factor`.

    `factor` is a float32 scalar in device memory; the loss does not read it.
    """
    m, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    K: tl.constexpr = PT * PH * PW
    chunk, lane = tl.arange(0, CHUNKS)[:, None], tl.arange(0, 16)[None, :]
    value = 16 * chunk + lane
    real = value < 3 * K
    predicted = tl.load(prediction + b * p_stride_b + m * p_stride_m + value * p_stride_p, mask=real, other=0)
    token = tl.load(idx + b * idx_stride_b + m * idx_stride_m).to(tl.int32)
    x = patch_bytes(
        frames + b * stride_b, token, stride_t, stride_h, stride_w, stride_c, nh, nw, PT, PH, PW, CHUNKS, WIDE
    )
    target = x.to(tl.float32)
    if NORMALIZE:  # in units of a byte
        floor = tl.cast(variance_floor, tl.float32) * (255.0 * 255.0)  # inductor passes a Python float as float64
        color = (chunk % 3 + lane % 3) % 3
        mean = tl.zeros((CHUNKS, 16), tl.float32)
        inverse = tl.zeros((CHUNKS, 16), tl.float32)
        for c in tl.static_range(3):
            color_mean, variance = color_moments(x, K, CHUNKS, c)
            mean = tl.where(color == c, color_mean, mean)
            inverse = tl.where(color == c, 1.0 / tl.sqrt(variance + floor), inverse)
        target = (target - mean) * inverse
    else:
        target = target / 255.0
    left = tl.where(real, predicted.to(tl.float32) - target, 0.0)
    if GRADIENT:
        scaled = (left * tl.load(factor)).to(out.dtype.element_ty)
        tl.store(out + (b * M + m) * (3 * K) + value, scaled, mask=real)
    else:
        tl.store(out + b * M + m, tl.sum(tl.sum(left * left, axis=1), axis=0))


def _arguments(
    prediction_BMP: Tensor, frames_BTHWC: Tensor, masked_idx_BM: Tensor, patch: Sequence[int], normalize: bool
) -> tuple[list[int], dict[str, Any]]:
    """Return the strides and sizes of a launch, and its compile-time arguments."""
    _, _, H, W, _ = frames_BTHWC.shape
    t, h, w = patch
    wide = is_wide(frames_BTHWC, patch)
    chunks, warps = tile_of(3 * t * h * w, wide)
    given = [*prediction_BMP.stride(), *masked_idx_BM.stride(), *frames_BTHWC.stride(), H // h, W // w]
    return [*given, prediction_BMP.shape[1]], {
        "NORMALIZE": normalize, "PT": t, "PH": h, "PW": w, "CHUNKS": chunks, "WIDE": wide, "num_warps": warps,
    }  # fmt: skip


@triton_op("ppma::pixel_loss")
def pixel_loss_triton(
    prediction_BMP: Tensor,
    frames_BTHWC: Tensor,
    masked_idx_BM: Tensor,
    patch: Sequence[int],
    normalize: bool,
    variance_floor: float,
) -> Tensor:
    """Return the loss, a float32 scalar; `pixel_loss` has checked the arguments."""
    B, M, P = prediction_BMP.shape
    error_BM = prediction_BMP.new_empty((B, M), dtype=torch.float32)
    given, constants = _arguments(prediction_BMP, frames_BTHWC, masked_idx_BM, patch, normalize)
    wrap_triton(pixel_loss_kernel)[(M, B)](
        prediction_BMP, frames_BTHWC, masked_idx_BM, error_BM, error_BM, *given, variance_floor,
        GRADIENT=False, **constants,
    )  # fmt: skip
    return error_BM.mean() / P


@triton_op("ppma::pixel_loss_backward")
def pixel_loss_backward_triton(
    loss_gradient: Tensor,
    prediction_BMP: Tensor,
    frames_BTHWC: Tensor,
    masked_idx_BM: Tensor,
    patch: Sequence[int],
    normalize: bool,
    variance_floor: float,
) -> Tensor:
    """Return the gradient of the prediction, in the type of the prediction."""
    B, M, P = prediction_BMP.shape
    gradient_BMP = prediction_BMP.new_empty((B, M, P))
    factor = loss_gradient * (2 / (B * M * P))
    given, constants = _arguments(prediction_BMP, frames_BTHWC, masked_idx_BM, patch, normalize)
    wrap_triton(pixel_loss_kernel)[(M, B)](
        prediction_BMP, frames_BTHWC, masked_idx_BM, factor, gradient_BMP, *given, variance_floor,
        GRADIENT=True, **constants,
    )  # fmt: skip
    return gradient_BMP


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
    gradient_BMP = pixel_loss_backward_triton(loss_gradient, *ctx.saved_tensors, *ctx.settings)
    return gradient_BMP, None, None, None, None, None


pixel_loss_triton.register_autograd(_backward, setup_context=_keep)
