"""A line of metrics is of all ranks: a bad file counts once, the slowest rank counts, and one that holds up the others is named."""

import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from processes import on_ranks

from ppma.config.errors import InputError
from ppma.loaders.batch import ClipBatch, LoaderCounters
from ppma.training import distributed
from ppma.training.compute import Stopwatch, choose
from ppma.training.distributed import StopFlag
from ppma.training.monitor import Monitor
from ppma.training.run_folder import read_metrics
from ppma.training.speed import Speed, own_seconds
from ppma.training.tasks import ClassifyTask
from ppma.training.trainer import Trainer
from ppma.training.watchdog import Watchdog

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


def trainer(folder, **loader):
    config = tiny.shrink("align_nohuman_synthetic", log_every=4, pictures_every=0, run_dir=folder)
    config = replace(config, loader=replace(config.loader, **loader))
    task = ClassifyTask(config, [tiny.source(name) for name in config.sources])
    task.stream = lambda ranks, start: tiny.MadeStream(task, ranks, start)
    return Trainer(config, task, tiny.ALONE, choose(config.precision, tiny.ALONE.device))


@pytest.mark.promise("R7")
@pytest.mark.parametrize(("other", "stops"), [({"/b.mp4": "gone"}, True), ({"/a.mp4": "cut"}, False)])
def test_too_many_bad_files_on_all_ranks_together_stop_the_run(tmp_path, monkeypatch, other, stops):
    """One bad file is allowed. This rank has one, and so has another: the same, or a second one."""
    made = trainer(tmp_path, max_bad_fraction=1.5 / 64)
    monkeypatch.setattr(distributed, "gather_rows", lambda row, ranks: torch.cat([row, row]))
    monkeypatch.setattr(
        distributed, "gather_objects", lambda mine, ranks: [mine, other] if "/a.mp4" in mine else [mine]
    )
    counters = LoaderCounters(bad_files=1, bad={"/a.mp4": "cut"})
    monkeypatch.setattr(tiny, "ClipBatch", lambda **fields: ClipBatch(**fields, counters=counters))
    with Monitor(tmp_path, writes=True, total_steps=made.total_steps) as monitor:
        names = r"2 of 64 files.*/a\.mp4.*/b\.mp4"
        outcome = pytest.raises(InputError, match=names) if stops else contextlib.nullcontext()
        with outcome, contextlib.closing(StopFlag(tiny.ALONE)) as stop:
            made.run(monitor, stop, Watchdog(600, lambda code: None))
    assert made.step == (4 if stops else made.total_steps)
    assert read_metrics(tmp_path)[0]["data/bad_files"] == (2 if stops else 1)


SLOW_RANK = """
    import logging, sys, time
    from dataclasses import replace
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import tiny
    from ppma.training.compute import choose
    from ppma.training.distributed import StopFlag, session
    from ppma.training.monitor import Monitor
    from ppma.training.tasks import ClassifyTask
    from ppma.training.trainer import Trainer
    from ppma.training.watchdog import Watchdog

    class Slow(tiny.MadeStream):
        def __iter__(self):
            waited = 0.0
            for batch in super().__iter__():
                if self.ranks.rank == 1 and {why!r} == "data":
                    time.sleep(1)
                    waited += 1
                batch.counters.wait_seconds = waited
                yield batch

    with session("cpu") as ranks:
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        config = tiny.shrink("align_nohuman_synthetic", log_every=4, pictures_every=0, run_dir=Path({folder!r}))
        config = replace(config, optim=replace(config.optim, epochs=2))
        task = ClassifyTask(config, [tiny.source(name) for name in config.sources])
        task.stream = lambda ranks, start: Slow(task, ranks, start)
        made = Trainer(config, task, ranks, choose(config.precision, ranks.device))
        module = made._module
        if ranks.rank == 1 and {why!r} == "computing":
            made._module = lambda *inputs: (time.sleep(1), module(*inputs))[1]
        stop = StopFlag(ranks)
        with Monitor(config.run_dir, writes=ranks.is_main, total_steps=made.total_steps) as monitor:
            made.run(monitor, stop, Watchdog(600, lambda code: None))
        stop.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("why", ["data", "computing"])
def test_the_slower_of_two_ranks_is_named(tmp_path, why):
    code = SLOW_RANK.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), why=why)
    main, other = on_ranks(2, code, tmp_path, seconds=300)
    assert main.count("slower than the median rank") == 1 and f"rank 1 on {socket.gethostname()}" in main
    assert "slower" not in other
    rows = read_metrics(tmp_path)[1:]
    assert all(row["perf/slowest_rank"] == 1 and row["perf/slowest_rank_percent"] > 20 for row in rows)
    assert all((row["perf/stall_percent"] > 20) == (why == "data") for row in rows)
