"""`ppma remove-humans`: remove people from videos.

flags  ->  RemovalConfig  ->  RemovalJobs  ->  an estimate, or cleaned clips and their manifest
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, overload

import numpy as np
import tyro
from rich.console import Console
from torch import Tensor

from ppma.common import engines
from ppma.common.frames import clips_of
from ppma.common.progress import Progress
from ppma.common.shares import FOLDER, SharedWork
from ppma.config.command import DONE, FAILED_AUDIT, OutFile, OutFolder, as_flags, check_ranges, parse
from ppma.config.errors import InputError, counted, first_few, require
from ppma.loaders.sources import catalog
from ppma.loaders.sources.listing import Refused, read_clips
from ppma.privacy.detectors.tools import find_files
from ppma.privacy.detectors.weights import default_folder
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal import plugins
from ppma.privacy.removal.clip import ClipSource, Method, Pipeline, Settings, video_frames
from ppma.privacy.removal.jobs import RemovalJob

log = logging.getLogger(__name__)

SHOWN = 10
"""Refused clips that are printed; rejected.csv has all."""


def _help(what: str, kind: plugins.Kind) -> object:
    return tyro.conf.arg(help=f"{what} ({', '.join(plugins.named(kind))}).")


@dataclass(frozen=True, kw_only=True)
class RemovalConfig(SharedWork):
    """Detect people in every frame, paint over them, and write new clips without sound and metadata.

    Rerun it after an interruption: finished clips are kept. Exit code 3: people are still detected in some cleaned
    clips. It does not show that no person remains; `ppma audit` checks that.

    For example:
      ppma remove-humans videos/real --out removed --dry-run
      ppma remove-humans videos/real --out removed
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A video, a folder <class>/<video> (or <class>/<folder of frames>), or a manifest FILE.csv of `ppma index`."""
    out: OutFolder
    """Folder for inp (cleaned clips), seg (masks), records, manifest.csv and rejected.csv."""
    root: Path | None = None
    """Folder that the paths of a manifest are relative to (default: its own)."""
    method: Method = "remove"
    """remove; or for comparison: blur-faces, blur-bodies, downsample (the whole picture)."""
    tools: Annotated[Literal["default", "quality", "paper"], tyro.conf.arg(name="set")] = "default"
    """default: small models, on a CPU; quality: Mask R-CNN and LaMa, from `ppma privacy fetch --set quality`; paper:
    threshold, dilation and layout as published, with SeMask and E2FGVI that you provide. --layout, --detectors,
    --segmenter and --inpainter override it."""
    layout: Literal["videos", "frames"] | None = None
    """videos: <class>/<video>.mp4, at least 40 dB outside the masks; frames: as published,
    <class>/<video>/000001.jpg."""
    keep_original: bool = False
    """Write ori too, the frames before cleaning."""
    effects: bool = False
    """Remove shadows and reflections attached to people too, where other frames show the place without people near."""
    detectors: Annotated[tuple[str, ...] | None, _help("Detectors of people and faces", "detector")] = None
    segmenter: Annotated[str | None, _help("Segmenter that outlines people", "segmenter")] = None
    inpainter: Annotated[str | None, _help("Inpainter of the background behind people", "inpainter")] = None
    models: tuple[str, ...] = ()
    """Model files that you provide, NAME=FILE or NAME=FILE#SHA256 (names: `ppma privacy list`; default: in
    --weights)."""
    accept_non_commercial: bool = False
    """Allow tools licensed for non-commercial use only."""
    short_side: int = Settings.short_side
    """Pixels along the short side that --method downsample keeps."""
    weights: Path = field(default_factory=default_folder)
    """Folder of the models (`ppma privacy fetch` fills it)."""
    licence: str = ""
    """Terms of use of the footage, for rows that state none."""
    name: str | None = None
    """Add the result to data.toml under this source name, as its split `train`."""
    data: OutFile | None = None
    """The data.toml (default: $PPMA_DATA, else ./data.toml)."""
    dry_run: bool = False
    """Try a few frames and print the estimated time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, short_side=(1, float("inf")))
        if self.method != "downsample" and self.short_side != Settings.short_side:
            raise InputError("--short-side goes with --method downsample")
        if self.name is not None:
            catalog.check_name(self.name, "name")
        settings = self._settings_without_models()
        for name in settings.detectors:
            plugins.check(name, "detector", "--detectors")
        plugins.check(settings.segmenter, "segmenter", "--segmenter")
        plugins.check(settings.inpainter, "inpainter", "--inpainter")
        problem = f"--detectors {' '.join(settings.detectors)}: --method {self.method} needs"
        if self.method == "blur-faces" and not settings.used:
            raise InputError(f"{problem} one that finds faces, centerface")
        if settings.masks == "published" and plugins.PLUGINS[settings.segmenter].takes == "boxes":
            raise InputError(f"--segmenter {settings.segmenter} needs boxes, but --set paper uses none; leave one out")
        if settings.masks == "generous" and self.method != "downsample" and not settings.detectors:
            raise InputError(f"{problem} a detector; they are {', '.join(plugins.named('detector'))}")
        if self.effects and (self.method != "remove" or not settings.detectors):
            raise InputError("--effects goes with --method remove and --detectors")
        self._check_used(settings)
        plugins.check_terms(settings.used, accept_non_commercial=self.accept_non_commercial)

    def _check_used(self, settings: Settings) -> None:
        """Raise an InputError for a set or a tool that was asked for and changes nothing."""
        plain = Settings(method=self.method, layout=self.layout or Settings.layout)
        masks = settings.masks if settings.segmenter in settings.used else plain.masks
        same = (settings.used, settings.layout, masks) == (plain.used, plain.layout, plain.masks)
        if self.tools != "default" and same:
            raise InputError(f"--set {self.tools} changes nothing with these flags; leave it out")
        given = {
            "--detectors": self.detectors or (),
            "--segmenter": (self.segmenter,),
            "--inpainter": (self.inpainter,),
        }
        asked = [(flag, name) for flag, names in given.items() for name in names if name is not None]
        if unused := [f"{flag} {name}" for flag, name in asked if name not in settings.used]:
            raise InputError(f"{unused[0]}: --method {self.method} of --set {self.tools} does not use it; leave it out")

    def _settings_without_models(self) -> Settings:
        """Return the tools of the set, overridden by flags."""
        changes = {name: getattr(self, name) for name in ("detectors", "segmenter", "inpainter", "layout")}
        choice = replace(plugins.SETS[self.tools], **{k: value for k, value in changes.items() if value is not None})
        return Settings(
            method=self.method, short_side=self.short_side, keep_original=self.keep_original, effects=self.effects,
            **vars(choice),
        )  # fmt: skip  # one field after the other

    def settings(self) -> Settings:
        """Return what decides the files of a clip; InputError if a model is missing."""
        settings = self._settings_without_models()
        return replace(
            settings, models=find_files([plugins.PLUGINS[name] for name in settings.used], self.weights, self.models)
        )


@overload
def remove_humans(source: Path | str, out: Path | str = ..., *, fps: None = ..., **flags: object) -> Path:
    """Remove people from files."""


@overload
def remove_humans(source: np.ndarray | Tensor, out: None = ..., *, fps: float, **flags: object) -> np.ndarray:
    """Remove people from frames in memory."""


def remove_humans(
    source: Path | str | np.ndarray | Tensor,
    out: Path | str | None = None,
    *,
    fps: float | None = None,
    **flags: object,
) -> Path | np.ndarray:
    """Remove people from videos as `ppma remove-humans` does.

    Args:
        source: A video, a folder <class>/<video>, or a manifest FILE.csv; or uint8 RGB frames in memory, (T, H, W, 3) or
            a batch (B, T, H, W, 3).
        out: Folder for the cleaned clips (inp), masks (seg), records and manifest.csv (default: removed); not for frames.
        fps: Frames per second of frames in memory.
        flags: Other flags of `ppma remove-humans`, with _ for -: method="blur-faces", workers=2.

    Returns:
        The folder `out`, which `ppma.audit` takes; or the cleaned frames, in the shape of `source` and equal to it
        outside the masks. A warning is logged if people are still detected in them.

    Raises:
        InputError: There is no such source, flag or model, or some clips cannot be read; the others are done.
    """
    if isinstance(source, str | Path):
        require(fps is None, "fps is for frames in memory; files have their own")
        out = "removed" if out is None else out
        run(
            parse(RemovalConfig, [str(source), *as_flags({"out": out, **flags})], prog="ppma remove-humans"),
            Console(quiet=True),
        )
        return Path(out)
    if fps is None or not 0 < fps < float("inf"):
        raise InputError(f"fps is {fps}; give the frames per second of the frames, for example fps=25")
    wrong = sorted({*flags, *(("out",) if out else ())} - IN_MEMORY)
    require(
        not wrong,
        f"{first_few(wrong, 3)}: not for frames in memory, which are returned; give {', '.join(sorted(IN_MEMORY))}",
    )
    with tempfile.TemporaryDirectory(prefix="ppma-") as folder:
        words = ["frames", *as_flags({"out": folder, **flags})]
        config = parse(RemovalConfig, words, prog="ppma remove-humans")
        pipeline, clips = Pipeline(config.settings(), config.weights), clips_of(source)
        cleaned = [
            _clean(pipeline, FramesInMemory(frames_THWC=clip, fps=fps), Path(folder), i) for i, clip in enumerate(clips)
        ]
    return np.stack(cleaned) if source.ndim == 5 else cleaned[0]


IN_MEMORY = {
    "accept_non_commercial", "detectors", "effects", "inpainter", "method", "models", "segmenter", "set", "short_side", "weights",
}  # fmt: skip
"""Flags that decide the pixels of a clip."""


@dataclass(frozen=True, kw_only=True)
class FramesInMemory(ClipSource):
    """A clip that is no file."""

    path: Path = Path("frames")
    frames_THWC: np.ndarray

    def frames(self) -> Iterator[np.ndarray]:
        """Yield a copy of each frame."""
        yield from map(np.copy, self.frames_THWC)


def _clean(pipeline: Pipeline, source: FramesInMemory, folder: Path, number: int) -> np.ndarray:
    outcome, paths = pipeline.clean(source, folder, f"frames/{number}")
    if outcome.clean is False:
        log.warning("people are still detected in the cleaned frames of clip %d; look at them, or leave it out", number)
    cleaned, masks = (video_frames(paths[part]) for part in ("inp", "seg"))
    shown = zip(cleaned, masks, source.frames_THWC, strict=True)
    return np.stack([np.where(mask_HWC > 127, new_HWC, old_HWC) for new_HWC, mask_HWC, old_HWC in shown])


def main(argv: list[str]) -> int:
    """Run `ppma remove-humans ARGV`."""
    config = parse(RemovalConfig, argv, prog="ppma remove-humans")
    unclean = run(config, Console(highlight=False, soft_wrap=True, markup=False))
    return FAILED_AUDIT if unclean else DONE


def run(config: RemovalConfig, report: Console) -> list[str]:
    """Remove people from the clips of a config, or estimate what that takes; report on the console.

    Returns:
        The names of clips in whose result people are still detected, of a run that is not a part or merge.

    Raises:
        InputError: Some clips cannot be read; the others are done.
    """
    settings = config.settings()
    engine = engines.find(config.engine)
    root, clips, refused = read_clips(config.source, config.root, config.workers, engine)
    if config.out.resolve().is_relative_to(root.resolve()) and config.source.is_dir():
        raise InputError(f"--out {config.out} is inside the source {root}; give a folder outside of it")
    jobs = removal.jobs_of(clips, root, config.out, settings, config.weights)
    if inside := [job for job in jobs if job.source.path.resolve().is_relative_to(config.out.resolve())]:
        raise InputError(f"--out {config.out} holds {inside[0].row.path} of the source; give another folder")
    alone = config.part is None and config.merge is None
    share = config.share(None if alone else config.out / FOLDER)
    if config.dry_run:
        if (config.out / removal.SETTINGS).exists():
            removal.claim(config.out, settings)
        _print_estimate(report, config, jobs[share.part[0] :: share.part[1]])
        _print_refused(report, refused)
        return []
    if settings.models and config.merge is None:  # one that does not load is refused before the folder is claimed
        Pipeline(settings, config.weights)
    removal.claim(config.out, settings)
    if config.merge is not None:
        known = dict(refused) | removal.gather(jobs, share, config.out)
        _finish(report, config, jobs, sorted(known.items()))
        share.clear()
        return []
    with Progress("frames") as progress:
        refused = [*refused, *removal.run(jobs, config.workers, progress, share, engine)]
    if config.part is not None:
        _print_refused(report, refused)
        return []
    unclean = _finish(report, config, jobs, refused)
    rejected = config.out / removal.REJECTED
    require(not refused, f"cannot be read: {counted(len(refused), 'clip')}, see {rejected}; the others are done")
    return unclean


def _print_estimate(report: Console, config: RemovalConfig, jobs: Sequence[RemovalJob]) -> None:
    left = [job for job in jobs if not job.done()]
    frames = sum(job.row.frames for job in left)
    seconds = removal.seconds_per_frame(left) if left else (0.0, 0.0)
    hours = [str(timedelta(seconds=round(each * frames / config.workers))) for each in seconds]
    report.print(
        f"{counted(len(jobs), 'clip')}, {len(jobs) - len(left)} of them done; {frames} frames left at {seconds[0]:.2f} to"
        f" {seconds[1]:.2f} s of one core each (by rounds): about {hours[0]} to {hours[1]} with {counted(config.workers, 'worker')};"
        f" would write {config.out}"
    )
    for name in config.settings().used:
        plugin = plugins.PLUGINS[name]
        report.print(f"  {plugin.kind} {name}: {plugin.license}")


def _finish(report: Console, config: RemovalConfig, jobs: Sequence[RemovalJob], refused: Refused) -> list[str]:
    """Write the manifest of all parts and add it to data.toml; return the clips that are not clean."""
    manifest = removal.write_manifest(jobs, config.out, refused, config.licence)
    done = [job for job in jobs if job.done()]
    report.print(f"{manifest}: {counted(len(done), 'clip')}, {sum(job.row.frames for job in done)} frames")
    if config.name is not None:
        data = catalog.locate(config.data)
        catalog.add(data, name=config.name, split="train", manifest=manifest, root=config.out)
        report.print(f"added {config.name}.train to {data}")
    _print_refused(report, refused)
    if unclean := removal.unclean(jobs):
        report.print(f"not clean, with people still detected: {counted(len(unclean), 'clip')}")
        _print_refused(report, [(name, "look at it, or leave it out") for name in unclean])
    return unclean


def _print_refused(report: Console, refused: Refused) -> None:
    for path, reason in refused[:SHOWN]:
        report.print(f"  {path}: {reason}")
    if len(refused) > SHOWN:
        report.print(f"  ... and {len(refused) - SHOWN} more")
