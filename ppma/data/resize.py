"""Re-encode large clips once, into a new folder next to theirs.

    root/a/b.avi of 1920 x 1080  ->  root-short256/a/b.avi.mp4 of 448 x 256      smaller clips are linked, so one root holds all

Clips are written atomically, and those that are no older than their source are kept, so an interrupted run resumes. They come out upright
and without sound; a variable frame rate keeps its times.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import Interpolation

from ppma.common.files import removing_leftovers
from ppma.common.frames import SERIES, clip_place, is_frames, list_frames
from ppma.common.progress import Progress
from ppma.common.video import video_writer
from ppma.common.workers import Engine, parallel_events, parallel_map
from ppma.config.errors import FULL_DISK, InputError, watch_disk
from ppma.loaders.sources.pictures import Unusable, from_start, open_video
from ppma.loaders.sources.probe import VideoMetadata

X264 = {"preset": "veryfast", "crf": "18"}
"""Visually lossless."""
JPEG_QUALITY = 95
VARIABLE = "variable frame rate"
MACROBLOCK = 16
"""Pixels that H.264 rounds a side up to. DALI reuses a GPU decoder for the next clip only if that adds nothing: DALI 2.4 compares the
coded size of the next clip with the shown size of the last (frames_decoder_gpu.cc, NVDECCache)."""
MOST_STRETCH = 0.025
"""Largest change of the long side to make it a multiple of MACROBLOCK: 456 x 256 becomes 448 x 256, 342 x 256 becomes 336 x 256."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The new place of a clip."""

    path: str
    """Below the new root."""
    encoded: bool
    """True if it was re-encoded and needs to be probed again; False for a link."""
    reason: str = ""
    """Why it could not be encoded, or empty."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    path: str
    source: Path
    target: Path
    size: tuple[int, int] | None
    """Width and height in pixels; None to link the clip."""
    fps: float
    variable: bool


def resize(
    root: Path, found: Mapping[str, VideoMetadata], *, short_side: int, workers: int, engine: Engine = parallel_events
) -> tuple[Path, dict[str, Place]]:
    """Re-encode or link clips into `<root>-short<short_side>`.

    Args:
        root: Folder of the clips.
        found: Path below `root` -> metadata of the clip.
        short_side: Clips with more pixels on their short side are scaled down to it.
        workers: Number of processes.
        engine: Where the clips are encoded.

    Returns:
        The new root, and the new place of each path.

    Raises:
        InputError: The new folder cannot be created.
        DiskFullError: A clip does not fit; finished ones are kept.
    """
    small_root = root.with_name(f"{root.name}-short{short_side}")
    try:
        with watch_disk(root.parent):
            small_root.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--resize: {small_root} cannot be created ({error.strerror}); copy --root to a folder that you may write"
        ) from None
    jobs = [_job(root, small_root, path, metadata, short_side) for path, metadata in found.items()]
    places = {
        job.path: Place(path=job.target.relative_to(small_root).as_posix(), encoded=job.size is not None)
        for job in jobs
    }
    waiting = [job for job in jobs if not _is_fresh(job)]
    with removing_leftovers(job.target for job in waiting), Progress("clips") as progress:
        progress(len(jobs) - len(waiting), len(jobs))
        written = parallel_map(_write, waiting, workers, on_lost=_lost, engine=engine)
        for done, (path, reason) in enumerate(written, 1 + len(jobs) - len(waiting)):
            progress(done, len(jobs))
            if reason:
                places[path] = Place(path=places[path].path, encoded=True, reason=reason)
    return small_root, places


def _job(root: Path, small_root: Path, path: str, found: VideoMetadata, short_side: int) -> _Job:
    short, size, is_video = min(found.width, found.height), None, found.codec not in ("jpeg", "png")
    if short > short_side:
        scale, fits = short_side / short, short_side % MACROBLOCK == 0 and is_video
        size = _side(found.width * scale, fits), _side(found.height * scale, fits)
    renamed = size is not None and is_video and not path.lower().endswith(".mp4")
    target = small_root / (f"{path}.mp4" if renamed else path.removesuffix(SERIES))
    variable = VARIABLE in found.remarks
    return _Job(path=path, source=root / path, target=target, size=size, fps=found.fps, variable=variable)


def _side(pixels: float, fits: bool) -> int:
    """Return the nearest even number; with `fits` the nearest multiple of MACROBLOCK, if that stretches the picture little."""
    near = MACROBLOCK * round(pixels / MACROBLOCK)
    return near if fits and abs(near / pixels - 1) <= MOST_STRETCH else 2 * round(pixels / 2)


def _is_fresh(job: _Job) -> bool:
    return job.target.exists() and job.target.stat().st_mtime_ns >= clip_place(job.source).stat().st_mtime_ns


def _write(job: _Job) -> tuple[str, str]:
    """Encode or link one clip; return its path, and why that failed or ""."""
    with watch_disk(job.target):
        job.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if job.size is None:
                _link(job.source, job.target)
            elif is_frames(job.source):
                _encode_folder(job, job.size)
            else:
                _encode_video(job, job.size)
        except (av.error.FFmpegError, Unusable, InputError) as error:
            if getattr(error, "errno", None) in FULL_DISK:
                raise
            return job.path, f"cannot be encoded: {error}"
    return job.path, ""


def _lost(job: _Job, reason: str) -> tuple[str, str]:
    return job.path, f"killed the process that encoded it ({reason})"


def _temp_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _link(source: Path, target: Path) -> None:
    """Hard-link a file or the frames of a folder, which uses no space; copy where the file system has no links."""
    temporary = _temp_path(target)
    if is_frames(source):
        _make_empty(temporary)
        for frame in list_frames(source):
            _link_file(str(frame), str(temporary / frame.name))
        shutil.rmtree(target, ignore_errors=True)
    else:
        _link_file(str(source), str(temporary))
    temporary.replace(target)


def _make_empty(folder: Path) -> None:
    """Create a folder, without what a killed run has written into it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _link_file(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _encode_folder(job: _Job, size: tuple[int, int]) -> None:
    """Write frames as JPEG, with the numbers they have."""
    temporary = _temp_path(job.target)
    _make_empty(temporary)
    for path in list_frames(job.source):
        picture = cv2.imread(str(path))
        if picture is None:
            raise InputError(f"{path.name} is not a picture")
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        (temporary / f"{path.stem}.jpg").write_bytes(data.tobytes())
    shutil.rmtree(job.target, ignore_errors=True)
    temporary.replace(job.target)


def _encode_video(job: _Job, size: tuple[int, int]) -> None:
    container, stream = open_video(job.source, max_pixels=1 << 27)
    base = stream.time_base if job.variable else None
    spacing = max(1, round(job.fps / 2))  # half a second: a window can then be read without many frames before it
    with container, video_writer(job.target, fps=job.fps, options=X264, spacing=spacing, time_base=base) as add:
        for time, picture_HWC in _pictures(container, stream, size, job.variable):
            add(picture_HWC, time)


def _pictures(
    container: av.container.InputContainer, stream: av.VideoStream, size: tuple[int, int], variable: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (time in units of the target, upright picture of `size`) of each frame."""
    last = -1
    for number, (seconds, frame, damaged) in enumerate(from_start(container, stream)):
        if damaged:
            raise Unusable(f"the frame at {seconds:.3f} s is corrupt")
        turns = round((frame.rotation % 360) / 90) % 4  # quarter turns counterclockwise, as the loader applies them
        width, height = size if turns % 2 == 0 else size[::-1]
        small = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.AREA)
        time = round(seconds / (stream.time_base or 1)) if variable else number
        last = time if time > last else last + 1  # the encoder stops at a time that stands still or goes back
        yield last, np.ascontiguousarray(np.rot90(small.to_ndarray(), turns))
