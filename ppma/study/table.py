"""The table of a study as text: Markdown, LaTeX, CSV.

Findings  ->  one table of accuracies a protocol, one of differences and costs  ->  strings
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ppma.common.statistics import Accuracy, Difference
from ppma.study.findings import Cell, Findings

NOTHING = "—"
_WORDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
LATEX = (
    {letter: "\\" + letter for letter in "&%_#${}"}
    | {NOTHING: "---"}
    | {k: rf"\text{v}{{}}" for k, v in _WORDS.items()}
)
"""What stands for a letter that LaTeX reads as a command."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A titled table of texts; the first column names the row."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(value: Accuracy, *, signed: bool = False) -> str:
    """In per cent, with the interval."""
    form = "{:+.1f}" if signed else "{:.1f}"
    middle, low, high = (form.format(100 * number) for number in (value.value, value.low, value.high))
    return f"{middle} ({low} to {high})"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    return NOTHING if seconds is None else str(timedelta(seconds=round(seconds)))


def significance(found: Difference | None, p: float | None) -> str:
    """A difference with its interval, p where it is given, and the verdict."""
    if found is None:
        return NOTHING
    smallest = 0.001  # three digits of p are told, as many as the resamples support
    shown = "" if p is None else f", p < {smallest}" if p < smallest else f", p = {p:.3f}"
    return f"{percent(found.by, signed=True)}{shown}"


def accuracies(findings: Findings, protocol: str) -> Grid:
    """Methods by data sets: top-1."""
    names = findings.collection
    datasets = [dataset for p, dataset in findings.columns if p == protocol]
    heads = ("pre-training", *(f"{dataset}, top-1 % (95 %)" for dataset in datasets))
    rows = []
    for method, title in names.methods.items():
        cells = [findings.cell(method, protocol, dataset) for dataset in datasets]
        rows.append((title, *(_accuracy(cell, findings) for cell in cells)))
    return Grid(title=names.protocols[protocol], heads=heads, rows=tuple(rows))


def _accuracy(cell: Cell | None, findings: Findings) -> str:
    if cell is None:
        return NOTHING
    most = max(len(other.of_seeds) for other in findings.cells.values())
    few = f" [{len(cell.of_seeds)} of {most} seeds]" if len(cell.of_seeds) < most else ""
    return percent(cell.top1) + few


def details(findings: Findings, protocol: str, dataset: str) -> Grid:
    """One column in full: top-5, seeds, difference to the method of comparison, gap to humans, cost."""
    names = findings.collection
    heads = ["pre-training", "top-1 % (95 %)", "top-5 % (95 %)", "seeds, top-1 %"]
    heads += [f"“{names.methods[names.compare]}” better by, points (95 %)"] if names.compare else []
    heads += [f"gap to “{names.methods[names.humans]}”, points (95 %)"] if names.humans else []
    heads += ["time of pre-training", "time of test"]
    rows = []
    for method, title in names.methods.items():
        cell = findings.cell(method, protocol, dataset)
        if cell is None:
            continue
        row = [
            title,
            percent(cell.top1),
            percent(cell.top5),
            ", ".join(f"{100 * v:.1f}" for v in cell.of_seeds.values()),
        ]
        row += [significance(cell.behind, cell.p_holm)] if names.compare else []
        row += [significance(cell.gap, None)] if names.humans else []
        rows.append((*row, duration(cell.pretrain_seconds), duration(cell.test_seconds)))
    return Grid(title=f"{names.protocols[protocol]} on {dataset}", heads=tuple(heads), rows=tuple(rows))


def grids(findings: Findings) -> list[Grid]:
    """All tables, the wide ones first."""
    protocols = list(dict.fromkeys(protocol for protocol, _ in findings.columns))
    wide = [accuracies(findings, protocol) for protocol in protocols]
    return wide + [details(findings, protocol, dataset) for protocol, dataset in findings.columns]


def markdown(grid: Grid) -> str:
    """A Markdown table under its title."""
    lines = [grid.heads, ("---",) * len(grid.heads), *grid.rows]
    body = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in lines)
    return f"**{grid.title}**\n\n{body}"


def latex(grid: Grid) -> str:
    """A LaTeX table for booktabs."""
    lines = [" & ".join(map(_escaped, cells)) + r" \\" for cells in (grid.heads, *grid.rows)]
    columns = "l" + "r" * (len(grid.heads) - 1)
    inside = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    table = [rf"\begin{{tabular}}{{{columns}}}", *inside, r"\end{tabular}"]
    return (
        "\n".join([r"\begin{table}", r"\centering", rf"\caption{{{_escaped(grid.title)}}}", *table, r"\end{table}"])
        + "\n"
    )


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _three(name: str, value: Accuracy | None) -> dict[str, object]:
    parts = (value.value, value.low, value.high) if value else ("", "", "")
    return dict(zip((name, f"{name}_low", f"{name}_high"), parts))


def table_csv(findings: Findings) -> str:
    """A line for each cell, shares between 0 and 1, seconds."""
    lines = []
    for cell in findings.cells.values():
        facts: dict[str, object] = {
            "method": cell.method, "protocol": cell.protocol, "dataset": cell.dataset, "seeds": len(cell.of_seeds), "videos": cell.videos
        }  # fmt: skip
        facts |= _three("top1", cell.top1) | _three("top5", cell.top5)
        facts |= _three("behind", cell.behind.by if cell.behind else None)
        facts |= {"behind_p": cell.behind.p if cell.behind else "", "behind_p_holm": cell.p_holm if cell.behind else ""}
        facts |= _three("gap", cell.gap.by if cell.gap else None) | {"gap_p": cell.gap.p if cell.gap else ""}
        facts |= {"pretrain_seconds": cell.pretrain_seconds, "test_seconds": cell.test_seconds}
        lines.append(facts)
    return _csv(lines)


def runs_csv(findings: Findings) -> str:
    """A line for each run: what was counted, its hashes, and the command that does it again."""
    return _csv([
        {
            "method": result.method, "protocol": result.protocol, "dataset": result.dataset, "seed": result.seed,
            "top1": float(result.right_DV.mean()), "top5": float(result.right5_DV.mean()), "videos": result.right_DV.shape[1],
            "seconds": result.seal.seconds, "device": result.device, "folder": result.folder.name,
            "config_sha256": result.seal.files.get("config.json", ""), "scores_sha256": result.seal.files["scores.npz"],
            "weights_sha256": result.seal.weights, "init_sha256": result.seal.init,
            "manifests_sha256": " ".join(f"{name}={digest}" for name, digest in result.seal.manifests.items()),
        }
        for result in findings.collection.results
    ])  # fmt: skip


def _csv(lines: Sequence[dict[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
