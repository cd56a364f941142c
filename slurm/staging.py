"""Bring manifests and packed stores to a node before a run starts, once for all its processes.

    data.toml, source names, --stage-to DIR  ->  DIR/<source>.<split>-<hash>/...  ->  DIR/data-<hash>.toml, for the run
    data.toml, source names, --warm          ->  read once into the page cache

The first process of a node copies under a lock while the others wait. A copy gets its name when it is complete, and
later jobs on the node reuse it. With --stage-gb only as many shards are copied as fit, and links lead to the others: each
clip is read once an epoch, so any shard is as good as another. What is read by URL is not copied beforehand: its
cache is put on that disk, with the rest of --stage-gb. Sources without a packed store are not copied: their
videos may not fit on any disk.
"""

import hashlib
import itertools
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from ppma.common.files import atomic_path
from ppma.common.progress import Progress
from ppma.config.errors import require
from ppma.loaders.sources import catalog
from ppma.loaders.sources.catalog import Entry
from ppma.loaders.sources.remote import CACHE_VARIABLE, SIZE_VARIABLE, Url
from ppma.loaders.sources.store import SUFFIX
from ppma.privacy import verdict

log = logging.getLogger(__name__)

MB, GB = 10**6, 10**9
CHUNK_BYTES = 16 * 2**20
URL_SHARE = 0.5
"""Share of the disk for what is read by URL, without --stage-gb."""
MEMORY_SHARE = 0.5
"""Share of the free memory that `warm` fills; more would evict what it read first, or starve the processes."""


def stage(
    data: Path, sources: tuple[str, ...], splits: tuple[str, ...], folder: Path, *, most_gb: int | None = None
) -> Path:
    """Copy the packed stores of some sources to a local disk. Every process of a node calls it.

    Args:
        data: The data catalog.
        sources: Names of sources.
        splits: Splits to copy; splits that a source lacks are skipped.
        folder: Folder on the local disk.
        most_gb: Size of the copies in GB, beyond which shards stay where they are; None: everything is copied.

    Returns:
        A data catalog that points to the copies.

    Raises:
        InputError: The disk is too small.
    """
    known = catalog.read(data).entries
    entries = [known[name, split] for name in sources for split in splits if (name, split) in known]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # released when the process ends, however it ends
        staged, room = [], None if most_gb is None else most_gb * GB
        for entry in entries:
            copy, size = _stage_source(entry, folder, room)
            staged.append(copy)
            room = None if room is None else max(0, room - size)
        if any(isinstance(place, Url) for entry in entries for place in (entry.root, entry.store)):
            os.environ[CACHE_VARIABLE] = str(folder)
            free = shutil.disk_usage(folder).total * URL_SHARE if room is None else room
            os.environ[SIZE_VARIABLE] = str(free / GB)
        target = folder / f"data-{_short_hash(staged)}.toml"
        if not target.exists():
            with atomic_path(target) as temp_path:
                for entry in staged:
                    catalog.add(temp_path, **vars(entry))
    return target


def _stage_source(entry: Entry, folder: Path, room: int | None) -> tuple[Entry, int]:
    """Return the entry with its manifest and store on the node, and the bytes of the copy, with shards up to `room`."""
    if entry.store is None or isinstance(entry.store, Url):
        return entry, 0
    files = sorted(filter(Path.is_file, entry.store.rglob("*")), key=lambda path: (path.suffix == SUFFIX, path))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (entry.manifest, *files)]
    sizes = list(itertools.accumulate(size for _, size, _ in stats))
    most = float("inf") if room is None else room
    copied = sum(size <= most or file.suffix != SUFFIX for file, size in zip(files, sizes[1:]))
    total, name = sizes[copied], f"{entry.name}.{entry.split}"
    place = folder / f"{name}-{_short_hash([copied, *stats])}"  # a store that was packed again is copied again
    staged = replace(entry, manifest=place / entry.manifest.name, store=place / entry.store.name)
    if place.is_dir():
        log.info("staging %s: already in %s", name, place)
        return staged, total
    free = shutil.disk_usage(folder).free
    takes = f"{name} takes {total / GB:.1f} GB, {free / GB:.1f} GB are free there"
    require(total <= free, f"--stage-to {folder}: {takes}; --stage-gb N copies only as many shards as fit into N GB")
    temp_path = folder / f".{place.name}.part"
    shutil.rmtree(temp_path, ignore_errors=True)  # of a job that was killed while it copied
    (temp_path / entry.store.name).mkdir(parents=True)
    shutil.copyfile(entry.manifest, temp_path / entry.manifest.name)
    verdict.copy_seal(entry.manifest, temp_path / entry.manifest.name)
    done = 0
    with Progress("MB") as progress:
        for number, file in enumerate(files):
            copy = temp_path / entry.store.name / file.relative_to(entry.store)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if number >= copied:
                copy.symlink_to(file.absolute())
                continue
            shutil.copyfile(file, copy)
            done += file.stat().st_size
            progress(done // MB, total // MB)
    temp_path.rename(place)
    log.info("staged %s: %d of %d files, %.1f GB, to %s", name, copied, len(files), total / GB, place)
    return staged, total


def _short_hash(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _free_memory() -> int:
    """Return the bytes that the kernel can give without swapping, the page cache included."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def warm(data: Path, sources: tuple[str, ...], splits: tuple[str, ...]) -> None:
    """Read manifests and stores once, so that the first epoch finds them in memory. One process of a node calls it.

    Args:
        data: The data catalog.
        sources: Names of sources.
        splits: Splits to read.
    """
    known = catalog.read(data)
    keys = [key for key in known.entries if key[0] in sources and key[1] in splits]
    for key in keys:
        known.manifest(*key)  # large ones are parsed once and mapped by all processes
    stores = (known.entries[key].store for key in keys)
    here = [store for store in stores if store is not None and not isinstance(store, Url)]
    files = sorted(path for store in here for path in store.rglob("*") if path.is_file())
    left, done = int(MEMORY_SHARE * _free_memory()), 0
    total = min(sum(file.stat().st_size for file in files), left)
    with Progress("MB") as progress:
        for file in files:
            with file.open("rb") as reader:
                while left > done and (chunk := reader.read(min(CHUNK_BYTES, left - done))):
                    done += len(chunk)
                    progress(done // MB, total // MB)
    more = ", the rest does not fit into memory" if left <= done else ""
    log.info("warmed %d sources: %.1f GB%s", len(keys), done / 1e9, more)
