"""Inspect one cleaned clip: its people before and after, known people spiked into it, pixels and metadata.

    Pair: cleaned clip, mask, original  ->  Inspector.inspect()  ->  Findings: people, spikes, scores, checks

All frames are read once, one at a time; detectors see evenly spaced ones at full size, and people of the original are
followed from one of these to the next. Nothing here decides: see judge.py. Legend: H height, W width, N boxes.
"""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ppma.common.frames import clip_place, is_frames
from ppma.config.errors import BadClip, first_few
from ppma.privacy.audit import spikes
from ppma.privacy.audit.follow import FOLLOWED, Follower, keep_detections
from ppma.privacy.audit.people import CHANGED_LEVELS, Person, alike, people_of, uncovered
from ppma.privacy.audit.spikes import Placed, Spike
from ppma.privacy.detectors import auditors
from ppma.privacy.detectors.auditors import AUDITORS
from ppma.privacy.detectors.boxes import NONE_05, overlaps
from ppma.privacy.detectors.tiles import detect_frames
from ppma.privacy.detectors.tools import Model
from ppma.privacy.removal.clip import ClipSource, video_frames

LEAST_DB = 40.0
"""Smallest PSNR outside the mask after encoding (this project's own bound)."""
SPIKE_EVERY = 2
"""Known people are spiked into every second inspected frame."""
SAME_IOU = 0.3
"""Smallest intersection over union at which a detection is a known person's."""
NEAR_MISS = 0.6
"""Scores in the result from this share of the operating point on rank frames for review, and are not detections."""
PICTURE_WIDTH = 640
"""Largest width of the frames in the report."""
COLORS = {
    "nanodet": (255, 64, 64),
    "centernet": (64, 220, 64),
    "yolov3-tiny": (64, 220, 220),
    "yolox": (200, 64, 255),
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
    method: str
    """What the record says was done to the people, such as remove; empty without a record."""
    clean: bool | None
    """False if the remover still found people in its own result; None: the record does not say."""
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
    method: str
    detectors: dict[str, Scores]
    people: list[Person]
    """What became of the people of the original in the inspected frames, and those in whose place nothing changed between;
    empty without an original or a mask."""
    spikes: list[Spike]
    """Known people pasted into the inspected frames, and who found them."""
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
        people, spiked = [Person(**one) for one in content["people"]], [Spike(**one) for one in content["spikes"]]
        return cls(**{**content, "detectors": detectors, "people": people, "spikes": spiked, "checks": checks})


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

    cleaned: int = 0
    """Frames of the cleaned clip."""
    originals: int = 0
    masks: int = 0
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


@dataclass(frozen=True, kw_only=True)
class InspectorConfig:
    """What inspects clips, and how closely."""

    detectors: tuple[str, ...]
    """Keys of AUDITORS."""
    weights: Path
    """Folder of their weights."""
    frames: int
    """Inspected frames of each clip; 0 for all."""
    people: Path | None = None
    """Folder of cut-outs to spike in; None: drawn people."""
    models: tuple[Model, ...] = ()
    """Files of detectors that the user provides."""


class Inspector:
    """The detectors of a process, loaded once."""

    def __init__(self, config: InspectorConfig) -> None:
        """Load the detectors; InputError if weights are missing, or the folder has no cut-outs."""
        cv2.setNumThreads(1)
        self._frames = config.frames
        self._detectors = {
            name: auditors.load(name, config.weights, AUDITORS[name].threshold * FOLLOWED, config.models)
            for name in config.detectors
        }
        self._people = spikes.drawn_people() if config.people is None else spikes.read_people(config.people)

    def best_scores(self, frames: list[np.ndarray]) -> dict[str, list[float]]:
        """Return each detector's best score in each of these frames; see `Scores`."""
        return {name: [_detections(detect(f), name)[0] for f in frames] for name, detect in self._detectors.items()}

    def inspect(self, pair: Pair, sha256: str) -> Findings:
        """Compare a clip, of this content hash, with its mask and its original.

        Raises:
            BadClip: One of the three cannot be read, or their sizes differ.
        """
        looks, pixels = list[_Look](), _Pixels()
        worst: tuple[tuple[float, ...], int, np.ndarray] | None = None
        wanted = {t: number for number, t in enumerate(inspected_frames(pair.frames, self._frames))}
        for moment, look in self._looks(_moments(pair, pixels), wanted, int(sha256[:15], 16)):
            looks.append(look)
            if worst is None or look.rank > worst[0]:
                worst = look.rank, look.frame, draw_boxes(moment.after_HWC, look.after)
        assert worst is not None, "a clip has a frame"
        scores = {name: _scores(name, looks) for name in self._detectors}
        seen = any(boxes for one in scores.values() for boxes in one.boxes_before)
        return Findings(
            name=pair.name,
            path=pair.path,
            class_name=pair.class_name,
            sha256=sha256,
            frames=pixels.cleaned,
            looked_at=[look.frame for look in looks],
            original=pair.original is not None,
            makers=list(pair.makers),
            method=pair.method,
            detectors=scores,
            people=[person for look in looks for person in look.people],
            spikes=[spike for look in looks for spike in look.spikes],
            checks=_check_record(pair) | _check_pixels(pair, pixels, seen) | check_file(pair.cleaned, pixels.cleaned),
            outside_db=psnr(pixels.outside_error, pixels.outside_count) if pixels.outside_count else None,
            inside_change=pixels.inside_error / pixels.inside_count if pixels.inside_count else None,
            worst_frame=worst[1],
            picture=jpeg_base64(worst[2]),
        )

    def _looks(
        self, moments: Iterator["_Moment"], wanted: dict[int, int], seed: int
    ) -> Iterator[tuple["_Moment", "_Look"]]:
        """Yield each inspected frame and what is seen in it, one late: people are followed back to it from the next."""
        points = {name: AUDITORS[name].threshold for name in self._detectors if AUDITORS[name].finds == "person"}
        follower, last = Follower(points), None
        for moment in moments:
            if moment.t not in wanted:
                follower.skip(moment.before_HWC, _changed(moment))
                continue
            look = self._look(moment, seed if wanted[moment.t] % SPIKE_EVERY == 0 else None)
            arrived_N5, back_N5 = follower.stop(moment.before_HWC, look.before)
            look = replace(look, people=[uncovered(moment.t - back, box_4) for back, box_4 in follower.uncovered])
            if last is not None:
                yield last[0], _with_people(*last, back_N5)
            last = moment, look, arrived_N5
        if last is not None:
            yield last[0], _with_people(*last, NONE_05)

    def _look(self, moment: "_Moment", seed: int | None) -> "_Look":
        """Run the detectors on one frame of the original, of the cleaned clip, and, with a seed, with people spiked in."""
        after_HWC, t = moment.after_HWC, moment.t
        spiked_HWC, placed = (None, []) if seed is None else spikes.spike(after_HWC, self._people, seed, t)
        frames = (after_HWC, moment.before_HWC, spiked_HWC)
        seen = iter(detect_frames(self._detectors, [frame_HWC for frame_HWC in frames if frame_HWC is not None]))
        after, before, again = ({} if frame_HWC is None else next(seen) for frame_HWC in frames)
        near = {name: boxes[boxes[:, 4] >= AUDITORS[name].threshold * NEAR_MISS] for name, boxes in after.items()}
        found = [
            Spike(frame=t, height=one.height, found={name: _finds(one, boxes, name) for name, boxes in again.items()})
            for one in placed
        ]
        hidden = float(moment.hidden_HW.mean()) if moment.hidden_HW is not None else 0.0
        return _Look(frame=t, before=before, after=near, people=[], spikes=found, hidden=hidden)


@dataclass(frozen=True, kw_only=True)
class _Moment:
    """One frame of the cleaned clip, with that of the original and of the mask if there are any."""

    t: int
    after_HWC: np.ndarray
    before_HWC: np.ndarray | None
    hidden_HW: np.ndarray | None


def _moments(pair: Pair, pixels: _Pixels) -> Iterator[_Moment]:
    """Yield the frames of a clip, compare their pixels and count them."""
    frames = zip_longest(video_frames(pair.cleaned), original_frames(pair.original), _masks(pair.mask))
    for t, (after_HWC, before_HWC, hidden_HW) in enumerate(frames):
        pixels.originals += before_HWC is not None
        pixels.masks += hidden_HW is not None
        if after_HWC is None:
            continue
        pixels.cleaned += 1
        _check_size(after_HWC, before_HWC, hidden_HW)
        if before_HWC is not None and hidden_HW is not None:
            pixels.add(before_HWC, after_HWC, hidden_HW)
        yield _Moment(t=t, after_HWC=after_HWC, before_HWC=before_HWC, hidden_HW=hidden_HW)


def _changed(moment: _Moment) -> np.ndarray | None:
    """Return which pixels are masked and look otherwise than in the original; None without one, or without a mask."""
    if moment.before_HWC is None or moment.hidden_HW is None:
        return None
    return moment.hidden_HW & ~alike(moment.before_HWC, moment.after_HWC)


def _with_people(moment: _Moment, look: "_Look", arrived_N5: np.ndarray, back_N5: np.ndarray) -> "_Look":
    """Add what became of the people of the original, given those who are followed to this frame from others."""
    if moment.before_HWC is None or moment.hidden_HW is None:
        return look
    around_N5 = np.concatenate([arrived_N5, back_N5])
    detected = keep_detections(look.before, {name: AUDITORS[name].threshold for name in look.before}, around_N5)
    people = people_of(detected, moment.before_HWC, moment.after_HWC, moment.hidden_HW, look.frame)
    return replace(look, people=look.people + people)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What the detectors see in one frame."""

    frame: int
    before: dict[str, np.ndarray]
    """Boxes_N5 of each detector, from FOLLOWED of its operating point on; empty without an original."""
    after: dict[str, np.ndarray]
    """The same, from NEAR_MISS on."""
    people: list[Person]
    spikes: list[Spike]
    hidden: float
    """Share of the frame that is masked."""

    @property
    def rank(self) -> tuple[float, ...]:
        """How much the frame needs review: people left, detections, the best score of its operating point, the mask."""
        best = {name: _detections(boxes, name) for name, boxes in self.after.items()}
        nearest = max(score / AUDITORS[name].threshold for name, (score, _) in best.items())
        left = sum(person.missed or person.painted_back for person in self.people)
        return float(left), float(sum(bool(boxes) for _, boxes in best.values())), nearest, self.hidden


def _scores(name: str, looks: list[_Look]) -> Scores:
    after = [_detections(look.after[name], name) for look in looks]
    before = [_detections(look.before[name], name) for look in looks if look.before]
    return Scores(
        before=[score for score, _ in before], after=[score for score, _ in after],
        boxes_before=[boxes for _, boxes in before], boxes_after=[boxes for _, boxes in after],
    )  # fmt: skip  # one field after the other


def _finds(placed: Placed, boxes_N5: np.ndarray, name: str) -> bool:
    """Return True if a detection is that of a spiked person."""
    detected = boxes_N5[boxes_N5[:, 4] >= AUDITORS[name].threshold]
    return belongs(detected[:, :4], placed.box, AUDITORS[name].finds)


def _detections(boxes_N5: np.ndarray, name: str) -> tuple[float, list[list[float]]]:
    """Return a detector's best score in a frame, and its boxes at or above the operating point."""
    kept = boxes_N5[boxes_N5[:, 4] >= AUDITORS[name].threshold]
    return round(float(boxes_N5[:, 4].max(initial=0.0)), 4), np.round(kept, 3).tolist()


def belongs(boxes_N4: np.ndarray, person: tuple[float, float, float, float], finds: str | None) -> bool:
    """Return True if a box is a person's: it overlaps theirs, or, for a face, its center is in it.

    Args:
        boxes_N4: x0, y0, x1, y1 of detections in pixels.
        person: Box of the person.
        finds: What the detector finds; a face is much smaller than its person.
    """
    if not len(boxes_N4):
        return False
    x0, y0, x1, y1 = person
    if finds == "face":
        x_N, y_N = (boxes_N4[:, 0] + boxes_N4[:, 2]) / 2, (boxes_N4[:, 1] + boxes_N4[:, 3]) / 2
        return bool(((x_N >= x0) & (x_N < x1) & (y_N >= y0) & (y_N < y1)).any())
    return bool((overlaps(np.asarray(boxes_N4), np.array([person], np.float32)) >= SAME_IOU).any())


def draw_boxes(frame_HWC: np.ndarray, boxes: dict[str, np.ndarray]) -> np.ndarray:
    """Return a frame, at most PICTURE_WIDTH wide, with the detectors' boxes."""
    scale = min(1.0, PICTURE_WIDTH / frame_HWC.shape[1])
    picture_HWC = cv2.resize(frame_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for name, boxes_N5 in boxes.items():
        for x0, y0, x1, y1 in (boxes_N5[:, :4] * scale).round().astype(int).tolist():
            cv2.rectangle(picture_HWC, (x0, y0), (x1, y1), COLORS[name], 1)
    return picture_HWC


def jpeg_base64(picture_HWC: np.ndarray, quality: int = 80) -> str:
    """Return an RGB picture as a JPEG in base64."""
    data = cv2.imencode(".jpg", cv2.cvtColor(picture_HWC, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return base64.b64encode(data.tobytes()).decode()


# -------------------------------------------------------------------------------------------------------------- pixels


def original_frames(source: ClipSource | None) -> Iterator[np.ndarray]:
    """Yield the frames of an original, if there is one; BadClip names it."""
    if source is not None:
        try:
            yield from source.frames()
        except BadClip as error:
            raise BadClip(f"has an original, {source.path}, that {error}") from None


def _masks(mask: Path | None) -> Iterator[np.ndarray]:
    if mask is not None:
        try:
            for mask_HWC in video_frames(mask):
                yield mask_HWC[..., 0] > 127
        except BadClip as error:
            raise BadClip(f"has a mask, {mask}, that {error}") from None


def _check_size(after_HWC: np.ndarray, before_HWC: np.ndarray | None, hidden_HW: np.ndarray | None) -> None:
    """Raise a BadClip unless the three have the same size."""
    for what, other in {"original": before_HWC, "mask": hidden_HW}.items():
        if other is not None and other.shape[:2] != after_HWC.shape[:2]:
            (height, width), (h, w) = after_HWC.shape[:2], other.shape[:2]
            raise BadClip(f"is {width} x {height}, and its {what} {w} x {h}; give the {what} it was made with")


def _check_record(pair: Pair) -> dict[str, Check]:
    """Check that the record says removal, since people who are blurred are still there, and that no one was left."""
    unknown = Check(held=None, says="no record says so")
    method = Check(held=pair.method == "remove", says=f"made with --method {pair.method}")
    clean = Check(held=pair.clean, says=f"the remover found {'no one' if pair.clean else 'people'} in its result")
    return {
        "people removed": method if pair.method else unknown,
        "searched again": unknown if pair.clean is None else clean,
    }


def _check_pixels(pair: Pair, pixels: _Pixels, seen: bool) -> dict[str, Check]:
    """Check the number of frames and the pixels inside and outside the mask.

    With a detection in the original (`seen`) the pixels inside must change; an empty place may look as it did.
    """
    count, originals = pixels.cleaned, pixels.originals
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
        if pixels.masks != count:
            complete = Check(held=False, says=f"{complete.says}, but {pixels.masks} masks")
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
    *("major_brand", "minor_version", "compatible_brands", "encoder"),
    *("language", "vendor_id", "duration"),
}
"""Keys that a muxer writes by default, and that name no person, place or time."""
HANDLER = ("handler_name", "VideoHandler")
"""What FFmpeg writes; others write dates or devices."""
PLACES = ("location", "gps", "xyz", "coordinate", "latitude")
EXPORT = {"export_all": "1", "export_xmp": "1"}
"""Options of FFmpeg's MP4 reader, which else leaves out XMP and unknown keys."""
JPEG_SEGMENTS = {0xE1: "APP1 (Exif or XMP)", 0xFE: "a comment"}
PLAIN_SEGMENTS = {(0xE0, 16), (0xEE, 14)}
"""Marker and size of JFIF without a thumbnail, and of the color transform that Adobe's segment names."""
PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"cHRM", b"gAMA", b"sBIT", b"sRGB", b"bKGD", b"pHYs"}
"""What a picture and its colors need."""
OTHER_BYTES = "bytes that are no part of the picture"


def picture_metadata(data: bytes) -> list[str]:
    """Return the segments of a JPEG, or chunks of a PNG, that are not part of the picture."""
    found, end = (_png_chunks if data[:4] == b"\x89PNG" else _jpeg_segments)(data)
    return found + [OTHER_BYTES] * (end != len(data))


def _png_chunks(data: bytes) -> tuple[list[str], int]:
    """Return the unneeded chunks of a PNG, and where it ends."""
    found, at, kind = [], 8, b""
    while at < len(data) and kind != b"IEND":
        kind = data[at + 4 : at + 8]
        if kind not in PNG_CHUNKS:
            found.append(kind.decode("latin-1"))
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return found, at


def _jpeg_segments(data: bytes) -> tuple[list[str], int]:
    """Return the unneeded segments of a JPEG before its first scan, and where it ends; 1 if it is none."""
    found, at = [], 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda"):
        kind, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if (0xE0 <= kind <= 0xEF or kind == 0xFE) and (kind, size) not in PLAIN_SEGMENTS:
            found.append(JPEG_SEGMENTS.get(kind, f"APP{kind - 0xE0}"))
        at += 1 if kind == 0xFF else 2 + size  # markers may be padded
    return found, data.find(b"\xff\xd9", at) + 2


def _streams_and_keys(path: Path, frames: int) -> tuple[list[str], list[str]]:
    """Return the kinds of streams and what else than pictures is in a video, or in a folder of frames."""
    if is_frames(path):
        files = sorted(clip_place(path).iterdir())
        found = [(file, picture_metadata(file.read_bytes()) if file.is_file() else ["a folder"]) for file in files]
        return ["video"], [f"{file.name}: {key}" for file, keys in found for key in keys]
    with av.open(f"file:{path}", options=EXPORT) as container:
        tags = [("file", *tag) for tag in container.metadata.items()]
        tags += [(f"stream {stream.index}", *tag) for stream in container.streams for tag in stream.metadata.items()]
        keys = [
            f"{place}: {key}" for place, key, value in tags if key.lower() not in HARMLESS and (key, value) != HANDLER
        ]
        keys += [f"chapter: {chapter['id']}" for chapter in container.chapters()]
        skipped = sum(stream.frames for stream in container.streams.video[:1]) - frames  # 0 - frames in Matroska
        keys += [f"{skipped} frames that players skip"] * (skipped > 0)
        return [stream.type for stream in container.streams], keys


def check_file(path: Path, frames: int) -> dict[str, Check]:
    """Check that a cleaned clip of so many frames has no sound, metadata or location, and no other frames."""
    streams, keys = _streams_and_keys(path, frames)
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
