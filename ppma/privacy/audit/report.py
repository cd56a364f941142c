"""Report an audit as JSON, as one self-contained HTML page, as a datasheet, and as Croissant metadata.

findings and verdicts           ->  content(): audit.json, per clip, class and detector, with bounds
content                         ->  table(): clips.csv, a row per clip
content                         ->  html(): text, a plot, tables, and a contact sheet to sign
rows of the manifest, content   ->  datasheet(): Datasheets for Datasets (Gebru et al., 2021)
                                ->  croissant(): Croissant 1.0 (MLCommons), as JSON-LD

The datasheet contains what the audit knows, and asks the owner for the rest.
"""

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ppma import __version__
from ppma.common import pages, statistics
from ppma.common.files import file_sha256
from ppma.common.plots import BLUE, GRAY, ORANGE, STYLE, svg
from ppma.loaders.sources.manifest import HEADER, Clip
from ppma.privacy.audit.clip import COLORS, NEAR_MISS, Findings, InspectorConfig
from ppma.privacy.audit.judge import TALL, ClipVerdict, Judged, by_class, residual, summarize
from ppma.privacy.detectors.auditors import AUDITORS, POINTS_DATE
from ppma.privacy.detectors.weights import WEIGHTS
from ppma.privacy.verdict import CANNOT_TELL, FAILED, FLOOR, FORMAT, PASSED, VERDICTS

SHEET = 48
"""Frames on the contact sheet: of failed clips, then "cannot tell", then passed; the highest scores first."""
MOST_CLIPS = 200
"""Clips in the page's table, the most urgent first; clips.csv has all of them."""
CSS_CLASSES = {PASSED: "ok", FAILED: "bad", CANNOT_TELL: "dim"}
WORDS = {PASSED: "no detection", FAILED: "failed", CANNOT_TELL: "cannot tell"}
"""The verdicts as the page prints them: nothing is said to have passed that was only not detected."""
URGENCY = (FAILED, CANNOT_TELL, PASSED)
PEOPLE = ("people", "people_missed", "people_painted_back")
"""Sightings of people in the original, per clip: all, not hidden, painted back."""
NUMBERS = {
    **dict.fromkeys(("label", "frames", "width", "height", "key_frame_spacing"), "sc:Integer"),
    **dict.fromkeys(("fps", "start_seconds", "end_seconds", "duration_seconds"), "sc:Float"),
}
"""Croissant types of the manifest's columns that are not text."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was audited, who made the masks, and what judged them."""

    manifest: Path
    root: Path
    """Folder that the manifest's paths are relative to."""
    makers: Sequence[str]
    inspector: InspectorConfig


def content(judged: Judged, facts: Facts) -> dict[str, Any]:
    """Return the content of audit.json from the findings and verdict of each clip."""
    counts = Counter(verdict.verdict for _, verdict in judged)
    names = facts.inspector.detectors
    bundled = [key for name in names if (key := AUDITORS[name].weights)]
    return {
        "format": FORMAT,
        "version": f"ppma {__version__}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "manifest": facts.manifest.name,
        "command": shlex.join(sys.argv),
        "models": {file: sha256 for key in bundled for file, (_, sha256) in WEIGHTS[key].members.items()}
        | {model.path.name: model.sha256 for model in facts.inspector.models},
        "makers": list(facts.makers),
        "auditors": list(names),
        "operating_points": {name: AUDITORS[name].threshold for name in names},
        "points_date": POINTS_DATE,
        "licences": {name: AUDITORS[name].license for name in names},
        "frames": facts.inspector.frames,
        "confidence": statistics.CONFIDENCE,
        "verdicts": {name: counts[name] for name in VERDICTS},
        "rates": {name: asdict(rate) for name, rate in summarize(judged).items()},
        "sensitivity_floor": FLOOR,
        "residual": [asdict(one) for one in residual(judged)],
        "classes": {
            name: {
                "verdicts": dict(Counter(verdict.verdict for _, verdict in clips)),
                "rates": {detector: asdict(rate) for detector, rate in summarize(clips).items()},
            }
            for name, clips in by_class(judged).items()
        },
        "clips": [_clip(findings, verdict) for findings, verdict in judged],
    }


def _clip(findings: Findings, verdict: ClipVerdict) -> dict[str, Any]:
    kept = ("path", "name", "class_name", "sha256", "frames", "looked_at", "original", "makers", "method")
    detectors = {
        name: {
            **asdict(one),
            "best_before": max(findings.detectors[name].before, default=None),
            "best_after": max(findings.detectors[name].after, default=None),
        }
        for name, one in verdict.detectors.items()
    }
    return {
        **{name: getattr(findings, name) for name in (*kept, "outside_db", "inside_change")},
        "people": len(findings.people),
        "people_missed": sum(person.missed for person in findings.people),
        "people_painted_back": sum(person.painted_back for person in findings.people),
        "spiked": verdict.together.spiked,
        "spiked_found": verdict.together.found,
        "verdict": verdict.verdict,
        "says": verdict.says,
        "detectors": detectors,
        "checks": {name: asdict(check) for name, check in findings.checks.items()},
    }


def html(judged: Judged, audit: dict[str, Any]) -> str:
    """Return the report as an HTML page; `audit` is the content of audit.json."""

    def nearness(findings: Findings) -> float:
        scores = findings.detectors.items()
        return max((max(s.after, default=0.0) / AUDITORS[name].threshold for name, s in scores), default=0.0)

    def urgency(one: tuple[Findings, ClipVerdict]) -> tuple[Any, ...]:
        return URGENCY.index(one[1].verdict), -nearness(one[0]), one[0].name

    return pages.render(
        __package__,
        "report.html",
        audit=audit,
        auditors=AUDITORS,
        checks=_summarize_checks(audit["clips"]),
        clips=_most_urgent(audit)[:MOST_CLIPS],
        floor=FLOOR,
        colors=COLORS,
        css=CSS_CLASSES,
        near_miss=NEAR_MISS,
        originals=any(findings.original for findings, _ in judged),
        people={name: sum(clip[name] for clip in audit["clips"]) for name in PEOPLE},
        plot=svg(plot_rates(audit["rates"])),
        sheet=sorted(judged, key=urgency)[:SHEET],
        style=STYLE,
        tall=TALL,
        residual=audit["residual"],
        verdicts=VERDICTS,
        words=WORDS,
    )


def _summarize_checks(clips: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Count the results of each check, and quote one: a failure if there is any."""
    found = {}
    for name in clips[0]["checks"]:
        held = Counter(clip["checks"][name]["held"] for clip in clips)
        failed = next((clip for clip in clips if clip["checks"][name]["held"] is False), None)
        says = f"{failed['name']}: {failed['checks'][name]['says']}" if failed else clips[0]["checks"][name]["says"]
        css = "bad" if held[False] else "ok" if held[True] else "dim"
        found[name] = {"held": held[True], "failed": held[False], "unknown": held[None], "says": says, "css": css}
    return found


def table(audit: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return the rows of clips.csv, a header first: every clip, the most urgent first."""
    columns = ("path", "verdict", *PEOPLE, "spiked", "spiked_found", "says")
    return [columns, *(tuple(clip[name] for name in columns) for clip in _most_urgent(audit))]


def _most_urgent(audit: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(audit["clips"], key=lambda clip: (URGENCY.index(clip["verdict"]), clip["name"]))


def datasheet(rows: Sequence[Clip], audit: dict[str, Any]) -> str:
    """Return the datasheet as Markdown from the rows of the manifest and the content of audit.json."""
    columns = ("source", "domain", "class_name", "licence")
    values = {name: [getattr(row, name) for row in rows] for name in columns}
    values["size"] = [f"{row.width} x {row.height}" for row in rows]
    counts = {
        name: ", ".join(f"{value or 'not stated'} ({count})" for value, count in sorted(Counter(column).items()))
        for name, column in values.items()
    }
    return pages.render(__package__, "datasheet.md", audit=audit, rows=rows, counts=counts)


def croissant(rows: Sequence[Clip], audit: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """Return Croissant metadata: the manifest as a table with typed columns, and the clips that it names.

    If the rows name no source, the root's name is the data set's.
    """
    text = pages.render(
        __package__,
        "croissant.json",
        audit=audit,
        count=len(rows),
        fields={name: NUMBERS.get(name, "sc:Text") for name in HEADER},
        licenses=sorted({row.licence for row in rows if row.licence}) or "not stated",
        manifest=facts.manifest,
        name=rows[0].source or facts.root.resolve().name,
        sha256=file_sha256(facts.manifest),
        suffixes=sorted({Path(row.path).suffix for row in rows} - {""}) or [".jpg"],
    )
    return dict(json.loads(text))


def plot_rates(rates: dict[str, dict[str, Any]]) -> Figure:
    """Plot each detector's share of frames with a detection before and after, and of known people that it finds."""
    figure = Figure(figsize=(8.6, 0.42 * len(rates) + 1.0), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(rates)), ["any of them" if name == "any" else name for name in rates])
    axes.set(xlim=(-2, 102), ylim=(len(rates) - 0.5, -0.5), xlabel="% of inspected frames, or of known people")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    for y, rate in enumerate(rates.values()):
        before, after = 100 * rate["before"], 100 * rate["after"]
        axes.plot([before, after], [y, y], color="#d5dce3", linewidth=3, zorder=1)
        if rate["sensitivity"] is not None:
            found = 100 * rate["sensitivity"]
            axes.plot(found, y, "|", color=GRAY, markersize=13, label="known people found", zorder=2)
        axes.plot(before, y, "o", color=ORANGE, label="frames with a detection, before", zorder=3)
        axes.plot(after, y, "o", color=BLUE, label="after", zorder=3)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles))
    axes.legend(once.values(), once.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure
