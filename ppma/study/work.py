"""`ppma study SPEC.toml`: plan the runs of a study and do those that are missing.

    spec -> plan -> OUT/NAME.study.json (names and folders, no results) -> runs, one after another -> `ppma report OUT`

A finished run is never repeated: its folder's name is the hash of its inputs, and its seal vouches for its files. A
stopped run resumes from its newest checkpoint, so the same command continues after any stop.
"""

import logging
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import tyro
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Column, Table

from ppma.common.files import write_json
from ppma.config.command import DONE, WRONG_INPUT, OutFolder, as_flags, parse
from ppma.config.errors import InputError, require
from ppma.study import spec
from ppma.study.plan import Planner, Run, State, ancestry, catalog_of
from ppma.training import inputs, seal

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"]
Kind = tuple[str, str]
WIDE = 200
"""Columns of the table of runs where the output is not a terminal."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Run a study: a matrix of pre-training x protocol x data set x seed. After Ctrl-C the same command continues.

    For example:
      ppma study docs/small-study/spec.toml --out runs/small-study
    """

    spec: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
    """The study's TOML file; docs/study.md explains its keys."""
    out: OutFolder = Path("runs/study")
    """Folder of all runs; studies may share it and then share their runs."""
    videos: Path | None = None
    """Your human-removed clips, <class>/<video>, which stage 1 reads in addition to rendered scenes."""
    only: str | None = None
    """Do only the run with this folder name, whose inputs must exist, or `data`: only render. For cluster jobs."""
    device: Device = "auto"
    """auto: the GPU if there is one."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes that render clips."""
    dry_run: bool = False
    """List the runs and what is missing of their data (exit code 2); do nothing."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A study, its runs, and the state of each."""

    study: spec.Study
    runs: tuple[Run, ...]
    states: tuple[State, ...]


def plan(options: StudyConfig, *, make_data: bool) -> Planned:
    """Plan the runs of a study; with `make_data` render missing data first, without which keys are provisional."""
    study = spec.read(options.spec)
    if study.draw is None and options.videos is None:
        return plan_runs(study, options.out, catalog_of(study), device=options.device)
    from ppma.study import data  # imports the renderer

    settings = data.data_config(study, options.out.absolute() / "data", options.videos, options.workers)
    if make_data:
        data.make_data(settings)
    return plan_runs(
        study, options.out, settings.data, device=options.device, complete=make_data or data.is_complete(settings),
        added={data.SCENES: data.REAL} if options.videos else None,
    )  # fmt: skip


def plan_runs(
    study: spec.Study,
    out: Path,
    data: Path,
    *,
    device: Device,
    complete: bool = True,
    added: Mapping[str, str] | None = None,
) -> Planned:
    """Plan the runs of a study in a folder, on a data catalog and a device; for `complete` and `added` see `Planner`."""
    planner = Planner(study, out.absolute() / "runs", data.absolute(), complete=complete, added=added)
    found = planner.runs_in_order()
    runs = tuple(replace(run, config=run.config and replace(run.config, device=device)) for run in found)
    return Planned(study=study, runs=runs, states=tuple(run.state() for run in runs))


def listing(planned: Planned, out: Path) -> dict[str, Any]:
    """Return what `ppma report` needs to name runs: titles, cells of the table, folders and commands, no results."""
    study = planned.study
    rows = [
        {
            "method": run.row.method, "protocol": run.row.protocol, "dataset": run.row.dataset, "seed": run.seed,
            "folder": f"runs/{run.folder.name}", "chain": [f"runs/{other.folder.name}" for other in ancestry(run)[:-1]],
            "starts": [f"runs/{other.folder.name}" for other in run.needs],
        }
        for run in planned.runs
        if run.row is not None
    ]  # fmt: skip
    commands = {
        f"runs/{run.folder.name}": ["ppma", *(word.replace(str(out.absolute()), str(out)) for word in run.command)]
        for run in planned.runs
    }
    return {
        "name": study.name, "title": study.title, "compare": study.compare, "humans": study.humans, "seeds": list(study.seeds),
        "methods": {method.name: method.title for method in study.methods},
        "protocols": {protocol.name: protocol.title for protocol in study.protocol.values()},
        "datasets": list(study.datasets), "rows": rows, "commands": commands,
    }  # fmt: skip


def write_listing(planned: Planned, out: Path) -> Path:
    """Write OUT/NAME.study.json and return its path."""
    file = out / f"{planned.study.name}.study.json"
    write_json(file, seal.signed(listing(planned, out)))
    return file


def run_one(run: Run) -> None:
    """Do one run, resuming it from its newest checkpoint."""
    if run.config is not None:
        from ppma.phases import train

        train(run.config)
        return
    from ppma.training import distributed
    from ppma.transfer import average

    began = time.monotonic()
    with distributed.session("cpu") as ranks:
        if ranks.is_main:
            shutil.rmtree(run.folder, ignore_errors=True)  # of a run that was killed between the weights and the seal
            average.main(list(run.command[1:]))
            seal.write(run.folder, manifests={}, init=None, seconds=time.monotonic() - began)
        distributed.barrier(ranks)


def run_missing(planned: Planned, out: Path) -> Path:
    """Write the listing, run what is unfinished, and return the listing's path.

    A run that fails takes only those with it that start from it. Its error is raised when the others are done.
    """
    file, seconds = write_listing(planned, out), defaultdict[Kind, list[float]](list)
    log.info("%d of %d runs are done", planned.states.count("done"), len(planned.runs))
    unfinished = []
    for number, (run, state) in enumerate(zip(planned.runs, planned.states), 1):
        if state == "done":
            seconds[_kind(run)].append(seal.read(run.folder).seconds)
        else:
            how = "resumes" if state == "started" else "starts"
            unfinished.append((run, f"[{number}/{len(planned.runs)}] {run.title}", how))
    failed: dict[Path, FloatingPointError | InputError] = {}
    for place, (run, title, how) in enumerate(unfinished):
        if cause := next((failed[parent.folder] for parent in run.needs if parent.folder in failed), None):
            failed[run.folder] = cause
            log.error("%s: not done, because it starts from a run that failed", title)
            continue
        left = time_left([run for run, _, _ in unfinished[place:]], seconds)
        log.info("%s %s; time left: %s", title, how, left)
        try:
            run_one(run)
        except (FloatingPointError, InputError) as error:  # the fault of this run; others concern them all
            failed[run.folder] = error
            log.error("%s failed: %s", title, error)
            continue
        seconds[_kind(run)].append(seal.read(run.folder).seconds)
    if failed:
        raise next(iter(failed.values()))
    return file


def _kind(run: Run) -> Kind:
    """Return what the duration of a run depends on most: protocol and data set of a test, else recipe and phase."""
    if run.row is not None:
        return run.row.protocol, run.row.dataset
    return (run.config.recipe, run.config.phase) if run.config else ("average", "")


def time_left(runs: Sequence[Run], seconds: Mapping[Kind, Sequence[float]]) -> str:
    """Return how long runs will take, in words.

    Args:
        runs: Unfinished runs.
        seconds: Durations of finished runs by kind; a run takes their mean. Kinds without one are left out.
    """
    known = [fmean(seconds[kind]) for kind in map(_kind, runs) if seconds.get(kind)]
    if not known:
        return "not known yet"
    return f"{'about' if len(known) == len(runs) else 'more than'} {timedelta(seconds=round(sum(known)))}"


def show(planned: Planned) -> None:
    """Print the table of a dry run."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE  # folder names can be copied
    table = Table(
        *(Column(heading, overflow="fold") for heading in ("run", "state", "folder")), box=None, pad_edge=False
    )
    for run, state in zip(planned.runs, planned.states):
        table.add_row(run.title, state, run.folder.name)
    console.print(table)
    console.print(f"\n{len(planned.runs) - planned.states.count('done')} of {len(planned.runs)} runs to do")


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Lock a folder against a second study, which would train the same runs; a killed process leaves no lock.

    Raises:
        InputError: Another process holds the lock.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"{out}: another study is running there; wait for it, or choose another --out") from None


def _do_only(options: StudyConfig, name: str) -> None:
    planned = plan(options, make_data=name == "data")
    if name == "data":
        return
    for run, state in zip(planned.runs, planned.states):
        if run.folder.name == name:
            if state != "done":
                run_one(run)
            return
    raise InputError(f"--only {name}: the study has no such run; --dry-run lists them")


def run_study(spec: Path | str, out: Path | str = "runs/study", **flags: object) -> Path:
    """Run a study as `ppma study` does, and return its listing, which `ppma report` takes.

    Args:
        spec: The study's TOML file; docs/study.md explains its keys.
        out: Folder of all runs. Finished ones are kept.
        flags: Other flags of `ppma study`, with _ for -: device="cpu", workers=2.

    Raises:
        InputError: The file is no study, there is no such flag, another study is running there, or a run failed.
        Stopped: A signal asked to stop; the same call continues.
    """
    options = parse(StudyConfig, [str(spec), *as_flags({"out": out, **flags})], prog="ppma study")
    require(not options.dry_run and options.only is None, "dry_run and only print or do a part: use `ppma study`")
    return run_all(options)


def run_all(options: StudyConfig) -> Path:
    """Do all runs of a study that are missing, and return its listing."""
    with lock(options.out):
        return run_missing(plan(options, make_data=True), options.out)


def main(argv: list[str]) -> int:
    """Run `ppma study ARGV`."""
    options = parse(StudyConfig, argv, prog="ppma study")
    if options.dry_run:
        planned = plan(options, make_data=False)
        show(planned)
        drawn = planned.study.draw is not None  # its data may come with the runs
        refused = [] if drawn else inputs.refused(inputs.data_checks(run.config for run in planned.runs if run.config))
        for line in refused:
            sys.stderr.write(f"this is refused: {line}\n")
        return WRONG_INPUT if refused else DONE
    if options.only is not None:
        _do_only(options, options.only)
        return DONE
    file = run_all(options)
    log.info("all runs are done; for the table: ppma report %s --out report", file)
    return DONE
