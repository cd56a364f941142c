"""Decide which clip, which window and which views every step reads: the whole run as a pure function.

    (seed, epoch, index) and the manifests  ->  Sample

                 position in the run            counter of that source         window and views
    (epoch, i) ----------------------> source s ----------------------> clip c ------------------> Sample
                 exact shares per block        keyed permutation per pass      Philox by address
                                               (of all clips, or by shards)

A resume restores no state. World size matters only when a rank takes its share of a batch, so step k holds the same
samples on 1, 2 or 4 ranks. With more ranks than clips, several ranks load a clip and each trains on some of its views.
Memory does not grow with the number of clips.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np

from ppma.common.philox import Purpose, generator
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.loaders.samples import Box, Sample, evaluation_crops, scaled_size, view_params
from ppma.loaders.sources.manifest import Manifest

BLOCK = 4096
"""Groups over which the sources' shares hold exactly; a source's share is rounded to 1 / BLOCK."""

SHUFFLED_SHARDS = 64
"""Shards among which `loader.shuffle shards` shuffles clips: about 10,000 clips of Kinetics in 64 GB."""

_WORD = (1 << 64) - 1


def _window(source: Manifest, clip: int, config: LoaderConfig, place: float) -> tuple[float, float]:
    """Return [start, end) of a window; `place` runs from 0 (start of the clip) to 1. A short clip is one window."""
    begin, end = float(source.starts[clip]), float(source.ends[clip])
    seconds = config.window_seconds * (config.assumed_fps / float(source.fps[clip]) if config.assumed_fps else 1.0)
    start = begin + place * max(0.0, end - begin - seconds)
    return start, min(start + seconds, end)


def _frame_size(source: Manifest, clip: int) -> tuple[int, int]:
    return int(source.heights[clip]), int(source.widths[clip])


def _scramble(value: int, key: int, round_number: int) -> int:
    """Mix a Feistel half, a key and the round with one splitmix64 finalizer (Steele et al., OOPSLA 2014)."""
    z = (value * 0x9E3779B97F4A7C15 + key + round_number * 0xD1B54A32D192ED03) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def permuted(index: int, length: int, key: int) -> int:
    """Return the image of `index` under a keyed permutation of range(length), in constant time and memory.

    It is a Feistel network of eight rounds over the next power of four. A result beyond the range is permuted again
    (cycle walking), which keeps it a permutation and takes fewer than four turns on average.
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
    """Divide `total` in proportion to the weights, by largest remainder, with at least one each."""
    ideal = np.asarray(weights, dtype=np.float64) / np.sum(weights) * total
    counts = np.maximum(np.floor(ideal).astype(np.int64), 1)
    while (left := total - counts.sum()) != 0:
        remainder = ideal - counts
        best = int(np.argmax(remainder)) if left > 0 else int(np.argmin(np.where(counts > 1, remainder, np.inf)))
        counts[best] += 1 if left > 0 else -1
    return counts


class SourceMixer:
    """Map the position of a group in the run to its source and the number of earlier groups of that source.

    A group is one sample, or the samples of one global batch. Every block of BLOCK groups holds the exact share of each
    source, in an order that depends on (seed, block). So earlier groups are counted by arithmetic: resuming is free.
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
        """Return the source of a group and the group's index among that source's groups of the whole run."""
        block, offset = divmod(group, BLOCK)
        source_G, before_G = self._block(block)
        source = int(source_G[offset])
        return source, block * int(self._counts[source]) + int(before_G[offset])

    def before(self, group: int, source: int) -> int:
        """Return the number of groups of a source before a group of the run."""
        block, offset = divmod(group, BLOCK)
        return block * int(self._counts[source]) + int(np.count_nonzero(self._block(block)[0][:offset] == source))


class ClipOrder:
    """Map a place in a pass over a source to a clip: a permutation of all clips, keyed by the pass.

    Over a packed store it can go shard by shard: each pass permutes the shards, takes SHUFFLED_SHARDS at a time, and
    permutes the clips among these. A pass keeps 24 bytes for each shard; a place is found by bisection.
    """

    def __init__(self, source: Manifest, number: int, config: LoaderConfig, seed: int) -> None:
        self._clips, self._number, self._seed = len(source), number, seed
        shards = shard_rows(source) if config.shuffle == "shards" else [(0, len(source))]
        self._first_S, self._rows_S = np.array(shards, dtype=np.int64).T
        self._pass = lru_cache(maxsize=4)(self._make_pass)

    def _make_pass(self, pass_number: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the key of a pass, its order of shards, and the clips up to the end of each."""
        rng = generator(self._seed, Purpose.CLIP_ORDER, epoch=pass_number, sample=self._number)
        key = int(rng.integers(0, 1 << 63))
        order_S = np.arange(len(self._first_S))
        rng.shuffle(order_S)
        return key, order_S, np.cumsum(self._rows_S[order_S])

    def clip(self, index: int) -> int:
        """Return the clip at an index that counts on over all passes."""
        pass_number, place = divmod(index, self._clips)
        key, order_S, end_S = self._pass(pass_number)
        window = int(np.searchsorted(end_S, place, side="right")) // SHUFFLED_SHARDS
        begin = int(end_S[window * SHUFFLED_SHARDS - 1]) if window else 0
        end = int(end_S[min((window + 1) * SHUFFLED_SHARDS, len(end_S)) - 1])
        place = begin + permuted(place - begin, end - begin, key + window)
        turn = int(np.searchsorted(end_S, place, side="right"))
        shard = order_S[turn]
        return int(self._first_S[shard] + self._rows_S[shard] - (end_S[turn] - place))


def shard_rows(source: Manifest) -> list[tuple[int, int]]:
    """Return (first row, rows) of each shard of a packed source, without empty ones.

    Raises:
        InputError: The source is not packed, or its index lists other rows than it has.
    """
    if source.store is None:
        raise InputError(
            f"loader.shuffle shards reads packed stores, and {source.name} is not one; run `ppma pack {source.name}`, "
            "or use --loader.shuffle clips"
        )
    found = [(shard.first_row, shard.rows) for shard in source.store.index.shards if shard.rows]
    if sum(rows for _, rows in found) != len(source):
        raise InputError(f"{source.store.path}: its shards do not hold the {len(source)} rows; run ppma pack again")
    return found


class TrainingSampler:
    """Sample random windows and random views, epoch after epoch; every clip once in each pass over its source."""

    def __init__(
        self,
        sources: Sequence[Manifest],
        config: LoaderConfig,
        *,
        seed: int,
        batch_clips: int,
        unit_clips: int = 1,
        epoch_clips: int | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Check the sources and lay out the epochs.

        Args:
            sources: Manifests to mix.
            config: Window, views and augmentations.
            seed: Seed of the run.
            batch_clips: Global batch in clips; rows are clips x views.
            unit_clips: Clips that a rank loads together. With more ranks than units, several ranks load the same unit.
            epoch_clips: Samples of an epoch, rounded down to whole batches (all clips by default).
            weights: Relative share of each source (its number of clips by default).

        Raises:
            InputError: A source is empty, the weights do not fit, an epoch holds no whole batch, or `loader.shuffle` is
                shards and a source is not packed.
        """
        if not sources or any(len(source) == 0 for source in sources):
            raise InputError(f"a source has no clips: {[f'{s.name}: {len(s)}' for s in sources]}")
        if weights is not None and (len(weights) != len(sources) or min(weights) <= 0):
            raise InputError(f"weights {list(weights)} must be {len(sources)} positive numbers, one for each source")
        self.sources, self.config, self.seed, self.batch_clips = sources, config, seed, batch_clips
        self.views, self._units, self._unit_rows = config.views, batch_clips // unit_clips, unit_clips * config.views
        clips = epoch_clips or sum(len(source) for source in sources)
        self.steps_per_epoch = clips // batch_clips
        if self.steps_per_epoch == 0:
            raise InputError(f"an epoch of {clips} clips holds no whole batch of {batch_clips}; choose a smaller batch")
        self._mixer = SourceMixer(weights or [len(source) for source in sources], seed)
        self._group = batch_clips if config.mix == "batch" else 1
        self._orders = [ClipOrder(source, number, config, seed) for number, source in enumerate(sources)]
        self._shift = lru_cache(maxsize=4 * len(sources))(self._to_fresh_pass)

    def sample(self, epoch: int, index: int) -> Sample:
        """Return the sample at one place of one epoch: a pure function of the seed, the place and the manifests."""
        position = epoch * self.steps_per_epoch * self.batch_clips + index
        group, offset = divmod(position, self._group)
        source, groups_before = self._mixer.locate(group)
        place = groups_before * self._group + offset
        if self.config.reshuffle == "epoch":
            place += self._shift(epoch, source)
        return self._make_sample(epoch, index, source, self._orders[source].clip(place))

    def _to_fresh_pass(self, epoch: int, source: int) -> int:
        """Return what moves the first clip of a source in an epoch to the start of a pass that no other epoch uses."""
        clips, whole = self.steps_per_epoch * self.batch_clips, len(self.sources[source])
        used = self._mixer.before(epoch * clips // self._group, source) * self._group
        return epoch * -(-clips // whole) * whole - used

    def _make_sample(self, epoch: int, index: int, source: int, clip: int) -> Sample:
        manifest, config = self.sources[source], self.config
        place = generator(self.seed, Purpose.WINDOW, epoch=epoch, sample=index).random()
        start, end = _window(manifest, clip, config, place)
        size = _frame_size(manifest, clip)
        views = tuple(view_params(self.seed, epoch, index, view, *size, config) for view in range(config.views))
        return Sample(
            epoch=epoch, index=index, source=source, clip=clip, start_seconds=start, end_seconds=end, views=views
        )

    def samples(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> list[Sample]:
        """Return the samples of one rank at one step: a contiguous share of the global batch."""
        shared = max(1, world_size // self._units)
        assert self.batch_clips * shared % world_size == 0
        local = self.batch_clips * shared // world_size
        first = step * self.batch_clips + rank // shared * local
        return [self.sample(epoch, index) for index in range(first, first + local)]

    def rows(self, rank: int, world_size: int) -> slice:
        """Return which of the rows that a rank loads it trains on: its share, where several ranks load the same ones."""
        shared = world_size // self._units
        if shared < 2:
            return slice(None)
        own = self._unit_rows // shared
        return slice(rank % shared * own, (rank % shared + 1) * own)

    def replacement(self, sample: Sample, attempt: int) -> Sample:
        """Return another clip of the same source, from the RNG stream for replacements; `attempt` counts from 0."""
        rng = generator(self.seed, Purpose.REPLACE, epoch=sample.epoch, sample=sample.index, view=attempt)
        clip = int(rng.integers(len(self.sources[sample.source])))
        return self._make_sample(sample.epoch, sample.index, sample.source, clip)


class EvaluationSampler:
    """List every clip once and in order, with evenly placed windows and fixed crops (paper: 2 windows x 3 crops).

    One window is the middle of the clip; with two, one is at its start and one at its end, or where pytorchvideo has it.
    A batch holds the same clips at any world size, so that its results are the same to the bit: ranks take whole batches
    in turn, and each clip is seen exactly once. The last batch may be short, and a rank may have none.
    """

    def __init__(
        self,
        source: Manifest,
        config: LoaderConfig,
        *,
        batch_clips: int,
        windows: int = 2,
        last_window: Literal["end", "pytorchvideo"] = "end",
        crops: int = 3,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> None:
        """Check the numbers.

        Args:
            source: Manifest to evaluate on.
            config: Window length, frames and size of the views.
            batch_clips: Clips of a batch of one rank; rows are clips x windows x crops.
            windows: Windows of each clip.
            last_window: As in EvaluationConfig.
            crops: Spatial crops of each window: 1 (center) or 3 (both ends and the center).
            seed: Seed of the row keys.
            done: Numbers of the batches to leave out.

        Raises:
            InputError: The manifest is empty, or `windows` or `crops` is out of range.
        """
        if len(source) == 0:
            raise InputError(f"{source.name}: the manifest has no clips")
        if crops not in (1, 3):
            raise InputError(f"crops is {crops}; it must be 1 (the center) or 3 (both ends and the center)")
        if windows < 1:
            raise InputError(f"windows is {windows}; it must be at least 1")
        self.source, self.config, self.seed = source, config, seed
        self.batch_clips, self.windows, self.last_window, self.crops = batch_clips, windows, last_window, crops
        self.views = crops
        self._numbers = [number for number in range(-(-len(source) // batch_clips)) if number not in done]
        self.steps_per_epoch = len(self._numbers)
        """Steps of one rank; of N ranks, those behind the first N-th are empty."""

    def sample(self, clip: int, window: int) -> Sample:
        """Return one window of one clip with its crops."""
        size, config = _frame_size(self.source, clip), self.config
        boxes: Sequence[Box] = evaluation_crops(*scaled_size(*size, config.short_side), config.size)
        spread = 0.5 if self.windows == 1 else window / (self.windows - 1)
        place = spread if self.last_window == "end" else window / self.windows
        start, end = _window(self.source, clip, config, place)
        index = clip * self.windows + window
        views = tuple(
            view_params(self.seed, 0, index, view, *size, config, crop=box)
            for view, box in enumerate(boxes if self.crops == 3 else boxes[1:2])
        )
        return Sample(epoch=0, index=index, source=0, clip=clip, start_seconds=start, end_seconds=end, views=views)

    def samples(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> list[Sample]:
        """Return the samples of one rank at one step, the windows of a clip adjacent."""
        place = step * world_size + rank
        if place >= len(self._numbers):
            return []
        first = self._numbers[place] * self.batch_clips
        clips = range(first, min(first + self.batch_clips, len(self.source)))
        return [self.sample(clip, window) for clip in clips for window in range(self.windows)]

    def replacement(self, sample: Sample, attempt: int) -> Sample | None:
        """Return None: an evaluation replaces nothing."""
        return None


Batches: TypeAlias = TrainingSampler | EvaluationSampler
"""What a stream reads."""
