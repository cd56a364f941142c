"""The published step computes the same loss and gradients as ours from the same weights."""

import pytest
import restatement
import torch

from benchmarks import published
from ppma.config.model import ClassifierConfig, MAEConfig, MixConfig, ViTConfig
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder

VIT = ViTConfig(width=48, depth=2, heads=3, size=32, frames=8)
MAE = MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=4, mask_ratio=0.75)
TRUNK = {"width": 48, "depth": 2, "heads": 3, "mlp_ratio": 4.0, "tokens": VIT.tokens}
FRAMES = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
KEYS = torch.tensor([3, 1 << 40])


def assert_same_gradients(ours, theirs):
    stated = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        largest = stated[name].grad.abs().max()
        assert (parameter.grad - stated[name].grad).abs().max() <= 1e-4 * largest, name  # float32, two blocks deep


@pytest.mark.parametrize("recompute", [True, False])
def test_stage_1(recompute):
    ours = MaskedAutoencoder(VIT, MAE)
    decoder = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4}
    theirs = published.PublishedMAE(**decoder, recompute=recompute, **TRUNK)
    theirs.load_state_dict(ours.state_dict())
    _, masked = ours.mask(KEYS)
    masked_BN = torch.zeros(2, VIT.tokens, dtype=torch.bool).scatter(1, masked, True)
    mine, stated = ours(FRAMES, KEYS), theirs(published.normalized(FRAMES), masked_BN)
    torch.testing.assert_close(mine, stated, rtol=1e-5, atol=0)
    mine.backward(), stated.backward()
    assert_same_gradients(ours, theirs)


def test_stage_2():
    config = ClassifierConfig(mix=MixConfig(probability=0.0))
    ours = Classifier(VIT, {"actions": 5}, config)
    theirs = published.PublishedClassifier(classes=5, recompute=False, **TRUNK)
    theirs.load_state_dict(ours.state_dict())
    label = torch.tensor([4, 0])
    mine = ours(FRAMES, KEYS, label, torch.zeros_like(label))
    stated = theirs(published.normalized(FRAMES), label)
    torch.testing.assert_close(mine, stated, rtol=1e-5, atol=0)
    mine.backward(), stated.backward()
    assert_same_gradients(ours, theirs)


def test_the_clip_is_the_papers():
    stated = restatement.normalized_clip(FRAMES, torch.float32)
    torch.testing.assert_close(published.normalized(FRAMES), stated, rtol=0, atol=1e-6)
