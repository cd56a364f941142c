"""Which tokens the encoder, the decoder and the classifier see, drawn for each row from its own key.

    key_B, number of tokens, share  ->  visible_idx_BV, masked_idx_BM   (random_masking: stage 1, the paper's)
    key_B, masked_idx_BM, share     ->  target_idx_BK                   (running_cell: stage 1, an option)
    key_B, number of tokens, share  ->  kept_idx_BV                     (kept_tokens: stage 2, an option)

Each token gets a 32-bit word of the row's Philox stream; a stable sort of the words orders the tokens and the first
are taken. So a row's draw is the same on every device, in every batch and at every world size, and all numbers of
tokens are known before anything is drawn.
"""

import torch
from torch import Tensor

from ppma.config.errors import InputError
from ppma.kernels.philox import DevicePurpose, bits


def part_of(n_tokens: int, share: float) -> int:
    """floor(share * n_tokens)."""
    return int(share * n_tokens + 1e-9)  # 0.29 * 100 is 28.999999999999996


def masked_count(n_tokens: int, ratio: float) -> int:
    """floor(ratio * n_tokens), paper: 1411 of 1568 at 0.9. InputError unless one token at least is left on either side."""
    masked = part_of(n_tokens, ratio)
    if not 0 < masked < n_tokens:
        raise InputError(
            f"mask_ratio {ratio} hides {masked} of {n_tokens} tokens; some must be hidden and some visible"
        )
    return masked


def target_count(masked: int, share: float) -> int:
    """Hidden tokens that the decoder predicts: floor(share * masked), all at 1. InputError where none is left."""
    targets = part_of(masked, share)
    if targets < 1:
        raise InputError(f"decoder_share {share} of {masked} hidden tokens leaves none to predict; take a larger one")
    return targets


def kept_count(n_tokens: int, dropped_share: float) -> int:
    """Tokens that token dropping leaves, all at 0. InputError where a share above 0 drops none."""
    dropped = part_of(n_tokens, dropped_share)
    if dropped_share > 0 and dropped < 1:
        raise InputError(f"token_drop {dropped_share} drops none of {n_tokens} tokens; take a larger one, or 0")
    return n_tokens - dropped


def random_masking(key_B: Tensor, n_tokens: int, ratio: float) -> tuple[Tensor, Tensor]:
    """(visible_idx_BV, masked_idx_BM), int64, each ascending along its row."""
    visible = n_tokens - masked_count(n_tokens, ratio)
    order_BN = bits(key_B, DevicePurpose.MASK, n_tokens).argsort(dim=1, stable=True)
    return order_BN[:, :visible].sort(dim=1).values, order_BN[:, visible:].sort(dim=1).values


def running_cell(key_B: Tensor, masked_idx_BM: Tensor, grid: tuple[int, int, int], share: float) -> Tensor:
    """(B, K) the hidden tokens that the decoder predicts, ascending: `share` of them, by running cells.

    Space is tiled by cells of 2 x 2 tokens. At each time a cell starts at one of its places and goes round the clock,
    and from one time to the next the start moves on by one, so that no place is left out for long; where the first
    start is, is drawn. Of the hidden tokens those are taken that come first in their cells, among equals at random:
    their number is the same in every row. Source: Wang et al., "VideoMAE V2", CVPR 2023, after Qing et al., "MAR".
    """
    (_, height, width), M = grid, masked_idx_BM.shape[1]
    word_BX = bits(key_B, DevicePurpose.RUNNING_CELL, M + 1)
    time_BM = masked_idx_BM // (height * width)
    row_BM, column_BM = masked_idx_BM // width % height % 2, masked_idx_BM % width % 2
    place_BM = torch.where(row_BM == 0, column_BM, 3 - column_BM)  # round the clock
    turn_BM = (place_BM - time_BM - word_BX[:, :1]) % 4
    order_BM = ((turn_BM << 32) + word_BX[:, 1:]).argsort(dim=1, stable=True)
    return masked_idx_BM.gather(1, order_BM[:, : target_count(M, share)].sort(dim=1).values)


def kept_tokens(key_B: Tensor, n_tokens: int, dropped_share: float) -> Tensor:
    """(B, V) the tokens that token dropping leaves a training step, ascending, every token with the same probability.

    Source: Liu et al., "PatchDropout", WACV 2023.
    """
    order_BN = bits(key_B, DevicePurpose.TOKEN_DROP, n_tokens).argsort(dim=1, stable=True)
    return order_BN[:, : kept_count(n_tokens, dropped_share)].sort(dim=1).values
