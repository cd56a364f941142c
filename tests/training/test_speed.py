"""A line of metrics is of all ranks: a bad file counts once, the slowest rank counts, and one that holds up the others is named."""

import contextlib
import socket
import time
from dataclasses import replace

import pytest
import tiny
import torch
from processes import on_ranks

from ppma.config.errors import InputError
from ppma.loaders.batch import ClipBatch, LoaderCounters
from ppma.training import distributed
from ppma.training.compute import Stopwatch
from ppma.training.run_folder import read_metrics
from ppma.training.speed import Speed, own_seconds

GIB = 2**30
RANKS = replace(tiny.ALONE, world_size=4)


@pytest.fixture
def lines(monkeypatch):
    """A function that returns the values of a line of ten steps, from what each rank measured."""
    rows: list[tuple[float, ...]] = []
    monkeypatch.setattr(distributed, "gather_rows", lambda row, ranks: torch.tensor(rows, dtype=torch.float64))
    monkeypatch.setattr(distributed, "gather_objects", lambda mine, ranks: [f"node{rank // 2}" for rank in range(4)])
    meter = Speed(RANKS, Stopwatch(RANKS.device), batch=8, step=0, step_flops=1.0, peak_flops=1.0)

    def line(step, *measured):
        rows[:] = measured
        return meter.values(step, LoaderCounters())

    return line


def test_values_are_of_all_ranks(lines):
    seconds, waited, forward = 2.0, (0.1, 0.5, 0.1, 0.1), 0.3
    values = lines(10, *((seconds, w, forward, (rank + 1) * GIB, 0) for rank, w in enumerate(waited)))
    assert values["perf/clips_per_s"] == 40 and values["perf/stall_percent"] == 25
    assert values["perf/memory_gib"] == 4 and values["data/bad_files"] == 0
    assert values["perf/slowest_rank"] == 1


@pytest.mark.parametrize("why", ["data", "computing"])
def test_a_rank_that_holds_up_the_others_is_named_once_per_change(lines, caplog, why):
    def measured(excess):
        """Ten steps of 0.1 s; rank 2 needs `excess` seconds more for them, and the others wait for it."""
        slow = (excess, 0.3) if why == "data" else (0.0, 0.3 * (1 + excess))
        return [(1 + excess, *(slow if rank == 2 else (0.0, 0.3)), GIB, 0) for rank in range(4)]

    caplog.set_level("INFO")
    shown = []
    for step, excess in enumerate((5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.1, 0.1), 1):  # the first line compiles
        values = lines(10 * step, *measured(excess))
        shown.append((values["perf/slowest_rank_percent"] > 20, len(caplog.records)))
    assert [slow for slow, _ in shown] == [True, True, False, True, True, True, False, False, False, False]
    assert [records for _, records in shown] == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert "rank 2 on node1 is 50 % slower" in caplog.messages[0] and "rank 2 on node1" in caplog.messages[1]


def test_own_time_is_the_data_wait_and_the_computing():
    """Rank 0 computes for 6 s, rank 1 waits 4 s for data and computes for 6 s: a step takes 10 s on both."""
    assert own_seconds([10, 10], [0, 4], [2, 2]) == pytest.approx([6, 10])


@pytest.mark.promise("R7")
@pytest.mark.parametrize(("other", "stops"), [({"/b.mp4": "gone"}, True), ({"/a.mp4": "cut"}, False)])
def test_too_many_bad_files_on_all_ranks_together_stop_the_run(tmp_path, monkeypatch, other, stops):
    """One bad file is allowed. This rank has one, and so has another: the same, or a second one."""
    name = "align_nohuman_synthetic"
    made = tiny.trainer(name, tmp_path, loader=replace(tiny.shrink(name).loader, max_bad_fraction=1.5 / 64))
    monkeypatch.setattr(distributed, "gather_rows", lambda row, ranks: torch.cat([row, row]))
    monkeypatch.setattr(
        distributed, "gather_objects", lambda mine, ranks: [mine, other] if "/a.mp4" in mine else [mine]
    )
    counters = LoaderCounters(bad_files=1, bad={"/a.mp4": "cut"})
    monkeypatch.setattr(tiny, "ClipBatch", lambda **fields: ClipBatch(**fields, counters=counters))
    names = r"2 of 64 files.*/a\.mp4.*/b\.mp4"
    with pytest.raises(InputError, match=names) if stops else contextlib.nullcontext():
        tiny.loop(made)
    assert made.step == (4 if stops else made.total_steps)
    assert read_metrics(tmp_path)[0]["data/bad_files"] == (2 if stops else 1)


class Slow(tiny.MadeClips):
    """Rank 1 waits a second for each batch."""

    def __iter__(self):
        for number, batch in enumerate(super().__iter__(), 1):
            time.sleep(self.rank)
            batch.counters.wait_seconds = number * self.rank
            yield batch


def train_with_a_slow_rank(ranks, folder, why):
    name = "align_nohuman_synthetic"
    stream = Slow if why == "data" else tiny.MadeClips
    made = tiny.trainer(name, folder, ranks, stream=stream, optim=replace(tiny.shrink(name).optim, epochs=2))
    module = made._module
    if why == "computing":
        made._module = lambda *inputs: (time.sleep(ranks.rank), module(*inputs))[1]
    tiny.loop(made)


@pytest.mark.slow
@pytest.mark.parametrize("why", ["data", "computing"])
def test_the_slower_of_two_ranks_is_named(tmp_path, why):
    on_ranks(2, train_with_a_slow_rank, tmp_path, tmp_path, why)
    main, other = ((tmp_path / "logs" / f"{rank}.err").read_text() for rank in (0, 1))
    assert main.count("slower than the median rank") == 1 and f"rank 1 on {socket.gethostname()}" in main
    assert "slower" not in other
    rows = read_metrics(tmp_path)[1:]
    assert all(row["perf/slowest_rank"] == 1 and row["perf/slowest_rank_percent"] > 20 for row in rows)
    assert all((row["perf/stall_percent"] > 20) == (why == "data") for row in rows)
