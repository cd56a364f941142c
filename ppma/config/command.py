"""What all commands share: reading flags, reporting wrong input, and exit codes.

    config class, argv  -> parse ->  config, or one line on stderr and exit code 2
    main, argv          -> run   ->  exit code

Exit codes: 0 done, 2 the user's input is wrong, 75 stopped cleanly (rerun to resume), 130 interrupted, 1 everything
else.
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

log = logging.getLogger(__name__)

DONE, WRONG_INPUT, RUN_AGAIN, INTERRUPTED = 0, 2, 75, 130

NO_GPU = "--device cpu runs without a GPU"
GPU_REMEDIES = {
    r"out of memory": "--accumulate 2 computes the same batch in two halves, --vit.recompute and a smaller --batch need less memory too; "
    "`nvidia-smi` lists other processes on the GPU",
    r"no kernel image is available|too old to be supported|not compatible with the current PyTorch": "this torch does not support this "
    f"GPU: `ppma doctor` names both; {NO_GPU}",
    r"driver.*(too old|insufficient)|Found no NVIDIA driver": "update the NVIDIA driver, or install a torch that matches it "
    f"(`ppma doctor` names both); {NO_GPU}",
}
"""Pattern in the message of a RuntimeError of torch: what to do."""

T = TypeVar("T")


def parse(config_class: Callable[..., T], argv: Sequence[str], *, prog: str) -> T:
    """Return a config read from flags by tyro. --help prints the flags and exits with 0.

    Args:
        config_class: Dataclass, or function whose result is returned. Its docstring and those of its fields are the
            help text.
        argv: Flags.
        prog: Name of the command in messages.

    Raises:
        InputError: A flag does not exist or does not fit, or the config refuses a value.
    """
    return _in_one_line(lambda: tyro.cli(config_class, args=list(argv), prog=prog), prog)


def check_ranges(config: object, **ranges: tuple[float, float]) -> None:
    """Raise an InputError that names the flag unless each of these fields of `config` is between its (low, high)."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be {low:g} to {high:g}")


def parse_known(default: T, argv: Sequence[str], *, prog: str) -> tuple[T, list[str]]:
    """Return `default` with fields replaced by flags, and the unknown flags. Raises as `parse` does."""
    kind = type(default)
    return _in_one_line(
        lambda: tyro.cli(kind, args=list(argv), prog=prog, default=default, return_unknown_args=True), prog
    )


def _in_one_line(read: Callable[[], T], prog: str) -> T:
    """Call tyro, and turn its framed error on stderr into an InputError of one line."""
    report = io.StringIO()
    try:
        with contextlib.redirect_stderr(report):
            return read()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_message(report.getvalue())} ({prog} --help lists the flags)") from None


PLAIN_WORDS = {
    r"^Missing from .*?: (\S+).*": r"\1 is missing",
    r"^Error parsing (--\S+): ": r"\1: ",
    r"invalid literal for int\(\) with base 10: ('.*?')": r"\1 is not a whole number",
    r"could not convert string to float: ('.*?')": r"\1 is not a number",
}
"""What tyro says, as a regular expression, and what to say instead."""


def _message(box: str) -> str:
    """Return tyro's error without its frame: the text above the first rule, and the flag that it suggests."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    if lines and re.fullmatch(r"-+", lines[0]):  # a plain rule under the title, where tyro draws no frame
        del lines[0]
    rule = next((i for i, line in enumerate(lines) if re.match(r"──|--+$", line)), len(lines))
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(filter(None, lines[:rule])))
    for pattern, plain in PLAIN_WORDS.items():
        message = re.sub(pattern, plain, message)
    meant = re.search(r"Perhaps you meant: (--[\w.-]+)", " ".join(lines[rule:]))
    return f"{message}; did you mean {meant[1]}?" if meant else message


def run(main: Callable[[list[str]], int], argv: list[str], *, prog: str) -> int:
    """Call the main function of a command and return its exit code.

    Wrong input, a full disk, and a GPU that is too small, too old or lacks a driver are reported in one line on stderr.
    Any other exception is a defect and passes.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return main(argv)
    except InputError as error:
        message = " ".join(str(error).split())
        sys.stderr.write(f"{prog}: {message}\n")
        return WRONG_INPUT
    except BrokenPipeError:  # `ppma ... | head` closed the pipe, and Python would complain again when it flushes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DiskFullError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL_DISK:
            raise
        sys.stderr.write(f"{prog}: {error}; finished work is kept: free space and run the same command again\n")
        return RUN_AGAIN
    except RuntimeError as error:
        line = gpu_remedy(error)
        if line is None:
            raise
        log.debug("the error in full", exc_info=True)
        sys.stderr.write(f"{prog}: {line}\n")
        return WRONG_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return INTERRUPTED


def gpu_remedy(error: BaseException) -> str | None:
    """Return message and remedy in one line if a GPU that cannot be used caused this error, else None."""
    cause: BaseException | None = error
    while cause is not None:
        for sentence in re.split(r"(?<=[.!])\s", " ".join(str(cause).split())):
            for pattern, remedy in GPU_REMEDIES.items():
                if re.search(pattern, sentence):
                    return f"{sentence.rstrip('.')}: {remedy}"
        cause = cause.__cause__
    return None
