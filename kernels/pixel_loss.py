"""The stage 1 loss, straight from the uint8 frames.

    prediction_BMP, frames_BTHWC uint8, masked_idx_BM  ->  scalar

The target exists only inside this function. The order of P is (t, h, w, c), the published head's. Source: He et al.,
"Masked Autoencoders Are Scalable Vision Learners" (normalised targets); Tong et al., "VideoMAE" (per colour, unbiased
variance).
"""

import torch
from torch import Tensor

from ppma.kernels.patchify import gather_patches
from ppma.kernels.reference import Patch

VARIANCE_FLOOR = 1e-6


def patch_moments(
    frames_BTHWC: Tensor, idx_BM: Tensor, patch: Patch, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(values_BMKC in [0, 1], mean_BM1C, deviation_BM1C) of the chosen patches; K pixels of a patch, C colours."""
    values_BMKC = gather_patches(frames_BTHWC, idx_BM, patch).flatten(2, 4).to(dtype) / 255
    variance_BM1C, mean_BM1C = torch.var_mean(values_BMKC, dim=2, correction=1, keepdim=True)
    return values_BMKC, mean_BM1C, torch.sqrt(variance_BM1C + VARIANCE_FLOOR)


def pixel_loss(
    prediction_BMP: Tensor, frames_BTHWC: Tensor, masked_idx_BM: Tensor, *, patch: Patch, normalise: bool = True
) -> Tensor:
    """Squared error, mean over the P values and over all masked patches of the batch, in float32 or better.

    `normalise` compares with (x - mean) / sqrt(var + 1e-6) per patch and colour, otherwise with pixels in [0, 1].
    """
    dtype = torch.promote_types(prediction_BMP.dtype, torch.float32)
    values_BMKC, mean_BM1C, deviation_BM1C = patch_moments(frames_BTHWC, masked_idx_BM, patch, dtype)
    target_BMKC = (values_BMKC - mean_BM1C) / deviation_BM1C if normalise else values_BMKC
    return (prediction_BMP.to(dtype) - target_BMKC.flatten(2)).square().mean()
