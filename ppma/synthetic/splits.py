"""Draws that keep the two splits apart: a range is cut into sectors, and train and test take every other one.

So the test split has clothes, cameras and lights that training never saw, from the same span of values.
"""

from typing import Literal, get_args

import numpy as np

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def sample_in_split(rng: np.random.Generator, split: Split, low: float, high: float, *, sectors: int = 8) -> float:
    """A number in [low, high) from the split's own sectors (`sectors` is even)."""
    sector = 2 * rng.integers(sectors // 2) + (split == "test")
    return float(low + (high - low) * (sector + rng.random()) / sectors)
