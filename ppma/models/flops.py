"""Arithmetic of the model, in one place: floating-point operations of a row, 1 multiply-add = 2.

Matrix products and attention only; norms, activations, softmax and the loss are under 1 % and not counted, as is usual for model FLOP
utilisation. A training step is three forward passes (one forward, two for the gradients); what vit.recompute computes a second time is
not counted, since it brings the model no further.
"""

import time

import torch

from ppma.config.model import MAEConfig, ViTConfig
from ppma.models.masking import kept_count, masked_count, target_count


def block_flops(tokens: int, width: int, mlp_ratio: float = 4.0) -> float:
    """Forward pass of one transformer block: qkv and output projection, MLP, and the two attention products."""
    return 2 * ((4 + 2 * mlp_ratio) * tokens * width**2 + 2 * tokens**2 * width)


def encoder_flops(vit: ViTConfig, tokens: int) -> float:
    """Forward pass of the encoder over `tokens` tokens of a clip, their embedding included."""
    return 2 * tokens * vit.patch_values * vit.width + vit.depth * block_flops(tokens, vit.width, vit.mlp_ratio)


def mae_flops(vit: ViTConfig, mae: MAEConfig) -> float:
    """Forward pass of stage 1 for one view: visible tokens in the encoder, these and the ones to predict in the decoder, the head on the
    latter. All hidden tokens are to be predicted, or mae.decoder_share of them."""
    masked = masked_count(vit.tokens, mae.mask_ratio)
    visible, targets = vit.tokens - masked, target_count(masked, mae.decoder_share)
    decoder = mae.decoder_depth * block_flops(visible + targets, mae.decoder_width, vit.mlp_ratio)
    embed = 2 * (visible + targets) * vit.width * mae.decoder_width
    head = 2 * targets * mae.decoder_width * vit.patch_values
    return encoder_flops(vit, visible) + embed + decoder + head


def classifier_flops(vit: ViTConfig, classes: int, token_drop: float = 0.0) -> float:
    """Forward pass of a classifier for one view, in training with the tokens that classifier.token_drop leaves."""
    return encoder_flops(vit, kept_count(vit.tokens, token_drop)) + 2 * vit.width * classes


def measured_peak_flops(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.2) -> float:
    """FLOP/s of a large square matrix product on this device: the ceiling that utilisation is measured against."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    a @ b
    synchronise()
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            a @ b
        synchronise()
        products += 4
    return products * 2 * n**3 / (time.perf_counter() - began)
