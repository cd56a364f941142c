"""Choose the rate and weight decay of a linear probe from a grid, all heads in one pass over the cached features.

    training features  ->  kept, held out (a share of each class)  ->  G heads train on the same batches  ->  best on the held-out clips

The test split is not used. Each head trains exactly as a probe with its rate does: the same initial weights, batches, schedule and
AdamW (Loshchilov and Hutter, 2019), which is written out here for a stack of heads because torch's takes one rate for a tensor.
"""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.common.philox import Purpose
from ppma.config.errors import InputError
from ppma.config.model import OptimConfig
from ppma.config.run import RunConfig
from ppma.models.classify import Classifier
from ppma.training.optim import learning_rate
from ppma.transfer.features import feature_batches
from ppma.transfer.frozen import shuffled_classes

EPS = 1e-8
"""AdamW's epsilon, torch's default."""


def held_out_rows(labels_V: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a bool mask (V,) with a share of each class, at least one clip of every class that has two.

    Raises:
        InputError: Every class has only one clip.
    """
    out_V = np.zeros(len(labels_V), dtype=bool)
    for _, shuffled in shuffled_classes(labels_V, seed, Purpose.HELD_OUT):
        out_V[shuffled[: min(max(1, round(share * len(shuffled))), len(shuffled) - 1)]] = True
    if not out_V.any():
        raise InputError(
            "grid: every class has only one training clip, so none can be held out; leave out --grid.rates"
        )
    return out_V


class Heads:
    """G copies of a classifier's `fc_norm` and head, stacked: norm weight and bias (G, D), weight (G, C, D), bias (G, C)."""

    def __init__(self, model: Classifier, decays: list[float]) -> None:
        start = [model.fc_norm.weight, model.fc_norm.bias, model.head.weight, model.head.bias]
        assert all(part is not None for part in start)
        self.parts = [part.detach().expand(len(decays), *part.shape).clone().requires_grad_() for part in start]
        self._moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in self.parts]
        self.decay_G = self.parts[0].new_tensor(decays)
        self.steps = 0

    def logits(self, features_BD: Tensor) -> Tensor:
        """Return (G, B, C) logits."""
        norm_weight_GD, norm_bias_GD, weight_GCD, bias_GC = self.parts
        x_BD = F.layer_norm(features_BD, features_BD.shape[-1:], eps=1e-6)
        x_GBD = x_BD * norm_weight_GD[:, None] + norm_bias_GD[:, None]
        return torch.baddbmm(bias_GC[:, None], x_GBD, weight_GCD.transpose(1, 2))

    def losses(self, features_BD: Tensor, label_B: Tensor) -> Tensor:
        """Return the (G,) mean cross-entropy of each head."""
        logits_GBC = self.logits(features_BD)
        each = F.cross_entropy(logits_GBC.flatten(0, 1), label_B.repeat(len(logits_GBC)), reduction="none")
        return each.unflatten(0, logits_GBC.shape[:2]).mean(dim=1)

    def step(self, features_BD: Tensor, label_B: Tensor, rates: list[float], betas: tuple[float, float]) -> None:
        """Take one step of AdamW for every head, each at its own rate. The heads share no parameter, so their losses add up."""
        gradients = torch.autograd.grad(self.losses(features_BD, label_B).sum(), self.parts)
        self.steps += 1
        first, second = betas
        with torch.no_grad():
            for part, gradient, (mean, square) in zip(self.parts, gradients, self._moments):
                rate = part.new_tensor(rates).view(-1, *[1] * (part.ndim - 1))
                if part.ndim > 2:  # parameters of one axis are not decayed, as in `optim.parameter_groups`
                    part.mul_(1 - rate * self.decay_G.view_as(rate))
                mean.lerp_(gradient, 1 - first)
                square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                spread = (square / (1 - second**self.steps)).sqrt_().add_(EPS)
                part.sub_(rate / (1 - first**self.steps) * mean / spread)


def train_heads(
    features_VD: Tensor, labels_V: Tensor, heads: Heads, optims: list[OptimConfig], config: RunConfig
) -> None:
    """Train all heads for all epochs on these clips, each head on the schedule of its own config."""
    steps = len(labels_V) // config.batch
    if steps == 0:
        raise InputError(
            f"grid: {len(labels_V)} clips are left to train on, fewer than a batch; choose --batch {len(labels_V)} or less"
        )
    epochs = config.optim.epochs
    stream = feature_batches(features_VD, labels_V, batch=config.batch, epochs=epochs, seed=config.seed, start=(0, 0))
    for step, batch in enumerate(stream):
        rates = [learning_rate(step, steps * epochs, optim, config.batch) for optim in optims]
        heads.step(batch.features_BD, batch.label_B, rates, config.optim.betas)


def choose_rate(
    features_VD: Tensor, labels_V: Tensor, model: Classifier, config: RunConfig
) -> tuple[OptimConfig, dict[str, Any]]:
    """Choose the rate and weight decay with the highest top-1 on held-out clips; of equals, the one with the lowest loss.

    Args:
        features_VD: Features of the training clips.
        labels_V: Their labels.
        model: Gives the initial `fc_norm` and head.
        config: The run; its grid lists the rates and decays.

    Returns:
        The config of the optimizer with the chosen pair, and the record of the grid for result.json.

    Raises:
        InputError: No clip can be held out, or fewer than a batch are left.
    """
    rates = config.grid.rates or (config.optim.peak_lr,)
    decays = config.grid.weight_decays or (config.optim.weight_decay,)
    pairs = itertools.product(rates, decays)
    optims = [replace(config.optim, peak_lr=rate, weight_decay=decay) for rate, decay in pairs]
    held_out = held_out_rows(labels_V.cpu().numpy(), config.grid.held_out, config.seed)
    out_V = torch.from_numpy(held_out).to(labels_V.device)
    heads = Heads(model, [optim.weight_decay for optim in optims])
    train_heads(features_VD[~out_V], labels_V[~out_V], heads, optims, config)
    with torch.no_grad():
        right_GB = heads.logits(features_VD[out_V]).argmax(dim=2) == labels_V[out_V]
        loss_G = heads.losses(features_VD[out_V], labels_V[out_V])
    tried = [
        {"rate": optim.peak_lr, "weight_decay": optim.weight_decay, "top1": top1, "loss": loss}
        for optim, top1, loss in zip(optims, right_GB.double().mean(dim=1).tolist(), loss_G.tolist())
    ]
    best = max(range(len(tried)), key=lambda g: (tried[g]["top1"], -tried[g]["loss"]))
    chosen = {name: tried[best][name] for name in ("rate", "weight_decay")}
    return optims[best], {"chosen": chosen, "held_out_clips": int(out_V.sum()), "tried": tried}
