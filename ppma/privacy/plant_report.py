"""What planted people teach, as numbers, as a page and as a plot.

    trials  ->  summarize(): Group of people by height, motion, crowd, light, place; residual detections; pixels  ->  report.md, .json, .svg

The unit of an interval is the clip: people in one clip, and frames of it, are no independent witnesses.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppma.fanout import watch_disk
from ppma.loaders.errors import InputError
from ppma.loaders.manifest import write_atomically
from ppma.privacy import audit_bounds
from ppma.privacy.audit_detectors import AUDITORS
from ppma.privacy.audit_files import LEAST_DB
from ppma.privacy.audit_judge import hits
from ppma.privacy.plant_trial import Sight, Trial
from ppma.study.figures import BLUE, GREY, ORANGE, svg
from ppma.synthetic.production import write_complete

SETTINGS, PAGE, SUMMARY, PLOT = "settings.json", "report.md", "report.json", "report.svg"
TALL = 48
"""Pixels of body height from which on the goal for the mask holds."""
RECALL, RESIDUAL, SEEN_DB = 0.98, 0.01, 24.0
"""The goals: pixels of the mask, frames with a residual detection, dB where the place was seen."""
STYLES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)))
"""Of the auditors' lines, in their order."""
HEIGHTS = ((16, 32), (32, 48), (48, 64), (64, 96), (96, 128), (128, 1000))


@dataclass(frozen=True, kw_only=True)
class Group:
    """People of one kind, over all trials."""

    clips: int
    people: int
    recall: float
    """Share of their pixels that the mask hides."""
    low: float
    high: float
    """95 %, clips drawn anew."""
    found: float | None
    """Share of sights in which a detector of the remover finds them; None where nobody asked."""
    audited: dict[str, float]
    """The same of each auditor, in the original."""
    left: dict[str, float]
    """Share of sights in which each auditor still finds them afterwards."""


Chosen = Sequence[tuple[Trial, Sight]]


def group(chosen: Chosen) -> Group:
    """The figures of these sights."""
    pixels, hidden = defaultdict[int, int](int), defaultdict[int, int](int)
    for trial, sight in chosen:
        pixels[trial.design["number"]] += sight.pixels
        hidden[trial.design["number"]] += sight.hidden
    recall, low, high = audit_bounds.frame_rate([hidden[n] for n in pixels], list(pixels.values()))
    asked = [sight for _, sight in chosen if sight.found is not None]
    names = list(asked[0].audited) if asked else []
    return Group(
        clips=len(pixels),
        people=len({(trial.design["number"], sight.person) for trial, sight in chosen}),
        recall=recall,
        low=low,
        high=high,
        found=float(np.mean([bool(sight.found) for sight in asked])) if asked else None,
        audited={name: float(np.mean([sight.audited[name] for sight in asked])) for name in names},
        left={name: float(np.mean([sight.left[name] for sight in asked])) for name in names},
    )


def _met(trials: Sequence[Trial]) -> set[tuple[int, int]]:
    """(clip, person) whom a detector of the remover finds in one of the frames that were asked for."""
    return {(t.design["number"], s.person) for t in trials for s in t.sights if s.found}


KINDS: dict[str, Callable[[Trial, Sight], str]] = {
    "camera": lambda trial, _: "moving place" if trial.moving else "still place",
    "crowd": lambda trial, _: "1 person" if trial.people == 1 else "2 or 3" if trial.people < 4 else "4 to 8",
    "light": lambda trial, _: f"light: {trial.design['light']}",
    "place": lambda trial, _: "natural plate" if trial.design["plate"] else "drawn place",
}


def summarize(trials: Sequence[Trial]) -> dict[str, Any]:
    """Everything that the page says, as numbers."""
    every = [(trial, sight) for trial in trials for sight in trial.sights]
    tall = [(trial, sight) for trial, sight in every if sight.height >= TALL]
    met, names = _met(trials), [*trials[0].findings.detectors, "any"]
    complete = [t for t in trials if all((t.design["number"], s.person) in met for s in t.sights)]
    found = [(trial, sight) for trial, sight in tall if (trial.design["number"], sight.person) in met]
    return {
        "clips": len(trials),
        "natural": sum(bool(trial.design["plate"]) for trial in trials),
        "moving": sum(trial.moving for trial in trials),
        "frames": sum(len(trial.findings.looked_at) for trial in trials),
        "tall and found": asdict(group(found)),
        "tall": asdict(group(tall)),
        "all": asdict(group(every)),
        "heights": _by_height(every),
        "kinds": {kind: _by(found, tell) for kind, tell in KINDS.items()},
        "residual": {name: _residual(trials, name) for name in names},
        "residual, everybody found": _residual(complete, "any") if complete else None,
        "alarms": {name: _alarms(trials, name) for name in trials[0].findings.detectors},
        "pixels": _pixels(trials),
    }  # fmt: skip


def _by_height(chosen: Chosen) -> dict[str, Any]:
    rows = {}
    for low, high in HEIGHTS:
        if some := [(trial, sight) for trial, sight in chosen if low <= sight.height < high]:
            rows[f"{low} to {high - 1}" if high < HEIGHTS[-1][1] else f"{low} up"] = asdict(group(some))
    return rows


def _by(chosen: Chosen, tell: Callable[[Trial, Sight], str]) -> dict[str, Any]:
    rows = defaultdict[str, list[tuple[Trial, Sight]]](list)
    for trial, sight in chosen:
        rows[tell(trial, sight)].append((trial, sight))
    return {name: asdict(group(rows[name])) for name in sorted(rows)}


def _hit_frames(trial: Trial, name: str, which: str) -> list[bool]:
    """Of each frame looked at, whether the detector (or any of them) hits it."""
    names = trial.findings.detectors if name == "any" else (name,)
    scores = [getattr(trial.findings.detectors[one], which) for one in names]
    return [any(hits([s], one) for s, one in zip(row, names)) for row in zip(*scores)]


def _residual(trials: Sequence[Trial], name: str) -> dict[str, Any]:
    """Frames in which a detector that took no part still finds somebody, or what it takes for somebody."""
    after = [sum(_hit_frames(trial, name, "after")) for trial in trials]
    frames = [len(trial.findings.looked_at) for trial in trials]
    share, low, high = audit_bounds.frame_rate(after, frames)
    before = sum(sum(_hit_frames(trial, name, "before")) for trial in trials) / sum(frames)
    planted = sum(_on_planted(trial, name) for trial in trials)
    clips = sum(count > 0 for count in after)
    upper = audit_bounds.upper_bound(clips, len(trials))
    return {
        "before": before,
        "frames": sum(frames),
        "hits": sum(after),
        "on planted": planted,
        "after": share,
        "low": low,
        "high": high,
        "clips": clips,
        "of": len(trials),
        "upper": upper,
    }


def _on_planted(trial: Trial, name: str) -> int:
    """Frames with a hit afterwards where somebody was planted."""
    names = trial.findings.detectors if name == "any" else (name,)
    return len({sight.frame for sight in trial.sights if any(sight.left.get(one) for one in names)})


def _alarms(trials: Sequence[Trial], name: str) -> dict[str, Any]:
    """Frames of places alone in which a detector finds somebody all the same."""
    scores = [trial.alarms[name] for trial in trials]
    found = sum(hits(row, name) for row in scores)
    count = sum(map(len, scores))
    return {"hits": found, "frames": count, "upper": audit_bounds.upper_bound(found, count)}


def _pixels(trials: Sequence[Trial]) -> dict[str, Any]:
    outside = [trial.outside_db for trial in trials if trial.outside_db is not None]
    seen = [(trial.seen_db, trial.seen_pixels) for trial in trials if trial.seen_db is not None]
    squares = sum(255.0**2 * 10 ** (-db / 10) * pixels for db, pixels in seen)
    pixels = sum(count for _, count in seen)
    return {
        "outside_worst_db": min(outside, default=None),
        "outside_clips": len(outside),
        "outside_below": sum(db < LEAST_DB for db in outside),
        "seen_db": float(10 * np.log10(255.0**2 * pixels / squares)) if squares else None,
        "seen_clips": len(seen),
        "seen_below": sum(db < SEEN_DB for db, _ in seen),
    }


def claim(out: Path, settings: dict[str, object]) -> None:
    """Make the folder, or check that it holds trials of these settings."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / SETTINGS).exists():
            with watch_disk(out):
                write_atomically(out / SETTINGS, lambda file: json.dump(settings, file, indent=1))
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
            write_complete(out / name, text.encode())
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
                color=GREY,
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
    heads = ("auditor", "frames hit before, %", "after, % (95 %)", "of these on a planted person", "clips hit after",
             "at most, % of clips (95 %)", "empty places hit")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in summary["residual"].items():
        alarm = summary["alarms"].get(name)
        empty = f"{alarm['hits']} of {alarm['frames']}" if alarm else "-"
        after = f"{_percent(row['after'])} ({_percent(row['low'])} to {_percent(row['high'])})"
        on = f"{row['on planted']} of {row['hits']}"
        cells = [
            name,
            _percent(row["before"]),
            after,
            on,
            f"{row['clips']} of {row['of']}",
            _percent(row["upper"]),
            empty,
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
    residual = (
        f"{_percent(hit['after'])} % of frames with a detection afterwards by any of the auditors, which took no part (95 %:"
        f" {_percent(hit['low'])} to {_percent(hit['high'])}; goal {_percent(RESIDUAL)} %), people of every height included; in"
        f" {hit['clips']} of {hit['of']} clips, so in at most {_percent(hit['upper'])} % of clips (95 %); {hit['on planted']} of these"
        f" {hit['hits']} frames are hit where somebody was planted."
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
    told = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in ("auditors", "plates"))
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

A hit afterwards is a person who was left, or something that looks like one: the last column counts hits in the same places without anybody.
"""
