"""Show how a run is doing, from its folder and the cluster's queue: `launch.py status RUN`.

launch.json, metrics.jsonl, checkpoints, environment.json, squeue/sacct  ->  state, step, clips/s, time left, restarts
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from ppma.config.command import DONE, parse
from ppma.config.errors import InputError, reading
from ppma.config.run import read_config
from ppma.slurm.restart import newest_step
from ppma.training.run_folder import read_metrics

LAUNCH = "launch.json"
"""File in the run folder with one record per submission."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


@dataclass(frozen=True, kw_only=True)
class Status:
    """Show state, step, speed, time left and restarts of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""


def _read(file: Path, otherwise: Any) -> Any:
    if not file.is_file():
        return otherwise
    with reading(file, "a record of a run"):
        return type(otherwise)(json.loads(file.read_text(encoding="utf-8")))


def _states(command: list[str]) -> dict[str, str]:
    """Return the state of each job that squeue or sacct prints as `job|state`."""
    if shutil.which(command[0]) is None:
        return {}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # squeue refuses old jobs
    return {line.partition("|")[0]: line.partition("|")[2] for line in done.stdout.splitlines()}


def _queued(folder: Path) -> dict[str, str]:
    """Return the state of each job of the run's newest submission; empty for jobs that the queue no longer holds.

    A submission that was refused or killed has a record without jobs.
    """
    jobs: list[str] = next((record["jobs"] for record in reversed(_read(folder / LAUNCH, [])) if record["jobs"]), [])
    states = _states(["squeue", "-h", "-r", "-o", "%i|%T", "-j", ",".join(jobs)]) if jobs else {}
    return {job: states.get(job, "") for job in jobs}


def active_jobs(folder: Path) -> list[str]:
    """Return the jobs of a run that are pending or running."""
    return [job for job, state in _queued(folder).items() if state and state not in ENDED]


def _state(folder: Path) -> str:
    states = _queued(folder)
    if gone := [job for job, state in states.items() if not state]:
        states |= _states(["sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(gone)])
    jobs = (f"{(state or 'not in the queue').lower()} (job {job})" for job, state in states.items())
    return ", ".join(jobs) or "not submitted by the launcher"


def describe(folder: Path) -> dict[str, str]:
    """Return state, step, newest checkpoint, speed, time left and restarts of a run; only the state of an array.

    Raises:
        InputError: The folder holds no run.
    """
    if not (folder / "config.json").is_file():
        if (folder / LAUNCH).is_file():
            return {"state": _state(folder)}
        raise InputError(f"{folder}: no run folder (it has no config.json)")
    config = read_config(folder)
    row = next((row for row in reversed(read_metrics(folder)) if "perf/clips_per_s" in row), None)
    step, rate = (row["step"], row["perf/clips_per_s"]) if row else (newest_step(folder), None)
    saved = sorted((folder / "checkpoints").glob("step_*/state.json"))
    total = _read(saved[-1], {})["steps_per_epoch"] * config.optim.epochs if saved else None
    left = "not known"
    if total is not None and step >= total:
        left = "none"
    elif total is not None and rate:
        left = str(timedelta(seconds=round((total - step) * config.batch / rate)))
    return {
        "state": _state(folder),
        "step": f"{step} of {total}"
        if total is not None
        else f"{step}; the total is known from the first checkpoint on",
        "newest checkpoint": str(newest_step(folder) or "none"),
        "clips/s": f"{rate:.1f}" if rate else "not known",
        "time left": left,
        "restarts": str(max(len(_read(folder / "environment.json", [])) - 1, 0)),
    }


def main(argv: list[str]) -> int:
    """Run `launch.py status ARGV`."""
    status = parse(Status, argv, prog="launch.py status")
    table = Table(box=None, show_header=False, pad_edge=False)
    with reading(status.run, "the folder of a run"):
        rows = describe(status.run)
    for row in rows.items():
        table.add_row(*row)
    Console(highlight=False).print(table)
    return DONE
