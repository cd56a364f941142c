"""Check the header of a JPEG before DALI gets it.

DALI 2.4's `decoders.image` ends the process (SIGSEGV) when the header of one of 48 or more images does not parse, so a worker looks first.

    bytes  ->  markers up to the first scan  ->  the reason why DALI must not get it, or ""
"""

from dataclasses import dataclass

_SUPPORTED = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
"""Frame types that nvJPEG and libjpeg-turbo share: Huffman-coded, not lossless (ITU-T T.81, table B.1)."""
_SAMPLING = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2)}
"""Samples of luma for one of chroma, across and down, that nvJPEG decodes: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1, 4:1:0."""
_START, _END = b"\xff\xd8", b"\xff\xd9"
_ORIENTATION = 0x0112
"""The EXIF tag; 1 is upright."""


class HeaderError(ValueError):
    """A header that does not parse; the text says where."""


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """The properties of a JPEG that its header gives."""

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
        HeaderError: no JPEG, or cut or damaged before the first scan.
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
    """Return the orientation in an EXIF block, 0 if it has none."""
    order = "little" if tiff[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)  # type: ignore[arg-type]

    first = number(4, 4)
    for i in range(number(first, 2)):
        if number(first + 2 + 12 * i, 2) == _ORIENTATION:
            return number(first + 2 + 12 * i + 8, 2)
    return 0


def why_not_dali(data: bytes, size: tuple[int, int] | None = None) -> str:
    """Return why DALI's decoder must not get these bytes; empty where it may.

    Args:
        data: A whole file.
        size: (height, width) that it must have; None: any.
    """
    try:
        header = read_header(data)
    except HeaderError as error:
        return str(error)
    height, width = size or (header.height, header.width)
    ratios = {
        (header.sampling[0][0] / max(across, 1), header.sampling[0][1] / max(down, 1))
        for across, down in header.sampling[1:]
    }
    reasons = {
        f"JPEG of {header.width} x {header.height} instead of {width} x {height}": (header.height, header.width)
        != (height, width),
        "JPEG without pixels": not header.height * header.width,
        f"JPEG of type 0x{header.kind:X}": header.kind not in _SUPPORTED,
        f"JPEG of {header.bits} bits": header.bits != 8,
        f"JPEG of {len(header.sampling)} components": len(header.sampling) not in (1, 3),
        "JPEG with RGB components": header.rgb,
        "JPEG with uncommon chroma sampling": not (ratios <= _SAMPLING and len(ratios) <= 1),
        "rotated JPEG": header.rotated,
        "JPEG without an end": not header.complete,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
