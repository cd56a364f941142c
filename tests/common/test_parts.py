"""Shares of work: what I/N means, and what is refused."""

import pytest

from ppma.common.workers import parse_shard
from ppma.config.errors import InputError


def test_every_piece_of_work_belongs_to_one_share():
    assert parse_shard(None) == (0, 1)
    work = list(range(10))
    shares = [work[first::step] for first, step in (parse_shard(f"{i}/3") for i in range(3))]
    assert sorted(piece for share in shares for piece in share) == work and [len(share) for share in shares] == [
        4,
        3,
        3,
    ]


@pytest.mark.parametrize("part", ["3/3", "0/0", "-1/2", "1", "1/", "a/b", "0/2/3"])
def test_what_is_no_share_is_refused(part):
    with pytest.raises(InputError, match="write I/N with I from 0 to N - 1"):
        parse_shard(part)


def test_a_share_is_not_merged():
    with pytest.raises(InputError, match="one of the two"):
        parse_shard("0/2", 2)
    with pytest.raises(InputError, match="--merge is 0"):
        parse_shard(None, 0)
