"""Small machines and bad days: 64 MB of /dev/shm, 256 open files, workers that the kernel kills every 5 s, 1,000 shards."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from full_disk import content
from privacy_stand_ins import write_walk
from processes import run_script

from ppma.cli import main as ppma
from ppma.config.command import DONE, RUN_AGAIN
from ppma.config.loader import LoaderConfig
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources.store import Store
from ppma.loaders.stream import ClipStream
from tests.loaders.test_workers import linked_clips

ROOT = Path(__file__).parents[1]
READ_ONE_EPOCH = """
import sys
from ppma.config.loader import LoaderConfig
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources import catalog
from ppma.loaders.stream import ClipStream

if __name__ == "__main__":
    source = catalog.find(sys.argv[1]).manifest(sys.argv[2])
    size, views, workers = map(int, sys.argv[3:])
    config = LoaderConfig(frames=16, size=size, short_side=size, views=views, workers=workers, randaugment_ops=0)
    sampler = TrainingSampler([source], config, seed=0, batch_clips=4)
    with ClipStream(sampler, [source], config, epochs=1) as stream:
        read = sum(len(batch.frames_BTHWC) for batch in stream)
        print(read, len(stream.bad_files), len(stream._pool.memory) >> 20)
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def indexed(tmp_path: Path, clips: Path) -> Path:
    """Index clips as `made`; return data.toml."""
    files = [f"{tmp_path}/made.csv", "--root", clips, "--name", "made", "--data", f"{tmp_path}/data.toml"]
    assert ppma(["index", str(clips), "--out", *map(str, files)]) == 0
    return tmp_path / "data.toml"


# ------------------------------------------------------------------------------------------------- memory and open files


@pytest.mark.promise("R25")
def test_a_small_shared_memory_is_enough(clip_tree, tmp_path, figure):
    """Docker gives 64 MB of /dev/shm. Views go through an anonymous file, which does not count there."""
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    if subprocess.run([*unshare, "sh", "-c", small, "sh", "true"], check=False).returncode:
        pytest.skip("this system allows no private mounts")
    program = [sys.executable, "-c", READ_ONE_EPOCH, indexed(tmp_path, clip_tree), "made", "224", "4", "2"]
    command = [*unshare, "sh", "-c", small, "sh", *program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    read, bad, mib = map(int, done.stdout.split())
    assert (read, bad) == (48, 0) and mib > 64
    figure("R25", f"{mib} MB of views with 64 MB of /dev/shm, 0 clips lost")


FEW_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
PACK_SMALL_SHARDS = """
import sys
from ppma.cli import main
from ppma.data import shard_writer
shard_writer.SHARD_FRAMES = 30

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def pack_and_read(clip_tree: Path, tmp_path: Path, count: int) -> str:
    """Pack that many shards and read them with 8 workers, with 256 open files for each process; return the figure."""
    clips = tmp_path / "clips"
    (clips / "a").mkdir(parents=True)
    one = next(clip_tree.glob("*/*.mp4"))
    for number in range(count):
        (clips / f"a/{number}.mp4").hardlink_to(one)
    data, store = indexed(tmp_path, clips), tmp_path / "made.beton"
    pack = ["pack", "made", "--data", data, "--out", store, "--short-side", "32", "--workers", "2"]
    began = time.monotonic()
    for code, argv in ((PACK_SMALL_SHARDS, pack), (READ_ONE_EPOCH, [data, "made", "32", "1", "8"])):
        done, said = run_script(FEW_FILES + code, [*map(str, argv)], tmp_path, seconds=600)
        assert done == 0, said[-2000:]
    assert len(Store(store).index.shards) == count
    assert list(map(int, (tmp_path / "script.out").read_text().split()))[:2] == [count, 0]
    return f"{count} shards packed and read by 8 workers in {time.monotonic() - began:.0f} s, 0 clips lost"


@pytest.mark.promise("R26")
def test_few_open_files_are_enough(clip_tree, tmp_path, figure):
    figure("R26", pack_and_read(clip_tree, tmp_path, 80))


@pytest.mark.slow
@pytest.mark.promise("R26")
@pytest.mark.promise("R30")
def test_a_thousand_shards_are_packed_and_read(clip_tree, tmp_path, figure):
    done = pack_and_read(clip_tree, tmp_path, 1000)
    figure("R26", done)
    figure("R30", done)


# -------------------------------------------------------------------------------------------------------- killed workers


class Killer(threading.Thread):
    """Kill one worker every few seconds, as the kernel does when the memory is used up."""

    def __init__(self, pids: Callable[[], list[int]], seconds: float) -> None:
        super().__init__(daemon=True)
        self.pids, self.seconds, self.done, self.kills = pids, seconds, threading.Event(), 0

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()

    def run(self) -> None:
        rng = random.Random(0)
        while not self.done.wait(self.seconds):
            if pids := self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    self.kills += 1


def workers_of(commands: list[psutil.Popen]) -> list[int]:
    """Return the workers of commands, without the processes in which Python counts semaphores."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = [child for command in commands for child in command.children()]
        return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    return []


@pytest.mark.slow
@pytest.mark.promise("R24")
@pytest.mark.parametrize("name", ["pack", "synthesize", "remove-humans"])
def test_no_clip_is_lost_when_a_worker_is_killed_every_five_seconds(name, tmp_path, figure):
    clips = tmp_path / "people"
    for number in range(60 if name != "synthesize" else 0):
        write_walk(clips / f"a/{number}.mp4", length=100, height=240, width=320)
    argv = {
        "pack": ["pack", tmp_path / "made.csv", "--root", clips],
        "synthesize": ["synthesize", "--classes", "walk", "wave", "--clips", "40", "--size", "96"],
        "remove-humans": ["remove-humans", clips, "--method", "downsample"],
    }[name]
    if name == "pack":
        indexed(tmp_path, clips)
    found = {}
    for place in ("whole", "killed"):
        out = tmp_path / f"{place}.beton"
        command = [sys.executable, "-c", PACK_SMALL_SHARDS, *argv, "--out", out, "--workers", "2"]
        running: list[psutil.Popen] = []
        with Killer(partial(workers_of, running), 5.0 if place == "killed" else 3600) as killer:
            code = RUN_AGAIN
            while code == RUN_AGAIN:  # where a worker takes longer than 5 s to start
                running[:] = [psutil.Popen(list(map(str, command)), env=environment(), stdout=subprocess.DEVNULL)]
                code = running[0].wait()
            assert code == DONE
        found[place] = content(out)
    assert killer.kills and found["whole"] == found["killed"]
    figure("R24", f"{name}: {killer.kills} workers killed, 0 of {len(found['whole'])} files differ")


@pytest.mark.slow
@pytest.mark.promise("R24")
def test_no_batch_changes_when_a_loader_worker_is_killed_every_five_seconds(tmp_path, write_clip, figure):
    source = linked_clips(tmp_path, write_clip, 600)
    config = LoaderConfig(frames=16, size=96, short_side=96, views=2, workers=2, window_seconds=1.0)
    found, restarts = {}, 0
    for seconds in (3600, 5.0):
        sampler = TrainingSampler([source], config, seed=0, batch_clips=20)
        with ClipStream(sampler, [source], config, epochs=8) as stream, Killer(lambda: stream._pool.pids, seconds):
            found[seconds] = [hashlib.sha256(batch.frames_BTHWC.numpy().tobytes()).digest() for batch in stream]
            restarts = stream._pool.restarts
            assert not stream.bad_files
    assert restarts and found[3600] == found[5.0]
    figure("R24", f"loader: {restarts} workers killed, 0 of {len(found[5.0])} batches differ")
