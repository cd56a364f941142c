"""In which numbers a run computes: the type of the weights, the type of the matrix products, and the scaler that fp16 needs."""

import contextlib
from dataclasses import dataclass

import torch

from ppma.config.errors import InputError
from ppma.config.run import Precision


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Precision on a device."""

    device: torch.device
    weights: torch.dtype
    """Type of weights, gradients and optimiser state."""
    products: torch.dtype
    """Type of the matrix products; autocast is on where it differs from `weights`."""

    @property
    def scales_loss(self) -> bool:
        """fp16 gradients underflow without a scaled loss."""
        return self.products == torch.float16

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around every forward pass."""
        if self.products == self.weights:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.products)


def choose(precision: Precision, device: torch.device) -> Compute:
    """auto: bf16 products on a GPU and float32 on a CPU, with float32 weights either way."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU; on a CPU take fp32 or bf16")
    weights = torch.float64 if precision == "fp64" else torch.float32
    products = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, weights)
    return Compute(device=device, weights=weights, products=products)
