"""Compute attention on the packed projection, in every transformer block of the project.

    x_BNC  ->  qkv_BNC3, the output of the qkv layer  ->  out_BNC, the input of the output projection

No backend materializes the (N, N) scores, which at 1568 tokens would take longer than the products. On a GPU
`attention_choice` measures which backend is the fastest for the shape: cuDNN, flash or memory-efficient attention in
PyTorch, or our Triton kernel. Elsewhere PyTorch's scaled_dot_product_attention runs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.kernels import choice
from ppma.kernels.attention_choice import FIRST_PLAN, Choice, Shape, attend, fastest_backend, supports_triton


def _choose(shape: Shape) -> Choice:
    """Return the forced backend, else the fastest one on a GPU, and PyTorch's own choice elsewhere."""
    forced = choice.forced()
    if forced is not None:
        return ("triton" if forced == "triton" and supports_triton(shape) else "pytorch"), FIRST_PLAN
    return fastest_backend(*shape) if shape.device.type == "cuda" else ("pytorch", FIRST_PLAN)


def attention(qkv_BNC3: Tensor, heads: int) -> Tensor:
    """Compute softmax(q k' / sqrt(D)) v for every head.

    Args:
        qkv_BNC3: Packed projection; the last axis is ordered (q | k | v), each (head, head width), as in timm.
        heads: Number of heads.

    Returns:
        out_BNC, contiguous, in the type of the input.

    Raises:
        ValueError: The packed width is not divisible by 3 heads.
    """
    B, N, C3 = qkv_BNC3.shape
    if C3 % (3 * heads):
        raise ValueError(f"a packed width of {C3} does not divide into q, k, v of {heads} heads")
    shape = Shape(B, N, heads, C3 // (3 * heads), qkv_BNC3.dtype, qkv_BNC3.device)
    return attend(qkv_BNC3, heads, *_choose(shape))


def projected_attention(x_BNC: Tensor, weight_C3C: Tensor, bias_C3: Tensor, heads: int) -> Tensor:
    """Compute `attention` on a linear layer of x_BNC.

    Our kernel also sums the gradient of the bias in its backward pass, which saves PyTorch a second read of the
    gradient of the projection.

    Args:
        x_BNC: Tokens.
        weight_C3C: Weight of the qkv layer.
        bias_C3: Its bias.
        heads: Number of heads.

    Returns:
        out_BNC, contiguous, in the type in which the linear layer computes.
    """
    B, N, _ = x_BNC.shape
    device, C3 = x_BNC.device, weight_C3C.shape[0]
    autocast = torch.is_autocast_enabled(device.type) and weight_C3C.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device.type) if autocast else weight_C3C.dtype
    backend, plan = _choose(Shape(B, N, heads, C3 // (3 * heads), dtype, device))
    if backend != "triton":
        return attend(F.linear(x_BNC, weight_C3C, bias_C3), heads, backend, plan)
    return attend(F.linear(x_BNC, weight_C3C, bias_C3.detach()), heads, backend, plan, bias_C3)
