"""Stand-ins for detectors, which take red pixels for people, a clip to run them on, and an audit as one passes it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ppma.common.files import content_sha256
from ppma.common.video import video_writer
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy import verdict
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.detectors.boxes import NONE_05
from ppma.privacy.removal.plugins import Plugin
from ppma.privacy.removal.writing import X264

RED = (250, 20, 20)
FLAGS = ("--detectors", "red", "red-face", "--segmenter", "nothing", "--workers", "1")
"""Flags of `ppma remove-humans` for the plug-ins of the fixture `stand_ins`."""


class RedFinder:
    """Detects what is red, except in the calls listed in `blinks`."""

    blinks = ()

    def __init__(self):
        self.calls = 0

    def __call__(self, frame_HWC):
        self.calls += 1
        red = (frame_HWC[..., 0] > 180) & (frame_HWC[..., 1] < 90)
        if not red.any() or self.calls - 1 in self.blinks:
            return NONE_05
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 0.9]], np.float32)


class Nothing:
    """A segmenter that detects no one."""

    def __call__(self, frame_HWC):
        return np.zeros(frame_HWC.shape[:2], np.float32)


PLUGINS = {
    "red": Plugin(kind="detector", make=RedFinder, license="none", finds="person"),
    "red-face": Plugin(kind="detector", make=RedFinder, license="none", finds="face"),
    "nothing": Plugin(kind="segmenter", make=Nothing, license="none", takes="cuts"),
}


def write_stand(path: Path, *, length: int = 38, leaves: int | None = None, blue: bool = False) -> None:
    """Write a clip with noise in which a striped red person stands still, and is gone from frame `leaves` on; `blue`: with another."""
    rng = np.random.default_rng(0)
    place_HWC = np.kron(rng.integers(40, 160, (24, 32, 1)), np.ones((4, 4, 3)))
    with video_writer(path, fps=10.0, options=X264) as add_frame:
        for t in range(length):
            frame_HWC = place_HWC + rng.normal(0, 2, place_HWC.shape)
            if leaves is None or t < leaves:
                frame_HWC[30:80, 50:66] = RED
                frame_HWC[30:80:8, 50:66, 2] = 120
            if blue:
                frame_HWC[30:80, 90:106] = RED[::-1]
            add_frame(frame_HWC.clip(0, 255).astype(np.uint8))


def write_walk(path: Path, *, length: int = 24, height: int = 96, width: int = 128) -> np.ndarray:
    """Write a clip in which a red block moves to and fro over a textured background; return the background."""
    rng = np.random.default_rng(0)
    place_HWC = np.kron(rng.integers(40, 160, (height // 4, width // 4, 1)), np.ones((4, 4, 3))).astype(np.uint8)
    way = width - 32
    with video_writer(path, fps=10.0, options=X264) as add_frame:
        for t in range(length):
            frame_HWC, x = place_HWC.copy(), abs((4 * t + way) % (2 * way) - way)
            frame_HWC[30:80, x : x + 16] = RED
            add_frame(frame_HWC)
    return place_HWC


def row(path, audit):
    """A row of an audited manifest, whose clip need not exist."""
    return Clip(
        path=path, frames=10, fps=25.0, width=32, height=32, codec="h264", key_frame_spacing=10, duration_seconds=0.4,
        domain="human-removed", licence="own", source="s", class_name="c", label=0, audit=audit,
    )  # fmt: skip


def audit_content(said):
    """Return what `ppma audit` writes to audit.json, given {path: (verdict, hash)}."""
    strong = {"method": "remove", "frames": 10, "looked_at": list(range(10)), "spiked": 10, "spiked_found": 10}
    return {
        "format": verdict.FORMAT,
        "makers": ["maker"],
        "auditors": list(AUDITORS),
        "operating_points": {name: kind.threshold for name, kind in AUDITORS.items()},
        "points_date": "2026-11-28",
        "clips": [{"path": path, "verdict": one, "sha256": sha256, **strong} for path, (one, sha256) in said.items()],
    }


def write_audit(manifest, root, report, *, failed=()):
    """Write what `ppma audit` writes: verdicts, a report and a seal. `failed`: rows that did not pass."""
    found = Manifest.read(manifest)
    clips = [found.clip(i) for i in range(len(found))]
    verdicts = [verdict.FAILED if i in failed else verdict.PASSED for i in range(len(found))]
    rows = [replace(clip, audit=one, licence=clip.licence or "own") for clip, one in zip(clips, verdicts)]
    Manifest.write(manifest, rows)
    report.parent.mkdir(exist_ok=True)
    content = audit_content({row.path: (row.audit, content_sha256(root / row.path)) for row in rows})
    report.write_text(json.dumps(content))
    verdict.seal(manifest, report)
