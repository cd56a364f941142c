"""`ppma plant`: virtual people into places without people, removed and audited, to learn what remover and auditor see.

flags  ->  PlantConfig  ->  trials, spread over processes, each kept when it is finished  ->  report.md, report.svg, trials.json
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ppma import __version__
from ppma.common.progress import Progress
from ppma.common.workers import parallel_map
from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.privacy.detectors import auditors as audit_detectors
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.detectors.weights import default_folder, find
from ppma.privacy.plant import clip as plant
from ppma.privacy.plant import report as plant_report
from ppma.privacy.plant import trial as plant_trial
from ppma.privacy.plant.trial import TrialJob
from ppma.privacy.removal.clip import Settings
from ppma.privacy.removal.plugins import PLUGINS


@dataclass(frozen=True, kw_only=True)
class PlantConfig:
    """Draw virtual people into places without people, remove and audit them, and report who was found and who stayed.

    ppma plant --out planted

    Run it again after an interruption, or with more clips: finished ones are kept.
    """

    out: Path
    """Folder for the trials and the report."""
    clips: int = 200
    """Planted clips; every eighth is long, its camera still."""
    plates: Path | None = None
    """Folder of your own pictures and videos without people: half of the clips take place in them. Without, all places are drawn."""
    frames: int = 8
    """Frames of a clip."""
    long_frames: int = 24
    """Frames of a long one."""
    size: int = 256
    """Pixels along a side, even, 128 to 1024."""
    fps: float = 5.0
    """Frames a second."""
    looked_at: int = 2
    """Frames of a clip that auditors look at, before and after."""
    seed: int = 0
    """The same seed gives the same clips."""
    auditors: tuple[str, ...] = tuple(AUDITORS)
    """Detectors of the auditor."""
    weights: Path = field(default_factory=default_folder)
    """Folder of the models (`ppma privacy fetch` fills it)."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes (default: one a core)."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("clips", 1, 100_000), ("frames", 2, 1000), ("long_frames", 2, 1000), ("size", 128, 1024), ("fps", 1, 60),
            ("looked_at", 1, 1000), ("workers", 1, 1024), ("seed", 0, 2**63 - 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be {low} to {high}")
        if self.size % 2:
            raise InputError(f"--size is {self.size}; it must be even")
        audit_detectors.check(self.auditors, set(Settings().used), "--auditors")

    def settings(self) -> dict[str, object]:
        """What must be the same for all trials in a folder."""
        kept = ("frames", "long_frames", "size", "fps", "looked_at", "seed")
        plates = str(self.plates.resolve()) if self.plates else None
        points = {name: AUDITORS[name].threshold for name in self.auditors}
        return {
            **{name: getattr(self, name) for name in kept},
            "auditors": points,
            "plates": plates,
            "version": __version__,
        }

    def jobs(self) -> list[TrialJob]:
        """A trial for each clip."""
        plates = plant.list_plates(self.plates) if self.plates else ()
        return [
            TrialJob(
                design=plant.design(
                    number, seed=self.seed, size=self.size, frames=self.frames, long_frames=self.long_frames, fps=self.fps, plates=plates
                ),
                out=self.out, weights=self.weights, auditors=self.auditors, looked_at=self.looked_at,
            )
            for number in range(self.clips)
        ]  # fmt: skip


def main(argv: list[str]) -> int:
    """Run `ppma plant ARGV`."""
    config = parse(PlantConfig, argv, prog="ppma plant")
    for key in {PLUGINS[name].weights for name in Settings().used} | {
        AUDITORS[name].weights for name in config.auditors
    }:
        if key:
            find(key, config.weights)
    jobs = config.jobs()
    plant_report.claim(config.out, config.settings())
    left = [job for job in jobs if not job.record.is_file()]
    with Progress("clips") as progress:
        done = len(jobs) - len(left)
        progress(done, len(jobs))
        for _ in parallel_map(plant_trial.work, left, config.workers):
            done += 1
            progress(done, len(jobs))
    report = plant_report.write(config.out, [plant_trial.read(job) for job in jobs], config.settings())
    Console(highlight=False, soft_wrap=True).print(f"{report}: {len(jobs)} clips", markup=False)
    return DONE
