"""Floating-point operations of the models, per row; one multiply-add is 2.

Only matrix products and attention are counted, as usual for model FLOP utilization; norms, activations, softmax and
loss are under 1 %. A training step costs three forward passes: one forward, two for the gradients. The recomputation of
vit.recompute is not counted.
"""

import time
from functools import cache

import torch

from ppma.config.model import MAEConfig, ViTConfig
from ppma.kernels.timing import synchronize
from ppma.models.masking import kept_count, masked_count, target_count


def block_flops(tokens: int, width: int, mlp_ratio: float = 4.0) -> float:
    """Return the FLOPs of a forward pass of one block: qkv and output projections, MLP, both attention products."""
    return 2 * ((4 + 2 * mlp_ratio) * tokens * width**2 + 2 * tokens**2 * width)


def encoder_flops(vit: ViTConfig, tokens: int) -> float:
    """Return the FLOPs of a forward pass of the encoder on `tokens` tokens of a clip, including patch embedding."""
    return 2 * tokens * vit.patch_values * vit.width + vit.depth * block_flops(tokens, vit.width, vit.mlp_ratio)


def mae_flops(vit: ViTConfig, mae: MAEConfig) -> float:
    """Return the FLOPs of a forward pass of stage 1 for one view.

    The encoder sees the visible tokens, the decoder also the masked ones (mae.decoder_share of them), its head only the
    masked ones.
    """
    masked = masked_count(vit.tokens, mae.mask_ratio)
    visible, targets = vit.tokens - masked, target_count(masked, mae.decoder_share)
    decoder = mae.decoder_depth * block_flops(visible + targets, mae.decoder_width, vit.mlp_ratio)
    embed = 2 * (visible + targets) * vit.width * mae.decoder_width
    head = 2 * targets * mae.decoder_width * vit.patch_values
    return encoder_flops(vit, visible) + embed + decoder + head


def classifier_flops(vit: ViTConfig, classes: int, token_drop: float = 0.0) -> float:
    """Return the FLOPs of a forward pass of a classifier for one view, with a share `token_drop` of dropped tokens."""
    return encoder_flops(vit, kept_count(vit.tokens, token_drop)) + 2 * vit.width * classes


@cache
def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large square matrix product, the reference of utilization; measured once per process."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    a @ b
    synchronize(device)
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        for _ in range(4):
            a @ b
        synchronize(device)
        products += 4
    return products * 2 * n**3 / (time.perf_counter() - began)
