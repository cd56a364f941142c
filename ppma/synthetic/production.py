"""From a configuration to files: clips spread over processes, each kept as soon as it is finished, then the manifest.

    SynthesisConfig -> ClipSpec of each clip -> worker: draw, encode, rename -> <out>/<class>/<split>_<number>.mp4
                                                                              <out>/masks/<class>/..., <out>/empty/<class>/...
                    -> <out>/<split>.csv (and <split>_empty.csv), written last

A clip depends on its address alone and libx264 runs on one thread, so the files are the same to the bit at any number of workers.
A rerun keeps the clips that are there; settings that would mix two kinds of clips in one folder are refused.
"""

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ppma.common.files import write_bytes, write_json
from ppma.common.workers import parallel_map, parse_shard
from ppma.config.errors import InputError, watch_disk
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.synthetic.clip import SCENE_KINDS, ClipSpec, Frame, render, sample_clip, scene_kind
from ppma.synthetic.motion import actions
from ppma.synthetic.render.backgrounds import list_videos
from ppma.synthetic.splits import SPLITS, Split

SIZES = (32, 1024)
MAX_CLIPS = 100_000
MAX_PEOPLE = 6
FRAME_RATES = (4.0, 60.0)
MAX_SECONDS = 60.0
VERSION = 3
"""Of the drawing: raised when the same address gives other pixels."""
SOURCE = "virtual-humans"
RESERVED = ("masks", "empty")
"""Folders beside those of the classes."""
LICENCE = "drawn by ppma synthesize; bodies CC0-1.0 (MakeHuman), motions MIT (DeepMimic)"
X264 = {"preset": "veryfast", "crf": "20", "threads": "1", "sc_threshold": "0", "x264-params": "cpu-independent=1"}
"""One thread, no key frames but the regular ones, and none of the code that differs between processors: the same bytes anywhere. Without
the last, what the memory held before decides how small pictures are coded (x264's macroblock tree, 22 of 30 clips of 48 pixels)."""


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """Draw labelled clips of virtual people, with a manifest.

    ppma synthesize --classes walk wave squat --clips 50 --size 128 --out virtual
    """

    out: Path
    """Folder for the clips, <class>/<video>.mp4, and for <split>.csv, their manifest."""
    classes: tuple[str, ...] = ()
    """Actions to draw; labels are their places in this list. All of them when not given."""
    clips: int = 100
    """Clips of each class, at most 100,000."""
    size: int = 128
    """Pixels along a side, even, 32 to 1024."""
    split: Split = "train"
    """test: bodies, clothes, cameras and backgrounds that train never has."""
    seed: int = 0
    """The same seed gives the same clips to the bit; 0 or more."""
    seconds: float = 3.0
    """Length of a clip, above 0, at most 60 (the loader's window is 2.7 s)."""
    fps: float = 25.0
    """Frames a second, 4 to 60."""
    people: int = 1
    """Up to so many people in a clip, all doing the same, at most 6."""
    backgrounds: Path | None = None
    """Folder of your own human-removed clips to stand in front of; procedural places when not given."""
    bvh: Path | None = None
    """Folder <class>/<file>.bvh of your own motion capture; its folders become classes."""
    masks: bool = False
    """Write whose pixels are people's as well: masks/<class>/<video>.npz with mask_THW."""
    empty: bool = False
    """Draw each scene without people as well: empty/<class>/<video>.mp4 and <split>_empty.csv, labelled by kind of scene: room or open, and
    how the camera moves (without labels before your own backgrounds, of which that is not known)."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes (default: one a core)."""
    part: str | None = None
    """I/N: draw every N-th clip from the I-th, 0 to N - 1, and write no manifest: a task of an array."""
    merge: int | None = None
    """N: write the manifest of N parts that are finished."""
    dry_run: bool = False
    """Only say what would be drawn."""

    def __post_init__(self) -> None:
        self._within("clips", 1, MAX_CLIPS)
        self._within("size", *SIZES)
        self._within("seed", 0, 2**63 - 1)
        self._within("people", 1, MAX_PEOPLE)
        self._within("fps", *FRAME_RATES)
        self._within("seconds", 2 / self.fps, MAX_SECONDS)
        self._within("workers", 1, 1024)
        if self.size % 2:
            raise InputError(f"--size is {self.size}; it must be even (video codecs halve the colors)")
        if self.split not in SPLITS:
            raise InputError(f"--split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
        parse_shard(self.part, self.merge)
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise InputError(f"--classes names {', '.join(repeated)} twice; name each class once")

    def _within(self, name: str, low: float, high: float) -> None:
        if not low <= getattr(self, name) <= high:
            raise InputError(f"--{name} is {getattr(self, name)}; it must be {low:g} to {high:g}")

    @property
    def frames(self) -> int:
        """Frames of each clip."""
        return round(self.seconds * self.fps)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to be drawn and where its files go."""

    address: ClipSpec
    label: int
    root: Path
    masks: bool
    empty: bool

    @property
    def name(self) -> Path:
        """The clip's file, relative to the root."""
        return Path(self.address.class_name) / f"{self.address.split}_{self.address.number:05d}.mp4"

    def files(self) -> dict[str, Path]:
        """Every file that is asked for; the clip comes last, so that its presence means all are there."""
        wanted = {"mask": self.root / "masks" / self.name.with_suffix(".npz")} if self.masks else {}
        wanted |= {"empty": self.root / "empty" / self.name} if self.empty else {}
        return wanted | {"clip": self.root / self.name}

    def done(self) -> bool:
        """Whether a former run has finished it."""
        return all(path.is_file() for path in self.files().values())


def plan(config: SynthesisConfig) -> list[Job]:
    """Every clip of the configuration, class after class; InputError for what cannot be drawn."""
    own = actions.bvh_classes(config.bvh)
    known = (*actions.CLASSES, *own)
    reserved = sorted(set(RESERVED) & set(own))
    if reserved:
        raise InputError(f"--bvh {config.bvh}: a class cannot be called {reserved[0]!r}; rename the folder")
    unknown = [name for name in config.classes if name not in known]
    if unknown:
        raise InputError(f"--classes: there is no {', '.join(map(repr, unknown))}; classes are {', '.join(known)}")
    videos = list_videos(config.backgrounds, config.split) if config.backgrounds else ()
    return [
        Job(
            address=_address(config, name, number, own.get(name, ()), videos),
            label=label,
            root=config.out,
            masks=config.masks,
            empty=config.empty,
        )
        for label, name in enumerate(config.classes or known)
        for number in range(config.clips)
    ]


def _address(
    config: SynthesisConfig, name: str, number: int, files: tuple[Path, ...], videos: tuple[Path, ...]
) -> ClipSpec:
    return ClipSpec(
        seed=config.seed, split=config.split, class_name=name, number=number, size=config.size, frames=config.frames,
        fps=config.fps, people=config.people, bvh_files=files, videos=videos,
    )  # fmt: skip


def encode(pictures: list[np.ndarray], fps: float) -> bytes:
    """An MP4 of H.264 with a key frame every second; the same pictures give the same bytes."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=X264)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        stream.codec_context.gop_size = key_frame_spacing(fps)
        stream.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return memory.getvalue()


def key_frame_spacing(fps: float) -> int:
    """Frames from one key frame to the next: the loader reads from the one before its window."""
    return max(1, round(fps))


def make(job: Job) -> None:
    """Draw one clip and write its files; DiskFullError when they do not fit."""
    frames: list[Frame] = list(render(sample_clip(job.address), empty=job.empty))
    files, fps = job.files(), job.address.fps
    contents = {"clip": lambda: encode([frame.picture_PP3 for frame in frames], fps)}
    contents["mask"] = lambda: _pack(np.stack([frame.mask_PP for frame in frames]))
    contents["empty"] = lambda: encode([frame.empty_PP3 for frame in frames if frame.empty_PP3 is not None], fps)
    with watch_disk(job.root):
        for kind, path in files.items():
            write_bytes(path, contents[kind]())


def _pack(mask_THW: np.ndarray) -> bytes:
    memory = io.BytesIO()
    np.savez_compressed(memory, mask_THW=mask_THW)
    return memory.getvalue()


def _settings(config: SynthesisConfig) -> dict[str, object]:
    """What must be the same for clips in one folder; the number of clips and classes may grow."""
    kept = {name: getattr(config, name) for name in ("size", "split", "seed", "seconds", "fps", "people")}
    folders = {
        name: str(folder.resolve()) if (folder := getattr(config, name)) else None for name in ("backgrounds", "bvh")
    }
    return {"version": VERSION, **kept, **folders}


def _claim(config: SynthesisConfig) -> None:
    """Make the folder, or check that it holds clips of these settings."""
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {config.out}: cannot be made ({error.strerror}); give a folder of your own") from None
    note, settings = config.out / f"{config.split}.settings.json", _settings(config)
    if not note.exists():
        write_json(note, settings)
        return
    before = json.loads(note.read_text())
    changed = [
        f"{name} {before.get(name)}, not {value}" for name, value in settings.items() if before.get(name) != value
    ]
    if changed:
        raise InputError(
            f"--out {config.out} holds {config.split} clips with {'; '.join(changed)}; give another folder"
        )


def _row(job: Job, *, empty: bool) -> Clip:
    address = job.address
    kind = scene_kind(address)
    scene = SCENE_KINDS.index(kind) if kind else None
    return Clip(
        path=(Path("empty") / job.name if empty else job.name).as_posix(),
        label=scene if empty else job.label,
        class_name=(kind or "") if empty else address.class_name,
        source=SOURCE,
        frames=address.frames,
        fps=float(Fraction(address.fps).limit_denominator(1001)),
        width=address.size,
        height=address.size,
        codec="h264",
        key_frame_spacing=min(key_frame_spacing(address.fps), address.frames),
        duration_seconds=address.frames / address.fps,
        domain="synthetic",
        licence=LICENCE,
    )


def generate(config: SynthesisConfig, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Draw what the configuration asks for and return the manifest, <out>/<split>.csv (its root is config.out), which a part leaves to
    the merge.

    `on_progress(done, total)` is called at the start and after each clip. Clips that are there already are kept.
    After DiskFullError or KeyboardInterrupt finished clips stay, and the same call goes on from there.
    InputError: what is asked for cannot be drawn, or is not all there to be merged.
    """
    jobs = plan(config)
    first, step = parse_shard(config.part)
    mine = jobs[first::step]
    with watch_disk(config.out):
        _claim(config)
    left = [job for job in mine if not job.done()]
    if config.merge is not None and left:
        part = jobs.index(left[0]) % config.merge
        raise InputError(f"{left[0].name} and {len(left) - 1} more are missing; run --part {part}/{config.merge} first")
    done = len(mine) - len(left)
    on_progress(done, len(mine))
    for _ in parallel_map(make, left, config.workers):
        done += 1
        on_progress(done, len(mine))
    manifest = config.out / f"{config.split}.csv"
    if config.part is None:
        _write_manifests(config, jobs, manifest)
    return manifest


def _write_manifests(config: SynthesisConfig, jobs: Sequence[Job], manifest: Path) -> None:
    with watch_disk(config.out):
        if config.empty:
            Manifest.write(config.out / f"{config.split}_empty.csv", (_row(job, empty=True) for job in jobs))
        Manifest.write(manifest, (_row(job, empty=False) for job in jobs))
