"""Which tokens the encoder, the decoder and the classifier see, chosen at random from each row's key.

    key_B, number of tokens, share  ->  visible_idx_BV, masked_idx_BM   (random_masking: stage 1, the paper's)
    key_B, masked_idx_BM, share     ->  target_idx_BK                   (running_cell: stage 1, an option)
    key_B, number of tokens, share  ->  kept_idx_BV                     (kept_tokens: stage 2, an option)

Each token gets a 32-bit random word from the row's Philox stream; the tokens with the smallest words are taken. So a
row's choice is the same on every device, in every batch and at every world size, and the number of tokens is known in
advance.
"""

import torch
from torch import Tensor

from ppma.config.errors import InputError
from ppma.kernels.philox import DevicePurpose, bits


def share_of(n_tokens: int, share: float) -> int:
    """Return floor(share * n_tokens)."""
    return int(share * n_tokens + 1e-9)  # 0.29 * 100 is 28.999999999999996 in floating point


def masked_count(n_tokens: int, ratio: float) -> int:
    """Return floor(ratio * n_tokens), the number of masked tokens (paper: 1411 of 1568); InputError for none or all."""
    masked = share_of(n_tokens, ratio)
    if not 0 < masked < n_tokens:
        raise InputError(
            f"mask_ratio {ratio} masks {masked} of {n_tokens} tokens; mask at least one, and leave one visible"
        )
    return masked


def target_count(masked: int, share: float) -> int:
    """Return the number of masked tokens that the decoder predicts, floor(share * masked); InputError for none."""
    targets = share_of(masked, share)
    if targets < 1:
        raise InputError(f"decoder_share {share} of {masked} masked tokens is none; use a larger one")
    return targets


def kept_count(n_tokens: int, dropped_share: float) -> int:
    """Return the number of tokens kept (all of them when the drop rate is 0); InputError if a rate drops none."""
    dropped = share_of(n_tokens, dropped_share)
    if dropped_share > 0 and dropped < 1:
        raise InputError(f"token_drop {dropped_share} drops none of {n_tokens} tokens; use a larger one, or 0")
    return n_tokens - dropped


def random_masking(key_B: Tensor, n_tokens: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Return (visible_idx_BV, masked_idx_BM), int64 and ascending in each row, with `ratio` of the tokens masked."""
    visible = n_tokens - masked_count(n_tokens, ratio)
    order_BN = bits(key_B, DevicePurpose.MASK, n_tokens).argsort(dim=1, stable=True)
    return order_BN[:, :visible].sort(dim=1).values, order_BN[:, visible:].sort(dim=1).values


def running_cell(key_B: Tensor, masked_idx_BM: Tensor, grid: tuple[int, int, int], share: float) -> Tensor:
    """Return (B, K) masked tokens for the decoder to predict, ascending in each row, chosen by running cells.

    Space is tiled by cells of 2 x 2 tokens, whose four places are ordered clockwise. The order starts at a random
    place, and one place later at each time step, so that no place is left out for long. The masked tokens that come
    first in their cells are taken, ties at random. Source: Wang et al., "VideoMAE V2", CVPR 2023, after Qing et al.,
    "MAR".

    Args:
        key_B: Row keys.
        masked_idx_BM: Masked tokens.
        grid: Tokens along time, height and width.
        share: Share of the masked tokens to take.
    """
    (_, height, width), M = grid, masked_idx_BM.shape[1]
    word_BX = bits(key_B, DevicePurpose.RUNNING_CELL, M + 1)
    time_BM = masked_idx_BM // (height * width)
    row_BM, column_BM = masked_idx_BM // width % height % 2, masked_idx_BM % width % 2
    place_BM = torch.where(row_BM == 0, column_BM, 3 - column_BM)  # clockwise
    turn_BM = (place_BM - time_BM - word_BX[:, :1]) % 4
    order_BM = ((turn_BM << 32) + word_BX[:, 1:]).argsort(dim=1, stable=True)
    return masked_idx_BM.gather(1, order_BM[:, : target_count(M, share)].sort(dim=1).values)


def kept_tokens(key_B: Tensor, n_tokens: int, dropped_share: float) -> Tensor:
    """Return (B, V) tokens to keep, ascending, at random (Liu et al., "PatchDropout", WACV 2023)."""
    order_BN = bits(key_B, DevicePurpose.TOKEN_DROP, n_tokens).argsort(dim=1, stable=True)
    return order_BN[:, : kept_count(n_tokens, dropped_share)].sort(dim=1).values
