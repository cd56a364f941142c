"""Register operators made of Triton kernels, visible to torch.compile.

    @triton_op("ppma::name")  ->  an operator whose launches inductor compiles, allocates for and schedules itself

The interpreter runs kernels on real tensors only, so nothing may trace into them: there the same operator is opaque
(`custom_op`), and `wrap_triton` returns the kernel as it is.
"""

from collections.abc import Callable
from typing import Any

import torch

from ppma.kernels import choice


def triton_op(name: str, mutates_args: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that registers a function, which launches kernels and writes only these of its arguments."""
    if choice.INTERPRETED:
        return torch.library.custom_op(name, mutates_args=mutates_args)
    return torch.library.triton_op(name, mutates_args=mutates_args)


def wrap_triton(kernel: Any) -> Any:
    """Make a kernel traceable inside a `triton_op`; return it as it is where it runs interpreted."""
    return kernel if choice.INTERPRETED else torch.library.wrap_triton(kernel)
