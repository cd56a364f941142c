"""Over-large clips encoded anew, once, into a folder beside the one they came in.

    root/a/b.avi of 1920 x 1080  ->  root-short256/a/b.avi.mp4 of 448 x 256;  smaller ones are linked there, so that one root holds all

Parallel, and resumable: a clip appears complete or not at all, and what is there and no older than its source is kept. Pictures come
out upright, without sound; times are kept where the rate varies, else they are counted at the average rate.
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

from ppma.common.progress import Progress
from ppma.common.video import video_writer
from ppma.common.workers import parallel_map
from ppma.config.errors import FULL_DISK, InputError, watch_disk
from ppma.loaders.sources.formats import list_frames
from ppma.loaders.sources.probe import Unusable, VideoMetadata, open_video

X264 = {"preset": "veryfast", "crf": "18"}
"""Near to what the eye tells apart; half a second from one key frame to the next keeps reading a window cheap."""
JPEG_QUALITY = 95
VARIABLE = "variable frame rate"
MACROBLOCK = 16
"""Pixels that H.264 rounds a side up to. DALI keeps a decoder of the GPU for the next clip only where that adds nothing: 2.4 compares
the coded size of the next with the shown size of the last (frames_decoder_gpu.cc, NVDECCache)."""
MOST_STRETCH = 0.025
"""Of the long side, to make it a multiple of MACROBLOCK: 456 x 256 becomes 448 x 256, 342 x 256 becomes 336 x 256."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a clip lies now."""

    path: str
    """Below the new root."""
    encoded: bool
    """Encoded anew, so to be looked into again; else linked."""
    reason: str = ""
    """Why it could not be encoded, or empty."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to encode, or to link when `size` is None."""

    path: str
    source: Path
    target: Path
    size: tuple[int, int] | None
    """Width and height to come."""
    fps: float
    variable: bool
    """Whether its frames keep their own times."""


def resize(
    root: Path, facts: Mapping[str, VideoMetadata], *, short_side: int, workers: int
) -> tuple[Path, dict[str, Place]]:
    """Bring the clips `facts` (path below `root` -> what is in it) to `short_side`; returns the new root and where each lies.

    InputError where the folder beside cannot be made; DiskFullError when a clip does not fit, with what is finished kept.
    """
    small_root = root.with_name(f"{root.name}-short{short_side}")
    try:
        small_root.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--resize: {small_root} cannot be made ({error.strerror}); give a --root in a folder of your own"
        ) from None
    jobs = [_job(root, small_root, path, found, short_side) for path, found in facts.items()]
    places = {job.path: _place(job, small_root) for job in jobs}
    waiting = [job for job in jobs if not _fresh(job)]
    with Progress("clips") as progress:
        progress(len(jobs) - len(waiting), len(jobs))
        for done, (path, reason) in enumerate(parallel_map(bring, waiting, workers), 1 + len(jobs) - len(waiting)):
            progress(done, len(jobs))
            if reason:
                places[path] = Place(path=places[path].path, encoded=True, reason=reason)
    return small_root, places


def bring(job: Job) -> tuple[str, str]:
    """Encode or link one clip; returns its path and why it could not be done, or nothing."""
    with watch_disk(job.target):
        job.target.parent.mkdir(parents=True, exist_ok=True)
        if job.size is None:
            _link(job.source, job.target)
            return job.path, ""
        try:
            (_encode_folder if job.source.is_dir() else _encode_video)(job, job.size)
        except (av.error.FFmpegError, Unusable, InputError) as error:
            if getattr(error, "errno", None) in FULL_DISK:
                raise
            return job.path, f"cannot be encoded anew: {error}"
    return job.path, ""


def _job(root: Path, small_root: Path, path: str, found: VideoMetadata, short_side: int) -> Job:
    short = min(found.width, found.height)
    size = None
    if short > short_side:
        scale = short_side / short
        fits = short_side % MACROBLOCK == 0 and found.codec not in ("jpeg", "png")
        size = _side(found.width * scale, fits), _side(found.height * scale, fits)
    renamed = size is not None and found.codec not in ("jpeg", "png") and not path.lower().endswith(".mp4")
    target = small_root / (f"{path}.mp4" if renamed else path)
    return Job(
        path=path, source=root / path, target=target, size=size, fps=found.fps, variable=VARIABLE in found.remarks
    )


def _side(pixels: float, fits: bool) -> int:
    """The nearest even number; with `fits` the nearest multiple of MACROBLOCK, where that stretches the picture little."""
    near = MACROBLOCK * round(pixels / MACROBLOCK)
    return near if fits and abs(near / pixels - 1) <= MOST_STRETCH else 2 * round(pixels / 2)


def _place(job: Job, small_root: Path) -> Place:
    return Place(path=job.target.relative_to(small_root).as_posix(), encoded=job.size is not None)


def _fresh(job: Job) -> bool:
    """A link is as old as its source, or rather the same file."""
    return job.target.exists() and job.target.stat().st_mtime_ns >= job.source.stat().st_mtime_ns


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _link(source: Path, target: Path) -> None:
    """A hard link, which costs no space; a copy where the file system has none."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, _partial(target), copy_function=_link_file, dirs_exist_ok=True)
    else:
        _link_file(str(source), str(_partial(target)))
    _partial(target).replace(target)


def _link_file(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _encode_folder(job: Job, size: tuple[int, int]) -> None:
    """Frames as JPEG, under the numbers that the folder gives them."""
    temporary = _partial(job.target)
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    temporary.mkdir()
    for path in list_frames(job.source):
        picture = cv2.imread(str(path))
        if picture is None:
            raise InputError(f"{path.name} is no picture")
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        (temporary / f"{path.stem}.jpg").write_bytes(data.tobytes())
    shutil.rmtree(job.target, ignore_errors=True)
    temporary.replace(job.target)


def _encode_video(job: Job, size: tuple[int, int]) -> None:
    container, stream = open_video(job.source, max_pixels=1 << 27)
    base = stream.time_base if job.variable else None
    spacing = max(1, round(job.fps / 2))
    with container, video_writer(job.target, fps=job.fps, options=X264, spacing=spacing, time_base=base) as add:
        for time, picture_HWC in _pictures(container, stream, size, job.variable):
            add(picture_HWC, time)


def _pictures(
    container: av.container.InputContainer, stream: av.VideoStream, size: tuple[int, int], variable: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """(time in units of the target, upright picture of `size`) of each frame."""
    last = -1
    for number, frame in enumerate(container.decode(stream)):
        turns = round((frame.rotation % 360) / 90) % 4  # as the loader reads it: quarter turns counter-clockwise
        width, height = size if turns % 2 == 0 else size[::-1]
        small = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.AREA)
        time = number if not variable or frame.pts is None else frame.pts
        last = time if time > last else last + 1  # a time that stands still or runs back would stop the encoder
        yield last, np.ascontiguousarray(np.rot90(small.to_ndarray(), turns))
