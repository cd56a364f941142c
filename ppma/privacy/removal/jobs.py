"""Clean many clips in parallel, resumably, and write a manifest of the result.

    manifest or folder  ->  RemovalJob of each clip  ->  Pipeline in a worker  ->  inp, seg (and ori), then records/
                                                                               ->  manifest.csv, rejected.csv

The record is written after a clip's files, so a clip is done when its record exists; a rerun does the others. Tasks of
an array share the clips (ppma.common.shares) and note the reasons of refused ones for the merge. Sources are only read.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path, PurePosixPath

import cv2

from ppma import __version__
from ppma.common.files import claim_folder, remove_leftovers, removing_leftovers, write_csv, write_json
from ppma.common.frames import FRAME_FOLDER_FPS, clip_place
from ppma.common.shares import Share
from ppma.common.video import key_frame_spacing
from ppma.common.workers import Engine, parallel_events, parallel_map
from ppma.config.errors import BadClip, InputError, reading, watch_disk
from ppma.loaders.sources.listing import Refused
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.privacy.removal import plugins
from ppma.privacy.removal.clip import ROUNDS, ClipSource, Outcome, Pipeline, Settings
from ppma.privacy.removal.steady import STEP

DOMAINS = {"remove": "human-removed", "blur-faces": "real", "blur-bodies": "real", "downsample": "real"}
"""Domain of the result in its manifest: blurred people are still in the picture."""
SAMPLE_CLIPS, SAMPLE_FRAMES = 3, 3 * STEP + 1
"""Clips that are tried for an estimate, and frames from the middle of each: enough to see whether each frame is searched."""
SETTINGS, MANIFEST, REJECTED = "settings.json", "manifest.csv", "rejected.csv"


@dataclass(frozen=True, kw_only=True)
class RemovalJob:
    """One clip to clean."""

    name: str
    """<class>/<video>, the same below inp, seg, ori and records."""
    row: Clip
    """Its row in the source's manifest."""
    root: Path
    """Folder that the row's path is relative to."""
    out: Path
    settings: Settings
    weights: Path

    @property
    def source(self) -> ClipSource:
        """The file and window to read."""
        start, end = self.row.start_seconds or 0.0, self.row.end_seconds or float("inf")
        return ClipSource(path=self.root / self.row.path, start_seconds=start, end_seconds=end, fps=self.row.fps)

    @property
    def record(self) -> Path:
        """Path of the record, which is written last and so marks a finished clip."""
        return self.out / "records" / f"{self.name}.json"

    def done(self) -> bool:
        """True if an earlier run has written the record and all files."""
        return self.record.is_file() and all(
            path.exists() for path in self.settings.targets(self.out, self.name).values()
        )


def names(clips: Sequence[Clip]) -> list[str]:
    """Return a unique <class>/<video> for each clip, with the seconds of its window in a longer video, as in
    Kinetics."""
    found: dict[str, None] = {}
    for clip in clips:
        path = clip_place(PurePosixPath(clip.path))
        stem = path.stem if clip.codec not in ("jpeg", "png") else path.name
        if clip.start_seconds is not None or clip.end_seconds is not None:
            stem += f"_{clip.start_seconds or 0:g}_{clip.end_seconds or clip.duration_seconds:g}"
        folder = (clip.class_name or path.parent.name or "clips").replace("/", "_")
        folder = folder if folder.strip(".") else folder.replace(".", "_")  # "..", which would lead out of inp
        name, numbers = f"{folder}/{stem}", count(2)
        while name in found:
            name = f"{folder}/{stem}-{next(numbers)}"
        found[name] = None
    return list(found)


def jobs_of(clips: Sequence[Clip], root: Path, out: Path, settings: Settings, weights: Path) -> list[RemovalJob]:
    """Return a job for each clip."""
    return [
        RemovalJob(name=name, row=clip, root=root, out=out, settings=settings, weights=weights)
        for name, clip in zip(names(clips), clips)
    ]


@lru_cache(maxsize=1)
def load_pipeline(settings: Settings, weights: Path) -> Pipeline:
    """Load the plug-ins once per process."""
    cv2.setNumThreads(1)
    return Pipeline(settings, weights)


def work(job: RemovalJob) -> tuple[RemovalJob, str]:
    """Clean one clip and write its record; return the job, and the reason if the clip cannot be read."""
    try:
        with watch_disk(job.out):
            outcome, _ = load_pipeline(job.settings, job.weights).clean(job.source, job.out, job.name)
    except BadClip as error:
        return job, str(error)
    write_json(job.record, record(job, outcome))
    return job, ""


def _lost(job: RemovalJob, reason: str) -> tuple[RemovalJob, str]:
    return job, f"killed the process that cleaned it ({reason})"


def record(job: RemovalJob, outcome: Outcome) -> dict[str, object]:
    """Return the provenance of a cleaned clip: its source, tools, settings and outcome."""
    return {
        "name": job.name,
        "source": str(job.source.path),
        "row": asdict(job.row),
        "settings": asdict(replace(job.settings, models=())),
        "tools": {name: plugins.PLUGINS[name].license for name in job.settings.used},
        "models": {model.name: {"path": str(model.path), "sha256": model.sha256} for model in job.settings.models},
        "version": __version__,
        "outcome": asdict(outcome),
    }


def claim(out: Path, settings: Settings) -> None:
    """Record the settings of a new output folder; InputError if the folder holds clips made with other settings."""
    models = {model.name: model.sha256 for model in settings.models}  # wherever the files are
    claim_folder(out / SETTINGS, asdict(settings) | {"models": models}, "clips", defaults={"effects": False})


def run(
    jobs: Sequence[RemovalJob],
    workers: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    share: Share | None = None,
    engine: Engine = parallel_events,
) -> Refused:
    """Run the unfinished jobs; return the clips that cannot be read.

    Args:
        jobs: All jobs.
        workers: Processes.
        on_progress: Called with the number of frames done and in total.
        share: Which jobs this task takes; None for all. Other tasks may be writing: their temporary files are kept.
        engine: Where the jobs run.
    """
    share = share or Share(None)
    first, step = share.part
    own = jobs[first::step]
    total = sum(job.row.frames for job in own)
    left = {job.name: job for job in jobs if not job.done()}
    done = sum(job.row.frames for job in own if job.name not in left)
    on_progress(done, total)
    refused = []
    with removing_leftovers(files(left.values()) if share.folder is None else ()):
        for names in share.rounds(list(left)):
            todo = (left[name] for name in names)
            for job, reason in parallel_map(work, todo, workers, on_lost=_lost, engine=engine):
                share.finish(job.name, reason or None)
                done += job.row.frames
                on_progress(min(done, total), total)
                if reason:
                    refused.append((job.row.path, reason))
    return refused


def files(jobs: Iterable[RemovalJob]) -> Iterator[Path]:
    """Yield the path of every file that the jobs write."""
    for job in jobs:
        yield from (*job.settings.targets(job.out, job.name).values(), job.record)


def gather(jobs: Sequence[RemovalJob], share: Share, out: Path) -> dict[str, str]:
    """Return path -> reason of the clips that all tasks have refused, and delete what killed tasks left half-written.

    Raises:
        InputError: A clip is neither done nor refused.
    """
    missing = {job.name: job.row.path for job in jobs if not job.done()}
    if share.shared:
        share.require_all(missing)
        remove_leftovers(files(jobs))
        return {missing[name]: reason for name, reason in share.records(missing).items()}
    earlier = _read_refused(out / REJECTED)  # they are merged already
    share.require_all(name for name, path in missing.items() if path not in earlier)
    return earlier


def _read_refused(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    with reading(file, "a list of refused clips; remove it"), file.open(newline="", encoding="utf-8") as lines:
        return {row["path"]: row["reason"] for row in csv.DictReader(lines)}


def write_manifest(jobs: Sequence[RemovalJob], out: Path, refused: Refused, licence: str) -> Path:
    """Write <out>/manifest.csv of the clips that are done, and <out>/rejected.csv; return the path of the manifest.

    Args:
        jobs: The jobs of all shards.
        out: The output folder, which becomes the manifest's root.
        refused: The clips that cannot be read.
        licence: Terms of use for rows that state none.

    Raises:
        InputError: No clip is done.
    """
    write_csv(out / REJECTED, [("path", "reason"), *refused])
    rows = list(_rows(jobs, licence))
    if not rows:
        raise InputError(f"{out}: no clip could be cleaned; {REJECTED} in it gives the reasons")
    Manifest.write(out / MANIFEST, rows)
    return out / MANIFEST


def unclean(jobs: Iterable[RemovalJob]) -> list[str]:
    """Return the names of the finished clips in whose result people are still detected."""
    done = ((job.name, json.loads(job.record.read_text())["outcome"]) for job in jobs if job.done())
    return [name for name, outcome in done if outcome.get("clean") is False]


def _rows(jobs: Sequence[RemovalJob], licence: str) -> Iterator[Clip]:
    for job in jobs:
        if not job.done():
            continue
        outcome = json.loads(job.record.read_text())["outcome"]
        frames, video = outcome["frames"], job.settings.layout == "videos"
        fps = job.row.fps if video else FRAME_FOLDER_FPS
        yield Clip(
            path=job.settings.targets(job.out, job.name)["inp"].relative_to(job.out).as_posix(),
            label=job.row.label,
            class_name=job.row.class_name,
            source=job.row.source,
            frames=frames,
            fps=fps,
            width=outcome["width"],
            height=outcome["height"],
            codec="h264" if video else "jpeg",
            key_frame_spacing=min(key_frame_spacing(fps), frames) if video else 1,
            duration_seconds=round(frames / fps, 6),
            domain=DOMAINS[job.settings.method],
            licence=job.row.licence or licence,
        )


def seconds_per_frame(jobs: Sequence[RemovalJob]) -> tuple[float, float]:
    """Clean some frames of a few clips; return CPU seconds per frame with one round, and with as many as there may be."""
    chosen = sorted({round(i * (len(jobs) - 1) / (SAMPLE_CLIPS - 1)) for i in range(SAMPLE_CLIPS)})
    with tempfile.TemporaryDirectory(prefix="ppma-") as folder, watch_disk(Path(folder)):
        _try(jobs[0], 2, Path(folder))  # numba compiles
        tried = [_try(jobs[i], SAMPLE_FRAMES, Path(folder)) for i in chosen]
    frames, planned, rendered = (sum(each) for each in zip(*tried))
    settings = jobs[0].settings
    rounds = ROUNDS if settings.method == "remove" and settings.detectors else 1
    return (planned + rendered) / max(1, frames), (planned + rounds * rendered) / max(1, frames)


def _try(job: RemovalJob, frames: int, folder: Path) -> tuple[int, float, float]:
    """Clean frames from the middle of a clip; return their number, and CPU seconds of the plan and of one round."""
    pipeline, source = load_pipeline(job.settings, job.weights), job.source
    start = source.start_seconds + max(0, job.row.frames - frames) // 2 / source.fps
    end = min(source.end_seconds, start + frames / source.fps)
    source = replace(source, start_seconds=start, end_seconds=end)
    try:
        with pipeline.plan(source, folder) as plan:
            plan_seconds = plan.cpu_seconds
            outcome, _, _ = pipeline.render(plan, source, folder, job.name, 0)
    except BadClip:  # the run itself reports it
        return 0, 0.0, 0.0
    return outcome.frames, plan_seconds, outcome.cpu_seconds - plan_seconds
