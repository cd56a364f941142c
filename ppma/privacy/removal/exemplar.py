"""Synthesize a hole from patches of the rest of the frame, so that texture continues into it (PatchMatch inpainting).

    frame, hole  ->  pyramid of colors and texture  ->  coarsest level: a smooth start
    each level: for every patch that touches the hole the nearest patch outside it  <->  votes for its pixels

Objective of Wexler et al. (2007): every patch of the hole resembles one from outside. Search of Barnes et al. (2009):
neighbors have neighboring matches. Texture in the comparison as in Newson et al. (2014), without which averages win.
Legend: H height, W width, h w of a level with a margin of RADIUS, D colors and texture, N patches of the hole, M
patches that may be copied, C channels.
"""

from dataclasses import dataclass
from itertools import takewhile

import cv2
import numba
import numpy as np

RADIUS = 3
SIDE = 2 * RADIUS + 1
"""Side of a patch in pixels."""
DEPTH = 5
"""Values of a pixel: red, green, blue, vertical and horizontal texture."""
LEAST_SIDE = 24
"""Least short side of the coarsest level, in pixels."""
LEAST_SOURCES = 50
"""Fewest patches outside the hole for a level; coarser levels are left out too."""
VOTES = (10, 6, 3)
"""Rounds of search and vote at the coarsest level, the next, and all others."""
SWEEPS = 2
"""Scans of a search: forward and backward."""
NEARER = 1.3
"""Factor by which the weight of a patch grows with each pixel nearer to the known area."""
LEAST_WEIGHT = 1e-30
"""Hundreds of pixels inside a hole, weights would be 0 in float32 and pixels would stay unpainted."""
TEXTURE_WEIGHT = 8.0
"""Weight of a level of texture relative to a level of color."""
SPREAD = 2_654_435_761
"""Odd, near 2 ** 32 over the golden ratio: its multiples spread the initial matches."""


def pull_push(values_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """Fill the hole smoothly with averages of the known pixels in ever larger squares (Gortler et al., 1996).

    Args:
        values_HWC: Any number of channels.
        hole_HW: bool; if it covers everything, all pixels become the mean.

    Returns:
        float32 (H, W, C).
    """
    known_HW = (~hole_HW).astype(np.float32)
    sums_HWC, shares_HW = values_HWC * known_HW[..., None], known_HW
    levels: list[tuple[np.ndarray, np.ndarray]] = [(sums_HWC, shares_HW)]
    while max(shares_HW.shape) > 1:
        half = ((shares_HW.shape[0] + 1) // 2, (shares_HW.shape[1] + 1) // 2)
        sums_HWC, shares_HW = _scaled(sums_HWC, half), _scaled(shares_HW, half)
        levels.append((sums_HWC, shares_HW))
    sums_11C, share_11 = levels[-1]
    filled_HWC = sums_11C / share_11 if share_11[0, 0] else values_HWC.mean((0, 1), dtype=np.float32, keepdims=True)
    for sums_HWC, shares_HW in reversed(levels):
        wider_HWC = _scaled(filled_HWC, (shares_HW.shape[0], shares_HW.shape[1]), cv2.INTER_LINEAR)
        filled_HWC = sums_HWC + (1 - shares_HW[..., None]) * wider_HWC
    return filled_HWC


def smoothed(frame_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """Return the frame (uint8) with the hole filled smoothly."""
    picture_HWC = frame_HWC.copy()
    picture_HWC[hole_HW] = np.rint(pull_push(frame_HWC, hole_HW)[hole_HW])
    return picture_HWC


def _scaled(values: np.ndarray, size: tuple[int, int], how: int = cv2.INTER_AREA) -> np.ndarray:
    """Resize to (height, width), four channels at a time: OpenCV takes no more, and drops a single one."""
    planes = values.reshape(*values.shape[:2], -1)
    parts = [cv2.resize(planes[..., c : c + 4], size[::-1], interpolation=how) for c in range(0, planes.shape[2], 4)]
    return np.dstack(parts).reshape(*size, *values.shape[2:])


@numba.njit(cache=True, inline="always")
def _distance(level_hwD: np.ndarray, y: int, x: int, there_y: int, there_x: int, enough: int) -> np.int64:
    """Return the sum of squared differences of two patches, or a part of it that exceeds `enough`."""
    total = np.int64(0)
    for i in range(-RADIUS, RADIUS + 1):
        for j in range(-RADIUS, RADIUS + 1):
            for d in range(DEPTH):
                off = np.int32(level_hwD[y + i, x + j, d]) - np.int32(level_hwD[there_y + i, there_x + j, d])
                total += off * off
        if total >= enough:
            break
    return total


@numba.njit(cache=True)
def _offer(
    field: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], n: int, y: int, x: int, there_y: int, there_x: int
) -> None:
    """Make the place the match of patch `n` if it may be copied and is nearer than the present match."""
    level_hwD, source_hw, match_N2, costs_N = field
    if there_y == match_N2[n, 0] and there_x == match_N2[n, 1]:  # most often: neighbors agree
        return
    if 0 <= there_y < source_hw.shape[0] and 0 <= there_x < source_hw.shape[1] and source_hw[there_y, there_x]:
        cost = _distance(level_hwD, y, x, there_y, there_x, costs_N[n])
        if cost < costs_N[n]:
            costs_N[n], match_N2[n, 0], match_N2[n, 1] = cost, there_y, there_x


@numba.njit(cache=True)
def _search(
    level_hwD: np.ndarray,
    source_hw: np.ndarray,
    targets_N2: np.ndarray,
    match_N2: np.ndarray,
    costs_N: np.ndarray,
    seed: int,
) -> None:
    """Improve the matches in place by shifted matches of neighbors and by random ones near the present match."""
    field = (level_hwD, source_hw, match_N2, costs_N)
    index_hw = np.full(source_hw.shape, -1, np.int32)
    for n in range(len(targets_N2)):
        y, x = targets_N2[n]
        index_hw[y, x] = n
        costs_N[n] = _distance(level_hwD, y, x, match_N2[n, 0], match_N2[n, 1], 1 << 40)
    state = np.uint64(seed)
    for sweep in range(SWEEPS):
        step = 1 - 2 * (sweep % 2)
        for turn in range(len(targets_N2)):
            n = turn if step > 0 else len(targets_N2) - 1 - turn
            y, x = targets_N2[n]
            for down, right in ((step, 0), (0, step)):
                neighbor = index_hw[y - down, x - right]
                if neighbor >= 0:
                    _offer(field, n, y, x, match_N2[neighbor, 0] + down, match_N2[neighbor, 1] + right)
            reach = max(source_hw.shape)
            while reach >= 1:
                state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)  # Knuth's MMIX
                down = np.int64((state >> np.uint64(44)) % np.uint64(2 * reach + 1)) - reach
                right = np.int64((state >> np.uint64(24)) % np.uint64(2 * reach + 1)) - reach
                _offer(field, n, y, x, match_N2[n, 0] + down, match_N2[n, 1] + right)
                reach //= 2


@numba.njit(cache=True)
def _vote(
    level_hwD: np.ndarray,
    hole_hw: np.ndarray,
    targets_N2: np.ndarray,
    match_N2: np.ndarray,
    weight_N: np.ndarray,
    sharp: bool,
) -> None:
    """Paint the hole in place: each pixel is the weighted mean of the patches over it, or the heaviest if `sharp`."""
    height, width, _ = level_hwD.shape
    sums_hwD, weight_hw = np.zeros((height, width, DEPTH), np.float32), np.zeros((height, width), np.float32)
    for n in range(len(targets_N2)):
        (y, x), (there_y, there_x), weight = targets_N2[n], match_N2[n], weight_N[n]
        for k in range(SIDE * SIDE):
            i, j = k // SIDE - RADIUS, k % SIDE - RADIUS
            if not hole_hw[y + i, x + j]:
                continue
            if not sharp:
                weight_hw[y + i, x + j] += weight
                for d in range(DEPTH):
                    sums_hwD[y + i, x + j, d] += weight * level_hwD[there_y + i, there_x + j, d]
            elif weight > weight_hw[y + i, x + j]:
                weight_hw[y + i, x + j] = weight
                for d in range(DEPTH):
                    sums_hwD[y + i, x + j, d] = weight * level_hwD[there_y + i, there_x + j, d]
    for y in range(height):
        for x in range(width):
            if weight_hw[y, x] > 0:
                for d in range(DEPTH):
                    level_hwD[y, x, d] = np.uint8(sums_hwD[y, x, d] / weight_hw[y, x] + np.float32(0.5))


def _textured(frame_HWC: np.ndarray, hole_HW: np.ndarray, window: int) -> np.ndarray:
    """Return float32 (H, W, 5): colors, and mean vertical and horizontal changes of known pixels in a window."""
    gray_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    planes = [frame_HWC.astype(np.float32)]
    for axis in (0, 1):
        ahead_HW, ahead_hole_HW = np.roll(gray_HW, -1, axis), np.roll(hole_HW, -1, axis)
        known_HW = (~(hole_HW | ahead_hole_HW)).astype(np.float32)
        known_HW[(-1, slice(None)) if axis == 0 else (slice(None), -1)] = 0
        changes_HW = cv2.blur(np.abs(ahead_HW - gray_HW) * known_HW, (window, window))
        texture_HW = changes_HW / np.maximum(cv2.blur(known_HW, (window, window)), 1e-6)
        planes.append(np.minimum(TEXTURE_WEIGHT * texture_HW, 255)[..., None])
    return np.concatenate(planes, axis=2)


def _pyramid(frame_HWC: np.ndarray, hole_HW: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (values_HWD float32, hole_HW) of each level, from the finest to one whose patches span the hole."""
    depth = float(cv2.distanceTransform(hole_HW.astype(np.uint8), cv2.DIST_L2, 3).max())
    sizes = [hole_HW.shape]
    while min(sizes[-1]) >= 2 * LEAST_SIDE and depth > RADIUS:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        depth /= 2
    levels = [(_textured(frame_HWC, hole_HW, 2 ** len(sizes) + 1), hole_HW)]
    for size in sizes[1:]:
        values_HWD, hole_HW = levels[-1]
        known_HW = (~hole_HW).astype(np.float32)
        share_HW = _scaled(known_HW, size)
        levels.append(
            (_scaled(values_HWD * known_HW[..., None], size) / np.maximum(share_HW, 1e-3)[..., None], share_HW < 0.5)
        )
    return levels


@dataclass(frozen=True, kw_only=True)
class _Level:
    """The patches of a level; coordinates include its margin."""

    hole_hw: np.ndarray
    source_hw: np.ndarray
    """Centers of patches that may be copied: within the frame and outside the hole."""
    sources_M2: np.ndarray
    targets_N2: np.ndarray
    """Centers of patches that touch the hole."""
    nearness_N: np.ndarray
    """Weight of each of these by its distance from the known area."""

    @classmethod
    def of(cls, hole_HW: np.ndarray) -> "_Level":
        """Find the patches around a hole."""
        near_HW = cv2.dilate(hole_HW.astype(np.uint8), np.ones((SIDE, SIDE), np.uint8)) > 0
        source_HW = ~near_HW
        source_HW[:RADIUS] = source_HW[-RADIUS:] = False
        source_HW[:, :RADIUS] = source_HW[:, -RADIUS:] = False
        depth_HW = cv2.distanceTransform(hole_HW.astype(np.uint8), cv2.DIST_L2, 3)
        return cls(
            hole_hw=np.pad(hole_HW, RADIUS),
            source_hw=np.pad(source_HW, RADIUS),
            sources_M2=np.argwhere(source_HW).astype(np.int32) + RADIUS,
            targets_N2=np.argwhere(near_HW).astype(np.int32) + RADIUS,
            nearness_N=np.maximum(NEARER ** -depth_HW[near_HW], LEAST_WEIGHT).astype(np.float32),
        )

    def anywhere(self) -> np.ndarray:
        """Return initial matches (N, 2), spread over the frame."""
        return self.sources_M2[np.arange(len(self.targets_N2)) * SPREAD % len(self.sources_M2)]

    def below(self, coarser: "_Level", match_N2: np.ndarray) -> np.ndarray:
        """Return matches (N, 2) from those of the coarser level, where they may be copied here too."""
        doubled_2 = np.zeros((*coarser.hole_hw.shape, 2), np.int32)  # at each place of the coarser level
        doubled_2[tuple(coarser.targets_N2.T)] = 2 * (match_N2 - RADIUS)
        inside_N2 = self.targets_N2 - RADIUS
        found_N2 = doubled_2[tuple((inside_N2 // 2 + RADIUS).T)] + inside_N2 % 2 + RADIUS
        found_N2 = np.minimum(found_N2, np.array(self.hole_hw.shape, np.int32) - 1)
        return np.where(self.source_hw[tuple(found_N2.T)][:, None], found_N2, self.anywhere())

    def weights(self, costs_N: np.ndarray) -> np.ndarray:
        """Return the weight (N,) of each patch, by its similarity to its match and its nearness to the known area."""
        spread = max(1.0, float(np.partition(costs_N, len(costs_N) * 3 // 4)[len(costs_N) * 3 // 4]))
        return (np.exp(-costs_N / (2 * spread)) * self.nearness_N + 1e-9).astype(np.float32)


def _margin(values_HWD: np.ndarray) -> np.ndarray:
    return np.pad(values_HWD, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="reflect")


def complete(frame_HWC: np.ndarray, hole_HW: np.ndarray) -> np.ndarray:
    """Fill a hole with patches of the rest of the frame, or smoothly if the rest is too small; deterministic.

    Args:
        frame_HWC: RGB uint8; pixels in the hole have no influence.
        hole_HW: bool.

    Returns:
        The filled frame; `frame_HWC` itself if there is no hole.
    """
    if not hole_HW.any():
        return frame_HWC
    picture_HWC = smoothed(frame_HWC, hole_HW)
    levels = [(values_HWD, hole, _Level.of(hole)) for values_HWD, hole in _pyramid(picture_HWC, hole_HW)]
    levels = list(takewhile(lambda each: len(each[2].sources_M2) >= LEAST_SOURCES, levels))
    coarser: _Level | None = None
    # From the coarsest level to the finest: start from the coarser result, then alternate search and vote.
    for k, (values_HWD, hole, level) in enumerate(reversed(levels)):
        finest = k == len(levels) - 1
        costs_N = np.zeros(len(level.targets_N2), np.int64)
        if coarser is None:
            match_N2 = level.anywhere()
            level_hwD = _margin(np.rint(pull_push(values_HWD, hole)).astype(np.uint8))
        else:
            match_N2 = level.below(coarser, match_N2)
            level_hwD = _margin(np.rint(values_HWD).astype(np.uint8))
            _vote(level_hwD, level.hole_hw, level.targets_N2, match_N2, level.nearness_N, False)
        rounds = VOTES[min(k, len(VOTES) - 1)]
        for round_ in range(rounds):
            level_hwD = _margin(level_hwD[RADIUS:-RADIUS, RADIUS:-RADIUS])
            _search(level_hwD, level.source_hw, level.targets_N2, match_N2, costs_N, 100 * k + round_)
            sharp = finest and round_ == rounds - 1
            _vote(level_hwD, level.hole_hw, level.targets_N2, match_N2, level.weights(costs_N), sharp)
        coarser = level
    if levels:
        picture_HWC[hole_HW] = level_hwD[RADIUS:-RADIUS, RADIUS:-RADIUS, :3][hole_HW]
    return picture_HWC
