"""Many clips: which there are, which are done, the rest spread over processes, and a manifest of the result.

    manifest or folder  ->  Job of each clip  ->  worker: clip.Pipeline  ->  inp, seg (and ori), then records/<class>/<video>.json
                                                                         ->  <out>/manifest.csv, rejected.csv

A clip is done when its record is there, which is written after its files; a run after a kill does the others. The source is only read.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath

import cv2

from ppma import __version__
from ppma.common.files import write_csv, write_json
from ppma.common.video import key_frame_spacing
from ppma.common.workers import parallel_map
from ppma.config.errors import FULL_DISK, InputError, watch_disk
from ppma.loaders.decode.fetch import BadClip
from ppma.loaders.sources.formats import FRAME_FOLDER_FPS, read_source
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.probe import probe_all
from ppma.privacy.removal import plugins
from ppma.privacy.removal.clip import ClipSource, Outcome, Pipeline, Settings
from ppma.privacy.removal.writing import Layout, parts, target

PROBE_SECONDS = 60.0
"""A file of a folder that takes longer to look into is refused."""
DOMAINS = {"remove": "human-removed", "blur-faces": "real", "blur-bodies": "real", "downsample": "real"}
"""What the manifest calls the result: blurred people are still in the picture."""
SETTINGS, MANIFEST, REJECTED, PARTS = "settings.json", "manifest.csv", "rejected.csv", "parts"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip, where it comes from and what its results are called."""

    name: str
    """<class>/<video>, the same below inp, seg, ori and records."""
    row: Clip
    """Of the source."""
    source: ClipSource
    out: Path
    layout: Layout
    keep_original: bool
    settings: Settings
    weights: Path

    @property
    def record(self) -> Path:
        """Written last: its presence means that all files are there."""
        return self.out / "records" / f"{self.name}.json"

    def done(self) -> bool:
        """Whether a former run has finished it."""
        return self.record.is_file() and all(
            target(self.out, part, self.name, self.layout).exists() for part in parts(self.keep_original)
        )


def read_clips(source: Path, root: Path | None, workers: int) -> tuple[Path, list[Clip], list[tuple[str, str]]]:
    """(root, clips, (path, reason) of refused ones) of a manifest FILE.csv or a folder <class>/<video>."""
    if source.is_file() and source.suffix.lower() == ".csv":
        manifest = Manifest.read(source, root=root)
        return manifest.root, [manifest.clip(i) for i in range(len(manifest))], []
    if not source.is_dir():
        raise InputError(
            f"{source}: no such folder or manifest; give a folder <class>/<video>, or a FILE.csv of `ppma index`"
        )
    if root is not None:
        raise InputError(f"--root {root} goes with a manifest; a folder is its own root")
    rows = read_source(source, root=source)
    refused = [(row.path, row.reason) for row in rows if row.reason]
    usable = [row for row in rows if not row.reason]
    answers = probe_all([source / row.path for row in usable], workers=workers, timeout_seconds=PROBE_SECONDS)
    clips = []
    for row, found in zip(usable, answers):
        if isinstance(found, str):
            refused.append((row.path, found))
            continue
        known = asdict(found)
        del known["remarks"]
        clips.append(Clip(path=row.path, label=row.label, class_name=row.class_name, source=source.name, **known))
    if not clips:
        raise InputError(f"{source}: none of {len(rows)} clips can be read; the first: {refused[0][0]} {refused[0][1]}")
    return source, clips, sorted(refused)


def names(clips: Sequence[Clip]) -> list[str]:
    """<class>/<video> of each clip, each once: a window of a longer video has its seconds in the name, as in Kinetics."""
    found: dict[str, None] = {}
    for clip in clips:
        path = PurePosixPath(clip.path)
        stem = path.stem if clip.codec not in ("jpeg", "png") else path.name
        if clip.start_seconds is not None or clip.end_seconds is not None:
            stem += f"_{clip.start_seconds or 0:g}_{clip.end_seconds or clip.duration_seconds:g}"
        folder = (clip.class_name or path.parent.name or "clips").replace("/", "_")
        name = f"{folder}/{stem}"
        others = (f"{name}-{number}" for number in count(2))
        found[next(free for free in chain([name], others) if free not in found)] = None
    return list(found)


def jobs_of(
    clips: Sequence[Clip],
    root: Path,
    out: Path,
    settings: Settings,
    *,
    layout: Layout,
    keep_original: bool,
    weights: Path,
) -> list[Job]:
    """A job for each clip."""
    return [
        Job(
            name=name,
            row=clip,
            source=ClipSource(
                path=root / clip.path,
                start_seconds=clip.start_seconds or 0.0,
                end_seconds=clip.end_seconds or float("inf"),
                fps=clip.fps,
            ),
            out=out,
            layout=layout,
            keep_original=keep_original,
            settings=settings,
            weights=weights,
        )
        for name, clip in zip(names(clips), clips)
    ]


@lru_cache(maxsize=1)
def _pipeline(settings: Settings, weights: Path) -> Pipeline:
    """Loaded once a process."""
    cv2.setNumThreads(1)
    return Pipeline(settings, weights)


def work(job: Job) -> str:
    """Do one clip; returns why it was refused, or nothing. DiskFullError when it does not fit."""
    pipeline = _pipeline(job.settings, job.weights)
    with watch_disk(job.out):
        try:
            outcome, _ = pipeline.clean(job.source, job.out, job.name, job.layout, keep_original=job.keep_original)
        except BadClip as error:
            return str(error)
        job.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(job.record, record(job, outcome))
    return ""


def record(job: Job, outcome: Outcome) -> dict[str, object]:
    """What was done to a clip, with what, and where it came from."""
    tools = {name: plugins.PLUGINS[name].license for name in job.settings.used}
    return {
        "name": job.name,
        "source": str(job.source.path),
        "row": asdict(job.row),
        "settings": asdict(replace(job.settings, models=())),
        "tools": tools,
        "models": {model.name: {"path": str(model.path), "sha256": model.sha256} for model in job.settings.models},
        "version": __version__,
        "outcome": asdict(outcome),
    }


def claim(out: Path, settings: Settings, layout: Layout, keep_original: bool) -> None:
    """Make the folder, or check that it holds clips of these settings."""
    models = {model.name: model.sha256 for model in settings.models}  # wherever the file lies
    kept = {"models": models, "layout": layout, "keep_original": keep_original}
    wanted = json.loads(json.dumps(asdict(replace(settings, models=())) | kept))
    note = out / SETTINGS
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not note.exists():
            write_json(note, wanted)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); give a folder of your own") from None
    before = json.loads(note.read_text())
    changed = [f"{key} {before.get(key)}, not {value}" for key, value in wanted.items() if before.get(key) != value]
    if changed:
        raise InputError(f"--out {out} holds clips made with {'; '.join(changed)}; give another folder")


def run(
    jobs: Sequence[Job], workers: int, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[tuple[str, str]]:
    """Do what is left; (path, reason) of clips that cannot be read. Progress is counted in frames.

    After DiskFullError or KeyboardInterrupt finished clips stay, and the same call goes on from there.
    """
    total = sum(job.row.frames for job in jobs)
    left = [job for job in jobs if not job.done()]
    done = total - sum(job.row.frames for job in left)
    on_progress(done, total)
    refused = []
    for job, reason in parallel_map(_work_named, left, workers):
        done += job.row.frames
        on_progress(done, total)
        if reason:
            refused.append((job.row.path, reason))
    return refused


def _work_named(job: Job) -> tuple[Job, str]:
    return job, work(job)


def note_refused(out: Path, turn: tuple[int, int], refused: Sequence[tuple[str, str]]) -> None:
    """Leave for the merge what part `turn` (I of N) could not read."""
    note = _note(out, *turn)
    note.parent.mkdir(exist_ok=True)
    write_json(note, dict(refused))


def refused_by_parts(out: Path, count: int) -> dict[str, str]:
    """path -> reason of the clips that the parts of `count` could not read."""
    notes = [note for i in range(count) if (note := _note(out, i, count)).is_file()]
    return {path: reason for note in notes for path, reason in json.loads(note.read_text()).items()}


def _note(out: Path, part: int, count: int) -> Path:
    return out / PARTS / f"{part}-of-{count}.json"


def write_manifest(jobs: Sequence[Job], out: Path, refused: Sequence[tuple[str, str]], licence: str) -> Path:
    """<out>/manifest.csv of the clips that are done, whose root is `out`, and <out>/rejected.csv."""
    manifest = out / MANIFEST
    lines = [("path", "reason"), *refused]
    write_csv(out / REJECTED, lines)
    rows = list(_rows(jobs, licence))
    if not rows:
        raise InputError(f"{out}: no clip could be worked on; {REJECTED} there says why")
    Manifest.write(manifest, rows)
    return manifest


def _rows(jobs: Sequence[Job], licence: str) -> Iterator[Clip]:
    for job in jobs:
        if not job.done():
            continue
        outcome = json.loads(job.record.read_text())["outcome"]
        video = job.layout == "videos"
        fps = job.source.fps if video else FRAME_FOLDER_FPS
        yield Clip(
            path=target(job.out, "inp", job.name, job.layout).relative_to(job.out).as_posix(),
            label=job.row.label,
            class_name=job.row.class_name,
            source=job.row.source,
            frames=outcome["frames"],
            fps=fps,
            width=outcome["width"],
            height=outcome["height"],
            codec="h264" if video else "jpeg",
            key_frame_spacing=min(key_frame_spacing(fps), outcome["frames"]) if video else 1,
            duration_seconds=round(outcome["frames"] / fps, 6),
            domain=DOMAINS[job.settings.method],
            licence=job.row.licence or licence,
        )


def seconds_a_frame(jobs: Sequence[Job], *, clips: int = 3, frames: int = 3) -> float:
    """CPU seconds that a frame takes, from the middle ones of some on a few clips, and a fifth for what is not tried: painting, writing."""
    chosen = {round(i * (len(jobs) - 1) / max(1, clips - 1)) for i in range(clips)}
    spent: list[float] = []
    for job in (jobs[i] for i in sorted(chosen)):
        pipeline = _pipeline(job.settings, job.weights)
        with suppress(BadClip):  # the run itself names it
            for frame_HWC in islice(job.source.frames(), frames):
                began = time.process_time()
                pipeline.mask(frame_HWC)
                spent.append(time.process_time() - began)
    return 1.2 * statistics.median(spent) if spent else 0.0
