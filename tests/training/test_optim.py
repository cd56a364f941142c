"""The schedule against the paper's table, the groups against its rules."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ppma.config.flags import resolve
from ppma.config.model import ClassifierConfig, MAEConfig, OptimConfig, ViTConfig
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training.optim import build_optimizer, layer_of, learning_rate, parameter_groups, set_learning_rate

VIT = ViTConfig(width=16, depth=3, heads=2, size=32, frames=2)
STAGE1 = OptimConfig()
ALIGN = OptimConfig(
    epochs=50,
    peak_lr=2e-3,
    warmup_fraction=0.125,
    final_lr=5e-7,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    layer_decay=0.75,
)
PROBE = OptimConfig(peak_lr=1.6e-2, reference_batch=32, warmup_fraction=0.125, warmup_lr=4e-6, final_lr=4e-6)


@pytest.mark.parametrize(
    ("config", "batch", "first", "peak", "last"),
    [(STAGE1, 128, 5e-7, 8e-4, 0.0), (ALIGN, 128, 5e-7, 2e-3, 5e-7), (PROBE, 32, 4e-6, 1.6e-2, 4e-6)],
)
def test_the_papers_rates_at_the_papers_batch(config, batch, first, peak, last):
    total, warm = 4000, int(4000 * config.warmup_fraction)
    rates = [learning_rate(step, total, config, batch) for step in range(total + 1)]
    assert rates[0] == pytest.approx(first, rel=1e-12)
    assert rates[warm] == max(rates) == pytest.approx(peak, rel=1e-12)
    assert rates[total] == pytest.approx(last, rel=1e-12, abs=1e-18)
    assert rates[warm // 2] == pytest.approx((first + peak) / 2, rel=1e-12)  # halfway up the line
    assert rates[(warm + total) // 2] == pytest.approx((peak + last) / 2, rel=1e-12)  # halfway down the cosine
    quarter = last + (peak - last) * (1 + math.cos(math.pi / 4)) / 2
    assert rates[warm + (total - warm) // 4] == pytest.approx(quarter, rel=1e-12)
    assert rates[:warm] == sorted(rates[:warm]) and rates[warm:] == sorted(rates[warm:], reverse=True)


def test_rates_scale_with_the_batch():
    for step in (0, 100, 999):
        assert learning_rate(step, 1000, ALIGN, 512) == pytest.approx(
            4 * learning_rate(step, 1000, ALIGN, 128), rel=1e-12
        )
    assert learning_rate(0, 10, OptimConfig(warmup_fraction=0), 128) == STAGE1.peak_lr


def shares(model, config):
    """{parameter name: (lr_scale, weight_decay)} of the groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in parameter_groups(model, config) for p in g["params"]
    }


def test_layer_decay_gives_the_tail_the_full_rate():
    found = shares(Classifier(VIT, {"a": 3, "b": 4}), ALIGN)
    assert found["heads.b.weight"] == (1.0, 1e-4) and found["fc_norm.weight"] == (1.0, 0.0)
    for layer in range(3):
        assert found[f"blocks.{layer}.mlp.fc1.weight"] == (0.75 ** (3 - layer), 1e-4)
    assert found["patch_embed.proj.weight"] == (0.75**4, 1e-4) and found["patch_embed.proj.bias"] == (0.75**4, 0.0)


SCRIPTS = json.loads((Path(__file__).parent / "published_rates.json").read_text())
RECIPE = {"stage1": "mae_nohuman", "align": "align_nohuman_synthetic", "probe": "probe_published"}
OURS = {
    "trunk.decoder.decoder_embed": "decoder.embed", "trunk.mask_token": "decoder.mask_token", "heads.0.projector": "decoder.head",
    "trunk.patch_embed.proj.1": "patch_embed.proj", "trunk.blocks": "blocks", "heads.0.0": "head",
}  # fmt: skip
"""The authors' names, and ours."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_published_gives_the_authors_rate_and_decay_of_every_parameter(script):
    stage = script.split()[0]
    config, theirs = resolve(RECIPE.get(stage, stage), ["--published"]), SCRIPTS[script]
    vit, stage1 = replace(VIT, depth=12), config.phase == "mae"
    small = MAEConfig(decoder_width=8, decoder_heads=2, decoder_depth=1)
    found = shares(
        MaskedAutoencoder(vit, small) if stage1 else Classifier(vit, {"a": 3, "b": 3}, config.classifier), config.optim
    )
    assert list(config.optim.betas) == theirs["betas"]
    for name, rates in theirs["lr"].items():
        ours = name.replace("trunk.norm", "norm" if stage1 else "fc_norm")
        for old, new in OURS.items():
            ours = ours.replace(old, new)
        scale, decay = found[ours]
        assert decay == theirs["weight_decay"][name], name
        made = [scale * learning_rate(round(1e6 * p), 10**6, config.optim, config.batch) for p in theirs["where"]]
        assert made == pytest.approx(rates, rel=1e-6, abs=0), name


def test_published_adaptive_averaging_decays_the_shares_and_scales_every_rate():
    config = resolve("adaptive_average", ["--published"])
    model = Classifier(VIT, {"a": 3}, config.classifier)
    model.mixing = torch.nn.Parameter(torch.zeros(2))
    found = shares(model, config.optim)
    assert found["mixing"] == found["head.weight"] == (0.75, 1e-4) and found["head.bias"] == (0.75, 0.0)
    assert learning_rate(0, 100, config.optim, 32) == 1.6e-2 and config.mix_norm
    assert shares(model, resolve("adaptive_average").optim)["mixing"] == (1.0, 0.0)


def test_stage_1_decays_matrices_only():
    model = MaskedAutoencoder(VIT, MAEConfig(decoder_width=8, decoder_heads=2, decoder_depth=1))
    found = shares(model, STAGE1)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, (share, decay) in found.items():
        bare = name.endswith("bias") or "norm" in name or name == "decoder.mask_token"
        assert share == 1.0 and decay == (0.0 if bare else 0.05), name


def test_a_frozen_encoder_is_in_no_group():
    found = shares(Classifier(VIT, {"a": 3}, ClassifierConfig(freeze_encoder=True)), PROBE)
    assert set(found) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def test_the_optimizer_takes_steps_of_its_rate():
    """AdamW's first step is the rate in every coordinate with a gradient, apart from its epsilon."""
    model = Classifier(VIT, {"a": 3}).double()
    config = OptimConfig(layer_decay=0.75, weight_decay=0.0)
    optimizer = build_optimizer(model, config)
    assert optimizer.defaults["betas"] == config.betas and all(g["lr"] == 0 for g in optimizer.param_groups)
    set_learning_rate(optimizer, 1e-3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 1e-3 * 0.75 ** (4 - layer_of(name, 3))
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, rate), rtol=1e-6, atol=0)
