"""Run a list of measurements within a time budget, each in its own process with a time limit.

    items, seconds, folder  ->  [ fork -> parts -> rows.jsonl, flushed row by row ] x items  ->  table.txt

An item that fails, crashes or exceeds its limit keeps the rows it has written and gets one more with the reason;
tracebacks go to failures.txt, output to log.txt. A second run in the same folder skips finished items. Items are forked
from one server process that has imported the heavy modules and never touched the GPU, so none of them pays for the
imports.
"""

import gc
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from benchmarks import rows

ROWS, TABLE, LOG, FAILURES = "rows.jsonl", "table.txt", "log.txt", "failures.txt"
FINISHED, MACHINE = "finished", "machine.json"
PART_FAILED = 3
"""Exit code of an item whose rows record a failure."""
RESERVE_SECONDS = 3.0
"""Reserved for writing the table."""
LEAST_SECONDS = 5.0
"""Items do not start with less time than this."""
GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""


@dataclass(frozen=True, kw_only=True)
class Day:
    """Settings that every item receives."""

    out: Path
    """Folder for the results."""
    device: Literal["cuda", "cpu"]
    clips: Path
    """Folder for generated clips."""
    commit: str
    tiny: bool = False
    """Use tiny shapes, for a rehearsal."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number with its bounds."""

    what: str
    value: float | None
    unit: str
    least: float | None = None
    most: float | None = None
    goal: float | None = None
    note: str = ""

    @property
    def must(self) -> str:
        """The bound as text; empty without one."""
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}" if self.most is not None else ""

    @property
    def verdict(self) -> str:
        """How the value compares with its bounds.

        missed: a bound is not met (NaN meets none); goal: the goal is met; reached: the bounds are met, but not the
        goal; short: there is only a goal, and it is not met; empty: there is nothing to compare with.
        """
        bounded = self.least is not None or self.most is not None
        if self.value is None or not (bounded or self.goal is not None):
            return ""
        low, high = (-math.inf if self.least is None else self.least), (math.inf if self.most is None else self.most)
        if not low <= self.value <= high:
            return "missed"
        if self.goal is not None and self.value >= self.goal:
            return "goal"
        return "reached" if bounded else "short"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of an item, which may fail without affecting the others."""

    what: str
    measure: Callable[[], Iterable[Figure]]
    gpu_only: str = ""
    """Why this part cannot run without a GPU."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A group of measurements with a time limit."""

    name: str
    seconds: float
    what: str
    parts: str
    """module:function, called with the Day; yields Parts."""
    clips: bool = False
    """True if it reads the generated clips."""


@dataclass(kw_only=True)
class Book:
    """The rows in a folder, appended to by several processes in turn."""

    folder: Path
    commit: str = ""
    where: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """One JSON row per line."""
        return self.folder / ROWS

    def read(self) -> list[rows.Row]:
        """Return all rows so far, without a truncated last line."""
        found = []
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def add(self, item: str, figure: Figure, verdict: str | None = None) -> None:
        """Append a row immediately."""
        row = {
            "benchmark": "gpu_day", "item": item, "what": figure.what, "figure": figure.value, "unit": figure.unit,
            "must": figure.must, "goal": figure.goal, "verdict": figure.verdict if verdict is None else verdict,
            "note": figure.note, **(self.where or self.remembered()), "commit": self.commit,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def describe_machine(self) -> None:
        """Record GPU and versions, for this process and for the parent, which may not touch the GPU."""
        self.where = {"machine": rows.machine(), "versions": rows.versions()}
        (self.folder / MACHINE).write_text(json.dumps(self.where))

    def remembered(self) -> dict[str, str]:
        """Return what `describe_machine` recorded last in this folder."""
        file = self.folder / MACHINE
        return json.loads(file.read_text()) if file.exists() else {}

    def fail(self, item: str, what: str, error: BaseException) -> None:
        """Append a row with the reason in one line, and the traceback to failures.txt."""
        reason = next(iter(str(error).splitlines()), "")
        with (self.folder / FAILURES).open("a") as file:
            file.write(f"{item}, {what}\n{''.join(traceback.format_exception(error))}\n")
        note = f"{type(error).__name__}: {reason}"[:200]
        self.add(item, Figure(what=what, value=None, unit="", note=note), "failed")


def run_parts(item: Item, day: Day, book: Book) -> bool:
    """Run an item in this process; return True if every part ran."""
    module, _, name = item.parts.partition(":")
    fine, began = True, time.monotonic()
    try:
        parts = iter(getattr(importlib.import_module(module), name)(day))
    except Exception as error:  # noqa: BLE001  # recorded with its traceback; the item counts as failed
        book.fail(item.name, "setup", error)
        return False
    part = None
    while True:
        try:
            part = next(parts, None)
            if part is None:
                break
            if part.gpu_only and day.device == "cpu":
                note = f"not without a GPU: {part.gpu_only}"
                book.add(item.name, Figure(what=part.what, value=None, unit="", note=note), "left out")
                continue
            for figure in part.measure():
                book.add(item.name, figure)
        except Exception as error:  # noqa: BLE001  # the same; the other parts still run
            book.fail(item.name, part.what if part else "setup", error)
            fine = False
            if part is None:
                break
        part = None  # a failure to yield the next part is not a failure of this one
        release()
    if fine:
        book.add(item.name, Figure(what=FINISHED, value=time.monotonic() - began, unit="s"))
    return fine


def release() -> None:
    """Free the GPU memory of the previous part."""
    torch = sys.modules.get("torch")
    gc.collect()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def child(item: Item, day: Day) -> None:
    """Run an item in a new session, so that one signal ends it and every process it started."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(day.out / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(f"--- {item.name}", flush=True)
    book = Book(folder=day.out, commit=day.commit)
    book.describe_machine()
    sys.exit(0 if run_parts(item, day, book) else PART_FAILED)


def end_group(process: multiprocessing.process.BaseProcess) -> None:
    """Send SIGTERM, then SIGKILL, to the process and its whole session. Idempotent."""
    assert process.pid is not None
    for number, grace in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if process.is_alive():
            with suppress(ProcessLookupError):  # it may not have its session yet
                os.kill(process.pid, number)
        process.join(grace)


def run_box(item: Item, day: Day, seconds: float, context: multiprocessing.context.BaseContext) -> str:
    """Run an item for at most `seconds`; return why it did not finish, or an empty string."""
    process = context.Process(target=child, args=(item, day))  # type: ignore[attr-defined]
    process.start()
    try:
        process.join(seconds)
        if process.is_alive():
            return f"stopped after its {seconds:.0f} s"
        code = process.exitcode
    finally:
        end_group(process)
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return "" if code in (0, PART_FAILED) else f"ended with exit code {code}; {LOG} says more"


def choose(items: Sequence[Item], found: Sequence[rows.Row], only: Sequence[str]) -> list[Item]:
    """Return the items to run, in order.

    Args:
        items: All items.
        found: Rows already in the folder.
        only: Names of items to run even if they are finished.

    Returns:
        Without `only`: the items that never ran, then those that ran and did not finish.
    """
    if only:
        return [item for item in items if item.name in only]
    seen: dict[str, bool] = {}
    for row in found:
        seen[row["item"]] = seen.get(row["item"], False) or row["what"] == FINISHED
    return [item for item in items if item.name not in seen] + [item for item in items if seen.get(item.name) is False]


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C inside the block, so that a terminated run prints its table too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(items: Sequence[Item], day: Day, seconds: float, preload: Sequence[str] = ()) -> bool:
    """Run the items in order within `seconds`, then print the table; return False if interrupted.

    Items start while time remains. A time limit shrinks to the remaining time and grows by what earlier items did not
    use.
    """
    began = time.monotonic()
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    book, spare, item = Book(folder=day.out, commit=day.commit), 0.0, None
    try:
        with interruptible():
            for number, item in enumerate(items, 1):
                left = seconds - RESERVE_SECONDS - (time.monotonic() - began)
                if left < min(LEAST_SECONDS, item.seconds):
                    print(f"no time left for {', '.join(i.name for i in items[number - 1 :])}", flush=True)
                    break
                box = min(item.seconds + spare, left)
                print(f"[{number}/{len(items)}] {item.name}: {item.what} ({box:.0f} s)", flush=True)
                started = time.monotonic()
                if why := run_box(item, day, box, context):
                    book.add(item.name, Figure(what="stopped", value=None, unit="", note=why), "failed")
                spare = max(0.0, spare + item.seconds - (time.monotonic() - started))
    except KeyboardInterrupt:
        book.add(item.name if item else "", Figure(what="stopped", value=None, unit="", note="interrupted"), "failed")
        return False
    finally:
        write_table(book)
    return True


def write_table(book: Book) -> None:
    """Print the rows of the folder and write them to table.txt."""
    columns = ("item", "what", "figure", "unit", "must", "goal", "verdict", "note")
    text = rows.table([{name: row.get(name) for name in columns} for row in book.read()])
    (book.folder / TABLE).write_text(text + "\n")
    print(text, flush=True)
