"""Workers that fail: killed ones are replaced, broken ones are reported, a file that kills them is bad."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from ppma.loaders.config import LoaderConfig
from ppma.loaders.draws import SampleDraw, draw_view
from ppma.loaders.pool import WorkerPool
from ppma.loaders.worker import Task

CONFIG = LoaderConfig(frames=2, size=16, short_side=20, views=1, workers=1, window_seconds=1.0)
VIEW_BYTES = 2 * 16 * 16 * 3


def task(ticket: int, path: Path) -> Task:
    view = draw_view(0, 0, ticket, 0, 48, 64, CONFIG)
    draw = SampleDraw(epoch=0, index=ticket, source=0, clip=0, start_seconds=0.0, end_seconds=1.0, views=(view,))
    return Task(ticket=ticket, path=str(path), draw=draw, product="views", codecs=(), offset=ticket * VIEW_BYTES)


def collected(pool: WorkerPool, count: int) -> dict[int, str]:
    replies = {}
    while len(replies) < count:
        replies |= {reply.ticket: reply.reason for reply in pool.replies()}
    return replies


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
        killed.append(pool._workers[0].process.pid)
        os.kill(killed[-1], signal.SIGSEGV)
        if len(killed) < 2:
            signal.alarm(3)

    signal.signal(signal.SIGALRM, kill)
    signal.alarm(3)
    replies = collected(pool, 2)
    pool.close()
    assert replies == {0: "ended 2 workers (SIGSEGV)", 1: ""} and pool.restarts == 2


def test_a_worker_with_a_defect_of_ours_is_no_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr("ppma.loaders.pool.RUN_WORKER", "raise SystemExit(3)")
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
