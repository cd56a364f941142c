"""What planted people teach, as numbers.

    trials  ->  summarize(): Group of people by height, motion, crowd, light, place; residual detections and their control; pixels

The unit of an interval is the clip: people in one clip, and frames of it, are no independent witnesses.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ppma.common import statistics
from ppma.privacy.audit.files import LEAST_DB
from ppma.privacy.audit.judge import hits
from ppma.privacy.plant.trial import Sight, Trial

TALL = 48
"""Pixels of body height from which on the goal for the mask holds."""
RECALL, RESIDUAL, SEEN_DB = 0.98, 0.01, 24.0
"""The goals: pixels of the mask, frames with a residual detection, dB where the place was seen."""
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
    recall, low, high = statistics.frame_rate([hidden[n] for n in pixels], list(pixels.values()))
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


Which = Literal["before", "after", "alarms", "control"]
"""The original, the cleaned clip, the place alone, the place alone painted over with the same masks."""


def _hit_frames(trial: Trial, name: str, which: Which) -> list[bool]:
    """Of each frame looked at, whether the detector (or any of them) hits it."""
    names = trial.findings.detectors if name == "any" else (name,)
    if which in ("alarms", "control"):
        scores = [getattr(trial, which)[one] for one in names]
    else:
        scores = [getattr(trial.findings.detectors[one], which) for one in names]
    return [any(hits([s], one) for s, one in zip(row, names)) for row in zip(*scores)]


def _share(trials: Sequence[Trial], name: str, which: Which) -> dict[str, Any]:
    """Frames hit, of all."""
    counts = [sum(_hit_frames(trial, name, which)) for trial in trials]
    share, low, high = statistics.frame_rate(counts, [len(trial.findings.looked_at) for trial in trials])
    return {"hits": sum(counts), "clips": sum(map(bool, counts)), "share": share, "low": low, "high": high}


def _residual(trials: Sequence[Trial], name: str) -> dict[str, Any]:
    """Frames in which a detector that took no part still finds somebody, or what it takes for somebody."""
    after = _share(trials, name, "after")
    frames = [len(trial.findings.looked_at) for trial in trials]
    # of each clip, how many frames more than where nobody ever was under the same paint
    beyond = [sum(_hit_frames(trial, name, "after")) - sum(_hit_frames(trial, name, "control")) for trial in trials]
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
        "highest alarm": None
        if name == "any"
        else max(max(t.control[name] + t.alarms[name], default=0.0) for t in trials),
        "beyond control": statistics.frame_rate(beyond, frames),
    }


def _on_planted(trial: Trial, name: str) -> int:
    """Frames with a hit afterwards where somebody was planted."""
    names = trial.findings.detectors if name == "any" else (name,)
    return len({sight.frame for sight in trial.sights if any(sight.left.get(one) for one in names)})


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
