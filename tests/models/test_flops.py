"""The formula against torch's own count of a forward and a backward pass."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ppma.config.model import ClassifierConfig, MAEConfig, MixConfig, ViTConfig, preset
from ppma.models import flops
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder

VIT = ViTConfig(width=48, depth=2, heads=3, size=64, frames=8)
MAE = MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=4)
KEYS = torch.arange(2)


def clips(vit):
    return torch.zeros(2, vit.frames, vit.size, vit.size, 3, dtype=torch.uint8)


def counted(forward, *, backward):
    """FLOPs of one of the two clips. The counter does not know the CPU's fused attention, so PyTorch's plain form
    stands in: it has the same two products."""
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = forward()
        if backward:
            loss.backward()
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_stage_1(share):
    """The formula counts the decoder's embedding of the targets for every row; that of all hidden places is made once
    for both rows."""
    mae = replace(MAE, decoder_share=share)
    model, hidden = MaskedAutoencoder(VIT, mae), int(VIT.tokens * MAE.mask_ratio)
    difference = VIT.tokens / 2 - int(hidden * share)
    expected = flops.mae_flops(VIT, mae) + difference * 2 * VIT.width * MAE.decoder_width
    assert counted(lambda: model(clips(VIT), KEYS), backward=False) == pytest.approx(expected)


@pytest.mark.parametrize("dropped", [0.0, 0.3])
def test_stage_2(dropped):
    config = ClassifierConfig(mix=MixConfig(probability=0.0), token_drop=dropped)
    model = Classifier(VIT, {"actions": 7}, config)
    label = torch.zeros(2, dtype=torch.int64)
    forward = counted(lambda: model(clips(VIT), KEYS, label, label), backward=False)
    assert forward == pytest.approx(flops.classifier_flops(VIT, 7, dropped))


def test_a_training_step_is_three_forward_passes_but_for_the_gradient_of_the_pixels():
    model = Classifier(VIT, {"actions": 7}, ClassifierConfig(mix=MixConfig(probability=0.0)))
    label = torch.zeros(2, dtype=torch.int64)
    step = counted(lambda: model(clips(VIT), KEYS, label, label), backward=True)
    to_pixels = 2 * VIT.tokens * VIT.patch_values * VIT.width
    assert step == pytest.approx(3 * flops.classifier_flops(VIT, 7) - to_pixels)


def test_figures_of_the_paper_sized_model():
    """202 GFLOP a view in stage 1, 1078 in stage 2."""
    vit = preset("base")
    assert 3 * flops.mae_flops(vit, MAEConfig()) == pytest.approx(202e9, rel=0.01)
    assert 3 * flops.classifier_flops(vit, 150) == pytest.approx(1078e9, rel=0.01)
