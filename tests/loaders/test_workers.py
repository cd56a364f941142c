"""Killed workers are replaced, a file that kills them is bad, memory stays flat, and they end with their parent."""

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
from waiting import has_ended, wait_until

from ppma.cli import main as ppma
from ppma.common.workers import ALONE_KILLS
from ppma.config.errors import KilledError
from ppma.config.loader import LoaderConfig
from ppma.loaders.decode import workers
from ppma.loaders.decode.workers import IN_FLIGHT, Task, WorkerPool
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.samples import Sample, view_params
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream
from tests.loaders.test_stream import row

CONFIG = LoaderConfig(frames=2, size=16, short_side=20, views=1, workers=1, window_seconds=1.0)
VIEW_BYTES = 2 * 16 * 16 * 3


def task(ticket: int, path: Path) -> Task:
    views = (view_params(0, 0, ticket, 0, 48, 64, CONFIG),)
    sample = Sample(epoch=0, index=ticket, source=0, clip=0, start_seconds=0.0, end_seconds=1.0, views=views)
    return Task(ticket=ticket, path=Path(path), sample=sample, product="views", codecs={}, offset=ticket * VIEW_BYTES)


def collect(pool: WorkerPool, count: int) -> dict[int, str]:
    """Wait for `count` replies; return {ticket: reason}."""
    replies = {}
    while len(replies) < count:
        replies |= {reply.ticket: reply.reason for reply in pool.replies()}
    return replies


def folder_that_blocks(path: Path) -> Path:
    """Make a folder of frames whose only frame is a pipe: whoever opens it waits, as for a file system that is down."""
    path.mkdir()
    os.mkfifo(path / "000001.jpg")
    return path


def unblock(folder: Path) -> None:
    """Let the worker that waits for the frame of such a folder go on."""
    with contextlib.suppress(BrokenPipeError):  # it has closed the pipe again
        (folder / "000001.jpg").write_bytes(b"no picture")


@pytest.fixture
def at_most_a_minute():
    """Fail a test that waits forever."""

    def give_up(*_):
        pytest.fail("a minute is over")  # no OSError, which the pool takes for a dead worker

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_views_arrive_in_shared_memory_and_closing_returns_everything(tmp_path, write_clip):
    gc.collect()  # which closes files of earlier tests
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    pool = WorkerPool(CONFIG, 2 * VIEW_BYTES)
    for ticket in range(2):
        pool.submit(task(ticket, write_clip(tmp_path / "clip.mp4", frames=20)))
    assert collect(pool, 2) == {0: "", 1: ""}
    assert np.frombuffer(pool.memory, np.uint8, count=2 * VIEW_BYTES).reshape(2, -1).any(axis=1).all()
    pids = pool.pids
    pool.close()
    pool.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    del pool
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


@pytest.mark.promise("R24")
@pytest.mark.usefixtures("at_most_a_minute")
def test_a_task_whose_worker_was_killed_is_repeated_alone(tmp_path, write_clip):
    """The kernel kills whichever worker is largest when all of them together use up the memory."""
    path, slow = write_clip(tmp_path / "clip.mp4", frames=20), folder_that_blocks(tmp_path / "slow")
    pool = WorkerPool(replace(CONFIG, workers=2), 40 * VIEW_BYTES)
    pool.submit(task(0, slow))
    for ticket in range(1, 9):
        pool.submit(task(ticket, path))
    assert 0 not in collect(pool, 9 - IN_FLIGHT)
    wait_until(lambda: pool._workers[0].ready)  # it was given the first task, and may start slowly
    os.kill(pool.pids[0], signal.SIGKILL)
    wait_until(lambda: pool.restarts == 1)
    time.sleep(1)
    assert pool.restarts == 1 and pool._replies.empty(), "the others wait"
    unblock(slow)
    last = collect(pool, IN_FLIGHT)
    pool.close()
    assert "killed" not in last.pop(0) and not any(last.values())


HALF_A_REPLY = """
import os, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send(None)
connection.recv(), connection.recv()
os.write(connection.fileno(), (1000).to_bytes(4, "big") + b"x")
os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("at_most_a_minute")
def test_a_worker_killed_in_the_middle_of_a_reply_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "RUN_WORKER", HALF_A_REPLY)
    pool = WorkerPool(CONFIG, VIEW_BYTES)
    pool.submit(task(0, tmp_path / "any.mp4"))
    assert "SIGKILL" in collect(pool, 1)[0] and pool.restarts == 1 + ALONE_KILLS
    pool.close()


KILLED_AT_WORK = """
import os, sys
from multiprocessing.connection import Connection
from pathlib import Path
from ppma.loaders.decode.workers import Reply
connection = Connection(int(sys.argv[1]))
connection.send(None)
connection.recv()
while True:
    task = connection.recv()
    with task.path.open("a") as starts:
        starts.write(".")
    if task.path.stat().st_size <= KILLS:
        os.kill(os.getpid(), SIGNAL)
    connection.send(Reply(ticket=task.ticket))
"""


@pytest.mark.promise("R24")
@pytest.mark.usefixtures("at_most_a_minute")
@pytest.mark.parametrize(
    ("number", "kills", "bad"),
    [(signal.SIGKILL, ALONE_KILLS, False), (signal.SIGKILL, ALONE_KILLS + 1, True), (signal.SIGSEGV, 2, True)],
)
def test_a_file_is_not_blamed_for_workers_that_others_kill(tmp_path, monkeypatch, number, kills, bad):
    """SIGKILL also comes from outside: once among others and three times alone. A crash alone is the file's."""
    code = KILLED_AT_WORK.replace("KILLS", str(kills)).replace("SIGNAL", str(int(number)))
    monkeypatch.setattr(workers, "RUN_WORKER", code)
    pool = WorkerPool(CONFIG, VIEW_BYTES)
    pool.submit(task(0, tmp_path / "file"))
    reason = collect(pool, 1)[0]
    pool.close()
    assert (number.name in reason) is bad and pool.restarts == kills


@pytest.mark.promise("R24")
@pytest.mark.usefixtures("at_most_a_minute")
def test_workers_killed_at_their_start_blame_no_file(tmp_path, monkeypatch):
    """Too little memory for any worker: a run that went on would call one good clip after the other bad."""
    monkeypatch.setattr(workers, "RUN_WORKER", "import os; os.kill(os.getpid(), 9)")
    pool = WorkerPool(CONFIG, VIEW_BYTES)
    pool.submit(task(0, tmp_path / "any.mp4"))
    with pytest.raises(KilledError):
        pool.replies()
    pool.close()


LARGE_REPLIES = """
import sys
from multiprocessing.connection import Connection
from ppma.loaders.decode.workers import Reply
connection = Connection(int(sys.argv[1]))
connection.recv()
connection.send(None)
while True:
    connection.send(Reply(ticket=connection.recv().ticket, fallback="x" * 300_000))
"""


@pytest.mark.usefixtures("at_most_a_minute")
def test_neither_side_waits_for_the_other_while_it_sends(tmp_path, monkeypatch):
    """More tasks than a socket holds, each answered with more than it holds, before any reply is taken."""
    monkeypatch.setattr(workers, "RUN_WORKER", LARGE_REPLIES)
    pool = WorkerPool(CONFIG, VIEW_BYTES)
    for ticket in range(600):
        pool.submit(task(ticket, tmp_path / "any.mp4"))
    assert list(collect(pool, 600)) == list(range(600)) and pool.restarts == 0
    pool.close()


def test_the_tasks_of_a_worker_fit_into_its_socket(tmp_path):
    """Otherwise the parent waits for a worker that waits for the parent to take a reply: long path, many views."""
    config = replace(CONFIG, views=32, randaugment_ops=14, randaugment_probability=1.0, erase_probability=1.0)
    views = tuple(view_params(0, 0, 0, view, 48, 64, config) for view in range(32))
    path = "/".join(["x" * 250] * 15)
    large = replace(task(0, path), sample=replace(task(0, path).sample, views=views))
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())
    os.set_blocking(ours.fileno(), False)
    for _ in range(IN_FLIGHT):
        ours.send(large)  # raises BlockingIOError where it would wait
    ours.close()
    theirs.close()


@pytest.mark.usefixtures("at_most_a_minute")
def test_a_slow_file_delays_only_the_tasks_of_its_worker(tmp_path, write_clip):
    path, slow = write_clip(tmp_path / "clip.mp4", frames=20), folder_that_blocks(tmp_path / "slow")
    pool = WorkerPool(replace(CONFIG, workers=2), 40 * VIEW_BYTES)
    pool.submit(task(0, slow))
    for ticket in range(1, 40):
        pool.submit(task(ticket, path))
    assert set(collect(pool, 40 - IN_FLIGHT)) <= set(range(1, 40))
    unblock(slow)
    assert collect(pool, IN_FLIGHT)[0]
    pool.close()


@pytest.mark.parametrize("mortal", [True, False])
def test_closing_does_not_wait_for_one_hung_worker_after_the_other(tmp_path, monkeypatch, caplog, mortal):
    """A process that waits for a dead file system does not end when it is killed."""
    monkeypatch.setattr(workers, "CLOSE_SECONDS", 2.0)
    pool = WorkerPool(replace(CONFIG, workers=4), 4 * VIEW_BYTES)
    processes = [psutil.Process(pid) for pid in pool.pids]
    for process in processes:
        process.suspend()
    if not mortal:
        monkeypatch.setattr(subprocess.Popen, "kill", lambda self: None)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 7
    assert caplog.text.count("cannot be ended") == (0 if mortal else 4)
    for process in processes if not mortal else ():
        process.kill()
    psutil.wait_procs(processes)


def test_a_defect_of_the_worker_is_not_a_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "RUN_WORKER", "raise SystemExit(3)")
    for early in (False, True):
        pool = WorkerPool(CONFIG, VIEW_BYTES)
        if early:  # the thread has met the defect before a task comes
            pool._thread.join()
        pool.submit(task(0, tmp_path / "any.mp4"))
        with pytest.raises(RuntimeError, match="code 3"):
            pool.replies()
        pool.close()


def test_workers_end_with_a_parent_that_is_killed():
    program = """
        import time
        from ppma.config.loader import LoaderConfig
        from ppma.loaders.decode.workers import WorkerPool
        pool = WorkerPool(LoaderConfig(workers=3), 4096)
        print(*pool.pids, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3 and all(psutil.pid_exists(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: all(map(has_ended, pids)))


def test_a_worker_imports_no_library_that_it_does_not_need():
    names = "ppma.loaders.decode.workers, ppma.loaders.decode.remux, ppma.loaders.decode.augment"
    code = f"import sys, {names}; assert not {{'torch', 'nvidia', 'fsspec'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------------------------------- memory


def linked_clips(root, write_clip, files):
    """Return a manifest of that many files, hard links to seven clips."""
    originals = [write_clip(root / f"original {i}.mp4", frames=16, width=64 + 2 * i) for i in range(7)]
    rows = []
    for number in range(files):
        os.link(originals[number % 7], root / f"{number}.mp4")
        rows.append(row(f"{number}.mp4", 0, frames=16, width=64 + 2 * (number % 7), duration_seconds=1.6))
    return Manifest.from_clips(rows, root=root, name="many")


def measure(manifest, epochs, keep=workers._KEEP_MEMORY):
    """Return what `_measure` does, from a process of its own: this one holds and frees memory of earlier tests."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_measure, manifest, epochs, keep).result()


def _measure(manifest, epochs, keep):
    """Return (bytes that only this process and its workers use, their open files) after each epoch."""
    workers._KEEP_MEMORY = keep
    config = LoaderConfig(frames=4, size=32, short_side=32, crop="center", views=1, workers=2, window_seconds=1.0)
    sampler = TrainingSampler([manifest], config, seed=0, batch_clips=50)
    points = []
    with ClipStream(sampler, [manifest], config, epochs=epochs) as stream:
        processes = [psutil.Process(), *(psutil.Process(pid) for pid in stream._pool.pids)]
        for batch in stream:
            if batch.step == sampler.steps_per_epoch - 1:
                own = sum(p.memory_full_info().uss for p in processes)
                points.append((own, sum(p.num_fds() for p in processes)))
    return points


def check_flat(points, files, early, late, *, most_kb):
    """At most so many kB per file between the means of two spans of epochs, and not one more open file."""
    growth = (np.mean([own for own, _ in points[late]]) - np.mean([own for own, _ in points[early]])) / 2**20
    files *= np.mean(range(len(points))[late]) - np.mean(range(len(points))[early])
    assert points[-1][1] <= points[0][1], points
    assert growth / files * 1000 < most_kb, f"{growth:.1f} MB over {files:.0f} files: {points}"
    return f"{growth:+.1f} MB and no more open files over {files:.0f} files"


@pytest.mark.promise("R11")
def test_memory_and_open_files_stay_flat(tmp_path, write_clip, figure):
    # Freed memory goes back to the kernel at once: glibc would keep 10 to 40 MB, which take thousands of files to fill.
    returning = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "16384"}
    points = measure(linked_clips(tmp_path, write_clip, 300), epochs=10, keep={**returning, "MALLOC_TOP_PAD_": "0"})
    figure("R11", check_flat(points, 300, slice(1, 4), slice(7, 10), most_kb=1.0))


@pytest.mark.slow
@pytest.mark.promise("R11")
def test_memory_stays_flat_over_twenty_thousand_files(tmp_path, write_clip, figure):
    points = measure(linked_clips(tmp_path, write_clip, 20_000), epochs=3)
    figure("R11", check_flat(points, 20_000, slice(0, 1), slice(2, 3), most_kb=0.2))


# ----------------------------------------------------------------------------------------------------------- full size


@pytest.fixture(scope="module")
def sources(tmp_path_factory, clip_tree):
    """The clips of `clip_tree` as videos and as a packed store."""
    folder = tmp_path_factory.mktemp("sources")
    data = tiny.make_data(folder, clip_tree, "train")
    videos = catalog.read(data).manifest("made")
    assert ppma(f"pack made --data {data} --out {folder}/made.beton --short-side 32 --workers 1".split()) == 0
    return {"videos": videos, "packed": catalog.read(data).manifest("made")}


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("implementation", "kind"), [("plain", "videos"), ("dali", "videos"), ("dali", "packed"), ("ffcv", "packed")]
)
def test_a_rank_reads_batches_of_8192_clips(sources, implementation, kind, count, views):
    """Every task of two batches is with the workers before the first reply is taken."""
    if implementation == "ffcv":
        pytest.importorskip("ffcv")
    source, clips = sources[kind], 8192
    config = replace(CONFIG, short_side=32, views=views, workers=count, implementation=implementation)
    sampler = TrainingSampler([source], config, seed=0, batch_clips=clips, epoch_clips=2 * clips)
    with ClipStream(sampler, [source], config) as stream:
        for step in range(2):
            batch = stream.take(timeout=600)
            wanted = [sample.clip for sample in sampler.samples(0, step) for _ in range(views)]
            assert batch.sample_id_B.tolist() == wanted and batch.decoded_B.all()
            assert batch.frames_BTHWC.flatten(1).any(dim=1).all()
        assert not stream.bad_files and stream.counters.samples == 2 * clips
