"""Share the units of a data job among tasks: every task may do every unit, and each unit is done once.

    names of units, --part I/N  ->  Share.rounds()  ->  a free unit when a worker is free  ->  Share.finish(name, record)
                                                        NAME.lease                             NAME.json

`--part I/N` only says where a task begins: with every N-th unit from the I-th. Then it takes what other tasks have not
begun: those that are slow, or still in the queue. At last it takes the units of tasks that have died. A lease shows the
host and process of its owner, who touches it while it lives: on the same machine an ended owner is seen at once, on
another one after LEASE_SECONDS without a touch.

An owner that only stood still goes on when it wakes up. That is harmless: files are written atomically, and their bytes
depend on the unit alone.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from ppma.common import engines
from ppma.common.engines import EngineName
from ppma.common.files import claim_folder, write_json
from ppma.common.workers import parse_shard
from ppma.config.command import check_ranges
from ppma.config.errors import InputError, first_few, reading, watch_disk

FOLDER = ".ppma-parts"
"""Folder in the output of a job for the leases and records of its units, until the job is merged."""
LEASE_SECONDS, BEAT_SECONDS = 60.0, 10.0
"""An owner counts as dead when it has not touched its lease for so long, and how often it does so."""
POLL_SECONDS = 1.0
EMPTY_SECONDS = 10.0
"""Age of an empty lease whose owner was killed between its creation and its first byte: filelock would wait for it forever."""


@dataclass(frozen=True, kw_only=True)
class SharedWork:
    """Flags of a command whose units the tasks of an array share."""

    workers: int = len(os.sched_getaffinity(0))
    """Processes (default: one per core)."""
    engine: EngineName = "local"
    """local: processes of this machine; slurm: a job array of --parts N; ray: actors on the cluster of $RAY_ADDRESS."""
    part: str | None = None
    """I/N: share the work with N - 1 other tasks, beginning at the I-th unit (0 to N - 1), and leave the result to --merge."""
    merge: int | None = None
    """N: write the result when N parts have done all of the work; files that they could not read are reported."""
    dry_run: bool = False
    """Only report what would be done."""

    def __post_init__(self) -> None:
        engines.check(self.engine)
        parse_shard(self.part, self.merge)
        check_ranges(self, workers=(1, float("inf")))

    def share(self, folder: Path | None, *, done: Callable[[str], bool] = lambda name: False) -> "Share":
        """Return the share of this task; see `Share`."""
        return Share(folder, parse_shard(self.part), done=done)


class Share:
    """The units that one task takes."""

    def __init__(
        self,
        folder: Path | None,
        part: tuple[int, int] = (0, 1),
        *,
        done: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Create the share of a task.

        Args:
            folder: Folder of leases and records; None for a task that shares its units with no other.
            part: I and N of `--part I/N`.
            done: True if the files of a unit are complete, so that it needs no record.
        """
        self.folder, self.part, self._done = folder, part, done
        self._mine: dict[str, SoftFileLease] = {}
        self._others: dict[str, SoftFileLease] = {}

    @property
    def shared(self) -> bool:
        """True once some task has taken a unit, until the job is merged."""
        return self.folder is not None and self.folder.is_dir()

    def claim(self, settings: Mapping[str, object]) -> None:
        """Record what all units depend on; InputError if the folder holds units of another job."""
        assert self.folder is not None
        remedy = "merge that job, or remove the folder"
        claim_folder(self.folder / "settings", settings, "parts of a job", remedy=remedy)

    def rounds(self, names: Sequence[str]) -> Iterator[Iterator[str]]:
        """Yield iterators of units to do: first the free ones, then those of tasks that have died.

        A unit is leased when it is taken from the iterator; call `finish` when it is done.
        """
        if self.folder is None:
            yield iter(names)
            return
        yield filter(self._take, self._in_order(names))
        while abandoned := self._abandoned():
            yield iter(abandoned)

    def finish(self, name: str, record: Any = None) -> None:
        """Write the record of a unit, if there is one, and give up its lease."""
        if self.folder is None:
            return
        if record is not None:
            write_json(self._record(name), record)
        self._mine.pop(name).release()

    def forget(self, name: str) -> None:
        """Remove the record of a unit, which is to be done again."""
        self._record(name).unlink(missing_ok=True)

    def finished(self, name: str) -> bool:
        """True if some task has done the unit."""
        return self._done(name) or (self.folder is not None and self._record(name).is_file())

    def records(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the records that there are, by the name of the unit."""
        found = {}
        for name in names:
            file = self._record(name)
            if file.is_file():
                with reading(file, "the record of a finished unit; remove it, and run its part again"):
                    found[name] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def require_all(self, names: Iterable[str]) -> None:
        """Raise InputError unless every unit is finished."""
        if missing := [name for name in names if not self.finished(name)]:
            unfinished = f"{self.folder}: unfinished: {first_few(missing, 3)}"
            raise InputError(f"{unfinished}; run the parts again, in any number: finished work is kept")

    def clear(self) -> None:
        """Remove leases and records, after the job is merged."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def clearing(self) -> Iterator[None]:
        """Remove leases and records when the block has merged them, or says that they are of no use (InputError)."""
        try:
            yield
        except InputError:
            self.clear()
            raise
        self.clear()

    def _record(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.json"

    def _in_order(self, names: Sequence[str]) -> Iterator[str]:
        """Yield this part's units, then those of the others from their ends, where their owners come last."""
        first, step = self.part
        yield from names[first::step]
        for other in range(first + 1, first + step):
            yield from reversed(names[other % step :: step])

    def _take(self, name: str) -> bool:
        """Take a unit that is not finished and that no living task has taken; True if it is now ours."""
        assert self.folder is not None
        lease = self._others.pop(name, None)
        if self.finished(name):
            return False
        if lease is None:
            path = self.folder / f"{name}.lease"
            path.parent.mkdir(parents=True, exist_ok=True)
            lease = SoftFileLease(path, lease_duration=LEASE_SECONDS, heartbeat_interval=BEAT_SECONDS)
        try:
            with watch_disk(self.folder):
                lease.acquire(blocking=False)
        except Timeout:
            self._others[name] = lease
            _remove_empty(Path(lease.lock_file))  # the next look takes it
            return False
        if self.finished(name):  # by another task, between the two looks
            lease.release()
            return False
        self._mine[name] = lease
        return True

    def _abandoned(self) -> list[str]:
        """Return units of dead tasks as soon as there are some; none when all others are finished, or their owners alive."""
        end = time.monotonic() + 1.5 * LEASE_SECONDS
        while True:
            over = time.monotonic() > end  # a last look follows, however long this process stood still before
            if (taken := [name for name in list(self._others) if self._take(name)]) or over or not self._others:
                return taken
            time.sleep(POLL_SECONDS)


def _remove_empty(lease: Path) -> None:
    with suppress(FileNotFoundError):
        found = lease.stat()
        if not found.st_size and time.time() - found.st_mtime > EMPTY_SECONDS:
            lease.unlink()
