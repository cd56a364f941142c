"""Mixup, CutMix and label smoothing on clips.

    patches_BNP, key_B  ->  patches_BNP;   logits of every label space, labels  ->  loss

A CutMix box is at the same place in every frame. (timm's CutMix takes a clip for a picture: it cuts across time, and
weights the labels by the wrong area.) Rows swap partners within groups of consecutive rows, first with last as in timm,
and the key of a group's first row decides how it is mixed. If the group size divides a rank's micro-batch, a run mixes
the same clips at every world size. All shapes are fixed, and nothing leaves the device.

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
"""Random streams of the purpose MIX."""


@dataclass(frozen=True, kw_only=True)
class MixDraw:
    """How each row is mixed; the same for all rows of a group."""

    lam_B: Tensor
    """float64 weight of the row's own label: mixup's lambda, or the share of the area outside the CutMix box."""
    cutmix_B: Tensor
    """bool, True: the partner fills `box_B4`; False: the two rows are blended."""
    box_B4: Tensor
    """int64 top, left, height, width of the box in pixels."""


def check_group(rows: int, group: int) -> None:
    """Raise InputError unless a micro-batch of this many rows divides into groups."""
    if rows % group:
        raise InputError(
            f"mix.group {group} does not divide the micro-batch of {rows} rows of a rank; change mix.group or the batch"
        )


def partners(x_B: Tensor, group: int) -> Tensor:
    """Return each row's partner, by reversing each group of consecutive rows; other axes are unchanged."""
    return x_B.unflatten(0, (-1, group)).flip(1).flatten(0, 1)


def beta(key_G: Tensor, alpha: float, stream: int) -> Tensor:
    """Return (G,) float64 samples of Beta(alpha, alpha), by Joehnk's method with all tries made at once.

    A try X = U^(1 / alpha), Y = V^(1 / alpha) is accepted if X + Y <= 1, and gives X / (X + Y). The number of tries
    leaves a row without an accepted one with probability 1e-15. Samples are rounded to 2^-23, so that devices whose
    powers differ in the last bit agree.

    Args:
        key_G: Keys.
        alpha: Both parameters of the distribution.
        stream: Random stream.
    """
    accepted = math.gamma(alpha + 1) ** 2 / math.gamma(2 * alpha + 1)
    tries = math.ceil(math.log(1e-15) / math.log1p(-accepted))
    power_G2T = uniform(key_G, DevicePurpose.MIX, 2 * tries, stream=stream, dtype=torch.float64) ** (1 / alpha)
    x_GT, y_GT = power_G2T[:, :tries], power_G2T[:, tries:]
    first_G1 = (x_GT + y_GT <= 1).int().argmax(dim=1, keepdim=True)
    x_G, y_G = x_GT.gather(1, first_G1)[:, 0], y_GT.gather(1, first_G1)[:, 0]
    return torch.round(x_G / (x_G + y_G) * 2**23) / 2**23


def _cut(root_G: Tensor, u_G: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return (start, length) of a share `root` of an axis around a uniform center, cut off at the border as in timm."""
    half_G = torch.floor(limit * root_G) // 2
    center_G = torch.floor(limit * u_G)
    start_G = torch.clamp(center_G - half_G, min=0)
    return start_G, torch.clamp(center_G + half_G, max=limit) - start_G


def _cutmix_box(share_G: Tensor, u_G2: Tensor, height: int, width: int) -> Tensor:
    """Return (G, 4) boxes that cover 1 - share of the picture before the border cuts them."""
    root_G = torch.sqrt(1 - share_G)
    top_G, height_G = _cut(root_G, u_G2[:, 0], height)
    left_G, width_G = _cut(root_G, u_G2[:, 1], width)
    return torch.stack([top_G, left_G, height_G, width_G], dim=1).long()


def draw_mix(key_B: Tensor, config: MixConfig, height: int, width: int) -> MixDraw:
    """Return how each group is mixed, as the key of its first row decides.

    Args:
        key_B: Row keys.
        config: Probabilities and distributions.
        height: Height of the clip in pixels.
        width: Width of the clip in pixels.

    Raises:
        InputError: The rows do not divide into groups.
    """
    check_group(len(key_B), config.group)
    key_G = key_B[:: config.group]
    u_G4 = uniform(key_G, DevicePurpose.MIX, 4, stream=CHOICE, dtype=torch.float64)
    on_G = u_G4[:, 0] < config.probability
    both = config.mixup_alpha > 0 and config.cutmix_alpha > 0
    cutmix_probability = config.switch_probability if both else float(config.cutmix_alpha > 0)
    cutmix_G = on_G & (u_G4[:, 1] < cutmix_probability)
    ones_G = torch.ones_like(u_G4[:, 0])
    cut_share_G = beta(key_G, config.cutmix_alpha, CUTMIX_SHARE) if config.cutmix_alpha else ones_G
    blend_share_G = beta(key_G, config.mixup_alpha, MIXUP_SHARE) if config.mixup_alpha else ones_G
    box_G4 = _cutmix_box(cut_share_G, u_G4[:, 2:], height, width)
    area_left_G = 1 - (box_G4[:, 2] * box_G4[:, 3]).double() / (height * width)
    lam_G = torch.where(cutmix_G, area_left_G, torch.where(on_G, blend_share_G, 1.0))

    def to_rows(x_G: Tensor) -> Tensor:
        return x_G.unsqueeze(1).expand(-1, config.group, *x_G.shape[1:]).flatten(0, 1)

    return MixDraw(lam_B=to_rows(lam_G), cutmix_B=to_rows(cutmix_G), box_B4=to_rows(box_G4))


def mix(patches_BNP: Tensor, draw: MixDraw, group: int, vit: ViTConfig) -> Tensor:
    """Return (B, N, P) patches in which every row is mixed with its partner. Weights of 0 and 1 leave values exact."""
    lam = draw.lam_B.to(patches_BNP.dtype).view(-1, *[1] * 7)
    outside = (~inside(draw.box_B4, vit.grid, vit.patch)).to(patches_BNP.dtype)
    weight = torch.where(draw.cutmix_B.view(-1, *[1] * 7), outside, lam)
    mine, theirs = (cells(x, vit.grid, vit.patch) for x in (patches_BNP, partners(patches_BNP, group)))
    return (weight * mine + (1 - weight) * theirs).view_as(patches_BNP)


def _row_losses(logits: Sequence[Tensor], label_B: Tensor, space_B: Tensor, smoothing: float) -> Tensor:
    """Return (B,) smoothed cross-entropies, each under the head of the row's label space."""
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
    lam_B: Tensor | None = None,
    group: int = 2,
    rows: slice = slice(None),
) -> Tensor:
    """Return the mean of lam * CE(own label) + (1 - lam) * CE(partner's label), each under its label space's head.

    Args:
        logits: (B, K) of every head for all `rows`, so that every head takes part in every step.
        label_B: Labels.
        space_B: Index of each row's head.
        smoothing: Label smoothing.
        lam_B: Weight of each row's own label; None: nothing is mixed.
        group: Group size of the mixing.
        rows: Rows that have logits; the others are only partners.
    """
    own_loss_B = _row_losses(logits, label_B[rows], space_B[rows], smoothing)
    if lam_B is None:
        return own_loss_B.mean()
    their_loss_B = _row_losses(logits, partners(label_B, group)[rows], partners(space_B, group)[rows], smoothing)
    weight_B = lam_B[rows].to(own_loss_B.dtype)
    return (weight_B * own_loss_B + (1 - weight_B) * their_loss_B).mean()
