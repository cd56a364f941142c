"""Clean one clip in three passes over its frames; memory does not grow with its length.

    1 detect   every fourth frame, or each if they differ (steady.py)  ->  boxes of each detector
               short gaps in a track are filled, its ends extended
    2 mask     every frame  ->  mask of people (kept on disk), camera pose
    3 render   every frame  ->  hidden pixels painted, blurred or downsampled  ->  files
    4 look     some frames of the result  ->  new boxes  ->  masks, and pass 3 again; at most ROUNDS times

In pass 3 a second reader runs ahead and provides the reference frames that hidden pixels are painted from.
Legend: H height, W width, C channels, N boxes.
"""

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from ppma.config.errors import BadClip
from ppma.loaders.decode.fetch import all_frames
from ppma.privacy.detectors.boxes import (
    NONE_05,
    SURE,
    WITHIN,
    bridge,
    grown,
    keep_sure,
    linger,
    overlaps,
    stay,
    suppress,
    warped,
)
from ppma.privacy.detectors.ssdlite import confirm_weak
from ppma.privacy.detectors.tiles import detect_frames
from ppma.privacy.detectors.tools import Model
from ppma.privacy.removal import plugins
from ppma.privacy.removal.blur import blurred, downsampled
from ppma.privacy.removal.camera import Pose, Reference, Tracker, pan, view_from
from ppma.privacy.removal.effects import Effects, Views, extend
from ppma.privacy.removal.exemplar import smoothed
from ppma.privacy.removal.figures import Figures, cores
from ppma.privacy.removal.fill import Memory
from ppma.privacy.removal.masks import (
    BODY_REACH,
    PERSON_REACH,
    Spool,
    dilation_pixels,
    disc,
    hidden,
    limbs,
    published_mask,
    raw_mask,
)
from ppma.privacy.removal.steady import STEP, Found, between, search
from ppma.privacy.removal.writing import Part, part_writer, target

Method = Literal["remove", "blur-faces", "blur-bodies", "downsample"]
BRIDGE_SECONDS = 1.0
"""Longest gap between two detections of a person who moves that is filled; who stands still is kept over any gap."""
VIEW_SIDE = 320
"""Long side in pixels of the views in which changes behind a lost person are seen."""
LINGER_SECONDS = 0.2
"""Time by which a track is extended before its first detection and after its last."""
REFERENCES = 25
"""Reference frames of a clip: odd, so that the median is one of the values; more gain little."""
WINDOW_SECONDS = 15.0
"""Longest time that the references of a frame span."""
REFERENCE_BYTES = 256 * 2**20
"""Memory for references; large frames get fewer of them."""
LEAST_REFERENCES = 7
GUARD_FRAMES = 8
"""Frames around a reference whose masks hide pixels in it too, so that a missed person is not painted back."""
ROUNDS = 3
"""Times a clip is rendered at most; a clip in whose last result people are detected is not clean."""
LOOKS_PER_SECOND = 4.0
"""Frames of a result that are searched for people, but one of STEP at most."""
LOOK_FIRST = (2, 1, 3)
"""The first of these frames in each round: those in between, which were not searched for people yet if all is steady."""
IN_FILL_SHARE = 0.5
"""Share of a person detected in a result that is hidden, from which it is the fill that looks like a person."""
ALL_FILL_SHARE = 0.9
"""The same from which nothing of that person is outside the mask."""


@dataclass(frozen=True, kw_only=True)
class Settings(plugins.Choice):
    """What decides the files of a clip."""

    method: Method = "remove"
    short_side: int = 24
    """Pixels along the short side that --method downsample keeps."""
    keep_original: bool = False
    effects: bool = False
    """Mask shadows and reflections of people too."""
    models: tuple[Model, ...] = ()
    """Model files that the user provides."""

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the plug-ins that the method needs."""
        if self.method == "downsample":
            return ()
        if self.method == "blur-faces":
            return tuple(name for name in self.detectors if plugins.PLUGINS[name].finds == "face")
        if self.method == "blur-bodies" and self.masks == "published":  # the segmenter's outlines alone
            return (self.segmenter,)
        second = {plugins.PLUGINS[name].confirmed_by for name in self.detectors} - {"", *self.detectors}
        return (
            *self.detectors,
            *sorted(second),
            self.segmenter,
            *([self.inpainter] if self.method == "remove" else []),
        )

    def targets(self, out: Path, name: str) -> dict[Part, Path]:
        """Return the path of each part of the clip `<class>/<video>`."""
        parts: tuple[Part, ...] = ("inp", "seg", "ori") if self.keep_original else ("inp", "seg")
        return {part: target(out, part, name, self.layout) for part in parts}


def video_frames(path: Path, start_seconds: float = 0.0, end_seconds: float = float("inf")) -> Iterator[np.ndarray]:
    """Yield frames_HWC, uint8 RGB, of a video or folder of frames, in order."""
    for _, frame_HWC in all_frames(path, start_seconds, end_seconds):
        yield frame_HWC


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A video or folder of frames, and the window of it to clean."""

    path: Path
    start_seconds: float = 0.0
    end_seconds: float = float("inf")
    fps: float

    def frames(self) -> Iterator[np.ndarray]:
        """Yield frames_HWC, uint8 RGB, in order."""
        yield from video_frames(self.path, self.start_seconds, self.end_seconds)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done to a clip; part of its record."""

    frames: int
    height: int
    width: int
    frames_with_people: int
    """Frames whose own mask is not empty, those in filled gaps included."""
    boxes: dict[str, int]
    """Boxes of each detector, those in filled gaps included."""
    hidden_share: float
    """Hidden share of all pixels."""
    seen_share: float
    """Share of the hidden pixels that was painted from other frames; the rest is synthesized."""
    flattened: int
    """People, counted in every frame, whom the inpainter painted back, so that a smooth fill hides them instead."""
    rounds: int
    """Times that the clip was rendered, each with the masks of the people detected in the result before."""
    clean: bool | None
    """False if people are detected in the result of the last round; None: it was not searched."""
    effects: Effects | None
    """None: shadows and reflections were not looked for."""
    shots: int
    cpu_seconds: float
    outside_sha256: str
    """Hash of the pixels outside the masks, frame by frame, before encoding."""


@dataclass(kw_only=True)
class Plan:
    """The masks of a clip and the motion of its camera."""

    boxes: list[Found]
    """Of each frame; empty without detectors."""
    spool: Spool
    poses: list[Pose]
    """One for each frame; empty unless something is painted."""
    views: Spool
    """Small gray frames, in which changes behind a lost person are seen."""
    colors: Spool
    """The same in color; empty unless shadows are looked for."""
    effects: Effects | None = None
    extended: set[int] = field(default_factory=set)
    """Frames with a shadow or reflection."""
    scale: float = 1.0
    """Pixels of a view per pixel of a frame."""
    flat: dict[int, np.ndarray]
    """Shot -> boxes_N5 of people whom its fill showed, in pixels of its first frame, with the frame number as score."""
    fps: float
    pans: list[np.ndarray] = field(default_factory=lambda: [np.zeros(2)])
    """By how many pixels (x, y) each frame moves from the one before."""
    cpu_seconds: float = 0.0
    """CPU time spent on the clip so far."""

    def people(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes_N5 of people and of faces in frame `t`, of all detectors."""
        return _split(self.boxes[t] if self.boxes else {})

    @property
    def look_frames(self) -> int:
        """Distance of the frames of a result that are searched for people."""
        return STEP * max(1, round(self.fps / (LOOKS_PER_SECOND * STEP)))


class Pipeline:
    """The plug-ins of a process, loaded once, and the three passes over a clip."""

    def __init__(self, settings: Settings, weights: Path) -> None:
        """Load the plug-ins; InputError when weights are missing."""
        self.settings = settings
        tools = {name: plugins.PLUGINS[name].load(weights, settings.models) for name in settings.used}
        self._detectors = {n: tools[n] for n in settings.detectors if n in tools}
        self._confirmers = {n: tools[second] for n in self._detectors if (second := plugins.PLUGINS[n].confirmed_by)}
        self._segmenter: plugins.Segmenter | None = tools.get(settings.segmenter)
        self._inpainter: plugins.Inpainter | None = tools.get(settings.inpainter)

    def detect(self, frame_HWC: np.ndarray, *, doubt: bool = False) -> Found:
        """Return the boxes_N5 of each detector in one frame; those of low scores, or in `doubt`, if confirmed."""
        (found,) = self._find([frame_HWC])
        if doubt:
            found |= {name: found[name] * np.array([1, 1, 1, 1, SURE], np.float32) for name in self._confirmers}
        return self._sure(self._confirm(frame_HWC, found, {}))

    def _find(self, frames: Sequence[np.ndarray]) -> list[Found]:
        return detect_frames(self._detectors, frames)

    def _confirm(self, frame_HWC: np.ndarray, found: Found, before: Found) -> Found:
        """Raise the scores of weak boxes that are people, as the boxes `before` or a second detector say."""
        sure = {
            name: confirm_weak(frame_HWC, found[name], self._sure(before).get(name, NONE_05), confirm)
            for name, confirm in self._confirmers.items()
        }
        return found | sure

    def _sure(self, found: Found) -> Found:
        """Return the boxes without those that need a confirmation and have none."""
        return {name: b[b[:, 4] >= SURE] if name in self._confirmers else b for name, b in found.items()}

    def mask(self, frame_HWC: np.ndarray, people_N5: np.ndarray, faces_N5: np.ndarray) -> np.ndarray:
        """Return the raw mask_HW (uint8) of a frame, from the boxes of people and faces in it."""
        if self.settings.masks == "published" and self._segmenter is not None:
            return published_mask(frame_HWC, self._segmenter)
        takes = plugins.PLUGINS[self.settings.segmenter].takes
        return raw_mask(frame_HWC, people_N5, faces_N5, self._segmenter, takes)

    def clean(self, source: ClipSource, out: Path, name: str) -> tuple[Outcome, dict[Part, Path]]:
        """Plan, render and `finish` a clip; BadClip if it cannot be read. Arguments and files are those of `render`."""
        with self.plan(source, out) as plan:
            return self.finish(plan, source, out, name)

    def finish(self, plan: Plan, source: ClipSource, out: Path, name: str) -> tuple[Outcome, dict[Part, Path]]:
        """Render a planned clip until no people are detected in the result, at most ROUNDS times."""
        for round_ in range(ROUNDS):
            outcome, paths, found = self.render(plan, source, out, name, round_)
            if not found:
                break
            if round_ < ROUNDS - 1:
                self._extend(plan, source, found)
        return outcome, paths

    @contextlib.contextmanager
    def plan(self, source: ClipSource, folder: Path) -> Iterator[Plan]:
        """Yield the masks and poses of a clip; masks are kept in an unnamed file in `folder` while the block lasts."""
        began = time.process_time()
        with contextlib.ExitStack() as stack:
            spool, views, colors = (
                stack.enter_context(contextlib.closing(Spool(folder, bits=bits))) for bits in (True, False, False)
            )
            plan = Plan(boxes=[], spool=spool, poses=[], views=views, colors=colors, flat={}, fps=source.fps)
            self._detect_all(source, plan)
            self._mask_all(source, plan)
            self._add_effects(plan, range(len(plan.spool)))
            plan.cpu_seconds = time.process_time() - began
            yield plan

    def render(
        self, plan: Plan, source: ClipSource, out: Path, name: str, round_: int | None = None
    ) -> tuple[Outcome, dict[Part, Path], dict[int, Found]]:
        """Write the files of a planned clip; BadClip if it cannot be read.

        Args:
            plan: Masks and poses.
            source: The clip of the plan, or for a control one of the same camera without people.
            out: Folder of inp, seg and ori.
            name: `<class>/<video>`, the same below each of them.
            round_: Which frames of the result are searched for people; none by default.

        Returns:
            The outcome, the path of each part, and frame number -> boxes_N5 of each detector in the result.
        """
        began, paths = time.process_time(), self.settings.targets(out, name)
        window = _Window(source, plan.spool, plan.poses) if self._inpainter is not None else None
        frames = hidden_pixels = seen_pixels = flattened = 0
        looked_at = plan.look_frames if window is not None and round_ is not None else 0
        look_first = min(LOOK_FIRST[round_ or 0], len(plan.spool) - 1)
        found = dict[int, Found]()
        outside = hashlib.sha256()
        with contextlib.ExitStack() as stack:  # inp is opened first and so renamed last
            writers = {
                part: stack.enter_context(part_writer(path, part, self.settings.layout, source.fps))
                for part, path in paths.items()
            }
            for t, frame_HWC in enumerate(source.frames()):
                picture_HWC, hidden_HW, seen_HW, flat = self._change(t, frame_HWC, plan, window)
                outside.update(picture_HWC[~hidden_HW].tobytes())
                frames += 1
                hidden_pixels += int(hidden_HW.sum())
                seen_pixels += int(seen_HW.sum())
                flattened += flat
                if looked_at and (t - look_first) % looked_at == 0 and hidden_HW.any():
                    again = self.detect(picture_HWC, doubt=True)  # painted textures can look like people to one
                    found |= {t: again} if any(map(len, again.values())) else {}
                for part, picture in (("inp", picture_HWC), ("seg", hidden_HW), ("ori", frame_HWC)):
                    if part in writers:
                        writers[part](picture)
            if not frames:
                raise BadClip("has no frame in its window")
        height, width = hidden_HW.shape
        plan.cpu_seconds += time.process_time() - began
        outcome = Outcome(
            frames=frames,
            height=height,
            width=width,
            frames_with_people=plan.spool.filled,
            boxes={name: sum(len(boxes[name]) for boxes in plan.boxes) for name in self._detectors},
            hidden_share=hidden_pixels / (frames * height * width),
            seen_share=seen_pixels / max(1, hidden_pixels),
            flattened=flattened,
            rounds=(round_ or 0) + 1,
            clean=not found if looked_at else None,
            effects=plan.effects,
            shots=1 + max((pose.shot for pose in plan.poses), default=0),
            cpu_seconds=plan.cpu_seconds,
            outside_sha256=outside.hexdigest(),
        )
        return outcome, paths, found

    def _detect_all(self, source: ClipSource, plan: Plan) -> None:
        """Set the plan's boxes and views."""
        frames = source.frames() if self._detectors else iter(())
        finds = {name: plugins.PLUGINS[name].finds for name in self._detectors}
        reach = {name: PERSON_REACH if found == "person" else BODY_REACH for name, found in finds.items()}
        found, views = list[Found](), list[np.ndarray]()
        for group, last in search(frames, self._find):
            plan.scale = min(1.0, VIEW_SIDE / max(group[0].shape[:2]))
            views = [*views[-1:], *(_view(frame_HWC, plan.scale) for frame_HWC in group)]
            for view_HW in views[-len(group) :]:
                plan.views.append(view_HW)
            plan.pans += [pan(*both) / plan.scale for both in pairwise(views)]
            *skipped, last_HWC = group
            before = found[-1] if found else {}
            sure = self._confirm(last_HWC, last, before)
            if skipped:
                steady = between(self._sure(before), self._sure(sure), views, plan.scale, reach)
                if steady is None:
                    for frame_HWC, each in zip(skipped, self._find(skipped)):
                        before = self._confirm(frame_HWC, each, before)
                        found.append(before)
                    sure = self._confirm(last_HWC, last, before)
                else:
                    found += steady
            found.append(sure)
        boxes = {name: [boxes[name] for boxes in found] for name in self._detectors}
        boxes |= {name: keep_sure(boxes[name]) for name in self._confirmers}
        plan.boxes = _tracked(boxes, plan)

    def _mask_all(self, source: ClipSource, plan: Plan) -> None:
        """Set the plan's masks, and the camera poses if something is to be painted."""
        tracker = Tracker()
        for t, frame_HWC in enumerate(source.frames() if self.settings.method != "downsample" else ()):
            if self._detectors and t >= len(plan.boxes):
                raise BadClip("has more frames when it is read again; re-encode it")
            mask_HW = self.mask(frame_HWC, *plan.people(t))
            plan.spool.append(mask_HW)
            if self.settings.effects:
                small = cv2.resize(frame_HWC, None, fx=plan.scale, fy=plan.scale, interpolation=cv2.INTER_AREA)
                plan.colors.append(small)
            if self._inpainter is not None:
                dilated_HW = cv2.dilate(mask_HW, disc(dilation_pixels(*mask_HW.shape)))
                plan.poses.append(tracker.add(frame_HWC, dilated_HW))
        if self.settings.masks == "generous" and self._segmenter is not None and len(plan.views):
            _add_limbs(plan)

    def _add_effects(self, plan: Plan, frames: Iterable[int]) -> None:
        """Add shadows and reflections to the plan's masks of some frames, if they are to be removed."""
        if self.settings.effects:
            found = map(plan.people, range(len(plan.spool)))
            boxes = [np.concatenate([people_N5, grown(faces_N5, *BODY_REACH)]) for people_N5, faces_N5 in found]
            views = Views(plan.spool, plan.colors, plan.poses, boxes, scale=plan.scale, fps=plan.fps)
            extended, known_share = extend(views, frames)
            plan.extended |= extended
            known_share = plan.effects.known_share if plan.effects else known_share  # of all frames
            plan.effects = Effects(frames=len(plan.extended), known_share=known_share)

    def _extend(self, plan: Plan, source: ClipSource, found: dict[int, Found]) -> None:
        """Add the people detected in a result to the plan: to its masks, or where they are hidden, to be filled flat."""
        began = time.process_time()
        new = {name: [NONE_05] * len(plan.spool) for name in self._detectors}
        for t, by_name in found.items():
            hidden_HW, pose = hidden(plan.spool, t, masks=self.settings.masks), plan.poses[t]
            for name, boxes_N5 in by_name.items():
                core_HW = cores(boxes_N5, hidden_HW.astype(np.uint8))
                parts = (hidden_HW[core_HW == n + 1] for n in range(len(boxes_N5)))
                filled_N = np.array([part.mean() if part.size else 0.0 for part in parts])
                new[name][t] = boxes_N5[filled_N < ALL_FILL_SHARE]
                shown_N5 = warped(boxes_N5[filled_N >= IN_FILL_SHARE], np.linalg.inv(pose.homography_33))
                shown_N5[:, 4] = t
                plan.flat[pose.shot] = np.concatenate([plan.flat.get(pose.shot, NONE_05), shown_N5])
        more, changed = _tracked(new, plan), list[int]()
        for t, (frame_HWC, added) in enumerate(zip(source.frames(), more)):
            if any(map(len, added.values())):
                plan.spool.replace(t, plan.spool.read(t) | self.mask(frame_HWC, *_split(added)))
                changed.append(t)
        plan.boxes = [
            {n: np.concatenate([boxes[n], added[n]]) for n in boxes} for boxes, added in zip(plan.boxes, more)
        ]
        self._add_effects(plan, changed)
        plan.cpu_seconds += time.process_time() - began

    def _change(
        self, t: int, frame_HWC: np.ndarray, plan: Plan, window: "_Window | None"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Return (picture_HWC, hidden_HW, seen_HW, people hidden flat) of frame `t`."""
        nothing_HW = np.zeros(frame_HWC.shape[:2], bool)
        if self.settings.method == "downsample":
            return downsampled(frame_HWC, self.settings.short_side), ~nothing_HW, nothing_HW, 0
        hidden_HW = hidden(plan.spool, t, masks=self.settings.masks)
        if self._inpainter is None or window is None:
            return blurred(frame_HWC, hidden_HW), hidden_HW, nothing_HW, 0
        references, pose, memory = window.around(t)
        if not hidden_HW.any():
            return frame_HWC, hidden_HW, nothing_HW, 0
        figures = Figures.of(frame_HWC, hidden_HW, self._cores(plan, t))
        picture_HWC, seen_HW = self._inpainter(frame_HWC, hidden_HW, pose.homography_33, references, memory, figures)
        returned_K = figures.returned(picture_HWC)
        flat_HW = returned_K[figures.territory_HW] | (_showing(plan, t, hidden_HW & ~seen_HW) & hidden_HW)
        if flat_HW.any():  # from the painted picture, so that no edge is left around it
            picture_HWC = smoothed(picture_HWC, flat_HW)
        return picture_HWC, hidden_HW, seen_HW & ~flat_HW, int(returned_K.sum())

    def _cores(self, plan: Plan, t: int) -> np.ndarray:
        """Return numbers_HW (int32) on the cores of the people in frame `t`, from their boxes or else their masks."""
        people_N5, faces_N5 = plan.people(t)
        boxes_N5 = np.concatenate([suppress(people_N5), grown(faces_N5, 0.5, 0, 0.5, 0)])
        return cores(boxes_N5, plan.spool.read(t))


def _view(frame_HWC: np.ndarray, scale: float) -> np.ndarray:
    small_hwC = cv2.resize(frame_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small_hwC, cv2.COLOR_RGB2GRAY)


def _tracked(found: dict[str, list[np.ndarray]], plan: Plan) -> list[Found]:
    """Return the boxes of each frame from those of each detector, with people whom it loses, by the views of the plan.

    Their motion is continued in the picture and, as the camera pans, also in the place: in a fast pan someone may be
    elsewhere in each frame.
    """
    gap, more = round(BRIDGE_SECONDS * plan.fps), round(LINGER_SECONDS * plan.fps)
    moved_T5 = np.pad(np.tile(np.cumsum(plan.pans, 0), 2), ((0, 0), (0, 1))).astype(np.float32)
    tracked = dict[str, list[np.ndarray]]()
    for name, frames in found.items():
        stayed = stay(frames, plan.views.read, plan.scale, gap)
        tracked[name] = linger(bridge(stayed, gap), more)
        if moved_T5.any():
            placed = [boxes_N5 - moved_5 for boxes_N5, moved_5 in zip(stayed, moved_T5)]
            for t, placed_N5 in enumerate(linger(bridge(placed, gap), more)):
                added_N5 = placed_N5[len(stayed[t]) :] + moved_T5[t]
                new_N = overlaps(added_N5, tracked[name][t], of_first=True).max(1, initial=0) < WITHIN
                tracked[name][t] = np.concatenate([tracked[name][t], added_N5[new_N]])
    return [dict(zip(tracked, boxes)) for boxes in zip(*tracked.values())]


def _showing(plan: Plan, t: int, made_HW: np.ndarray) -> np.ndarray:
    """Return where the fill of frame `t` shows people, bool (H, W).

    Of the synthesized pixels `made_HW` it is the whole hole, in all frames of the shot, since a fill that changes
    flickers; of those that other frames show, the box, in the frames around.
    """
    pose, reach = plan.poses[t], plan.look_frames
    boxes_N5 = warped(plan.flat.get(pose.shot, NONE_05), pose.homography_33)
    _, holes_HW = cv2.connectedComponents(made_HW.astype(np.uint8))
    showing_HW, touched = np.zeros(made_HW.shape, bool), set[int]()
    for x0, y0, x1, y1, then in boxes_N5.round().astype(int).clip(0).tolist():
        box = np.s_[y0 : y1 + 1, x0 : x1 + 1]
        touched |= set(np.unique(holes_HW[box]).tolist())
        showing_HW[box] |= abs(t - then) <= reach
    return showing_HW | (made_HW & np.isin(holes_HW, list(touched)))


def _add_limbs(plan: Plan) -> None:
    """Add limbs in fast motion to the plan's masks; without poses the camera is taken to be still."""
    still = Pose(shot=0, homography_33=np.eye(3))
    poses = plan.poses or [still] * len(plan.spool)
    for t, here in enumerate(poses):
        mask_HW, now_hw = plan.spool.read(t), plan.views.read(t)
        near = [i for i in (t - 1, t + 1) if 0 <= i < len(poses) and poses[i].shot == here.shot]
        if mask_HW.any() and near:
            views = [view_from(plan.views.read(i), poses[i], here, plan.scale, now_hw) for i in near]
            plan.spool.replace(t, mask_HW | limbs(mask_HW, views[0], now_hw, views[-1]))


def _split(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes_N5 of people and of faces, of all detectors."""
    people_N5, faces_N5 = (
        np.concatenate([NONE_05, *(boxes for name, boxes in found.items() if plugins.PLUGINS[name].finds == finds)])
        for finds in ("person", "face")
    )
    return people_N5, faces_N5


class _Window:
    """The references around a frame, from a reader that runs ahead; moves forward only."""

    def __init__(self, source: ClipSource, spool: Spool, poses: list[Pose]) -> None:
        self._spool, self._poses = spool, poses
        frame_bytes = 4 * spool.read(0).size if poses else 1  # RGB and the mask of free pixels
        self._count = int(np.clip(REFERENCE_BYTES // frame_bytes, LEAST_REFERENCES, REFERENCES))
        span = min(len(poses), round(WINDOW_SECONDS * source.fps))
        self._step = max(1, -(-span // self._count))
        self._ahead = islice(enumerate(source.frames()), 0, None, self._step)
        self._held: deque[tuple[int, Reference]] = deque(maxlen=self._count)
        self._memory = 0, Memory()

    def around(self, t: int) -> tuple[list[Reference], Pose, Memory]:
        """Return the references in the shot of frame `t`, the frame's pose and the shot's memory."""
        last = t + self._step * (self._count // 2)
        while len(self._held) < self._count or self._held[-1][0] + self._step <= last:
            following = next(self._ahead, None)
            if following is None:
                break
            self._hold(*following)
        pose = self._poses[t]
        if self._memory[0] != pose.shot:
            self._memory = pose.shot, Memory()
        references = [reference for i, reference in self._held if self._poses[i].shot == pose.shot]
        return references, pose, self._memory[1]

    def _hold(self, i: int, frame_HWC: np.ndarray) -> None:
        guard = 2 + min(self._step - 1, GUARD_FRAMES)
        free_HW = (~hidden(self._spool, i, around=guard)).astype(np.uint8)
        homography_33 = self._poses[i].homography_33
        self._held.append((i, Reference(frame_HWC=frame_HWC, free_HW=free_HW, homography_33=homography_33)))
