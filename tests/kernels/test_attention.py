"""`attention` agrees with its reference: value and gradient."""

import pytest
import torch

from ppma.kernels import reference
from ppma.kernels.attention import attention


@pytest.mark.parametrize(("B", "N", "heads", "width"), [(2, 8, 3, 48), (1, 157, 2, 48), (3, 5, 1, 7), (2, 1, 4, 8)])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_value_and_gradient(B, N, heads, width, dtype, atol):
    """Relative to the largest value; bfloat16 keeps 8 bits and the gradient passes three products."""
    generator = torch.Generator().manual_seed(N)
    qkv = torch.randn(B, N, 3 * width, dtype=torch.float64, generator=generator).to(dtype).double()
    out_gradient = torch.randn(B, N, width, dtype=torch.float64, generator=generator).to(dtype)
    ours, plain = (qkv.to(t, copy=True).requires_grad_() for t in (dtype, torch.float64))
    out, stated = attention(ours, heads), reference.attention(plain, heads)
    out.backward(out_gradient), stated.backward(out_gradient.double())
    for mine, theirs in ((out, stated), (ours.grad, plain.grad)):
        largest = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=atol * largest)


def test_an_indivisible_width_is_named():
    with pytest.raises(ValueError, match="50"):
        attention(torch.zeros(1, 4, 50), 3)
