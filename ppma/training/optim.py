"""AdamW for every phase: a learning rate per step, a share of it per parameter.

    step, OptimConfig, global batch  ->  rate;   model  ->  parameter groups  ->  AdamW

The schedule has no state, so a resume needs only the step. Values: PPMA (NeurIPS 2023); layer-wise decay after BEiT.
"""

import math
from typing import Any

import torch

from ppma.config.model import OptimConfig
from ppma.models.vit import Encoder

VECTORS = ("decoder.mask_token", "mixing")
"""Parameters with one axis that are neither biases nor norms."""


def learning_rate(step: int, total_steps: int, config: OptimConfig, global_batch: int) -> float:
    """Return the rate of a step: a linear warm-up from warmup_lr to the peak, then a cosine from a share of the peak,
    cosine_start, to final_lr.

    Args:
        step: Number of the step, from 0.
        total_steps: Steps of the run.
        config: The schedule. Its warm-up may end between two steps.
        global_batch: Rows per step; all rates scale with global_batch / reference_batch.
    """
    scale, progress = global_batch / config.reference_batch, step / total_steps
    if progress < config.warmup_fraction:
        share = progress / config.warmup_fraction
        return scale * (config.warmup_lr + share * (config.peak_lr - config.warmup_lr))
    skipped = config.warmup_fraction if config.cosine_over == "rest" else 0.0
    share, top = min(1.0, (progress - skipped) / (1 - skipped)), config.peak_lr * config.cosine_start
    return scale * (config.final_lr + (top - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))


def layer_of(name: str, depth: int) -> int:
    """Return 0 for the patch embedding, 1 to `depth` for the blocks, depth + 1 for norms, heads and decoder."""
    if name.startswith("patch_embed."):
        return 0
    return 1 + int(name.split(".")[1]) if name.startswith("blocks.") else depth + 1


def parameter_groups(model: Encoder, config: OptimConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups of trainable parameters, one per share of the rate (`lr_scale`) and weight decay.

    Parameters with one axis have no weight decay: biases, norms and, unless decay_vectors is set, the mask token of
    stage 1 and the shares of an average (as in VideoMAE; the paper names biases and norms only).
    """
    groups, depth = dict[tuple[float, bool], dict[str, Any]](), model.config.depth
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            from_heads = depth + 1 - layer_of(name, depth) + config.decay_head
            scale = 1.0 if config.layer_decay is None else config.layer_decay**from_heads
            decays = parameter.ndim > 1 or (config.decay_vectors and name in VECTORS)
            empty = {"params": [], "lr_scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
            groups.setdefault((scale, decays), empty)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: Encoder, config: OptimConfig) -> torch.optim.AdamW:
    """Return a fused AdamW over `parameter_groups`. Its rate is 0 until `set_learning_rate`."""
    return torch.optim.AdamW(parameter_groups(model, config), lr=0.0, betas=config.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group to its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
