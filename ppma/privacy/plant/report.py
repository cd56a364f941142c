"""Summarize trials as numbers, as a page and as a plot.

trials  ->  summarize(): people by height, camera, crowd, light, place; residual detections; pixels
    ->  report.json, report.md, report.svg

Intervals resample clips: people in one clip, and frames of it, are not independent.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from ppma.common import pages, statistics
from ppma.common.files import write_json, write_text
from ppma.common.plots import BLUE, GRAY, ORANGE, svg
from ppma.privacy.audit.clip import LEAST_DB
from ppma.privacy.audit.judge import detected
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.plant.trial import Sighting, Trial

PAGE, SUMMARY, PLOT = "report.md", "report.json", "report.svg"
TALL = 48
"""Body height in pixels from which on the goal for the mask applies."""
RECALL, RESIDUAL, SEEN_DB = 0.98, 0.01, 24.0
"""The goals: recall of the mask by pixel, share of frames with a residual detection, PSNR of inpainted pixels."""
WHOLE = 0.95
"""Share of a person's pixels that must be hidden in every frame for the person to count as removed."""
HEIGHTS = ((16, 32), (32, 48), (48, 64), (64, 96), (96, 128), (128, 1000))
LINE_STYLES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)))
"""Lines of the auditors in the plot, in their order."""

Chosen = Sequence[tuple[Trial, Sighting]]


def group(chosen: Chosen) -> dict[str, Any]:
    """Return the recall of the masks by pixel with its 95 % interval, and the share that each detector detects.

    `found` is the remover's share, `audited` the auditors'; None and empty without inspected frames.
    """
    pixels, hidden = defaultdict[int, int](int), defaultdict[int, int](int)
    for trial, sighting in chosen:
        pixels[trial.design["number"]] += sighting.pixels
        hidden[trial.design["number"]] += sighting.hidden
    recall, low, high = statistics.pooled_share([hidden[n] for n in pixels], list(pixels.values()))
    inspected = [sighting for _, sighting in chosen if sighting.found is not None]
    names = list(inspected[0].audited) if inspected else []
    return {
        "clips": len(pixels),
        "people": len({(trial.design["number"], sighting.person) for trial, sighting in chosen}),
        "recall": recall,
        "low": low,
        "high": high,
        "found": float(np.mean([bool(one.found) for one in inspected])) if inspected else None,
        "audited": {name: float(np.mean([one.audited[name] for one in inspected])) for name in names},
    }


KINDS: dict[str, Callable[[Trial], str]] = {
    "camera": lambda trial: "moving place" if trial.moving else "still place",
    "crowd": lambda trial: "1 person" if trial.people == 1 else "2 or 3" if trial.people < 4 else "4 to 8",
    "light": lambda trial: f"light: {trial.design['light']}",
    "place": lambda trial: "natural plate" if trial.design["plate"] else "drawn place",
}


def summarize(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return all numbers of the report."""
    every = [(trial, sighting) for trial in trials for sighting in trial.sights]
    tall = [(trial, sighting) for trial, sighting in every if sighting.height >= TALL]
    met = {(trial.design["number"], one.person) for trial, one in every if one.found}  # people the remover detects
    complete = [t for t in trials if all((t.design["number"], one.person) in met for one in t.sights)]
    found = [(trial, sighting) for trial, sighting in tall if (trial.design["number"], sighting.person) in met]
    return {
        "clips": len(trials),
        "natural": sum(bool(trial.design["plate"]) for trial in trials),
        "moving": sum(trial.moving for trial in trials),
        "frames": sum(len(trial.findings.looked_at) for trial in trials),
        "tall and found": group(found),
        "tall": group(tall),
        "all": group(every),
        "people": people(every),
        "heights": _by_height(every),
        "kinds": {kind: _by_kind(found, name_of) for kind, name_of in KINDS.items()},
        "residual": {name: _residual(trials, name) for name in (*trials[0].findings.detectors, "any")},
        "residual, everybody found": _residual(complete, "any") if complete else None,
        "pixels": _pixels(trials),
    }


def people(chosen: Chosen) -> dict[str, dict[str, Any]]:
    """Return visible height (its median) -> how many people were removed, and in which way the others were not.

    A person is removed if the mask hides WHOLE of them in every frame and nothing paints them back.
    """
    seen = defaultdict[tuple[int, int], list[Sighting]](list)
    for trial, sighting in chosen:
        seen[trial.design["number"], sighting.person].append(sighting)
    rows = {}
    for name, low, high in ((f"{TALL} up", TALL, HEIGHTS[-1][1]), *_height_names()):
        some = {who: one for who, one in seen.items() if low <= np.median([s.height for s in one]) < high}
        if not some:
            continue
        shown = {who for who, one in some.items() if any(s.hidden < WHOLE * s.pixels for s in one)}
        back = {who for who, one in some.items() if any(s.back for s in one)}
        count, removed = (Counter(clip for clip, _ in people) for people in (some, some.keys() - shown - back))
        share, least, most = statistics.pooled_share([removed[n] for n in count], list(count.values()))
        if removed.total() == len(some):  # resampling shows no spread
            least = 1 - statistics.upper_bound(0, len(count))
        rows[name] = {
            "clips": len(count), "people": len(some), "shown": len(shown), "back": len(back),
            "removed": removed.total(), "share": share, "low": least, "high": most,
        }  # fmt: skip  # one field after the other
    return rows


def _height_names() -> list[tuple[str, int, int]]:
    return [(f"{low} to {high - 1}" if high < HEIGHTS[-1][1] else f"{low} up", low, high) for low, high in HEIGHTS]


def _by_height(chosen: Chosen) -> dict[str, Any]:
    of_height = {name: [one for one in chosen if low <= one[1].height < high] for name, low, high in _height_names()}
    return {name: group(some) for name, some in of_height.items() if some}


def _by_kind(chosen: Chosen, name_of: Callable[[Trial], str]) -> dict[str, Any]:
    names = sorted({name_of(trial) for trial, _ in chosen})
    return {name: group([one for one in chosen if name_of(one[0]) == name]) for name in names}


Which = Literal["before", "after", "alarms", "control"]
"""The original, the cleaned clip, the empty scene, the empty scene inpainted with the same masks."""


def _frames_hit(trial: Trial, name: str, which: Which) -> int:
    """Count the inspected frames with a detection by one auditor, or by any of them."""
    names = trial.findings.detectors if name == "any" else (name,)
    if which in ("alarms", "control"):
        scores = [getattr(trial, which)[one] for one in names]
    else:
        scores = [getattr(trial.findings.detectors[one], which) for one in names]
    return sum(map(any, zip(*(detected(row, one) for row, one in zip(scores, names)))))


def _share(trials: Sequence[Trial], name: str, which: Which) -> dict[str, Any]:
    """Return the share of frames with a detection, with its interval."""
    counts = [_frames_hit(trial, name, which) for trial in trials]
    share, low, high = statistics.pooled_share(counts, [len(trial.findings.looked_at) for trial in trials])
    return {"hits": sum(counts), "clips": sum(map(bool, counts)), "share": share, "low": low, "high": high}


def _residual(trials: Sequence[Trial], name: str) -> dict[str, Any]:
    """Return how often an auditor, or any of them, has a detection in cleaned clips, true or false."""
    after = _share(trials, name, "after")
    frames = [len(trial.findings.looked_at) for trial in trials]
    beyond = [_frames_hit(trial, name, "after") - _frames_hit(trial, name, "control") for trial in trials]
    alarms = [max(t.control[name] + t.alarms[name], default=0.0) for t in trials] if name != "any" else []
    return {
        "before": _share(trials, name, "before")["share"],
        "frames": sum(frames),
        "hits": after["hits"],
        "on planted": sum(_on_planted(trial, name) for trial in trials),
        "after": after["share"],
        "low": after["low"],
        "high": after["high"],
        "clips": after["clips"],
        "of": len(trials),
        "upper": statistics.upper_bound(after["clips"], len(trials)),
        "control": _share(trials, name, "control"),
        "empty": _share(trials, name, "alarms"),
        "highest alarm": max(alarms, default=None),
        "beyond control": statistics.pooled_share(beyond, frames),
    }


def _on_planted(trial: Trial, name: str) -> int:
    """Count the cleaned frames with a detection on a planted person."""
    names = trial.findings.detectors if name == "any" else (name,)
    return len({sighting.frame for sighting in trial.sights if any(sighting.left.get(one) for one in names)})


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


def write(out: Path, trials: Sequence[Trial], settings: dict[str, object]) -> Path:
    """Write report.json, report.svg and report.md of finished trials, with the flags of the command; return the page."""
    summary = summarize(trials)
    write_json(out / SUMMARY, {"settings": settings, **summary})
    write_text(out / PLOT, '<?xml version="1.0" encoding="utf-8"?>\n' + svg(plot(summary)))
    write_text(out / PAGE, markdown(summary, settings))
    return out / PAGE


def plot(summary: dict[str, Any]) -> Figure:
    """Plot by body height the recall of the mask, and the share of people that each detector detects."""
    rows = list(summary["heights"].values())
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    axes, places = figure.subplots(), range(len(rows))
    recall, low, high = (100 * np.array([row[name] for row in rows]) for name in ("recall", "low", "high"))
    error = [recall - low, high - recall]
    axes.errorbar(places, recall, error, color=BLUE, marker="o", capsize=3, label="pixels hidden (95 %)")
    found = [100 * (row["found"] or 0) for row in rows]
    axes.plot(places, found, "s--", color=ORANGE, label="detected by the remover, per frame")
    for name, style in zip(AUDITORS, LINE_STYLES):
        if all(name in row["audited"] for row in rows):
            shares = [100 * row["audited"][name] for row in rows]
            axes.plot(places, shares, linestyle=style, color=GRAY, label=f"detected by {name}, per frame")
    axes.set_xticks(places, list(summary["heights"]))
    axes.set_ylim(-3, 103)
    axes.set_xlabel("visible body height, pixels")
    axes.set_ylabel("%")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def markdown(summary: dict[str, Any], settings: dict[str, object]) -> str:
    """Return the report as Markdown, from the summary and the flags of the command."""
    shown = {name: value for name, value in settings.items() if name not in ("auditors", "plates", "version")}
    return pages.render(
        __package__,
        "report.md",
        auditors=AUDITORS,
        goals={"recall": RECALL, "residual": RESIDUAL, "outside_db": LEAST_DB, "seen_db": SEEN_DB},
        plot=PLOT,
        settings=shown,
        summary=summary,
        tall=TALL,
        whole=WHOLE,
    )
