"""Run `erase_` as one Triton kernel: a program handles a column of patches (all t) of a row, if the row's box meets it.

Block j of a row's Philox stream gives values 4 j to 4 j + 3, the same bits as `philox.normal`. Registered as operator
ppma::erase_, which declares that it writes its first argument.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ppma.kernels.operators import triton_op, wrap_triton
from ppma.kernels.philox import DevicePurpose


@triton.jit
def uniforms(key, block, PURPOSE: tl.constexpr):
    """Return the (4 BLOCK,) uniforms of consecutive Philox blocks, equal to those of `philox.uniform`."""
    zero = block * 0
    a, b, c, d = tl.philox(key, block, zero + PURPOSE, zero, zero)
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (4 * block.shape[0],))
    return ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def cosine_of_turns(u):
    """Return cos(2 pi u) for u in (0, 1), within 6e-8, by the sine series up to x**11: tl.cos would use the stack."""
    x = (tl.abs(u - 0.5) - 0.25) * 6.283185307179586
    z = x * x
    series = 1 / 362880 - z / 39916800
    series = -1 / 5040 + z * series
    series = 1 / 120 + z * series
    series = -1 / 6 + z * series
    return x + x * z * series


@triton.jit
def erase_kernel(
    patches, box, key, box_stride_b, box_stride_4, key_stride_b, nt, nh, nw,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, PURPOSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write Box-Muller noise into the patches (t, y, x) of row b, for all t; the program's ids give y, x and b."""
    y, x, b = tl.program_id(0) // nw, tl.program_id(0) % nw, tl.program_id(1)
    box += b * box_stride_b
    top, left = tl.load(box).to(tl.int32), tl.load(box + box_stride_4).to(tl.int32)
    bottom = top + tl.load(box + 2 * box_stride_4).to(tl.int32)
    right = left + tl.load(box + 3 * box_stride_4).to(tl.int32)
    if (bottom > y * PH) & (top < (y + 1) * PH) & (right > x * PW) & (left < (x + 1) * PW):
        seed = tl.load(key + b * key_stride_b)
        values: tl.constexpr = 3 * PT * PH * PW
        half = nt * nh * nw * values // 4  # blocks of four words before those of the angles
        four, one = tl.arange(0, BLOCK // 4), tl.arange(0, BLOCK)
        row, column = y * PH + one // PW % PH, x * PW + one % PW
        real = (one < values) & (row >= top) & (row < bottom) & (column >= left) & (column < right)
        for t in range(nt):
            first = ((t * nh + y) * nw + x) * values
            radius = tl.sqrt(-2.0 * tl.log(uniforms(seed, first // 4 + four, PURPOSE)))
            noise = radius * cosine_of_turns(uniforms(seed, half + first // 4 + four, PURPOSE))
            place = patches + b.to(tl.int64) * (4 * half.to(tl.int64)) + first + one
            tl.store(place, noise.to(patches.dtype.element_ty), mask=real)


@triton_op("ppma::erase_", mutates_args=("patches_BNP",))
def erase_triton(patches_BNP: Tensor, box_B4: Tensor, key_B: Tensor, grid: Sequence[int], patch: Sequence[int]) -> None:
    """Write the noise into `patches_BNP`: contiguous, P divisible by 4, not float64."""
    nt, nh, nw = grid
    t, h, w = patch
    wrap_triton(erase_kernel)[(nh * nw, len(patches_BNP))](
        patches_BNP, box_B4, key_B, *box_B4.stride(), *key_B.stride(), nt, nh, nw, PT=t, PH=h, PW=w,
        PURPOSE=int(DevicePurpose.ERASE_NOISE), BLOCK=triton.next_power_of_2(3 * t * h * w), num_warps=8,
    )  # fmt: skip
