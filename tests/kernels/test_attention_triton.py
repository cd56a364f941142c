"""Our flash attention agrees with the reference and with autograd: value and gradient."""

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ppma.kernels import attention_triton, reference
from ppma.kernels.attention import attention, projected_attention
from ppma.kernels.attention_choice import TWO_PASS_PLAN, attend
from ppma.kernels.attention_tiles import exp2_polynomial
from ppma.kernels.attention_triton import KERNELS, configs

SHAPES = [  # batch, tokens, heads, head width: the model's head widths, token counts on both sides of a block, odd ones
    (1, 70, 2, 24),
    (2, 129, 1, 32),
    (1, 157, 2, 64),
    (1, 66, 1, 80),
    (2, 1, 3, 16),
    (3, 5, 1, 7),
    (1, 64, 1, 128),
    (1, 160, 1, 24),
    (1, 63, 1, 64),
    (1, 65, 1, 16),
]
PLAN = [0, 0, 0, 0]
TOLERANCES = [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 0.03)]


def inputs(B, N, heads, width, dtype, device):
    generator = torch.Generator().manual_seed(N)
    qkv = torch.randn(B, N, 3 * heads * width, generator=generator).to(dtype)
    return qkv.to(device), torch.randn(B, N, heads * width, generator=generator).to(dtype).to(device)


def finest(device):
    """The most precise type that our kernel supports on a device, and its tolerance."""
    return (torch.float32, 1e-5) if device == "cpu" else (torch.float16, 4e-3)


def compare(ours, gradient, heads, tolerance):
    plain = ours.detach().double().requires_grad_()
    out, stated = attention(ours, heads), reference.attention(plain, heads)
    assert out.dtype == ours.dtype and out.is_contiguous()
    out.backward(gradient), stated.backward(gradient.double())
    for mine, theirs in ((out, stated), (ours.grad, plain.grad)):
        atol = tolerance * max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=atol)


@pytest.mark.parametrize(("B", "N", "heads", "width"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_value_and_gradient(triton_device, B, N, heads, width, dtype, tolerance):
    """Of the largest value: float16 keeps 11 bits, bfloat16 8; weights, products and results are rounded once."""
    if triton_device == "cuda" and dtype == torch.float32:
        pytest.skip("PyTorch's runs there")
    if triton_device == "cuda" and dtype == torch.float16 and (B, N, heads, width) not in SHAPES[:3]:
        pytest.skip("the interpreter has seen some; three kernels less to compile")
    if triton_device == "cpu" and dtype != torch.float32 and (B, N, heads, width) not in SHAPES[:4]:
        pytest.skip("interpreted in float32; the type changes no branch")
    qkv, gradient = inputs(B, N, heads, width, dtype, triton_device)
    compare(qkv.requires_grad_(), gradient, heads, tolerance)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")  # in the padding, which is not stored
def test_large_scores_do_not_overflow(triton_device):
    """Scores in the thousands, of both signs: their exp is inf or 0, as would be that of wrong padding."""
    dtype, tolerance = finest(triton_device)
    qkv, gradient = inputs(1, 70, 1, 32, dtype, triton_device)
    qkv[..., :64] *= 30
    compare(
        qkv.clone().requires_grad_(), gradient, 1, max(1e-3, tolerance)
    )  # float32 keeps 1e-4 of an exponent near 2000
    same = torch.ones_like(qkv)
    same[..., :32] = -100.0  # every score is -100 * 32 / sqrt(32): the lse is far below zero
    compare(same.requires_grad_(), gradient, 1, max(1e-4, tolerance))


def test_inputs_of_any_strides(triton_device):
    dtype, tolerance = finest(triton_device)
    qkv, gradient = inputs(2, 33, 2, 24, dtype, triton_device)
    sliced = torch.randn(2, 40, 300, device=triton_device).to(dtype)[:, 5:38, 7:151].copy_(qkv)
    turned = qkv.transpose(1, 2).contiguous().transpose(1, 2)
    for strided in (sliced, turned):
        compare(strided.detach().requires_grad_(), gradient, 2, tolerance)
    spread = gradient[:, :1, :1].expand(-1, 33, 48)  # what the gradient of a sum looks like
    compare(qkv.clone().requires_grad_(), spread, 2, tolerance)


def test_the_operators_pass_opcheck(triton_device):
    qkv, gradient = inputs(1, 20, 2, 24, finest(triton_device)[0], triton_device)
    bias = torch.zeros(qkv.shape[-1], device=qkv.device, requires_grad=True)
    for given in (bias, None):
        torch.library.opcheck(torch.ops.ppma.attention.default, (qkv.requires_grad_(), given, 2, PLAN))
    out, lse = torch.ops.ppma.attention(qkv.detach(), None, 2, PLAN)
    torch.library.opcheck(torch.ops.ppma.attention_backward.default, (gradient, qkv.detach(), out, lse, 2, PLAN))


def test_every_config_agrees_with_the_reference(triton_device):
    """Run every config of every kernel, on full blocks and a masked tail."""
    for width in (24, 64, 80):
        qkv, gradient = inputs(1, 157, 1, width, torch.bfloat16, triton_device)
        plain = qkv.double().requires_grad_()
        reference.attention(plain, 1).backward(gradient.double())
        counts = [len(configs(kernel, width, qkv.dtype)) for kernel in KERNELS]
        for index in range(max(counts)):
            ours = qkv.clone().requires_grad_()
            plan = [min(index, count - 1) for count in counts]
            plan[3] = -1  # two passes
            attend(ours, 1, "triton", tuple(plan)).backward(gradient)
            atol = 0.03 * max(1.0, plain.grad.abs().max().item())
            torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=0, atol=atol)


@pytest.mark.parametrize(("B", "N", "heads", "width"), [(2, 157, 2, 24), (3, 5, 1, 7), (2, 65, 2, 64), (1, 200, 1, 80)])
def test_the_backward_pass_sums_the_gradient_of_the_bias(triton_device, B, N, heads, width):
    """Several blocks of tokens, in both backward passes, against autograd of the linear layer; 0 for the bias of k."""
    dtype, tolerance = (torch.float32, 1e-5) if triton_device == "cpu" else (torch.bfloat16, 0.05)
    generator = torch.Generator().manual_seed(N)
    C = heads * width
    shapes = ((B, N, 4), (3 * C, 4), (3 * C,), (B, N, C))
    x, weight, bias, gradient = (torch.randn(s, generator=generator).to(triton_device, dtype) for s in shapes)
    exact_bias = bias.double().requires_grad_()
    qkv = F.linear(x, weight, bias)  # rounded once, in both
    exact_qkv = qkv.double() + (exact_bias - exact_bias.detach())
    reference.attention(exact_qkv, heads).backward(gradient.double())
    ours = [bias.float().clone().requires_grad_() for _ in range(2)]
    for given, plan in zip(ours, (PLAN, TWO_PASS_PLAN), strict=True):
        attend(qkv, heads, "triton", plan, given).backward(gradient)
    through_layer = bias.clone().requires_grad_()
    projected_attention(x, weight, through_layer, heads).backward(gradient)
    for mine in (*(given.grad for given in ours), through_layer.grad):
        assert (mine.double() - exact_bias.grad).norm() <= tolerance * exact_bias.grad.norm()
        assert not mine[C : 2 * C].any() and exact_bias.grad[C : 2 * C].abs().max() < 1e-10


def test_other_backends_also_give_the_gradient_of_the_bias():
    x, weight, bias = torch.randn(2, 5, 8), torch.randn(24, 8), torch.randn(24, requires_grad=True)
    projected_attention(x, weight, bias, 2).sum().backward()
    plain = bias.detach().double().requires_grad_()
    reference.attention(F.linear(x.double(), weight.double(), plain), 2).sum().backward()
    rounding = 10 * torch.finfo(torch.float32).eps * plain.grad.abs().max().item()  # each is a sum over ten tokens
    torch.testing.assert_close(bias.grad.double(), plain.grad, rtol=0, atol=rounding)


FUSED_SHAPES = [  # full blocks of keys and queries and both tails, none of some, odd widths, one token, batches of heads
    (1, 330, 1, 24),
    (2, 64, 2, 24),
    (1, 256, 1, 7),
    (3, 5, 1, 29),
    (2, 1, 3, 20),
    (1, 289, 1, 13),
]


@pytest.mark.parametrize(("B", "N", "heads", "width"), FUSED_SHAPES)
def test_the_fused_backward_agrees_with_the_reference_and_is_deterministic(triton_device, B, N, heads, width):
    """In the most precise type and in bfloat16, with every config, on a strided projection."""
    if len(configs("fused_gradient", width, torch.bfloat16)) == 1:
        pytest.skip("for Hopper only")
    for dtype, tolerance in {torch.bfloat16: 0.03, torch.float32: 1e-5}.items():
        if triton_device == "cuda" and dtype == torch.float32:
            continue
        qkv, gradient = inputs(B, N, heads, width, dtype, triton_device)
        plain = qkv.double().requires_grad_()
        reference.attention(plain, heads).backward(gradient.double())
        strided = qkv.new_zeros(B, N + 3, qkv.shape[2] + 5)[:, 2:-1, 4:-1].copy_(qkv)
        out, lse = torch.ops.ppma.attention(strided, None, heads, PLAN)
        offered = configs("fused_gradient", width, dtype)
        for index in range(len(offered) - 1):
            plan = [0, 0, 0, index]
            first, second = (
                torch.ops.ppma.attention_backward(gradient, strided, out, lse, heads, plan)[0] for _ in range(2)
            )
            assert torch.equal(first, second)
            atol = tolerance * max(1.0, plain.grad.abs().max().item())
            torch.testing.assert_close(first.double(), plain.grad, rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_the_fused_backward_handles_large_scores(triton_device):
    """lse is subtracted inside the product, from scores in the thousands, so it must keep float32 precision."""
    if len(configs("fused_gradient", 24, torch.bfloat16)) == 1:
        pytest.skip("for Hopper only")
    qkv, gradient = inputs(1, 70, 1, 24, torch.bfloat16, triton_device)
    qkv[..., :48] *= 30
    plain = qkv.double().requires_grad_()
    reference.attention(plain, 1).backward(gradient.double())
    out, lse = torch.ops.ppma.attention(qkv, None, 1, PLAN)
    two, fused = (
        torch.ops.ppma.attention_backward(gradient, qkv, out, lse, 1, [0, 0, 0, index])[0].double() for index in (-1, 0)
    )
    error = (two - plain.grad).abs().max()
    assert (fused - plain.grad).abs().max() <= 1.1 * error


def test_where_the_fused_backward_is_offered(monkeypatch):
    """Only two passes for wide heads, float16 (cannot hold delta) and widths without three padded columns."""
    monkeypatch.setattr(attention_triton, "_for_hopper", lambda: True)
    assert len(configs("fused_gradient", 24, torch.bfloat16)) > 1
    for width, dtype in ((64, torch.bfloat16), (24, torch.float16), (30, torch.bfloat16), (32, torch.bfloat16)):
        assert configs("fused_gradient", width, dtype) == (attention_triton.TWO_PASSES,)
    monkeypatch.setattr(attention_triton, "_for_hopper", lambda: False)
    assert configs("fused_gradient", 24, torch.bfloat16) == (attention_triton.TWO_PASSES,)


@triton.jit
def polynomial_kernel(exponents, out, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(out + places, exp2_polynomial(tl.load(exponents + places), 1.0, 0.0))


def test_the_polynomial_is_more_precise_than_the_weights(triton_device):
    """float16 rounds a weight by up to 2**-11 of it; the error of the polynomial is less than a sixth of that."""
    exponents = torch.cat([torch.linspace(-64, 0, 4093), torch.tensor([-65.0, -127.0, -float("inf")])])
    out = torch.empty_like(exponents, device=triton_device)
    polynomial_kernel[(1,)](exponents.to(triton_device), out, BLOCK=4096)
    exact = exponents.double().exp2()
    error = (out.cpu().double() / exact - 1).abs()
    assert error[:4093].max() < 2**-11 / 6
    assert (out[4093:] >= 0).all() and (
        out[4093:] < 1e-19
    ).all()  # what is clamped is negligible next to the largest weight, 1
