"""Encode the frames of a packed clip, one at a time: JPEG, or HEVC and H.264 in short closed groups for NVDEC.

encode(frames, parameters)  ->  the bytes of one picture for each frame, in order

A packet of video is one picture, and refers to none after it: a reader that starts at a key frame and stops at the last
frame of its window decodes nothing after it. The same frames give the same bytes: one thread, and no version in the stream.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, cast

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


def encode(frames: Iterable[np.ndarray], parameters: PackParameters) -> Iterator[bytes]:
    """Yield the bytes of one picture for each uint8 RGB frame (H, W, 3) of one clip, in order."""
    if parameters.codec == "jpeg":
        flags = [cv2.IMWRITE_JPEG_QUALITY, parameters.quality]
        for frame_HWC in frames:
            yield cv2.imencode(".jpg", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR), flags)[1].tobytes()
        return
    for number, packet in enumerate(_packets(frames, parameters)):
        assert packet.pts == number and packet.is_keyframe == (number % parameters.gop == 0)
        yield bytes(packet)


def _packets(frames: Iterable[np.ndarray], parameters: PackParameters) -> Iterator[Any]:
    from av import CodecContext, VideoFrame  # late: training reads stores on machines without PyAV

    encoder = cast(Any, CodecContext.create(ENCODERS[parameters.codec], "w"))
    name, options = _OPTIONS[parameters.codec]
    encoder.options = {"crf": str(parameters.quality), name: options.format(gop=parameters.gop)}
    encoder.gop_size, encoder.thread_count, encoder.pix_fmt = parameters.gop, 1, "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(25), Fraction(1, 25)  # of no clip: CRF depends on it
    for number, frame_HWC in enumerate(frames):
        if not number:
            encoder.height, encoder.width = frame_HWC.shape[:2]
        picture = VideoFrame.from_ndarray(frame_HWC, format="rgb24")
        picture.pts = number
        yield from encoder.encode(picture)
    if encoder.is_open:
        yield from encoder.encode(None)
