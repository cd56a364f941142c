"""The pool outlives any file: one that hangs, one that crashes the reader, one that is merely bad."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
from damaged_clips import encode

from ppma.data.probe_pool import probe_all
from ppma.loaders.sources.probe import ProbeJob, VideoMetadata

CRASHES = """if True:
    import os, sys, time
    from multiprocessing.connection import Connection
    connection = Connection(int(sys.argv[1]))
    connection.send(os.getpid())
    while True:
        job = connection.recv()
        if job.path == "segfault":
            os.kill(os.getpid(), 11)
        if job.path == "exit":
            sys.exit("no memory left")
        connection.send(f"seen {job.path}")
"""


def probe_in_order(jobs, **how):
    answers = dict(probe_all(jobs, **({"workers": 2, "timeout_seconds": 30.0} | how)))
    assert sorted(answers) == list(range(len(jobs)))
    return [answers[i] for i in range(len(jobs))]


def running_children() -> set[str]:
    mine = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    return set(Path(mine).read_text().split())


def test_every_file_is_answered_once(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.mp4").write_bytes(encode("mp4", range(i + 1)) if i else b"")
    jobs = [ProbeJob(path=str(tmp_path / f"{i}.mp4")) for i in range(6)]
    first, *others = probe_in_order(jobs)
    assert first == "is an empty file"
    assert [facts.frames for facts in others if isinstance(facts, VideoMetadata)] == [2, 3, 4, 5, 6]


def test_a_file_that_hangs_is_given_up(tmp_path):
    """Opening a pipe that nobody writes to waits for ever, in the kernel."""
    (tmp_path / "hangs").mkdir()
    os.mkfifo(tmp_path / "hangs" / "000001.jpg")
    (tmp_path / "good.mp4").write_bytes(encode("mp4", range(3)))
    before, began = running_children(), time.monotonic()
    jobs = [ProbeJob(path=str(tmp_path / name)) for name in ("hangs", "good.mp4", "hangs", "good.mp4")]
    answers = probe_in_order(jobs, workers=1, timeout_seconds=1.0)
    assert answers[0] == answers[2] == "took longer than 1 s to look into (--timeout-seconds)"
    assert isinstance(answers[1], VideoMetadata) and answers[1] == answers[3]
    assert time.monotonic() - began < 30
    assert running_children() == before, "no worker is left behind"


def test_a_file_that_crashes_the_reader_is_refused():
    jobs = [ProbeJob(path=path) for path in ("a", "segfault", "b", "exit", "c")]
    assert probe_in_order(jobs, program=("-c", CRASHES)) == [
        "seen a",
        "crashed the reader (SIGSEGV)",
        "seen b",
        "crashed the reader (exit code 1, no memory left)",
        "seen c",
    ]


def test_workers_that_cannot_start_are_our_defect():
    with pytest.raises(RuntimeError, match=r"did not start: .*exit code 1, NameError"):
        probe_in_order([ProbeJob(path="a")], program=("-c", "undefined_name"))


def test_leaving_early_ends_the_workers(tmp_path):
    (tmp_path / "hangs").mkdir()
    os.mkfifo(tmp_path / "hangs" / "000001.jpg")
    (tmp_path / "good.mp4").write_bytes(encode("mp4", range(3)))
    before = running_children()
    results = probe_all(
        [ProbeJob(path=str(tmp_path / name)) for name in ("good.mp4", "hangs")], workers=2, timeout_seconds=60.0
    )
    assert next(results)[0] == 0 and running_children() != before
    results.close()
    assert running_children() == before


def test_it_can_be_used_from_a_process_of_ones_own(tmp_path):
    """Workers are programs of their own, so they neither rerun a script nor mind a forked parent."""
    (tmp_path / "good.mp4").write_bytes(encode("mp4", range(3)))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        [facts] = pool.apply(probe_in_order, ([ProbeJob(path=str(tmp_path / "good.mp4"))],))
    assert facts.frames == 3
