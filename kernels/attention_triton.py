"""Run flash attention in Triton on the packed projection, without permutes or copies of inputs and outputs.

    qkv_BNC3  ->  out_BNC, lse_BHN      and      gradient_BNC  ->  the gradient of qkv_BNC3, packed again

q, k and v of a head are columns of the projection, read in place; the result is written in the layout of the output
projection. Softmax uses base 2: lse = log2 of the sum of exp2 of the scaled scores. Head widths that are not a power
of two are padded in registers (24 to 32, 80 to 128). Sources: Dao, "FlashAttention-2" (2023), whose names m_i, l_i,
acc and alpha are used here, and "FlashAttention-4" (2026) for exp2 on the FMA pipe.

Four things keep the inner loops short:

- Full blocks have no mask; the last N % block tokens follow in masked blocks of TAIL.
- If the width is padded, the first padded column of v holds ones, so the product with v also sums the rows (l_i), and
  the product g v' also subtracts delta. The ones are loaded through the same pointers, at no extra cost.
- For some columns of a block a polynomial computes exp2 instead of the special-function unit, which on Hopper has an
  eighth of the FMA pipe's rate.
- On Hopper, the rows that a program owns stay in registers (`held`), from which products read them directly.

There are two backward passes. Two-pass: one kernel for q, one for k and v, each with its own exp2, together seven
products per score. Fused: one program per head computes all three gradients with one exp2 and five products per score.

B rows of a batch, N tokens, C channels, H heads, D head width, DP the padded head width.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppma.kernels import choice
from ppma.kernels.attention_tiles import (
    exp2_weights,
    fragments,
    from_fragments,
    held,
    load_head,
    load_head_and_ones,
    minus_in_columns,
    product,
    store_head,
    store_key_and_value_sums,
    store_sum,
)

LOG2_E = 1.4426950408889634
TAIL = 32
"""Tokens in a masked block."""
KEY_TAIL = 64
"""Keys in a masked block of the fused backward pass: the rows of a wgmma."""


@triton.jit
def forward_block(
    q, m_i, l_i, acc, head, ones, first, stride, C, N, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr,
    MASKED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Add a block of keys and values to the running maximum m_i of the scores, the sum l_i and the output acc."""
    columns = first + tl.arange(0, COLUMNS)
    k = load_head(head + C, columns, stride, N, D, DP, MASKED)
    if D < DP:
        v = load_head_and_ones(head + 2 * C, ones, columns, stride, N, D, DP, MASKED)
    else:
        v = load_head(head + 2 * C, columns, stride, N, D, DP, MASKED)
    scores = product(q, tl.trans(k), None, WIDEN)
    if MASKED:
        scores = tl.where((columns < N)[None, :], scores, -float("inf"))
    m_new = tl.maximum(m_i, tl.max(scores, axis=1))
    offset = m_new * scale2
    alpha = tl.exp2(m_i * scale2 - offset)
    weights = exp2_weights(scores, scale2, offset[:, None], ROWS, COLUMNS, PART, 16)
    if D == DP:
        l_i = l_i * alpha + tl.sum(weights, axis=1)
    acc = product(weights.to(v.dtype), v, acc * alpha[:, None], WIDEN)
    return m_new, l_i, acc


@triton.jit
def forward_kernel(
    qkv, ones, out, lse, N, H, qkv_stride_b, qkv_stride_n, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr,
    HELD: tl.constexpr, PART: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Compute the output and lse of one block of queries of one head."""
    b, h, C = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H, H * D
    head = qkv + b * qkv_stride_b + h * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q = held(load_head(head, rows, qkv_stride_n, N, D, DP, True), DP, HELD, WIDEN)
    m_i = tl.full((ROWS,), -float("inf"), tl.float32)
    l_i = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DP), tl.float32)
    full = N // COLUMNS * COLUMNS
    for first in range(0, full, COLUMNS):
        m_i, l_i, acc = forward_block(
            q, m_i, l_i, acc, head, ones, first, qkv_stride_n, C, N, scale2,
            D, DP, ROWS, COLUMNS, PART, False, WIDEN,
        )  # fmt: skip
    for first in tl.range(full, N, TAIL, num_stages=1):
        m_i, l_i, acc = forward_block(
            q, m_i, l_i, acc, head, ones, first, qkv_stride_n, C, N, scale2,
            D, DP, ROWS, TAIL, 0, True, WIDEN,
        )  # fmt: skip
    if D < DP:
        l_i = tl.sum(tl.where((tl.arange(0, DP) == D)[None, :], acc, 0.0), axis=1)
    store_head(out + b * N * C + h * D, rows, acc / l_i[:, None], C, N, D, DP)
    tl.store(lse + tl.program_id(1).to(tl.int64) * N + rows, m_i * scale2 + tl.log2(l_i), mask=rows < N)


@triton.jit
def query_gradient_block(
    q, g, row_lse, row_delta, dq, head, ones, first, stride, C, N, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr,
    FOLDED: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Add the contribution of a block of keys and values to the gradient of q."""
    columns = first + tl.arange(0, COLUMNS)
    k = load_head(head + C, columns, stride, N, D, DP, MASKED)
    if FOLDED:
        v = load_head_and_ones(head + 2 * C, ones, columns, stride, N, D, DP, MASKED)
    else:
        v = load_head(head + 2 * C, columns, stride, N, D, DP, MASKED)
    scores = product(q, tl.trans(k), None, WIDEN)
    weights = exp2_weights(scores, scale2, row_lse, ROWS, COLUMNS, PART, 16)
    ds = product(g, tl.trans(v), None, WIDEN)
    if not FOLDED:
        ds -= row_delta
    ds *= weights
    if MASKED:  # past N the weights are exp2(-lse), which may be infinite
        ds = tl.where((columns < N)[None, :], ds, 0.0)
    return product(ds.to(k.dtype), k, dq, WIDEN)


@triton.jit
def query_gradient_kernel(
    qkv, ones, out, gradient, lse, delta, qkv_gradient, sums, N, H, qkv_stride_b, qkv_stride_n, scale, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr,
    HELD: tl.constexpr, PART: tl.constexpr, FOLDED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of one block of queries of one head, and store delta, each row's sum of out * gradient."""
    b, h, C = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H, H * D
    head, row_of_head = qkv + b * qkv_stride_b + h * D, tl.program_id(1).to(tl.int64) * N
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q = load_head(head, rows, qkv_stride_n, N, D, DP, True)
    g = load_head(gradient + b * N * C + h * D, rows, C, N, D, DP, True)
    o = load_head(out + b * N * C + h * D, rows, C, N, D, DP, True)
    place = sums + (b * tl.num_programs(0) + tl.program_id(0)) * 3 * C + h * D
    store_key_and_value_sums(place, g, C, D, DP)
    row_delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), axis=1)
    tl.store(delta + row_of_head + rows, row_delta, mask=rows < N)
    row_delta = row_delta[:, None]
    row_lse = tl.load(lse + row_of_head + rows, mask=rows < N, other=0.0)[:, None]
    if FOLDED:
        g = minus_in_columns(g, row_delta, D, DP)
    q, g = held(q, DP, HELD, WIDEN), held(g, DP, HELD, WIDEN)
    dq = tl.zeros((ROWS, DP), tl.float32)
    full = N // COLUMNS * COLUMNS
    for first in range(0, full, COLUMNS):
        dq = query_gradient_block(
            q, g, row_lse, row_delta, dq, head, ones, first, qkv_stride_n, C, N, scale2,
            D, DP, ROWS, COLUMNS, PART, FOLDED, False, WIDEN,
        )  # fmt: skip
    for first in tl.range(full, N, TAIL, num_stages=1):
        dq = query_gradient_block(
            q, g, row_lse, row_delta, dq, head, ones, first, qkv_stride_n, C, N, scale2,
            D, DP, ROWS, TAIL, 0, FOLDED, True, WIDEN,
        )  # fmt: skip
    dq *= scale
    store_head(qkv_gradient + b * N * 3 * C + h * D, rows, dq, 3 * C, N, D, DP)
    store_sum(place, dq, D, DP)


@triton.jit
def key_value_gradient_block(
    k, v, dk, dv, head, gradient, lse, delta, first, stride, C, N, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Add the contribution of a block of queries to the gradients of k and v; rows of the scores are keys."""
    rows = first + tl.arange(0, ROWS)
    q = load_head(head, rows, stride, N, D, DP, MASKED)
    g = load_head(gradient, rows, C, N, D, DP, MASKED)
    if MASKED:  # an infinite lse makes the weights past N zero
        row_lse = tl.load(lse + rows, mask=rows < N, other=float("inf"))[None, :]
        row_delta = tl.load(delta + rows, mask=rows < N, other=0.0)[None, :]
    else:
        row_lse = tl.load(lse + rows)[None, :]
        row_delta = tl.load(delta + rows)[None, :]
    weights = tl.exp2(product(k, tl.trans(q), None, WIDEN) * scale2 - row_lse)
    dv = product(weights.to(g.dtype), g, dv, WIDEN)
    ds = weights * (product(v, tl.trans(g), None, WIDEN) - row_delta)
    dk = product(ds.to(q.dtype), q, dk, WIDEN)
    return dk, dv


@triton.jit
def key_value_gradient_kernel(
    qkv, gradient, lse, delta, qkv_gradient, N, H, qkv_stride_b, qkv_stride_n, scale, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr,
    HELD: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one block of keys and values of one head."""
    b, h, C = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H, H * D
    head, row_of_head = qkv + b * qkv_stride_b + h * D, tl.program_id(1).to(tl.int64) * N
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = held(load_head(head + C, columns, qkv_stride_n, N, D, DP, True), DP, HELD, WIDEN)
    v = held(load_head(head + 2 * C, columns, qkv_stride_n, N, D, DP, True), DP, HELD, WIDEN)
    g = gradient + b * N * C + h * D
    dk = tl.zeros((COLUMNS, DP), tl.float32)
    dv = tl.zeros((COLUMNS, DP), tl.float32)
    full = N // ROWS * ROWS
    for first in range(0, full, ROWS):
        dk, dv = key_value_gradient_block(
            k, v, dk, dv, head, g, lse + row_of_head, delta + row_of_head, first, qkv_stride_n, C, N, scale2,
            D, DP, ROWS, False, WIDEN,
        )  # fmt: skip
    for first in tl.range(full, N, TAIL, num_stages=1):
        dk, dv = key_value_gradient_block(
            k, v, dk, dv, head, g, lse + row_of_head, delta + row_of_head, first, qkv_stride_n, C, N, scale2,
            D, DP, TAIL, True, WIDEN,
        )  # fmt: skip
    place = qkv_gradient + b * N * 3 * C + h * D
    store_head(place + C, columns, dk * scale, 3 * C, N, D, DP)
    store_head(place + 2 * C, columns, dv, 3 * C, N, D, DP)


@triton.jit
def fragment_places(sums, first, padded, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr):
    """Return pointers to the fragments of rows from `first` on, and masks for the head width and `padded` rows."""
    part = tl.arange(0, DP // 8)[:, None, None]
    place = first * 8 + 4 * tl.arange(0, 2 * ROWS)[None, :, None] + tl.arange(0, 4)[None, None, :]
    return sums + part * (padded * 8) + place, part * 8 < D, place < padded * 8


@triton.jit
def fused_block(
    k, k_rows, v_rows, dk, dv, extended, dq_sums, padded, first, N, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Add the contribution of a block of queries to the gradients of k and v, and that of k and v to the gradient of q.

    k_rows and v_rows are k and v in registers (`held`). Scores need no mask: past N, q, g, k and v are zero with their
    ones and deltas, and so is ds.
    """
    rows, dims = first + tl.arange(0, ROWS)[:, None], tl.arange(0, DP)[None, :]
    places = extended + (rows * (2 * DP) + dims)
    q = tl.load(places, mask=rows < N, other=0.0) if MASKED else tl.load(places)
    g = tl.load(places + DP, mask=rows < N, other=0.0) if MASKED else tl.load(places + DP)
    weights = tl.exp2(product(k_rows, tl.trans(q), None, WIDEN) * scale2)
    ds = product(v_rows, tl.trans(g), None, WIDEN)
    dv = product(weights.to(g.dtype), g, dv, WIDEN)
    ds = (ds * weights).to(q.dtype)
    dk = product(ds, q, dk, WIDEN)
    dq = product(tl.trans(ds), k, None, WIDEN)
    places, in_head, _ = fragment_places(dq_sums, first, padded, D, DP, ROWS)
    tl.atomic_add(places, fragments(dq, ROWS, DP), mask=in_head, sem="relaxed")
    return dk, dv


@triton.jit
def fused_key_block(
    head, ones, extended, dq_sums, padded, place, first, stride, C, N, scale, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr,
    MASKED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Store the gradients of a block of keys and values, and add its contribution to the gradient of q to dq_sums."""
    columns = first + tl.arange(0, COLUMNS)
    k = load_head_and_ones(head + C, ones, columns, stride, N, D, DP, MASKED)
    v = load_head_and_ones(head + 2 * C, ones, columns, stride, N, D, DP, MASKED)
    dk = tl.zeros((COLUMNS, DP), tl.float32)
    dv = tl.zeros((COLUMNS, DP), tl.float32)
    k_rows, v_rows = held(k, DP, True, WIDEN), held(v, DP, True, WIDEN)
    full = N // ROWS * ROWS
    for row in range(0, full, ROWS):
        dk, dv = fused_block(
            k, k_rows, v_rows, dk, dv, extended, dq_sums, padded, row, N, scale2, D, DP, ROWS, False, WIDEN
        )
    for row in tl.range(full, N, TAIL, num_stages=1):
        dk, dv = fused_block(
            k, k_rows, v_rows, dk, dv, extended, dq_sums, padded, row, N, scale2, D, DP, TAIL, True, WIDEN
        )
    store_head(place + C, columns, dk * scale, 3 * C, N, D, DP)
    store_head(place + 2 * C, columns, dv, 3 * C, N, D, DP)
    tl.debug_barrier()  # blocks are added to dq_sums in order, and all of them before it is read


@triton.jit
def fused_gradient_kernel(
    qkv, ones, out, gradient, lse, extended, dq_sums, qkv_gradient, sums, N, H, qkv_stride_b, qkv_stride_n,
    scale, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAIL: tl.constexpr,
    KEY_TAIL: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Compute all gradients of one head. The gradient of q is summed in memory, in float32.

    The additions are atomic so that the L2 cache does them, without a load. Their order is fixed: no other program
    touches the rows of a head, and blocks of keys follow one another.
    """
    b, h, C = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H, H * D
    head, place = qkv + b * qkv_stride_b + h * D, qkv_gradient + b * N * 3 * C + h * D
    row_of_head = tl.program_id(0).to(tl.int64) * N
    extended += row_of_head * (2 * DP)
    padded = tl.cdiv(N, TAIL) * TAIL
    dq_sums += tl.program_id(0).to(tl.int64) * (padded * 8 * tl.cdiv(D, 8))
    all_g = tl.zeros((COLUMNS, DP), tl.float32)
    # 1. zero dq_sums; put -lse into q and -delta into g, in the columns where k and v hold ones.
    # disable_licm: hoisting would spill
    for first in tl.range(0, N, COLUMNS, num_stages=1, disable_licm=True):
        rows = first + tl.arange(0, COLUMNS)
        q = load_head(head, rows, qkv_stride_n, N, D, DP, True)
        g = load_head(gradient + b * N * C + h * D, rows, C, N, D, DP, True)
        o = load_head(out + b * N * C + h * D, rows, C, N, D, DP, True)
        all_g += g.to(tl.float32)
        row_delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), axis=1)
        row_lse = tl.load(lse + row_of_head + rows, mask=rows < N, other=0.0) / scale2
        places, in_head, in_rows = fragment_places(dq_sums, first, padded, D, DP, COLUMNS)
        tl.store(places, tl.zeros((DP // 8, 2 * COLUMNS, 4), tl.float32), mask=in_head & in_rows)
        store_head(extended, rows, minus_in_columns(q, row_lse[:, None], D, DP), 2 * DP, N, DP, DP)
        store_head(extended + DP, rows, minus_in_columns(g, row_delta[:, None], D, DP), 2 * DP, N, DP, DP)
    store_key_and_value_sums(sums + b * 3 * C + h * D, all_g, C, D, DP)
    tl.debug_barrier()
    # 2. the gradients of k and v
    full = N // COLUMNS * COLUMNS
    for first in tl.range(0, full, COLUMNS, num_stages=1, disable_licm=True):
        fused_key_block(
            head, ones, extended, dq_sums, padded, place, first, qkv_stride_n, C, N, scale, scale2,
            D, DP, ROWS, COLUMNS, TAIL, False, WIDEN,
        )  # fmt: skip
    for first in tl.range(full, N, KEY_TAIL, num_stages=1, disable_licm=True):
        fused_key_block(
            head, ones, extended, dq_sums, padded, place, first, qkv_stride_n, C, N, scale, scale2,
            D, DP, ROWS, KEY_TAIL, TAIL, True, WIDEN,
        )  # fmt: skip
    # 3. the gradient of q
    all_dq = tl.zeros((COLUMNS, DP), tl.float32)
    for first in tl.range(0, N, COLUMNS, num_stages=1, disable_licm=True):
        rows = first + tl.arange(0, COLUMNS)
        places, in_head, in_rows = fragment_places(dq_sums, first, padded, D, DP, COLUMNS)
        dq = from_fragments(tl.load(places, mask=in_head & in_rows, other=0.0), COLUMNS, DP)
        dq *= scale
        store_head(place, rows, dq, 3 * C, N, D, DP)
        all_dq += dq
    store_sum(sums + b * 3 * C + h * D, all_dq, D, DP)


class Config(NamedTuple):
    """Block sizes and launch options of one kernel."""

    rows: int
    columns: int
    warps: int
    stages: int = 2
    part: int = 0
    """Sixteenths of the exp2 that a polynomial computes, which is exact enough for 16-bit types."""
    held: bool = False
    """Keep the rows that a program owns in registers, where they fit and the loop is long enough to benefit."""


KERNELS = {
    "forward": forward_kernel,
    "query_gradient": query_gradient_kernel,
    "key_value_gradient": key_value_gradient_kernel,
    "fused_gradient": fused_gradient_kernel,
}
TWO_PASSES = Config(0, 0, 0)
"""Config that selects the two-pass kernels instead of the fused one. Always the last, so index -1 of a plan."""
CONFIGS = {
    "forward": {
        32: (Config(128, 128, 8, part=3), Config(64, 128, 4, part=3), Config(128, 64, 4), Config(64, 64, 4)),
        64: (Config(64, 128, 4, part=1), Config(128, 128, 8, part=1, held=True), Config(128, 64, 4), Config(64, 64, 4)),
        128: (Config(128, 128, 8), Config(64, 128, 4), Config(64, 64, 4)),
    },
    "query_gradient": {
        32: (Config(128, 128, 8, part=3), Config(64, 128, 4, part=3), Config(64, 64, 4)),
        64: (Config(64, 64, 4, held=True), Config(128, 64, 8, held=True)),
        128: (Config(64, 64, 4, held=True), Config(64, 64, 4, stages=1)),
    },
    "key_value_gradient": {
        32: (Config(128, 128, 8), Config(128, 64, 4), Config(64, 64, 4, held=True)),
        64: (Config(64, 64, 4, held=True), Config(64, 128, 8, held=True)),
        128: (Config(32, 64, 4), Config(32, 64, 4, stages=1)),
    },
    "fused_gradient": {
        # 668 cycles, two-pass 964; two products fewer
        32: (Config(128, 128, 8), TWO_PASSES),
        64: (TWO_PASSES,),  # no padded columns for delta, and dq_sums would be limited by the L2 cache
        128: (TWO_PASSES,),
    },
}
"""{kernel: {largest padded head width: configs}}. All compile without spills for compute capability 8.0, 9.0 and 10.0,
the fused kernel for 9.0 only. The first is the best on Hopper by the instructions of its inner loop at stage 1's tokens
(width 64: 157, for which blocks of 128 would be a third padding); `attention_choice` measures which is on a GPU."""


def configs(kernel: str, D: int, dtype: torch.dtype) -> tuple[Config, ...]:
    """Return the configs of a kernel for a head width and a type."""
    offered = CONFIGS[kernel][max(32, triton.next_power_of_2(D))]
    if kernel == "fused_gradient" and not (_folds(D, dtype) and _for_hopper()):
        return (TWO_PASSES,)
    return offered


def _folds(D: int, dtype: torch.dtype) -> bool:
    """True if three padded columns can hold delta; float16 does not hold every delta that float32 holds."""
    return max(16, triton.next_power_of_2(D)) - D >= 3 and dtype != torch.float16


def _for_hopper() -> bool:
    """True if kernels run on Hopper, are compiled for it, or are interpreted."""
    return choice.INTERPRETED or triton.runtime.driver.active.get_current_target().arch // 10 == 9


def launch(kernel: str, config: Config, D: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the compile-time arguments and launch options of a kernel.

    Args:
        kernel: A key of KERNELS.
        config: One of `configs(kernel, D, dtype)`.
        D: Head width.
        dtype: Type of the projection.
    """
    DP = max(16, triton.next_power_of_2(D))
    settings = {"D": D, "DP": DP, "ROWS": config.rows, "COLUMNS": config.columns, "TAIL": TAIL}
    if kernel != "fused_gradient":
        settings["HELD"] = config.held and _for_hopper()
    if kernel in ("forward", "query_gradient"):
        # older GPUs have half the FMA rate, and on newer ones splitting a block moves data
        settings["PART"] = config.part if dtype.itemsize == 2 and _for_hopper() else 0
    if kernel == "query_gradient":
        settings["FOLDED"] = _folds(D, dtype)
    if kernel == "fused_gradient":
        settings["KEY_TAIL"] = KEY_TAIL
    settings["WIDEN"] = choice.INTERPRETED and dtype == torch.bfloat16
    return settings | {"num_warps": config.warps, "num_stages": config.stages}


def _packed(qkv_BNC3: Tensor) -> Tensor:
    """Return the projection with adjacent columns, copied if needed; rows and batches may have any stride."""
    return qkv_BNC3 if qkv_BNC3.stride(2) == 1 else qkv_BNC3.contiguous()


def _grid(tokens: int, block: int, heads: int) -> tuple[int, int]:
    return triton.cdiv(tokens, block), heads


def _ones(qkv_BNC3: Tensor, D: int) -> Tensor:
    """Return ones for the padded columns of a head; unpadded heads never read them."""
    DP = max(16, triton.next_power_of_2(D))
    return qkv_BNC3.new_ones(DP) if D < DP else qkv_BNC3


@torch.library.custom_op("ppma::attention", mutates_args=())
def attention_triton(
    qkv_BNC3: Tensor, bias_C3: Tensor | None, heads: int, plan: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Run flash attention; the caller checks shapes and types.

    An opaque operator, not torch.library.triton_op: the interpreter cannot be traced, and matrix products before and
    after leave nothing to fuse.

    Args:
        qkv_BNC3: Packed projection.
        bias_C3: Bias already added to the projection. If given, the backward pass also sums its gradient, which saves
            PyTorch a second read of the gradient of qkv_BNC3.
        heads: Number of heads.
        plan: Index into `configs` for each of KERNELS.

    Returns:
        out_BNC and lse_BHN (float32).
    """
    qkv_BNC3 = _packed(qkv_BNC3)
    B, N, C3 = qkv_BNC3.shape
    D, dtype = C3 // (3 * heads), qkv_BNC3.dtype
    settings = launch("forward", configs("forward", D, dtype)[plan[0]], D, dtype)
    out_BNC = qkv_BNC3.new_empty((B, N, C3 // 3))
    lse_BHN = qkv_BNC3.new_empty((B, heads, N), dtype=torch.float32)
    forward_kernel[_grid(N, settings["ROWS"], B * heads)](
        qkv_BNC3, _ones(qkv_BNC3, D), out_BNC, lse_BHN, N, heads, *qkv_BNC3.stride()[:2], D**-0.5 * LOG2_E, **settings
    )
    return out_BNC, lse_BHN


def _backward_configs(D: int, dtype: torch.dtype, plan: Sequence[int]) -> tuple[Config, ...]:
    """Return the configs of the query, key-value and fused gradient kernels."""
    return tuple(configs(kernel, D, dtype)[index] for kernel, index in zip(list(KERNELS)[1:], plan[1:], strict=True))


def _sum_blocks(N: int, query: Config, fused: Config) -> int:
    """Return J, the number of blocks of tokens in which the gradient of the bias is summed."""
    return triton.cdiv(N, query.rows) if fused == TWO_PASSES else 1


@torch.library.custom_op("ppma::attention_backward", mutates_args=())
def attention_backward_triton(
    gradient_BNC: Tensor, qkv_BNC3: Tensor, out_BNC: Tensor, lse_BHN: Tensor, heads: int, plan: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the gradient of qkv_BNC3, and its float32 sums over each of J blocks of tokens, (B, J, C3)."""
    qkv_BNC3, gradient_BNC = _packed(qkv_BNC3), gradient_BNC.contiguous()
    B, N, C3 = qkv_BNC3.shape
    D, dtype = C3 // (3 * heads), qkv_BNC3.dtype
    scale = D**-0.5
    query, key_value, fused = _backward_configs(D, dtype, plan)
    sums_BJC3 = lse_BHN.new_empty((B, _sum_blocks(N, query, fused), C3))
    qkv_gradient, ones = qkv_BNC3.new_empty(qkv_BNC3.shape), _ones(qkv_BNC3, D)
    rest = (N, heads, *qkv_BNC3.stride()[:2], scale, scale * LOG2_E)
    if fused != TWO_PASSES:
        settings = launch("fused_gradient", fused, D, dtype)
        extended = qkv_BNC3.new_empty((B, heads, N, 2, settings["DP"]))
        dq_sums = lse_BHN.new_empty((B, heads, triton.cdiv(D, 8), triton.cdiv(N, TAIL) * TAIL * 8))
        given = (qkv_BNC3, ones, out_BNC, gradient_BNC, lse_BHN, extended, dq_sums, qkv_gradient, sums_BJC3)
        fused_gradient_kernel[(B * heads,)](*given, *rest, **settings)
        return qkv_gradient, sums_BJC3
    delta_BHN = torch.empty_like(lse_BHN)
    settings = launch("query_gradient", query, D, dtype)
    query_gradient_kernel[_grid(N, settings["ROWS"], B * heads)](
        qkv_BNC3, ones, out_BNC, gradient_BNC, lse_BHN, delta_BHN, qkv_gradient, sums_BJC3, *rest, **settings
    )
    settings = launch("key_value_gradient", key_value, D, dtype)
    key_value_gradient_kernel[_grid(N, settings["COLUMNS"], B * heads)](
        qkv_BNC3, gradient_BNC, lse_BHN, delta_BHN, qkv_gradient, *rest, **settings
    )
    return qkv_gradient, sums_BJC3


@attention_triton.register_fake
def _(qkv_BNC3: Tensor, bias_C3: Tensor | None, heads: int, plan: Sequence[int]) -> tuple[Tensor, Tensor]:
    B, N, C3 = qkv_BNC3.shape
    return qkv_BNC3.new_empty((B, N, C3 // 3)), qkv_BNC3.new_empty((B, heads, N), dtype=torch.float32)


@attention_backward_triton.register_fake
def _(
    gradient_BNC: Tensor, qkv_BNC3: Tensor, out_BNC: Tensor, lse_BHN: Tensor, heads: int, plan: Sequence[int]
) -> tuple[Tensor, Tensor]:
    B, N, C3 = qkv_BNC3.shape
    query, _, fused = _backward_configs(C3 // (3 * heads), qkv_BNC3.dtype, plan)
    return qkv_BNC3.new_empty(qkv_BNC3.shape), lse_BHN.new_empty((B, _sum_blocks(N, query, fused), C3))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None, int, Sequence[int]], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], *output)
    ctx.bias_dtype = None if inputs[1] is None else inputs[1].dtype
    ctx.heads, ctx.plan = inputs[2:]


def _backward(ctx: Any, gradient_BNC: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor | None, None, None]:
    gradient_BNC3, sums_BJC3 = attention_backward_triton(gradient_BNC, *ctx.saved_tensors, ctx.heads, ctx.plan)
    bias_C3 = None if ctx.bias_dtype is None else sums_BJC3.sum(dim=(0, 1)).to(ctx.bias_dtype)
    return gradient_BNC3, bias_C3, None, None


attention_triton.register_autograd(_backward, setup_context=_keep)
