"""Bring manifests and packed stores to a node before a run starts, once for all its processes.

    data.toml, source names, --stage-to DIR  ->  DIR/<source>.<split>-<hash>/...  ->  DIR/data-<hash>.toml, for the run
    data.toml, source names, --warm          ->  read once into the page cache

The first process of a node copies under a lock while the others wait. A copy gets its name when it is complete, and
later jobs on the node reuse it. Sources without a packed store are not copied: their videos may not fit on any disk.
"""

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from ppma.common.files import atomic_path
from ppma.common.progress import Progress
from ppma.config.errors import require
from ppma.loaders.sources import catalog
from ppma.loaders.sources.catalog import Entry
from ppma.privacy import verdict

log = logging.getLogger(__name__)

MB = 1_000_000
CHUNK_BYTES = 16 * 2**20
MEMORY_SHARE = 0.5
"""Share of the free memory that `warm` fills; more would evict what it read first, or starve the processes."""


def stage(data: Path, sources: tuple[str, ...], splits: tuple[str, ...], folder: Path) -> Path:
    """Copy the packed stores of some sources to a local disk. Every process of a node calls it.

    Args:
        data: The data catalog.
        sources: Names of sources.
        splits: Splits to copy; splits that a source lacks are skipped.
        folder: Folder on the local disk.

    Returns:
        A data catalog that points to the copies.

    Raises:
        InputError: The disk is too small.
    """
    known = catalog.read(data).entries
    entries = [known[name, split] for name in sources for split in splits if (name, split) in known]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # released when the process ends, however it ends
        staged = [_stage_source(entry, folder) for entry in entries]
        target = folder / f"data-{_short_hash(staged)}.toml"
        if not target.exists():
            with atomic_path(target) as temp_path:
                for entry in staged:
                    catalog.add(temp_path, **vars(entry))
    return target


def _stage_source(entry: Entry, folder: Path) -> Entry:
    """Return the entry with its manifest and store on the node."""
    if entry.store is None:
        return entry
    files = sorted(path for path in entry.store.rglob("*") if path.is_file())
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (entry.manifest, *files)]
    name = f"{entry.name}.{entry.split}"
    place = folder / f"{name}-{_short_hash(stats)}"  # a store that was packed again is copied again
    staged = replace(entry, manifest=place / entry.manifest.name, store=place / entry.store.name)
    if place.is_dir():
        log.info("staging %s: already in %s", name, place)
        return staged
    total, free = sum(size for _, size, _ in stats), shutil.disk_usage(folder).free
    sizes = f"{name} takes {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there"
    require(total <= free, f"--stage-to {folder}: {sizes}")
    temp_path = folder / f".{place.name}.part"
    shutil.rmtree(temp_path, ignore_errors=True)  # of a job that was killed while it copied
    (temp_path / entry.store.name).mkdir(parents=True)
    shutil.copyfile(entry.manifest, temp_path / entry.manifest.name)
    verdict.copy_seal(entry.manifest, temp_path / entry.manifest.name)
    done = 0
    with Progress("MB") as progress:
        for file in files:
            copy = temp_path / entry.store.name / file.relative_to(entry.store)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            done += file.stat().st_size
            progress(done // MB, total // MB)
    temp_path.rename(place)
    log.info("staged %s: %.1f GB to %s", name, total / 1e9, place)
    return staged


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
    stores = [store for key in keys if (store := known.entries[key].store) is not None]
    files = sorted(path for store in stores for path in store.rglob("*") if path.is_file())
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
