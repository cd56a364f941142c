"""One clip under the auditor: detectors on frames before and after, every pixel outside and inside the mask, and what the file carries.

    Pair: cleaned clip, its mask, its original  ->  Inspector.inspect()  ->  Findings: scores by detector and frame, checks, the worst frame

All frames are read once, one of each at a time; detectors look at some of them, evenly spread. Nothing here judges: see audit_judge.
Legend: H height, W width, N boxes, L frames looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ppma.loaders.decode.fetch import BadClip, all_frames
from ppma.privacy.audit import files as audit_files
from ppma.privacy.audit.files import Check
from ppma.privacy.detectors import auditors as audit_detectors
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.removal.clip import ClipSource

CHANGED_LEVELS = 12
"""Of 255; less is what encoding does to a picture."""
NEAR_MISS = 0.6
"""Of the threshold, from which on scores are kept: they rank frames for the eye, and are no hits."""
PICTURE_WIDTH = 320


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What is compared."""

    name: str
    """<class>/<video>"""
    path: str
    """Of the cleaned clip, as the manifest has it."""
    class_name: str
    cleaned: Path
    frames: int
    """Of the cleaned clip, as the manifest has it."""
    mask: Path | None
    original: ClipSource | None
    makers: tuple[str, ...]
    """Tools that made the mask; none known without a record."""
    outside_sha256: str
    """What the record says of the pixels outside the mask before encoding; empty where it says nothing."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one detector said of the frames it looked at: the best score of each, 0 where there is none near its operating point."""

    before: list[float]
    """Empty without an original."""
    after: list[float]
    boxes_before: list[list[list[float]]]
    boxes_after: list[list[list[float]]]
    """Of the hits in each frame: x0, y0, x1, y1, score."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that was found in a clip."""

    name: str
    path: str
    class_name: str
    sha256: str
    frames: int
    looked_at: list[int]
    original: bool
    makers: list[str]
    detectors: dict[str, Scores]
    checks: dict[str, Check]
    outside_db: float | None
    inside_change: float | None
    """Mean difference in levels of hidden pixels."""
    worst_frame: int
    picture: str
    """JPEG of the worst cleaned frame with its boxes, in base64. Of the original nothing is kept."""

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Findings":
        """From what `asdict` made of them."""
        detectors = {name: Scores(**scores) for name, scores in content["detectors"].items()}
        checks = {name: Check(**check) for name, check in content["checks"].items()}
        return cls(**{**content, "detectors": detectors, "checks": checks})


def chosen(frames: int, wanted: int) -> list[int]:
    """Which of so many frames detectors look at: `wanted` of them at even distances, ends included; 0 for all."""
    if not wanted or wanted >= frames:
        return list(range(frames))
    return sorted({round(i) for i in np.linspace(0, frames - 1, wanted)})


@dataclass
class _Pixels:
    """Sums over all frames of a clip."""

    outside_error: float = 0.0
    outside_count: int = 0
    worst_outside_db: float = np.inf
    inside_error: float = 0.0
    inside_count: int = 0
    frames_hidden: int = 0
    frames_unchanged: int = 0
    hash: Any = field(default_factory=audit_files.new_hash)

    def add(self, before_HWC: np.ndarray, after_HWC: np.ndarray, hidden_HW: np.ndarray) -> None:
        """Compare one frame."""
        difference_HWC = np.abs(before_HWC.astype(np.int16) - after_HWC)
        outside, inside = difference_HWC[~hidden_HW], difference_HWC[hidden_HW]
        self.hash.update(before_HWC[~hidden_HW].tobytes())
        if outside.size:
            error = float((outside.astype(np.float64) ** 2).sum())
            self.outside_error += error
            self.outside_count += outside.size
            self.worst_outside_db = min(self.worst_outside_db, decibels(error, outside.size))
        if inside.size:
            self.frames_hidden += 1
            self.frames_unchanged += bool(inside.max() < CHANGED_LEVELS)
            self.inside_error += float(inside.sum())
            self.inside_count += inside.size


def decibels(squares: float, count: int) -> float:
    """Peak signal-to-noise ratio from a sum of squared differences; at most 100."""
    return 100.0 if squares <= 0 else min(100.0, float(10 * np.log10(255.0**2 * count / squares)))


@dataclass
class _Worst:
    """The cleaned frame that most needs an eye: most hits, then the best score for its threshold, then the most hidden."""

    rank: tuple[float, ...] = (-1.0,)
    frame: int = 0
    picture_HWC: np.ndarray | None = None

    def offer(self, rank: tuple[float, ...], t: int, frame_HWC: np.ndarray, boxes: dict[str, np.ndarray]) -> None:
        """Keep it when it ranks before the one kept."""
        if rank > self.rank:
            self.rank, self.frame, self.picture_HWC = rank, t, drawn(frame_HWC, boxes)


COLORS = {
    "nanodet": (255, 64, 64),
    "centernet": (64, 220, 64),
    "ssdlite": (255, 64, 255),
    "yolov3-tiny": (64, 220, 220),
    "hog": (64, 140, 255),
    "blazeface": (255, 200, 0),
}


def drawn(frame_HWC: np.ndarray, boxes: dict[str, np.ndarray]) -> np.ndarray:
    """The frame, PICTURE_WIDTH wide, with boxes in the colors of their detectors."""
    scale = PICTURE_WIDTH / frame_HWC.shape[1]
    picture_HWC = cv2.resize(frame_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for name, boxes_N5 in boxes.items():
        for x0, y0, x1, y1 in (boxes_N5[:, :4] * scale).round().astype(int).tolist():
            cv2.rectangle(picture_HWC, (x0, y0), (x1, y1), COLORS[name], 1)
    return picture_HWC


class Inspector:
    """The detectors of a process, loaded once, and what they make of a clip."""

    def __init__(self, names: tuple[str, ...], weights: Path, frames: int) -> None:
        """`frames` of each clip are looked at, 0 for all. InputError when weights are missing."""
        self._detectors = {n: audit_detectors.load(n, weights, AUDITORS[n].threshold * NEAR_MISS) for n in names}
        self._frames = frames

    def best(self, frames: list[np.ndarray]) -> dict[str, list[float]]:
        """The best score of each detector in each of these frames; see `Scores`."""
        return {n: [_told(d(f), AUDITORS[n].threshold)[0] for f in frames] for n, d in self._detectors.items()}

    def inspect(self, pair: Pair, sha256: str) -> Findings:
        """Read the clip, its mask and its original. BadClip when one of them cannot be read."""
        looked_at = chosen(pair.frames, self._frames)
        wanted = set(looked_at)
        scores = {name: Scores(before=[], after=[], boxes_before=[], boxes_after=[]) for name in self._detectors}
        pixels, worst, count = _Pixels(), _Worst(), 0
        before, masks = _frames_of(pair.original), _masks_of(pair.mask)
        counts = {"original": 0, "mask": 0}
        for t, (_, after_HWC) in enumerate(all_frames(pair.cleaned, 0.0, float("inf"))):
            count += 1
            before_HWC, hidden_HW = next(before, None), next(masks, None)
            counts["original"] += before_HWC is not None
            counts["mask"] += hidden_HW is not None
            _check_size(after_HWC, before_HWC, hidden_HW)
            if before_HWC is not None and hidden_HW is not None:
                pixels.add(before_HWC, after_HWC, hidden_HW)
            if t in wanted:
                self._look(t, before_HWC, after_HWC, hidden_HW, scores, worst)
        counts["original"] += sum(1 for _ in before)
        counts["mask"] += sum(1 for _ in masks)
        assert worst.picture_HWC is not None, "a clip has a frame"
        return Findings(
            name=pair.name,
            path=pair.path,
            class_name=pair.class_name,
            sha256=sha256,
            frames=count,
            looked_at=[t for t in looked_at if t < count],
            original=pair.original is not None,
            makers=list(pair.makers),
            detectors=scores,
            checks=_checks(pair, pixels, count, counts, seen=_seen_before(scores)) | audit_files.checks(pair.cleaned),
            outside_db=decibels(pixels.outside_error, pixels.outside_count) if pixels.outside_count else None,
            inside_change=pixels.inside_error / pixels.inside_count if pixels.inside_count else None,
            worst_frame=worst.frame,
            picture=audit_files.jpeg_base64(worst.picture_HWC),
        )

    def _look(
        self, t: int, before_HWC: np.ndarray | None, after_HWC: np.ndarray, hidden_HW: np.ndarray | None,
        scores: dict[str, Scores], worst: _Worst,
    ) -> None:  # fmt: skip
        """Let every detector look at one frame and its original."""
        hits, nearest, shown = 0, 0.0, dict[str, np.ndarray]()
        for name, detect in self._detectors.items():
            threshold = AUDITORS[name].threshold
            shown[name] = detect(after_HWC)
            best, boxes = _told(shown[name], threshold)
            scores[name].after.append(best)
            scores[name].boxes_after.append(boxes)
            if before_HWC is not None:
                best_before, boxes_before = _told(detect(before_HWC), threshold)
                scores[name].before.append(best_before)
                scores[name].boxes_before.append(boxes_before)
            hits, nearest = hits + bool(boxes), max(nearest, best / threshold)
        rank = (float(hits), nearest, float(hidden_HW.mean()) if hidden_HW is not None else 0.0)
        worst.offer(rank, t, after_HWC, shown)


def _told(found_N5: np.ndarray, threshold: float) -> tuple[float, list[list[float]]]:
    """(best score, hits) of one frame."""
    return round(float(found_N5[:, 4].max(initial=0.0)), 4), np.round(found_N5[found_N5[:, 4] >= threshold], 3).tolist()


def _frames_of(source: ClipSource | None) -> Iterator[np.ndarray]:
    if source is not None:
        try:
            yield from source.frames()
        except BadClip as error:
            raise BadClip(f"has an original, {source.path}, that {error}") from None


def _masks_of(mask: Path | None) -> Iterator[np.ndarray]:
    if mask is not None:
        try:
            for _, mask_HWC in all_frames(mask, 0.0, float("inf")):
                yield mask_HWC[..., 0] > 127
        except BadClip as error:
            raise BadClip(f"has a mask, {mask}, that {error}") from None


def _check_size(after_HWC: np.ndarray, before_HWC: np.ndarray | None, hidden_HW: np.ndarray | None) -> None:
    """BadClip unless the three are of one size."""
    for what, other in {"original": before_HWC, "mask": hidden_HW}.items():
        if other is not None and other.shape[:2] != after_HWC.shape[:2]:
            (height, width), (h, w) = after_HWC.shape[:2], other.shape[:2]
            raise BadClip(f"is {width} x {height}, and its {what} {w} x {h}; give the {what} it was made with")


def _seen_before(scores: dict[str, Scores]) -> bool:
    """Whether a detector sees somebody in the original."""
    return any(boxes for one in scores.values() for boxes in one.boxes_before)


def _checks(pair: Pair, pixels: _Pixels, count: int, counts: dict[str, int], *, seen: bool) -> dict[str, Check]:
    """What the comparison of pixels says. A mask where nobody is may be painted as it was; one on somebody may not."""
    if count != pair.frames:
        whole = Check(held=False, says=f"{count} frames, and the manifest says {pair.frames}")
    elif pair.original is None:
        whole = Check(held=None, says="no original to count frames of")
    else:
        whole = Check(held=count == counts["original"], says=f"{count} frames of {counts['original']} in the original")
    if pair.mask is None or pair.original is None:
        missing = "no mask" if pair.mask is None else "no original"
        nothing = Check(held=None, says=f"not checked: {missing}")
        return {
            "every frame": whole,
            "same outside, before encoding": nothing,
            "same outside": nothing,
            "changed inside": nothing,
        }
    masks = "" if counts["mask"] == count else f", but {counts['mask']} masks"
    whole = Check(held=bool(whole.held) and not masks, says=whole.says + masks)
    if pair.outside_sha256:
        same = pixels.hash.hexdigest() == pair.outside_sha256
        exact = Check(
            held=same, says="the record's hash of these pixels is that of the original" if same else "other pixels"
        )
    else:
        exact = Check(held=None, says="not checked: the record has no hash of these pixels")
    db = float(pixels.worst_outside_db)
    outside = Check(held=db >= audit_files.LEAST_DB, says=f"{db:.1f} dB in the worst frame")
    if not pixels.outside_count:
        outside = Check(held=None, says="every pixel is hidden")
    unchanged = 0 < pixels.frames_hidden == pixels.frames_unchanged
    inside = Check(
        held=None if not pixels.frames_hidden or (unchanged and not seen) else not unchanged,
        says=f"{pixels.frames_unchanged} of {pixels.frames_hidden} frames with a mask look as before in it",
    )
    return {
        "every frame": whole,
        "same outside, before encoding": exact,
        "same outside": outside,
        "changed inside": inside,
    }
