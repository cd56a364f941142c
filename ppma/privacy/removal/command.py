"""`ppma remove-humans`: people out of one's own videos.

flags  ->  RemovalConfig  ->  jobs (privacy.removal)  ->  an estimate, or the work with progress  ->  manifest
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro
from rich.console import Console

from ppma.common.progress import Progress
from ppma.common.workers import parse_shard
from ppma.config.command import DONE, WRONG_INPUT, parse
from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.privacy.detectors.weights import default_folder
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal import plugins
from ppma.privacy.removal.clip import Method, Settings
from ppma.privacy.removal.jobs import Job

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
    tools: Annotated[Literal["default", "quality", "paper"], tyro.conf.arg(name="set")] = "default"
    """default: small models, on a CPU; quality: Mask R-CNN and LaMa, whose weights you bring; paper: threshold, dilation and layout as
    published, with SeMask and E2FGVI that you bring. The next four flags change one of them."""
    layout: Literal["videos", "frames"] | None = None
    """videos: <class>/<video>.mp4, at least 40 dB outside the masks; frames: <class>/<video>/000001.jpg, as published."""
    keep_original: bool = False
    """Write ori as well, the frames as they were."""
    detectors: tuple[str, ...] | None = None
    """What finds people and faces."""
    segmenter: str | None = None
    """What outlines them."""
    inpainter: str | None = None
    """What paints: median (background from other frames, pieced together where none shows it), or one that you bring."""
    models: tuple[str, ...] = ()
    """Files that you bring, NAME=FILE or NAME=FILE#SHA256; `ppma privacy list` has the names. Default: those in --weights."""
    accept_non_commercial: bool = False
    """Your use is not commercial: allow tools whose licence asks for that."""
    short_side: int = Settings.short_side
    """Pixels along the short side that --method downsample leaves."""
    weights: Path = field(default_factory=default_folder)
    """Folder of the models (`ppma privacy fetch` fills it)."""
    licence: str = ""
    """Terms under which the footage is used, for rows that say none."""
    name: str | None = None
    """Enter the result into data.toml under this source name, as its split `train`."""
    data: Path | None = None
    """The data.toml (default: $PPMA_DATA, else ./data.toml)."""
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
        if self.name is not None:
            catalog.check_name(self.name, "name")
        self._check_tools()
        parse_shard(self.part, self.merge)

    @property
    def choice(self) -> plugins.Choice:
        """The tools of the set, with those that flags name in their place."""
        own = {name: getattr(self, name) for name in ("detectors", "segmenter", "inpainter", "layout")}
        return replace(plugins.SETS[self.tools], **{name: value for name, value in own.items() if value is not None})

    def _check_tools(self) -> None:
        """InputError for a name that does not exist, or tools that cannot do what the method asks for."""
        choice = self.choice
        for name in choice.detectors:
            plugins.check(name, "detector", "--detectors")
        plugins.check(choice.segmenter, "segmenter", "--segmenter")
        plugins.check(choice.inpainter, "inpainter", "--inpainter")
        finds = {plugins.PLUGINS[name].finds for name in choice.detectors}
        told = f"--detectors {' '.join(choice.detectors)}: --method {self.method}"
        if self.method == "blur-faces" and "face" not in finds:
            raise InputError(f"{told} needs one that finds faces, centerface")
        if choice.masks == "generous" and self.method != "downsample" and not choice.detectors:
            raise InputError(f"{told} needs a detector; they are {', '.join(plugins.named('detector'))}")
        plugins.check_terms(self._bare().used, accept_non_commercial=self.accept_non_commercial)

    def _bare(self) -> Settings:
        """Settings without the files that the user brings."""
        choice = self.choice
        return Settings(
            method=self.method,
            detectors=choice.detectors,
            segmenter=choice.segmenter,
            inpainter=choice.inpainter,
            masks=choice.masks,
            short_side=self.short_side,
        )

    def settings(self) -> Settings:
        """What decides the pixels. InputError when a model is not there."""
        bare = self._bare()
        return replace(bare, models=plugins.files_of(bare.used, self.weights, self.models))


def main(argv: list[str]) -> int:
    """Run `ppma remove-humans ARGV`."""
    config = parse(RemovalConfig, argv, prog="ppma remove-humans")
    report = Console(highlight=False, soft_wrap=True)
    settings, layout = config.settings(), config.choice.layout
    root, clips, refused = removal.read_clips(config.source, config.root, config.workers)
    if config.out.resolve().is_relative_to(root.resolve()) and config.source.is_dir():
        raise InputError(f"--out {config.out} lies in the source {root}; give a folder outside of it")
    jobs = removal.jobs_of(
        clips, root, config.out, settings,
        layout=layout, keep_original=config.keep_original, weights=config.weights,
    )  # fmt: skip
    if inside := [job for job in jobs if job.source.path.resolve().is_relative_to(config.out.resolve())]:
        raise InputError(f"--out {config.out} holds {inside[0].row.path} of the source; give another folder")
    first, step = parse_shard(config.part)
    mine = jobs[first::step]
    if config.dry_run:
        _tell_plan(report, config, mine, refused)
        return DONE
    removal.claim(config.out, settings, layout, config.keep_original)
    return _work(report, config, jobs, mine, refused)


def _work(
    report: Console,
    config: RemovalConfig,
    jobs: Sequence[Job],
    mine: Sequence[Job],
    refused: Sequence[tuple[str, str]],
) -> int:
    """Do the clips of this part, or gather those of all parts."""
    if config.merge is not None:
        return _merge(report, config, jobs, refused)
    with Progress("frames") as progress:
        refused = [*refused, *removal.run(mine, config.workers, progress)]
    if (
        config.part is not None
    ):  # done for its part: a job that waits for all of them is to start, and tells what was refused
        removal.note_refused(config.out, parse_shard(config.part), refused)
        _show(report, refused)
        return DONE
    return _gather(report, config, jobs, refused)


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
        report.print(f"  {plugin.kind} {name}: {plugin.license}", markup=False)
    _show(report, refused)


def _merge(report: Console, config: RemovalConfig, jobs: Sequence[Job], refused: Sequence[tuple[str, str]]) -> int:
    """The manifest of all parts, and the clips that they refused or did not come to."""
    assert config.merge is not None
    known = dict(refused) | removal.refused_by_parts(config.out, config.merge)
    for job in jobs:
        if not job.done():
            known.setdefault(job.row.path, "not there: its part did not finish")
    return _gather(report, config, jobs, sorted(known.items()))


def _gather(report: Console, config: RemovalConfig, jobs: Sequence[Job], refused: Sequence[tuple[str, str]]) -> int:
    manifest = removal.write_manifest(jobs, config.out, refused, config.licence)
    done = [job for job in jobs if job.done()]
    report.print(f"{manifest}: {len(done)} clips, {sum(job.row.frames for job in done)} frames", markup=False)
    if config.name is not None:
        data = catalog.locate(config.data)
        catalog.add(data, name=config.name, split="train", manifest=manifest, root=config.out)
        report.print(f"entered as {config.name}.train in {data}", markup=False)
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
