"""Show how a run or an array is doing, from its folder and the cluster's queue: `launch.py status RUN`.

launch.json, metrics.jsonl, checkpoints, environment.json, restarts.json, squeue/sacct  ->  state, step, last error, ETTR
"""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from ppma.config.command import DONE, RUN_AGAIN, parse
from ppma.config.errors import InputError, reading, require
from ppma.config.run import read_config
from ppma.slurm.cluster import NO_ANSWER, ask
from ppma.slurm.restart import End, newest_step, read_ends
from ppma.training.run_folder import living_owner, read_metrics

LAUNCH = "launch.json"
"""File in the run folder with one record per submission."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")
_DONE_OF = re.compile(r"(\d+) of (\d+)\b.*(?:/s|loss)")
"""A line of progress, of a command or of a training."""
TAIL_BYTES = 20_000
WIDE = 300
"""Columns of the table where the output is not a terminal."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Show state, step, speed, last error, restarts and use of time of a run, or how many jobs of an array are done."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or folder of a submission."""


def read_record(file: Path, otherwise: Any) -> Any:
    """Return the JSON of a record of a run, or `otherwise` if there is none."""
    if not file.is_file():
        return otherwise
    with reading(file, "a record of a run"):
        return type(otherwise)(json.loads(file.read_text(encoding="utf-8")))


# ------------------------------------------------------------------------------------------------------ states of jobs


def _states(*command: str) -> dict[str, str]:
    """Return the state of each job that squeue or sacct prints as `job|state`; none where there is no such command."""
    done = ask(*command)  # squeue fails for old jobs
    require(done.returncode != NO_ANSWER, f"{command[0]}: {done.stderr}")
    return {line.partition("|")[0]: line.partition("|")[2] for line in done.stdout.splitlines()}


def _queued(folder: Path) -> dict[str, str]:
    """Return the state of each job of the run's newest submission; empty for jobs that the queue no longer holds.

    A submission that was refused or killed has a record without jobs.
    """
    submitted = [record["jobs"] for record in read_record(folder / LAUNCH, []) if record["jobs"]]
    jobs: list[str] = submitted[-1] if submitted else []
    states = _states("squeue", "-h", "-r", "-o", "%i|%T", "-j", ",".join(jobs)) if jobs else {}
    return {job: states.get(job, "") for job in jobs}


def active_jobs(folder: Path) -> list[str]:
    """Return the jobs of a run that are pending or running."""
    return [job for job, state in _queued(folder).items() if _is_active(state)]


def _is_active(state: str) -> bool:
    return bool(state) and state not in ENDED


def _job_states(folder: Path) -> dict[str, str]:
    """Return the state of each job of the newest submission, from squeue, sacct, or the exit codes of its tasks; "" if unknown."""
    states = _queued(folder)
    if gone := [job for job, state in states.items() if not state]:
        states |= _states("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(gone))
    for job in gone:
        codes = {file.read_text() for file in (folder / "jobs").glob(f"{job}_*_result.exit")}
        states[job] = states[job] or ("" if not codes else "COMPLETED" if codes == {"0"} else "FAILED")
    return states


def _state(folder: Path) -> str:
    jobs = (f"{(state or 'not in the queue').lower()} (job {job})" for job, state in _job_states(folder).items())
    owner = living_owner(folder)
    return ", ".join(jobs) or (f"running ({owner})" if owner else "not submitted by the launcher")


# ---------------------------------------------------------------------------------------------------- the use of the time


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where the seconds since the first start of a run went."""

    wall: float
    productive: float
    """Steps that were kept."""
    queue: float
    """From the end of a start to the beginning of the next."""
    startup: float
    """From the beginning of a start to its first step, and what this took longer than others: compilation, first clips."""
    lost: float
    """Steps that were repeated after a restart."""

    def __str__(self) -> str:
        parts = {"queue": self.queue, "start-up": self.startup, "lost steps": self.lost}
        parts["stalls and other"] = max(0.0, self.wall - self.productive - sum(parts.values()))
        rest = ", ".join(f"{name} {part / self.wall:.1%}" for name, part in parts.items())
        return f"{self.productive / self.wall:.1%} of {timedelta(seconds=round(self.wall))}; {rest}"


def account(
    starts: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    ends: Sequence[End],
    batch: int,
    now: float | None,
) -> Account | None:
    """Return the use of the time of a run; None before its first logged step.

    Args:
        starts: Entries of environment.json.
        rows: Rows of metrics.jsonl, which hold each step once.
        ends: Starts that ended before their time.
        batch: Global batch in rows.
        now: Seconds since the epoch while the run is running or queued; None for one that has ended.
    """
    rows = [row for row in rows if row.get("perf/clips_per_s")]
    if not rows or not starts:
        return None
    # 1. Steps. The first of a start wait for compilation and for the first clips: what that takes is start-up.
    began = [start["began"] for start in starts]
    spans = list(zip(began, [*began[1:], float("inf")]))
    first = [next((row for row in rows if begin <= row["time"] < end), None) for begin, end in spans]
    slow = {row["step"] for row in first if row}
    usual = [batch / row["perf/clips_per_s"] for row in rows if row["step"] not in slow]
    most = median(usual) if usual else float("inf")
    seconds = {row["step"]: batch / row["perf/clips_per_s"] for row in rows}
    seconds |= {step: min(seconds[step], most) for step in slow}
    productive = sum((step - before) * each for (step, each), before in zip(seconds.items(), [0, *seconds]))
    # 2. What came before, between and after them
    startup = sum(
        row["time"] - start["began"] - (row["step"] - start["step"]) * seconds[row["step"]]
        for start, row in zip(starts, first)
        if row
    )
    stops = [_stop(ends, *span, start["last_step"] or span[0]) for span, start in zip(spans, starts[1:])]
    queue = sum(begin - stop for begin, stop in zip(began[1:], stops))
    last = _stop(ends, *spans[-1], rows[-1]["time"])
    if now is not None and last > rows[-1]["time"]:
        queue += now - last
    return Account(
        wall=(last if now is None else now) - began[0], productive=productive, queue=queue, startup=startup,
        lost=sum(start["lost_seconds"] for start in starts),
    )  # fmt: skip


def _stop(ends: Sequence[End], begin: float, end: float, otherwise: float) -> float:
    """Return when the start between two times ended: as recorded, otherwise with its last step."""
    return next((stop.time for stop in reversed(ends) if begin < stop.time < end), otherwise)


# --------------------------------------------------------------------------------------------------------- descriptions


def describe(folder: Path) -> dict[str, str]:
    """Return state, step, speed, time left, last error, restarts and use of the time of a run; the counts of an array.

    Raises:
        InputError: The folder holds no run.
    """
    if not (folder / "config.json").is_file():
        if arrays := sorted(file.parent for file in (*folder.glob(LAUNCH), *folder.glob(f"*/{LAUNCH}"))):
            return {name: text for array in arrays for name, text in _describe_array(array).items()}
        raise InputError(f"{folder}: no run folder (it has no config.json)")
    config, rows, ends = read_config(folder), read_metrics(folder), read_ends(folder)
    row = next((row for row in reversed(rows) if "perf/clips_per_s" in row), None)
    step, rate = (row["step"], row["perf/clips_per_s"]) if row else (newest_step(folder), None)
    saved = sorted((folder / "checkpoints").glob("step_*/state.json"))
    total = read_record(saved[-1], {})["steps_per_epoch"] * config.optim.epochs if saved else None
    finished = total is not None and step >= total
    left = timedelta(seconds=round((total - step) * config.batch / rate)) if total and rate else "not known"
    now = time.time()
    active = not finished and bool(active_jobs(folder) or living_owner(folder))
    starts = read_record(folder / "environment.json", [])
    restarts = max(len(starts) - 1, 0)
    until = row["time"] if row and finished else now  # a test that follows is no part of the training
    starts, stops = [start for start in starts if start["began"] <= until], [end for end in ends if end.time <= until]
    used = account(starts, rows, stops, config.batch, now if active else None)
    logs = sorted((folder / "jobs").glob("*_0_log.out"), key=lambda file: file.stat().st_mtime)
    return {
        "state": _state(folder),
        "step": f"{step} of {total}" if total else f"{step}; the total is known from the first checkpoint on",
        "age of the last step": str(timedelta(seconds=round(max(now - row["time"], 0)))) if row else "not known",
        "newest checkpoint": str(newest_step(folder) or "none"),
        "clips/s": f"{rate:.1f}" if rate else "not known",
        "time left": "none" if finished else str(left),
        "last error": _error(ends),
        "log": str(logs[-1]) if logs else "none in this folder",
        "restarts": str(restarts),
        "ETTR": "not known" if used is None else str(used),
    }


def _error(ends: Sequence[End]) -> str:
    if not ends:
        return "none"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ends[-1].time))
    what = ends[-1].error or ("stopped cleanly" if ends[-1].code == RUN_AGAIN else "none in the log")
    return f"{what} (exit code {ends[-1].code} at step {ends[-1].step}, {when})"


def _describe_array(folder: Path) -> dict[str, str]:
    """Return how many jobs of an array are in which state, how far they are on average, and the logs of those that failed."""
    states = _job_states(folder)
    kinds = {job: _kind(state) for job, state in states.items()}
    counts, logs = Counter(kinds.values()), {job: folder / "jobs" / f"{job}_0_log.out" for job in states}
    parts = [f"{counts[kind]} {kind}" for kind in ("done", "failed", "running", "waiting", "not known") if counts[kind]]
    shares = [1.0 if kind == "done" else _share(logs[job]) for job, kind in kinds.items()]
    failed = [str(logs[job]) for job, kind in kinds.items() if kind == "failed"]
    return {
        folder.name: f"{', '.join(parts) or 'not submitted'} of {len(states)}",
        f"{folder.name}, progress": f"{sum(shares) / max(len(shares), 1):.0%}",
    } | ({f"{folder.name}, failed": "\n".join(failed)} if failed else {})


def _kind(state: str) -> str:
    if state.startswith("COMPLETED"):
        return "done"
    if not _is_active(state.partition(" ")[0]):  # sacct: "CANCELLED by 0"
        # A job that left the queue without an exit code was killed.
        return "failed" if state or shutil.which("squeue") else "not known"
    return "running" if state in ("RUNNING", "COMPLETING") else "waiting"


def _share(log: Path) -> float:
    """Return how much of its work a job has done, from the last line of progress in its log."""
    if not log.is_file():
        return 0.0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        found = _DONE_OF.findall(file.read().decode(errors="replace"))
    return int(found[-1][0]) / max(int(found[-1][1]), 1) if found else 0.0


def main(argv: list[str]) -> int:
    """Run `launch.py status ARGV`."""
    status = parse(Status, argv, prog="launch.py status")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")  # paths are copied
    with reading(status.run, "the folder of a run"):
        rows = describe(status.run)
    for row in rows.items():
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE  # lines can be searched
    console.print(table)
    return DONE
