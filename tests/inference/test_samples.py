"""Pictures show what the model computes with: the pixels behind its patches, and the attention of its own last block."""

import numpy as np
import pytest
import tiny
import torch

from ppma.config.model import ViTConfig
from ppma.inference import samples
from ppma.inference.samples import spread_rows, subset
from ppma.loaders.sources import catalog
from ppma.models.classify import Classifier
from ppma.training.run import open_run

VIT = ViTConfig(width=24, depth=2, heads=3, patch=(2, 8, 8), frames=4, size=32)


def frames(clips):
    return torch.from_numpy(np.stack([tiny.pixels(0, clip, 0) for clip in range(clips)]))


def test_pixels_come_back_from_patches():
    model = Classifier(VIT, {"made": 2})
    found = samples.pixels(model.patches(frames(2), dtype=torch.float32), VIT)
    assert torch.equal(found, frames(2))


def test_attention_is_that_of_the_last_block():
    """Against softmax(q k / sqrt(d)) written out; and a model whose last block attends to one place shows that place."""
    model = Classifier(VIT, {"made": 2}).eval()
    heat = samples.attention_received(model, frames(2))
    with torch.no_grad():
        tokens = model.blocks[0](model.embed(model.patches(frames(2))))
        q, k, _ = model.blocks[1].attn.qkv(model.blocks[1].norm1(tokens)).chunk(3, dim=2)
        split = [x.unflatten(2, (3, 8)).transpose(1, 2) for x in (q, k)]
        weights = torch.softmax(split[0] @ split[1].transpose(2, 3) / 8**0.5, dim=-1)
    expected = weights.mean(dim=1).sum(dim=1)
    assert heat.shape == (2, 2, 4, 4) and torch.allclose(heat.flatten(1), expected, atol=1e-5)
    assert torch.allclose(heat.mean(dim=(1, 2, 3)), torch.ones(2), atol=1e-5)


def test_attention_in_parts_is_the_same(monkeypatch):
    model = Classifier(VIT, {"made": 2}).eval()
    whole = samples.attention_received(model, frames(1))
    monkeypatch.setattr(samples, "QUERIES", 5)
    assert torch.allclose(samples.attention_received(model, frames(1)), whole, atol=1e-6)


def test_an_overlay_is_brightest_where_the_heat_is():
    heat = np.zeros((2, 4, 4))
    heat[1, 3, 0] = 1
    shown = samples.overlay(np.full((4, 32, 32, 3), 128, np.uint8), heat)
    brightness = shown.astype(int).sum(axis=3)
    assert np.unravel_index(brightness.argmax(), brightness.shape)[0] in (2, 3)
    assert brightness[3, 28, 4] > brightness[3, 4, 28] and brightness[0].std() == 0


@pytest.mark.parametrize("run", ["mae", "finetune"])
def test_clips_as_trained_are_as_many_as_there_are(tiny_runs, run):
    """Four, or as many as the only clip gives, which cannot be mixed with another."""
    opened = open_run(tiny_runs / "runs" / run, device="cpu", workers=1)
    source = catalog.read(tiny_runs / "data.toml").manifest("made")
    shown = samples.as_trained(opened, source if run == "finetune" else subset(source, [0, 3]), 4)
    assert shown.shape == (4, 4, 32, 32, 3) and shown.dtype == np.uint8
    if run == "finetune":
        assert 1 <= len(samples.as_trained(opened, subset(source, [0]), 4)) <= 4


def test_rows_are_spread_over_classes():
    source = tiny.source("made", clips=40, classes=4)
    rows = spread_rows(source, 8)
    assert np.bincount(source.labels[rows]).tolist() == [2, 2, 2, 2] and rows == sorted(rows)
    assert min(rows) < 8 and max(rows) >= 32
    assert spread_rows(source, 100) == list(range(40))
    assert len(spread_rows(source, 3)) == 3
