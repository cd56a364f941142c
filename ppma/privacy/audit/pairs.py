"""Which clips are audited, and what belongs to each: its mask, its record, its original.

DIR of `ppma remove-humans` (manifest.csv, inp, seg, records), or a folder <class>/<video>, or a manifest  ->  clips  ->  Pair of each
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from ppma.config.errors import InputError
from ppma.loaders.sources.manifest import Clip
from ppma.privacy.audit.clip import Pair
from ppma.privacy.removal import jobs as removal
from ppma.privacy.removal.clip import ClipSource

SUFFIXES = (".mkv", ".mp4", ".avi", ".webm", ".mov")


def read(source: Path, root: Path | None, workers: int) -> tuple[Path | None, Path, list[Clip]]:
    """(manifest, root, clips): of a manifest FILE.csv, of the one in a folder of `ppma remove-humans`, or of a folder <class>/<video>.

    No manifest is None. InputError names a clip that cannot be read: an audit leaves nothing out.
    """
    own = source / removal.MANIFEST
    if source.is_dir() and own.is_file():
        if root is not None:
            raise InputError(f"--root {root} goes with a manifest FILE.csv; {source} has its own")
        source = own
    elif (source / "records").is_dir():
        raise InputError(f"{source} has no {removal.MANIFEST}: let `ppma remove-humans` finish, then audit it")
    root, clips, refused = removal.read_clips(source, root, workers)
    if refused:
        raise InputError(
            f"{root / refused[0][0]}: {refused[0][1]} ({len(refused)} such); take it out, or write it anew"
        )
    return (source if source.is_file() else None), root, clips


def pairs(root: Path, clips: list[Clip], originals: Path | None) -> list[Pair]:
    """A pair for each clip; InputError names an original that is missing."""
    found = [_pair(root, clip, originals) for clip in clips]
    for pair in found:
        if not pair.cleaned.exists():
            raise InputError(f"{pair.cleaned} is not there; run what made it again")
    return found


def _pair(root: Path, clip: Clip, originals: Path | None) -> Pair:
    name = _name(clip)
    record = _record(root, name)
    return Pair(
        name=name,
        path=clip.path,
        class_name=clip.class_name or PurePosixPath(name).parent.name,
        cleaned=root / clip.path,
        frames=clip.frames,
        mask=_beside(root / "seg", name),
        original=None if originals is None else _original(originals, clip, name, record),
        makers=tuple(record.get("tools", ())),
        outside_sha256=str(record.get("outcome", {}).get("outside_sha256", "")),
    )


def _name(clip: Clip) -> str:
    """<class>/<video>, as below seg and records."""
    path = PurePosixPath(clip.path)
    path = path.relative_to("inp") if path.parts[0] == "inp" else path
    return str(path if clip.codec in ("jpeg", "png") else path.with_suffix(""))


def _record(root: Path, name: str) -> dict[str, Any]:
    path = root / "records" / f"{name}.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content)
    except (ValueError, TypeError):
        raise InputError(
            f"{path} is no record of `ppma remove-humans`; remove it and its clip, and run that again"
        ) from None


def _beside(folder: Path, name: str) -> Path | None:
    """The video or folder of frames of that name."""
    if (folder / name).is_dir():
        return folder / name
    videos = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((video for video in videos if video.is_file()), None)


def _original(originals: Path, clip: Clip, name: str, record: dict[str, Any]) -> ClipSource:
    """By the path that the record remembers, else by the name."""
    row = record.get("row", {})
    path = originals / row["path"] if row.get("path") else None
    if path is None or not path.exists():
        path = _beside(originals, name)
    if path is None:
        raise InputError(
            f"--originals {originals} has no {row.get('path') or name} for {clip.path}; give the folder it was made of"
        )
    end = row.get("end_seconds")
    return ClipSource(
        path=path,
        start_seconds=row.get("start_seconds") or 0.0,
        end_seconds=float("inf") if end is None else end,
        fps=clip.fps,
    )
