"""Remove and audit one planted clip, and measure how completely each person was removed.

    Design  ->  plant()  ->  source.mp4  ->  Pipeline  ->  Inspector.inspect()  ->  Trial: people by frame, pixels
                         ->  the empty scene  ->  inpainted with the same masks  ->  best_scores()  ->  control

The control shows what auditors detect in inpainted pixels: the empty scene contains no person, so every detection in it
is a false positive.
Detections by the remover itself are measured in the inspected frames, recall of its masks in all frames.
Legend: T frames, P pixels along a side, N people or boxes.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ppma.common.files import content_sha256, write_text
from ppma.common.video import video_writer
from ppma.config.errors import reading, watch_disk
from ppma.privacy.audit.clip import Findings, Inspector, InspectorConfig, Pair, belongs, psnr
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.plant.clip import Design, Planted, plant
from ppma.privacy.removal import figures
from ppma.privacy.removal.clip import ClipSource, Pipeline, Settings, video_frames
from ppma.privacy.removal.figures import same
from ppma.privacy.removal.fill import LEAST_SHARE, LEAST_VIEWS
from ppma.privacy.removal.plugins import PLUGINS
from ppma.privacy.removal.writing import X264

LEAST_PIXELS = 20
"""Smallest visible part of a person, behind others or at the edge, that counts."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """One visible person in one frame."""

    person: int
    frame: int
    height: int
    """Visible rows."""
    pixels: int
    """Visible pixels."""
    hidden: int
    """Those within the mask."""
    back: bool
    """The result shows the person again within the mask: at least a third of the pixels that differ from the empty
    scene equal the original."""
    found: bool | None
    """Detected by the remover in this frame; None in frames that were not inspected."""
    audited: dict[str, bool]
    """Detected by each auditor in the original; empty in frames that were not inspected."""
    left: dict[str, bool]
    """The same in the cleaned frame."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The result of a planted clip."""

    design: dict[str, Any]
    moving: bool
    people: int
    sights: list[Sighting]
    outside_db: float | None
    seen_db: float | None
    """PSNR of hidden pixels against the empty scene, where other frames show it; None if the scene moves."""
    seen_pixels: int
    alarms: dict[str, list[float]]
    """Best score of each auditor in the inspected frames of the empty scene."""
    control: dict[str, list[float]]
    """The same after inpainting the empty scene with the masks of the clip."""
    findings: Findings

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Trial":
        """Restore a trial from its `asdict`."""
        sights = [Sighting(**sight) for sight in content["sights"]]
        return cls(**{**content, "sights": sights, "findings": Findings.from_dict(content["findings"])})


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """One planted clip to remove and audit."""

    design: Design
    out: Path
    inspector: InspectorConfig

    def __str__(self) -> str:
        return f"trial {self.design.number}"

    @property
    def record(self) -> Path:
        """Path of the trial's JSON file, which is written last and so marks a finished trial."""
        return self.out / "trials" / f"{self.design.number:04d}.json"

    def read(self) -> Trial:
        """Read the finished trial."""
        with reading(self.record, "a trial of `ppma plant`: remove it, and rerun that"):
            return Trial.from_dict(json.loads(self.record.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def _tools(config: InspectorConfig) -> tuple[Pipeline, Inspector]:
    """Load remover and auditors once per process."""
    return Pipeline(Settings(), config.weights), Inspector(config)


def work(job: TrialJob) -> TrialJob:
    """Run one trial and write its record; DiskFullError if it does not fit."""
    pipeline, inspector = _tools(job.inspector)
    with watch_disk(job.out), tempfile.TemporaryDirectory(dir=job.out, prefix=".trial-") as folder:
        trial = measure(plant(job.design), pipeline, inspector, Path(folder))
    write_text(job.record, json.dumps(asdict(trial)))
    return job


def _frames(path: Path) -> np.ndarray:
    return np.stack(list(video_frames(path)))


def measure(planted: Planted, pipeline: Pipeline, inspector: Inspector, folder: Path) -> Trial:
    """Remove and audit a planted clip, in a temporary folder."""
    design = planted.design
    # 1. remove people from the clip; inpaint the empty scene with the same masks
    clip = _write_video(planted.frames_TPP3, folder / "source.mp4", design.fps)
    empty = _write_video(planted.empty_TPP3, folder / "empty.mp4", design.fps)
    with pipeline.plan(clip, folder) as plan:
        outcome, paths = pipeline.finish(plan, clip, folder, design.name)
        _, controls, _ = pipeline.render(plan, empty, folder / "control", design.name)
    # 2. audit
    pair = Pair(
        name=design.name, path=f"inp/{design.name}.mp4", class_name=design.action, cleaned=paths["inp"], frames=design.frames,
        mask=paths["seg"], original=clip, makers=pipeline.settings.used, method="remove", clean=outcome.clean,
        outside_sha256=outcome.outside_sha256,
    )  # fmt: skip  # one field after the other
    findings = inspector.inspect(pair, content_sha256(paths["inp"]))
    # 3. compare with the ground truth
    inspected = findings.looked_at
    hidden_TPP = _frames(paths["seg"])[..., 0] > 127
    seen_db, seen_pixels = (None, 0) if planted.moving else _compare_inpainted(planted, hidden_TPP, paths["inp"])
    return Trial(
        design={**asdict(design), "plate": design.plate.name if design.plate else None},
        moving=planted.moving,
        people=len(planted.people_NTPP),
        sights=_sightings(planted, hidden_TPP, _frames(paths["inp"]), pipeline, findings),
        outside_db=findings.outside_db,
        seen_db=seen_db,
        seen_pixels=seen_pixels,
        alarms=inspector.best_scores([planted.empty_TPP3[t] for t in inspected]),
        control=inspector.best_scores(list(_frames(controls["inp"])[inspected])),
        findings=findings,
    )


def _write_video(frames_TPP3: np.ndarray, path: Path, fps: float) -> ClipSource:
    with video_writer(path, fps=fps, options=X264) as add:
        for frame_PP3 in frames_TPP3:
            add(frame_PP3)
    return ClipSource(path=path, fps=fps)


def _compare_inpainted(planted: Planted, hidden_TPP: np.ndarray, cleaned: Path) -> tuple[float | None, int]:
    """Compare hidden pixels that enough other frames show with the empty scene; return the PSNR and their number."""
    least = max(LEAST_VIEWS, round(LEAST_SHARE * len(hidden_TPP)))
    chosen_TPP = hidden_TPP & ((~hidden_TPP).sum(0) >= least)
    difference = _frames(cleaned)[chosen_TPP].astype(float) - planted.empty_TPP3[chosen_TPP]
    return psnr(float((difference**2).sum()), difference.size) if difference.size else None, len(difference)


def _sightings(
    planted: Planted, hidden_TPP: np.ndarray, cleaned_TPP3: np.ndarray, pipeline: Pipeline, findings: Findings
) -> list[Sighting]:
    """Return every visible person in every frame."""
    sightings = []
    for t in range(len(hidden_TPP)):
        detections = pipeline.detect(planted.frames_TPP3[t]) if t in findings.looked_at else None
        for n, own_PP in enumerate(planted.people_NTPP[:, t]):
            if own_PP.sum() < LEAST_PIXELS:
                continue
            rows, columns = np.flatnonzero(own_PP.any(1)), np.flatnonzero(own_PP.any(0))
            box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
            found, audited, left = None, dict[str, bool](), dict[str, bool]()
            if detections is not None:
                found = any(belongs(boxes[:, :4], box, PLUGINS[name].finds) for name, boxes in detections.items())
                at = findings.looked_at.index(t)
                for name, scores in findings.detectors.items():
                    audited[name], left[name] = (
                        belongs(np.array(boxes[at], np.float32).reshape(-1, 5)[:, :4], box, AUDITORS[name].finds)
                        for boxes in (scores.boxes_before, scores.boxes_after)
                    )
            sightings.append(
                Sighting(
                    person=n, frame=t, height=int(rows[-1] - rows[0]) + 1, pixels=int(own_PP.sum()),
                    hidden=int((own_PP & hidden_TPP[t]).sum()), found=found, audited=audited, left=left,
                    back=_painted_back(planted, t, own_PP & hidden_TPP[t], cleaned_TPP3[t]),
                )
            )  # fmt: skip  # one field after the other
    return sightings


def _painted_back(planted: Planted, t: int, hidden_PP: np.ndarray, cleaned_PP3: np.ndarray) -> bool:
    """True if the hidden pixels of a person show them again, judged as in `figures`, but against the known scene."""
    original_N3 = planted.frames_TPP3[t][hidden_PP]
    compared_N = ~same(original_N3, planted.empty_TPP3[t][hidden_PP])
    back_N = compared_N & same(original_N3, cleaned_PP3[hidden_PP])
    return bool(compared_N.sum() >= figures.LEAST_PIXELS and back_N.sum() > figures.RETURNED_SHARE * compared_N.sum())
