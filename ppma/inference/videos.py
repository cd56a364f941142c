"""Videos that a user names: refuse streams, find the videos of folders, and slide windows over them.

paths  ->  probe  ->  one row for each video, or for each window `stride` apart  ->  Manifest, and what is known of each row
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ppma.common.frames import PICTURE_SUFFIXES
from ppma.common.progress import Progress
from ppma.config.errors import InputError, first_few, require
from ppma.loaders.sources.formats import VIDEO_SUFFIXES
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.sources.probe import Unusable, VideoMetadata, probe

MAX_WINDOWS = 5000
"""Of one video: four hours at half a window of 2.7 s each."""


def find_videos(folder: Path | str) -> list[Path]:
    """Return the videos and folders of frames in a folder and below it, sorted; a video or a folder of frames is itself.

    Raises:
        InputError: There is none, or the path is a stream or does not exist.
    """
    folder = Path(folder)
    check_path(folder)
    if not folder.is_dir():
        return [folder]
    found = []
    for place in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())]):
        names = sorted(path.name for path in place.iterdir() if path.name[0] != "." and path.is_file())
        videos = [place / name for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
        pictures = any(name.lower().endswith(PICTURE_SUFFIXES) for name in names)
        found += videos or ([place] if pictures else [])
    require(
        bool(found), f"{folder}: holds no video and no folder of frames; give one that holds .mp4, .webm, .jpg, ..."
    )
    return sorted(found)


def check_path(video: Path | str) -> None:
    """Raise InputError for a webcam, a URL, stdin or another stream, and for a path that does not exist."""
    path = Path(video)
    stream = str(video) == "-" or re.match(r"[a-z][a-z0-9+.-]+:/", str(video)) is not None
    if stream or (path.exists() and not path.is_file() and not path.is_dir()):
        record = "record it to a file first, for example `ffmpeg -i INPUT -t 60 clip.mp4`"
        raise InputError(f"{video} is a stream or a device, and ppma reads files and folders of frames: {record}")
    require(path.exists(), f"{video}: no such file or folder")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Videos, or windows of them, as rows; those of videos that cannot be read are not in the manifest."""

    manifest: Manifest
    video_R: np.ndarray
    """int64, index of the video."""
    start_R: np.ndarray
    """Seconds; NaN for a video that cannot be read."""
    end_R: np.ndarray
    readable_R: np.ndarray
    """bool, True for the rows of the manifest."""


def rows_of(
    videos: Sequence[Path | str], *, window: float | None, stride: float | None, mark_bad: bool, workers: int
) -> Rows:
    """Probe videos and return their rows.

    Args:
        videos: Files or folders of frames.
        window: Length of a window in seconds; None: one row for each video.
        stride: Seconds between the starts of two windows; None: half a window.
        mark_bad: Give a video that cannot be read a row too, rather than stop.
        workers: Videos that are probed at a time.

    Raises:
        InputError: A video is a stream, does not exist or cannot be read, or has more than MAX_WINDOWS windows.
    """
    for video in videos:
        check_path(video)
    paths = [Path(video).resolve() for video in videos]  # without "..", which a manifest refuses
    with ThreadPoolExecutor(max(1, workers)) as pool, Progress("videos") as progress:
        found = []
        for metadata in pool.map(_probe, paths):
            found.append(metadata)
            progress(len(found), len(paths))
    bad = [f"{video}: {reason}" for video, reason in zip(videos, found) if isinstance(reason, str)]
    if bad and (not mark_bad or len(bad) == len(paths)):
        raise InputError(f"{first_few(bad, 3)}; repair or remove it, or leave it out with on_bad mark (--on-bad mark)")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    clips = [None if isinstance(one, str) else _clip(path.relative_to(root), one) for path, one in zip(paths, found)]
    return lay_windows(clips, root, paths[0].name if len(paths) == 1 else root.name or "videos", window, stride)


def rows_of_manifest(manifest: Manifest, *, window: float | None, stride: float | None) -> Rows:
    """Return the clips of a manifest as rows, or their windows; see `rows_of`."""
    if window is not None:
        clips = [manifest.clip(row) for row in range(len(manifest))]
        return lay_windows(clips, manifest.root, manifest.name, window, stride)
    return Rows(
        manifest=manifest, video_R=np.arange(len(manifest)), start_R=manifest.starts, end_R=manifest.ends,
        readable_R=np.ones(len(manifest), dtype=bool),
    )  # fmt: skip


def lay_windows(
    clips: Sequence[Clip | None], root: Path, name: str, window: float | None, stride: float | None
) -> Rows:
    """Return the rows of clips, None for one that cannot be read; see `rows_of`."""
    found, video_R, spans = list[Clip](), list[int](), list[tuple[float, float]]()
    for number, clip in enumerate(clips):
        of_clip = [(np.nan, np.nan)]
        if clip is not None:
            begin = clip.start_seconds or 0.0
            duration = (clip.duration_seconds if clip.end_seconds is None else clip.end_seconds) - begin
            of_clip = [(begin + start, begin + end) for start, end in spans_of(clip.path, duration, window, stride)]
            found += [replace(clip, start_seconds=start, end_seconds=end) for start, end in of_clip]
        video_R += [number] * len(of_clip)
        spans += of_clip
    start_R, end_R = np.array(spans, dtype=np.float64).T
    return Rows(
        manifest=Manifest.from_clips(found, root=root, name=name), video_R=np.array(video_R), start_R=start_R, end_R=end_R,
        readable_R=~np.isnan(start_R),
    )  # fmt: skip


def _clip(path: Path, metadata: VideoMetadata) -> Clip:
    known = {name: getattr(metadata, name) for name in VideoMetadata.__slots__ if name != "remarks"}
    return Clip(path=path.as_posix(), **known)


def _probe(path: Path) -> VideoMetadata | str:
    try:
        return probe(path)
    except Unusable as reason:
        return str(reason)


def spans_of(
    video: Path | str, duration: float, window: float | None, stride: float | None
) -> list[tuple[float, float]]:
    """Return (start, end) in seconds of each window of a video, the last one ending with it.

    Args:
        video: For the message.
        duration: Of the video, in seconds.
        window: Length of a window in seconds; None: the whole video.
        stride: Distance between the starts of two windows; None: half a window.

    Raises:
        InputError: There are more than MAX_WINDOWS windows.
    """
    if window is None:
        return [(0.0, duration)]
    stride = window / 2 if stride is None else stride
    last = max(0.0, duration - window)
    count = int(np.ceil(last / stride)) + 1
    few = f"{video} has {count} windows in {duration:.0f} s; give a stride of {last / MAX_WINDOWS:.2g} s or more"
    require(count <= MAX_WINDOWS, few)
    starts = np.minimum(np.arange(count) * stride, last).tolist()
    return [(start, min(start + window, duration)) for start in starts]
