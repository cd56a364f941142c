"""A run folder has one owner, and its metrics have one reader. Imports no torch, because `status` runs on login nodes.

    run folder  ->  owned  ->  owner.json while the run lasts, or InputError: another process is writing there
    metrics.jsonl  ->  read_metrics  ->  rows, without the line that a killed run left unfinished

An owner that was killed leaves its owner.json behind. On the same machine its process ID and start time show that it has
ended. On another machine they cannot be seen: there a later start of the same SLURM job replaces the earlier one, and
any other owner counts as gone when it has not touched the file for STALE_SECONDS. That time is measured by watching
the file, so that the clocks of the nodes do not matter.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ppma.common.files import write_text
from ppma.config.command import RUN_AGAIN
from ppma.config.errors import InputError, watch_disk

log = logging.getLogger(__name__)

OWNER, METRICS, SCORED = "owner.json", "metrics.jsonl", "scored"
NAN_STOP = "nan_stop.txt"
"""Says that the loss stayed NaN, so that the launcher does not requeue the run."""
BEAT_SECONDS = 10.0
"""How often an owner touches its owner.json."""
STALE_SECONDS = 60.0
"""An owner on another machine that has not touched its owner.json for so long is gone: six touches in a row failed."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that writes to a run folder."""

    host: str = ""
    machine: str = ""
    """Identifies host, boot and process namespace: process IDs can be compared only where it is equal."""
    pid: int = 0
    started: str = ""
    """Start time of the process in clock ticks since the boot; process IDs are used again, the pair is not."""
    job: str = ""
    """SLURM job; empty outside SLURM."""
    job_restarts: int = 0
    """How often SLURM had requeued the job."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def here(cls) -> "Owner":
        """Return this process."""
        host, boot = socket.gethostname(), Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(
            host=host, machine=f"{host} {boot} {Path('/proc/self/ns/pid').readlink()}", pid=os.getpid(),
            started=_start_time(os.getpid()), job=os.environ.get("SLURM_JOB_ID", ""),
            job_restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        )  # fmt: skip

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}" if self.host else "a process that has not written its name yet"


def _start_time(pid: int) -> str:
    """Return the start time of a process of this machine; empty if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _read(file: Path) -> Owner | None:
    """Return the owner in a file: without a host if it is still being written, None if there is no file."""
    try:
        return Owner(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if file.is_symlink():
            raise InputError(f"{file} is a link to nothing; remove it") from None
        return None
    except (ValueError, TypeError):
        return Owner(token="")


def _touched(file: Path) -> int:
    """Return when a file was last touched; it is opened for that, because NFS answers `stat` from a cache."""
    try:
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_mtime_ns
    except FileNotFoundError:
        return 0


def _why_gone(owner: Owner, me: Owner, file: Path) -> str:
    """Return why an owner counts as gone; empty if it is alive, for which an owner on another machine is watched."""
    if owner.machine == me.machine:
        return "" if owner.started == _start_time(owner.pid) else "has ended"
    if owner.job and owner.job == me.job and owner.job_restarts < me.job_restarts:
        return "belongs to an earlier start of this job"
    log.info("%s: watching for %.0f s whether %s still runs", file.parent, STALE_SECONDS, owner)
    touched, end = _touched(file), time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(0.2, STALE_SECONDS / 10))
        if _touched(file) != touched:
            return ""
    return f"has not touched {file.name} for {STALE_SECONDS:.0f} s"


def _claim(file: Path, me: Owner) -> None:
    """Create owner.json, in place of one whose owner is gone; InputError if it is alive."""
    while True:
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)  # atomic on NFS too
            break
        except FileExistsError:
            _set_aside(file, me)
    try:
        with os.fdopen(descriptor, "w") as out:
            out.write(json.dumps(asdict(me), indent=1) + "\n")
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _set_aside(file: Path, me: Owner) -> None:
    """Remove the owner.json of an owner that is gone; InputError if it is alive."""
    owner = _read(file)
    if owner is None:
        return
    if why := _why_gone(owner, me, file):
        with _one_at_a_time(file.parent):
            if (now := _read(file)) is None:  # another process was faster, and may be about to write its own
                return
            if now == owner and _moved_away(file, owner, me):
                log.warning("%s: taking over from %s, which %s", file.parent, owner, why)
                return
            owner = now
    raise InputError(f"{file.parent} is in use by {owner}; wait until it ends, stop it, or use another --run-dir")


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time set an owner aside. Network file systems may refuse the lock: `_moved_away` checks again."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _moved_away(file: Path, owner: Owner, me: Owner) -> bool:
    """Remove the owner.json of that owner; True if it was not another's by then, which is put back."""
    moved = file.with_name(f".{file.name}.{me.token}")
    with contextlib.suppress(FileNotFoundError):  # another process has moved it already
        file.rename(moved)
        if _read(moved) == owner:
            moved.unlink()
            return True
        moved.rename(file)
    return False


def living_owner(folder: Path) -> Owner | None:
    """Return the owner of a run folder if it has touched its owner.json lately."""
    file = folder / OWNER
    return _read(file) if time.time() - _touched(file) / 1e9 < STALE_SECONDS else None


@contextlib.contextmanager
def owned(folder: Path, leave: Callable[[int], None] = os._exit) -> Iterator[None]:
    """Own a run folder inside the block. Folders made for it are removed again if the block leaves them empty.

    Args:
        folder: Run folder; it is made if it does not exist.
        leave: Called with 75 when another process has taken the folder over, because this one had stood still.

    Raises:
        InputError: The folder cannot be written, or a process that is alive owns it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    file, me, over = folder / OWNER, Owner.here(), threading.Event()
    beat = threading.Thread(target=_beat, args=(file, me, over, leave), name="owner", daemon=True)
    try:
        try:
            with watch_disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
                _claim(file, me)
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}); use another --run-dir") from error
        try:
            beat.start()
            yield
        finally:
            over.set()
            beat.join()
            if _read(file) == me:
                file.unlink()
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty
            for path in made:
                path.rmdir()


def _beat(file: Path, me: Owner, over: threading.Event, leave: Callable[[int], None]) -> None:
    """Touch owner.json until the run is over."""
    while not over.wait(BEAT_SECONDS):
        try:
            owner = _read(file)
            if owner not in (me, None):  # None: moved aside for a moment by `_set_aside`
                log.error("%s was taken over by %s while this process stood still", file.parent, owner)
                leave(RUN_AGAIN)
                return
            os.utime(file)
        except OSError as error:  # the file system may answer again in time for the next one
            log.warning("%s: cannot show that this run is alive: %s", file, error)


def _metrics(run_dir: Path) -> tuple[str, list[tuple[str, dict[str, Any] | None]]]:
    """Return the text of metrics.jsonl, and each line with its row: None for one that a kill or a full disk cut."""
    file = run_dir / METRICS
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    rows: list[tuple[str, dict[str, Any] | None]] = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        rows.append((line, row if isinstance(row, dict) and "step" in row else None))
    return text, rows


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl; none without the file."""
    return [row for _, row in _metrics(run_dir)[1] if row is not None]


def step_seconds(rows: Iterable[Mapping[str, Any]], batch: int, *, after: int = 0) -> float:
    """Return the seconds of the logged steps beyond step `after`: rows of the global `batch` over throughput."""
    seconds, before = 0.0, after
    for row in rows:
        if (rate := row.get("perf/clips_per_s")) and row["step"] > before:
            seconds, before = seconds + (row["step"] - before) * batch / rate, row["step"]
    return seconds


def rewind_metrics(run_dir: Path, step: int) -> None:
    """Remove the rows after a step from metrics.jsonl, and lines that were cut, so that a resumed run logs each step once."""
    text, rows = _metrics(run_dir)
    if cut := sum(row is None for _, row in rows):
        log.warning("%s: removed %d line(s) that a kill or a full disk had cut", run_dir / METRICS, cut)
    kept = "".join(line + "\n" for line, row in rows if row is not None and row["step"] <= step)
    if kept != text:
        write_text(run_dir / METRICS, kept)
