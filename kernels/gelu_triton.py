"""Compute the gradients of a GELU and of the bias before it in one Triton kernel.

    hidden_RF, gradient_RF  ->  the gradient of hidden_RF, partial sums of its columns

A program holds a strip of COLUMNS and walks down ROWS_A_PROGRAM rows, so every value is read and written once and the
sums are added in the same order in every run. R rows, F hidden values.
"""

# The arguments of a kernel have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ppma.kernels.operators import triton_op, wrap_triton

ROWS, COLUMNS, ROWS_A_PROGRAM = 8, 256, 512
HALF_ROOT, DENSITY = tl.constexpr(0.5**0.5), tl.constexpr((2 * torch.pi) ** -0.5)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def slope_of_gelu(x):
    """Return Phi(x) + x phi(x), with the distribution and density of the standard normal, within 3e-7.

    Phi is Abramowitz and Stegun's 7.1.26 (1.5e-7 for erf), whose only exponential is that of phi. The
    library's erf takes twice the instructions, which would take longer than the memory traffic.
    """
    decay = tl.exp2(x * x * (-0.5 * LOG2_E))
    t = 1.0 / (1.0 + (0.3275911 * HALF_ROOT) * tl.abs(x))
    series = 1.061405429 * t - 1.453152027
    series = series * t + 1.421413741
    series = series * t - 0.284496736
    tail = 0.5 * (series * t + 0.254829592) * t * decay
    return tl.where(x < 0, tail, 1.0 - tail) + x * DENSITY * decay


@triton.jit
def gelu_gradient_kernel(
    hidden, gradient, hidden_gradient, sums, R, N,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROWS_A_PROGRAM: tl.constexpr,
):  # fmt: skip
    """Multiply the gradient by the slope of the GELU, and sum each column of the products."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, ROWS_A_PROGRAM, ROWS):
        row = tl.program_id(0) * ROWS_A_PROGRAM + start + tl.arange(0, ROWS)
        place = row[:, None].to(tl.int64) * N + column[None, :]
        real = (row < R)[:, None] & (column < N)[None, :]
        x = tl.load(hidden + place, mask=real, other=0.0).to(tl.float32)
        value = tl.load(gradient + place, mask=real, other=0.0).to(tl.float32) * slope_of_gelu(x)
        tl.store(hidden_gradient + place, value.to(hidden_gradient.dtype.element_ty), mask=real)
        total += value
    tl.store(sums + tl.program_id(0) * N + column, tl.sum(total, axis=0), mask=column < N)


@triton_op("ppma::gelu_gradient")
def gelu_gradient_triton(hidden_RF: Tensor, gradient_RF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of hidden_RF in its type, and that of the bias in float32."""
    R, N = hidden_RF.shape
    hidden_gradient_RF = torch.empty_like(hidden_RF)
    programs = triton.cdiv(R, ROWS_A_PROGRAM)
    sums = hidden_RF.new_empty((programs, N), dtype=torch.float32)
    wrap_triton(gelu_gradient_kernel)[(programs, triton.cdiv(N, COLUMNS))](
        hidden_RF, gradient_RF, hidden_gradient_RF, sums, R, N,
        ROWS=ROWS, COLUMNS=COLUMNS, ROWS_A_PROGRAM=ROWS_A_PROGRAM, num_warps=4,
    )  # fmt: skip
    return hidden_gradient_RF, sums.sum(dim=0)


@triton_op("ppma::gelu")
def gelu_triton(hidden_BNF: Tensor, bias_F: Tensor) -> Tensor:
    """Return the GELU of hidden_BNF, to which the bias is already added; one kernel computes the gradients of both."""
    return F.gelu(hidden_BNF)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.bias_dtype = inputs[1].dtype


def _backward(ctx: Any, gradient_BNF: Tensor) -> tuple[Tensor, Tensor]:
    (hidden_BNF,) = ctx.saved_tensors
    rows = (-1, hidden_BNF.shape[-1])
    hidden_gradient_RF, bias_gradient_F = gelu_gradient_triton(
        hidden_BNF.reshape(rows).contiguous(), gradient_BNF.reshape(rows).contiguous()
    )
    return hidden_gradient_RF.view_as(hidden_BNF), bias_gradient_F.to(ctx.bias_dtype)


gelu_triton.register_autograd(_backward, setup_context=_keep)
