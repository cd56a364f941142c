"""The drawn RandAugment operations of a batch as numbers, for `randaugment`.

    operations of each view, in order  ->  program_SVF float32: S steps, V views, FIELDS numbers

Steps are aligned at their end: a view with fewer operations than S begins later, by reading the input instead of what
the step before wrote. So each operation is one read and one write of its view, and the last step writes every view.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


class Operation(IntEnum):
    """What a step does to a view, and the meaning of its values. From AUTOCONTRAST on it is a table of levels."""

    SKIP = -1
    """The view has not started."""
    COPY = 0
    WARP = 1
    """Values: the (2, 3) matrix from output to input pixels, row by row; pixel i spans [i, i + 1)."""
    SATURATION = 2
    """Value: factor, towards gray below 1."""
    SHARPNESS = 3
    """Value: factor, towards a 3 x 3 smoothing below 1; the outermost pixels stay."""
    AUTOCONTRAST = 4
    EQUALIZE = 5
    CONTRAST = 6
    """Value: factor, towards the frame's mean gray below 1."""
    BRIGHTNESS = 7
    """Value: factor."""
    INVERT = 8
    POSTERIZE = 9
    """Value: the mask of the bits that are kept."""
    SOLARIZE = 10
    """Value: the lowest level that is inverted."""


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
