"""Mixup, CutMix and label smoothing on clips.

    patches_BNP, key_B  ->  patches_BNP;   logits of every label space, labels  ->  loss

A box is one place in every frame. timm's own Mixup takes a clip for a picture: its CutMix cuts across time and weighs
the labels by the wrong area. Rows swap partners inside fixed groups of consecutive rows, first with last as in timm's,
and what a group does is drawn from the key of its first row: with a group that divides the micro-batch of a rank, a
run mixes the same clips whatever its world size. Everything has a fixed shape and stays on the device.

B rows, G groups, N tokens, P patch values in the order (c, t, h, w), K classes. Sources: Zhang et al., "mixup"; Yun et
al., "CutMix"; defaults from PPMA (NeurIPS 2023).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.config.errors import InputError
from ppma.config.model import MixConfig, ViTConfig
from ppma.kernels.erase import cells, inside
from ppma.kernels.philox import DevicePurpose, uniform

__all__ = ["MixConfig", "MixDraw", "beta", "check_group", "draw_mix", "mix", "mixed_cross_entropy", "partners"]

CHOICE, MIXUP_SHARE, CUTMIX_SHARE = range(3)
"""Streams of the purpose MIX."""


@dataclass(frozen=True, kw_only=True)
class MixDraw:
    """What happens to each row; the rows of a group agree."""

    own_B: Tensor
    """float64, share of a row's own label: mixup's weight, or the share of the area that CutMix leaves."""
    cutmix_B: Tensor
    """bool: the partner fills `box_B4`; otherwise the two rows are blended."""
    box_B4: Tensor
    """int64 top, left, height, width of the partner's box in pixels."""


def check_group(rows: int, group: int) -> None:
    """InputError unless a micro-batch of so many rows is made of whole groups."""
    if rows % group:
        raise InputError(
            f"mix.group {group} does not divide the micro-batch of {rows} rows of a rank; change mix.group or the batch"
        )


def partners(x_B: Tensor, group: int) -> Tensor:
    """Every row's partner: each group of consecutive rows turned round. Any further axes are carried along."""
    return x_B.unflatten(0, (-1, group)).flip(1).flatten(0, 1)


def beta(key_G: Tensor, alpha: float, stream: int) -> Tensor:
    """(G,) float64 draws of Beta(alpha, alpha), by Joehnk's method with all its tries made at once.

    X = U^(1 / alpha) and Y likewise are kept when X + Y <= 1, and X / (X + Y) is the draw. As many tries are made as
    leave a row without one once in 1e15. Rounded to 2^-23, so that devices whose powers differ in the last bit agree.
    """
    accepted = math.gamma(alpha + 1) ** 2 / math.gamma(2 * alpha + 1)
    tries = math.ceil(math.log(1e-15) / math.log1p(-accepted))
    power_G2T = uniform(key_G, DevicePurpose.MIX, 2 * tries, stream=stream, dtype=torch.float64) ** (1 / alpha)
    x_GT, y_GT = power_G2T[:, :tries], power_G2T[:, tries:]
    first_G1 = (x_GT + y_GT <= 1).int().argmax(dim=1, keepdim=True)
    x_G, y_G = x_GT.gather(1, first_G1)[:, 0], y_GT.gather(1, first_G1)[:, 0]
    return torch.round(x_G / (x_G + y_G) * 2**23) / 2**23


def _cut(root_G: Tensor, u_G: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """(start, length) along one axis: `root` of its length around a uniform centre, cut off at the border, as timm's."""
    half_G = torch.floor(limit * root_G) // 2
    centre_G = torch.floor(limit * u_G)
    start_G = torch.clamp(centre_G - half_G, min=0)
    return start_G, torch.clamp(centre_G + half_G, max=limit) - start_G


def _cutmix_box(share_G: Tensor, u_G2: Tensor, height: int, width: int) -> Tensor:
    """(G, 4) box that covers 1 - share of the picture where the border does not cut it."""
    root_G = torch.sqrt(1 - share_G)
    top_G, height_G = _cut(root_G, u_G2[:, 0], height)
    left_G, width_G = _cut(root_G, u_G2[:, 1], width)
    return torch.stack([top_G, left_G, height_G, width_G], dim=1).long()


def draw_mix(key_B: Tensor, config: MixConfig, height: int, width: int) -> MixDraw:
    """Draw for every group from the key of its first row. InputError where the rows are not whole groups."""
    check_group(len(key_B), config.group)
    key_G = key_B[:: config.group]
    u_G4 = uniform(key_G, DevicePurpose.MIX, 4, stream=CHOICE, dtype=torch.float64)
    on_G = u_G4[:, 0] < config.probability
    both = config.mixup_alpha > 0 and config.cutmix_alpha > 0
    cutmix_probability = config.switch_probability if both else float(config.cutmix_alpha > 0)
    cutmix_G = on_G & (u_G4[:, 1] < cutmix_probability)
    nothing_G = torch.ones_like(u_G4[:, 0])
    cut_share_G = beta(key_G, config.cutmix_alpha, CUTMIX_SHARE) if config.cutmix_alpha else nothing_G
    blend_share_G = beta(key_G, config.mixup_alpha, MIXUP_SHARE) if config.mixup_alpha else nothing_G
    box_G4 = _cutmix_box(cut_share_G, u_G4[:, 2:], height, width)
    area_left_G = 1 - (box_G4[:, 2] * box_G4[:, 3]).double() / (height * width)
    own_G = torch.where(cutmix_G, area_left_G, torch.where(on_G, blend_share_G, 1.0))

    def to_rows(x_G: Tensor) -> Tensor:
        return x_G.unsqueeze(1).expand(-1, config.group, *x_G.shape[1:]).flatten(0, 1)

    return MixDraw(own_B=to_rows(own_G), cutmix_B=to_rows(cutmix_G), box_B4=to_rows(box_G4))


def mix(patches_BNP: Tensor, draw: MixDraw, group: int, vit: ViTConfig) -> Tensor:
    """Blend or cut every row with its partner, as drawn. A weight of 0 or 1 leaves values exactly as they are."""
    own = draw.own_B.to(patches_BNP.dtype).view(-1, *[1] * 7)
    outside = (~inside(draw.box_B4, vit.grid, vit.patch)).to(patches_BNP.dtype)
    weight = torch.where(draw.cutmix_B.view(-1, *[1] * 7), outside, own)
    mine, theirs = (cells(x, vit.grid, vit.patch) for x in (patches_BNP, partners(patches_BNP, group)))
    return (weight * mine + (1 - weight) * theirs).view_as(patches_BNP)


def _row_losses(logits: Sequence[Tensor], label_B: Tensor, space_B: Tensor, smoothing: float) -> Tensor:
    """(B,) smoothed cross-entropy of each row under the head of its own label space; a head's other rows count
    nothing."""
    total_B = torch.zeros((), device=label_B.device)
    for space, logits_BK in enumerate(logits):
        mine_B = space_B == space
        logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
        losses_B = F.cross_entropy(
            logits_BK, torch.where(mine_B, label_B, 0), reduction="none", label_smoothing=smoothing
        )
        total_B = total_B + torch.where(mine_B, losses_B, 0.0)
    return total_B


def mixed_cross_entropy(
    logits: Sequence[Tensor],
    label_B: Tensor,
    space_B: Tensor,
    *,
    smoothing: float = 0.0,
    own_B: Tensor | None = None,
    group: int = 2,
) -> Tensor:
    """Mean over the rows of own * CE(head of my space, my label) + (1 - own) * CE(head of my partner's space, its
    label).

    `logits` holds (B, K) of every head, each for all rows, so every head takes part in every step; None for `own_B`:
    nothing is mixed.
    """
    own_loss_B = _row_losses(logits, label_B, space_B, smoothing)
    if own_B is None:
        return own_loss_B.mean()
    their_loss_B = _row_losses(logits, partners(label_B, group), partners(space_B, group), smoothing)
    weight_B = own_B.to(own_loss_B.dtype)
    return (weight_B * own_loss_B + (1 - weight_B) * their_loss_B).mean()
