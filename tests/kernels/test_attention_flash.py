"""FlashAttention 3 and 4 through PyTorch's registry, with a stand-in for the package that runs on a CPU."""

import pytest
import torch
from torch.nn import attention as torch_attention

from ppma.kernels import attention_choice, attention_flash, reference
from ppma.kernels.attention_choice import Shape, attend


class Handle:
    """Returned by registration; PyTorch calls it to unregister."""

    def __init__(self, library):
        self.library = library

    def remove(self):
        self.library = None


def weights(q, k):
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


@pytest.fixture
def stand_in(monkeypatch):
    """Register "STAND-IN" with PyTorch as the implementation of flash3, and return the calls it receives."""
    calls = []

    def forward(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
        calls.append("forward")
        lse = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).logsumexp(-1)
        return weights(q, k) @ v, lse, None, None, q.shape[2], k.shape[2], lse, lse, lse

    def backward(gradient, q, k, v, out, lse, *rest, scale=None):
        calls.append("backward")
        p = weights(q, k)
        ds = p * (gradient @ v.transpose(-1, -2) - (gradient * out).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        return ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ gradient

    def register():
        library = torch.library.Library("aten", "IMPL")
        library.impl("_scaled_dot_product_flash_attention", forward, "CPU")
        library.impl("_scaled_dot_product_flash_attention_backward", backward, "CPU")
        return Handle(library)

    torch_attention.register_flash_attention_impl("STAND-IN", register_fn=register)
    monkeypatch.setitem(attention_flash.IMPLEMENTATIONS, "flash3", "STAND-IN")
    monkeypatch.setitem(attention_flash.MODULES, "flash3", "json")
    return calls


def inputs():
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 9, 3 * 16, dtype=torch.float64, generator=generator).requires_grad_()
    return qkv, torch.randn(2, 9, 16, dtype=torch.float64, generator=generator)


def test_value_and_gradient_and_deactivation(stand_in):
    qkv, gradient = inputs()
    plain = qkv.detach().clone().requires_grad_()
    out, stated = attend(qkv, 2, "flash3"), reference.attention(plain, 2)
    assert torch_attention.current_flash_attention_impl() is None
    out.backward(gradient), stated.backward(gradient)
    assert stand_in == ["forward", "backward"]
    assert torch_attention.current_flash_attention_impl() is None
    torch.testing.assert_close(out, stated)
    torch.testing.assert_close(qkv.grad, plain.grad)


def test_the_previous_implementation_is_restored(stand_in):
    torch_attention.activate_flash_attention_impl("STAND-IN")
    try:
        attend(inputs()[0], 2, "flash3")
        assert torch_attention.current_flash_attention_impl() == "STAND-IN"
    finally:
        torch_attention.restore_flash_attention_impl()


def test_a_compiled_step_runs_the_chosen_implementation(stand_in):
    qkv, gradient = inputs()
    step = torch.compile(lambda x: attend(x, 2, "flash3"), fullgraph=True, backend="aot_eager")
    step(qkv).backward(gradient)
    assert stand_in == ["forward", "backward"]


def test_it_is_a_candidate_if_installed(stand_in, monkeypatch):
    shape = Shape(4, 157, 12, 64, torch.bfloat16, torch.device("cuda:0"))
    assert "flash3" in attention_choice.candidates(shape)
    assert "flash3" not in attention_choice.candidates(shape._replace(dtype=torch.float32))
    monkeypatch.setitem(attention_flash.MODULES, "flash3", "no_such_package.interface")
    assert "flash3" not in attention_choice.candidates(shape)
    with pytest.raises(RuntimeError, match="flash-attn-3"):
        attend(inputs()[0], 2, "flash3")
