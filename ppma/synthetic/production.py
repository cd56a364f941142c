"""`ppma synthesize`: render labeled clips of virtual people, and their manifest.

    flags  ->  SynthesisConfig  ->  ClipSpec of each clip  ->  workers: render, encode  ->  <class>/<split>_<number>.mp4
                                                              and masks/<class>/..., empty/<class>/...
                                ->  <split>.csv (and <split>_empty.csv), written last, and data.toml

A clip depends on its spec alone and libx264 runs on one thread, so the files do not depend on the number of workers.
A rerun keeps finished clips; a folder with clips of other settings is refused.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ppma.common import engines
from ppma.common.files import atomic_path, claim_folder, removing_leftovers
from ppma.common.progress import Progress
from ppma.common.shares import FOLDER, Share, SharedWork
from ppma.common.video import frame_rate, key_frame_spacing, video_writer
from ppma.common.workers import Engine, parallel_map
from ppma.config.command import DONE, OutFile, OutFolder, check_ranges, parse
from ppma.config.errors import InputError, counted
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.synthetic.clip import SCENE_KINDS, ClipSpec, render, sample_clip, scene_kind
from ppma.synthetic.motion import actions
from ppma.synthetic.render.backgrounds import list_videos
from ppma.synthetic.splits import SPLITS, Split

VERSION = 3
"""Version of the renderer: raised when the same spec gives other pixels."""
SOURCE = "virtual-humans"
RESERVED = ("masks", "empty")
"""Folders next to those of the classes."""
LICENSE = "drawn by ppma synthesize; bodies CC0-1.0 (MakeHuman), motions MIT (DeepMimic)"
X264 = {"preset": "veryfast", "crf": "20", "sc_threshold": "0"}
"""Regular key frames only."""


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig(SharedWork):
    """Render labeled clips of virtual people, with a manifest.

    For example:
      ppma synthesize --classes walk wave squat --clips 50 --size 128 --out virtual
    """

    out: OutFolder
    """Folder for the clips, <class>/<video>.mp4, and for <split>.csv, their manifest."""
    classes: tuple[str, ...] = ()
    """Actions to render, all if none is given; labels are their positions in this list."""
    clips: int = 100
    """Clips per class, at most 100,000."""
    size: int = 128
    """Pixels along a side, even, 32 to 1024."""
    split: Split = "train"
    """test: bodies, clothes, cameras and backgrounds that train never has."""
    seed: int = 0
    """The same seed gives identical clips; 0 or more."""
    seconds: float = 3.0
    """Length of a clip, above 0, at most 60 (the loader's window is 2.7 s)."""
    fps: float = 25.0
    """Frames per second, 4 to 60."""
    people: int = 1
    """Largest number of people in a clip, all doing the same action, at most 6."""
    backgrounds: Path | None = None
    """Folder of your own human-removed clips to use as backgrounds in place of rendered scenes."""
    bvh: Path | None = None
    """Folder <class>/<file>.bvh of your own motion capture; its folders become classes."""
    masks: bool = False
    """Also write the pixels of people: masks/<class>/<video>.npz with mask_THW."""
    empty: bool = False
    """Also render each scene without people: empty/<class>/<video>.mp4 and <split>_empty.csv.
    Labels are kinds of scenes (room or open, and camera motion); none with your own backgrounds."""
    name: str | None = None
    """Add the result to data.toml under this source name, and empty scenes under NAME-empty."""
    data: OutFile | None = None
    """The data.toml (default: $PPMA_DATA, else ./data.toml)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            clips=(1, 100_000),
            size=(32, 1024),
            seed=(0, float("inf")),
            people=(1, 6),
            fps=(4, 60),
        )
        check_ranges(self, seconds=(2 / self.fps, 60))
        if self.size % 2:
            raise InputError(f"--size is {self.size}; it must be even (video codecs halve the colors)")
        if self.split not in SPLITS:
            raise InputError(f"--split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
        if self.name is not None:
            catalog.check_name(self.name, "name")
        if self.data is not None and self.name is None:
            raise InputError("--data is given without --name; give the source's name, or leave --data out")
        if repeated := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            raise InputError(f"--classes names {', '.join(repeated)} twice; name each class once")

    @property
    def frames(self) -> int:
        """Number of frames of each clip."""
        return round(self.seconds * self.fps)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to render, and where its files go."""

    spec: ClipSpec
    label: int
    root: Path
    masks: bool
    empty: bool

    def __str__(self) -> str:
        return str(self.name)

    @property
    def name(self) -> Path:
        """The clip's file, relative to the root."""
        return Path(self.spec.class_name) / f"{self.spec.split}_{self.spec.number:05d}.mp4"

    def files(self) -> dict[str, Path]:
        """Return the path of every requested file; the clip comes last, so its presence means that all are complete."""
        wanted = {"mask": self.root / "masks" / self.name.with_suffix(".npz")} if self.masks else {}
        wanted |= {"empty": self.root / "empty" / self.name} if self.empty else {}
        return wanted | {"clip": self.root / self.name}

    def done(self) -> bool:
        """True if an earlier run finished the clip."""
        return all(path.is_file() for path in self.files().values())


def plan(config: SynthesisConfig) -> list[Job]:
    """Return a job for each clip, class after class.

    Raises:
        InputError: A class, a BVH file or a background cannot be used.
    """
    own = actions.bvh_classes(config.bvh)
    known = (*actions.CLASSES, *own)
    if reserved := sorted(set(RESERVED) & set(own)):
        raise InputError(f"--bvh {config.bvh}: a class cannot be named {reserved[0]!r}; rename the folder")
    if unknown := [name for name in config.classes if name not in known]:
        raise InputError(f"--classes: there is no {', '.join(map(repr, unknown))}; classes are {', '.join(known)}")
    videos = list_videos(config.backgrounds, config.split) if config.backgrounds else ()
    shared = {name: getattr(config, name) for name in ("seed", "split", "size", "frames", "fps", "people")}

    def job(label: int, name: str, number: int) -> Job:
        spec = ClipSpec(class_name=name, number=number, bvh_files=own.get(name, ()), videos=videos, **shared)
        return Job(spec=spec, label=label, root=config.out, masks=config.masks, empty=config.empty)

    return [job(k, name, n) for k, name in enumerate(config.classes or known) for n in range(config.clips)]


def encode(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    """Write an MP4 of H.264 atomically, with a key frame every second; the same pictures give the same bytes."""
    with video_writer(path, fps=fps, options=X264) as add:
        for picture in pictures:
            add(picture)


def make(job: Job) -> str:
    """Render one clip, write its files, and return its name; DiskFullError if they do not fit."""
    frames, files = list(render(sample_clip(job.spec), empty=job.empty)), job.files()
    if job.masks:
        with atomic_path(files["mask"]) as temp_path:
            np.savez_compressed(temp_path, mask_THW=np.stack([frame.mask_PP for frame in frames]))
    if job.empty:
        encode(files["empty"], [frame.empty_PP3 for frame in frames if frame.empty_PP3 is not None], job.spec.fps)
    encode(files["clip"], [frame.picture_PP3 for frame in frames], job.spec.fps)
    return str(job)


def _claim(config: SynthesisConfig) -> None:
    """Record the settings that all clips in a folder share; the number of clips and classes may grow."""
    settings = {name: getattr(config, name) for name in ("size", "split", "seed", "seconds", "fps", "people")}
    folders = {n: str(f.resolve()) if (f := getattr(config, n)) else None for n in ("backgrounds", "bvh")}
    note = config.out / f"{config.split}.settings.json"
    claim_folder(note, {"version": VERSION, **settings, **folders}, f"{config.split} clips")


def _row(job: Job, *, empty: bool) -> Clip:
    """Return the manifest's row of a clip, or of its empty twin."""
    spec = job.spec
    kind = scene_kind(spec)
    scene = SCENE_KINDS.index(kind) if kind else None
    return Clip(
        path=(Path("empty") / job.name if empty else job.name).as_posix(),
        label=scene if empty else job.label,
        class_name=(kind or "") if empty else spec.class_name,
        source=SOURCE,
        frames=spec.frames,
        fps=float(frame_rate(spec.fps)),
        width=spec.size,
        height=spec.size,
        codec="h264",
        key_frame_spacing=min(key_frame_spacing(spec.fps), spec.frames),
        duration_seconds=spec.frames / spec.fps,
        domain="synthetic",
        licence=LICENSE,
    )


def generate(config: SynthesisConfig, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Render the requested clips and return the path of their manifest, <out>/<split>.csv.

    Finished clips are kept. After a DiskFullError or KeyboardInterrupt the same call resumes.

    Args:
        config: What to render; with `part`, together with other tasks, and the manifest is left to the `merge`.
        on_progress: Called with (done, total) at the start and after each clip.

    Raises:
        InputError: A clip cannot be rendered, or one is missing in a merge.
        DiskFullError: No space is left.
    """
    jobs = {str(job): job for job in plan(config)}
    if config.name is not None:
        catalog.read(catalog.locate(config.data))  # a file that cannot be read is refused before the work
    alone = config.part is None and config.merge is None
    share = config.share(None if alone else config.out / FOLDER, done=lambda name: jobs[name].done())
    _claim(config)
    if config.merge is not None:
        share.require_all(jobs)
    with removing_leftovers(path for job in jobs.values() if config.part is None for path in job.files().values()):
        _render(list(jobs.values()), config.workers, share, on_progress, engines.find(config.engine))
    manifest = config.out / f"{config.split}.csv"
    if config.part is None:
        _write_manifests(config, list(jobs.values()))
        share.clear()
    return manifest


def _render(
    jobs: Sequence[Job], workers: int, share: Share, on_progress: Callable[[int, int], None], engine: Engine
) -> None:
    """Render the clips of a share that are not done."""
    first, step = share.part
    own, left = jobs[first::step], {str(job): job for job in jobs if not job.done()}
    done = sum(str(job) not in left for job in own)
    on_progress(done, len(own))
    for names in share.rounds(list(left)):
        for name in parallel_map(make, (left[name] for name in names), workers, engine=engine):
            share.finish(name)
            done += 1
            on_progress(min(done, len(own)), len(own))


def _write_manifests(config: SynthesisConfig, jobs: Sequence[Job]) -> None:
    """Write the manifests, and add them to data.toml if they have a name."""
    for empty in (True, False) if config.empty else (False,):
        manifest = config.out / f"{config.split}{'_empty' * empty}.csv"
        Manifest.write(manifest, (_row(job, empty=empty) for job in jobs))
        if config.name is not None:
            name, data = f"{config.name}{'-empty' * empty}", catalog.locate(config.data)
            catalog.add(data, name=name, split=config.split, manifest=manifest, root=config.out)


def main(argv: list[str]) -> int:
    """Run `ppma synthesize ARGV`."""
    config = parse(SynthesisConfig, argv, prog="ppma synthesize")
    report = Console(highlight=False, soft_wrap=True)
    if config.dry_run:
        jobs = plan(config)
        size = f"{config.frames} frames of {config.size} x {config.size} pixels at {config.fps:g}/s"
        classes = len(jobs) // config.clips
        report.print(
            f"{counted(len(jobs), 'clip')} of {counted(classes, 'class', 'classes')}, {size}; would write {config.out}",
            markup=False,
        )
        return DONE
    with Progress("clips") as progress:
        manifest = generate(config, on_progress=progress)
    if config.part is not None:
        report.print(f"{config.out}: part {config.part} is done; --merge writes the manifest", markup=False)
        return DONE
    rows = sum(1 for _ in manifest.open()) - 1
    report.print(f"{manifest}: {counted(rows, 'clip')}, {rows * config.seconds / 3600:.2f} hours", markup=False)
    if config.name is not None:
        report.print(f"entered as {config.name}.{config.split} in {catalog.locate(config.data)}", markup=False)
    return DONE
