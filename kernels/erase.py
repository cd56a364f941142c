"""Erase a random box of each clip: replace it by noise, in patches.

    patches_BNP, box_B4, key_B  ->  patches_BNP with standard normal noise inside the boxes

The noise of a value depends on its row's key and its position in the clip, so a kernel generates only the values
inside a box: 4 % of all at a batch of 128. Patches are in raster order (t, h, w), their values in the order (c, t, h,
w). B rows of a batch, N patches, P values of a patch. Source: Zhong et al., "Random Erasing Data Augmentation".
"""

import torch
from torch import Tensor

from ppma.kernels import choice
from ppma.kernels.philox import DevicePurpose, normal
from ppma.kernels.reference import Patch

if choice.LOADED:
    from ppma.kernels.erase_triton import erase_triton


def cells(patches_BNP: Tensor, grid: Patch, patch: Patch) -> Tensor:
    """Return the patches of whole clips as a view (B, N_t, N_h, N_w, c, t, h, w)."""
    return patches_BNP.view(len(patches_BNP), *grid, 3, *patch)


def inside(box_B4: Tensor, grid: Patch, patch: Patch) -> Tensor:
    """Return a mask of the pixels inside their row's box: bool, broadcastable to `cells`."""

    def along(first_B: Tensor, extent_B: Tensor, pixels: int) -> Tensor:
        pixel_S = torch.arange(pixels, device=box_B4.device)
        return (pixel_S >= first_B[:, None]) & (pixel_S < (first_B + extent_B)[:, None])

    (_, nh, nw), (_, h, w) = grid, patch
    top_B, left_B, height_B, width_B = box_B4.unbind(1)
    rows_BS, columns_BS = along(top_B, height_B, nh * h), along(left_B, width_B, nw * w)
    return rows_BS.view(-1, 1, nh, 1, 1, 1, h, 1) & columns_BS.view(-1, 1, 1, nw, 1, 1, 1, w)


def erase_(patches_BNP: Tensor, box_B4: Tensor, key_B: Tensor, *, grid: Patch, patch: Patch) -> Tensor:
    """Replace each row's box by standard normal noise in place, with different noise in every frame.

    The Triton kernel generates four values at a time in float32; other patch sizes and float64 use plain PyTorch.

    Args:
        patches_BNP: Contiguous patches of whole clips; no gradient flows through this function.
        box_B4: int64 top, left, height, width in pixels; nothing is erased if the height is 0.
        key_B: int64 Philox key of each row.
        grid: Patches along time, height and width.
        patch: Size of a patch along time, height and width.

    Returns:
        `patches_BNP`.
    """
    fours = patches_BNP.shape[2] % 4 == 0 and patches_BNP.dtype != torch.float64
    if fours and choice.runs_triton(patches_BNP.device):
        erase_triton(patches_BNP, box_B4, key_B, grid, patch)
        return patches_BNP
    # In float32, because a 23-bit integer overflows float16, which ends at 65504.
    wide = torch.promote_types(patches_BNP.dtype, torch.float32)
    noise_BNP = normal(key_B, DevicePurpose.ERASE_NOISE, patches_BNP[0].numel(), dtype=wide).to(patches_BNP.dtype)
    noise = cells(noise_BNP.view_as(patches_BNP), grid, patch)
    erased = torch.where(inside(box_B4, grid, patch), noise, cells(patches_BNP, grid, patch))
    return patches_BNP.copy_(erased.view_as(patches_BNP))
