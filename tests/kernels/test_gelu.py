"""A linear layer and its GELU agree with float64: value and every gradient."""

import pytest
import torch
import torch.nn.functional as F

from ppma.kernels.gelu import linear_gelu


@pytest.mark.parametrize(("rows", "width", "hidden"), [((2, 5), 8, 12), ((1, 700), 16, 256), ((3, 1), 4, 300)])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_value_and_gradients(triton_device, rows, width, hidden, dtype, rtol):
    """Several programs along the rows, and a partial strip of columns; 16-bit gradients are rounded once."""
    generator = torch.Generator().manual_seed(hidden)
    shapes = ((*rows, width), (hidden, width), (hidden,), (*rows, hidden))
    x, weight, bias, gradient = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    given = [t.to(triton_device, dtype).requires_grad_() for t in (x, weight, bias)]
    exact = [t.detach().double().requires_grad_() for t in given]
    out = linear_gelu(*given)
    stated = F.gelu(F.linear(*exact))
    assert out.dtype == dtype
    out.backward(gradient.to(triton_device, dtype))
    stated.backward(gradient.to(triton_device, dtype).double())
    pairs = [(out, stated), *((mine.grad, other.grad) for mine, other in zip(given, exact, strict=True))]
    for mine, other in pairs:
        assert (mine.double() - other).norm() <= rtol * other.norm()


def test_the_bias_gradient_is_summed_in_float32(triton_device):
    """4,096 ones added in float16 would stop at 2048; PyTorch rounds the sum once, and so does the kernel."""
    hidden = torch.full((4096, 4), 8.0, device=triton_device).to(torch.float16)
    weight, bias = (torch.zeros(*s, device=triton_device, dtype=torch.float16) for s in ((4, 4), (4,)))
    bias.fill_(8.0).requires_grad_()
    linear_gelu(torch.zeros_like(hidden), weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, 4096))


def test_the_operators_pass_opcheck(triton_device):
    from ppma.kernels.gelu_triton import gelu_gradient_triton, gelu_triton

    hidden, gradient = (torch.randn(2, 5, 8, device=triton_device, requires_grad=True) for _ in range(2))
    bias = torch.zeros(8, device=triton_device, requires_grad=True)
    torch.library.opcheck(gelu_triton, (hidden, bias))
    torch.library.opcheck(gelu_gradient_triton, (hidden.detach()[0], gradient.detach()[0]))
