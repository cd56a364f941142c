"""A command's share of its work, for the tasks of an array: `--part I/N` on each of them, and `--merge N` once when all are done.

"2/8"  ->  (2, 8): every eighth piece of work from the third on
"""

import re

from ppma.config.errors import InputError


def turn(part: str | None, merge: int | None = None) -> tuple[int, int]:
    """(I, N) of --part, (0, 1) without one. InputError when it is no share of N, or --merge is given too or is below 1."""
    if part is not None and merge is not None:
        raise InputError("--part does a share of the work, --merge only gathers them; give one of the two")
    if merge is not None and merge < 1:
        raise InputError(f"--merge is {merge}; give the number of parts, at least 1")
    if part is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None or int(found[1]) >= int(found[2]):
        raise InputError(f"--part is {part!r}; write I/N with I from 0 to N - 1")
    return int(found[1]), int(found[2])
