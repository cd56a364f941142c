"""Find the clips to audit with their masks, records and originals, and inspect them in parallel, resumably.

    folder or manifest  ->  read(): clips  ->  pair_of(): Pair of each  ->  AuditJob  ->  run(): Findings of all

Tasks that run at the same time share the clips (ppma.common.shares); the merge is a run that finds all of them inspected.
Findings are kept in <out>/clips/<class>/<video>.json and reused while the clip's row and record, the contents of clip,
mask and original, the detectors and the inspected frames are the same. Contents are hashed again only where size or
times of a file have changed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from ppma import __version__
from ppma.common.files import content_sha256, content_stamp, write_text
from ppma.common.frames import clip_place
from ppma.common.shares import Share
from ppma.common.workers import Engine, parallel_events, parallel_map
from ppma.config.errors import BadClip, InputError, counted, reading
from ppma.loaders.sources.formats import VIDEO_SUFFIXES
from ppma.loaders.sources.listing import read_clips
from ppma.loaders.sources.manifest import Clip
from ppma.privacy.audit.clip import Findings, Inspector, InspectorConfig, Pair
from ppma.privacy.audit.follow import CARRIED, FOLLOWED
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal.clip import ClipSource


def read(
    source: Path, root: Path | None, workers: int, engine: Engine = parallel_events
) -> tuple[Path | None, Path, list[Clip]]:
    """Return the manifest, its root and the clips to audit; a folder without a manifest is probed by `workers` processes.

    Raises:
        InputError: A clip cannot be read (an audit skips nothing) or is a window, or the folder is incomplete.
    """
    own = source / removal.MANIFEST
    if source.is_dir() and own.is_file():
        if root is not None:
            raise InputError(f"--root {root} goes with a manifest FILE.csv; {source} has its own")
        source = own
    elif (source / "records").is_dir():
        raise InputError(f"{source} has no {removal.MANIFEST}: let `ppma remove-humans` finish, then audit it")
    root, clips, refused = read_clips(source, root, workers, engine)
    if refused:
        path, reason = refused[0]
        raise InputError(
            f"{root / path}: {reason} ({counted(len(refused), 'such clip')}); remove them, or make them again"
        )
    for clip in clips:
        if clip.start_seconds is not None or clip.end_seconds is not None:
            raise InputError(
                f"{clip.path} has start_seconds or end_seconds, and an audit reads whole files; cut it out"
            )
    return (source if source.is_file() else None), root, clips


def pair_of(root: Path, clip: Clip, originals: Path | None) -> Pair:
    """Find the mask, record and original of a clip in `root`; without a folder of originals nothing is compared.

    Raises:
        InputError: The clip or its original is missing, or its record cannot be read.
    """
    path = PurePosixPath(clip.path)
    path = path.relative_to("inp") if path.parts[0] == "inp" else path
    # <class>/<video>, as in seg and records
    name = str(path if clip.codec in ("jpeg", "png") else path.with_suffix(""))
    if not clip_place(root / clip.path).exists():
        raise InputError(f"{root / clip.path}: no such clip; make it again")
    row, record = _record(root / "records" / f"{name}.json")
    original = None if originals is None else _original(originals, clip, name, row)
    if original is not None and original.path.resolve() == (root / clip.path).resolve():
        raise InputError(f"{original.path} is the cleaned clip itself; give the folder of the clips before cleaning")
    return Pair(
        name=name,
        path=clip.path,
        class_name=clip.class_name or PurePosixPath(name).parent.name,
        cleaned=root / clip.path,
        frames=clip.frames,
        mask=_find(root / "seg", name),
        original=original,
        **record,
    )


def _record(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the source's row and the fields of a Pair that a record states; empty ones without a record."""
    with reading(path, "a record of `ppma remove-humans`: remove it and its clip, and rerun that"):
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        outcome = content.get("outcome", {})
        return dict(content.get("row", {})), {
            "makers": tuple(content.get("tools", ())),
            "method": str(content.get("settings", {}).get("method", "")),
            "clean": outcome.get("clean"),
            "outside_sha256": str(outcome.get("outside_sha256", "")),
        }


def _find(folder: Path, name: str) -> Path | None:
    """Return the video or folder of frames of that name."""
    if (folder / name).is_dir():
        return folder / name
    videos = [folder / f"{name}{suffix}" for suffix in VIDEO_SUFFIXES]
    return next((video for video in videos if video.is_file()), None)


def _original(originals: Path, clip: Clip, name: str, row: dict[str, Any]) -> ClipSource:
    """Find the original by the path in the record's row, else by name."""
    wanted = PurePosixPath(row.get("path") or name)
    if wanted.is_absolute() or ".." in wanted.parts:  # a forged record could name the cleaned clip
        raise InputError(f"the record of {clip.path} names {wanted}, which is outside of --originals {originals}")
    path = originals / wanted if clip_place(originals / wanted).exists() else _find(originals, name)
    if path is None:
        raise InputError(f"--originals {originals} has no {wanted} for {clip.path}; give the folder it was made from")
    end = row.get("end_seconds")
    return ClipSource(
        path=path,
        start_seconds=row.get("start_seconds") or 0.0,
        end_seconds=float("inf") if end is None else end,
        fps=clip.fps,
    )


@dataclass(frozen=True, kw_only=True)
class AuditJob:
    """One clip to inspect."""

    pair: Pair
    out: Path
    inspector: InspectorConfig

    @property
    def record(self) -> Path:
        """Path of the JSON file with the clip's findings."""
        return self.out / "clips" / f"{self.pair.name}.json"

    def files(self, recorded: Mapping[str, Sequence[str]] = MappingProxyType({})) -> dict[str, tuple[str, str]]:
        """Return {path: (stamp, hash)} of all that is read, with the recorded hash of what has its recorded stamp."""
        original = self.pair.original.path if self.pair.original else None
        paths = (self.pair.cleaned, self.pair.mask, original, self.inspector.people)
        found: dict[str, tuple[str, str]] = {}
        for path in (path for path in paths if path is not None):
            stamp = content_stamp(path)  # before the hash: a change in between shows the next time
            then, sha256 = recorded.get(str(path), ("", ""))
            found[str(path)] = stamp, sha256 if then == stamp else content_sha256(path)
        return found

    def settings(self, files: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
        """Return everything that the findings depend on, given the hashes of the files."""
        return {
            "version": __version__,
            "operating_points": {name: AUDITORS[name].threshold for name in self.inspector.detectors},
            "followed": [FOLLOWED, CARRIED],
            "models": {model.name: model.sha256 for model in self.inspector.models},
            "frames": self.inspector.frames,
            "pair": json.loads(json.dumps(asdict(self.pair), default=lambda path: str(path.absolute()))),
            "sha256": {path: sha256 for path, (_, sha256) in files.items()},
        }

    def found(self) -> Findings | None:
        """Return the findings of an earlier run on this very clip, or None."""
        try:
            content = json.loads(self.record.read_text(encoding="utf-8"))
            same = content["settings"] == self.settings(self.files(content["files"]))
        except (FileNotFoundError, ValueError, TypeError, LookupError, AttributeError):
            return None
        return Findings.from_dict(content["findings"]) if same else None


_inspector = lru_cache(maxsize=1)(Inspector)
"""Loads the detectors once per process."""
Result = tuple[str, Findings | str]
"""Path of a clip, and its findings or why it cannot be read."""


def inspect(job: AuditJob) -> Result:
    """Inspect one clip and write its findings, or read those of an earlier run."""
    if (earlier := job.found()) is not None:
        return job.pair.path, earlier
    inspector, files = _inspector(job.inspector), job.files()
    try:
        findings = inspector.inspect(job.pair, files[str(job.pair.cleaned)][1])
    except BadClip as error:
        return job.pair.path, f"{job.pair.cleaned} {error}"
    if job.files(files) != files:
        return job.pair.path, f"{job.pair.cleaned}, its mask or its original was changed while it was inspected"
    content = {"settings": job.settings(files), "files": files, "findings": asdict(findings)}
    write_text(job.record, json.dumps(content))
    return job.pair.path, findings


def _lost(job: AuditJob, reason: str) -> Result:
    return job.pair.path, f"{job.pair.cleaned} killed the process that inspected it ({reason})"


def run(
    jobs: Sequence[AuditJob],
    workers: int,
    on_progress: Callable[[int, int], None],
    share: Share,
    engine: Engine = parallel_events,
) -> dict[str, Findings | str]:
    """Return the findings of each clip that this task's share has, or why it cannot be read, by its path.

    A rerun resumes. `on_progress` is called with the number of clips that are done, and of all.
    """
    by_path = {job.pair.path: job for job in jobs}
    total = len(list(by_path)[share.part[0] :: share.part[1]])
    results: dict[str, Findings | str] = {}
    on_progress(0, total)
    for paths in share.rounds(list(by_path)):
        todo = (by_path[path] for path in paths)
        for path, result in parallel_map(inspect, todo, workers, on_lost=_lost, engine=engine):
            results[path] = result
            share.finish(path, result if isinstance(result, str) else "")
            on_progress(min(len(results), total), total)
    return results
