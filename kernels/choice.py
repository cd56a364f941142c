"""Choose how the fused operations run: as Triton kernels on a GPU, as plain PyTorch elsewhere.

    device  ->  "triton" or "torch", and why

The choice depends on the device and the installed packages, so it never changes during a run. `use` overrides it for a
test or a measurement. Attention has more backends on a GPU, and `attention_choice` measures them.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Implementation = Literal["torch", "triton"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads this variable when a kernel is defined: its kernels then run on CPU tensors, slowly, for tests."""
INSTALLED = importlib.util.find_spec("triton") is not None
LOADED = INSTALLED and (INTERPRETED or torch.version.cuda is not None)
"""True if the Triton operators are registered in this process."""

_forced: Implementation | None = None


def explain(device: torch.device) -> tuple[Implementation, str]:
    """Return the implementation on a device, and the reason for it."""
    if _forced is not None:
        return _forced, "forced by `use`"
    if device.type != "cuda":
        return "torch", f"a {device.type} device, and Triton kernels need an NVIDIA GPU"
    if not LOADED:
        return "torch", "Triton is not installed; it comes with the CUDA build of torch"
    return "triton", "a GPU and Triton are available"


def runs_triton(device: torch.device) -> bool:
    """True if Triton kernels run on this device; cheap, and a constant for torch.compile."""
    if _forced is not None:
        return _forced == "triton"
    return LOADED and device.type == "cuda"


def forced() -> Implementation | None:
    """Return the implementation that `use` forces; None outside of it."""
    return _forced


@contextmanager
def use(implementation: Implementation) -> Iterator[None]:
    """Force one implementation inside the block.

    Raises:
        ValueError: The implementation is unknown or cannot run in this process.
    """
    global _forced
    if implementation not in ("torch", "triton"):
        raise ValueError(f"no implementation {implementation!r}; there are torch and triton")
    if implementation == "triton" and not LOADED:
        why = "it has no GPU: set TRITON_INTERPRET=1 before the start" if INSTALLED else "install triton"
        raise ValueError(f"Triton kernels cannot run in this process; {why}")
    before, _forced = _forced, implementation
    try:
        yield
    finally:
        _forced = before
