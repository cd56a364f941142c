"""The manners every command shares: how flags are read, how a wrong input is reported, which code a command exits with.

    config class, argv  -> parse ->  config, or one line on stderr and exit code 2
    main, argv          -> run   ->  exit code

Exit codes: 0 done, 2 the user's input is wrong, 75 stopped in good order and wants to be run again, 130 interrupted, 1 everything else.
"""

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from ppma.config.errors import FULL_DISK, DiskFullError, InputError
from ppma.config.gpu_errors import remedy

log = logging.getLogger(__name__)

DONE, WRONG_INPUT, RUN_AGAIN, INTERRUPTED = 0, 2, 75, 130

T = TypeVar("T")


def parse(config_class: Callable[..., T], argv: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Turn `argv` into an instance of a dataclass (or the result of a function) by tyro; flags change `default` where one is given.

    Its docstring is the help's text, the fields' docstrings the flags'. --help exits with 0; flags that do not fit, and an InputError
    raised while the config is built, become an InputError of one line, which `run` prints.
    """
    if default is None:
        return _told(lambda: tyro.cli(config_class, args=list(argv), prog=prog), prog)
    return _told(lambda: tyro.cli(type(default), args=list(argv), prog=prog, default=default), prog)


def check_ranges(config: object, **ranges: tuple[float, float]) -> None:
    """Raise an InputError that names the flag unless each of these fields of `config` is between its (low, high)."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be {low:g} to {high:g}")


def parse_known(default: T, argv: Sequence[str], *, prog: str) -> tuple[T, list[str]]:
    """Flags that change fields of `default`, and what is left of `argv`: flags for somebody else to read."""
    kind = type(default)
    return _told(lambda: tyro.cli(kind, args=list(argv), prog=prog, default=default, return_unknown_args=True), prog)


def _told(read: Callable[[], T], prog: str) -> T:
    """Call tyro; its framed complaint on stderr becomes an InputError of one line."""
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            return read()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_one_line(report.getvalue())} ({prog} --help lists the flags)") from None


def _one_line(box: str) -> str:
    """Return tyro's error without its frame: the text above the first rule, and the flag that it suggests."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    rule = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(filter(None, lines[:rule])))
    meant = re.search(r"Perhaps you meant: (--[\w.-]+)", " ".join(lines[rule:]))
    return f"{message}; did you mean {meant[1]}?" if meant else message


def run(main: Callable[[list[str]], int], argv: list[str], *, prog: str) -> int:
    """Call a command's main and return the exit code.

    An InputError, and a GPU that is too small, too old or without its driver, is one line on stderr; a defect of ours keeps its traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return main(argv)
    except InputError as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"{prog}: {message}\n")
        return WRONG_INPUT
    except BrokenPipeError:  # `ppma ... | head`: nobody reads on, and Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DiskFullError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL_DISK:
            raise
        sys.stderr.write(f"{prog}: {error}; finished work is kept: free space and run the same command again\n")
        return RUN_AGAIN
    except RuntimeError as error:
        line = remedy(error)
        if line is None:
            raise
        log.debug("the error in full", exc_info=True)
        sys.stderr.write(f"{prog}: {line}\n")
        return WRONG_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return INTERRUPTED
