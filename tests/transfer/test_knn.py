"""Nearest neighbors against a loop."""

import math

import pytest
import torch

from ppma.config.errors import InputError
from ppma.config.protocols import KNNConfig
from ppma.transfer.knn import votes

GENERATOR = torch.Generator().manual_seed(0)
BANK = torch.randn(30, 8, dtype=torch.float64, generator=GENERATOR)
QUERIES = torch.randn(7, 8, dtype=torch.float64, generator=GENERATOR)
LABELS = torch.arange(30) % 4


def test_votes_equal_a_loop_over_neighbors():
    found = votes(QUERIES, BANK, LABELS, 5, KNNConfig(k=6, temperature=0.2))
    for query, row in zip(QUERIES, found):
        cosines = [(float(query @ clip / query.norm() / clip.norm()), int(label)) for clip, label in zip(BANK, LABELS)]
        nearest = sorted(cosines, reverse=True)[:6]
        total = sum(math.exp(cosine / 0.2) for cosine, _ in nearest)
        expected = [sum(math.exp(s / 0.2) for s, label in nearest if label == c) / total for c in range(5)]
        assert row.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.sum(dim=1) == pytest.approx(torch.ones(7)) and (found[:, 4] == 0).all()


def test_few_clips_and_long_vectors_change_nothing_they_should_not():
    assert torch.allclose(
        votes(QUERIES, BANK[:3], LABELS[:3], 4, KNNConfig(k=20)),
        votes(QUERIES, BANK[:3], LABELS[:3], 4, KNNConfig(k=3)),
    )
    assert torch.allclose(
        votes(3 * QUERIES, BANK * 7, LABELS, 4, KNNConfig()), votes(QUERIES, BANK, LABELS, 4, KNNConfig())
    )
    itself = votes(BANK, BANK, LABELS, 4, KNNConfig(k=1))
    assert torch.equal(itself.argmax(dim=1), LABELS) and (itself.max(dim=1).values == 1).all()


def test_wrong_input():
    with pytest.raises(InputError, match=r"knn\.k is 0"):
        KNNConfig(k=0)
