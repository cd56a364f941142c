"""Run a job on this machine in the foreground: rank 0's log on the terminal, Ctrl-C that saves, an exit code.

    Job  ->  one spawned process per rank, with RANK, WORLD_SIZE, ...  ->  rank 0's log on stdout, exit code

Not torchrun: it turns the exit codes 2 and 75 into 1, and kills ranks that still save 30 s after Ctrl-C.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path

from ppma.common.ports import free_port
from ppma.config.command import DONE, FAILED, INTERRUPTED, RUN_AGAIN, STOP_SIGNALS, WRONG_INPUT
from ppma.slurm.cluster import Allocation, local_gpus
from ppma.slurm.job import Job, local_environment
from ppma.slurm.restart import last_error, newest_lines, record

log = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
"""Time the other ranks get to exit after one has failed; gloo and NCCL usually notice sooner."""
POLL_SECONDS = 0.2


def follow(job: Job, allocation: Allocation, logs: Path) -> int:
    """Run a job to its end in the foreground.

    Args:
        job: The job; it runs once on each rank.
        allocation: Ranks and GPUs of this machine.
        logs: Folder of the logs, one for each rank.

    Returns:
        0 when every rank succeeded, 75 when stopped cleanly, 130 after a second Ctrl-C, 2 for a wrong input, else 1.
    """
    logs.mkdir(parents=True, exist_ok=True)
    number = len(list(logs.glob("local*_0_log.out")))
    files = [logs / f"local{number}_{rank}_log.out" for rank in range(allocation.tasks)]
    processes = _start(job, allocation, files)
    stops = _watch(processes, files[0])
    codes = [process.exitcode or 0 for process in processes]
    code = verdict(codes, stops)
    if code not in (DONE, WRONG_INPUT) and job.run_dir is not None:
        first = next((file for one, file in zip(codes, files) if one not in (DONE, RUN_AGAIN)), files[0])
        record(job.run_dir, code, error=last_error(newest_lines(first)))
    for rank, (ended, file) in enumerate(zip(codes, files)):
        if ended not in (DONE, RUN_AGAIN, WRONG_INPUT):
            log.error("rank %d failed; its log: %s", rank, file)
    return code


def verdict(codes: Sequence[int], stops: int) -> int:
    """Return one exit code for the exit codes of all ranks and the number of stop signals."""
    if stops > 1:
        return INTERRUPTED
    if WRONG_INPUT in codes:
        return WRONG_INPUT
    if not set(codes) <= {DONE, RUN_AGAIN}:
        return FAILED
    return RUN_AGAIN if stops or RUN_AGAIN in codes else DONE


def _start(job: Job, allocation: Allocation, files: Sequence[Path]) -> list[SpawnProcess]:
    """Start the ranks with stop signals ignored: Ctrl-C reaches all processes, and only the parent handles it."""
    gpus = ",".join(map(str, local_gpus()[: allocation.gpus])) if allocation.gpus else ""
    port, spawn = free_port(), multiprocessing.get_context("spawn")
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    processes = []
    try:
        for rank, file in enumerate(files):
            environment = local_environment(rank, len(files), port) | {"CUDA_VISIBLE_DEVICES": gpus}
            processes.append(spawn.Process(target=_run_rank, args=(job, environment, file)))
            processes[-1].start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return processes


def _run_rank(job: Job, environment: dict[str, str], file: Path) -> None:
    """Run one rank in this process, with its output in `file` and the work's exit code as its own."""
    # A handler that does nothing: an ignored signal would stay ignored in loader workers, which SIGTERM ends.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with file.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(environment)
    code = job.run()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python's shutdown would restore the default, which kills
    sys.exit(code)


class _Tail:
    """Copies what is appended to a log to stdout."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def copy(self) -> None:
        """Write the complete new lines to stdout."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        with contextlib.suppress(OSError):  # the terminal is closed
            sys.stdout.write(complete.decode("utf-8", errors="replace"))
            sys.stdout.flush()


def _watch(processes: Sequence[SpawnProcess], first_log: Path) -> int:
    """Copy rank 0's log until every rank has exited; return the number of stop signals received."""
    tail, stops = _Tail(first_log), list[int]()
    failed_at = float("inf")

    def stop(number: int, frame: object) -> None:
        if stops and number not in (signal.SIGINT, signal.SIGTERM):  # a closed terminal may send SIGHUP twice
            return
        stops.append(number)
        log.warning("%s: the run saves a checkpoint and stops; Ctrl-C to kill it", signal.Signals(number).name)

    hung_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # nohup ignores it: the run outlives its terminal
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS if hung_up or number != signal.SIGHUP}
    try:
        while any(process.exitcode is None for process in processes):
            tail.copy()
            if any(process.exitcode not in (None, DONE, RUN_AGAIN) for process in processes):
                failed_at = min(failed_at, time.monotonic())
            kill = len(stops) > 1 or time.monotonic() - failed_at > GRACE_SECONDS
            for process in processes if kill or stops else ():  # in every round: a rank may not have been listening yet
                (process.kill if kill else process.terminate)()
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    tail.copy()
    return len(stops)
