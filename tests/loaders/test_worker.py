"""What workers cost and how they end: flat memory, flat file descriptors, gone with their parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest

from ppma.config.loader import LoaderConfig
from ppma.loaders.decode import pool
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources.manifest import Clip, Manifest
from ppma.loaders.stream import ClipStream

CONFIG = LoaderConfig(frames=4, size=32, short_side=32, crop="center", views=1, workers=2, window_seconds=1.0)


def linked_clips(root, write_clip, files):
    """So many files, hard links to seven clips."""
    originals = [write_clip(root / f"original {i}.mp4", frames=16, width=64 + 2 * i) for i in range(7)]
    rows = []
    for number in range(files):
        path = root / f"{number}.mp4"
        os.link(originals[number % 7], path)
        facts = {
            "frames": 16,
            "fps": 10.0,
            "width": 64 + 2 * (number % 7),
            "height": 48,
            "codec": "h264",
            "key_frame_spacing": 12,
        }
        texts = {"class_name": "", "source": "", "domain": "", "licence": "", "audit": ""}
        rows.append(
            Clip(path=path.name, label=0, start_seconds=None, end_seconds=None, duration_seconds=1.6, **facts, **texts)
        )
    return Manifest.from_clips(rows, root=root, name="many")


def measure(manifest, epochs):
    """(bytes that belong to this process and its workers alone, their open files), after each epoch."""
    sampler = TrainingSampler([manifest], CONFIG, seed=0, batch_clips=50)
    points = []
    with ClipStream(sampler, [manifest], CONFIG, epochs=epochs) as stream:
        processes = [psutil.Process(), *(psutil.Process(pid) for pid in stream._pool.pids)]
        for batch in stream:
            if batch.step == sampler.steps_per_epoch - 1:
                own = sum(p.memory_full_info().uss for p in processes)
                points.append((own, sum(p.num_fds() for p in processes)))
    return points


def check_flat(points, files, early, late):
    """Less than 1 MB for 1,000 files between the means of two spans of epochs, and not one more open file."""
    growth = (np.mean([own for own, _ in points[late]]) - np.mean([own for own, _ in points[early]])) / 2**20
    files *= np.mean(range(len(points))[late]) - np.mean(range(len(points))[early])
    assert points[-1][1] <= points[0][1], points
    assert growth / files * 1000 < 1, f"{growth:.1f} MB over {files:.0f} files: {points}"


def test_memory_and_open_files_stay_flat(tmp_path, write_clip, monkeypatch):
    # What is freed goes back to the kernel at once: what glibc keeps for the next clip, 10 to 40 MB, takes thousands of files to fill.
    returning = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "16384"}
    monkeypatch.setattr(pool, "_KEEP_MEMORY", {**returning, "MALLOC_TOP_PAD_": "0"})
    points = measure(linked_clips(tmp_path, write_clip, 300), epochs=10)
    check_flat(points, 300, slice(1, 4), slice(7, 10))


@pytest.mark.slow
def test_memory_stays_flat_over_twenty_thousand_files(tmp_path, write_clip):
    check_flat(measure(linked_clips(tmp_path, write_clip, 20_000), epochs=3), 20_000, slice(0, 1), slice(2, 3))


def test_workers_end_with_a_parent_that_is_killed(tmp_path, write_clip):
    write_clip(tmp_path / "clip.mp4", frames=16)
    program = """
        import os, sys, time
        from ppma.config.loader import LoaderConfig
        from ppma.loaders.decode.pool import WorkerPool
        pool = WorkerPool(LoaderConfig(workers=3), 4096)
        print(*pool.pids, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3 and all(psutil.pid_exists(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < end, "a worker outlived its parent"
        time.sleep(0.1)


def test_a_worker_starts_without_torch_and_is_small():
    modules = "ppma.loaders.decode.workers, ppma.loaders.decode.fetch, ppma.loaders.decode.augment"
    code = f"import sys, {modules}; print('torch' in sys.modules, 'nvidia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "False",
        "False",
    ]
