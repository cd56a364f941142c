"""Write the frames and masks of a clip as videos or as folders of images, atomically and without sound or metadata.

    frame_HWC, hidden_HW, ...  ->  inp/<class>/<video>.mp4 and seg/<class>/<video>.mkv               layout "videos"
                                   inp/<class>/<video>/%06d.jpg and seg/<class>/<video>/%06d.png     layout "frames"

inp, seg and ori (inpainted, segmented, original) are the folder names of the published pipeline.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from ppma.common.video import video_writer

Layout = Literal["videos", "frames"]
Part = Literal["inp", "seg", "ori"]

X264 = {"preset": "veryfast", "qp": "10"}
"""A constant quantizer bounds the error of every pixel, unlike a rate factor: above 40 dB against the source's RGB."""
FFV1 = {"level": "3", "slices": "4", "slicecrc": "1"}
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 97, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
"""Full color resolution: above 40 dB on pixels that are not painted."""
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def target(out: Path, part: Part, name: str, layout: Layout) -> Path:
    """Return the path of one part of the clip `<class>/<video>`: a video file, or a folder of images."""
    suffix = "" if layout == "frames" else ".mkv" if part == "seg" else ".mp4"
    return out / part / f"{name}{suffix}"


@contextmanager
def part_writer(path: Path, part: Part, layout: Layout, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that writes the next frame_HWC (uint8 RGB), or hidden_HW (bool) of "seg", to a `target`.

    `path` appears when the block ends without an error.
    """
    if layout == "videos":
        codec, options = ("ffv1", FFV1) if part == "seg" else ("libx264", X264)
        with video_writer(path, fps=fps, codec=codec, options=options) as add_frame:
            yield add_frame
        return
    temp_path, numbers = path.with_name(f".{path.name}.tmp"), count(1)
    shutil.rmtree(temp_path, ignore_errors=True)
    temp_path.mkdir(parents=True)

    def add_image(frame: np.ndarray) -> None:
        if part == "seg":
            suffix, data = ".png", cv2.imencode(".png", frame.astype(np.uint8) * 255, PNG)[1]
        else:
            suffix, data = ".jpg", cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), JPEG)[1]
        (temp_path / f"{next(numbers):06d}{suffix}").write_bytes(data.tobytes())

    try:
        yield add_image
        shutil.rmtree(path, ignore_errors=True)
        temp_path.replace(path)
    finally:
        shutil.rmtree(temp_path, ignore_errors=True)
