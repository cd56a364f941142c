"""From uint8 frames to the normalised values of the chosen patches.

    frames_BTHWC uint8, idx_BV  ->  patches_BVP

Stage 1 shows the encoder a tenth of the patches: rows are gathered while they are bytes, and only those are turned
into numbers. The order of P is (c, t, h, w), that of a Conv3d weight, so the patch embedding is one matrix product.
"""

import torch
from torch import Tensor

from ppma.kernels import choice
from ppma.kernels.reference import Patch, grid_of

if choice.LOADED:
    from ppma.kernels.patchify_triton import patchify_triton


def gather_patches(frames_BTHWC: Tensor, idx_BV: Tensor | None, patch: Patch) -> Tensor:
    """(B, V, t, h, w, c), in the type of the frames; None takes all N patches in raster order."""
    B, T, H, W, C = frames_BTHWC.shape
    nt, nh, nw = grid_of((T, H, W), patch)
    t, h, w = patch
    cells = frames_BTHWC.reshape(B, nt, t, nh, h, nw, w, C).permute(0, 1, 3, 5, 2, 4, 6, 7)
    patches = cells.reshape(B, nt * nh * nw, t, h, w, C)
    if idx_BV is None:
        return patches
    return patches[torch.arange(B, device=idx_BV.device)[:, None], idx_BV]


def _per_colour(values: tuple[float, ...], like: Tensor) -> Tensor:
    """(c,) tensor made on the device: a constant copied from the host would stop the stream at every step."""
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
    """(B, V, P) values (x / 255 - mean) / std, the arithmetic in float32 or better and then rounded to `dtype`."""
    if frames_BTHWC.dtype != torch.uint8:
        raise ValueError(f"frames are {frames_BTHWC.dtype}; patchify takes torch.uint8")
    if dtype != torch.float64 and choice.runs_triton(frames_BTHWC.device):
        _, *frames_THW, _ = frames_BTHWC.shape
        grid_of((frames_THW[0], frames_THW[1], frames_THW[2]), patch)
        return patchify_triton(frames_BTHWC, idx_BV, patch, mean, std, dtype)
    values = gather_patches(frames_BTHWC, idx_BV, patch).to(torch.promote_types(dtype, torch.float32)) / 255
    values = (values - _per_colour(mean, values)) / _per_colour(std, values)
    return values.permute(0, 1, 5, 2, 3, 4).flatten(2).to(dtype)
