"""Extend the masks of people by what they cast on the place: shadows, and reflections that move with them.

    small color frames, boxes of people   ->  background: median of the frames in which no person is near a place
    frame / background, near a person     ->  darker by a smooth ratio with the colors kept: a shadow
    frame - background, moved as a person ->  the same as some frames earlier or later: a reflection
    both, attached to the mask            ->  added to the mask

Where people never leave a place the background is unknown, and nothing is added. The share of the places near people whose
background is known is returned, since elsewhere a shadow would not be seen.
Legend: H height, W width of a frame, h w of its small view, N boxes, R references, C channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from ppma.privacy.detectors.boxes import warped
from ppma.privacy.removal.camera import STILL_PIXELS, Pose, Reference, moves, seen_from, shift
from ppma.privacy.removal.fill import median_of_free
from ppma.privacy.removal.masks import Spool, dilation_pixels, disc

REACH = 1.0
"""Longest distance of a shadow from the person's box, as a share of the box's height."""
REFERENCES = 25
"""Frames of which the background is the median: odd, so that it is one of the values."""
SPAN_SECONDS = 30.0
"""Time around a frame that they are from; longer than the fill's, because people must be farther away in them."""
LEAST_VIEWS = 3
"""Frames that must show a place without people near."""
DARK, DARK_AT_ALL = 0.88, 0.94
"""Ratio to the background up to which a pixel is in shadow; and up to which it is, next to such a pixel."""
COLOR_KEPT = 0.12, 0.3
"""Largest difference between the log ratios of two channels, and the part by which it grows with the depth of a shadow:
the light in a shadow is bluer."""
RATIO_ROUGHNESS = 0.5
"""Largest difference from the smooth ratio around, as a share of the darkening."""
SMOOTH = 9
"""Side in pixels of the square over which ratios and differences are averaged."""
FLOOR = 6.0
"""Levels added to both sides of a ratio, so that noise in black places is no shadow."""
DIFFERENT = 14.0
"""Difference from the background in levels from which a pixel may be a reflection."""
STEP_SECONDS = 0.4
"""Time over which a reflection must move with a person."""
FOLLOWS = 0.5
"""Error with which it moves with the person, as a share of its difference from the background and of the error with
which it stays."""
SAME_HEIGHT = 0.8
"""Least ratio of the heights of two boxes of one person."""
LEAST_STEP = 0.05
"""Least motion of a person in that time, as a share of the box's height."""
MOST_OUTSIDE = 0.1
"""Share of the places far from people that look like shadow, above which the light has changed."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What was added to the masks of a clip; part of its record."""

    frames: int
    """Frames whose mask was extended."""
    known_share: float
    """Share of the pixels within a person's height of people whose background other frames show, over all frames; in
    the rest no shadow or reflection can be seen."""


def extend(views: "Views", frames: Iterable[int]) -> tuple[set[int], float]:
    """Add shadows and reflections of people to the masks of some frames, in place.

    Returns:
        The frames whose mask was extended, and the known share (`Effects.known_share`) over these frames.
    """
    extended, known, near = set[int](), 0, 0
    for t in frames:
        if not len(views.boxes[t]) or not (mask_HW := views.spool.read(t)).any():
            continue
        now = views.look(t)
        near_hw = now.zone_hw & ~now.mask_hw
        near, known = near + int(near_hw.sum()), known + int((near_hw & now.known_hw).sum())
        cast_hw = _attached(_shadow(now) | _reflection(views, t), now.mask_hw).astype(np.uint8)
        if cast_hw.any():
            extended.add(t)
            cast_HW = cv2.resize(cast_hw, mask_HW.shape[::-1], interpolation=cv2.INTER_NEAREST)
            views.spool.replace(t, mask_HW | cast_HW)
    return extended, known / max(1, near)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """A view next to its background."""

    pose: Pose
    boxes_N5: np.ndarray
    """People, in pixels of the view."""
    zone_hw: np.ndarray
    """bool: within reach of a person."""
    mask_hw: np.ndarray
    """bool: people, dilated as the masks will be."""
    known_hw: np.ndarray
    """bool: outside the mask, and enough other frames show the background; false everywhere if the light changed."""
    frame_hwC: np.ndarray
    """float32, smoothed over known pixels."""
    place_hwC: np.ndarray
    """The background in the light of the frame, smoothed likewise."""

    @property
    def difference_hwC(self) -> np.ndarray:
        """Return frame - background, smoothed, since what is reflected is mixed with the texture of the place."""
        return _smooth(self.frame_hwC - self.place_hwC, self.known_hw, SMOOTH)

    @property
    def log_ratio_hwC(self) -> np.ndarray:
        """Return the logarithm of frame / background."""
        return np.log((self.frame_hwC + FLOOR) / (self.place_hwC + FLOOR))


class Views:
    """The small views of a clip and the background of each; holds those around a frame."""

    def __init__(
        self,
        spool: Spool,
        colors: Spool,
        poses: Sequence[Pose],
        boxes: Sequence[np.ndarray],
        *,
        scale: float,
        fps: float,
    ) -> None:
        """Take what is known of a clip.

        Args:
            spool: Raw masks of its frames.
            colors: Small views of its frames, RGB.
            poses: Camera pose of each frame.
            boxes: Boxes_N5 of the people in each frame, in its pixels.
            scale: Pixels of a view per pixel of a frame.
            fps: Frames per second.
        """
        stretch = np.diag([scale, scale, 1.0])
        self.spool, self._colors = spool, colors
        self.boxes = [warped(boxes_N5, stretch) for boxes_N5 in boxes]
        self.poses = [
            Pose(shot=pose.shot, homography_33=stretch @ pose.homography_33 @ np.linalg.inv(stretch)) for pose in poses
        ]
        span = min(len(poses), round(SPAN_SECONDS * fps))
        self._span, self._every = span, max(1, -(-span // REFERENCES))
        self.step = max(1, round(STEP_SECONDS * fps))
        self._reference = lru_cache(REFERENCES + 1)(self._read_reference)
        self.look = lru_cache(2 * self.step + 2)(self._look)
        self._last: tuple[tuple[int, ...], np.ndarray, np.ndarray, np.ndarray] | None = None

    def _read_reference(self, t: int) -> Reference:
        frame_hwC = self._colors.read(t)
        free_hw = (~_zone(self.boxes[t], frame_hwC.shape[:2])).astype(np.uint8)
        return Reference(frame_HWC=frame_hwC, free_HW=free_hw, homography_33=self.poses[t].homography_33)

    def _background(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Return median_hwC (uint8) and known_hw (bool) of the place of frame `t`."""
        pose, every = self.poses[t], self._every
        start = min(max(0, t - self._span // 2), len(self.poses) - self._span) // every * every
        chosen = tuple(
            i for i in range(start, min(len(self.poses), start + self._span), every) if self.poses[i].shot == pose.shot
        )
        here_33 = pose.homography_33
        if self._last is not None and self._last[0] == chosen:
            median_hwC, known_hw = self._last[2:]
            if moves(here_33 @ np.linalg.inv(self._last[1]), *known_hw.shape) < STILL_PIXELS:
                return median_hwC, known_hw
        size = self._colors.read(t).shape[:2]
        median_hwC, known_hw = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
        if chosen:
            stack_RhwC, free_Rhw = map(np.stack, zip(*(seen_from(self._reference(i), here_33) for i in chosen)))
            known_hw = median_of_free(stack_RhwC, free_Rhw, np.ones(size, bool), LEAST_VIEWS, median_hwC)
        self._last = chosen, here_33, median_hwC, known_hw
        return median_hwC, known_hw

    def _look(self, t: int) -> _Look:
        view_hwC, boxes_N5 = self._colors.read(t), self.boxes[t]
        size = view_hwC.shape[:2]
        place_hwC, known_hw = self._background(t)
        raw_hw = cv2.resize(self.spool.read(t), size[::-1], interpolation=cv2.INTER_NEAREST)
        mask_hw = cv2.dilate(raw_hw, disc(dilation_pixels(*size))) > 0
        zone_hw, known_hw = _zone(boxes_N5, size), known_hw & ~mask_hw
        frame_hwC, place_hwC = (_smooth(picture.astype(np.float32), known_hw, 5) for picture in (view_hwC, place_hwC))
        if known_hw.any():  # exposure changes as people come and go; what they cast covers less than half
            place_hwC *= np.median((frame_hwC[known_hw] + FLOOR) / (place_hwC[known_hw] + FLOOR), axis=0)
        look = _Look(
            pose=self.poses[t], boxes_N5=boxes_N5, zone_hw=zone_hw, mask_hw=mask_hw, known_hw=known_hw,
            frame_hwC=frame_hwC, place_hwC=place_hwC,
        )  # fmt: skip  # one field after the other
        far_hw = known_hw & ~zone_hw
        dark_hw = look.log_ratio_hwC.mean(2) < np.log(DARK)
        if dark_hw[far_hw].sum() > MOST_OUTSIDE * far_hw.sum():
            return replace(look, known_hw=np.zeros_like(known_hw))
        return look


def _smooth(values: np.ndarray, known_hw: np.ndarray, side: int) -> np.ndarray:
    """Return the mean of (h, w) or (h, w, C) over the known pixels of a square around each pixel."""
    weight_hw = cv2.blur(known_hw.astype(np.float32), (side, side)) + 1e-6
    shown = known_hw if values.ndim == 2 else known_hw[..., None]
    mean = cv2.blur(values * shown, (side, side))
    return mean / (weight_hw if values.ndim == 2 else weight_hw[..., None])


def _shadow(now: _Look) -> np.ndarray:
    """Return the pixels near people that are darker than the background in the way of a shadow, bool (h, w)."""
    log_ratio_hwC = now.log_ratio_hwC
    depth_hw = -log_ratio_hwC.mean(2)
    around_hw = _smooth(depth_hw, now.known_hw, SMOOTH)
    color_hw = np.abs(log_ratio_hwC + depth_hw[..., None]).max(2)
    least, grows = COLOR_KEPT
    shadow_hw = now.known_hw & now.zone_hw & (depth_hw > -np.log(DARK_AT_ALL))
    shadow_hw &= (color_hw <= least + grows * depth_hw) & (np.abs(depth_hw - around_hw) <= RATIO_ROUGHNESS * depth_hw)
    return _components_with(shadow_hw, depth_hw > -np.log(DARK))


def _reflection(views: Views, t: int) -> np.ndarray:
    """Return what differs from the background and moves as a person near it does, bool (h, w)."""
    now = views.look(t)
    size_hw = np.abs(now.difference_hwC).max(2)
    differs_hw = now.zone_hw & now.known_hw & (size_hw > DIFFERENT)
    count, labels_hw = cv2.connectedComponents(differs_hw.astype(np.uint8))
    follows = np.zeros(count, bool)
    for u in (t - views.step, t + views.step):
        if count == 1 or not 0 <= u < len(views.poses) or views.poses[u].shot != now.pose.shot:
            continue
        then = views.look(u)
        warp_33 = now.pose.homography_33 @ np.linalg.inv(then.pose.homography_33)
        for (x, y), part in _motions(now.boxes_N5, warped(then.boxes_N5, warp_33)):
            stay_hw, both_hw = _error(now, then, warp_33)
            move_hw, shown_hw = _error(now, then, shift(x, y) @ warp_33)
            own_hw = np.zeros_like(differs_hw)
            own_hw[part] = True
            own_hw &= differs_hw & both_hw & shown_hw
            stay, move, size = (
                np.bincount(labels_hw[own_hw], weights=values_hw[own_hw], minlength=count)
                for values_hw in (stay_hw, move_hw, size_hw)
            )
            follows |= move < FOLLOWS * np.minimum(stay, size)
    return np.asarray(follows[labels_hw] & differs_hw)


def _error(now: _Look, then: _Look, warp_33: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much the differences of two looks differ, (h, w) in levels, and where both are known."""
    size = now.known_hw.shape[::-1]
    moved_hwC = cv2.warpPerspective(then.difference_hwC, warp_33, size)
    known_hw = cv2.warpPerspective(then.known_hw.astype(np.uint8), warp_33, size, flags=cv2.INTER_NEAREST) > 0
    return np.abs(now.difference_hwC - moved_hwC).max(2), known_hw & now.known_hw


def _motions(now_N5: np.ndarray, then_M5: np.ndarray) -> Iterator[tuple[tuple[float, float], tuple[slice, slice]]]:
    """Yield the motion (x, y) from `then` to `now` of each person who moves, and the rows and columns in reach of it."""
    for box_5 in now_N5:
        height, heights_M = box_5[3] - box_5[1], then_M5[:, 3] - then_M5[:, 1]
        same_M = np.minimum(heights_M, height) >= SAME_HEIGHT * np.maximum(heights_M, height)
        steps_M2 = (box_5[:2] + box_5[2:4] - then_M5[same_M, :2] - then_M5[same_M, 2:4]) / 2
        if not len(steps_M2):
            continue
        step_2 = steps_M2[np.argmin((steps_M2**2).sum(1))]
        if LEAST_STEP * height <= np.hypot(*step_2) <= REACH * height:
            yield (float(step_2[0]), float(step_2[1])), _in_reach(box_5)


def _in_reach(box_5: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns in reach of a person."""
    x0, y0, x1, y1 = box_5[:4].tolist()
    reach = REACH * (y1 - y0)
    rows, columns = (slice(max(0, round(a - reach)), max(0, round(b + reach))) for a, b in ((y0, y1), (x0, x1)))
    return rows, columns


def _zone(boxes_N5: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the pixels in reach of people, bool (h, w)."""
    zone_hw = np.zeros(size, bool)
    for box_5 in boxes_N5:
        zone_hw[_in_reach(box_5)] = True
    return zone_hw


def _components_with(area_hw: np.ndarray, seed_hw: np.ndarray) -> np.ndarray:
    """Return the connected components of an area, bool (h, w), that have a seed."""
    count, labels_hw = cv2.connectedComponents(area_hw.astype(np.uint8))
    wanted = np.bincount(labels_hw[area_hw & seed_hw], minlength=count) > 0
    return np.asarray(wanted[labels_hw])


def _attached(cast_hw: np.ndarray, mask_hw: np.ndarray) -> np.ndarray:
    """Return the parts of what is cast that touch the mask, without specks, bool (h, w)."""
    cast_hw = cv2.morphologyEx(cast_hw.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    closed_hw = cv2.morphologyEx((cast_hw | mask_hw).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)) > 0
    return _components_with(_components_with(closed_hw, mask_hw) & ~mask_hw, cast_hw)
