"""Counter-based random numbers for the host: a generator is addressed by what it draws, not by what was drawn before.

    (seed, purpose, epoch, sample, view)  ->  numpy Generator

Philox (Salmon et al., SC 2011) maps a key and a counter to random words without state. The address fills both, so a draw does not depend on
the worker, the rank, the resume point, or how many numbers another purpose drew. Draws on the device start from `key_B` of a ClipBatch;
see `ppma.kernels.philox`.
"""

from enum import IntEnum

import numpy as np

_WORD = (1 << 64) - 1


class Purpose(IntEnum):
    """What random numbers of the host are for. Changing a value changes the random numbers of every run."""

    ROW_KEY = 1
    SOURCE_ORDER = 2
    CLIP_ORDER = 3
    WINDOW = 4
    CROP = 5
    FLIP = 6
    AUGMENT = 7
    ERASE = 8
    REPLACE = 9
    SYNTHESIS = 20
    SPIKE = 21
    REVIEW = 22
    RESAMPLE = 30
    HELD_OUT = 31
    SHOTS = 32


def generator(seed: int, purpose: Purpose, *, epoch: int = 0, sample: int = 0, view: int = 0) -> np.random.Generator:
    """Return the generator at one address, in about 10 microseconds; two calls with one address draw the same numbers.

    Args:
        seed: Seed of the run.
        purpose: What the numbers are for.
        epoch: Epoch, from 0.
        sample: Position or row of the sample, from 0.
        view: Crop of the clip in stage 1, from 0.
    """
    key = np.array([seed & _WORD, int(purpose)], dtype=np.uint64)
    counter = np.array([0, sample, epoch, view], dtype=np.uint64)  # word 0 advances as numbers are drawn
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def row_key(seed: int, *, epoch: int, sample: int, view: int) -> int:
    """Return the 63-bit key of one row of a batch, from which the device draws masks, mixing, drop path and erasing noise."""
    return int(generator(seed, Purpose.ROW_KEY, epoch=epoch, sample=sample, view=view).integers(0, 1 << 63))
