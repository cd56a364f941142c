"""Inspect one cleaned clip: detectors before and after, pixels outside and inside the mask, and the file's metadata.

    Pair: cleaned clip, mask, original  ->  Inspector.inspect()  ->  Findings: scores by detector and frame, checks

All frames are read once, one at a time; detectors see evenly spaced ones. Nothing here decides: see judge.py.
Legend: H height, W width, N boxes.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ppma.common.frames import clip_place, is_frames
from ppma.config.errors import BadClip, first_few
from ppma.loaders.decode.fetch import all_frames
from ppma.privacy.detectors import auditors
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.removal.clip import ClipSource

LEAST_DB = 40.0
"""Smallest PSNR outside the mask after encoding (this project's own bound)."""
CHANGED_LEVELS = 12
"""Smallest change (of 255) that encoding alone does not explain."""
NEAR_MISS = 0.6
"""Scores from this share of the operating point on are kept: they rank frames for review, and are not detections."""
PICTURE_WIDTH = 320
COLORS = {
    "nanodet": (255, 64, 64),
    "centernet": (64, 220, 64),
    "ssdlite": (255, 64, 255),
    "yolov3-tiny": (64, 220, 220),
    "hog": (64, 140, 255),
    "blazeface": (255, 200, 0),
}
"""RGB color of each detector's boxes."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of a check of the pixels or of the file."""

    held: bool | None
    """None: it could not be checked."""
    says: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A cleaned clip and what it is compared with."""

    name: str
    """<class>/<video>"""
    path: str
    """Path of the cleaned clip in the manifest."""
    class_name: str
    cleaned: Path
    frames: int
    """Number of frames in the manifest."""
    mask: Path | None
    original: ClipSource | None
    makers: tuple[str, ...]
    """Tools that made the mask; empty without a record."""
    outside_sha256: str
    """The record's hash of the pixels outside the mask before encoding, or empty."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One detector's detections, and its best score, in each inspected frame."""

    before: list[float] = field(default_factory=list)
    """Best scores in the original; 0 if nothing is near the operating point, empty without an original."""
    after: list[float] = field(default_factory=list)
    boxes_before: list[list[list[float]]] = field(default_factory=list)
    boxes_after: list[list[list[float]]] = field(default_factory=list)
    """Detections in each frame: x0, y0, x1, y1, score."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything found in a clip."""

    name: str
    path: str
    class_name: str
    sha256: str
    frames: int
    looked_at: list[int]
    """Frames that the detectors inspected."""
    original: bool
    makers: list[str]
    detectors: dict[str, Scores]
    checks: dict[str, Check]
    outside_db: float | None
    """PSNR of the pixels outside the mask."""
    inside_change: float | None
    """Mean absolute difference of the hidden pixels, in levels."""
    worst_frame: int
    picture: str
    """JPEG of the worst cleaned frame with its boxes, in base64. Nothing of the original is kept."""

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Findings":
        """Restore findings from their `asdict`."""
        detectors = {name: Scores(**scores) for name, scores in content["detectors"].items()}
        checks = {name: Check(**check) for name, check in content["checks"].items()}
        return cls(**{**content, "detectors": detectors, "checks": checks})


def inspected_frames(frames: int, count: int) -> list[int]:
    """Return the indices of `count` evenly spaced frames, the first and last included; 0: all of them."""
    if not count or count >= frames:
        return list(range(frames))
    return sorted({round(i) for i in np.linspace(0, frames - 1, count)})


def psnr(squares: float, count: int) -> float:
    """Return the peak signal-to-noise ratio in dB from a sum of squared differences; at most 100."""
    return 100.0 if squares <= 0 else min(100.0, float(10 * np.log10(255.0**2 * count / squares)))


@dataclass
class _Pixels:
    """Comparison of before and after, summed over the frames of a clip."""

    outside_error: float = 0.0
    outside_count: int = 0
    worst_outside_db: float = np.inf
    inside_error: float = 0.0
    inside_count: int = 0
    frames_hidden: int = 0
    frames_unchanged: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

    def add(self, before_HWC: np.ndarray, after_HWC: np.ndarray, hidden_HW: np.ndarray) -> None:
        """Compare one frame."""
        difference_HWC = np.abs(before_HWC.astype(np.int16) - after_HWC)
        outside, inside = difference_HWC[~hidden_HW], difference_HWC[hidden_HW]
        self.hash.update(before_HWC[~hidden_HW].tobytes())
        if outside.size:
            error = float((outside.astype(np.float64) ** 2).sum())
            self.outside_error += error
            self.outside_count += outside.size
            self.worst_outside_db = min(self.worst_outside_db, psnr(error, outside.size))
        if inside.size:
            self.frames_hidden += 1
            self.frames_unchanged += bool(inside.max() < CHANGED_LEVELS)
            self.inside_error += float(inside.sum())
            self.inside_count += inside.size


class Inspector:
    """The detectors of a process, loaded once."""

    def __init__(self, names: tuple[str, ...], weights: Path, frames: int) -> None:
        """Load the detectors.

        Args:
            names: Keys of AUDITORS.
            weights: Folder of their weights.
            frames: Number of frames of each clip that they inspect; 0 for all.

        Raises:
            InputError: Weights are missing.
        """
        self._detectors = {n: auditors.load(n, weights, AUDITORS[n].threshold * NEAR_MISS) for n in names}
        self._frames = frames

    def best_scores(self, frames: list[np.ndarray]) -> dict[str, list[float]]:
        """Return each detector's best score in each of these frames; see `Scores`."""
        return {name: [_detections(detect(f), name)[0] for f in frames] for name, detect in self._detectors.items()}

    def inspect(self, pair: Pair, sha256: str) -> Findings:
        """Read a clip, its mask and its original, and compare them.

        Args:
            pair: The clip.
            sha256: Hash of its content.

        Raises:
            BadClip: One of the three cannot be read, or their sizes differ.
        """
        inspected = inspected_frames(pair.frames, self._frames)
        wanted = set(inspected)
        scores = {name: Scores() for name in self._detectors}
        pixels, counts = _Pixels(), Counter[str]()
        worst: tuple[tuple[float, ...], int, np.ndarray] | None = None
        frames = zip_longest(_video(pair.cleaned), _original_frames(pair.original), _masks(pair.mask))
        for t, (after_HWC, before_HWC, hidden_HW) in enumerate(frames):
            counts["original"] += before_HWC is not None
            counts["mask"] += hidden_HW is not None
            if after_HWC is None:
                continue
            counts["cleaned"] += 1
            _check_size(after_HWC, before_HWC, hidden_HW)
            if before_HWC is not None and hidden_HW is not None:
                pixels.add(before_HWC, after_HWC, hidden_HW)
            if t in wanted:
                rank, boxes = self._detect(before_HWC, after_HWC, hidden_HW, scores)
                if worst is None or rank > worst[0]:
                    worst = rank, t, draw_boxes(after_HWC, boxes)
        assert worst is not None, "a clip has a frame"
        seen = any(boxes for one in scores.values() for boxes in one.boxes_before)
        return Findings(
            name=pair.name,
            path=pair.path,
            class_name=pair.class_name,
            sha256=sha256,
            frames=counts["cleaned"],
            looked_at=[t for t in inspected if t < counts["cleaned"]],
            original=pair.original is not None,
            makers=list(pair.makers),
            detectors=scores,
            checks=_check_pixels(pair, pixels, counts, seen) | check_file(pair.cleaned),
            outside_db=psnr(pixels.outside_error, pixels.outside_count) if pixels.outside_count else None,
            inside_change=pixels.inside_error / pixels.inside_count if pixels.inside_count else None,
            worst_frame=worst[1],
            picture=_jpeg_base64(worst[2]),
        )

    def _detect(
        self,
        before_HWC: np.ndarray | None,
        after_HWC: np.ndarray,
        hidden_HW: np.ndarray | None,
        scores: dict[str, Scores],
    ) -> tuple[tuple[float, ...], dict[str, np.ndarray]]:
        """Add one frame to `scores`; return its rank for review and its boxes.

        Frames rank by detectors with a detection, then by the best score relative to its operating point, then by
        hidden pixels.
        """
        hits, nearest, boxes_of = 0, 0.0, dict[str, np.ndarray]()
        for name, detect in self._detectors.items():
            boxes_of[name] = detect(after_HWC)
            best, boxes = _detections(boxes_of[name], name)
            scores[name].after.append(best)
            scores[name].boxes_after.append(boxes)
            if before_HWC is not None:
                best_before, boxes_before = _detections(detect(before_HWC), name)
                scores[name].before.append(best_before)
                scores[name].boxes_before.append(boxes_before)
            hits, nearest = hits + bool(boxes), max(nearest, best / AUDITORS[name].threshold)
        return (float(hits), nearest, float(hidden_HW.mean()) if hidden_HW is not None else 0.0), boxes_of


def _detections(boxes_N5: np.ndarray, name: str) -> tuple[float, list[list[float]]]:
    """Return a detector's best score in a frame, and its boxes at or above the operating point."""
    kept = boxes_N5[boxes_N5[:, 4] >= AUDITORS[name].threshold]
    return round(float(boxes_N5[:, 4].max(initial=0.0)), 4), np.round(kept, 3).tolist()


def draw_boxes(frame_HWC: np.ndarray, boxes: dict[str, np.ndarray]) -> np.ndarray:
    """Resize a frame to PICTURE_WIDTH and draw the detectors' boxes."""
    scale = PICTURE_WIDTH / frame_HWC.shape[1]
    picture_HWC = cv2.resize(frame_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for name, boxes_N5 in boxes.items():
        for x0, y0, x1, y1 in (boxes_N5[:, :4] * scale).round().astype(int).tolist():
            cv2.rectangle(picture_HWC, (x0, y0), (x1, y1), COLORS[name], 1)
    return picture_HWC


def _jpeg_base64(picture_HWC: np.ndarray) -> str:
    data = cv2.imencode(".jpg", cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return base64.b64encode(data.tobytes()).decode()


# -------------------------------------------------------------------------------------------------------------- pixels


def _video(path: Path) -> Iterator[np.ndarray]:
    for _, frame_HWC in all_frames(path, 0.0, float("inf")):
        yield frame_HWC


def _original_frames(source: ClipSource | None) -> Iterator[np.ndarray]:
    if source is not None:
        try:
            yield from source.frames()
        except BadClip as error:
            raise BadClip(f"has an original, {source.path}, that {error}") from None


def _masks(mask: Path | None) -> Iterator[np.ndarray]:
    if mask is not None:
        try:
            for mask_HWC in _video(mask):
                yield mask_HWC[..., 0] > 127
        except BadClip as error:
            raise BadClip(f"has a mask, {mask}, that {error}") from None


def _check_size(after_HWC: np.ndarray, before_HWC: np.ndarray | None, hidden_HW: np.ndarray | None) -> None:
    """Raise a BadClip unless the three have the same size."""
    for what, other in {"original": before_HWC, "mask": hidden_HW}.items():
        if other is not None and other.shape[:2] != after_HWC.shape[:2]:
            (height, width), (h, w) = after_HWC.shape[:2], other.shape[:2]
            raise BadClip(f"is {width} x {height}, and its {what} {w} x {h}; give the {what} it was made with")


def _check_pixels(pair: Pair, pixels: _Pixels, counts: Counter[str], seen: bool) -> dict[str, Check]:
    """Check the number of frames and the pixels inside and outside the mask.

    Args:
        pair: The clip.
        pixels: Sums over its frames.
        counts: Frames of the cleaned clip, the original and the mask.
        seen: True if there is a detection in the original. Then the pixels inside the mask must change; inpainting an
            empty place may leave them as they were.
    """
    count, originals = counts["cleaned"], counts["original"]
    if count != pair.frames:
        complete = Check(held=False, says=f"{count} frames, and the manifest says {pair.frames}")
    elif pair.original is None:
        complete = Check(held=None, says="no original to count frames of")
    else:
        complete = Check(held=count == originals, says=f"{count} frames of {originals} in the original")
    if pair.mask is None or pair.original is None:
        unknown = Check(held=None, says=f"not checked: no {'mask' if pair.mask is None else 'original'}")
        exact = outside = inside = unknown
    else:
        if counts["mask"] != count:
            complete = Check(held=False, says=f"{complete.says}, but {counts['mask']} masks")
        exact = Check(held=None, says="not checked: the record has no hash of these pixels")
        if pair.outside_sha256:
            same = pixels.hash.hexdigest() == pair.outside_sha256
            exact = Check(held=same, says="the record's hash is that of the original" if same else "other pixels")
        outside = Check(held=None, says="every pixel is hidden")
        if pixels.outside_count:
            db = float(pixels.worst_outside_db)
            outside = Check(held=db >= LEAST_DB, says=f"{db:.1f} dB in the worst frame")
        unchanged = 0 < pixels.frames_hidden == pixels.frames_unchanged
        inside = Check(
            held=None if not pixels.frames_hidden or (unchanged and not seen) else not unchanged,
            says=f"{pixels.frames_unchanged} of {pixels.frames_hidden} frames with a mask are unchanged inside it",
        )
    return {
        "every frame": complete,
        "same outside, before encoding": exact,
        "same outside": outside,
        "changed inside": inside,
    }


# ---------------------------------------------------------------------------------------------------------------- file

HARMLESS = {
    *(
        "major_brand",
        "minor_version",
        "compatible_brands",
        "encoder",
        "language",
        "handler_name",
        "vendor_id",
        "duration",
    )
}
"""Keys that a muxer writes by default, and that name no person, place or time."""
PLACES = ("location", "gps", "xyz", "coordinate", "latitude")
JPEG_SEGMENTS = {0xE1: "APP1 (Exif or XMP)", 0xE2: "APP2", 0xED: "APP13", 0xFE: "a comment"}
PNG_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME")


def picture_metadata(data: bytes) -> list[str]:
    """Return the segments of a JPEG, or chunks of a PNG, that are not part of the picture."""
    if data[:4] == b"\x89PNG":
        return [chunk.decode() for chunk in PNG_CHUNKS if chunk in data]
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] in JPEG_SEGMENTS:
            found.append(JPEG_SEGMENTS[data[at + 1]])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return found


def _streams_and_keys(path: Path) -> tuple[list[str], list[str]]:
    """Return the kinds of streams and the metadata keys of a video, or of the pictures in a folder."""
    if is_frames(path):
        files = sorted(clip_place(path).iterdir())
        return ["video"], [f"{file.name}: {key}" for file in files for key in picture_metadata(file.read_bytes())]
    with av.open(f"file:{path}") as container:
        keys = [f"file: {key}" for key in container.metadata]
        keys += [f"stream {stream.index}: {key}" for stream in container.streams for key in stream.metadata]
        keys += [f"chapter: {chapter['id']}" for chapter in container.chapters()]
        return [stream.type for stream in container.streams], keys


def check_file(path: Path) -> dict[str, Check]:
    """Check that a cleaned clip has no sound, metadata or location."""
    streams, keys = _streams_and_keys(path)
    keys = [key for key in keys if key.rsplit(": ", 1)[-1].lower() not in HARMLESS]
    places = [key for key in keys if any(word in key.lower() for word in PLACES)]
    extra = [f"a stream of {kind}" for kind in streams if kind != "video"]
    extra += ["a second picture"] * (streams.count("video") > 1)

    def check(found: list[str], fine: str) -> Check:
        return Check(held=not found, says=f"contains {first_few(found, 4)}" if found else fine)

    return {
        "no sound": check(["sound"] * ("audio" in streams), "no sound"),
        "no metadata": check([*keys, *extra], "only pictures"),
        "no location": check(places, "no place is named"),
    }
