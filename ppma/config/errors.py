"""The exceptions that commands handle, checks of configs, and lists and numbers in messages. Any other exception is a defect.

InputError    the user's input is wrong             one line, exit code 2
DiskFullError no space is left                      one line, exit code 75: free space and run the same command again
KilledError   the kernel kills our processes        one line, exit code 75: free memory and run the same command again
UnreachableError a server does not answer           one line, exit code 75: run the same command again
Stopped       a signal asked to stop                one line, exit code 75: rerun to resume
BadClip       one file of many cannot be decoded    counted, named in the quarantine and replaced by the loader
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of an OSError that mean a full disk or an exhausted quota."""


class InputError(ValueError):
    """Raised with one line that names the offending value, the allowed ones, and what to do."""


class DiskFullError(Exception):
    """Raised when no space is left on the device; finished files are kept, and the same command continues from there.

    Not an OSError, so that no code mistakes a full disk for a bad file.
    """


class KilledError(Exception):
    """Raised when processes are killed again and again, as the kernel does without memory; finished work is kept."""


class RefusedError(InputError):
    """Raised where a server refuses to give a file, and would do so again: no file is bad, the whole run cannot read."""


class UnreachableError(Exception):
    """Raised where a server does not answer, after many tries. Not an OSError, so that no clip is taken for a bad file."""


class Stopped(Exception):
    """Raised when a run stopped cleanly on request: its checkpoint is saved; rerun to resume."""

    def __init__(self, why: IntEnum, remedy: str = "run the same command again to continue") -> None:
        super().__init__(why.name)
        self.why, self.remedy = why, remedy


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


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read and understood into an InputError that names the file.

    Args:
        path: The file. Read it as "utf-8-sig", which drops the byte order mark that some editors write.
        what: What the file should be, for the message: "the config of a run".
    """
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give {what}") from None
    except UnicodeError:
        raise InputError(f"{path}: is not UTF-8 text; give {what}, saved as UTF-8") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: is not {what} ({type(error).__name__}: {error})") from None


def first_few(names: Sequence[object], most: int, *, count: int | None = None) -> str:
    """Return the first `most` names for a message, and how many more there are (of `count`, by default of `names`)."""
    count = len(names) if count is None else count
    return ", ".join(map(str, names[:most])) + (f" and {count - most} more" if count > most else "")


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 clip" or "2 clips" for a message; `plural` for a noun that takes more than an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def require(condition: bool, message: str) -> None:
    """Raise InputError with this message unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_at_least(least: float, config: object, group: str, *names: str) -> None:
    """Raise InputError unless these fields of a config are at least `least`; `group` is their prefix in the message."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{group}{name} is {value}; it must be at least {least}")


def require_range(config: object, group: str, *names: str, most: float = float("inf")) -> None:
    """Raise InputError unless these fields are (low, high), above 0 and at most `most`; `group` is their prefix."""
    for name in names:
        low, high = getattr(config, name)
        limit = f"above 0 and at most {most}" if most < float("inf") else "above 0"
        message = f"{group}{name} is {low} to {high}; give the smaller number first, both {limit}"
        require(0 < low <= high <= most, message)


def require_share(config: object, group: str, *names: str) -> None:
    """Raise InputError unless these fields of a config are between 0 and 1; `group` is their prefix in the message."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{group}{name} is {value}; it must be between 0 and 1")
