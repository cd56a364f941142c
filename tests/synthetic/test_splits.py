"""What the splits draw from: the same span, no value in common."""

import numpy as np

from ppma.synthetic.render.outfit import PATTERNS as SHIRTS
from ppma.synthetic.render.textures import PATTERNS
from ppma.synthetic.splits import sample_in_split


def test_splits_share_no_value_but_the_span():
    train, test = (
        [sample_in_split(np.random.default_rng(n), split, -2, 6, sectors=8) for n in range(400)]
        for split in ("train", "test")
    )
    sector = [set(np.floor(values).astype(int).tolist()) for values in (train, test)]
    assert sector == [{-2, 0, 2, 4}, {-1, 1, 3, 5}]


def test_patterns_of_places_and_shirts_are_apart():
    assert not set(PATTERNS["train"]) & set(PATTERNS["test"])
    assert set(SHIRTS["train"]) & set(SHIRTS["test"]) == {"plain"}
