"""Heads from few clips: the one solution of a convex problem, draws that depend on the seed alone."""

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from ppma.config.errors import InputError
from ppma.config.protocols import FewShotConfig
from ppma.transfer.few_shot import draw_rows, fit, scores
from ppma.transfer.frozen import Frozen, normed

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(24) % 3
FEATURES = normed(torch.randn(3, 16, generator=GENERATOR)[LABELS] + torch.randn(24, 16, generator=GENERATOR))


def test_the_gradient_of_the_penalised_loss_vanishes_at_the_head():
    weight, bias = fit(FEATURES, LABELS, 4, 1e-3)
    weight.requires_grad_(), bias.requires_grad_()
    x = FEATURES.double()
    loss = F.cross_entropy(x @ weight.T + bias, LABELS) + 5e-4 * weight.square().sum()
    gradient = torch.autograd.grad(loss, weight)[0]
    assert gradient.abs().max() < 1e-6 and weight.abs().max() > 0.1
    for step in (1e-2, -1e-2):  # and it is a minimum
        away = weight.detach() + step
        assert F.cross_entropy(x @ away.T + bias, LABELS) + 5e-4 * away.square().sum() > loss


def test_draws_hold_so_many_clips_of_each_class_and_few_are_the_first_of_more():
    labels = np.array([0] * 12 + [1] * 10 + [3] * 11)
    for shots in (1, 5, 10):
        rows = draw_rows(labels, shots, draw=3, seed=7)
        assert np.bincount(labels[rows], minlength=4).tolist() == [shots, shots, 0, shots]
        assert len(set(rows)) == len(rows) and set(draw_rows(labels, 1, 3, 7)) <= set(rows)
    assert (draw_rows(labels, 5, 3, 7) == draw_rows(labels, 5, 3, 7)).all()
    assert set(draw_rows(labels, 5, 4, 7)) != set(draw_rows(labels, 5, 3, 7)) != set(draw_rows(labels, 5, 3, 8))
    with pytest.raises(InputError, match=r"class 1 has 10 training clips, and few_shot\.shots asks for 11"):
        draw_rows(labels, 11, 0, 0)


def test_scores_are_the_mean_softmax_of_the_views_and_undecodable_videos_have_none():
    source = tiny.source("made", clips=3)
    views = torch.randn(3, 2, 16, generator=GENERATOR)
    decoded = torch.tensor([True, True, False])
    frozen = Frozen(train_VD=FEATURES, labels_V=LABELS, classes=3, test_TWD=views, decoded_T=decoded, tested=source)
    weight, bias = fit(FEATURES, LABELS, 3, 1e-2)
    found = scores(frozen, weight, bias)
    logits = views.double() @ weight.T + bias
    averaged = scores(frozen, weight, bias, "logits")
    assert np.allclose(averaged[:2], logits.mean(1).softmax(-1).numpy()[:2]) and np.isnan(averaged[2]).all()
    expected = logits.softmax(-1).mean(1).numpy()
    assert np.allclose(found[:2], expected[:2]) and np.isnan(found[2]).all()


def test_wrong_input():
    for settings, message in (({"shots": ()}, "at least"), ({"draws": 0}, "draws is 0"), ({"penalty": 0.0}, "above 0")):
        with pytest.raises(InputError, match=message):
            FewShotConfig(**settings)
