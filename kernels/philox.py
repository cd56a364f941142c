"""Generate random numbers on the device: Philox4x32-10 in integer tensor arithmetic, keyed per row.

    key_B (int64, from the loader), purpose  ->  bits, uniforms or normals of shape (B, n)

A key gives the same bits on a CPU and a GPU, in eager mode and compiled, and in any batch, so masks, drop path and
mixing depend on the sample, not on the rank or step. Source: Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011; the tests contain the authors' known-answer vectors.
"""

from enum import IntEnum

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


class DevicePurpose(IntEnum):
    """What random numbers are for. Changing a value changes the random numbers of every run."""

    MASK = 1
    MIX = 2
    DROP_PATH = 3
    ERASE_NOISE = 4
    RUNNING_CELL = 5
    TOKEN_DROP = 6


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32-bit word of a product of 32-bit words. int64 wraps, but the bits are right."""
    product = a * constant
    return (product >> 32) & _LOW, product & _LOW


def philox4x32(counter_4: tuple[Tensor, Tensor, Tensor, Tensor], key_2: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the four words of each block after ten rounds; all tensors are int64, hold 32-bit words and broadcast."""
    # Inductor computes an index times a constant in int32, which _M0 does not fit. A masked index is a value, in int64.
    c0, c1, c2, c3 = (c & _LOW for c in counter_4)
    k0, k1 = key_2
    for _ in range(10):
        high0, low0 = _multiply(c0, _M0)
        high1, low1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def bits(key_B: Tensor, purpose: DevicePurpose, n: int, *, stream: int | Tensor = 0) -> Tensor:
    """Return n uniform 32-bit words per row.

    Args:
        key_B: int64 key of each row.
        purpose: What the words are for; each purpose has its own RNG stream.
        n: Words per row.
        stream: Separates streams of one purpose: a number, or an int64 tensor (B, 1).

    Returns:
        Words (B, n) as int64.
    """
    block_1K = torch.arange(-(-n // 4), device=key_B.device, dtype=torch.int64)[None]
    zero = torch.zeros_like(block_1K)
    key_B1 = key_B[:, None]
    words = philox4x32((block_1K, zero + int(purpose), zero + stream, zero), (key_B1 & _LOW, (key_B1 >> 32) & _LOW))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :n]


def uniform(
    key_B: Tensor, purpose: DevicePurpose, n: int, *, stream: int | Tensor = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return uniforms (B, n) in the open interval (0, 1), of 23 bits: exact in float32, so equal on all devices."""
    return ((bits(key_B, purpose, n, stream=stream) >> 9).to(dtype) + 0.5) * 2.0**-23


def normal(key_B: Tensor, purpose: DevicePurpose, n: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normals (B, n) by Box-Muller; devices agree up to the rounding of log and cos."""
    uniform_B2n = uniform(key_B, purpose, 2 * n, dtype=dtype)
    radius_Bn = torch.sqrt(-2.0 * torch.log(uniform_B2n[:, :n]))
    return radius_Bn * torch.cos(2.0 * torch.pi * uniform_B2n[:, n:])
