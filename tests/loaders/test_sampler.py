"""The sampler is arithmetic: a step's samples do not depend on ranks, resume points or earlier calls."""

import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.loaders.sampler import (
    BLOCK,
    SHUFFLED_SHARDS,
    EvaluationSampler,
    SourceMixer,
    TrainingSampler,
    _window,
    permuted,
    shares,
)
from ppma.loaders.samples import frames_in_window


class Table:
    """The columns of a manifest that a sampler reads."""

    def __init__(self, clips, seconds=10.0, rate=30.0):
        self.name, self.clips, self.fps = "source", clips, np.full(clips, rate)
        self.widths, self.heights = np.full(clips, 320), np.full(clips, 240)
        self.starts, self.ends = np.zeros(clips), np.full(clips, seconds)

    def __len__(self):
        return self.clips


CONFIG = LoaderConfig(views=2, frames=4, size=32, short_side=40)


def sampler(*clips, batch_clips=8, config=CONFIG, **more):
    return TrainingSampler([Table(n) for n in clips], config, seed=3, batch_clips=batch_clips, **more)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 1000])
def test_permuted_is_a_permutation_that_the_key_changes(length):
    images = [[permuted(i, length, key) for i in range(length)] for key in (1, 2)]
    assert all(sorted(image) == list(range(length)) for image in images)
    if length >= 16:
        assert images[0] != images[1] and images[0] != list(range(length))


def test_permuted_spreads_evenly():
    """Over keys, all places are equally likely: chi-squared over 12 x 12 cells, 121 degrees of freedom, 99.99 % at 185."""
    keys, n = 2000, 12
    counts = np.zeros((n, n))
    for key in range(keys):
        for i in range(n):
            counts[i, permuted(i, n, key * 7919)] += 1
    expected = keys / n
    assert ((counts - expected) ** 2 / expected).sum() < 185


def test_shares_are_exact_and_at_least_one():
    assert list(shares([1, 1], 10)) == [5, 5]
    assert list(shares([3, 1], 8)) == [6, 2]
    assert list(shares([10_000, 1, 1], 16)) == [14, 1, 1]


def test_sources_mix_in_proportion_to_their_weights_in_every_block():
    mixer = SourceMixer([3.0, 1.0], seed=0)
    for block in range(3):
        counts = Counter(mixer.locate(block * BLOCK + i)[0] for i in range(BLOCK))
        assert counts == {0: BLOCK * 3 // 4, 1: BLOCK // 4}
    # and not in stripes: the longest run of one source in a fair shuffle of 3:1 stays short
    order = [mixer.locate(i)[0] for i in range(200)]
    assert 20 < sum(order) < 80


def test_groups_of_a_source_are_counted_without_gaps():
    mixer = SourceMixer([2.0, 5.0], seed=4)
    seen = {0: [], 1: []}
    for group in range(2 * BLOCK):
        source, before = mixer.locate(group)
        seen[source].append(before)
    assert all(counts == list(range(len(counts))) for counts in seen.values())


@pytest.mark.parametrize("mix", ["sample", "batch"])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_every_clip_exactly_once_in_each_pass_over_its_source(mix, weights):
    chosen = sampler(37, 11, config=replace(CONFIG, mix=mix), weights=weights)
    drawn = {0: [], 1: []}
    for epoch in range(20):
        for index in range(chosen.steps_per_epoch * 8):
            sample = chosen.sample(epoch, index)
            drawn[sample.source].append(sample.clip)
    for source, clips in ((0, 37), (1, 11)):
        passes = [drawn[source][i : i + clips] for i in range(0, len(drawn[source]) - clips + 1, clips)]
        assert len(passes) > 5
        assert all(sorted(one) == list(range(clips)) for one in passes)
        assert passes[0] != passes[1]


@pytest.mark.parametrize(("world_size", "unit_clips"), [(4, 1), (16, 1), (8, 2), (16, 2)])
def test_ranks_beyond_the_clips_share_their_rows(world_size, unit_clips):
    """Eight clips of two views: the rows of all ranks together are those of one rank, in order."""
    chosen = sampler(37, unit_clips=unit_clips)
    found = []
    for rank in range(world_size):
        samples = chosen.samples(1, 2, rank, world_size)
        assert len(samples) % unit_clips == 0
        loaded = [view for sample in samples for view in sample.views]
        found += loaded[chosen.rows(rank, world_size)]
    assert found == [view for sample in chosen.samples(1, 2) for view in sample.views]


def packed_sampler(rows, clips=None, mix="sample", batch_clips=8, others=()):
    """A sampler over stores of shards with so many rows each, shuffled by shards; no file is read."""
    tables = []
    for counts in (rows, *others):
        table, firsts = Table(clips or sum(counts)), np.cumsum([0, *counts])
        shards = tuple(SimpleNamespace(first_row=int(f), rows=n) for f, n in zip(firsts, counts))
        table.store = SimpleNamespace(path=Path("s.beton"), index=SimpleNamespace(shards=shards))
        tables.append(table)
    return TrainingSampler(tables, replace(CONFIG, shuffle="shards", mix=mix), seed=3, batch_clips=batch_clips)


@pytest.mark.parametrize("mix", ["sample", "batch"])
def test_by_shards_every_clip_exactly_once_in_each_pass(mix):
    chosen = packed_sampler([5] * 100 + [0, 1, 3], mix=mix, others=([7] * 3,))
    drawn = {0: [], 1: []}
    for index in range(4 * 525):
        sample = chosen.sample(0, index)
        drawn[sample.source].append(sample.clip)
    for source, clips in ((0, 504), (1, 21)):
        passes = [drawn[source][i : i + clips] for i in range(0, len(drawn[source]) - clips + 1, clips)]
        assert len(passes) >= 3 and all(sorted(one) == list(range(clips)) for one in passes)
        assert passes[0] != passes[1]


def test_by_shards_few_files_are_read_at_a_time_and_their_clips_are_mixed():
    chosen = packed_sampler([10] * 192, batch_clips=64)
    shards = [sample.clip // 10 for step in range(30) for sample in chosen.samples(0, step)]
    windows = [shards[i : i + 640] for i in range(0, 1920, 640)]
    assert all(len(set(one)) == SHUFFLED_SHARDS for one in windows)
    assert all(len(set(one[:64])) > 25 for one in windows)  # a batch is not a few shards: at random 40 are expected
    assert windows[0] != sorted(windows[0]) and set(windows[0]) != set(range(SHUFFLED_SHARDS))


def test_by_shards_a_step_is_the_same_on_any_ranks_and_after_a_resume():
    whole = packed_sampler([9] * 200).samples(3, 17)
    ranks = packed_sampler([9] * 200)
    assert [sample for rank in range(4) for sample in ranks.samples(3, 17, rank, 4)] == whole


def test_a_source_that_is_not_packed_has_no_shards():
    table = Table(64)
    table.store = None
    with pytest.raises(InputError, match="pack"):
        TrainingSampler([table], replace(CONFIG, shuffle="shards"), seed=3, batch_clips=8)
    with pytest.raises(InputError, match="pack"):
        packed_sampler([5, 5], clips=11)


def test_every_epoch_takes_a_fresh_random_quarter_of_each_source():
    """As published in stage 1 (Q10). A pass that goes on over the epochs takes the clips left over instead."""
    repeated = {}
    for reshuffle in ("epoch", "pass"):
        made = sampler(400, 200, config=replace(CONFIG, mix="batch", reshuffle=reshuffle), epoch_clips=152)
        drawn = [[made.sample(epoch, i) for i in range(152)] for epoch in range(6)]
        clips = [[s.clip for s in one if s.source == 0] for one in drawn]
        assert reshuffle == "pass" or all(len(one) == len(set(one)) > 40 for one in clips)
        repeated[reshuffle] = np.mean([len({*one} & {*after}) / len(after) for one, after in itertools.pairwise(clips)])
    # as often as chance has it, and only where one pass ends and the next begins
    assert 0.15 < repeated["epoch"] < 0.35 and repeated["pass"] < 0.1


def test_batches_of_one_source():
    chosen = sampler(40, 40, config=replace(CONFIG, mix="batch"))
    per_step = [{d.source for d in chosen.samples(e, s)} for e in range(6) for s in range(chosen.steps_per_epoch)]
    assert all(len(sources) == 1 for sources in per_step) and set.union(*per_step) == {0, 1}


DRAW = """
import random, sys
from tests.loaders.test_sampler import sampler

places = [(epoch, index) for epoch in range(int(sys.argv[1]) // 1000) for index in range(1000)]
random.shuffle(places)
other = sampler(1000, 300)
drawn = {place: other.sample(*place) for place in places}
sys.stdout.write(repr([drawn[place] for place in sorted(places)]))
"""


@pytest.mark.promise("R14")
@pytest.mark.parametrize("samples", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_another_process_in_another_order_draws_the_same(samples, figure):
    """Nothing but (seed, epoch, index) decides: not the calls before, not the hash seed of Python, not the threads."""
    command = [sys.executable, "-c", DRAW, str(samples)]
    roots = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "PYTHONPATH": roots}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    one = sampler(1000, 300)
    drawn = [one.sample(epoch, index) for epoch in range(samples // 1000) for index in range(1000)]
    assert repr(drawn) == found
    figure("R14", f"0 of {samples:,} samples differ in another process, drawn in another order")


@pytest.mark.promise("R2")
def test_ranks_and_resumes_change_no_batch(figure):
    """The ranks of any world size share the global batch of one rank, also when they start in the middle."""
    whole = [sampler(50, 20).samples(e, s) for e in range(3) for s in range(8)]
    cuts, world_sizes = (0, 1, 7, 13, 23), (1, 2, 4)
    for world_size in world_sizes:
        for cut in cuts:
            ranks = [sampler(50, 20) for _ in range(world_size)]
            for i in range(cut, 24):
                parts = [own.samples(i // 8, i % 8, rank, world_size) for rank, own in enumerate(ranks)]
                assert [sample for part in parts for sample in part] == whole[i], (world_size, cut, i)
    figure("R2", f"{len(cuts)} cuts x {'/'.join(map(str, world_sizes))} ranks: 0 samples differ")


def test_windows_are_inside_the_clip_and_cover_it():
    chosen = sampler(64)
    samples = [chosen.sample(e, i) for e in range(10) for i in range(64)]
    starts = np.array([d.start_seconds for d in samples])
    assert starts.min() >= 0 and starts.max() <= 10 - 2.7
    assert all(d.end_seconds == pytest.approx(d.start_seconds + 2.7) for d in samples)
    assert starts.std() == pytest.approx(7.3 / 12**0.5, rel=0.1)  # uniform


def test_a_short_clip_is_one_window_and_a_segment_stays_inside():
    table = Table(4, seconds=1.0)
    table.starts[:], table.ends[:] = 5.0, 6.0
    sample = TrainingSampler([table], CONFIG, seed=0, batch_clips=4).sample(0, 0)
    assert (sample.start_seconds, sample.end_seconds) == (5.0, 6.0)


def test_replacements_come_from_the_same_source_and_differ():
    chosen = sampler(100, 30)
    sample = chosen.sample(2, 5)
    others = [chosen.replacement(sample, attempt) for attempt in range(8)]
    assert {o.source for o in others} == {sample.source} and len({o.clip for o in others}) > 4
    assert others[0] == sampler(100, 30).replacement(sample, 0)
    assert others[0].views[0].key == sample.views[0].key  # the row keeps its own random numbers


@pytest.mark.promise("R8")
def test_every_number_of_clips_is_complete_on_every_number_of_ranks(figure):
    config, combinations, wrong = replace(CONFIG, short_side=32), 0, 0
    for clips, batch, ranks in itertools.product((1, 2, 7, 31, 97), (1, 4, 16), (1, 2, 3, 4, 5, 8, 64)):
        chosen = EvaluationSampler(Table(clips), config, batch_clips=batch, windows=1, crops=1)
        places = [(step, rank) for step in range(chosen.steps_per_epoch) for rank in range(ranks)]
        seen = [sample.clip for step, rank in places for sample in chosen.samples(0, step, rank, ranks)]
        wrong += sorted(seen) != list(range(clips))
        combinations += 1
    figure("R8", f"{wrong} of {combinations} numbers of clips, batch and ranks (1 to 64) miss or repeat a clip")
    assert not wrong


@pytest.mark.promise("R8")
@pytest.mark.parametrize(("clips", "batch", "world_size"), [(7, 4, 1), (7, 4, 3), (2, 8, 4)])
def test_evaluation_sees_every_clip_once(clips, batch, world_size):
    chosen = EvaluationSampler(Table(clips), replace(CONFIG, short_side=32), batch_clips=batch)
    samples = [
        d for s in range(chosen.steps_per_epoch) for r in range(world_size) for d in chosen.samples(0, s, r, world_size)
    ]
    assert Counter(d.clip for d in samples) == dict.fromkeys(range(clips), 2)
    assert all(len(d.views) == 3 and not d.views[0].ops for d in samples)
    first = chosen.sample(0, 0), chosen.sample(0, 1)
    assert [round(d.start_seconds, 6) for d in first] == [0.0, 7.3]
    assert [v.crop for v in first[0].views] == [(0, 0, 32, 32), (0, 5, 32, 32), (0, 10, 32, 32)]


@pytest.mark.parametrize(
    ("last_window", "starts"), [("end", [0.0, 3.65, 7.3]), ("pytorchvideo", [0.0, 7.3 / 3, 14.6 / 3])]
)
def test_windows_reach_the_end_or_start_in_equal_steps_as_in_pytorchvideo(last_window, starts):
    chosen = EvaluationSampler(Table(1), CONFIG, batch_clips=1, windows=3, last_window=last_window)
    assert [chosen.sample(0, window).start_seconds for window in range(3)] == pytest.approx(starts)


def test_videos_taken_for_folders_of_frames_show_the_frames_that_the_folders_would():
    folder, video = (Table(1, seconds=300 / rate, rate=rate) for rate in (25.0, 30.0))
    as_folder, samplers = replace(CONFIG, assumed_fps=25.0), []
    for table in (folder, video):
        evaluation = EvaluationSampler(table, as_folder, batch_clips=1)
        training = TrainingSampler([table], as_folder, seed=3, batch_clips=1)
        samplers.append([evaluation.sample(0, 0), evaluation.sample(0, 1), *(training.sample(e, 0) for e in range(20))])
    seen = [
        [frames_in_window(np.arange(300) / table.fps[0], s.start_seconds, s.end_seconds) for s in samples]
        for table, samples in zip((folder, video), samplers)
    ]
    assert seen[0] == seen[1] and seen[0][0] == (0, 68)  # 2.7 s x 25 frames/s


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(60)])
@pytest.mark.parametrize("place", [Fraction(0), Fraction(1, 2), Fraction(1)])
def test_a_window_has_the_frames_of_its_decimal_length(rate, place):
    """27/10 s at 30 frames/s are 81 frames; Fraction(2.7), the nearest binary number, is a little longer and takes in an 82nd."""
    for count in range(1, 400):
        table = Table(1, seconds=round(float(count / rate), 6), rate=float(rate))
        start = max(Fraction(0), count / rate - Fraction(27, 10)) * place
        expected = math.ceil(start * rate), min(count, math.ceil((start + Fraction(27, 10)) * rate))
        window = _window(table, 0, LoaderConfig(), float(place))
        assert frames_in_window(np.arange(count) / float(rate), *window) == expected, count


def test_wrong_input_is_named():
    with pytest.raises(InputError, match="no clips"):
        sampler(10, 0)
    with pytest.raises(InputError, match="no whole batch of 8"):
        sampler(5)
    with pytest.raises(InputError, match="weights"):
        sampler(10, 10, weights=[1.0])
    with pytest.raises(InputError, match="crops is 2"):
        EvaluationSampler(Table(3), CONFIG, batch_clips=1, crops=2)
