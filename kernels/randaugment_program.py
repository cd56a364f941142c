"""Encode the RandAugment operations of a batch as numbers for `randaugment`.

    operations of each view, in order  ->  program_SVF float32: S steps, V views, FIELDS numbers

Steps are aligned at the end: a view with fewer than S operations starts later and reads the input instead of the output
of the previous step. So each operation reads and writes its view once, and the last step writes every view.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


class Operation(IntEnum):
    """The operation of a step on a view, and the meaning of its values. From AUTOCONTRAST on, a lookup table."""

    SKIP = -1
    """The view has not started."""
    COPY = 0
    WARP = 1
    """Values: the (2, 3) matrix from output to input pixels, row by row; pixel i spans [i, i + 1)."""
    SATURATION = 2
    """Value: factor; below 1 blends toward gray."""
    SHARPNESS = 3
    """Value: factor; below 1 blends toward a 3 x 3 smoothing. The outermost pixels stay."""
    AUTOCONTRAST = 4
    EQUALIZE = 5
    CONTRAST = 6
    """Value: factor; below 1 blends toward the mean gray of the frame."""
    BRIGHTNESS = 7
    """Value: factor."""
    INVERT = 8
    POSTERIZE = 9
    """Value: mask of the bits to keep."""
    SOLARIZE = 10
    """Value: lowest level to invert."""


FIELDS = 8
"""Numbers per view and step: the operation, 1 in the view's first step, six values."""


def write_program(views: Sequence[Sequence[tuple[Operation, Sequence[float]]]]) -> Tensor:
    """Return the program (S, V, FIELDS), float32 on the host, that applies each view's operations in order."""
    steps = max(1, max(len(operations) for operations in views))
    program = []
    for operations in views:
        rows = [[operation, 0.0, *values, *[0.0] * (FIELDS - 2 - len(values))] for operation, values in operations]
        rows = rows or [[Operation.COPY, *[0.0] * (FIELDS - 1)]]
        rows[0][1] = 1.0
        program.append([[Operation.SKIP, *[0.0] * (FIELDS - 1)]] * (steps - len(rows)) + rows)
    return torch.tensor(program, dtype=torch.float32).transpose(0, 1).contiguous()
