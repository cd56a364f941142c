"""Compute a linear layer and its GELU, with a backward pass that also sums the gradient of the bias.

    x_BNC, weight_FC, bias_F  ->  gelu(x weight' + bias), (B, N, F)

PyTorch's backward pass reads the gradient of the hidden layer, the largest tensor of a block, a second time for the
bias. On a GPU one Triton kernel writes that gradient and sums its columns; the forward pass is PyTorch's. B rows of a
batch, N tokens, C input and F hidden channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.kernels import choice

if choice.LOADED:
    from ppma.kernels.gelu_triton import gelu_triton


def linear_gelu(x_BNC: Tensor, weight_FC: Tensor, bias_F: Tensor) -> Tensor:
    """Return the exact GELU of a linear layer, (B, N, F), in the type in which the matrix product computes."""
    if weight_FC.dtype == torch.float64 or not choice.runs_triton(x_BNC.device):
        return F.gelu(F.linear(x_BNC, weight_FC, bias_F))
    hidden_BNF = F.linear(x_BNC, weight_FC, bias_F.detach())
    return gelu_triton(hidden_BNF, bias_F)
