"""Workers that fail: killed ones are replaced, broken ones are reported, a file that kills them is bad."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppma.config.loader import LoaderConfig
from ppma.loaders.decode.pool import IN_FLIGHT, WorkerPool
from ppma.loaders.decode.workers import Task
from ppma.loaders.samples import Sample, view_params

CONFIG = LoaderConfig(frames=2, size=16, short_side=20, views=1, workers=1, window_seconds=1.0)
VIEW_BYTES = 2 * 16 * 16 * 3


def task(ticket: int, path: Path) -> Task:
    view = view_params(0, 0, ticket, 0, 48, 64, CONFIG)
    draw = Sample(epoch=0, index=ticket, source=0, clip=0, start_seconds=0.0, end_seconds=1.0, views=(view,))
    return Task(ticket=ticket, path=str(path), draw=draw, product="views", codecs={}, offset=ticket * VIEW_BYTES)


def collected(pool: WorkerPool, count: int) -> dict[int, str]:
    replies = {}
    while len(replies) < count:
        replies |= {reply.ticket: reply.reason for reply in pool.replies()}
    return replies


@pytest.fixture
def at_most_a_minute():
    """Fail a test that waits for ever."""

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_views_arrive_in_shared_memory(tmp_path, write_clip):
    pool = WorkerPool(CONFIG, 2 * VIEW_BYTES)
    for ticket in range(2):
        pool.submit(task(ticket, write_clip(tmp_path / "clip.mp4", frames=20)))
    assert collected(pool, 2) == {0: "", 1: ""}
    assert np.frombuffer(pool.memory, np.uint8, count=2 * VIEW_BYTES).reshape(2, -1).any(axis=1).all()
    pool.close()
    pool.close()


def test_a_file_that_ends_its_worker_twice_is_bad_and_the_others_are_read(tmp_path, write_clip):
    """A folder whose frame is a pipe keeps the worker busy; each time it is there, it is killed."""
    (tmp_path / "deadly").mkdir()
    os.mkfifo(tmp_path / "deadly" / "000001.jpg")
    pool = WorkerPool(CONFIG, 2 * VIEW_BYTES)
    pool.submit(task(0, tmp_path / "deadly"))
    pool.submit(task(1, write_clip(tmp_path / "clip.mp4", frames=20)))
    killed = []

    def kill(*_):
        killed.append(pool.pids[0])
        os.kill(killed[-1], signal.SIGSEGV)
        if len(killed) < 2:
            signal.alarm(3)

    signal.signal(signal.SIGALRM, kill)
    signal.alarm(3)
    replies = collected(pool, 2)
    pool.close()
    assert replies == {0: "ended 2 workers (SIGSEGV)", 1: ""} and pool.restarts == 2


@pytest.mark.usefixtures("at_most_a_minute")
def test_hundreds_of_tasks_out_and_nobody_to_take_the_replies(tmp_path, write_clip):
    """More tasks than a pipe holds, and more bytes of replies: neither side waits for the other while it sends."""
    path = write_clip(tmp_path / "clip.mp4", frames=20)
    pool = WorkerPool(CONFIG, VIEW_BYTES)
    for ticket in range(1000):
        pool.submit(replace(task(ticket, path), product="input"))
    replies = collected(pool, 1000)
    assert list(replies) == list(range(1000)) and not any(replies.values()) and pool.restarts == 0
    pool.close()


@pytest.mark.usefixtures("at_most_a_minute")
def test_a_slow_file_holds_up_a_few_tasks_only(tmp_path, write_clip):
    """What waits behind it is read by the other worker."""
    (tmp_path / "slow").mkdir()
    os.mkfifo(tmp_path / "slow" / "000001.jpg")
    path = write_clip(tmp_path / "clip.mp4", frames=20)
    pool = WorkerPool(replace(CONFIG, workers=2), 40 * VIEW_BYTES)
    pool.submit(task(0, tmp_path / "slow"))
    for ticket in range(1, 40):
        pool.submit(task(ticket, path))
    assert set(collected(pool, 40 - IN_FLIGHT)) <= set(range(1, 40))
    (tmp_path / "slow" / "000001.jpg").write_bytes(b"no picture")
    assert collected(pool, IN_FLIGHT)[0]
    pool.close()


def test_a_pool_that_is_dropped_ends_its_workers():
    pool = WorkerPool(CONFIG, VIEW_BYTES)
    (pid,) = pool.pids
    del pool
    assert not Path(f"/proc/{pid}").exists()


def test_a_worker_with_a_defect_of_ours_is_no_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr("ppma.loaders.decode.pool.RUN_WORKER", "raise SystemExit(3)")
    pool = WorkerPool(CONFIG, VIEW_BYTES)
    with pytest.raises(RuntimeError, match="failed with code 3"):
        pool.submit(task(0, tmp_path / "any.mp4"))
        pool.replies()
    pool.close()


def test_memory_and_workers_are_given_back(tmp_path):
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        WorkerPool(CONFIG, VIEW_BYTES).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
