"""Attention on the packed projection, for every transformer block of the project.

    qkv_BNC3, as the qkv layer leaves it  ->  out_BNC, as the output projection takes it

No backend materializes the (N, N) scores, which at 1568 tokens cost more time than the products themselves. On a GPU
`attention_choice` has measured which is the fastest for the shape: cuDNN, flash or memory-efficient attention of
PyTorch, or our Triton kernel. Elsewhere scaled_dot_product_attention runs as it is.
"""

from torch import Tensor

from ppma.kernels import choice
from ppma.kernels.attention_choice import Shape, attend, fastest_backend, supports_triton


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
    forced = choice.forced()
    if forced is not None:
        return attend(qkv_BNC3, heads, "triton" if forced == "triton" and supports_triton(shape) else "pytorch")
    if not qkv_BNC3.is_cuda:
        return attend(qkv_BNC3, heads, "pytorch")
    return attend(qkv_BNC3, heads, *fastest_backend(*shape))
