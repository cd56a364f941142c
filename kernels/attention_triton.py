"""Flash attention in Triton on the packed projection: no permutes, no copies, on either side.

    qkv_BNC3  ->  out_BNC, lse_BHN      and      gradient_BNC  ->  the gradient of qkv_BNC3, packed again

q, k and v of a head are columns of the projection, read where they lie; the result is written where the output
projection reads it. Softmax runs in base 2: lse = log2 of the sum of exp2 of the scaled scores. Head widths that are
no power of two are padded with zeros in registers (24 to 32, 80 to 128). Source: Dao, "FlashAttention-2" (2023).

Past N, q, k, v and gradients are read as zeros. That leaves weights of exp2(-lse) there, which may overflow, so the
backward kernels also null them: by an infinite lse where rows run, by a select where columns run.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ppma.kernels import choice

LOG2_E = 1.4426950408889634


@triton.jit
def load_head(base, rows, stride, N, D: tl.constexpr, DP: tl.constexpr):
    """(rows, DP) of one head, zeros past N and past the head's width."""
    dims = tl.arange(0, DP)
    places = base + rows[:, None].to(tl.int64) * stride + dims[None, :]
    return tl.load(places, mask=(rows < N)[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def store_head(base, rows, values, stride, N, D: tl.constexpr, DP: tl.constexpr):
    """The counterpart of load_head, in the type of the place."""
    dims = tl.arange(0, DP)
    places = base + rows[:, None].to(tl.int64) * stride + dims[None, :]
    tl.store(places, values.to(base.dtype.element_ty), mask=(rows < N)[:, None] & (dims < D)[None, :])


@triton.jit
def product(a, b, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Matrix product, summed in float32."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def forward_kernel(
    qkv, out, lse, N, H, qkv_stride_b, qkv_stride_n, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head against all keys, with a running maximum and sum."""
    b, h, C = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H, H * D
    head = qkv + b * qkv_stride_b + h * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q = load_head(head, rows, qkv_stride_n, N, D, DP)
    largest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, DP), tl.float32)
    for first in range(0, N, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        k = load_head(head + C, columns, qkv_stride_n, N, D, DP)
        v = load_head(head + 2 * C, columns, qkv_stride_n, N, D, DP)
        scores = product(q, tl.trans(k), PRECISION, WIDEN) * scale2
        scores = tl.where((columns < N)[None, :], scores, -float("inf"))
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(largest - higher)
        total = total * fade + tl.sum(weights, axis=1)
        mixed = mixed * fade[:, None] + product(weights.to(v.dtype), v, PRECISION, WIDEN)
        largest = higher
    store_head(out + b * N * C + h * D, rows, mixed / total[:, None], C, N, D, DP)
    tl.store(lse + tl.program_id(1).to(tl.int64) * N + rows, largest + tl.log2(total), mask=rows < N)


@triton.jit
def delta_kernel(out, gradient, delta, N, H, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr):
    """delta = sum over the head's width of out * gradient, which both backward kernels subtract."""
    b, h, C = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H, H * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = load_head(out + b * N * C + h * D, rows, C, N, D, DP).to(tl.float32)
    g = load_head(gradient + b * N * C + h * D, rows, C, N, D, DP).to(tl.float32)
    tl.store(delta + tl.program_id(1).to(tl.int64) * N + rows, tl.sum(o * g, axis=1), mask=rows < N)


@triton.jit
def query_gradient_kernel(
    qkv, gradient, lse, delta, qkv_gradient, N, H, qkv_stride_b, qkv_stride_n, scale, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head against all keys."""
    b, h, C = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H, H * D
    head, row_of_head = qkv + b * qkv_stride_b + h * D, tl.program_id(1).to(tl.int64) * N
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q = load_head(head, rows, qkv_stride_n, N, D, DP)
    g = load_head(gradient + b * N * C + h * D, rows, C, N, D, DP)
    row_lse = tl.load(lse + row_of_head + rows, mask=rows < N, other=0.0)[:, None]
    row_delta = tl.load(delta + row_of_head + rows, mask=rows < N, other=0.0)[:, None]
    dq = tl.zeros((ROWS, DP), tl.float32)
    for first in range(0, N, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        k = load_head(head + C, columns, qkv_stride_n, N, D, DP)
        v = load_head(head + 2 * C, columns, qkv_stride_n, N, D, DP)
        weights = tl.exp2(product(q, tl.trans(k), PRECISION, WIDEN) * scale2 - row_lse)
        ds = weights * (product(g, tl.trans(v), PRECISION, WIDEN) - row_delta)
        ds = tl.where((columns < N)[None, :], ds, 0.0)
        dq += product(ds.to(k.dtype), k, PRECISION, WIDEN)
    store_head(qkv_gradient + b * N * 3 * C + h * D, rows, dq * scale, 3 * C, N, D, DP)


@triton.jit
def key_value_gradient_kernel(
    qkv, gradient, lse, delta, qkv_gradient, N, H, qkv_stride_b, qkv_stride_n, scale, scale2,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of keys and values of one head against all queries; scores stand transposed, keys down."""
    b, h, C = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H, H * D
    head, row_of_head = qkv + b * qkv_stride_b + h * D, tl.program_id(1).to(tl.int64) * N
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = load_head(head + C, columns, qkv_stride_n, N, D, DP)
    v = load_head(head + 2 * C, columns, qkv_stride_n, N, D, DP)
    dk = tl.zeros((COLUMNS, DP), tl.float32)
    dv = tl.zeros((COLUMNS, DP), tl.float32)
    for first in range(0, N, ROWS):
        rows = first + tl.arange(0, ROWS)
        q = load_head(head, rows, qkv_stride_n, N, D, DP)
        g = load_head(gradient + b * N * C + h * D, rows, C, N, D, DP)
        row_lse = tl.load(lse + row_of_head + rows, mask=rows < N, other=float("inf"))[None, :]
        row_delta = tl.load(delta + row_of_head + rows, mask=rows < N, other=0.0)[None, :]
        weights = tl.exp2(product(k, tl.trans(q), PRECISION, WIDEN) * scale2 - row_lse)
        dv += product(weights.to(g.dtype), g, PRECISION, WIDEN)
        ds = weights * (product(v, tl.trans(g), PRECISION, WIDEN) - row_delta)
        dk += product(ds.to(q.dtype), q, PRECISION, WIDEN)
    place = qkv_gradient + b * N * 3 * C + h * D
    store_head(place + C, columns, dk * scale, 3 * C, N, D, DP)
    store_head(place + 2 * C, columns, dv, 3 * C, N, D, DP)


def launch(D: int, dtype: torch.dtype, *, backward: bool) -> dict[str, Any]:
    """Compile-time arguments of the kernels for a head width: block sizes, padding, precision, warps, stages.

    Narrow heads leave registers for larger blocks. These are the usual sizes of published kernels, not tuned ones.
    """
    DP = max(16, triton.next_power_of_2(D))
    rows, columns = ((64, 64) if DP <= 64 else (32, 64)) if backward else ((128, 64) if DP <= 64 else (64, 64))
    return {
        "D": D,
        "DP": DP,
        "ROWS": rows,
        "COLUMNS": columns,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",  # says nothing about 16-bit types
        "WIDEN": choice.INTERPRETED and dtype == torch.bfloat16,  # the interpreter would multiply the bit patterns
        "num_warps": 8 if DP > 64 else 4,
        "num_stages": 2,
    }


def _packed(qkv_BNC3: Tensor) -> Tensor:
    """Columns must lie side by side; rows and batches may have any stride."""
    return qkv_BNC3 if qkv_BNC3.stride(2) == 1 else qkv_BNC3.contiguous()


@torch.library.custom_op("ppma::attention", mutates_args=())
def attention_triton(qkv_BNC3: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(out_BNC, lse_BHN float32); the checks stand in the seam."""
    qkv_BNC3 = _packed(qkv_BNC3)
    B, N, C3 = qkv_BNC3.shape
    settings = launch(C3 // (3 * heads), qkv_BNC3.dtype, backward=False)
    out_BNC = qkv_BNC3.new_empty((B, N, C3 // 3))
    lse_BHN = qkv_BNC3.new_empty((B, heads, N), dtype=torch.float32)
    scale2 = settings["D"] ** -0.5 * LOG2_E
    forward_kernel[(triton.cdiv(N, settings["ROWS"]), B * heads)](
        qkv_BNC3, out_BNC, lse_BHN, N, heads, *qkv_BNC3.stride()[:2], scale2, **settings
    )
    return out_BNC, lse_BHN


@torch.library.custom_op("ppma::attention_backward", mutates_args=())
def attention_backward_triton(
    gradient_BNC: Tensor, qkv_BNC3: Tensor, out_BNC: Tensor, lse_BHN: Tensor, heads: int
) -> Tensor:
    """The gradient of qkv_BNC3."""
    qkv_BNC3, gradient_BNC = _packed(qkv_BNC3), gradient_BNC.contiguous()
    B, N, C3 = qkv_BNC3.shape
    settings = launch(C3 // (3 * heads), qkv_BNC3.dtype, backward=True)
    row_blocks, column_blocks = (triton.cdiv(N, settings[name]) for name in ("ROWS", "COLUMNS"))
    scale = settings["D"] ** -0.5
    qkv_gradient, delta_BHN = qkv_BNC3.new_empty(qkv_BNC3.shape), torch.empty_like(lse_BHN)
    head = {name: settings[name] for name in ("D", "DP", "ROWS")}
    delta_kernel[(row_blocks, B * heads)](out_BNC, gradient_BNC, delta_BHN, N, heads, **head)
    given = (
        qkv_BNC3, gradient_BNC, lse_BHN, delta_BHN, qkv_gradient, N, heads, *qkv_BNC3.stride()[:2], scale, scale * LOG2_E,
    )  # fmt: skip
    query_gradient_kernel[(row_blocks, B * heads)](*given, **settings)
    key_value_gradient_kernel[(column_blocks, B * heads)](*given, **settings)
    return qkv_gradient


@attention_triton.register_fake
def _(qkv_BNC3: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    B, N, C3 = qkv_BNC3.shape
    return qkv_BNC3.new_empty((B, N, C3 // 3)), qkv_BNC3.new_empty((B, heads, N), dtype=torch.float32)


@attention_backward_triton.register_fake
def _(gradient_BNC: Tensor, qkv_BNC3: Tensor, out_BNC: Tensor, lse_BHN: Tensor, heads: int) -> Tensor:
    return qkv_BNC3.new_empty(qkv_BNC3.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], *output)
    ctx.heads = inputs[1]


def _backward(ctx: Any, gradient_BNC: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    return attention_backward_triton(gradient_BNC, *ctx.saved_tensors, ctx.heads), None


attention_triton.register_autograd(_backward, setup_context=_keep)
