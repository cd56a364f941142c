"""The exceptions that commands handle, and checks of configs. Any other exception is a defect.

InputError    the user's input is wrong             one line, exit code 2
DiskFullError no space is left                      one line, exit code 75: free space and run the same command again
BadClip       one file of many cannot be decoded    counted, named in the quarantine and replaced by the loader
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of an OSError that mean a full disk or an exhausted quota."""


class InputError(ValueError):
    """Raised with one line that names the offending value, the allowed ones, and what to do."""


class DiskFullError(Exception):
    """Raised when no space is left on the device; finished files are kept, and the same command continues from there.

    Not an OSError, so that no code mistakes a full disk for a bad file.
    """


class BadClip(Exception):
    """Raised for a file that cannot give the requested frames; the message says why."""


@contextmanager
def watch_disk(folder: Path) -> Iterator[None]:
    """Turn "no space left on device" into a DiskFullError that names the folder; every other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise DiskFullError(f"{folder}: {error.strerror}") from None


def require(condition: bool, message: str) -> None:
    """Raise InputError with this message unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_at_least(least: float, config: object, group: str, *names: str) -> None:
    """Raise InputError unless these fields of a config are at least `least`; `group` is their prefix in the message."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{group}{name} is {value}; it must be at least {least}")


def require_share(config: object, group: str, *names: str) -> None:
    """Raise InputError unless these fields of a config are between 0 and 1; `group` is their prefix in the message."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{group}{name} is {value}; it must be between 0 and 1")
