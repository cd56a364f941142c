"""Which clips, which windows, which views: the whole run as a pure function.

    (seed, epoch, index) and the manifests  ->  Sample

                 position in the run            one source's own counter        window and views
    (epoch, i) ----------------------> source s ----------------------> clip c ------------------> Sample
                 fixed shares a block           keyed permutation a pass        Philox by address

Nothing here has state that a resume would have to restore. World size and worker count enter only when a rank picks its share of a
batch, so step k of a run holds the same samples on 1, 2 or 4 ranks. Memory does not grow with the number of clips.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from ppma.common.philox import Purpose, generator
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.loaders.samples import Sample, evaluation_crops, scaled_size, view_params

BLOCK = 4096
"""Groups over which the sources' shares hold exactly; a source's share is rounded to 1 / BLOCK."""

_WORD = (1 << 64) - 1


class ClipTable(Protocol):
    """The columns of a manifest that sampling needs (`ppma.loaders.sources.manifest.Manifest` has them)."""

    name: str
    heights: np.ndarray
    """Upright, in pixels."""
    widths: np.ndarray
    starts: np.ndarray
    """Seconds into the file at which a clip begins."""
    ends: np.ndarray
    """Seconds into the file at which it is over."""

    def __len__(self) -> int: ...


def _size(table: ClipTable, row: int) -> tuple[int, int]:
    return int(table.heights[row]), int(table.widths[row])


def _place_window(table: ClipTable, row: int, window_seconds: float, place: float) -> tuple[float, float]:
    """[start, end) of a window, `place` from 0 (the beginning of the clip) to 1 (its end); a short clip is one window."""
    begin, end = float(table.starts[row]), float(table.ends[row])
    start = begin + place * max(0.0, end - begin - window_seconds)
    return start, min(start + window_seconds, end)


class Batches(Protocol):
    """What a stream asks for: the samples of one rank at one step."""

    steps_per_epoch: int
    views: int

    def samples(self, epoch: int, step: int, rank: int, world_size: int) -> list[Sample]: ...

    def replacement(self, draw: Sample, attempt: int) -> Sample | None:
        """The sample that takes the place of one that cannot be decoded; None where nothing may be replaced."""


def _scramble(value: int, key: int, round_number: int) -> int:
    """One splitmix64 finaliser (Steele et al., OOPSLA 2014) of a Feistel half, a key and the round."""
    z = (value * 0x9E3779B97F4A7C15 + key + round_number * 0xD1B54A32D192ED03) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def permuted(index: int, length: int, key: int) -> int:
    """Where a keyed permutation of range(length) sends `index`: constant time, no table.

    A Feistel network of eight rounds over the next power of four; results beyond the range are sent round again (cycle walking), which
    keeps it a permutation and takes fewer than four turns on average.
    """
    assert 0 <= index < length
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    low = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & low
        for round_number in range(8):
            left, right = right, left ^ (_scramble(right, key, round_number) & low)
        index = (left << half_bits) | right
        if index < length:
            return index


def shares(weights: Sequence[float], total: int) -> np.ndarray:
    """`total` divided in proportion to the weights, by largest remainder; every source gets at least one."""
    ideal = np.asarray(weights, dtype=np.float64) / np.sum(weights) * total
    counts = np.maximum(np.floor(ideal).astype(np.int64), 1)
    while (left := total - counts.sum()) != 0:
        remainder = ideal - counts
        best = int(np.argmax(remainder)) if left > 0 else int(np.argmin(np.where(counts > 1, remainder, np.inf)))
        counts[best] += 1 if left > 0 else -1
    return counts


class SourceMixer:
    """Position of a group in the run -> (source, how many groups of that source came before).

    A group is one sample, or the samples of one global batch. In every block of BLOCK groups each source has its exact share, in an
    order drawn from (seed, block); so the count before a position is arithmetic, and resuming costs nothing.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self._counts = shares(weights, BLOCK) if len(weights) > 1 else np.array([BLOCK])
        self._seed = seed
        self._block = lru_cache(maxsize=4)(self._make_block)

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        source_G = np.repeat(np.arange(len(self._counts)), self._counts)
        if len(self._counts) > 1:
            generator(self._seed, Purpose.SOURCE_ORDER, sample=block).shuffle(source_G)
        before_G = np.empty(BLOCK, dtype=np.int64)
        for source, count in enumerate(self._counts):
            before_G[source_G == source] = np.arange(count)
        return source_G, before_G

    def locate(self, group: int) -> tuple[int, int]:
        """The source of a group and its index among that source's groups, counted over the whole run."""
        block, offset = divmod(group, BLOCK)
        source_G, before_G = self._block(block)
        source = int(source_G[offset])
        return source, block * int(self._counts[source]) + int(before_G[offset])


class TrainingSampler:
    """Endless epochs of random windows and random views.

    `batch_clips` is the global batch in clips (rows are clips x views). An epoch is `epoch_clips` samples, rounded down to whole
    batches. Weights default to the sources' lengths; every clip of a source appears exactly once in each pass over that source.
    """

    def __init__(
        self,
        sources: Sequence[ClipTable],
        config: LoaderConfig,
        *,
        seed: int,
        batch_clips: int,
        epoch_clips: int | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        if not sources or any(len(source) == 0 for source in sources):
            raise InputError(f"a source has no clips: {[f'{s.name}: {len(s)}' for s in sources]}")
        if weights is not None and (len(weights) != len(sources) or min(weights) <= 0):
            raise InputError(
                f"weights {list(weights)} must be one positive number for each of the {len(sources)} sources"
            )
        self.sources, self.config, self.seed, self.batch_clips = sources, config, seed, batch_clips
        self.views = config.views
        clips = epoch_clips or sum(len(source) for source in sources)
        self.steps_per_epoch = clips // batch_clips
        if self.steps_per_epoch == 0:
            raise InputError(
                f"an epoch of {clips} clips holds no whole batch of {batch_clips} clips; choose a smaller batch"
            )
        self._mixer = SourceMixer(weights or [len(source) for source in sources], seed)
        self._group = batch_clips if config.mix == "batch" else 1
        self._pass_key = lru_cache(maxsize=4 * len(sources))(self._draw_pass_key)

    def _draw_pass_key(self, source: int, pass_number: int) -> int:
        return int(generator(self.seed, Purpose.CLIP_ORDER, epoch=pass_number, sample=source).integers(0, 1 << 63))

    def _clip(self, epoch: int, index: int) -> tuple[int, int]:
        position = epoch * self.steps_per_epoch * self.batch_clips + index
        group, offset = divmod(position, self._group)
        source, groups_before = self._mixer.locate(group)
        pass_number, place = divmod(groups_before * self._group + offset, len(self.sources[source]))
        return source, permuted(place, len(self.sources[source]), self._pass_key(source, pass_number))

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample at one place of one epoch; a pure function of the seed, the place and the manifests."""
        return self._draw(epoch, index, *self._clip(epoch, index))

    def _draw(self, epoch: int, index: int, source: int, clip: int) -> Sample:
        table, config = self.sources[source], self.config
        place = generator(self.seed, Purpose.WINDOW, epoch=epoch, sample=index).random()
        start, end = _place_window(table, clip, config.window_seconds, place)
        size = _size(table, clip)
        return Sample(
            epoch=epoch,
            index=index,
            source=source,
            clip=clip,
            start_seconds=start,
            end_seconds=end,
            views=tuple(view_params(self.seed, epoch, index, v, *size, config) for v in range(config.views)),
        )

    def samples(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> list[Sample]:
        """The samples of one rank at one step: a contiguous part of the global batch."""
        assert self.batch_clips % world_size == 0
        local = self.batch_clips // world_size
        first = step * self.batch_clips + rank * local
        return [self.sample(epoch, index) for index in range(first, first + local)]

    def replacement(self, draw: Sample, attempt: int) -> Sample:
        """Another clip of the same source, drawn from the stream kept for that; attempt counts from 0."""
        rng = generator(self.seed, Purpose.REPLACE, epoch=draw.epoch, sample=draw.index, view=attempt)
        clip = int(rng.integers(len(self.sources[draw.source])))
        return self._draw(draw.epoch, draw.index, draw.source, clip)


class EvaluationSampler:
    """Every listed clip once and in order: `windows` evenly placed windows, each with `crops` spatial crops (paper: 2 x 3).

    One window is the middle of the video; with two, one is at its start and one at its end. Ranks take every world_size-th clip, so no clip
    is seen twice and none is missed; the last batches may be short, and a rank may have none. Nothing is ever replaced.
    """

    def __init__(
        self,
        source: ClipTable,
        config: LoaderConfig,
        *,
        batch_clips: int,
        windows: int = 2,
        crops: int = 3,
        seed: int = 0,
    ) -> None:
        if len(source) == 0:
            raise InputError(f"{source.name}: the manifest has no clips")
        if crops not in (1, 3):
            raise InputError(f"crops is {crops}; it must be 1 (the centre) or 3 (both ends and the centre)")
        if windows < 1:
            raise InputError(f"windows is {windows}; it must be at least 1")
        self.source, self.config, self.seed = source, config, seed
        self.batch_clips, self.windows, self.crops = batch_clips, windows, crops
        self.views = crops
        self.steps_per_epoch = -(-len(source) // batch_clips)

    def sample(self, clip: int, window: int) -> Sample:
        """One window of one clip with its crops."""
        size, config = _size(self.source, clip), self.config
        boxes = list(evaluation_crops(*scaled_size(*size, config.short_side), config.size))
        boxes = boxes if self.crops == 3 else boxes[1:2]
        place = 0.5 if self.windows == 1 else window / (self.windows - 1)
        start, end = _place_window(self.source, clip, config.window_seconds, place)
        index = clip * self.windows + window
        views = tuple(view_params(self.seed, 0, index, view, *size, config, crop=box) for view, box in enumerate(boxes))
        return Sample(epoch=0, index=index, source=0, clip=clip, start_seconds=start, end_seconds=end, views=views)

    def samples(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> list[Sample]:
        """The samples of one rank: all windows of its clips, windows of a clip adjacent."""
        clips = range(step * self.batch_clips + rank, min((step + 1) * self.batch_clips, len(self.source)), world_size)
        return [self.sample(clip, window) for clip in clips for window in range(self.windows)]

    def replacement(self, draw: Sample, attempt: int) -> None:
        """Nothing is replaced in an evaluation."""
        return
