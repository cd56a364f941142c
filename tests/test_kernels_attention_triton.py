"""Our flash attention against the plain meaning and against autograd: value and gradient."""

import hopper
import pytest
import torch

from ppma.kernels import reference
from ppma.kernels.attention import attention
from ppma.kernels.attention_triton import launch

SHAPES = [  # batch, tokens, heads, head width: the model's head widths, token counts on both sides of a block, odd ones
    (1, 70, 2, 24),
    (2, 129, 1, 32),
    (1, 157, 2, 64),
    (1, 66, 1, 80),
    (2, 1, 3, 16),
    (3, 5, 1, 7),
    (1, 64, 1, 128),
]
TOLERANCES = [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 0.03)]


def inputs(B, N, heads, width, dtype, device):
    generator = torch.Generator().manual_seed(N)
    qkv = torch.randn(B, N, 3 * heads * width, generator=generator).to(dtype)
    return qkv.to(device), torch.randn(B, N, heads * width, generator=generator).to(dtype).to(device)


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
    """Of the largest value. float16 keeps 11 bits, bfloat16 8, and weights, products and results are each rounded
    once."""
    qkv, gradient = inputs(B, N, heads, width, dtype, triton_device)
    compare(qkv.requires_grad_(), gradient, heads, tolerance)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")  # in the padding, which is not stored
def test_large_scores_do_not_overflow(triton_device):
    """Scores in the thousands, of both signs: exp of any of them is inf or 0, and so is that of a wrong padding."""
    qkv, gradient = inputs(1, 70, 1, 32, torch.float32, triton_device)
    qkv[..., :64] *= 30
    compare(qkv.clone().requires_grad_(), gradient, 1, 1e-3)  # float32 keeps 1e-4 of an exponent near 2000
    same = torch.ones_like(qkv)
    same[..., :32] = -100.0  # every score is -100 * 32 / sqrt(32): the lse is far below zero
    compare(same.requires_grad_(), gradient, 1, 1e-4)


def test_inputs_of_any_strides(triton_device):
    qkv, gradient = inputs(2, 33, 2, 24, torch.float32, triton_device)
    sliced = torch.randn(2, 40, 300, device=triton_device)[:, 5:38, 7:151].copy_(qkv)
    turned = qkv.transpose(1, 2).contiguous().transpose(1, 2)
    for strided in (sliced, turned):
        compare(strided.detach().requires_grad_(), gradient, 2, 1e-5)
    spread = gradient[:, :1, :1].expand(-1, 33, 48)  # what the gradient of a sum looks like
    compare(qkv.clone().requires_grad_(), spread, 2, 1e-5)


def test_the_operators_are_registered_rightly(triton_device):
    qkv, gradient = inputs(1, 20, 2, 24, torch.float32, triton_device)
    torch.library.opcheck(torch.ops.ppma.attention.default, (qkv.requires_grad_(), 2))
    out, lse = torch.ops.ppma.attention(qkv.detach(), 2)
    torch.library.opcheck(torch.ops.ppma.attention_backward.default, (gradient, qkv.detach(), out, lse, 2))


def test_compiles_without_a_graph_break(triton_device):
    qkv, gradient = inputs(1, 20, 2, 24, torch.float32, triton_device)
    eager, traced = (qkv.clone().requires_grad_() for _ in range(2))
    attention(eager, 2).backward(gradient)
    torch.compile(attention, fullgraph=True, backend="aot_eager")(traced, 2).backward(gradient)
    assert torch.equal(eager.grad, traced.grad)


def test_compiles_for_hopper_and_fits_its_shared_memory():
    """Forward and backward kernels, at the head widths of the encoder, the decoder and the huge model."""
    pointers = {"forward_kernel": ["qkv", "out"], "query_gradient_kernel": ["qkv", "gradient", "qkv_gradient"]}
    pointers["key_value_gradient_kernel"] = pointers["query_gradient_kernel"]
    jobs = []
    for width, dtype in ((64, torch.bfloat16), (24, torch.float16), (80, torch.bfloat16)):
        for kernel, names in pointers.items():
            settings = launch(width, dtype, backward=kernel != "forward_kernel")
            options = {name: settings.pop(name) for name in ("num_warps", "num_stages")}
            types = dict.fromkeys(names, "*bf16" if dtype == torch.bfloat16 else "*fp16")
            types |= dict.fromkeys(["lse"] if kernel == "forward_kernel" else ["lse", "delta"], "*fp32")
            types |= dict.fromkeys(["N", "H", "qkv_stride_b", "qkv_stride_n"], "i32")
            types |= dict.fromkeys(["scale2"] if kernel == "forward_kernel" else ["scale", "scale2"], "fp32")
            jobs.append([f"ppma.kernels.attention_triton.{kernel}", types, settings, options])
    used = hopper.shared_bytes(jobs)
    assert len(used) == 9 and 0 < max(used) <= hopper.SHARED_BYTES
