"""`ppma report RUNS --out report/`: the table of a study from the runs' own files.

RUNS  ->  results (sealed files only)  ->  findings  ->  report.html, table.md, table.tex, table.csv, runs.csv

A number gets in through `scores.npz` of a sealed run and in no other way; one edited file stops the report before anything is written.
"""

import logging
import os
import shlex
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.study import page, table
from ppma.study.findings import Findings, find
from ppma.study.results import Collection, collect

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make the paper's table from finished runs: Markdown, LaTeX, CSV and an HTML page with plots. Edited runs are refused.

    For example: ppma report runs/small-study --out report
    """

    runs: tyro.conf.Positional[Path]
    """The --out of `ppma study`, one of its NAME.study.json files, or any folder with finished runs in it."""
    out: Path = Path("report")
    """Folder for report.html, table.md, table.tex, table.csv and runs.csv; files of those names are replaced."""
    compare: str = ""
    """Name of the method that the others are held against; none: the study's."""
    humans: str = ""
    """Name of the method trained with humans, for the gap; none: the study's."""


def _with_choices(collection: Collection, config: ReportConfig) -> Collection:
    for name in (config.compare, config.humans):
        if name and name not in collection.methods:
            raise InputError(f"there is no method {name!r}; there are {', '.join(collection.methods)}")
    return replace(collection, compare=config.compare or collection.compare, humans=config.humans or collection.humans)


def files(findings: Findings, command: str) -> dict[str, str]:
    """What is written, by name."""
    grids, names = table.grids(findings), findings.collection
    words = "".join(f"{sentence}\n\n" for sentence in page.verdicts(findings))
    missing = (
        f"{len(names.missing)} planned runs are not there: {', '.join(names.missing)}\n\n" if names.missing else ""
    )
    return {
        "table.md": f"# {names.title}\n\n{words}{missing}" + "\n".join(table.markdown(grid) for grid in grids),
        "table.tex": "\n".join(table.latex(grid) for grid in grids),
        "table.csv": table.table_csv(findings),
        "runs.csv": table.runs_csv(findings),
        "report.html": page.html(findings, command),
    }


def write(texts: dict[str, str], out: Path) -> None:
    """Each file whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        handle, beside = tempfile.mkstemp(prefix=f".{name}.", dir=out)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(beside).chmod(0o644)
        Path(beside).replace(out / name)


def main(argv: list[str]) -> int:
    """Run `ppma report ARGV`."""
    config = parse(ReportConfig, argv, prog="ppma report")
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out {config.out} is a file; give a folder")
    collection = _with_choices(collect(config.runs), config)
    if not collection.results:
        raise InputError(
            f"{config.runs}: none of its {len(collection.missing)} runs has ended yet; `ppma study` goes on with them"
        )
    findings = find(collection)
    write(files(findings, shlex.join(["ppma", "report", *argv])), config.out)
    for sentence in page.verdicts(findings):
        log.info("%s", sentence)
    if collection.missing:
        log.warning("%d planned runs are not there; the report says which", len(collection.missing))
    log.info("%d runs: %s", len(collection.results), config.out / "report.html")
    return DONE
