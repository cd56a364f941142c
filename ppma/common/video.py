"""Encode frames as a video file, atomically and reproducibly.

frame_HWC or mask_HW, one after the other  ->  one encoder thread  ->  temporary file  ->  renamed when the last frame is written

The same frames and settings give the same bytes: one thread, no date and no version of the muxer in the file, and x264 with
`cpu-independent=1`, without which it may encode the same frames differently from one call to the next.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ppma.common.files import atomic_path

REPRODUCIBLE = {"libx264": {"x264-params": "cpu-independent=1"}}
"""{encoder: options without which the same frames may give other bytes}. Without this one, 22 of 30 clips of 48 pixels and
2 of 4 of 448 x 256 differed; it costs no CPU time."""

AddFrame = Callable[..., None]
"""`add(frame, pts=None)`: encode one frame; `pts` counts in units of the writer's `time_base`."""


def frame_rate(fps: float) -> Fraction:
    """Return the rate as the fraction that a container stores: 29.97 becomes 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def key_frame_spacing(fps: float) -> int:
    """Return the frames between key frames that are one second apart."""
    return max(1, round(fps))


@contextmanager
def video_writer(
    path: Path,
    *,
    fps: float,
    options: Mapping[str, str],
    codec: str = "libx264",
    spacing: int | None = None,
    time_base: Fraction | None = None,
) -> Iterator[AddFrame]:
    """Yield a function that encodes the next frame; `path` appears when the block ends without an error.

    Frames are uint8 RGB (H, W, 3), uint8 gray (H, W) or a bool mask (H, W), stored as 0 and 255; all of one size. RGB becomes 4:2:0,
    which every decoder reads, or 4:4:4 where a side is odd.

    Args:
        path: The file to write; its suffix chooses the container.
        fps: Frames per second.
        options: Options of the encoder, for example `{"preset": "veryfast", "crf": "20"}`.
        codec: FFmpeg's name of the encoder.
        spacing: Frames between key frames (default: one second).
        time_base: Seconds per unit of `pts`, for a variable frame rate (default: 1 / fps).

    Raises:
        InputError: The folder cannot be written.
        DiskFullError: No space is left.
    """
    rate = frame_rate(fps)
    with (
        atomic_path(path) as temp_path,
        av.open(f"file:{temp_path}", "w", options={"fflags": "+bitexact"}) as container,
    ):
        stream: Any = container.add_stream(codec, rate=rate, options={**REPRODUCIBLE.get(codec, {}), **options})
        stream.codec_context.gop_size = key_frame_spacing(fps) if spacing is None else spacing
        stream.codec_context.thread_count = 1
        if time_base is not None:
            stream.codec_context.time_base = time_base

        def add(frame: np.ndarray, pts: int | None = None) -> None:
            height, width = frame.shape[:2]
            gray = frame.ndim == 2
            if not stream.codec_context.is_open:
                stream.height, stream.width = height, width
                stream.pix_fmt = "gray" if gray else "yuv444p" if height % 2 or width % 2 else "yuv420p"
            pixels = np.ascontiguousarray(frame.astype(np.uint8) * 255 if frame.dtype == bool else frame)
            picture = av.VideoFrame.from_ndarray(pixels, format="gray" if gray else "rgb24")
            if pts is not None:
                picture.pts, picture.time_base = pts, time_base or 1 / rate
            container.mux(stream.encode(picture))

        yield add
        container.mux(stream.encode(None))
