"""Register operators made of Triton kernels so that torch.compile sees the kernels.

    @triton_op("ppma::name")  ->  an operator whose launches inductor compiles, allocates for and schedules itself

Interpreted kernels run on real tensors only and cannot be traced, so in the interpreter the operator is opaque
(`custom_op`), and its kernels are skipped for fake tensors.
"""

from collections.abc import Callable
from typing import Any

import torch

from ppma.kernels import choice


def triton_op(name: str, mutates_args: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that registers a launching function as an operator that writes only `mutates_args`."""
    if not choice.INTERPRETED:
        return torch.library.triton_op(name, mutates_args=mutates_args)

    def register(function: Callable[..., Any]) -> Any:
        operator = torch.library.custom_op(name, function, mutates_args=mutates_args)
        operator.register_fake(function)  # its launches do nothing on fake tensors
        return operator

    return register


class _InterpretedKernel:
    """A kernel that does nothing on fake tensors."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        from torch._subclasses.fake_tensor import FakeTensor

        def launch(*args: Any, **settings: Any) -> None:
            if not any(isinstance(value, FakeTensor) for value in args):
                self.kernel[grid](*args, **settings)

        return launch


def wrap_triton(kernel: Any) -> Any:
    """Make a kernel traceable inside a `triton_op`."""
    return _InterpretedKernel(kernel) if choice.INTERPRETED else torch.library.wrap_triton(kernel)
