"""Turn uint8 frames into the normalized values of the chosen patches.

    frames_BTHWC uint8, idx_BV  ->  patches_BVP

In stage 1 the encoder sees a tenth of the patches, so patches are gathered as bytes and only the visible ones are
normalized. P is ordered (c, t, h, w), like a Conv3d weight, so the patch embedding is one matrix product.
B rows of a batch, V patches, P values of a patch.
"""

import torch
from torch import Tensor

from ppma.kernels import choice
from ppma.kernels.reference import Patch, grid_of

if choice.LOADED:
    from ppma.kernels.patchify_triton import patchify_triton


def gather_patches(frames_BTHWC: Tensor, idx_BV: Tensor | None, patch: Patch) -> Tensor:
    """Gather patches without changing their type.

    Args:
        frames_BTHWC: Frames of any type.
        idx_BV: Index of each patch in raster order (t, h, w); None for all patches.
        patch: Size of a patch along time, height and width.

    Returns:
        Patches (B, V, t, h, w, c).

    Raises:
        ValueError: The frames are not divisible into patches.
    """
    B, T, H, W, C = frames_BTHWC.shape
    nt, nh, nw = grid_of((T, H, W), patch)
    t, h, w = patch
    cells = frames_BTHWC.reshape(B, nt, t, nh, h, nw, w, C).permute(0, 1, 3, 5, 2, 4, 6, 7)
    patches = cells.reshape(B, nt * nh * nw, t, h, w, C)
    if idx_BV is None:
        return patches
    return patches[torch.arange(B, device=idx_BV.device)[:, None], idx_BV]


def _per_color(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return the values as a tensor (c,), filled on the device: copying them from the host would block every step."""
    return torch.stack([torch.full((), value, dtype=like.dtype, device=like.device) for value in values])


def patchify(
    frames_BTHWC: Tensor,
    idx_BV: Tensor | None,
    *,
    patch: Patch = (2, 16, 16),
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """Return (x / 255 - mean) / std of the chosen patches, computed in float32 or float64.

    Args:
        frames_BTHWC: uint8 frames, with any strides.
        idx_BV: Index of each patch in raster order (t, h, w); None for all patches.
        patch: Size of a patch along time, height and width.
        mean: Mean of each color, of pixels in [0, 1].
        std: Standard deviation of each color.
        dtype: Type of the result.

    Returns:
        Values (B, V, P).

    Raises:
        ValueError: The frames are not uint8 or not divisible into patches.
    """
    if frames_BTHWC.dtype != torch.uint8:
        raise ValueError(f"frames are {frames_BTHWC.dtype}; patchify needs torch.uint8")
    if dtype != torch.float64 and choice.runs_triton(frames_BTHWC.device):
        _, *frames_THW, _ = frames_BTHWC.shape
        grid_of((frames_THW[0], frames_THW[1], frames_THW[2]), patch)
        return patchify_triton(frames_BTHWC, idx_BV, patch, mean, std, dtype)
    values = gather_patches(frames_BTHWC, idx_BV, patch).to(torch.promote_types(dtype, torch.float32)) / 255
    values = (values - _per_color(mean, values)) / _per_color(std, values)
    return values.permute(0, 1, 5, 2, 3, 4).flatten(2).to(dtype)
