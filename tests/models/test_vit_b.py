"""ViT-B in float32 against the restatement of the paper in float64: loss, prediction, features and gradients to 1e-6 of the largest
value. `make test` compares its width and its decoder's on fewer layers and tokens, `make slow` the whole."""

from functools import partial

import pytest
import restatement
import torch
from torch.utils.checkpoint import checkpoint

from ppma.config.model import ClassifierConfig, MAEConfig, MixConfig, preset
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder

SMALL = {"frames": 4, "size": 64, "depth": 1}
SIZES = [
    pytest.param(SMALL, 1, id="small"),
    pytest.param({}, 4, id="full", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
]
KEYS = torch.tensor([11])


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """Scores of all heads and layers in float64 would take 10 GB: the restatement recomputes each block."""
    monkeypatch.setattr(restatement, "block", partial(checkpoint, restatement.block, use_reentrant=False))


def case(vit, model):
    """A clip, and the model's weights as float64 leaves."""
    shape = (1, vit.frames, vit.size, vit.size, 3)
    clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return clip, {name: value.detach().double().requires_grad_() for name, value in model.state_dict().items()}


def close(ours, stated, what):
    error = (ours.detach().double() - stated.detach()).abs().max() / stated.detach().abs().max()
    assert error <= 1e-6, (what, error.item())


def gradients_are_close(model, leaves):
    for name, parameter in model.named_parameters():
        close(parameter.grad, leaves[name].grad, name)


@pytest.mark.parametrize(("sizes", "decoder_depth"), SIZES)
def test_stage_1(sizes, decoder_depth):
    vit = preset("base", **sizes)
    model = MaskedAutoencoder(vit, MAEConfig(decoder_depth=decoder_depth))
    clip, leaves = case(vit, model)
    visible, masked = model.mask(KEYS)
    stated = restatement.mae_prediction(
        clip, leaves, visible, masked, depth=vit.depth, heads=vit.heads, decoder_depth=decoder_depth, decoder_heads=16
    )
    stated_loss = restatement.mae_loss(stated, clip, masked, vit.patch)
    loss = model(clip, KEYS)
    close(loss, stated_loss, "loss")
    close(model.predict(clip, KEYS)[0], stated, "prediction")
    loss.backward(), stated_loss.backward()
    gradients_are_close(model, leaves)


@pytest.mark.parametrize("sizes", [pytest.param(one.values[0], id=one.id, marks=one.marks) for one in SIZES])
def test_stage_2(sizes):
    vit = preset("base", **sizes)
    model = Classifier(vit, {"a": 150}, ClassifierConfig(mix=MixConfig(probability=0)))
    clip, leaves = case(vit, model)
    stated = restatement.pooled_features(clip, leaves, depth=vit.depth, heads=vit.heads)
    logits = restatement.linear(stated, leaves, "head")
    stated_loss = restatement.smoothed_cross_entropy(logits[0], 149, 0.1)
    close(model.features(clip), stated, "features")
    loss = model(clip, KEYS, torch.tensor([149]), torch.tensor([0]))
    close(loss, stated_loss, "loss")
    loss.backward(), stated_loss.backward()
    gradients_are_close(model, leaves)
