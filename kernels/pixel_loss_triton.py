"""`pixel_loss` as one Triton kernel: target, error and gradient of a masked patch in one program.

    prediction_BMP, frames_BTHWC uint8, masked_idx_BM  ->  loss, difference_BMP

The target lives in registers. What is kept for the backward pass is prediction - target in the prediction's type;
its product with 2 / count is left to the backward, where a loss scale keeps it above the underflow of float16.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppma.kernels.patchify_triton import patch_pixels, warps


@triton.jit
def pixel_loss_kernel(
    prediction, frames, idx, difference, error, p_stride_b, p_stride_m, p_stride_p, idx_stride_b, idx_stride_m,
    stride_b, stride_t, stride_h, stride_w, stride_c, nh, nw, M, variance_floor,
    NORMALISE: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Two passes over the patch in registers: the mean first, then the squares of what is left, so nothing cancels."""
    target, real = patch_pixels(
        frames, idx, idx_stride_b, idx_stride_m, stride_b, stride_t, stride_h, stride_w, stride_c, nh, nw,
        True, PT, PH, PW, BLOCK,
    )  # fmt: skip
    K: tl.constexpr = PT * PH * PW
    if NORMALISE:  # in units of a byte, where the values are exact
        centred = tl.where(real, target - tl.sum(target, axis=0)[None, :] / K, 0.0)
        variance = tl.sum(centred * centred, axis=0) / (K - 1)
        target = centred / tl.sqrt(variance + variance_floor * (255.0 * 255.0))[None, :]
    else:
        target = target / 255.0
    m, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    value = tl.arange(0, BLOCK)[:, None] * 3 + tl.arange(0, 4)[None, :]
    said = tl.load(prediction + b * p_stride_b + m * p_stride_m + value * p_stride_p, mask=real, other=0)
    left = tl.where(real, said.to(tl.float32) - target, 0.0)
    tl.store(difference + (b * M + m) * (3 * K) + value, left.to(difference.dtype.element_ty), mask=real)
    tl.store(error + b * M + m, tl.sum(tl.sum(left * left, axis=1), axis=0))


@torch.library.custom_op("ppma::pixel_loss", mutates_args=())
def pixel_loss_triton(
    prediction_BMP: Tensor,
    frames_BTHWC: Tensor,
    masked_idx_BM: Tensor,
    patch: Sequence[int],
    normalise: bool,
    variance_floor: float,
) -> tuple[Tensor, Tensor]:
    """(loss, difference_BMP); the checks stand in the seam."""
    B, M, P = prediction_BMP.shape
    _, _, H, W, _ = frames_BTHWC.shape
    t, h, w = patch
    difference_BMP = prediction_BMP.new_empty((B, M, P))
    error_BM = prediction_BMP.new_empty((B, M), dtype=torch.float32)
    pixel_loss_kernel[(M, B)](
        prediction_BMP, frames_BTHWC, masked_idx_BM, difference_BMP, error_BM, *prediction_BMP.stride(),
        *masked_idx_BM.stride(), *frames_BTHWC.stride(), H // h, W // w, M, variance_floor,
        NORMALISE=normalise, PT=t, PH=h, PW=w, BLOCK=triton.next_power_of_2(t * h * w), num_warps=warps(t * h * w),
    )  # fmt: skip
    return error_BM.mean() / P, difference_BMP


@pixel_loss_triton.register_fake
def _(
    prediction_BMP: Tensor,
    frames_BTHWC: Tensor,
    masked_idx_BM: Tensor,
    patch: Sequence[int],
    normalise: bool,
    variance_floor: float,
) -> tuple[Tensor, Tensor]:
    return prediction_BMP.new_empty((), dtype=torch.float32), prediction_BMP.new_empty(prediction_BMP.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, loss_gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (difference_BMP,) = ctx.saved_tensors
    if loss_gradient is None:
        return None, None, None, None, None, None
    scaled = difference_BMP.to(torch.float32) * (loss_gradient * (2 / difference_BMP.numel()))
    return scaled.to(difference_BMP.dtype), None, None, None, None, None


pixel_loss_triton.register_autograd(_backward, setup_context=_keep)
