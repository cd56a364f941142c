"""Compute the stage 1 loss directly from the uint8 frames.

    prediction_BMP, frames_BTHWC uint8, masked_idx_BM  ->  scalar

The target is never stored. The Triton backward pass recomputes it from the bytes; the plain one keeps
prediction - target. P is ordered (t, h, w, c), like the published head. Source: He et al., "Masked Autoencoders Are
Scalable Vision Learners" (normalized targets); Tong et al., "VideoMAE" (per color, unbiased variance).
B rows of a batch, M masked patches, P values and K pixels of a patch, C colors.
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
    """Return values_BMKC in [0, 1] of the chosen patches, their mean_BM1C and their deviation_BM1C, sqrt(var + 1e-6).

    Args:
        frames_BTHWC: uint8 frames.
        idx_BM: Index of each patch in raster order (t, h, w).
        patch: Size of a patch along time, height and width.
        dtype: Type of the results.
    """
    values_BMKC = gather_patches(frames_BTHWC, idx_BM, patch).flatten(2, 4).to(dtype).div_(255)
    variance_BM1C, mean_BM1C = torch.var_mean(values_BMKC, dim=2, correction=1, keepdim=True)
    return values_BMKC, mean_BM1C, torch.sqrt(variance_BM1C + VARIANCE_FLOOR)


class _SquaredError(torch.autograd.Function):
    """Plain PyTorch. Target and difference share one buffer, the only tensor kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, prediction_BMP: Tensor, frames_BTHWC: Tensor, masked_idx_BM: Tensor, patch: Patch, normalize: bool
    ) -> Tensor:
        dtype = torch.promote_types(prediction_BMP.dtype, torch.float32)
        values_BMKC, mean_BM1C, deviation_BM1C = patch_moments(frames_BTHWC, masked_idx_BM, patch, dtype)
        if normalize:
            values_BMKC.sub_(mean_BM1C).div_(deviation_BM1C)
        difference_BMP = values_BMKC.flatten(2).neg_().add_(prediction_BMP)
        ctx.save_for_backward(difference_BMP)
        ctx.prediction_dtype = prediction_BMP.dtype
        # Patch by patch: one norm over a whole batch of ViT-B loses 1.4e-3 in float32.
        return torch.linalg.vector_norm(difference_BMP, dim=2).square().mean() / difference_BMP.shape[2]

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (difference_BMP,) = ctx.saved_tensors
        scaled = difference_BMP * (loss_gradient * (2 / difference_BMP.numel()))
        return scaled.to(ctx.prediction_dtype), None, None, None, None


def pixel_loss(
    prediction_BMP: Tensor, frames_BTHWC: Tensor, masked_idx_BM: Tensor, *, patch: Patch, normalize: bool = True
) -> Tensor:
    """Return the mean squared error over all values of the masked patches, in float32 or float64.

    Args:
        prediction_BMP: Predicted values of the masked patches.
        frames_BTHWC: uint8 frames.
        masked_idx_BM: Index of each masked patch in raster order (t, h, w).
        patch: Size of a patch along time, height and width.
        normalize: Compare with (x - mean) / sqrt(var + 1e-6) per patch and color, not with pixels in [0, 1].

    Raises:
        ValueError: The frames are not divisible into patches.
    """
    _, T, H, W, _ = frames_BTHWC.shape
    grid_of((T, H, W), patch)
    if prediction_BMP.dtype != torch.float64 and choice.runs_triton(prediction_BMP.device):
        return pixel_loss_triton(prediction_BMP, frames_BTHWC, masked_idx_BM, patch, normalize, VARIANCE_FLOOR)
    return _SquaredError.apply(prediction_BMP, frames_BTHWC, masked_idx_BM, patch, normalize)
