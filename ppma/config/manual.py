"""Turn the help that tyro prints into a manual page, with whole paragraphs and examples that can be copied.

usage, description and boxes of tyro  ->  usage, description, Arguments, Options, exit codes
"""

import contextlib
import os
import re
import shutil
import textwrap
from collections.abc import Iterator

COLUMNS = 100
"""At more, tyro prints its boxes side by side."""
EXIT_CODES = "Exit codes: 0 done, 2 wrong input, 75 stopped cleanly (rerun to resume), 130 interrupted, 1 other."
INDENT = 28
SHARED = ("--data", "--device", "--precision", "--workers", "--engine", "--part", "--merge", "--dry-run")
"""Flags of several commands, listed last."""
FRAME = "│╭╮╰╯─- "


@contextlib.contextmanager
def one_column() -> Iterator[None]:
    """Let tyro print one column of boxes, whatever the terminal's width."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def manual(text: str) -> str:
    """Return the manual page of a command, wrapped to the terminal, from the help that tyro printed in one column."""
    head, *boxes = re.split(r"^(?:╭─| ?) ?([a-z][\w. -]*?) ─*╮?\s*\n(?= *-{9}|│)", text, flags=re.MULTILINE)
    usage, _, description = head.partition("\n\n")
    page = [_plain(usage), "", *(_wrapped(line) for line in re.sub(r"\n{3,}", "\n\n", description.strip()).split("\n"))]
    for title, box in zip(boxes[::2], boxes[1::2]):
        page += ["", f"{title.removeprefix('positional ').capitalize()}:"]
        for flags, words in _options(box):
            words, flags = _wrapped(words, " " * INDENT), f"  {_plain(flags)}"
            page += [flags + words[len(flags) :]] if len(flags) < INDENT - 1 else [flags, words]
    return "\n".join([*page, "", _wrapped(EXIT_CODES)]) + "\n"


def _options(box: str) -> list[tuple[str, str]]:
    """Return (flags, help) of each option of a box."""
    found: list[tuple[str, str]] = []
    for line in (line.strip("│").rstrip("│ ") for line in box.splitlines()):
        if re.match(r" {1,2}\S", line) and line.strip(FRAME):
            flags, _, words = line.strip().partition("  ")
            found.append((flags, words.strip()))
        elif found and line.strip(FRAME):
            found[-1] = found[-1][0], f"{found[-1][1]} {line.strip()}".strip()
    return sorted((_explained(flags, words) for flags, words in found), key=_rank)


def _rank(option: tuple[str, str]) -> int:
    """Return where an option belongs: required ones first, after --help, those that many commands share last."""
    name, words = re.split("[ ,]", option[0])[0], option[1]
    return 0 if name == "-h" else 1 if "(required)" in words else 3 if name in SHARED else 2


def _plain(flags: str) -> str:
    """Return flags without what every optional one could say: that it may be None."""
    flags = re.sub(r"\[(\w+) \[\1 \.\.\.\]\]", r"[\1 ...]", flags.replace("{None}|", "").replace("{None,", "{"))
    return " ".join(re.sub(r"\[(\[\w+ \.\.\.\])\]|\{(\[\w+ \.\.\.\])\}", r"\1\2", flags).split())


def _explained(flags: str, words: str) -> tuple[str, str]:
    """Return an option without a default that is None or off, or that its own words explain."""
    if words.endswith("(default: False)"):
        flags, words = flags.partition(", ")[0], words.removesuffix("(default: False)").rstrip()
    words = re.sub(r" ?\(default: (None|'')?\)$", "", words)
    return flags, re.sub(r"(\(default: .+\)\.?) \(default: [^()]*\)$", r"\1", words)


def _wrapped(line: str, indent: str = "") -> str:
    """Return a line wrapped to the terminal; an example, which is indented, stays one line."""
    width = min(COLUMNS, shutil.get_terminal_size().columns)
    if line.startswith(" "):
        return line
    return textwrap.fill(
        line, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
