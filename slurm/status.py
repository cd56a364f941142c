"""`launch.py status RUN`: how a run is doing, from its folder and, where there is one, the cluster's queue.

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
from ppma.config.errors import InputError
from ppma.config.run import RunConfig, read_config
from ppma.slurm.restart import newest_step

LAUNCH = "launch.json"
"""In the run folder: one record for each submission."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Tell how a run is doing."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""


def submitted_jobs(folder: Path) -> list[str]:
    """Job numbers of the newest submission of a run."""
    file = folder / LAUNCH
    records = json.loads(file.read_text()) if file.exists() else []
    return list(records[-1]["jobs"]) if records else []


def _queue(jobs: list[str]) -> dict[str, str]:
    """State of each job that the queue knows."""
    if not jobs or shutil.which("squeue") is None:
        return {}
    done = subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i|%T", "-j", ",".join(jobs)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # of jobs that are long over squeue says that they are invalid
    return {line.partition("|")[0]: line.partition("|")[2] for line in done.stdout.splitlines()}


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


def active_jobs(folder: Path) -> list[str]:
    """Jobs of a run that wait or run."""
    return [job for job, state in _queue(submitted_jobs(folder)).items() if state not in ENDED]


def _state(folder: Path) -> str:
    """What SLURM says of the run's jobs."""
    jobs = submitted_jobs(folder)
    if not jobs:
        return "not submitted by the launcher"
    states = _queue(jobs)
    missing = [job for job in jobs if job not in states]
    if missing and shutil.which("sacct"):
        command = ["sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(missing)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        for line in done.stdout.splitlines():
            job, _, state = line.partition("|")
            states[job] = state
    return ", ".join(f"{states.get(job, 'not in the queue').lower()} (job {job})" for job in jobs)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics that are complete: the run may be writing the next one."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def _total_steps(folder: Path, config: RunConfig) -> int | None:
    """Steps of the whole run; known from the first checkpoint on."""
    states = sorted((folder / "checkpoints").glob("step_*/state.json"))
    if not states:
        return None
    return int(json.loads(states[-1].read_text())["steps_per_epoch"]) * config.optim.epochs


def facts(folder: Path) -> dict[str, str]:
    """What there is to say, by heading. InputError where there is no run."""
    if not (folder / "config.json").is_file():
        if (folder / LAUNCH).is_file():  # an array of tests or of shares of work
            return {"state": _state(folder)}
        raise InputError(f"{folder}: no run folder (it has no config.json)")
    config = read_config(folder)
    starts = json.loads((folder / "environment.json").read_text()) if (folder / "environment.json").exists() else []
    row = next((row for row in reversed(_rows(folder)) if "perf/clips_per_s" in row), None)
    total = _total_steps(folder, config)
    step, rate = (row["step"], row["perf/clips_per_s"]) if row else (newest_step(folder), None)
    left = "not known"
    if total is not None and step >= total:
        left = "none"
    elif total is not None and rate:
        left = str(timedelta(seconds=round((total - step) * config.batch / rate)))
    return {
        "state": _state(folder),
        "step": f"{step} of {total if total is not None else 'a number told by the first checkpoint'}",
        "newest checkpoint": str(newest_step(folder)) if newest_step(folder) else "none",
        "clips/s": f"{rate:.1f}" if rate else "not known",
        "time left": left,
        "restarts": str(max(len(starts) - 1, 0)),
    }


def main(argv: list[str]) -> int:
    """The verb."""
    status = parse(Status, argv, prog="launch.py status")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts(status.run).items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
    return DONE
