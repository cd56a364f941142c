"""A large manifest, read once on each node and shared by all its processes.

    CSV  ->  first process: parse, check, derive  ->  Arrow file on the node's own disk  ->  mapped into every process, copied by none

Eight processes that each hold ten million rows would need 24 GiB a node; mapped, they need the file's pages once. The Arrow file is named
after the CSV's path, size and time of change, and lies in a folder that belongs to the user alone.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

FROM_BYTES = 16 * 2**20
"""Smaller manifests are parsed by every process: that takes less than a second."""


def _folder() -> Path:
    """A folder on the node's own disk that nobody else can write to; one that somebody else made is not used."""
    folder = Path(tempfile.gettempdir()) / f"ppma-manifests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022 or folder.is_symlink():
        folder = Path(tempfile.mkdtemp(prefix="ppma-manifests-"))
    return folder


def _write(table: pa.Table, target: Path) -> None:
    beside = target.with_suffix(f".{os.getpid()}")
    try:
        with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def shared(path: Path, parse: Callable[[], pa.Table]) -> pa.Table:
    """The table of the CSV `path`, mapped from the node's disk; `parse` makes it where it is not there yet."""
    facts = path.stat()
    key = hashlib.sha256(repr((str(path.resolve()), facts.st_size, facts.st_mtime_ns)).encode()).hexdigest()[:24]
    folder = _folder()
    target = folder / f"{key}.arrow"
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a node start together: one parses, the others wait
        if not target.exists():
            _write(parse(), target)
            pa.default_memory_pool().release_unused()  # what was parsed is mapped from the file from here on
    return pa.ipc.open_file(pa.memory_map(str(target))).read_all()
