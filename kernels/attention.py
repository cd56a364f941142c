"""Attention on the packed projection: one seam for every transformer block of the project.

    qkv_BNC3, as the qkv layer leaves it  ->  out_BNC, as the output projection takes it

PyTorch's scaled_dot_product_attention chooses flash, cuDNN or memory-efficient attention by device and type; none of
them materialises the (N, N) scores, which at 1568 tokens cost more time than the products themselves.
"""

import torch.nn.functional as F
from torch import Tensor


def attention(qkv_BNC3: Tensor, heads: int) -> Tensor:
    """(B, N, 3 C) -> (B, N, C). The last axis of the input is ordered (q | k | v), each (head, head width), as in timm."""
    B, N, C3 = qkv_BNC3.shape
    if C3 % (3 * heads):
        raise ValueError(f"a packed width of {C3} does not divide into q, k, v of {heads} heads")
    q, k, v = qkv_BNC3.view(B, N, 3, heads, C3 // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C3 // 3)
