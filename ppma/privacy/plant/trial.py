"""One planted clip through remover and auditor, and what came of everybody in it.

    Design  ->  plant()  ->  source.mp4  ->  Pipeline  ->  Inspector.inspect()  ->  Trial: people by frame, pixels, findings
                         ->  the place alone  ->  the same masks painted over  ->  Inspector.best()  ->  the trial's control

The control is what auditors say of paint: where nobody ever was, nobody can be left.
Who is found by the remover's own detectors is asked of single frames, those that the auditor looks at; recall is of all frames.
Legend: T frames, P pixels along a side, N people or boxes.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ppma.common.files import content_sha256, write_text
from ppma.common.video import video_writer
from ppma.config.errors import watch_disk
from ppma.loaders.decode.fetch import all_frames
from ppma.privacy.audit.clip import Findings, Inspector, Pair, chosen, decibels
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.plant.clip import Design, Planted, plant
from ppma.privacy.removal.clip import ClipSource, Pipeline, Settings
from ppma.privacy.removal.fill import LEAST_SHARE, LEAST_SIGHTS
from ppma.privacy.removal.plugins import PLUGINS
from ppma.privacy.removal.writing import X264

LEAST_PIXELS = 20
"""Visible ones; less of a person, behind others or at the edge, is not counted."""
SAME = 0.3
"""Intersection over union from which on a box is somebody's."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One person in one frame."""

    person: int
    frame: int
    height: int
    """Rows that show them."""
    pixels: int
    hidden: int
    """Of these, within the mask."""
    found: bool | None
    """By a detector of the remover, in this frame; None where nobody asked."""
    audited: dict[str, bool]
    """Found by each auditor in the original; empty where none looked."""
    left: dict[str, bool]
    """Found by each auditor in the cleaned frame."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of a planted clip."""

    design: dict[str, Any]
    moving: bool
    people: int
    sights: list[Sight]
    outside_db: float | None
    seen_db: float | None
    """Hidden pixels against the place alone, where other frames show it; only where the place stands still."""
    seen_pixels: int
    alarms: dict[str, list[float]]
    """Best score of each auditor in the frames looked at, of the place alone."""
    control: dict[str, list[float]]
    """The same of the place alone, painted over with the masks of the clip."""
    findings: Findings

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Trial":
        """From what `asdict` made of it."""
        sights = [Sight(**sight) for sight in content["sights"]]
        return cls(**{**content, "sights": sights, "findings": Findings.of(content["findings"])})


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What a worker gets."""

    design: Design
    out: Path
    weights: Path
    auditors: tuple[str, ...]
    looked_at: int
    """Frames of the clip."""

    @property
    def record(self) -> Path:
        """KeyedAction last."""
        return self.out / "trials" / f"{self.design.number:04d}.json"


@lru_cache(maxsize=1)
def _tools(weights: Path, auditors: tuple[str, ...], looked_at: int) -> tuple[Pipeline, Inspector]:
    """Loaded once a process."""
    cv2.setNumThreads(1)
    return Pipeline(Settings(), weights), Inspector(auditors, weights, looked_at)


def work(job: TrialJob) -> TrialJob:
    """Do one trial and write its record; DiskFullError when it does not fit."""
    pipeline, inspector = _tools(job.weights, job.auditors, job.looked_at)
    with watch_disk(job.out):
        job.record.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=job.out, prefix=".trial-") as folder:
            trial = _try(plant(job.design), pipeline, inspector, Path(folder), job.looked_at)
        content = asdict(trial)
        write_text(job.record, json.dumps(content))
    return job


def read(job: TrialJob) -> Trial:
    """The trial that `work` has written."""
    return Trial.of(json.loads(job.record.read_text(encoding="utf-8")))


def _try(planted: Planted, pipeline: Pipeline, inspector: Inspector, folder: Path, looked_at: int) -> Trial:
    wanted, asked = planted.design, chosen(planted.design.frames, looked_at)
    clip, empty = (
        _filmed(frames, folder / name, wanted.fps)
        for name, frames in (("source.mp4", planted.frames_TPP3), ("empty.mp4", planted.empty_TPP3))
    )
    with pipeline.plan(clip, folder) as plan:
        outcome, paths = pipeline.render(plan, clip, folder, wanted.name)
        _, controls = pipeline.render(plan, empty, folder / "control", wanted.name)
    pair = Pair(
        name=wanted.name, path=f"inp/{wanted.name}.mp4", class_name=wanted.action, cleaned=paths["inp"], frames=wanted.frames,
        mask=paths["seg"], original=clip, makers=pipeline.settings.used, outside_sha256=outcome.outside_sha256,
    )  # fmt: skip
    findings = inspector.inspect(pair, content_sha256(paths["inp"]))
    hidden_TPP = np.stack([mask[..., 0] > 127 for _, mask in all_frames(paths["seg"], 0.0, float("inf"))])
    seen_db, seen_pixels = (None, 0) if planted.moving else _seen(planted, hidden_TPP, paths["inp"])
    return Trial(
        design=_plain(wanted),
        moving=planted.moving,
        people=len(planted.people_NTPP),
        sights=_sights(planted, hidden_TPP, pipeline, findings, asked),
        outside_db=findings.outside_db,
        seen_db=seen_db,
        seen_pixels=seen_pixels,
        alarms=inspector.best([planted.empty_TPP3[t] for t in asked]),
        control=inspector.best(
            [frame for t, (_, frame) in enumerate(all_frames(controls["inp"], 0.0, float("inf"))) if t in asked]
        ),
        findings=findings,
    )


def _filmed(frames_TPP3: np.ndarray, path: Path, fps: float) -> ClipSource:
    with video_writer(path, fps=fps, options=X264) as add_frame:
        for frame_PP3 in frames_TPP3:
            add_frame(frame_PP3)
    return ClipSource(path=path, start_seconds=0.0, end_seconds=float("inf"), fps=fps)


def _plain(wanted: Design) -> dict[str, Any]:
    return {**asdict(wanted), "plate": wanted.plate.name if wanted.plate else None}


def _seen(planted: Planted, hidden_TPP: np.ndarray, cleaned: Path) -> tuple[float | None, int]:
    """(dB, pixels) of what is painted where enough other frames show the place, against the place alone."""
    least = max(LEAST_SIGHTS, round(LEAST_SHARE * len(hidden_TPP)))
    shown_PP = (~hidden_TPP).sum(0) >= least
    squares, count = 0.0, 0
    for t, (_, frame) in enumerate(all_frames(cleaned, 0.0, float("inf"))):
        painted = frame[hidden_TPP[t] & shown_PP].astype(float)
        squares += float(((painted - planted.empty_TPP3[t][hidden_TPP[t] & shown_PP]) ** 2).sum())
        count += painted.size
    return (decibels(squares, count) if count else None), count // 3


def _sights(
    planted: Planted, hidden_TPP: np.ndarray, pipeline: Pipeline, findings: Findings, asked: Sequence[int]
) -> list[Sight]:
    """Everybody in every frame."""
    sights = []
    for t in range(len(hidden_TPP)):
        boxes = pipeline.detect(planted.frames_TPP3[t]) if t in asked else None
        for n, owned_TPP in enumerate(planted.people_NTPP):
            own_PP = owned_TPP[t]
            if own_PP.sum() < LEAST_PIXELS:
                continue
            audited, left = {}, {}
            for name, scores in findings.detectors.items() if t in asked else ():
                at, face = list(asked).index(t), AUDITORS[name].finds == "face"
                audited[name] = _meets(_boxes(scores.boxes_before[at]), own_PP, face)
                left[name] = _meets(_boxes(scores.boxes_after[at]), own_PP, face)
            found = None
            if boxes is not None:
                found = any(_meets(found_N5, own_PP, PLUGINS[name].finds == "face") for name, found_N5 in boxes.items())
            sights.append(
                Sight(
                    person=n, frame=t, height=int(np.ptp(np.flatnonzero(own_PP.any(1)))) + 1, pixels=int(own_PP.sum()),
                    hidden=int((own_PP & hidden_TPP[t]).sum()), found=found, audited=audited, left=left,
                )
            )  # fmt: skip
    return sights


def _boxes(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 5)


def _meets(boxes_N5: np.ndarray, own_PP: np.ndarray, face: bool) -> bool:
    """Whether a box is this person's: it overlaps what is visible of them, or, of a face, its middle is on them."""
    rows, columns = np.flatnonzero(own_PP.any(1)), np.flatnonzero(own_PP.any(0))
    x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    for left, top, right, bottom, _ in boxes_N5.tolist():
        if face:
            x, y = int((left + right) / 2), int((top + bottom) / 2)
            if 0 <= y < own_PP.shape[0] and 0 <= x < own_PP.shape[1] and bool(own_PP[y, x]):
                return True
            continue
        both = max(0.0, min(right, x1) - max(left, x0)) * max(0.0, min(bottom, y1) - max(top, y0))
        if both >= SAME * ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - both):
            return True
    return False
