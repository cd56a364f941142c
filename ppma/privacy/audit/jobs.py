"""Many clips under the auditor: which are done, the rest spread over processes, each one's findings kept when it is finished.

    Pair of each clip  ->  AuditJob  ->  worker: Inspector  ->  <out>/clips/<class>/<video>.json  ->  findings of all

What is kept is used again as long as the clip's content, its original's, the detectors and the frames looked at are the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2

from ppma import __version__
from ppma.common.files import content_sha256, write_text
from ppma.common.workers import parallel_map
from ppma.config.errors import InputError, watch_disk
from ppma.loaders.decode.fetch import BadClip
from ppma.privacy.audit.clip import Findings, Inspector, Pair
from ppma.privacy.detectors.auditors import AUDITORS


@dataclass(frozen=True, kw_only=True)
class AuditJob:
    """One clip, and with what it is looked at."""

    pair: Pair
    out: Path
    detectors: tuple[str, ...]
    frames: int
    """Looked at; 0 for all."""
    weights: Path

    @property
    def record(self) -> Path:
        """What was found."""
        return self.out / "clips" / f"{self.pair.name}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for findings to be used again, but for the content of the cleaned clip."""
        original = self.pair.original
        return {
            "version": __version__,
            "operating_points": {name: AUDITORS[name].threshold for name in self.detectors},
            "frames": self.frames,
            "path": self.pair.path,
            "mask": str(self.pair.mask),
            "original": None
            if original is None
            else [
                str(original.path),
                content_sha256(original.path),
                original.start_seconds,
                str(original.end_seconds),
            ],
        }

    def found(self) -> Findings | None:
        """What a former run has found in this very clip, or None."""
        try:
            content = json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if content.get("settings") != self.settings or content["findings"]["sha256"] != content_sha256(
            self.pair.cleaned
        ):
            return None
        return Findings.of(content["findings"])


@lru_cache(maxsize=1)
def _inspector(detectors: tuple[str, ...], weights: Path, frames: int) -> Inspector:
    """Loaded once a process."""
    cv2.setNumThreads(1)
    return Inspector(detectors, weights, frames)


def work(job: AuditJob) -> str:
    """Look at one clip; returns why it cannot be, or nothing. DiskFullError when its findings do not fit."""
    inspector = _inspector(job.detectors, job.weights, job.frames)
    with watch_disk(job.out):
        try:
            findings = inspector.inspect(job.pair, content_sha256(job.pair.cleaned))
        except BadClip as error:
            return f"{job.pair.cleaned} {error}"
        job.record.parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": job.settings, "findings": asdict(findings)}
        write_text(job.record, json.dumps(content))
    return ""


def run(jobs: Sequence[AuditJob], workers: int, on_progress: Callable[[int, int], None]) -> list[Findings]:
    """Findings of every clip, in order. Progress is counted in clips.

    InputError names a clip that cannot be read, once all others are done. After that, DiskFullError or Ctrl-C the same call goes on from
    there.
    """
    found = {job.pair.path: findings for job in jobs if (findings := job.found()) is not None}
    left = [job for job in jobs if job.pair.path not in found]
    done = len(found)
    on_progress(done, len(jobs))
    refused = []
    for reason in parallel_map(work, left, workers):
        done += 1
        on_progress(done, len(jobs))
        refused += [reason] if reason else []
    if refused:
        raise InputError(
            f"{refused[0]} ({len(refused)} such clips); the findings of the others are kept: mend or take out, and run it again"
        )
    return [findings for job in jobs if (findings := found.get(job.pair.path) or job.found()) is not None]
