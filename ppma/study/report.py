"""`ppma report RUNS --out report/`: tabulate a study from the files of its runs.

RUNS  ->  results (sealed files only)  ->  findings  ->  report.html, table.md, table.tex, table.csv, runs.csv

Every number comes from `scores.npz` of a sealed run. One edited file stops the report before anything is written.
"""

import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from markupsafe import Markup

from ppma.common.files import write_csv, write_text
from ppma.common.pages import render
from ppma.common.plots import STYLE, svg
from ppma.common.statistics import RESAMPLES
from ppma.config.command import DONE, OutFolder, parse
from ppma.config.errors import require
from ppma.study import figures
from ppma.study.findings import Findings, summarize
from ppma.study.results import Collection, collect
from ppma.study.table import NOTHING, cell_rows, grids, percent, run_rows

log = logging.getLogger(__name__)

_WORDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
LATEX = (
    {letter: "\\" + letter for letter in "&%_#${}"}
    | {k: rf"\text{v}{{}}" for k, v in _WORDS.items()}
    | {NOTHING: "---"}
)
"""Replacements of letters that LaTeX reads as commands."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Tabulate finished runs as Markdown, LaTeX, CSV and an HTML page with plots. Edited runs are refused.

    For example:
      ppma report runs/small-study --out report
    """

    runs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
    """The --out of `ppma study`, one of its NAME.study.json files, or any folder of finished runs."""
    out: OutFolder = Path("report")
    """Folder of report.html, table.md, table.tex, table.csv and runs.csv; existing files are replaced."""
    compare: str = ""
    """Name of the method that the others are compared with (default: the study's)."""
    humans: str = ""
    """Name of the method trained with humans, for the gap (default: the study's)."""


def verdicts(findings: Findings) -> list[str]:
    """Return a sentence per protocol and data set: where the method of comparison is significantly better or worse."""
    names, out = findings.collection, []
    for protocol, dataset in findings.columns if names.compare else ():
        own = findings.cell(names.compare, protocol, dataset)
        if own is None:
            continue
        kinds: dict[str, list[str]] = {"better": [], "worse": [], "not significantly different": []}
        for method, title in names.methods.items():
            cell = findings.cell(method, protocol, dataset)
            if cell is not None and cell.behind is not None:
                kinds[cell.behind.verdict].append(f"“{title}”")
        joined = {"better": "better than", "worse": "worse than"}
        parts = [f"{joined.get(kind, kind + ' from')} {', '.join(titles)}" for kind, titles in kinds.items() if titles]
        seeds = len(own.of_seeds)
        over = f"{own.videos} videos, {seeds} seed{'s' if seeds > 1 else ''}"
        out.append(
            f"{names.protocols[protocol]} on {dataset} ({over}): “{names.methods[names.compare]}” reaches "
            f"{percent(own.top1)} %; it is {'; '.join(parts) or 'the only method'} (95 % interval of the paired difference)."
        )
    return out


def texts(findings: Findings, command: str) -> dict[str, str]:
    """Return the Markdown, LaTeX and HTML text of a report by file name; `command` is the one that makes it."""
    names = findings.collection
    plots = (
        ("Accuracy by data set and method", "The small dots are the seeds.", figures.accuracy(findings)),
        ("Gap to training with humans", "Right of 0: below the method trained with humans.", figures.gap(findings)),
        ("Cost against accuracy", "Wall time of all runs that the encoder derives from.", figures.cost(findings)),
    )
    tested = {result.command for result in names.results}
    context = {
        "names": names, "grids": grids(findings), "verdicts": verdicts(findings), "command": command, "resamples": RESAMPLES,
        "shell": shlex.join, "tex": lambda text: "".join(LATEX.get(letter, letter) for letter in text),
        "style": Markup(STYLE), "plots": [(title, note, Markup(svg(plot))) for title, note, plot in plots if plot],
        "one_seed": any(len(cell.of_seeds) == 1 for cell in findings.cells.values()),
        "pretrainings": [command for command in names.commands.values() if command and command not in tested],
    }  # fmt: skip
    return {name: render("ppma.study", name, **context) for name in ("table.md", "table.tex", "report.html")}


def write(findings: Findings, out: Path, command: str) -> None:
    """Write all files of a report to a folder."""
    for name, text in texts(findings, command).items():
        write_text(out / name, text)
    for name, rows in (("table.csv", cell_rows(findings)), ("runs.csv", run_rows(findings))):
        write_csv(out / name, [rows[0].keys(), *(row.values() for row in rows)])


def _with_choices(collection: Collection, config: ReportConfig) -> Collection:
    for name in (config.compare, config.humans):
        known = not name or name in collection.methods
        require(known, f"there is no method {name!r}; the methods are {', '.join(collection.methods)}")
    return replace(collection, compare=config.compare or collection.compare, humans=config.humans or collection.humans)


def main(argv: list[str]) -> int:
    """Run `ppma report ARGV`."""
    config = parse(ReportConfig, argv, prog="ppma report")
    collection = _with_choices(collect(config.runs), config)
    none = f"{config.runs}: none of its {len(collection.missing)} runs has finished; continue with `ppma study`"
    require(bool(collection.results), none)
    findings = summarize(collection)
    write(findings, config.out, shlex.join(["ppma", "report", *argv]))
    for sentence in verdicts(findings):
        log.info("%s", sentence)
    if collection.missing:
        log.warning("%d planned runs are missing; the report lists them", len(collection.missing))
    log.info("%d runs: %s", len(collection.results), config.out / "report.html")
    return DONE
