"""Writes a clip and its masks, as videos or as folders of frames, without sound and without a word about where they come from.

    frame_HWC, hidden_HW, one after the other  ->  inp/<class>/<video>.mp4 and seg/<class>/<video>.mkv           layout "videos"
                                                   inp/<class>/<video>/%06d.jpg and seg/<class>/<video>/%06d.png  layout "frames"

inp, seg and ori are the names of the published pipeline: inpainted, segmented, original. A file or folder appears complete or not at all.
"""

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol

import av
import cv2
import numpy as np

from ppma.common.video import key_frame_spacing

Layout = Literal["videos", "frames"]
Part = Literal["inp", "seg", "ori"]

X264 = {"preset": "veryfast", "qp": "10", "threads": "1"}
"""A fixed step of quantisation bounds the error of every pixel, which a rate factor does not: above 40 dB against the source's RGB."""
FFV1 = {"level": "3", "slices": "4", "slicecrc": "1"}
JPEG_QUALITY = 97
"""Without halving the colours: above 40 dB on what is not painted."""


def parts(keep_original: bool) -> tuple[Part, ...]:
    """What is written of a clip."""
    return ("inp", "seg", "ori") if keep_original else ("inp", "seg")


class Writer(Protocol):
    """Takes pictures, one at a time."""

    path: Path
    """What appears when it is finished."""

    def add(self, picture: np.ndarray) -> None:
        """Write the next picture."""

    def finish(self) -> None:
        """Give it its name."""

    def drop(self) -> None:
        """Remove what was written. Idempotent."""


class VideoWriter:
    """A video stream and nothing else: H.264 in MP4 for pictures_HWC, lossless FFV1 in Matroska for masks_HW."""

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        """`path` ends in .mp4 or .mkv; masks go into .mkv."""
        self.path, self._grey = path, path.suffix == ".mkv"
        self._partial = partial(path)
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        kind = "matroska" if self._grey else "mp4"
        self._container = av.open(str(self._partial), "w", format=kind, options={"fflags": "+bitexact"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = (
            self._container.add_stream("ffv1", rate=rate, options=FFV1)
            if self._grey
            else self._container.add_stream("libx264", rate=rate, options=X264)
        )
        self._stream.height, self._stream.width = height, width
        # 4:2:0 needs even sides; every decoder reads it, which 4:4:4 cannot claim
        self._stream.pix_fmt = "gray" if self._grey else "yuv444p" if height % 2 or width % 2 else "yuv420p"
        self._stream.codec_context.gop_size = key_frame_spacing(fps)
        self._stream.codec_context.thread_count = 1

    def add(self, picture: np.ndarray) -> None:
        """Encode the next picture_HWC (RGB), or mask_HW (bool)."""
        pixels = picture.astype(np.uint8) * 255 if self._grey else picture
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="gray" if self._grey else "rgb24")
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write the end of the file and give it its name."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._partial.replace(self.path)

    def drop(self) -> None:
        """Remove what was written."""
        self._container.close()
        self._partial.unlink(missing_ok=True)


class FolderWriter:
    """Numbered pictures from 000001 on: JPEG for pictures_HWC, PNG for masks_HW."""

    def __init__(self, path: Path, suffix: Literal[".jpg", ".png"]) -> None:
        """`path` is the folder."""
        self.path, self._suffix, self._count = path, suffix, 0
        self._partial = partial(path)
        shutil.rmtree(self._partial, ignore_errors=True)  # of a run that was killed
        self._partial.mkdir(parents=True)

    def add(self, picture: np.ndarray) -> None:
        """Write the next picture."""
        self._count += 1
        if self._suffix == ".png":
            data = cv2.imencode(".png", picture.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        else:
            options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
            data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1]
        (self._partial / f"{self._count:06d}{self._suffix}").write_bytes(data.tobytes())

    def finish(self) -> None:
        """Give the folder its name."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._partial.replace(self.path)

    def drop(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._partial, ignore_errors=True)


def partial(path: Path) -> Path:
    """Where something is written before it is complete; a run after a kill writes over it."""
    return path.with_name(f".{path.name}.partial")


def target(out: Path, part: Part, name: str, layout: Layout) -> Path:
    """Where a part of the clip `<class>/<video>` goes."""
    suffix = "" if layout == "frames" else ".mkv" if part == "seg" else ".mp4"
    folder = out / part / name
    return folder.with_name(folder.name + suffix)


def writer(path: Path, part: Part, layout: Layout, fps: float, size: tuple[int, int]) -> Writer:
    """The writer of a `target` of pictures of this height and width."""
    if layout == "videos":
        return VideoWriter(path, fps, *size)
    return FolderWriter(path, ".png" if part == "seg" else ".jpg")
