"""One clip from its source to its files, in three passes over the frames; a pass holds one frame, the last one some references besides.

    1 find    every frame -> boxes of each detector                          (kept: numbers)
              boxes of people who are lost and found again are bridged, and stay a little before and after
    2 mask    every frame -> raw mask, pose of the camera                    (kept: masks on disk, numbers)
    3 fill    every frame -> hidden pixels (masks around it, dilated) painted, blurred or scaled down -> files

A second reader runs ahead in the third pass and brings the references. Nothing of a clip bears its name before all of it is there.
"""

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from ppma.loaders.decode.fetch import BadClip, all_frames
from ppma.privacy.detectors.boxes import NONE_05, bridge, linger
from ppma.privacy.detectors.user_models import Model
from ppma.privacy.removal import plugins
from ppma.privacy.removal.camera import Pose, Reference, Tracker
from ppma.privacy.removal.fill import Memory
from ppma.privacy.removal.masks import Spool, dilation_pixels, disc, hidden, published_mask, raw_mask
from ppma.privacy.removal.writing import Layout, Part, Writer, parts, target, writer

Method = Literal["remove", "blur-faces", "blur-bodies", "downsample"]

BRIDGE_SECONDS = 1.0
"""How long a person may be lost between two sights and still be there."""
LINGER_SECONDS = 0.2
"""How long a person may be there before the first sight and after the last."""
REFERENCES = 25
"""Frames that one is painted from: an odd number with a true median, more gain little."""
WINDOW_SECONDS = 15.0
"""Time that references span in a long clip; a shorter one is spanned whole."""
REFERENCE_BYTES = 256 * 2**20
"""Memory for references: large frames get fewer."""
LEAST_REFERENCES = 7
GUARD_FRAMES = 8
"""Around a reference whose masks block it too: a person whom the detectors miss in it must not be painted back."""
BLUR_PARTS = 6.0
"""Blurring leaves so many blobs along the longer side of somebody."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the pixels."""

    method: Method = "remove"
    detectors: tuple[str, ...] = plugins.SETS["default"].detectors
    segmenter: str = plugins.SETS["default"].segmenter
    inpainter: str = plugins.SETS["default"].inpainter
    masks: plugins.Masks = "generous"
    short_side: int = 24
    """Pixels that --method downsample leaves."""
    models: tuple[Model, ...] = ()
    """Files that the user brought."""

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the plug-ins that the method asks for."""
        if self.method == "downsample":
            return ()
        if self.method == "blur-faces":
            return tuple(name for name in self.detectors if plugins.PLUGINS[name].finds == "face")
        return (*self.detectors, self.segmenter, *([self.inpainter] if self.method == "remove" else []))


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """The clip to work on."""

    path: Path
    start_seconds: float
    end_seconds: float
    fps: float

    def frames(self) -> Iterator[np.ndarray]:
        """Its frames_HWC, one after the other."""
        for _, frame_HWC in all_frames(self.path, self.start_seconds, self.end_seconds):
            yield frame_HWC


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done to a clip; goes into its record."""

    frames: int
    height: int
    width: int
    frames_with_people: int
    """Frames with a mask of their own, bridged ones included."""
    boxes: dict[str, int]
    """Of each detector, those in between included."""
    hidden_share: float
    """Of all pixels."""
    seen_share: float
    """Of the hidden pixels, painted from other frames; the rest is guessed."""
    shots: int
    cpu_seconds: float
    outside_sha256: str
    """Of the pixels that are not hidden, frame after frame, before encoding: those of the source have the same."""


@dataclass
class _Found:
    """Boxes of every frame, by detector."""

    boxes: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def of(self, kind: str, t: int) -> np.ndarray:
        """boxes_N5 of people, or of faces, in frame `t`."""
        mine = [boxes[t] for name, boxes in self.boxes.items() if plugins.PLUGINS[name].finds == kind]
        return np.concatenate(mine) if mine else NONE_05

    @property
    def frames(self) -> int:
        """Frames that were looked at; none without detectors."""
        return min(map(len, self.boxes.values()), default=0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be hidden in a clip, and how its camera moves."""

    found: _Found
    spool: Spool
    poses: list[Pose]
    cpu_seconds: float


class Pipeline:
    """The plug-ins of a process, loaded once, and what they do to a clip."""

    def __init__(self, settings: Settings, weights: Path) -> None:
        """InputError when weights are missing."""
        self.settings = settings
        tools = {name: plugins.load(name, weights, settings.models) for name in settings.used}
        self._detectors: dict[str, plugins.Detector] = {n: tools[n] for n in settings.detectors if n in tools}
        self._segmenter: plugins.Segmenter | None = tools.get(settings.segmenter)
        self._inpainter: plugins.Inpainter | None = tools.get(settings.inpainter)

    def detect(self, frame_HWC: np.ndarray) -> dict[str, np.ndarray]:
        """Boxes in one frame, by detector."""
        return {name: detect(frame_HWC) for name, detect in self._detectors.items()}

    def mask(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Raw mask of a frame by itself."""
        found = _Found({name: [boxes_N5] for name, boxes_N5 in self.detect(frame_HWC).items()})
        return self._outline(frame_HWC, found, 0)

    def _outline(self, frame_HWC: np.ndarray, found: "_Found", t: int) -> np.ndarray:
        if self.settings.masks == "published" and self._segmenter is not None:
            return published_mask(frame_HWC, self._segmenter)
        return raw_mask(frame_HWC, found.of("person", t), found.of("face", t), self._segmenter)

    def clean(
        self, source: ClipSource, out: Path, name: str, layout: Layout, *, keep_original: bool = False
    ) -> tuple[Outcome, dict[Part, Path]]:
        """Do the work on a clip and write its files; (outcome, path of each part). BadClip where the source cannot be read."""
        with self.plan(source, out) as plan:
            return self.render(plan, source, out, name, layout, keep_original=keep_original)

    @contextlib.contextmanager
    def plan(self, source: ClipSource, folder: Path) -> Iterator[Plan]:
        """What is to be hidden in a clip; its masks are in a file without a name in `folder`, as long as the context lasts."""
        began = time.process_time()
        found = self._find_all(source)
        with contextlib.closing(Spool(folder)) as spool:
            poses = self._mask_all(source, found, spool)
            yield Plan(found=found, spool=spool, poses=poses, cpu_seconds=time.process_time() - began)

    def render(
        self, plan: Plan, source: ClipSource, out: Path, name: str, layout: Layout, *, keep_original: bool = False
    ) -> tuple[Outcome, dict[Part, Path]]:
        """The rest of `treat`. The source is the clip of the plan, or one of the same camera in which nobody ever was, as a control."""
        began = time.process_time()
        paths = {part: target(out, part, name, layout) for part in parts(keep_original)}
        tally = self._write_all(source, plan.spool, plan.poses, paths, layout)
        frames = tally.frames
        outcome = Outcome(
            frames=frames,
            height=tally.height,
            width=tally.width,
            frames_with_people=plan.spool.filled,
            boxes={name: sum(map(len, boxes)) for name, boxes in plan.found.boxes.items()},
            hidden_share=tally.hidden / (frames * tally.height * tally.width),
            seen_share=tally.seen / max(1, tally.hidden),
            shots=1 + max((pose.shot for pose in plan.poses), default=0),
            cpu_seconds=plan.cpu_seconds + time.process_time() - began,
            outside_sha256=tally.outside.hexdigest(),
        )
        return outcome, paths

    def _find_all(self, source: ClipSource) -> _Found:
        found = _Found({name: [] for name in self._detectors})
        if self._detectors:
            for frame_HWC in source.frames():
                for name, boxes_N5 in self.detect(frame_HWC).items():
                    found.boxes[name].append(boxes_N5)
        gap = round(BRIDGE_SECONDS * source.fps)
        stay = round(LINGER_SECONDS * source.fps)
        return _Found({name: linger(bridge(boxes, gap), stay) for name, boxes in found.boxes.items()})

    def _mask_all(self, source: ClipSource, found: _Found, spool: Spool) -> list[Pose]:
        """Raw masks into the spool, and the poses where something is to be painted."""
        tracker, poses = Tracker(), list[Pose]()
        if self.settings.method == "downsample":
            return poses
        for t, frame_HWC in enumerate(source.frames()):
            if found.boxes and not t < found.frames:
                raise BadClip("gives more frames when it is read again; write it anew")
            mask_HW = self._outline(frame_HWC, found, t)
            spool.append(mask_HW)
            if self._inpainter is not None:
                grown = cv2.dilate(mask_HW, disc(dilation_pixels(*mask_HW.shape)))
                poses.append(tracker.add(frame_HWC, grown))
        return poses

    def _write_all(
        self, source: ClipSource, spool: Spool, poses: list[Pose], paths: dict[Part, Path], layout: Layout
    ) -> "_Tally":
        tally, writers = _Tally(), dict[Part, Writer]()
        window = _Window(source, spool, poses) if self._inpainter is not None else None
        try:
            for t, frame_HWC in enumerate(source.frames()):
                if not writers:
                    height, width = frame_HWC.shape[:2]
                    writers = {p: writer(path, p, layout, source.fps, (height, width)) for p, path in paths.items()}
                picture_HWC, hidden_HW, seen_HW = self._change(t, frame_HWC, spool, window)
                tally.add(picture_HWC, hidden_HW, seen_HW)
                pictures: dict[Part, np.ndarray] = {"inp": picture_HWC, "seg": hidden_HW, "ori": frame_HWC}
                for part, one in writers.items():
                    one.add(pictures[part])
            if not tally.frames:
                raise BadClip("has no frame in its window")
            for one in reversed(writers.values()):  # the clip itself comes last
                one.finish()
        except BaseException:
            for one in writers.values():
                one.drop()
            raise
        return tally

    def _change(
        self, t: int, frame_HWC: np.ndarray, spool: Spool, window: "_Window | None"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(picture_HWC, hidden_HW, seen_HW) of frame `t`."""
        nothing_HW = np.zeros(frame_HWC.shape[:2], bool)
        if self.settings.method == "downsample":
            return coarse(frame_HWC, self.settings.short_side), ~nothing_HW, nothing_HW
        hidden_HW = hidden(spool, t, masks=self.settings.masks)
        if self._inpainter is None or window is None:
            return blurred(frame_HWC, hidden_HW), hidden_HW, nothing_HW
        references, pose = window.around(t)
        memory = window.memory(pose.shot)
        picture_HWC, seen_HW = self._inpainter(frame_HWC, hidden_HW, pose.homography_33, references, memory)
        return picture_HWC, hidden_HW, seen_HW


@dataclass
class _Tally:
    frames: int = 0
    height: int = 0
    width: int = 0
    hidden: int = 0
    seen: int = 0
    outside: Any = field(default_factory=hashlib.sha256)

    def add(self, picture_HWC: np.ndarray, hidden_HW: np.ndarray, seen_HW: np.ndarray) -> None:
        self.outside.update(picture_HWC[~hidden_HW].tobytes())
        self.frames += 1
        self.height, self.width = hidden_HW.shape
        self.hidden += int(hidden_HW.sum())
        self.seen += int(seen_HW.sum())


class _Window:
    """The references around a frame, read by a reader of its own that runs ahead; moves forward only."""

    def __init__(self, source: ClipSource, spool: Spool, poses: list[Pose]) -> None:
        self._spool, self._poses = spool, poses
        first = spool.read(0) if len(spool) else np.zeros((1, 1), np.uint8)
        self._count = int(np.clip(REFERENCE_BYTES // (4 * first.size), LEAST_REFERENCES, REFERENCES))
        span = min(len(poses), round(WINDOW_SECONDS * source.fps))
        self._step = max(1, -(-span // self._count))
        self._ahead = islice(enumerate(source.frames()), 0, None, self._step)
        self._held: deque[tuple[int, Reference]] = deque(maxlen=self._count)
        self._memory = 0, Memory()

    def around(self, t: int) -> tuple[list[Reference], Pose]:
        """(references of the shot of frame `t`, its pose)."""
        wanted = t + self._step * (self._count // 2)
        while len(self._held) < self._count or self._held[-1][0] + self._step <= wanted:
            following = next(self._ahead, None)
            if following is None:
                break
            self._hold(*following)
        pose = self._poses[t]
        return [reference for shot, reference in self._of_shot(pose.shot)], pose

    def memory(self, shot: int) -> Memory:
        """Of what was made up in that shot; the one before is forgotten."""
        if self._memory[0] != shot:
            self._memory = shot, Memory()
        return self._memory[1]

    def _of_shot(self, shot: int) -> Iterator[tuple[int, Reference]]:
        return ((i, reference) for i, reference in self._held if self._poses[i].shot == shot)

    def _hold(self, i: int, frame_HWC: np.ndarray) -> None:
        guard = min(self._step - 1, GUARD_FRAMES)
        blocked_HW = hidden(self._spool, i, before=guard + 2, after=guard + 2)
        free_HW = (~blocked_HW).astype(np.uint8)
        self._held.append((i, Reference(frame_HWC=frame_HWC, free_HW=free_HW, homography_33=self._pose(i))))

    def _pose(self, i: int) -> np.ndarray:
        return self._poses[i].homography_33


def blurred(frame_HWC: np.ndarray, hidden_HW: np.ndarray) -> np.ndarray:
    """The frame with each hidden part smoothed until nothing but a few blobs is left of it."""
    picture_HWC = frame_HWC.copy()
    count, labels_HW, boxes, _ = cv2.connectedComponentsWithStats(hidden_HW.astype(np.uint8))
    for label in range(1, count):
        x, y, width, height = (int(value) for value in boxes[label, :4])
        cut = np.s_[y : y + height, x : x + width]
        scale = BLUR_PARTS / max(width, height)
        small = cv2.resize(frame_HWC[cut], _scaled(width, height, scale), interpolation=cv2.INTER_AREA)
        smooth_hwC = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        own_hw = labels_HW[cut] == label
        picture_HWC[cut][own_hw] = smooth_hwC[own_hw]
    return picture_HWC


def coarse(frame_HWC: np.ndarray, short_side: int) -> np.ndarray:
    """The frame as it looks with so few pixels along its short side, at its own size."""
    height, width = frame_HWC.shape[:2]
    small = cv2.resize(frame_HWC, _scaled(width, height, short_side / min(height, width)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _scaled(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(1, round(width * min(scale, 1.0))), max(1, round(height * min(scale, 1.0)))
