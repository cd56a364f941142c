"""`ppma plant`: measure removal and audit on clips with planted virtual people.

flags  ->  PlantConfig  ->  trials in parallel, each kept when it is finished  ->  report.md, report.svg, report.json
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ppma import __version__
from ppma.common.files import claim_folder
from ppma.common.progress import Progress
from ppma.common.workers import parallel_map
from ppma.config.command import DONE, OutFolder, check_ranges, parse
from ppma.config.errors import InputError, counted
from ppma.privacy.audit.clip import InspectorConfig
from ppma.privacy.detectors import auditors
from ppma.privacy.detectors.auditors import AUDITORS, BUNDLED
from ppma.privacy.detectors.tools import find_files
from ppma.privacy.detectors.weights import default_folder
from ppma.privacy.plant import report
from ppma.privacy.plant.clip import design, list_plates
from ppma.privacy.plant.trial import TrialJob, work
from ppma.privacy.removal.clip import Settings
from ppma.privacy.removal.plugins import PLUGINS


@dataclass(frozen=True, kw_only=True)
class PlantConfig:
    """Plant virtual people in scenes without people, remove and audit them, and report the recall of both.

    A rerun after an interruption, or with more clips, keeps finished ones.

    For example:
      ppma plant --out planted
    """

    out: OutFolder
    """Folder for the trials and the report."""
    clips: int = 200
    """Planted clips; every eighth is long and has a still camera."""
    plates: Path | None = None
    """Folder of your own pictures and videos without people, for half of the clips; the other places are rendered."""
    frames: int = 8
    """Frames per clip."""
    long_frames: int = 24
    """Frames of a long clip."""
    size: int = 256
    """Pixels along a side, even, 128 to 1024."""
    fps: float = 5.0
    """Frames per second."""
    looked_at: int = 2
    """Frames of a clip that auditors inspect, before and after."""
    seed: int = 0
    """The same seed gives the same clips."""
    auditors: tuple[str, ...] = BUNDLED
    """Detectors of the auditor."""
    weights: Path = field(default_factory=default_folder)
    """Folder of the models (`ppma privacy fetch` fills it)."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes (default: one per core)."""

    def __post_init__(self) -> None:
        check_ranges(self, clips=(1, 100_000), frames=(2, 1000), long_frames=(2, 1000), size=(128, 1024), fps=(1, 60))
        check_ranges(self, looked_at=(1, 1000), workers=(1, 1024), seed=(0, float("inf")))
        if self.size % 2:
            raise InputError(f"--size is {self.size}; it must be even")
        auditors.check(self.auditors, set(Settings().used), "--auditors")

    def settings(self) -> dict[str, object]:
        """Return the settings that all trials in a folder share."""
        return {
            **{name: getattr(self, name) for name in ("frames", "long_frames", "size", "fps", "looked_at", "seed")},
            "auditors": {name: AUDITORS[name].threshold for name in self.auditors},
            "plates": str(self.plates.resolve()) if self.plates else None,
            "version": __version__,
        }

    def jobs(self) -> list[TrialJob]:
        """Return a trial for each clip."""
        plates = list_plates(self.plates) if self.plates else ()
        shape = {name: getattr(self, name) for name in ("seed", "size", "frames", "long_frames", "fps")}
        inspector = InspectorConfig(detectors=self.auditors, weights=self.weights, frames=self.looked_at)
        designs = [design(n, plates=plates, **shape) for n in range(self.clips)]
        return [TrialJob(design=one, out=self.out, inspector=inspector) for one in designs]


def main(argv: list[str]) -> int:
    """Run `ppma plant ARGV`."""
    config = parse(PlantConfig, argv, prog="ppma plant")
    makers, judges = (PLUGINS[name] for name in Settings().used), (AUDITORS[name] for name in config.auditors)
    find_files([*makers, *judges], config.weights)
    jobs = config.jobs()
    claim_folder(config.out / "settings.json", config.settings(), "trials")
    left = [job for job in jobs if not job.record.is_file()]
    with Progress("clips") as progress:
        kept = len(jobs) - len(left)
        progress(kept, len(jobs))
        for done, _ in enumerate(parallel_map(work, left, config.workers), kept + 1):
            progress(done, len(jobs))
    page = report.write(config.out, [job.read() for job in jobs], config.settings())
    Console(highlight=False, soft_wrap=True).print(f"{page}: {counted(len(jobs), 'clip')}", markup=False)
    return DONE
