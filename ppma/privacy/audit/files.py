"""What a cleaned clip carries beside its pictures: sound, metadata, a place.

file or folder of frames  ->  checks()  ->  Check of each
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

LEAST_DB = 40.0
"""Outside the mask, after encoding (the project's own bound)."""
HARMLESS = {
    "major_brand", "minor_version", "compatible_brands", "encoder", "language", "handler_name", "vendor_id", "duration",
}  # fmt: skip
"""Keys that a muxer writes of itself, and that name no person, place or time."""
PLACES = ("location", "gps", "xyz", "coordinate", "latitude")
JPEG_SEGMENTS = {0xE1: "APP1 (Exif or XMP)", 0xE2: "APP2", 0xED: "APP13", 0xFE: "a comment"}
PNG_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME")


@dataclass(frozen=True, kw_only=True)
class Check:
    """Of pixels or of the file."""

    held: bool | None
    """None: there was nothing to check it with."""
    says: str


def new_hash() -> Any:
    """SHA-256."""
    return hashlib.sha256()


def jpeg_base64(picture_HWC: np.ndarray) -> str:
    """A picture for a page that stands by itself."""
    data = cv2.imencode(".jpg", cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return base64.b64encode(data.tobytes()).decode()


def carried(path: Path) -> tuple[list[str], dict[str, str]]:
    """(kinds of streams, metadata) of a video; of a folder, what its pictures carry."""
    if path.is_dir():
        found = {
            f"{file.name}: {what}": "" for file in sorted(path.iterdir()) for what in picture_extras(file.read_bytes())
        }
        return ["video"], found
    with av.open(str(path)) as container:
        notes = {f"file: {key}": str(value) for key, value in container.metadata.items()}
        for stream in container.streams:
            notes |= {f"stream {stream.index}: {key}": str(value) for key, value in stream.metadata.items()}
        notes |= {f"chapter: {chapter['id']}": "" for chapter in container.chapters()}
        return [stream.type for stream in container.streams], notes


def picture_extras(data: bytes) -> list[str]:
    """Segments of a JPEG, or chunks of a PNG, that are no part of the picture."""
    if data[:4] == b"\x89PNG":
        return [chunk.decode() for chunk in PNG_CHUNKS if chunk in data]
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] in JPEG_SEGMENTS:
            found.append(JPEG_SEGMENTS[data[at + 1]])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return found


def checks(path: Path) -> dict[str, Check]:
    """What a cleaned clip must not carry."""
    streams, notes = carried(path)
    kept = [key for key in notes if key.rsplit(": ", 1)[-1].lower() not in HARMLESS]
    others = [f"a stream of {kind}" for kind in streams if kind != "video"]
    others += ["a second picture"] * (streams.count("video") > 1)
    places = [key for key in kept if any(word in key.lower() for word in PLACES)]
    return {
        "no sound": _check("audio" not in streams, "no sound", ["sound"]),
        "no metadata": _check(not kept and not others, "nothing but pictures", [*kept, *others]),
        "no location": _check(not places, "no place is named", places),
    }


def _check(held: bool, fine: str, found: list[str]) -> Check:
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return Check(held=held, says=fine if held else f"carries {', '.join(found[:4])}{more}")
