"""`ppma remove-humans`: people out of one's own videos.

flags  ->  RemovalConfig  ->  jobs (privacy.removal)  ->  an estimate, or the work with progress  ->  manifest
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro
from rich.console import Console

from ppma.command import DONE, RUN_AGAIN, WRONG_INPUT, parse
from ppma.fanout import DiskFullError
from ppma.loaders.errors import InputError
from ppma.privacy import plugins, removal
from ppma.privacy.clip import Method, Settings
from ppma.privacy.removal import Job
from ppma.privacy.weights import default_folder, find
from ppma.progress import Progress

SHOWN = 10
"""Refused clips that are shown; rejected.csv has all."""
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class RemovalConfig:
    """Find people in every frame, paint over them, and write the clips anew without sound and metadata.

    ppma remove-humans videos --out removed

    Run it again after an interruption: finished clips are kept. It says what it did, not that nobody is left: `ppma audit` looks at that.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A folder <class>/<video> (or <class>/<folder of frames>), or a manifest FILE.csv of `ppma index`."""
    out: Path
    """Folder for inp (the result), seg (what was painted), records, manifest.csv and rejected.csv."""
    root: Path | None = None
    """Folder that the paths of a manifest are relative to (default: its own)."""
    method: Method = "remove"
    """remove; or, to compare: blur-faces, blur-bodies, downsample (the whole picture)."""
    layout: Literal["videos", "frames"] = "videos"
    """videos: <class>/<video>.mp4, at least 40 dB outside the masks; frames: <class>/<video>/000001.jpg, as published."""
    keep_original: bool = False
    """Write ori as well, the frames as they were."""
    detectors: tuple[str, ...] = Settings.detectors
    """What finds people and faces."""
    segmenter: str = Settings.segmenter
    """What outlines them."""
    inpainter: str = Settings.inpainter
    """What paints: median (background from other frames, guessed where none shows it) or telea (guessed)."""
    short_side: int = Settings.short_side
    """Pixels along the short side that --method downsample leaves."""
    weights: Path = field(default_factory=default_folder)
    """Folder of the models (`ppma privacy fetch` fills it)."""
    licence: str = ""
    """Terms under which the footage is used, for rows that say none."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes (default: one a core)."""
    part: str | None = None
    """I/N: work on every N-th clip from the I-th, 0 to N - 1, and write no manifest: a task of an array."""
    merge: int | None = None
    """N: write the manifest of N parts that are finished."""
    dry_run: bool = False
    """Try a few frames and tell what it will take."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"--workers is {self.workers}; it must be at least 1")
        if self.short_side < 1:
            raise InputError(f"--short-side is {self.short_side}; it must be at least 1")
        if self.method != "downsample" and self.short_side != Settings.short_side:
            raise InputError("--short-side goes with --method downsample")
        for name in self.detectors:
            plugins.check(name, "detector", "--detectors")
        plugins.check(self.segmenter, "segmenter", "--segmenter")
        plugins.check(self.inpainter, "inpainter", "--inpainter")
        finds = {plugins.PLUGINS[name].finds for name in self.detectors}
        if not self.detectors or (self.method == "blur-faces" and "face" not in finds):
            raise InputError(
                f"--detectors {' '.join(self.detectors)}: --method {self.method} needs one that finds faces"
            )
        if self.part is not None and self.merge is not None:
            raise InputError("--part works on clips, --merge only gathers them; give one of the two")
        self.turn()

    def settings(self) -> Settings:
        """What decides the pixels."""
        return Settings(
            method=self.method,
            detectors=self.detectors,
            segmenter=self.segmenter,
            inpainter=self.inpainter,
            short_side=self.short_side,
        )

    def turn(self) -> tuple[int, int]:
        """(I, N) of --part; (0, 1) without."""
        if self.part is None:
            return 0, 1
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if match is None or int(match[1]) >= int(match[2]):
            raise InputError(f"--part is {self.part!r}; write I/N with I from 0 to N - 1")
        return int(match[1]), int(match[2])


def main(argv: list[str]) -> int:
    """Run `ppma remove-humans ARGV`."""
    config = parse(RemovalConfig, argv, prog="ppma remove-humans")
    report = Console(highlight=False, soft_wrap=True)
    settings = config.settings()
    for name in settings.used:
        if key := plugins.PLUGINS[name].weights:
            find(key, config.weights)
    root, clips, refused = removal.read_clips(config.source, config.root, config.workers)
    if config.out.resolve().is_relative_to(root.resolve()) and config.source.is_dir():
        raise InputError(f"--out {config.out} lies in the source {root}; give a folder outside of it")
    jobs = removal.jobs_of(
        clips, root, config.out, settings,
        layout=config.layout, keep_original=config.keep_original, weights=config.weights,
    )  # fmt: skip
    first, step = config.turn()
    mine = jobs[first::step]
    if config.dry_run:
        _tell_plan(report, config, mine, refused)
        return DONE
    removal.claim(config.out, settings, config.layout, config.keep_original)
    if config.merge is not None:
        return _merge(report, config, jobs, refused)
    try:
        with Progress("frames") as progress:
            refused = [*refused, *removal.run(mine, config.workers, progress)]
        if config.part is not None:
            return _tell_refused(report, config, refused)
        return _gather(report, config, jobs, refused)
    except DiskFullError as error:
        sys.stderr.write(
            f"ppma remove-humans: {error}; finished clips are kept: make room and run the same command again\n"
        )
        return RUN_AGAIN


def _tell_plan(report: Console, config: RemovalConfig, jobs: Sequence[Job], refused: Sequence[tuple[str, str]]) -> None:
    left = [job for job in jobs if not job.done()]
    frames = sum(job.row.frames for job in left)
    seconds = removal.seconds_a_frame(left) if left else 0.0
    hours = timedelta(seconds=round(seconds * frames / config.workers))
    report.print(
        f"{len(jobs)} clips, {len(jobs) - len(left)} of them done, {frames} frames to go at {seconds:.2f} s of one core each: "
        f"about {hours} with {config.workers} workers; would write {config.out}",
        markup=False,
    )
    for name in config.settings().used:
        plugin = plugins.PLUGINS[name]
        report.print(f"  {plugin.kind} {name}: {plugin.licence}", markup=False)
    _show(report, refused)


def _merge(report: Console, config: RemovalConfig, jobs: Sequence[Job], refused: Sequence[tuple[str, str]]) -> int:
    """The manifest of all parts. Clips that a part could not read are those that are still missing."""
    lost = [
        (job.row.path, "not there: its part did not finish, or could not read it") for job in jobs if not job.done()
    ]
    return _gather(report, config, jobs, [*refused, *lost])


def _gather(report: Console, config: RemovalConfig, jobs: Sequence[Job], refused: Sequence[tuple[str, str]]) -> int:
    manifest = removal.write_manifest(jobs, config.out, refused, config.licence)
    done = [job for job in jobs if job.done()]
    report.print(f"{manifest}: {len(done)} clips, {sum(job.row.frames for job in done)} frames", markup=False)
    return _tell_refused(report, config, refused)


def _tell_refused(report: Console, config: RemovalConfig, refused: Sequence[tuple[str, str]]) -> int:
    if not refused:
        return DONE
    _show(report, refused)
    sys.stderr.write(
        f"ppma remove-humans: {len(refused)} clips cannot be read, see {config.out / removal.REJECTED}; the others are done\n"
    )
    return WRONG_INPUT


def _show(report: Console, refused: Sequence[tuple[str, str]]) -> None:
    for path, reason in refused[:SHOWN]:
        report.print(f"  {path}: {reason}", markup=False)
    if len(refused) > SHOWN:
        report.print(f"  ... and {len(refused) - SHOWN} more", markup=False)
