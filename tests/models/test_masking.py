"""Masks: the right number, a partition, keyed by the row alone, and even over the tokens."""

import pytest
import torch

from ppma.config.errors import InputError
from ppma.models.masking import kept_count, kept_tokens, masked_count, random_masking, running_cell, target_count

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
    with pytest.raises(InputError, match=f"mask_ratio {ratio}"):
        random_masking(KEYS, n, ratio)


GRID = (8, 6, 6)
EVERY = torch.arange(288).expand(4, -1)


def test_cells_run():
    """With everything hidden a half is two neighbors of each cell at each time, one further at the next: twice each in four times."""
    targets = running_cell(KEYS, EVERY, GRID, 0.5)
    chosen = torch.zeros(4, 288, dtype=torch.bool).scatter(1, targets, True).view(4, 8, 3, 2, 3, 2)
    round_the_clock = torch.stack([chosen[..., r, :, c] for r, c in ((0, 0), (0, 1), (1, 1), (1, 0))], dim=-1)
    assert (round_the_clock.sum(dim=-1) == 2).all()
    assert torch.equal(round_the_clock[:, 1:], round_the_clock[:, :-1].roll(1, dims=-1))
    assert (round_the_clock[:, :4].sum(dim=1) == 2).all()
    starts = {tuple(row[0, 0, 0].tolist()) for row in running_cell_pattern(torch.arange(64))}
    assert len(starts) == 4, "the first start is drawn for each row"


def running_cell_pattern(key_B):
    targets = running_cell(key_B, torch.arange(288).expand(len(key_B), -1), GRID, 0.5)
    return torch.zeros(len(key_B), 288, dtype=torch.bool).scatter(1, targets, True).view(-1, 8, 3, 2, 3, 2)[..., 0, :]


@pytest.mark.parametrize("grid", [GRID, (3, 7, 5)])
def test_targets_are_so_many_of_the_hidden_tokens_and_drawn_by_the_row_alone(grid):
    tokens = grid[0] * grid[1] * grid[2]
    _, masked = random_masking(KEYS, tokens, 0.9)
    targets = running_cell(KEYS, masked, grid, 0.4)
    assert targets.shape == (4, int(0.4 * masked.shape[1])) and (targets.diff(dim=1) > 0).all()
    for row in range(4):
        assert set(targets[row].tolist()) <= set(masked[row].tolist())
        assert torch.equal(running_cell(KEYS[row : row + 1], masked[row : row + 1], grid, 0.4)[0], targets[row])


def test_every_hidden_token_is_a_target_equally_often():
    """4,000 rows: the share of a token has a standard deviation of 0.008; 5 of them."""
    _, masked = random_masking(torch.arange(4000), 144, 0.9)
    targets = running_cell(torch.arange(4000), masked, (4, 6, 6), 0.5)
    share = torch.bincount(targets.flatten(), minlength=144) / 4000
    assert (share - 64 / 144).abs().max() < 5 * 0.008


def test_kept_tokens():
    """So many, ascending, by the key of the row alone, each equally often, and not those that stage 1's mask would show."""
    kept = kept_tokens(KEYS, 100, 0.29)
    assert kept.shape == (4, 71) and (kept.diff(dim=1) > 0).all()
    assert all(torch.equal(kept_tokens(KEYS[i : i + 1], 100, 0.29)[0], kept[i]) for i in range(4))
    share = torch.bincount(kept_tokens(torch.arange(4000), 64, 0.5).flatten(), minlength=64) / 4000
    assert (share - 0.5).abs().max() < 5 * 0.008
    assert not torch.equal(kept_tokens(KEYS, 100, 0.5), random_masking(KEYS, 100, 0.5)[0])


def test_shares_that_leave_or_drop_nothing_are_refused():
    assert (target_count(1411, 0.5), target_count(7, 1.0), kept_count(1568, 0.5), kept_count(9, 0.0)) == (
        705,
        7,
        784,
        9,
    )
    with pytest.raises(InputError, match=r"decoder_share 0\.1"):
        target_count(9, 0.1)
    with pytest.raises(InputError, match=r"token_drop 0\.1 drops none of 8 tokens"):
        kept_count(8, 0.1)
