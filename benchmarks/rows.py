"""Store, compare, print and plot benchmark rows.

    measured fields  ->  row = fields + benchmark, machine, versions, commit, date  ->  results/<benchmark>.jsonl (--record)

A benchmark calls `report`. Rows are flat. `spread` is half the interquartile range of the repetitions over their
median: 0.02 means that a second run differs by about 2 %. Rows compare when benchmark, machine, and all text and
integer fields (`keys_of`) are equal.
"""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from json import dumps, loads
from pathlib import Path
from typing import Any

from ppma.common.packages import installed_versions
from ppma.config.command import OutFile
from ppma.config.errors import InputError

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "timm", "transformers", "nvidia-dali-cuda130", "av", "numpy")
DESCRIPTION = {"benchmark", "machine", "versions", "commit", "date", "spread"}
"""Fields that say where a row comes from, not what was measured."""


PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Flags shared by all benchmarks: what to do with the rows."""

    json: OutFile | None = None
    """Write the rows as a JSON list to this file."""
    record: bool = False
    """Append the rows to the history in benchmarks/results/, which is in git."""
    compare: bool = False
    """Compare the rows with the newest ones in benchmarks/results/."""
    plot: OutFile | None = None
    """Plot the rows to this file (png, svg or pdf)."""

    def __post_init__(self) -> None:
        if self.plot is not None and self.plot.suffix not in PICTURES:
            raise InputError(f"--plot {self.plot}: give a file that ends in {', '.join(PICTURES)}")

    def at_least(self, least: float, *names: str) -> None:
        """Raise InputError if a field, or one of its values, is below `least`."""
        for name in names:
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,), default=least) < least:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least {least:g}")


def machine() -> str:
    """Return the name of the GPU, or of the processor if there is no GPU, and the number of CPUs this process may
    use."""
    import torch

    cpus = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {cpus} CPUs"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cpus} CPUs"


def versions() -> str:
    """Return the installed versions of the packages that affect speed, as one string."""
    found = {"python": platform.python_version()} | installed_versions(PACKAGES)
    return ", ".join(f"{name} {version}" for name, version in found.items())


def commit() -> str:
    """Return the commit of the code, with a + if tracked files are modified; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--match="]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def spread(values: Sequence[float]) -> float | None:
    """Return half the interquartile range over the median; None for fewer than three values."""
    if len(values) < 3:
        return None
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle if middle else 0.0


def describe(benchmark: str, measured: Sequence[Row]) -> list[Row]:
    """Return the rows of a run with machine, versions, commit and date added."""
    where = {"machine": machine(), "versions": versions(), "commit": commit()}
    where["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    return [{"benchmark": benchmark, **row, **where} for row in measured]


def history(benchmark: str, folder: Path = RESULTS) -> list[Row]:
    """Return every stored row of a benchmark, oldest first."""
    file = folder / f"{benchmark}.jsonl"
    return [loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def append(rows: Sequence[Row], folder: Path = RESULTS) -> None:
    """Append rows to the history of their benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with (folder / f"{row['benchmark']}.jsonl").open("a") as file:
            file.write(dumps(row) + "\n")


def comparison(new: Sequence[Row], old: Sequence[Row], keys: Sequence[str], measure: str) -> list[Row]:
    """Compare each new row with the newest old row that has the same keys and machine.

    Returns:
        One row per match: keys, old and new value of `measure`, their ratio, and the commit of the old row.
    """
    found = []
    for row in new:
        same = [o for o in old if all(o.get(k) == row.get(k) for k in (*keys, "machine")) and o.get(measure)]
        if same and row.get(measure) is not None:
            before, now = same[-1][measure], row[measure]
            since = {"old": before, "new": now, "new_over_old": now / before, "old_commit": same[-1]["commit"]}
            found.append({k: row.get(k) for k in keys} | since)
    return found


def plain(value: Any) -> str:
    """Format a value as a table cell."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Row]) -> str:
    """Format rows as aligned columns, without the fields that are constant within a run."""
    columns = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in DESCRIPTION - {"spread"}]
    cells = [columns, *([plain(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def draw(rows: Sequence[Row], keys: Sequence[str], measure: str, file: Path) -> None:
    """Plot `measure` as one bar per row, labeled with the keys that differ between rows and colored by the first of
    them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.get(measure) is not None]
    named = [key for key in keys if len({row.get(key) for row in shown}) > 1] or list(keys[:1])
    labels = [", ".join(_words(key, row.get(key)) for key in named) for row in shown]
    firsts = list(dict.fromkeys(row.get(named[0]) for row in shown)) if named else []
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(shown)), layout="constrained")
    colors = [f"C{firsts.index(row.get(named[0])) % 10}" for row in shown]
    bars = axes.barh(range(len(shown)), [row[measure] for row in shown], color=colors)
    axes.bar_label(bars, fmt="{:.4g}", padding=3, fontsize=8)
    axes.set_yticks(range(len(shown)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(measure.replace("_per_", "/").replace("_", " "))
    axes.set_title(f"{shown[0]['benchmark']}: {shown[0]['machine']}" if shown else measure, fontsize=9)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _words(key: str, value: Any) -> str:
    """Format a key's value for a label: text unchanged, a number with the name of its key."""
    return plain(value) if isinstance(value, str) or value is None else f"{plain(value)} {key}"


def keys_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of the text and integer fields, which say what was measured, without the repeat counts."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n not in DESCRIPTION | {"repeats", "rounds"}]
    return [name for name in names if all(isinstance(row.get(name), str | int | None) for row in rows)]


def report(
    measured: Sequence[Row],
    config: ReportConfig,
    *,
    benchmark: str,
    measure: str = "clips_per_s",
    folder: Path = RESULTS,
) -> list[Row]:
    """Complete the measured fields of a run to rows, print them, and record them if that is asked for.

    Args:
        measured: One dict of fields per row.
        config: Whether to record the rows, write them as JSON, compare them with the history, or plot them.
        benchmark: Name of the benchmark and of its file in `folder`.
        measure: The field that is compared and plotted.
        folder: Where the history is kept.

    Returns:
        The rows with benchmark, machine, versions, commit and date.
    """
    rows = describe(benchmark, measured)
    print(table(rows))
    keys = keys_of(rows)
    if config.compare:
        changes = comparison(rows, history(benchmark, folder), keys, measure)
        text = f"{measure}, against the newest stored rows:\n{table(changes)}"
        print("", text if changes else "no stored rows to compare with", sep="\n")
    if config.record:
        append(rows, folder)
    if config.json:
        config.json.write_text(dumps(rows, indent=1) + "\n")
    if config.plot:
        draw(rows, keys, measure, config.plot)
    return rows
