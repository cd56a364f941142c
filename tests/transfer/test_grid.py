"""A grid of rates: every head is the probe of that rate, the choice is made on held-out clips, and the test split has no part in it."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from ppma.config.errors import InputError
from ppma.config.protocols import GridConfig
from ppma.training.compute import choose
from ppma.training.trainer import Trainer
from ppma.transfer.features import feature_batches
from ppma.transfer.grid import Heads, choose_rate, held_out_rows, train_heads
from ppma.transfer.probe import Probe

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(40) % 4
CENTERS = torch.randn(4, 48, dtype=torch.float64, generator=GENERATOR)
FEATURES = CENTERS[LABELS] + 2 * torch.randn(40, 48, dtype=torch.float64, generator=GENERATOR)


class MadeTask:
    splits_over_ranks, steps_per_epoch, step_flops = False, 5, 1.0

    def __init__(self, config):
        self.config, self.model = config, Probe(config.vit, {"made": 4}, config.classifier, seed=config.seed)

    def inputs(self, batch):
        return batch.features_BD, batch.label_B


def made(**changes):
    return tiny.shrink("probe_grid", **changes)


def test_every_head_learns_what_a_probe_of_its_rate_learns():
    config = made()
    optims = [replace(config.optim, peak_lr=rate, weight_decay=decay) for rate in (1e-3, 3e-2) for decay in (0.0, 0.3)]
    heads = Heads(MadeTask(config).model.double(), [optim.weight_decay for optim in optims])
    train_heads(FEATURES, LABELS, heads, optims, config)
    for number, optim in enumerate(optims):
        alone = replace(config, optim=optim)
        trainer = Trainer(alone, MadeTask(alone), tiny.ALONE, choose("fp64", tiny.ALONE.device))
        for batch in feature_batches(FEATURES, LABELS, batch=8, epochs=optim.epochs, seed=config.seed, start=(0, 0)):
            trainer.train_step(batch)
        expected = [
            trainer.model.get_parameter(n) for n in ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
        ]
        for part, wanted in zip(heads.parts, expected):
            assert (part[number] - wanted).abs().max() < 1e-10
    assert (heads.parts[2][0] - heads.parts[2][1]).abs().max() > 1e-5  # the decay does something


def test_a_share_of_every_class_is_held_out():
    labels = np.array([0] * 20 + [1] * 3 + [2] * 1 + [3] * 2)
    out = held_out_rows(labels, 0.1, seed=0)
    assert [int(out[labels == c].sum()) for c in range(4)] == [2, 1, 0, 1]
    assert (out == held_out_rows(labels, 0.1, seed=0)).all() and (out != held_out_rows(labels, 0.1, seed=1)).any()
    assert [int(held_out_rows(labels, 0.95, seed=0)[labels == c].sum()) for c in range(4)] == [19, 2, 0, 1]
    with pytest.raises(InputError, match="one training clip"):
        held_out_rows(np.arange(5), 0.1, seed=0)


def test_the_best_on_held_out_clips_is_chosen():
    config = made(grid=GridConfig(rates=(1e-9, 1e-2), weight_decays=(0.0, 1e-2), held_out=0.3))
    optim, grid = choose_rate(FEATURES, LABELS, MadeTask(config).model.double(), config)
    assert grid["held_out_clips"] == 12 and len(grid["tried"]) == 4
    assert optim.peak_lr == 1e-2  # a rate of nothing learns nothing
    best = max(grid["tried"], key=lambda head: (head["top1"], -head["loss"]))
    assert grid["chosen"] == {name: best[name] for name in ("rate", "weight_decay")}
    assert (best["rate"], best["weight_decay"]) == (optim.peak_lr, optim.weight_decay)


def test_what_is_held_out_is_not_learned_from():
    """The held-out clips changed: the heads end where they ended, only their score moves."""
    config = made(grid=GridConfig(rates=(1e-2,), held_out=0.3))
    out = torch.from_numpy(held_out_rows(LABELS.numpy(), 0.3, config.seed))
    changed = FEATURES.clone()
    changed[out] = -FEATURES[out]
    model = MadeTask(config).model.double()
    first, second = (choose_rate(features, LABELS, model, config)[1]["tried"][0] for features in (FEATURES, changed))
    assert first["loss"] < second["loss"] and first["top1"] > second["top1"]
    kept = [Heads(model, [1e-4]) for _ in range(2)]
    for heads, features in zip(kept, (FEATURES, changed)):
        train_heads(features[~out], LABELS[~out], heads, [config.optim], config)
    assert all(torch.equal(a, b) for a, b in zip(kept[0].parts, kept[1].parts))


def test_wrong_input():
    with pytest.raises(InputError, match="fewer than a batch"):
        choose_rate(FEATURES[:8], LABELS[:8], MadeTask(made()).model.double(), made(grid=GridConfig(rates=(1e-2,))))
    with pytest.raises(InputError, match=r"grid\.rates are"):
        GridConfig(rates=(0.0,))
