"""Mixup and CutMix against plain loops over clips; the draws against what they must not depend on."""

import pytest
import restatement
import torch

from ppma.config.errors import InputError
from ppma.config.model import MixConfig, ViTConfig
from ppma.kernels.erase import erase_
from ppma.kernels.reference import grid_of, patchify
from ppma.models.mixing import MixDraw, beta, draw_mix, mix, mixed_cross_entropy, partners

VIT = ViTConfig(width=8, depth=1, heads=1, frames=4, size=24, patch=(2, 8, 8))
KEYS = torch.tensor([11, 1 << 60, 5, 6, 123456789, 77, 78, 1 << 50])
CLIPS = torch.randint(0, 256, (8, 4, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def patches_of(clip_BCTHW):
    """Patch values in the order of the embedding, cut out one by one."""
    t, h, w = VIT.patch
    rows = []
    for clip in clip_BCTHW:
        thwc = clip.movedim(0, -1)
        count = torch.tensor(grid_of(tuple(thwc.shape[:3]), VIT.patch)).prod()
        rows.append(
            torch.stack([restatement.patch_of(thwc, n, (t, h, w)).movedim(-1, 0).flatten() for n in range(count)])
        )
    return torch.stack(rows)


def normalized():
    return restatement.normalized_clip(CLIPS, torch.float64)


def stated_mix(clip_BCTHW, lam_B, cutmix_B, box_B4, group):
    """One row after the other, on clips."""
    mixed = clip_BCTHW.clone()
    for row in range(len(clip_BCTHW)):
        first = row - row % group
        other = first + group - 1 - (row - first)
        if cutmix_B[row]:
            top, left, height, width = (int(v) for v in box_B4[row])
            region = (..., slice(top, top + height), slice(left, left + width))
            mixed[row][region] = clip_BCTHW[other][region]
        else:
            mixed[row] = lam_B[row] * clip_BCTHW[row] + (1 - lam_B[row]) * clip_BCTHW[other]
    return mixed


def test_patches_of_the_test_are_those_of_the_package():
    ours = patchify(CLIPS, None, patch=VIT.patch, mean=restatement.MEAN, std=restatement.STD, dtype=torch.float64)
    assert torch.equal(ours, patches_of(normalized()))


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("alphas", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_mix_equals_a_loop_over_clips(group, alphas):
    config = MixConfig(group=group, mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
    draw = draw_mix(KEYS, config, 24, 24)
    ours = mix(patches_of(normalized()), draw, group, VIT)
    stated = stated_mix(normalized(), draw.lam_B, draw.cutmix_B, draw.box_B4, group)
    torch.testing.assert_close(ours, patches_of(stated), rtol=0, atol=1e-14)


def test_a_cut_moves_values_without_touching_them_and_is_one_place_in_all_frames():
    draw = MixDraw(
        lam_B=torch.full((8,), 0.5, dtype=torch.float64),
        cutmix_B=torch.ones(8, dtype=torch.bool),
        box_B4=torch.tensor([[3, 5, 10, 11]] * 8),
    )
    stated = stated_mix(normalized(), draw.lam_B, draw.cutmix_B, draw.box_B4, 4)
    assert torch.equal(mix(patches_of(normalized()), draw, 4, VIT), patches_of(stated))


def test_the_share_of_a_cut_is_the_area_it_leaves():
    config = MixConfig(mixup_alpha=0, group=2)
    draw = draw_mix(torch.arange(4000), config, 24, 40)
    top, left, height, width = draw.box_B4.T
    assert draw.cutmix_B.all() and (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 24).all() and (left + width <= 40).all()
    torch.testing.assert_close(draw.lam_B, 1 - (height * width).double() / 960, rtol=1e-12, atol=0)
    assert (height == 0).any() and height.max() == 22  # boxes of every size; half a side is whole pixels, as timm's


def test_switch_and_probability():
    """2,000 groups: a share has a standard error of 0.011."""
    keys = torch.arange(4000)
    half = draw_mix(keys, MixConfig(group=2), 24, 24)
    assert abs(half.cutmix_B.double().mean() - 0.5) < 0.05
    rare = draw_mix(keys, MixConfig(group=2, probability=0.25, cutmix_alpha=0), 24, 24)
    assert not rare.cutmix_B.any() and abs((rare.lam_B < 1).double().mean() - 0.25) < 0.05


def test_a_group_is_drawn_from_its_first_row_alone():
    config = MixConfig(group=4)
    whole = draw_mix(KEYS, config, 24, 24)
    changed = KEYS.clone()
    changed[[1, 2, 3, 5, 6, 7]] += 1
    for draw, rows in (
        (draw_mix(KEYS[4:], config, 24, 24), slice(4, 8)),
        (draw_mix(changed, config, 24, 24), slice(0, 8)),
    ):
        for field in ("lam_B", "cutmix_B", "box_B4"):
            assert torch.equal(getattr(draw, field), getattr(whole, field)[rows])
    assert (whole.lam_B.view(2, 4) == whole.lam_B.view(2, 4)[:, :1]).all()


def test_partners_are_the_group_turned_round():
    assert partners(torch.arange(8), 4).tolist() == [3, 2, 1, 0, 7, 6, 5, 4]
    with pytest.raises(InputError, match=r"mix\.group 4 does not divide the micro-batch of 6 rows"):
        draw_mix(KEYS[:6], MixConfig(group=4), 24, 24)


@pytest.mark.parametrize("alpha", [0.05, 0.8, 1.0, 2.0])
def test_beta_has_the_moments_of_beta(alpha):
    """20,000 draws: the mean has a standard error below 0.0036, the variance below 0.001."""
    draws = beta(torch.arange(20000), alpha, stream=1)
    assert draws.dtype == torch.float64 and draws.min() >= 0 and draws.max() <= 1
    assert abs(draws.mean() - 0.5) < 0.015
    assert abs(draws.var() - 1 / (4 * (2 * alpha + 1))) < 0.005


@pytest.mark.parametrize(("alpha", "cdf"), [(1.0, lambda x: x), (2.0, lambda x: 3 * x**2 - 2 * x**3)])
def test_beta_has_the_distribution_of_beta(alpha, cdf):
    """Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed once in a thousand sets of draws; these are fixed."""
    draws = beta(torch.arange(20000), alpha, stream=1).sort().values
    empirical = (torch.arange(20000) + 0.5) / 20000
    assert (cdf(draws) - empirical).abs().max() < 1.95 / 20000**0.5


def stated_loss(logits, labels, spaces, own, group, smoothing):
    total = 0
    for row in range(len(labels)):
        first = row - row % group
        other = first + group - 1 - (row - first)
        for weight, of in ((own[row], row), (1 - own[row], other)):
            head = logits[int(spaces[of])][row]
            total = total + weight * restatement.smoothed_cross_entropy(head, int(labels[of]), smoothing)
    return total / len(labels)


def test_the_loss_of_mixed_rows_is_the_weighted_sum_over_both_heads():
    generator = torch.Generator().manual_seed(0)
    logits = [
        torch.randn(8, classes, dtype=torch.float64, generator=generator).requires_grad_() for classes in (5, 3, 4)
    ]
    spaces = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0])  # the third head has no row
    labels = torch.tensor([4, 2, 0, 1, 0, 2, 3, 4])
    own = torch.tensor([0.3, 0.3, 0.3, 0.3, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    loss = mixed_cross_entropy(logits, labels, spaces, smoothing=0.1, lam_B=own, group=4)
    stated = stated_loss(logits, labels, spaces, own, 4, 0.1)
    torch.testing.assert_close(loss, stated, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(loss, logits)
    theirs = torch.autograd.grad(stated, logits[:2])
    for mine, their in zip(gradients, theirs, strict=False):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-14)
    assert not gradients[2].any()  # present, and zero
    plain = mixed_cross_entropy(logits, labels, spaces)
    torch.testing.assert_close(plain, stated_loss(logits, labels, spaces, torch.ones(8), 2, 0.0), rtol=1e-12, atol=0)


def test_everything_compiles_without_a_graph_break():
    config = MixConfig(group=4)

    def step(patches, boxes, keys):
        draw = draw_mix(keys, config, 24, 24)
        erased = erase_(patches.clone(), boxes, keys, grid=VIT.grid, patch=VIT.patch)
        return mix(erased, draw, 4, VIT), draw.lam_B

    boxes, patches = torch.tensor([[3, 5, 10, 11]] * 8), patches_of(normalized()).float()
    for ours, eager in zip(
        torch.compile(step, fullgraph=True, backend="aot_eager")(patches, boxes, KEYS),
        step(patches, boxes, KEYS),
        strict=True,
    ):
        assert torch.equal(ours, eager)
