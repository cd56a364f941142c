"""Report which fused kernels a run uses on a device.

device  ->  (task, backend, reason) for patches and losses, and for attention in each part of the paper's model
"""

import torch

from ppma.config.recipes import mae_nohuman
from ppma.kernels import choice
from ppma.kernels.attention_choice import Shape, explain
from ppma.models.masking import masked_count

BACKEND_NAMES = {
    "pytorch": "PyTorch's own choice",
    "cudnn": "cuDNN",
    "flash": "flash attention",
    "flash3": "FlashAttention 3",
    "flash4": "FlashAttention 4",
    "efficient": "memory-efficient attention",
    "triton": "our Triton kernel",
}
"""The backends of `kernels.attention_choice` in words."""


def chosen_kernels(device: torch.device) -> tuple[tuple[str, str, str], ...]:
    """Return what runs at the paper's batch in bfloat16. On a GPU this measures attention, unless an earlier run has
    measured it."""
    implementation, why = choice.explain(device)
    plain = (("patches and pixel loss", "our Triton kernels" if implementation == "triton" else "PyTorch", why),)
    run = mae_nohuman()
    vit, mae = run.vit, run.mae
    visible = vit.tokens - masked_count(vit.tokens, mae.mask_ratio)
    shapes = {
        "stage 1 encoder": (visible, vit.heads, vit.width // vit.heads),
        "stage 1 decoder": (vit.tokens, mae.decoder_heads, mae.decoder_width // mae.decoder_heads),
        "stage 2": (vit.tokens, vit.heads, vit.width // vit.heads),
    }
    asked = {part: explain(Shape(run.batch, *shape, torch.bfloat16, device)) for part, shape in shapes.items()}
    return plain + tuple((f"attention, {part}", BACKEND_NAMES[backend], why) for part, (backend, why) in asked.items())
