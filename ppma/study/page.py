"""The report as one HTML file that needs nothing beside it.

Findings  ->  verdicts in words, plots, tables, how it was computed, each run with its command and hashes  ->  HTML
"""

import shlex
from html import escape

from ppma.common.plots import STYLE, svg
from ppma.common.statistics import RESAMPLES
from ppma.study import figures
from ppma.study.findings import Findings
from ppma.study.results import Result
from ppma.study.table import Grid, grids, percent


def _table(grid: Grid, emphasised: str) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in grid.heads)
    rows = "".join(
        f"<tr{' class=best' if row[0] == emphasised else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n"
        for row in grid.rows
    )
    return f"<h3>{escape(grid.title)}</h3>\n<div class=wide><table><tr>{head}</tr>\n{rows}</table></div>\n"


def verdicts(findings: Findings) -> list[str]:
    """One sentence for each protocol and data set: what the method of comparison is better than, beyond the intervals."""
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
        says = {
            "better": "better than",
            "worse": "worse than",
            "not significantly different": "not significantly different from",
        }
        parts = [f"{says[kind]} {', '.join(titles)}" for kind, titles in kinds.items() if titles]
        seeds = len(own.of_seeds)
        over = f"{own.videos} videos, {seeds} seed{'s' if seeds > 1 else ''}"
        out.append(
            f"{names.protocols[protocol]} on {dataset} ({over}): “{names.methods[names.compare]}” reaches {percent(own.top1)} %; "
            f"it is {'; '.join(parts) or 'alone'} (95 % interval of the paired difference)."
        )
    return out


def _method(findings: Findings) -> str:
    seeds = {len(cell.of_seeds) for cell in findings.cells.values()}
    one = " With one seed they say nothing about other seeds." if 1 in seeds else ""
    names = findings.collection
    gap = "" if names.humans else " No method here was trained with humans, so there is no gap to give."
    return (
        "<p class=note>Accuracies are counted from the scores of each run, whose files hash to what they hashed to when the run"
        f" ended. Values are means over seeds; 95 % intervals come from {RESAMPLES:,} resamples of seeds and videos together (pigeonhole"
        f" bootstrap).{one} Differences are paired over the same seeds and videos; p is corrected by Holm for the methods of one column."
        f" Times are wall times, with whatever else the machine was doing.{gap}</p>\n"
    )


def _run(result: Result, title: str) -> str:
    hashes = {"config.json": result.seal.files.get("config.json"), "scores.npz": result.seal.files["scores.npz"],
              "weights": result.seal.weights, "started from": result.seal.init, **result.seal.manifests}  # fmt: skip
    lines = "\n".join(f"{name:<24} {digest}" for name, digest in hashes.items() if digest)
    command = f"<pre>{escape(shlex.join(result.command))}</pre>" if result.command else ""
    where = f"{result.folder.name}, {result.device}, {result.seal.seconds:.0f} s"
    head = f"{escape(title)}, {escape(result.protocol)}, {escape(result.dataset)}, seed {result.seed}: {100 * result.right_DV.mean():.1f} %"
    return f"<details><summary>{head}</summary><p class=note>{escape(where)}</p>{command}<pre>{escape(lines)}</pre></details>\n"


def _others(findings: Findings) -> str:
    """Commands of the runs that are not tested themselves."""
    tested = {result.command for result in findings.collection.results}
    rest = [c for c in findings.collection.commands.values() if c and c not in tested]
    text = "\n".join(escape(shlex.join(command)) for command in rest)
    return (
        f"<details><summary>The pre-trainings: {len(rest)} commands</summary><pre>{text}</pre></details>\n"
        if rest
        else ""
    )


def html(findings: Findings, command: str) -> str:
    """The page."""
    names = findings.collection
    plots = (
        ("Accuracy by data set and method", "The small dots are the seeds.", figures.accuracy(findings)),
        ("Gap to training with humans", "Right of 0: below the method trained with humans.", figures.gap(findings)),
        ("Cost against accuracy", "Wall time of all that the encoder came from.", figures.cost(findings)),
    )
    drawn = "".join(
        f"<h2>{title}</h2>\n<p class=note>{note}</p>\n{svg(figure)}\n"
        for title, note, figure in plots
        if figure is not None
    )
    words = "".join(f"<p>{escape(sentence)}</p>\n" for sentence in verdicts(findings))
    missing = ""
    if names.missing:
        missing = f"<p><b>{len(names.missing)} planned runs are not there:</b> {escape(', '.join(names.missing))}</p>\n"
    tables = "".join(_table(grid, names.methods.get(names.compare, "")) for grid in grids(findings))
    runs = "".join(_run(result, names.methods[result.method]) for result in names.results)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(names.title)}</title>\n<style>{STYLE}</style>\n<h1>{escape(names.title)}</h1>\n{words}{missing}{drawn}"
        f"<h2>Tables</h2>\n{tables}{_method(findings)}<h2>Runs, commands, hashes</h2>\n"
        f"<p class=note>This page: <code>{escape(command)}</code></p>\n{_others(findings)}{runs}</html>\n"
    )
