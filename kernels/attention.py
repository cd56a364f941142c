"""Attention on the packed projection: one seam for every transformer block of the project.

    qkv_BNC3, as the qkv layer leaves it  ->  out_BNC, as the output projection takes it

None of the forms materialises the (N, N) scores, which at 1568 tokens cost more time than the products themselves. On
a GPU the form is the one that `attention_choice` measured as the fastest for the shape: cuDNN, flash or
memory-efficient attention of PyTorch, or our Triton kernel. Elsewhere scaled_dot_product_attention runs as it is.
"""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppma.kernels import choice
from ppma.kernels.attention_choice import Form, Shape, fastest_form

if choice.LOADED:
    from ppma.kernels.attention_triton import attention_triton

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def attend(qkv_BNC3: Tensor, heads: int, form: Form) -> Tensor:
    """Attention by one form by name; RuntimeError where PyTorch's cannot run on these tensors."""
    if form == "triton":
        return attention_triton(qkv_BNC3, heads)[0]
    B, N, C3 = qkv_BNC3.shape
    q, k, v = qkv_BNC3.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    if form == "pytorch":
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        with sdpa_kernel(BACKENDS[form]):
            out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(B, N, C3 // 3)


def attention(qkv_BNC3: Tensor, heads: int) -> Tensor:
    """(B, N, 3 C) -> (B, N, C). The last axis of the input is ordered (q | k | v), each (head, head width), as in timm."""
    B, N, C3 = qkv_BNC3.shape
    if C3 % (3 * heads):
        raise ValueError(f"a packed width of {C3} does not divide into q, k, v of {heads} heads")
    forced = choice.forced()
    if forced is not None:
        return attend(qkv_BNC3, heads, "triton" if forced == "triton" else "pytorch")
    if not qkv_BNC3.is_cuda:
        return attend(qkv_BNC3, heads, "pytorch")
    shape = Shape(B, N, heads, C3 // (3 * heads), qkv_BNC3.dtype, qkv_BNC3.device)
    return attend(qkv_BNC3, heads, fastest_form(*shape))
