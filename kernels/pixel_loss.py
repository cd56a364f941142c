"""The stage 1 loss, straight from the uint8 frames.

    prediction_BMP, frames_BTHWC uint8, masked_idx_BM  ->  scalar

The target exists only inside this function. The Triton backward pass computes it again from the bytes; the plain one
keeps prediction - target. The order of P is (t, h, w, c), the published head's. Source: He et al., "Masked Autoencoders
Are Scalable Vision Learners" (normalized targets); Tong et al., "VideoMAE" (per color, unbiased variance).
"""

from typing import Any

import torch
from torch import Tensor

from ppma.kernels import choice
from ppma.kernels.patchify import gather_patches
from ppma.kernels.reference import Patch, grid_of

if choice.LOADED:
    from ppma.kernels.pixel_loss_triton import pixel_loss_triton

VARIANCE_FLOOR = 1e-6


def patch_moments(
    frames_BTHWC: Tensor, idx_BM: Tensor, patch: Patch, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(values_BMKC in [0, 1], mean_BM1C, deviation_BM1C) of the chosen patches; K pixels of a patch, C colours."""
    values_BMKC = gather_patches(frames_BTHWC, idx_BM, patch).flatten(2, 4).to(dtype).div_(255)
    variance_BM1C, mean_BM1C = torch.var_mean(values_BMKC, dim=2, correction=1, keepdim=True)
    return values_BMKC, mean_BM1C, torch.sqrt(variance_BM1C + VARIANCE_FLOOR)


class _SquaredError(torch.autograd.Function):
    """The plain form in one pass: target and difference share one buffer, which is all that is kept."""

    @staticmethod
    def forward(
        ctx: Any, prediction_BMP: Tensor, frames_BTHWC: Tensor, masked_idx_BM: Tensor, patch: Patch, normalise: bool
    ) -> Tensor:
        dtype = torch.promote_types(prediction_BMP.dtype, torch.float32)
        values_BMKC, mean_BM1C, deviation_BM1C = patch_moments(frames_BTHWC, masked_idx_BM, patch, dtype)
        if normalise:
            values_BMKC.sub_(mean_BM1C).div_(deviation_BM1C)
        difference_BMP = values_BMKC.flatten(2).neg_().add_(prediction_BMP)
        ctx.save_for_backward(difference_BMP)
        ctx.prediction_dtype = prediction_BMP.dtype
        return torch.linalg.vector_norm(difference_BMP).square() / difference_BMP.numel()

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (difference_BMP,) = ctx.saved_tensors
        scaled = difference_BMP * (loss_gradient * (2 / difference_BMP.numel()))
        return scaled.to(ctx.prediction_dtype), None, None, None, None


def pixel_loss(
    prediction_BMP: Tensor, frames_BTHWC: Tensor, masked_idx_BM: Tensor, *, patch: Patch, normalise: bool = True
) -> Tensor:
    """Squared error, mean over the P values and over all masked patches of the batch, in float32 or better.

    `normalise` compares with (x - mean) / sqrt(var + 1e-6) per patch and colour, otherwise with pixels in [0, 1].
    """
    _, T, H, W, _ = frames_BTHWC.shape
    grid_of((T, H, W), patch)
    if prediction_BMP.dtype != torch.float64 and choice.runs_triton(prediction_BMP.device):
        return pixel_loss_triton(prediction_BMP, frames_BTHWC, masked_idx_BM, patch, normalise, VARIANCE_FLOOR)
    return _SquaredError.apply(prediction_BMP, frames_BTHWC, masked_idx_BM, patch, normalise)
