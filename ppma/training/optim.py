"""AdamW as every phase uses it: the rate as a function of the step, and which parameter gets how much of it.

    step, OptimConfig, global batch  ->  rate;   model  ->  parameter groups  ->  AdamW

The schedule has no state, so resuming at a step needs nothing but the step. Figures: PPMA (NeurIPS 2023); layer-wise
decay after BEiT.
"""

import math
from typing import Any

import torch

from ppma.config.model import OptimConfig
from ppma.models.vit import Encoder

__all__ = ["OptimConfig", "build_optimizer", "learning_rate", "parameter_groups", "set_learning_rate"]


def learning_rate(step: int, total_steps: int, config: OptimConfig, global_batch: int) -> float:
    """The rate of step `step` (from 0): linear from warmup_lr to the peak, then a cosine that reaches final_lr at
    `total_steps`.

    All three rates scale with global_batch / reference_batch. The warm-up may end between two steps.
    """
    scale, progress = global_batch / config.reference_batch, step / total_steps
    if progress < config.warmup_fraction:
        share = progress / config.warmup_fraction
        return scale * (config.warmup_lr + share * (config.peak_lr - config.warmup_lr))
    share = min(1.0, (progress - config.warmup_fraction) / (1 - config.warmup_fraction))
    top = config.peak_lr / 2 if config.published_cosine else config.peak_lr
    return scale * (config.final_lr + (top - config.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))


def layer_of(name: str, depth: int) -> int:
    """0 for the patch embedding, 1 to `depth` for the blocks, depth + 1 for what follows: norms, heads, the decoder of
    stage 1."""
    if name.startswith("patch_embed."):
        return 0
    return 1 + int(name.split(".")[1]) if name.startswith("blocks.") else depth + 1


def _lr_scale(layer: int, depth: int, config: OptimConfig) -> float:
    """Share of the rate that a layer gets: layer_decay to the power of its distance from the tail, which has the full
    rate.

    In the published form the tail's is multiplied by layer_decay as well, like the last block's.
    """
    if config.layer_decay is None:
        return 1.0
    distance = depth + 1 - layer
    return config.layer_decay ** (max(1, distance) if config.published_head_decay else distance)


def parameter_groups(model: Encoder, config: OptimConfig) -> list[dict[str, Any]]:
    """AdamW's groups over the parameters that learn, one for each (layer share, decay); `lr_scale` holds the share.

    Parameters of one axis are not decayed: biases, norms, and stage 1's mask token (VideoMAE's list; the paper names
    biases and norms only).
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = _lr_scale(layer_of(name, model.config.depth), model.config.depth, config)
            decays = parameter.ndim > 1
            empty = {"params": [], "lr_scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
            groups.setdefault((scale, decays), empty)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: Encoder, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, one fused kernel on either device. Its rate is 0 until `set_learning_rate`."""
    return torch.optim.AdamW(parameter_groups(model, config), lr=0.0, betas=config.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
