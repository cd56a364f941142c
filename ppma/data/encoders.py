"""Encode the frames of a packed clip, one at a time: JPEG, or HEVC and H.264 in short closed groups for NVDEC.

Encoder(parameters).add(frame_HWC) ... finish()  ->  the bytes of one picture for each frame, in order

A packet of video is one picture, and refers to none after it: a reader that starts at a key frame and stops at the last
frame of its window decodes nothing after it. The same frames give the same bytes: one thread, and no version in the stream.
"""

from fractions import Fraction
from typing import Any, Protocol, cast

import cv2
import numpy as np

from ppma.config.errors import BadClip, InputError
from ppma.loaders.samples import scaled_size
from ppma.loaders.sources.store import PackParameters

ENCODERS = {"hevc": "libx265", "h264": "libx264"}
"""{codec: FFmpeg's name of its encoder}."""
_COMMON = "keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes=0:repeat-headers=1"
_OPTIONS = {
    "hevc": ("x265-params", f"{_COMMON}:pools=none:frame-threads=1:wpp=0:info=0:log-level=error"),
    "h264": ("x264-params", f"{_COMMON}:threads=1:cpu-independent=1"),
}
QUALITY = {"jpeg": (90, 100), "hevc": (14, 51), "h264": (14, 51)}
"""{codec: default, largest}: JPEG's quality, the CRF of video. At these defaults video loses 1 dB more than JPEG."""
DEFAULT_GOP = 8
"""Of 16 consecutive pictures from any on, a reader decodes 19.5: 1.22 for each."""
MOST_GOP = 250
BLOCK = 16
"""Sides of video are multiples of this. DALI reuses a decoder for the next clip only if coded and shown sizes agree."""
MOST_STRETCH = 0.1
"""Largest change of a side to make it one: at 256 pixels it is 0.03."""


def check_encoder(codec: str) -> None:
    """Raise InputError if PyAV here cannot encode `codec`."""
    import av.codec

    def encodes(name: str) -> bool:
        return ENCODERS[name] in av.codec.codecs_available

    if codec in ENCODERS and not encodes(codec):
        others = " or ".join(["jpeg", *filter(encodes, ENCODERS)])
        here = f"--codec {codec}: PyAV {av.__version__} here has no encoder {ENCODERS[codec]}"
        raise InputError(
            f"{here}; install PyAV's own wheel (pip install --force-reinstall av), or give --codec {others}"
        )


def packed_size(height: int, width: int, parameters: PackParameters) -> tuple[int, int]:
    """Return the (height, width) to pack frames at; a smaller frame keeps its size, but for video's BLOCK.

    Raises:
        BadClip: A side is too small for a multiple of BLOCK.
    """
    if min(height, width) > parameters.short_side:
        height, width = scaled_size(height, width, parameters.short_side)
    if parameters.codec == "jpeg":
        return height, width
    sides = [BLOCK * max(1, round(side / BLOCK)) for side in (height, width)]
    if any(abs(new / side - 1) > MOST_STRETCH for new, side in zip(sides, (height, width))):
        raise BadClip(f"frames of {width} x {height} are no multiples of {BLOCK}, nor near: pack it with --codec jpeg")
    return sides[0], sides[1]


class Encoder(Protocol):
    """Encodes the frames of one clip."""

    def add(self, frame_HWC: np.ndarray) -> list[bytes]:
        """Take the next frame, uint8 RGB; return the pictures that are finished."""

    def finish(self) -> list[bytes]:
        """Return the other pictures."""


def make_encoder(parameters: PackParameters) -> Encoder:
    """Return an encoder for the frames of one clip."""
    return _Jpeg(parameters) if parameters.codec == "jpeg" else _Video(parameters)


class _Jpeg:
    def __init__(self, parameters: PackParameters) -> None:
        self._flags = [cv2.IMWRITE_JPEG_QUALITY, parameters.quality]

    def add(self, frame_HWC: np.ndarray) -> list[bytes]:
        bgr = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR)
        return [cv2.imencode(".jpg", bgr, self._flags)[1].tobytes()]

    def finish(self) -> list[bytes]:
        return []


class _Video:
    def __init__(self, parameters: PackParameters) -> None:
        from av import CodecContext, VideoFrame  # late: training reads stores on machines without PyAV

        self._frame, self._gop, self._frames = VideoFrame, parameters.gop, 0
        self._encoder = encoder = cast(Any, CodecContext.create(ENCODERS[parameters.codec], "w"))
        name, options = _OPTIONS[parameters.codec]
        encoder.options = {"crf": str(parameters.quality), name: options.format(gop=parameters.gop)}
        encoder.gop_size, encoder.thread_count, encoder.pix_fmt = parameters.gop, 1, "yuv420p"
        encoder.framerate, encoder.time_base = Fraction(25), Fraction(1, 25)  # of no clip: CRF depends on it
        self._next = 0

    def add(self, frame_HWC: np.ndarray) -> list[bytes]:
        if not self._encoder.is_open:
            self._encoder.height, self._encoder.width = frame_HWC.shape[:2]
        picture = self._frame.from_ndarray(frame_HWC, format="rgb24")
        picture.pts, self._frames = self._frames, self._frames + 1
        return self._taken(self._encoder.encode(picture))

    def finish(self) -> list[bytes]:
        packets = self._taken(self._encoder.encode(None)) if self._frames else []
        assert self._next == self._frames
        return packets

    def _taken(self, packets: list[Any]) -> list[bytes]:
        for packet in packets:
            assert packet.pts == self._next and packet.is_keyframe == (self._next % self._gop == 0)
            self._next += 1
        return [bytes(packet) for packet in packets]
