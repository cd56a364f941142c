"""Which tokens the encoder sees: random masking, drawn for each row from its own key.

    key_B, number of tokens, ratio  ->  visible_idx_BV, masked_idx_BM

Each token gets a 32-bit word of the row's Philox stream; a stable sort of the words orders the tokens and the first V
are visible. So a row's mask is the same on every device, in every batch and at every world size, and V and M are known
before anything is drawn.
"""

from torch import Tensor

from ppma.kernels.philox import DevicePurpose, bits
from ppma.loaders.errors import InputError


def masked_count(n_tokens: int, ratio: float) -> int:
    """floor(ratio * n_tokens), paper: 1411 of 1568 at 0.9. InputError unless one token at least is left on either side."""
    masked = int(ratio * n_tokens + 1e-9)  # 0.29 * 100 is 28.999999999999996
    if not 0 < masked < n_tokens:
        raise InputError(
            f"mask_ratio {ratio} hides {masked} of {n_tokens} tokens; some must be hidden and some visible"
        )
    return masked


def random_masking(key_B: Tensor, n_tokens: int, ratio: float) -> tuple[Tensor, Tensor]:
    """(visible_idx_BV, masked_idx_BM), int64, each ascending along its row."""
    visible = n_tokens - masked_count(n_tokens, ratio)
    order_BN = bits(key_B, DevicePurpose.MASK, n_tokens).argsort(dim=1, stable=True)
    return order_BN[:, :visible].sort(dim=1).values, order_BN[:, visible:].sort(dim=1).values
