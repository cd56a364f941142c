"""Read one window of one clip, decoding as few bytes as it takes.

    file, [start, end) in seconds
      ->  demux from the key frame before the window to its end; every packet gives a frame's time
      ->  choose T frames: linspace over the frames whose time is in the window (the paper's sampling)
      ->  decode, keep the chosen frames, convert to RGB        (or leave them encoded for DALI: `remux`)

Times are presentation times from the first frame, so a variable frame rate samples what was on screen. Frames are
upright: rotation in the header is applied. A file that cannot give the frames raises BadClip; none is ever made up.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import cast

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from ppma.common.frames import FRAME_FOLDER_FPS, is_frames, list_frames
from ppma.config.errors import BadClip, InputError, UnreachableError
from ppma.loaders.samples import TIME_TOLERANCE, choose_frames, frames_in_window, thin_to_fps
from ppma.loaders.sources.pictures import (
    SeekError,
    Shown,
    Unusable,
    decode_window,
    from_start,
    open_video,
    seek_window,
    why_from_start,
)
from ppma.loaders.sources.remote import RemoteFile, Url
from ppma.loaders.sources.store import PackedWindow, StoreError, is_packed, read_packed, read_packed_ahead

log = logging.getLogger(__name__)

MAX_PIXELS = 8192 * 4352
"""Most pixels of a frame: 8K, the largest useful `ppma index --max-pixels`. A 200 kB file may promise more."""
MOST_HELD_PIXELS = 1 << 27
"""Pixels of the frames that a window decoded from the start holds: 200 MB."""
AHEAD_BYTES = 1 << 23
"""What is read ahead of a video by URL: a usual clip as a whole. Of a long video the window may be elsewhere."""
_readers_ahead = ThreadPoolExecutor(8, "ppma-read-ahead")
_no_seeking: set[Path] = set()
"""Files that showed something else after a seek than their packets promise."""

Choose = Callable[[Sequence[float] | np.ndarray], list[int]]
"""Ascending times of frames -> indices of the frames to read."""


# ------------------------------------------------------------------------------------------------------ public readers


@contextmanager
def as_bad_clip() -> Iterator[None]:
    """Turn the errors that libraries raise for a bad file into BadClip."""
    try:
        yield
    except (StoreError, Unusable) as error:
        raise BadClip(str(error)) from error
    except (av.error.FFmpegError, OSError) as error:
        raise BadClip(f"{type(error).__name__}: {error.strerror or error}") from error


def read_frames(path: Path, start: float, end: float, count: int) -> list[np.ndarray]:
    """Return `count` frames of the window [start, end), each uint8 (H, W, 3) RGB, upright, at the file's own size.

    Args:
        path: Video, folder of frames (25 frames/s) or address of a packed clip.
        start: First moment of the window in seconds.
        end: End of the window in seconds, exclusive.
        count: Number of frames, uniformly spaced.

    Raises:
        BadClip: The file cannot give these frames.
    """
    with as_bad_clip():
        if is_packed(path):
            packed = read_packed(path, lambda times: choose_frames(times, start, end, count))
            decoded = _decode_packed(packed, path.name)
            frames = [decoded[i] for i in packed.order]
            if wrong := {frame.shape[:2] for frame in frames} - {(packed.height, packed.width)}:
                raise BadClip(f"frames of {wrong} (height, width), and the store says {packed.height, packed.width}")
        elif is_frames(path):
            files, chosen = folder_window(path, start, end, count)
            pictures = {i: _read_image(files[i]) for i in dict.fromkeys(chosen)}
            frames = [pictures[i] for i in chosen]
        else:
            frames = _read_video(path, start, end, count)
    if len({frame.shape for frame in frames}) != 1:
        raise BadClip(f"frames differ in size: {sorted({frame.shape[:2] for frame in frames})}")
    return frames


def read_window(path: Path, start: float, end: float, count: int) -> np.ndarray:
    """Return the frames of `read_frames` as one array (T, H, W, 3)."""
    return np.stack(read_frames(path, start, end, count))


def all_frames(path: Path, start: float, end: float, *, fps: float | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (time in seconds, uint8 (H, W, 3) RGB) for every frame of [start, end) in order, holding one at a time.

    Args:
        path: Video or folder of frames.
        start: First moment in seconds.
        end: End in seconds, exclusive.
        fps: Most frames per second to yield; None for all.

    Raises:
        BadClip: A frame cannot be decoded; earlier frames may have been yielded.
    """

    def choose(times: Sequence[float] | np.ndarray) -> list[int]:
        return thin_to_fps(times, *frames_in_window(times, start, end), fps)

    with as_bad_clip():
        if is_frames(path):
            files, times = _folder(path)
            for i in choose(times):
                yield float(times[i]), _read_image(files[i])
        else:
            given = 0
            try:
                for time, picture in _video_frames(path, start, end, choose):
                    yield time, picture
                    given += 1
            except SeekError:
                yield from islice(_video_frames(path, start, end, choose), given, None)


def read_ahead(path: Path, start: float, end: float, count: int) -> None:
    """Have the kernel, or the cache of URLs, fetch what `read_frames` reads, which hides the latency of a network.

    Returns at once: threads open the file and ask for its bytes. What cannot be opened is reported when it is read.
    """
    _readers_ahead.submit(_read_ahead, path, start, end, count)


def _read_ahead(path: Path, start: float, end: float, count: int) -> None:
    with contextlib.suppress(OSError, InputError, StoreError, UnreachableError):
        if is_packed(path):
            read_packed_ahead(path, lambda times: choose_frames(times, start, end, count))
            return
        if isinstance(path, Url):
            remote = RemoteFile(path)
            remote.read_ahead(0, min(remote.size, AHEAD_BYTES))
            return
        for file in list_frames(path) if is_frames(path) else [path]:
            with file.open("rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _decode_packed(window: PackedWindow, name: str) -> dict[int, np.ndarray]:
    """Return {place among the window's pictures: frame} of those that it shows."""
    if window.codec == "jpeg":
        return {i: _decode_image(data, name) for i, data in enumerate(window.pictures)}
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(window.codec, "r"))
    decoder.thread_type = "NONE"
    decoded: list[av.VideoFrame] = []
    with contextlib.suppress(av.error.FFmpegError):
        for data in (*window.pictures, None):
            decoded += decoder.decode(None if data is None else av.Packet(data.tobytes()))
    if len(decoded) != len(window.pictures) or any(frame.is_corrupt for frame in decoded):
        raise BadClip(f"{len(window.pictures)} pictures of {window.codec} do not decode; run ppma pack --verify")
    return {i: to_rgb(decoded[i]) for i in set(window.order)}


# --------------------------------------------------------------------------------------------------- folders of frames


def _folder(path: Path) -> tuple[list[Path], np.ndarray]:
    """Return the files of a folder of frames, and the time of each in seconds."""
    try:
        files = list_frames(path)
    except InputError as error:
        raise BadClip(str(error)) from error
    return files, np.arange(len(files)) / FRAME_FOLDER_FPS


def folder_window(path: Path, start: float, end: float, count: int) -> tuple[list[Path], list[int]]:
    """Return the files of a folder of frames, and the indices of the `count` files of a window."""
    files, times = _folder(path)
    return files, choose_frames(times, start, end, count)


def _decode_image(data: np.ndarray, name: str) -> np.ndarray:
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise BadClip(f"the frame {name} cannot be decoded")
    return image


def _read_image(path: Path) -> np.ndarray:
    return _decode_image(np.fromfile(path, dtype=np.uint8), path.name)


# -------------------------------------------------------------------------------------------------------------- video


_reformatter = VideoReformatter()  # one set of tables for all frames of the process, instead of one for each frame


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Return an upright frame as uint8 (H, W, 3) RGB."""
    rgb = _reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()  # by default, one a core
    turns = round((frame.rotation % 360) / 90) % 4  # quarter turns counterclockwise that make the picture upright
    return np.rot90(rgb, turns) if turns else rgb


def _video_frames(path: Path, start: float, end: float, choose: Choose) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (time, picture) of the frames of [start, end) that `choose` selects, each once, in order of time.

    Raises:
        SeekError: Seeking failed. The next call decodes the file from its start.
    """
    container, stream = open_video(path, max_pixels=MAX_PIXELS)
    with container:
        if path not in _no_seeking and not why_from_start(container, stream):
            try:
                window = seek_window(container, stream, start, end)
                for place, frame in decode_window(stream, window, choose(window.times)):
                    yield window.times[place], to_rgb(frame)
                return
            except (SeekError, av.error.FFmpegError) as error:
                _no_seeking.add(path)
                log.warning("%s is decoded from its start for every window from now on: %s", path, error)
                raise SeekError(str(error)) from error
    # Frames are held until the last one of the window is known; a window too large for that is decoded twice.
    times: list[float] = []
    held: list[av.VideoFrame] | None = []
    for time, frame in _shown_in(path, start, end):
        times.append(time)
        if held is not None:
            held.append(frame)
            held = held if len(held) * frame.width * frame.height < MOST_HELD_PIXELS else None
    if not times:
        raise BadClip("no frame could be decoded")
    chosen = set(choose(times))
    for place, (time, frame) in enumerate(_shown_in(path, start, end) if held is None else zip(times, held)):
        if place in chosen:
            yield time, to_rgb(frame)


def _shown_in(path: Path, start: float, end: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield (time, frame) of [start, end), and before them the frame on screen at the start.

    Raises:
        BadClip: One of them is damaged, or may refer to a damaged one.
    """
    container, stream = open_video(path, max_pixels=MAX_PIXELS)
    with container:
        for time, frame, damaged in _on_screen(from_start(container, stream), start, end):
            if damaged:
                raise BadClip(f"the frame at {time:.3f} s is corrupt")
            yield time, frame


def _on_screen(shown: Iterable[Shown], start: float, end: float) -> Iterator[Shown]:
    before: list[Shown] = []
    damaged = False
    for time, frame, is_damaged in shown:
        if time >= end - TIME_TOLERANCE and time > 0:
            break
        damaged = is_damaged or (damaged and not (frame.key_frame and time <= start + TIME_TOLERANCE))
        now = Shown(time, frame, damaged)
        if time < start - TIME_TOLERANCE:
            before = [now]
        else:
            yield from [*before, now]
            before = []
    yield from before


def _read_video(path: Path, start: float, end: float, count: int) -> list[np.ndarray]:
    chosen: list[int] = []

    def choose(times: Sequence[float] | np.ndarray) -> list[int]:
        chosen[:] = choose_frames(times, start, end, count)
        return chosen

    try:
        pictures = [picture for _, picture in _video_frames(path, start, end, choose)]
    except SeekError:
        pictures = [picture for _, picture in _video_frames(path, start, end, choose)]
    rank = {place: number for number, place in enumerate(dict.fromkeys(chosen))}
    return [pictures[rank[place]] for place in chosen]
