"""Define every fused operation plainly, in einops and floating-point arithmetic of any precision.

    frames_BTHWC uint8, token indices  ->  patch values, the stage 1 loss, attention

Not fast: a fused kernel is correct if it agrees with the function of the same name here, and tests compare these
functions with a restatement of the paper. Tokens are numbered in raster order (t, h, w). B rows of a batch, T frames,
H x W pixels, C colors, N tokens, V of them visible, M masked, P values of a patch.
"""

import torch
from einops import rearrange
from torch import Tensor

Patch = tuple[int, int, int]


def grid_of(frames_THW: tuple[int, int, int], patch: Patch) -> tuple[int, int, int]:
    """Return the number of patches along time, height and width.

    Raises:
        ValueError: A side is not a multiple of the patch.
    """
    if any(side % step or side < step for side, step in zip(frames_THW, patch, strict=True)):
        raise ValueError(f"frames x height x width {frames_THW} is not a multiple of the patch {patch}")
    t, h, w = (side // step for side, step in zip(frames_THW, patch, strict=True))
    return t, h, w


def cut(frames_BTHWC: Tensor, patch: Patch) -> Tensor:
    """Return every patch of a clip, (B, N, t, h, w, c)."""
    _, T, H, W, _ = frames_BTHWC.shape
    grid_of((T, H, W), patch)
    t, h, w = patch
    return rearrange(frames_BTHWC, "B (nt t) (nh h) (nw w) c -> B (nt nh nw) t h w c", t=t, h=h, w=w)


def paste(patches_BNP: Tensor, frames_THW: tuple[int, int, int], patch: Patch) -> Tensor:
    """Invert `cut`: return the clip (B, T, H, W, C) of patches whose values are ordered (t, h, w, c)."""
    nt, nh, nw = grid_of(frames_THW, patch)
    t, h, w = patch
    return rearrange(
        patches_BNP, "B (nt nh nw) (t h w c) -> B (nt t) (nh h) (nw w) c", nt=nt, nh=nh, nw=nw, t=t, h=h, w=w
    )


def take(tokens_BNX: Tensor, idx_BV: Tensor) -> Tensor:
    """Return the tokens idx_BV[b] of each row b; X stands for any further axes."""
    return tokens_BNX[torch.arange(len(idx_BV), device=idx_BV.device)[:, None], idx_BV]


def patchify(
    frames_BTHWC: Tensor,
    idx_BV: Tensor | None,
    *,
    patch: Patch,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """Return the normalized values (B, V, P) of the chosen patches (None: all), P ordered (c, t, h, w)."""
    patches = cut(frames_BTHWC, patch)
    patches = patches if idx_BV is None else take(patches, idx_BV)
    values = patches.to(dtype) / 255
    values = (values - values.new_tensor(mean)) / values.new_tensor(std)
    return rearrange(values, "B V t h w c -> B V (c t h w)")


def patch_targets(frames_BTHWC: Tensor, idx_BM: Tensor, *, patch: Patch, normalize: bool, dtype: torch.dtype) -> Tensor:
    """Return the targets of stage 1, (B, M, P): pixels in [0, 1], P ordered (t, h, w, c).

    `normalize` makes them (x - mean) / sqrt(var + 1e-6) per patch and color.
    """
    values = rearrange(take(cut(frames_BTHWC, patch), idx_BM), "B M t h w c -> B M (t h w) c").to(dtype) / 255
    if normalize:
        variance = values.var(dim=2, unbiased=True, keepdim=True)
        values = (values - values.mean(dim=2, keepdim=True)) / torch.sqrt(variance + 1e-6)
    return rearrange(values, "B M p c -> B M (p c)")


def pixel_loss(
    prediction_BMP: Tensor, frames_BTHWC: Tensor, masked_idx_BM: Tensor, *, patch: Patch, normalize: bool = True
) -> Tensor:
    """Return the mean squared error over all values of the masked patches."""
    dtype = torch.promote_types(prediction_BMP.dtype, torch.float32)
    target = patch_targets(frames_BTHWC, masked_idx_BM, patch=patch, normalize=normalize, dtype=dtype)
    return ((prediction_BMP.to(dtype) - target) ** 2).mean()


def attention(qkv_BNC3: Tensor, heads: int) -> Tensor:
    """Return softmax(q k' / sqrt(head width)) v, (B, N, C), with the scores materialized."""
    q, k, v = rearrange(qkv_BNC3, "B N (three heads d) -> three B heads N d", three=3, heads=heads)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
    return rearrange(torch.einsum("bhnm,bhmd->bhnd", scores.softmax(dim=-1), v), "B heads N d -> B N (heads d)")
