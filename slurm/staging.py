"""Manifests and packed stores brought to a node before a run starts there, once for all its processes: onto its disk, into its memory.

    data.toml, names of sources, --stage-to DIR  ->  DIR/<source>.<split>/...  ->  DIR/data-<hash>.toml, which the run reads instead
    data.toml, names of sources, --warm          ->  read once                 ->  the page cache, and large manifests parsed

The first process of a node copies, under a lock; the others wait for it. A copy has its name when it is complete, and a
later job on the same node finds it there. A source without a store is not copied: its videos may be larger than any disk.
"""

import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ppma.config.errors import InputError
from ppma.loaders.sources import catalog
from ppma.loaders.sources.catalog import Entry
from ppma.privacy import verdict

log = logging.getLogger(__name__)

LINE_EVERY_SECONDS = 10.0
"""Between lines of progress."""
CHUNK_BYTES = 16 * 2**20
MEMORY_SHARE = 0.5
"""Of the free memory that `warm` fills: more would push out what it read first, or what the processes need."""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process of the node at a time; it is let go when the process ends, however it ends."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Progress:
    """A line now and then: how much, how fast, how long."""

    def __init__(self, name: str, total: int) -> None:
        """`name`: what is done, to what."""
        self._name, self._total, self.done = name, total, 0
        self._began = self._said = time.monotonic()

    def add(self, size: int) -> None:
        """So many bytes more."""
        self.done += size
        now = time.monotonic()
        if now - self._said >= LINE_EVERY_SECONDS:
            self._said = now
            rate = self.done / (now - self._began)
            left = (self._total - self.done) / rate
            log.info(
                "%s: %.1f of %.1f GB, %.2f GB/s, %.0f s left",
                self._name, self.done / 1e9, self._total / 1e9, rate / 1e9, left,
            )  # fmt: skip


def _fingerprint(files: list[Path]) -> str:
    """Of names, sizes and times of change: a store that was packed again is copied again."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _copy_file(source: Path, target: Path, progress: _Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            writer.write(chunk)
            progress.add(len(chunk))


def _stage_source(entry: Entry, folder: Path) -> Entry:
    """The entry with its manifest and store on the node."""
    if entry.store is None:
        return entry
    files = sorted(path for path in entry.store.rglob("*") if path.is_file())
    name = f"{entry.name}.{entry.split}"
    place = folder / f"{name}-{_fingerprint([entry.manifest, *files])}"
    staged = replace(entry, manifest=place / entry.manifest.name, store=place / entry.store.name)
    if place.is_dir():
        log.info("staging %s: %s is there already", name, place)
        return staged
    total = sum(file.stat().st_size for file in (entry.manifest, *files))
    free = shutil.disk_usage(folder).free
    if total > free:
        raise InputError(f"--stage-to {folder}: {name} takes {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
    beside = folder / f".{place.name}.part"
    shutil.rmtree(beside, ignore_errors=True)  # of a job that was ended while it copied
    progress = _Progress(f"staging {name}", total)
    began = time.monotonic()
    _copy_file(entry.manifest, beside / entry.manifest.name, progress)
    verdict.copy_seal(entry.manifest, beside / entry.manifest.name)
    for file in files:
        _copy_file(file, beside / entry.store.name / file.relative_to(entry.store), progress)
    beside.rename(place)
    log.info("staged %s: %.1f GB in %.0f s to %s", name, total / 1e9, time.monotonic() - began, place)
    return staged


def stage(data: Path, sources: tuple[str, ...], splits: tuple[str, ...], folder: Path) -> Path:
    """Copy the stores of the sources to `folder`; returns a data catalog that points there. Every process of a node calls it.

    Splits that a source does not have are left out. InputError when the disk is too small.
    """
    known = catalog.read(data).entries
    wanted = [known[name, split] for name in sources for split in splits if (name, split) in known]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        entries = [_stage_source(entry, folder) for entry in wanted]
        key = hashlib.sha256(repr(entries).encode()).hexdigest()[:16]
        target = folder / f"data-{key}.toml"
        if not target.exists():
            lines = [_table(entry) for entry in entries]
            beside = target.with_suffix(".part")
            beside.write_text("\n".join(lines), encoding="utf-8")
            beside.replace(target)
    return target


def _free_memory() -> int:
    """Bytes that the kernel could give without swapping; the page cache counts."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def warm(data: Path, sources: tuple[str, ...], splits: tuple[str, ...]) -> None:
    """Read manifests and stores once, so that the first epoch finds them in the node's memory. One process of a node calls it."""
    known = catalog.read(data)
    wanted = [key for key in known.entries if key[0] in sources and key[1] in splits]
    stores = [entry.store for key in wanted if (entry := known.entries[key]).store is not None]
    files = sorted(path for store in stores for path in store.rglob("*") if path.is_file())
    total, left = sum(file.stat().st_size for file in files), int(MEMORY_SHARE * _free_memory())
    began, progress = time.monotonic(), _Progress("warming", min(total, left))
    for key in wanted:
        known.manifest(*key)
    for file in files:
        with file.open("rb") as reader:
            while left > 0 and (chunk := reader.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                progress.add(len(chunk))
    more = ", the rest does not fit into memory" if left <= 0 else ""
    log.info("warmed %d sources: %.1f GB in %.0f s%s", len(wanted), progress.done / 1e9, time.monotonic() - began, more)


def _table(entry: Entry) -> str:
    paths = {"manifest": entry.manifest, "root": entry.root, "store": entry.store}
    rows = [f"{key} = {_quoted(path)}" for key, path in paths.items() if path is not None]
    return "\n".join([f"[{entry.name}.{entry.split}]", *rows, ""])


def _quoted(path: Path) -> str:
    """A TOML string; JSON's escapes are TOML's too."""
    return json.dumps(str(path.absolute()), ensure_ascii=False)
