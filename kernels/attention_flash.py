"""Run FlashAttention 3 and 4 on the packed projection, if their packages are installed.

    qkv_BNC3  ->  out_BNC, lse_BHN

PyTorch activates an implementation for all calls of its flash backend in the process. These operators activate it for
one call and then restore the previous one (0.14 ms on the host), so other shapes keep their backend, and a compiled
step runs the backend chosen when it was traced.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import attention

IMPLEMENTATIONS = {"flash3": "FA3", "flash4": "FA4"}
"""{backend: PyTorch's name}."""
MODULES = {"flash3": "flash_attn_interface", "flash4": "flash_attn.cute.interface"}
"""{backend: the module PyTorch imports}; the packages are flash-attn-3 and flash-attn-4."""


def installed(backend: str) -> bool:
    """True if PyTorch knows the implementation and its package is installed."""
    if IMPLEMENTATIONS[backend] not in attention.list_flash_attention_impls():
        return False
    try:
        return importlib.util.find_spec(MODULES[backend]) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


@contextmanager
def activated(backend: str) -> Iterator[None]:
    """Use a backend as PyTorch's flash attention inside the block.

    Raises:
        RuntimeError: It is not installed.
    """
    if not installed(backend):
        raise RuntimeError(f"{backend} is not installed; pip install flash-attn-{backend[-1]}")
    before = attention.current_flash_attention_impl()
    attention.activate_flash_attention_impl(IMPLEMENTATIONS[backend])
    try:
        yield
    finally:
        attention.restore_flash_attention_impl()
        if before is not None:
            attention.activate_flash_attention_impl(before)


def _heads_first(packed_BNC: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    """Return each part of a packed tensor as a view (B, H, N, D)."""
    return packed_BNC.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


@torch.library.custom_op("ppma::flash_attention", mutates_args=())
def flash_attention(qkv_BNC3: Tensor, heads: int, backend: str) -> tuple[Tensor, Tensor]:
    """Run one implementation of flash attention.

    Args:
        qkv_BNC3: Packed projection.
        heads: Number of heads.
        backend: A key of IMPLEMENTATIONS.

    Returns:
        out_BNC and lse_BHN (float32).

    Raises:
        RuntimeError: The backend does not support this GPU, shape or type.
    """
    with activated(backend):
        out_BHND, lse_BHN, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*_heads_first(qkv_BNC3, heads, 3))
    return out_BHND.transpose(1, 2).flatten(2).contiguous(), lse_BHN


@torch.library.custom_op("ppma::flash_attention_backward", mutates_args=())
def flash_attention_backward(
    gradient_BNC: Tensor, qkv_BNC3: Tensor, out_BNC: Tensor, lse_BHN: Tensor, heads: int, backend: str
) -> Tensor:
    """Return the gradient of qkv_BNC3."""
    N, unused = qkv_BNC3.shape[1], lse_BHN.new_empty(0)
    (gradient,), (out,) = (_heads_first(packed, heads, 1) for packed in (gradient_BNC, out_BNC))
    with activated(backend):
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient, *_heads_first(qkv_BNC3, heads, 3), out, lse_BHN, None, None, N, N, 0.0, False, unused, unused
        )
    return torch.stack([part.transpose(1, 2) for part in gradients], dim=2).flatten(2)


@flash_attention.register_fake
def _(qkv_BNC3: Tensor, heads: int, backend: str) -> tuple[Tensor, Tensor]:
    B, N, C3 = qkv_BNC3.shape
    return qkv_BNC3.new_empty((B, N, C3 // 3)), qkv_BNC3.new_empty((B, heads, N), dtype=torch.float32)


@flash_attention_backward.register_fake
def _(gradient_BNC: Tensor, qkv_BNC3: Tensor, out_BNC: Tensor, lse_BHN: Tensor, heads: int, backend: str) -> Tensor:
    return qkv_BNC3.new_empty(qkv_BNC3.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, int, str], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], *output)
    ctx.heads, ctx.backend = inputs[1:]


def _backward(ctx: Any, gradient_BNC: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
    return flash_attention_backward(gradient_BNC, *ctx.saved_tensors, ctx.heads, ctx.backend), None, None


flash_attention.register_autograd(_backward, setup_context=_keep)
