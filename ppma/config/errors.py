"""The exceptions that commands handle. Every other exception is a defect and keeps its traceback.

InputError    the user's input is wrong             one line, exit code 2
DiskFullError no space is left                      one line, exit code 75: free space and run the same command again
BadClip       one file of many cannot be decoded    counted, named and replaced by whatever reads clips
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of an OSError that mean a full disk or a used-up quota."""


class InputError(ValueError):
    """Raised with one line that names the offending value, the allowed ones, and what to do."""


class DiskFullError(Exception):
    """No space left on the device; finished files are kept, and the same command continues from there.

    Not an OSError: code that takes an OSError for a bad file must not take a full disk for one.
    """


class BadClip(Exception):
    """A file that cannot give the frames asked of it; the text says why."""


@contextmanager
def watch_disk(folder: Path) -> Iterator[None]:
    """Turn "no space left on device" into a DiskFullError that names the folder; every other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise DiskFullError(f"{folder}: {error.strerror}") from None
