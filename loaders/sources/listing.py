"""List and probe the clips of a source that no `ppma index` was run on: a folder, a list, a video, or paths in a program.

source  ->  Listed rows  ->  every file probed  ->  Clip rows, and (path, reason) of what cannot be read
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ppma.common.workers import Engine, parallel_events
from ppma.config.errors import InputError
from ppma.loaders.sources.formats import VIDEO_SUFFIXES, Listed, read_source
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.probe import probe_each

PROBE_SECONDS = 60.0
"""Time limit for probing one file."""

Refused = list[tuple[str, str]]
"""(path, reason) of each clip that cannot be read."""


def read_clips(
    source: Path, root: Path | None, workers: int, engine: Engine = parallel_events
) -> tuple[Path, list[Clip], Refused]:
    """List the clips of a source; those of a manifest are not probed again.

    Args:
        source: A manifest FILE.csv, a folder `<class>/<video>`, a video, or another list of `ppma index`.
        root: Folder that the paths of a manifest or a list are relative to (default: its own).
        workers: Processes that probe.
        engine: Where they run.

    Returns:
        The root, the clips, and the clips that cannot be read.

    Raises:
        InputError: There is no such source, or none of its clips can be read.
    """
    if source.is_file() and source.suffix.lower() == ".csv":
        manifest = Manifest.read(source, root=root)
        return manifest.root, [manifest.clip(i) for i in range(len(manifest))], []
    if not source.is_dir() and not source.is_file():
        raise InputError(
            f"{source}: no such folder or file; give a folder <class>/<video>, a video, or a FILE.csv of `ppma index`"
        )
    if root is not None and source.is_dir():
        raise InputError(f"--root {root} goes with a manifest; a folder is its own root")
    folder = root or (source if source.is_dir() else source.parent)
    single = source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES
    rows = [Listed(path=source.name, label=None)] if single else read_source(source, root=folder)
    clips, refused = probe_rows(rows, folder, workers, engine)
    if not clips:
        raise InputError(f"{source}: none of {len(rows)} clips can be read; the first: {refused[0][0]} {refused[0][1]}")
    return folder, clips, refused


def probe_rows(
    rows: Sequence[Listed], root: Path, workers: int, engine: Engine = parallel_events
) -> tuple[list[Clip], Refused]:
    """Probe listed clips; return the rows of a manifest, and the clips that cannot be read, sorted."""
    refused = [(row.path, row.reason) for row in rows if row.reason]
    usable = [row for row in rows if not row.reason]
    paths = [root / row.path for row in usable]
    answers = dict(probe_each(enumerate(paths), workers=workers, timeout_seconds=PROBE_SECONDS, engine=engine))
    clips = []
    for number, row in enumerate(usable):
        answer = answers[number]
        if isinstance(answer, str):
            refused.append((row.path, answer))
            continue
        metadata = asdict(answer)
        del metadata["remarks"]
        clips.append(Clip(path=row.path, label=row.label, class_name=row.class_name, source=root.name, **metadata))
    return clips, sorted(refused)


def rows_of(videos: Sequence[Path | str | tuple[Path | str, int | None]]) -> tuple[Path, list[Listed]]:
    """Return the root and the rows of videos in a program: paths, or (path, label) pairs."""
    pairs = [video if isinstance(video, tuple) else (video, None) for video in videos]
    if not pairs:
        raise InputError("the list names no video; give paths, or (path, label) pairs")
    paths = [Path(path).resolve() for path, _ in pairs]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return root, [Listed(path=path.relative_to(root).as_posix(), label=label) for path, (_, label) in zip(paths, pairs)]
