"""One loader worker: a process that turns tasks into frames until its pipe closes.

    Task (a path, a window, the draws)  --pipe-->  worker  --shared memory, or the pipe for encoded bytes-->  Reply

`pool` starts it as a program of its own rather than as a fork or a spawned copy of the main module: it starts without torch, never runs
the user's script a second time, and ends when its parent is gone.
"""

import contextlib
import mmap
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np

from ppma.config.loader import LoaderConfig
from ppma.loaders.decode.dali_input import Codecs
from ppma.loaders.samples import DaliInput, Sample, check_crops, scaled_size

Product = Literal["views", "input", "read_ahead"]
"""views: finished views in shared memory; input: a DaliInput for DALI through the pipe; read_ahead: nothing, but the file is on its way."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One sample to read."""

    ticket: int
    path: str
    draw: Sample
    product: Product
    codecs: Codecs
    """What DALI decodes ("input" only); none: PyAV and OpenCV decode, after DALI has refused."""
    offset: int
    """Where the views go in the shared memory, in bytes ("views" only)."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of a task. Exactly one of `reason` (the file is bad) and success holds."""

    ticket: int
    reason: str = ""
    fallback: str = ""
    """Why PyAV decoded what DALI was to decode; empty where it did not."""
    clip: DaliInput | None = None
    seconds: float = 0.0
    bytes_read: int = 0


def _produce(task: Task, config: LoaderConfig, memory: mmap.mmap) -> tuple[DaliInput | None, str]:
    """(what goes through the pipe, why DALI will not decode it)."""
    from ppma.loaders.decode.augment import make_views
    from ppma.loaders.decode.fetch import NotForDali, encoded_window, read_ahead, read_frames, read_window

    draw, fallback = task.draw, ""
    window = (Path(task.path), draw.start_seconds, draw.end_seconds, config.frames)
    if task.product == "read_ahead":
        read_ahead(window[0])
        return None, ""
    if task.product == "input":
        try:
            if not task.codecs:
                raise NotForDali("its decoder refused the file")
            clip = encoded_window(*window, task.codecs)
        except NotForDali as reason:
            clip, fallback = _decoded_input(read_window(*window)), str(reason)
        check_crops(draw.views, *scaled_size(clip.height, clip.width, config.short_side))
        return clip, fallback
    shape = (len(draw.views), config.frames, config.size, config.size, 3)
    out_VTHWC = np.frombuffer(memory, dtype=np.uint8, count=int(np.prod(shape)), offset=task.offset).reshape(shape)
    make_views(read_frames(*window), draw.views, config, out_VTHWC)
    return None, ""


def _decoded_input(frames_THWC: np.ndarray) -> DaliInput:
    frames, height, width, _ = frames_THWC.shape
    return DaliInput(kind="frames", payloads=(frames_THWC,), frame_idx=tuple(range(frames)), height=height, width=width)


def _bytes_read() -> int:
    """Bytes this process has read from files, pipes and caches so far (Linux)."""
    with Path("/proc/self/io").open() as file:
        return int(file.readline().split()[1])


def serve(connection: Connection, memory: mmap.mmap) -> None:
    """Answer tasks until the other end closes. The first message is the LoaderConfig."""
    import cv2

    from ppma.loaders.decode.fetch import BadClip

    cv2.setNumThreads(1)
    config: LoaderConfig = connection.recv()
    while True:
        task: Task = connection.recv()
        began, read_before = time.perf_counter(), _bytes_read()
        reason, clip, fallback = "", None, ""
        try:
            clip, fallback = _produce(task, config, memory)
        except (BadClip, ValueError) as error:  # ValueError: the crop leaves a file that changed after it was indexed
            reason = str(error)
        connection.send(
            Reply(
                ticket=task.ticket,
                reason=reason,
                fallback=fallback,
                clip=clip,
                seconds=time.perf_counter() - began,
                bytes_read=_bytes_read() - read_before,
            )
        )


def main() -> None:
    """Attach to the file descriptors named on the command line and serve."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(
            number, signal.SIG_IGN
        )  # Ctrl-C and SLURM reach the whole group; the parent decides and closes the pipe
    pipe_fd, memory_fd = int(sys.argv[1]), int(sys.argv[2])
    size = os.fstat(memory_fd).st_size
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone: the ordinary end
        serve(Connection(pipe_fd), mmap.mmap(memory_fd, size))
