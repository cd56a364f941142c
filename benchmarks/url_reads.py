"""Measure the loader on a packed store by URL against the same store on disk.

    natural clips, packed; a shard under many names  ->  disk, HTTP on loopback  ->  clips/s and CPU a clip, in turn

In a first epoch every block comes from the server, with what is read ahead; "cached" is any epoch after that.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from benchmarks.loader_throughput import cpu_seconds
from benchmarks.natural_clips import FPS, FRAMES, clip_row, make_clips
from ppma.config.cache import cache_folder
from ppma.config.command import DONE, OutFolder, parse, run
from ppma.config.loader import LoaderConfig
from ppma.data.shard_writer import PackedClip, shard_file, shard_name
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.remote import CACHE_VARIABLE, SIZE_VARIABLE
from ppma.loaders.sources.store import INDEX, ROWS, Store, open_shard
from ppma.loaders.stream import ClipStream

BATCH_CLIPS, WARM_BATCHES = 8, 4
REPEATS = 6
"""How often a shard has each of the four clips."""


@dataclass(frozen=True, kw_only=True)
class UrlConfig(rows.ReportConfig):
    """Measure clips per second of a packed store on disk, over HTTP in a first epoch, and from the cache."""

    shards: int = 8
    """Names of one shard of 24 clips, which an epoch reads once each."""
    workers: int = 2
    """Loader workers."""
    rounds: int = 3
    """Measurements of each way, in turn."""
    latency_ms: tuple[float, ...] = (0.0, 10.0)
    """How long the server takes to answer."""
    clips: OutFolder = field(default_factory=lambda: cache_folder() / "benchmark-clips")
    """Folder for the generated clips, reused by the next run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "shards", "workers", "rounds")
        self.at_least(0, "latency_ms")


def many_shards(packed: Path, folder: Path, count: int) -> int:
    """Make a store of links to one shard, so that it is large for a cache and small on disk; return the shard's size."""
    store, names = Store(packed), [shard_name(i) for i in range(count)]
    (shard,), clips = store.index.shards, len(store.places) * REPEATS
    folder.mkdir()
    source = open_shard(packed / shard.file)
    with shard_file(folder / names[0], clips, store.index.parameters) as writer:
        for row, (frames, height, width, size, at) in enumerate(source.samples["f0"].tolist() * REPEATS):
            clip = PackedClip(blob=source.read(at, size), frames=frames, height=height, width=width)
            writer.add(clip, label=0, row=row)
    size = (folder / names[0]).stat().st_size
    for name in names[1:]:
        (folder / name).symlink_to(names[0])
    shards = tuple(
        replace(shard, file=name, first_row=i * clips, rows=clips, bytes=size) for i, name in enumerate(names)
    )
    places = np.tile(np.asarray(store.places), REPEATS * count)
    places["shard"], places["place"] = np.repeat(np.arange(count), clips), np.tile(np.arange(clips), count)
    np.save(folder / ROWS, places)
    (folder / INDEX).write_text(replace(store.index, shards=shards, rows=len(places)).dump())
    return size


@contextmanager
def http(folder: Path, latency_ms: float) -> Iterator[str]:
    """Serve a folder from another process; yield its URL."""
    command = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(folder), str(latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def epoch(store: str | Path, workers: int) -> tuple[float, float]:
    """Read an epoch; return clips per second and milliseconds of CPU a clip of this process and its workers."""
    found = Store(store)
    listed = [clip_row(f"{row}.mp4", "h264", 250, FRAMES) for row in range(len(found.places))]
    manifest = Manifest.from_clips(listed, root=Path(), name="packed").packed_in(found)
    config = LoaderConfig(views=1, window_seconds=61 / FPS, workers=workers, implementation="plain")
    sampler = TrainingSampler([manifest], config, seed=0, batch_clips=BATCH_CLIPS)
    with ClipStream(sampler, [manifest], config, on_bad="fail") as stream:
        for _ in range(WARM_BATCHES):
            stream.take()
        began, before = time.perf_counter(), cpu_seconds(os.getpid())
        clips = sum(BATCH_CLIPS for _ in stream)
        seconds, cpu = time.perf_counter() - began, cpu_seconds(os.getpid()) - before
    return clips / seconds, 1e3 * cpu / clips


def measure(config: UrlConfig) -> list[dict[str, Any]]:
    """Return a row for each way of reading, measured in turn."""
    packed = make_clips(config.clips, contents=("packed",))["packed"].store
    assert packed is not None
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "many.beton"
        size = many_shards(packed.path, folder, config.shards)
        os.environ[SIZE_VARIABLE] = str(1.5 * config.shards * size / 1e9)
        for number in range(config.rounds):
            found.setdefault(("disk", 0.0), []).append(epoch(folder, config.workers))
            for latency_ms in config.latency_ms:
                os.environ[CACHE_VARIABLE] = f"{temporary}/cache-{number}-{latency_ms}"
                with http(folder.parent, latency_ms) as url:
                    first, cached = (epoch(f"{url}/{folder.name}", config.workers) for _ in range(2))
                found.setdefault(("http, first epoch", latency_ms), []).append(first)
                found.setdefault(("http, cached", latency_ms), []).append(cached)
                for file in Path(os.environ[CACHE_VARIABLE]).iterdir():
                    file.unlink()
    disk_rate, disk_cpu = map(statistics.median, zip(*found["disk", 0.0]))
    return [
        {
            "source": way, "latency_ms": latency_ms, "workers": config.workers,
            "clips_per_s": round(statistics.median(rate for rate, _ in both), 1),
            "cpu_ms_per_clip": round(statistics.median(cpu for _, cpu in both), 2),
            "rate_to_disk": round(statistics.median(rate for rate, _ in both) / disk_rate, 3),
            "cpu_rate_to_disk": round(disk_cpu / statistics.median(cpu for _, cpu in both), 3),
            "spread": rows.spread([rate for rate, _ in both]), "rounds": config.rounds,
        }
        for (way, latency_ms), both in found.items()
    ]  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(UrlConfig, argv, prog="url_reads")
    rows.report(measure(config), config, benchmark="url_reads")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="url_reads"))
