"""Lay out the table of a study: grids of text for Markdown, LaTeX and HTML, and rows of numbers for CSV.

Findings  ->  a grid of accuracies per protocol, a grid of differences and costs per protocol and data set
"""

from dataclasses import dataclass
from datetime import timedelta

from ppma.common.statistics import Accuracy, Difference
from ppma.study.findings import Cell, Findings

NOTHING = "—"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A titled table of text; the first column names the row."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(value: Accuracy, *, signed: bool = False) -> str:
    """Format a share and its interval in percent, "12.3 (10.1 to 14.5)"."""
    form = "{:+.1f}" if signed else "{:.1f}"
    middle, low, high = (form.format(100 * number) for number in (value.value, value.low, value.high))
    return f"{middle} ({low} to {high})"


def _duration(seconds: float | None) -> str:
    return NOTHING if seconds is None else str(timedelta(seconds=round(seconds)))


def _difference(found: Difference | None, p: float | None) -> str:
    """Format a difference with its interval, and its p-value to three digits, as many as the resamples support."""
    if found is None:
        return NOTHING
    shown = "" if p is None else ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
    return percent(found.by, signed=True) + shown


def _accuracy(cell: Cell | None, findings: Findings) -> str:
    if cell is None:
        return NOTHING
    most = max(len(other.of_seeds) for other in findings.cells.values())
    few = f" [{len(cell.of_seeds)} of {most} seeds]" if len(cell.of_seeds) < most else ""
    return percent(cell.top1) + few


def accuracies(findings: Findings, protocol: str) -> Grid:
    """Return top-1 of each method on each data set under one protocol."""
    names = findings.collection
    datasets = [dataset for p, dataset in findings.columns if p == protocol]
    rows = tuple(
        (title, *(_accuracy(findings.cell(method, protocol, dataset), findings) for dataset in datasets))
        for method, title in names.methods.items()
    )
    heads = ("pre-training", *(f"{dataset}, top-1 % (95 %)" for dataset in datasets))
    return Grid(title=names.protocols[protocol], heads=heads, rows=rows)


def details(findings: Findings, protocol: str, dataset: str) -> Grid:
    """Return top-1, top-5, seeds, difference to the method of comparison, gap to humans, and cost of one column."""
    names = findings.collection
    better = (f"“{names.methods[names.compare]}” better by, points (95 %)",) if names.compare else ()
    gap = (f"gap to “{names.methods[names.humans]}”, points (95 %)",) if names.humans else ()
    rows = []
    for method, title in names.methods.items():
        if cell := findings.cell(method, protocol, dataset):
            seeds = ", ".join(f"{100 * value:.1f}" for value in cell.of_seeds.values())
            row = [title, percent(cell.top1), percent(cell.top5), seeds]
            row += [_difference(cell.behind, cell.p_holm)] if better else []
            row += [_difference(cell.gap, None)] if gap else []
            rows.append((*row, _duration(cell.pretrain_seconds), _duration(cell.test_seconds)))
    heads = ("pre-training", "top-1 % (95 %)", "top-5 % (95 %)", "seeds, top-1 %", *better, *gap)
    heads += ("time of pre-training", "time of test")
    return Grid(title=f"{names.protocols[protocol]} on {dataset}", heads=heads, rows=tuple(rows))


def grids(findings: Findings) -> list[Grid]:
    """Return all tables, accuracies first."""
    protocols = dict.fromkeys(protocol for protocol, _ in findings.columns)
    wide = [accuracies(findings, protocol) for protocol in protocols]
    return wide + [details(findings, protocol, dataset) for protocol, dataset in findings.columns]


def _three(name: str, value: Accuracy | None) -> dict[str, object]:
    parts = (value.value, value.low, value.high) if value else ("", "", "")
    return dict(zip((name, f"{name}_low", f"{name}_high"), parts))


def cell_rows(findings: Findings) -> list[dict[str, object]]:
    """Return a row per cell for table.csv; accuracies are shares between 0 and 1, times are seconds."""
    rows = []
    for cell in findings.cells.values():
        row: dict[str, object] = {"method": cell.method, "protocol": cell.protocol, "dataset": cell.dataset}
        row |= {"seeds": len(cell.of_seeds), "videos": cell.videos}
        row |= _three("top1", cell.top1) | _three("top5", cell.top5)
        row |= _three("behind", cell.behind.by if cell.behind else None)
        row |= {"behind_p": cell.behind.p if cell.behind else "", "behind_p_holm": cell.p_holm if cell.behind else ""}
        row |= _three("gap", cell.gap.by if cell.gap else None) | {"gap_p": cell.gap.p if cell.gap else ""}
        rows.append(row | {"pretrain_seconds": cell.pretrain_seconds, "test_seconds": cell.test_seconds})
    return rows


def run_rows(findings: Findings) -> list[dict[str, object]]:
    """Return a row per run for runs.csv: its accuracy, time, device and hashes."""
    return [
        {
            "method": result.method, "protocol": result.protocol, "dataset": result.dataset, "seed": result.seed,
            "top1": float(result.right_DV.mean()), "top5": float(result.right5_DV.mean()), "videos": result.right_DV.shape[1],
            "seconds": result.seal.seconds, "device": result.device, "folder": result.folder.name,
            "config_sha256": result.seal.files.get("config.json", ""), "scores_sha256": result.seal.files["scores.npz"],
            "weights_sha256": result.seal.weights, "init_sha256": result.seal.init,
            "manifests_sha256": " ".join(f"{name}={digest}" for name, digest in result.seal.manifests.items()),
        }
        for result in findings.collection.results
    ]  # fmt: skip
