"""Masks: the right number, a partition, keyed by the row alone, and even over the tokens."""

import pytest
import torch

from ppma.loaders.errors import InputError
from ppma.masking import masked_count, random_masking

KEYS = torch.tensor([3, 1 << 61, 12345, 7], dtype=torch.int64)


@pytest.mark.parametrize(("n", "ratio", "masked"), [(1568, 0.9, 1411), (100, 0.29, 29), (10, 0.7, 7), (3, 0.5, 1)])
def test_the_number_masked(n, ratio, masked):
    assert masked_count(n, ratio) == masked
    visible_idx, masked_idx = random_masking(KEYS, n, ratio)
    assert visible_idx.shape == (4, n - masked) and masked_idx.shape == (4, masked)


def test_visible_and_masked_part_the_tokens_in_ascending_order():
    visible, masked = random_masking(KEYS, 1568, 0.9)
    assert (visible.diff(dim=1) > 0).all() and (masked.diff(dim=1) > 0).all()
    assert torch.equal(torch.cat([visible, masked], dim=1).sort(dim=1).values, torch.arange(1568).expand(4, -1))


def test_a_row_is_masked_by_its_key_alone():
    visible, masked = random_masking(KEYS, 392, 0.75)
    for row in range(4):
        alone = random_masking(KEYS[row : row + 1], 392, 0.75)
        assert torch.equal(alone[0][0], visible[row]) and torch.equal(alone[1][0], masked[row])
    assert not torch.equal(visible[0], visible[1])


def test_every_token_is_masked_equally_often():
    """4,000 rows: the share of a token has a standard deviation of 0.0047; 5 of them, 64 tokens."""
    _, masked = random_masking(torch.arange(4000), 64, 0.9)
    share = torch.bincount(masked.flatten(), minlength=64) / 4000
    assert (share - 57 / 64).abs().max() < 5 * 0.005


@pytest.mark.parametrize(("n", "ratio"), [(8, 0.05), (8, 1.0)])
def test_nothing_hidden_or_nothing_visible_is_refused(n, ratio):
    with pytest.raises(InputError, match=f"mask_ratio {ratio} hides"):
        random_masking(KEYS, n, ratio)


def test_compiles_without_a_graph_break():
    compiled = torch.compile(random_masking, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(compiled(KEYS, 32, 0.9), random_masking(KEYS, 32, 0.9), strict=True):
        assert torch.equal(ours, eager)
