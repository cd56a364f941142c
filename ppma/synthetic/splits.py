"""Random values that keep the two splits apart: a range is cut into sectors, and train and test take alternate ones.

So the test split has clothes, cameras and lights that training never saw, from the same range of values.
"""

from typing import Literal, get_args

import numpy as np

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def sample_in_split(rng: np.random.Generator, split: Split, low: float, high: float, *, sectors: int = 8) -> float:
    """Sample uniformly from the split's own sectors of [low, high); the number of sectors is even."""
    sector = 2 * rng.integers(sectors // 2) + (split == "test")
    return float(low + (high - low) * (sector + rng.random()) / sectors)
