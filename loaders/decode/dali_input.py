"""What DALI decodes: its codecs and frame sizes, and the JPEG headers it survives. PyAV and OpenCV decode the rest.

    worker: file  ->  within these limits?  ->  DaliInput (encoded bytes)        ->  DALI graph
                                    \\ no ->  DaliInput (frames decoded here)  ->  DALI graph

DALI 2.4's `decoders.image` crashes the process (SIGSEGV) when the header of one of 48 or more images does not parse, so
workers parse every header first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class DaliInput:
    """The bytes of one window for the DALI graph.

    kind "frames": one decoded uint8 (T, H, W, 3) array; "video": one encoded container; "jpeg": encoded images.
    Encoded payloads are one-dimensional uint8 arrays.
    """

    kind: Literal["frames", "video", "jpeg"]
    payloads: tuple[np.ndarray, ...]
    frame_idx: tuple[int, ...]
    """The clip's frames in order: indices into the decoded frames ("frames", "video") or the payloads ("jpeg")."""
    height: int
    """Of a decoded frame in pixels, before scaling."""
    width: int


# ------------------------------------------------------------------------------------------------------- video codecs


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a decoder supports of a codec; sizes are in pixels of a frame."""

    smallest: tuple[int, int] = (1, 1)
    """Width, height."""
    largest: tuple[int, int] = (1 << 16, 1 << 16)
    macroblocks: int = 1 << 32
    """Most blocks of 16 x 16 pixels in a frame."""
    multiple: int = 1
    """Width and height must be multiples of this."""
    single: bool = False
    """Each packet must hold exactly one picture, unlike VP9's with alternate references."""

    def refuse(self, width: int, height: int) -> str:
        """Return why the size cannot be decoded, or an empty string."""
        if width < self.smallest[0] or height < self.smallest[1]:
            return f"smaller than {self.smallest[0]} x {self.smallest[1]}"
        if width > self.largest[0] or height > self.largest[1]:
            return f"larger than {self.largest[0]} x {self.largest[1]}"
        if width * height > 256 * self.macroblocks:
            return f"more than {self.macroblocks} macroblocks"
        return f"not a multiple of {self.multiple}" if width % self.multiple or height % self.multiple else ""


Codecs = Mapping[str, Limits]
"""{codec: what a decoder supports of it}."""
DALI_CPU_CODECS: Codecs = dict.fromkeys(("vp8", "vp9", "mjpeg"), Limits())
"""What DALI 2.4 decodes without a GPU; it raises for everything else."""
DALI_GPU_CODECS: Codecs = {
    "h264": Limits(smallest=(48, 16), largest=(4096, 4096), macroblocks=65536, multiple=2),
    "hevc": Limits(smallest=(144, 144), largest=(8192, 8192), macroblocks=262144, multiple=2),
    "vp8": Limits(smallest=(48, 16), largest=(4096, 4096), macroblocks=65536, multiple=2),
    "vp9": Limits(smallest=(128, 128), largest=(8192, 8192), macroblocks=262144, multiple=2, single=True),
    "mpeg4": Limits(smallest=(48, 16), largest=(2032, 2032), macroblocks=8192, multiple=2),
}
"""What NVDEC decodes through DALI 2.4, in 8-bit 4:2:0 only.

Sizes are those that drivers report (cuvidGetDecoderCaps, printed by nvdecinfo, github.com/philipl/nv-video-info, pull
request 7, and by nvidia-vaapi-driver); profiles are in NVIDIA's NVDEC application note, table 1. AV1 is left out:
Hopper has no decoder for it, and DALI pairs packets with pictures in a way that its repeated frames would shift. MJPEG
is not in DALI's list of GPU codecs, and DALI numbers every picture of a VP9 packet, shown or not (both in
frames_decoder_gpu.cc). Its color kernel looks for the chroma at height * pitch (color_space.cu), so odd sizes are left
to PyAV."""


# --------------------------------------------------------------------------------------------------------------- JPEG

_SUPPORTED = {0xC0, 0xC1, 0xC2}
"""Frame types that nvJPEG and libjpeg-turbo share: baseline, extended, progressive (ITU-T T.81, table B.1)."""
_SAMPLING = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2)}
"""Luma samples per chroma sample, across and down, that nvJPEG decodes: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1, 4:1:0."""
_START, _END = b"\xff\xd8", b"\xff\xd9"
_ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""


class HeaderError(ValueError):
    """Raised for a JPEG header that cannot be parsed; the message says where."""


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """Properties of a JPEG, from its header."""

    kind: int
    """Its start-of-frame marker, 0xC0 to 0xCF."""
    bits: int
    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    """(across, down) of each component."""
    rotated: bool
    """Its EXIF orientation is not upright."""
    rgb: bool
    """Adobe's marker says that its three components are RGB rather than YCbCr."""
    complete: bool
    """An end marker follows the first scan."""


def read_header(data: bytes) -> JpegHeader:
    """Parse a JPEG up to its first scan.

    Raises:
        HeaderError: It is not a JPEG, or is cut or damaged before the first scan.
    """
    if data[:2] != _START:
        raise HeaderError("it does not start as a JPEG")
    frame: tuple[int, bytes] | None = None
    rotated = rgb = False
    at = 2
    while True:
        marker, body, at = _segment(data, at)
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker, body
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            rotated |= _orientation(body[6:]) not in (0, 1)
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            rgb |= body[11] == 0
    if frame is None:
        raise HeaderError("its first scan comes before its frame header")
    kind, body = frame
    count = body[5] if len(body) > 5 else 0
    if len(body) < 6 + 3 * count or not count:
        raise HeaderError("its frame header is cut")
    return JpegHeader(
        kind=kind,
        bits=body[0],
        height=int.from_bytes(body[1:3], "big"),
        width=int.from_bytes(body[3:5], "big"),
        sampling=tuple((body[7 + 3 * i] >> 4, body[7 + 3 * i] & 15) for i in range(count)),
        rotated=rotated,
        rgb=rgb and count == 3,
        complete=data.find(_END, at) > 0,
    )


def _segment(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return (marker, body, start of the next segment) of the segment at `at`."""
    while data[at : at + 2] == b"\xff\xff":  # fill bytes
        at += 1
    size = int.from_bytes(data[at + 2 : at + 4], "big")
    body = data[at + 4 : at + 2 + size]
    if data[at : at + 1] != b"\xff" or size < 2 or len(body) != size - 2:
        raise HeaderError(f"its header breaks off at byte {at}")
    return data[at + 1], body, at + 2 + size


def _orientation(tiff: bytes) -> int:
    """Return the orientation in an EXIF block, or 0."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4)
    for entry in (first + 2 + 12 * i for i in range(number(first, 2))):
        if number(entry, 2) == _ORIENTATION:
            return number(entry + 8, 2)
    return 0


def why_not_dali(data: bytes, size: tuple[int, int] | None = None) -> str:
    """Return why DALI must not decode a JPEG, or an empty string.

    Args:
        data: A whole file.
        size: (height, width) that it must have; None for any.
    """
    try:
        header = read_header(data)
    except HeaderError as error:
        return str(error)
    found = header.height, header.width
    height, width = size or found
    luma, *chroma = header.sampling
    ratios = {(luma[0] / max(across, 1), luma[1] / max(down, 1)) for across, down in chroma}
    reasons = {
        f"JPEG of {header.width} x {header.height} instead of {width} x {height}": found != (height, width),
        "JPEG without pixels": 0 in found,
        f"JPEG of type 0x{header.kind:X}": header.kind not in _SUPPORTED,
        f"JPEG of {header.bits} bits": header.bits != 8,
        f"JPEG of {len(header.sampling)} components": len(header.sampling) not in (1, 3),
        "JPEG with RGB components": header.rgb,
        "JPEG with uncommon chroma sampling": not (ratios <= _SAMPLING and len(ratios) <= 1),
        "rotated JPEG": header.rotated,
        "JPEG without an end": not header.complete,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
