"""What planted people teach, as a page and as a plot; and the folder that holds the trials.

summarize()  ->  report.md, report.json, report.svg
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ppma.common.files import write_json, write_text
from ppma.common.plots import BLUE, GRAY, ORANGE, svg
from ppma.config.errors import InputError, watch_disk
from ppma.privacy.audit.files import LEAST_DB
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.plant.summary import RECALL, RESIDUAL, SEEN_DB, TALL, summarize
from ppma.privacy.plant.trial import Trial

SETTINGS, PAGE, SUMMARY, PLOT = "settings.json", "report.md", "report.json", "report.svg"
STYLES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)))
"""Of the auditors' lines, in their order."""


def claim(out: Path, settings: dict[str, object]) -> None:
    """Make the folder, or check that it holds trials of these settings."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / SETTINGS).exists():
            with watch_disk(out):
                write_json(out / SETTINGS, settings)
            return
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror}); give a folder of your own") from None
    before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    changed = [f"{key} {before.get(key)}, not {value}" for key, value in settings.items() if before.get(key) != value]
    if changed:
        raise InputError(f"--out {out} holds trials with {'; '.join(changed)}; give another folder")


def write(out: Path, trials: Sequence[Trial], settings: dict[str, object]) -> Path:
    """Write page, plot and numbers; returns the page."""
    summary = summarize(trials)
    contents = {
        SUMMARY: json.dumps({"settings": settings, **summary}, indent=1),
        PLOT: '<?xml version="1.0" encoding="utf-8"?>\n' + svg(plot(summary)),
        PAGE: markdown(summary, settings),
    }
    with watch_disk(out):
        for name, text in contents.items():
            write_text(out / name, text)
    return out / PAGE


def plot(summary: dict[str, Any]) -> Figure:
    """By height: what the mask hides of people, and who is found by whom."""
    rows = summary["heights"]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    axes, places = figure.subplots(), range(len(rows))
    ends = [
        [100 * (row["recall"] - row["low"]) for row in rows.values()],
        [100 * (row["high"] - row["recall"]) for row in rows.values()],
    ]
    axes.errorbar(
        places,
        [100 * r["recall"] for r in rows.values()],
        ends,
        color=BLUE,
        marker="o",
        capsize=3,
        label="pixels hidden (95 %)",
    )
    axes.plot(
        places,
        [100 * (r["found"] or 0) for r in rows.values()],
        "s--",
        color=ORANGE,
        label="found by the remover, per frame",
    )
    for name, style in zip(AUDITORS, STYLES):
        if all(name in r["audited"] for r in rows.values()):
            axes.plot(
                places,
                [100 * r["audited"][name] for r in rows.values()],
                linestyle=style,
                color=GRAY,
                label=f"found by {name}, per frame",
            )
    axes.set_xticks(places, list(rows))
    axes.set_ylim(-3, 103)
    axes.set_xlabel("visible body height, pixels")
    axes.set_ylabel("%")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _goal(held: bool, words: str) -> str:
    return f"- **{'reached' if held else 'missed'}**: {words}"


def _groups(rows: dict[str, dict[str, Any]], first: str) -> str:
    names = list(next(iter(rows.values()))["audited"])
    heads = [
        first,
        "clips",
        "people",
        "pixels hidden, % (95 %)",
        "found by the remover, %",
        *(f"{n}, %" for n in names),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in rows.items():
        hidden = f"{_percent(row['recall'])} ({_percent(row['low'])} to {_percent(row['high'])})"
        cells = [
            name,
            row["clips"],
            row["people"],
            hidden,
            _percent(row["found"]),
            *(_percent(row["audited"].get(n)) for n in names),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _residuals(summary: dict[str, Any]) -> str:
    heads = ("auditor", "frames hit before, %", "after, % (95 %)", "of these on a planted person", "nobody ever there, same paint, %",
             "nobody ever there, no paint, %", "highest score there (operating point)",
             "clips hit after", "at most, % of clips (95 %)")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in summary["residual"].items():
        cells = [
            name,
            _percent(row["before"]),
            f"{_percent(row['after'])} ({_percent(row['low'])} to {_percent(row['high'])})",
            f"{row['on planted']} of {row['hits']}",
            _percent(row["control"]["share"]),
            _percent(row["empty"]["share"]),
            "-" if name == "any" else f"{row['highest alarm']:.2f} ({AUDITORS[name].threshold:g})",
            f"{row['clips']} of {row['of']}",
            _percent(row["upper"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _goals(summary: dict[str, Any]) -> str:
    found, every, pixels = summary["tall and found"], summary["tall"], summary["pixels"]
    hit, seen = summary["residual"]["any"], pixels["seen_db"]
    mask = (
        f"{_percent(found['recall'])} % of the pixels of people of {TALL} px and more whom a detector of the remover finds are"
        f" hidden (95 %: {_percent(found['low'])} to {_percent(found['high'])}; goal {_percent(RECALL)} %); of all of that height,"
        f" whether found or not, {_percent(every['recall'])} %. The remover finds {_percent(every['found'])} % of them in a frame."
    )
    more, low, high = hit["beyond control"]
    residual = (
        f"{_percent(hit['after'])} % of frames with a detection afterwards by any of the auditors, which took no part (95 %:"
        f" {_percent(hit['low'])} to {_percent(hit['high'])}; goal {_percent(RESIDUAL)} %), people of every height included; in"
        f" {hit['clips']} of {hit['of']} clips, so in at most {_percent(hit['upper'])} % of clips (95 %); {hit['on planted']} of these"
        f" {hit['hits']} frames are hit where somebody was planted. The same places where nobody ever was, painted over with the same"
        f" masks, are hit in {_percent(hit['control']['share'])} % of frames, and unpainted in {_percent(hit['empty']['share'])} %: beyond"
        f" what paint gives, {_percent(more)} % of frames (95 %: {_percent(low)} to {_percent(high)})."
    )
    if full := summary["residual, everybody found"]:
        residual += (
            f" In the {full['of']} clips in which the remover finds everybody: {_percent(full['after'])} % of frames, in"
            f" {full['clips']} clips."
        )
    outside = (
        f"outside the mask {pixels['outside_worst_db']:.1f} dB in the worst of {pixels['outside_clips']} clips,"
        f" {pixels['outside_below']} of them below {LEAST_DB:g} dB."
    )
    inside = (
        f"inside, where other frames show the place (still places only, {pixels['seen_clips']} clips):"
        f" {'nothing to measure' if seen is None else f'{seen:.1f} dB'} (goal {SEEN_DB:g} dB); {pixels['seen_below']} of them below."
    )
    return "\n".join(
        [
            _goal(found["recall"] >= RECALL, mask),
            _goal(hit["after"] <= RESIDUAL, residual),
            _goal(not pixels["outside_below"], outside),
            _goal(seen is not None and seen >= SEEN_DB, inside),
        ]
    )


def markdown(summary: dict[str, Any], settings: dict[str, object]) -> str:
    """The page."""
    told = ", ".join(
        f"{name} {value}" for name, value in settings.items() if name not in ("auditors", "plates", "version")
    )
    kinds = "\n\n".join(_groups(rows, kind) for kind, rows in summary["kinds"].items())
    return f"""# Plant and find

{summary["clips"]} clips of virtual people ({summary["natural"]} before natural plates, {summary["moving"]} with a moving place), drawn,
removed with the default set and audited: `ppma plant` with {told}.
People are drawn, not filmed: detectors trained on photographs see them less well, and figures for real people differ. Recall is by pixel;
"found" is per person and frame, in the {summary["frames"]} frames that auditors looked at.

{_goals(summary)}

![Recall by body height]({PLOT})

## Body height

{_groups(summary["heights"], "visible height, px")}

## Motion, crowd, light, place: people of {TALL} px and more whom the remover finds

{kinds}

## What auditors still detect

{_residuals(summary)}

A hit afterwards is a person who was left, or something that looks like one. Where nobody ever was nobody can be left: hits there are false
alarms of the auditors, of what the remover paints and of the places themselves.
"""
