"""`ppma study SPEC.toml`: plan the runs of a study, keep those that are there, do the others.

    spec -> plan -> OUT/NAME.study.json (who is who: names and folders, no number) -> runs, one after the other -> `ppma report OUT`

A run that ended is never done again: its folder's name is the hash of what it is made of, and its seal vouches for its files. A run that
was stopped or killed goes on from its newest checkpoint. So the same command goes on wherever an earlier one ended.
"""

import fcntl
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ppma.config.command import DONE, RUN_AGAIN, parse
from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.study import spec
from ppma.study.plan import HashOf, Planner, Run, State, catalog_of
from ppma.training import seal

log = logging.getLogger(__name__)

WIDE = 200
"""Columns of the table of runs where the output is no terminal."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Run a study: a matrix of pre-training x protocol x data set x seed. Run it again after Ctrl-C: it goes on where it was.

    For example: ppma study docs/small-study/spec.toml --out runs/small-study
    """

    spec: tyro.conf.Positional[Path]
    """The study's TOML file; docs/study.md explains its keys."""
    out: Path = Path("runs/study")
    """Folder of all runs, which studies may share: a run that another study did is not done again."""
    videos: Path | None = None
    """Your own human-removed clips, <class>/<video>, on your word: stage 1 of a study that draws its data reads them beside the scenes."""
    only: str | None = None
    """Do just the run of this folder name, whose inputs must be there; or draw just the data: data. What jobs on a cluster call."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes that draw clips."""
    price_per_hour: float = 0.0
    """What an hour of this machine costs, in any currency; 0 leaves cost out."""
    dry_run: bool = False
    """Show the runs and what is left, and do nothing."""


def _nothing_yet(config: RunConfig) -> dict[str, str]:
    """Hashes of manifests that are still to be drawn."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A study with its runs and how far each is."""

    study: spec.Study
    runs: tuple[Run, ...]
    states: tuple[State, ...]


def plan(options: StudyConfig, *, draw: bool) -> Planned:
    """The study's runs. `draw`: draw its data first where it is missing; else keys of such a study stand for no data yet."""
    study = spec.read(options.spec)
    beside: dict[str, str] = {}
    hash_of: HashOf = seal.manifest_hashes
    data = catalog_of(study)
    if study.draw is not None or options.videos is not None:
        data, beside, hash_of = _drawn_data(study, options, draw)
    planner = Planner(study, options.out.absolute() / "runs", data, hash_of=hash_of, beside=beside)
    runs = tuple(_on(options.device, run) for run in planner.runs_in_order())
    return Planned(study=study, runs=runs, states=tuple(run.state() for run in runs))


def _on(device: Literal["auto", "cpu", "cuda"], run: Run) -> Run:
    return replace(run, config=run.config and replace(run.config, device=device))


def _drawn_data(study: spec.Study, options: StudyConfig, draw: bool) -> tuple[Path, dict[str, str], HashOf]:
    from ppma.study import draw as drawing  # pulls in the renderer

    settings = drawing.config(study, options.out.absolute(), options.videos, options.workers)
    if draw:
        drawing.draw(settings)
    there = draw or drawing.is_there(settings)
    return settings.data, drawing.beside(settings), seal.manifest_hashes if there else _nothing_yet


def listing(planned: Planned, out: Path) -> dict[str, Any]:
    """What `ppma report` needs to name runs: titles, cells of the table, folders, commands as one would type them; no result."""
    study = planned.study
    methods = {method.name: method.title for method in study.methods}
    protocols = {protocol.name: protocol.title for protocol in study.protocol.values()}
    rows = [
        {
            "method": run.row.method, "protocol": run.row.protocol, "dataset": run.row.dataset, "seed": run.seed,
            "folder": f"runs/{run.folder.name}", "chain": [f"runs/{other.folder.name}" for other in _chain(run)],
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
        "methods": methods, "protocols": protocols, "datasets": list(study.datasets), "rows": rows, "commands": commands,
    }  # fmt: skip


def _chain(run: Run) -> list[Run]:
    """All that a run came from, without itself."""
    found = {other.folder: other for parent in run.needs for other in (*_chain(parent), parent)}
    return list(found.values())


def write_listing(planned: Planned, out: Path) -> Path:
    """OUT/NAME.study.json, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{planned.study.name}.study.json"
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps(seal.signed(listing(planned, out)), indent=1) + "\n")
    beside.replace(file)
    return file


def do(run: Run) -> None:
    """One run, from its newest checkpoint where there is one."""
    if run.config is not None:
        from ppma.train import train

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


def work_through(runs: Sequence[Run], states: Sequence[State], price_per_hour: float) -> None:
    """Do what is not done; before each run say how long all that is left will take."""
    from ppma.study.estimate import left

    done = [state == "done" for state in states]
    if sum(done):
        log.info("%d of %d runs are there already", sum(done), len(runs))
    for number, run in enumerate(runs):
        if done[number]:
            continue
        how = "goes on" if run.folder.is_dir() else "begins"
        log.info(
            "[%d/%d] %s %s; left: %s", number + 1, len(runs), run.title, how, left(runs, done).words(price_per_hour)
        )
        do(run)
        done[number] = True


def show(planned: Planned, price_per_hour: float, console: Console) -> None:
    """The table of a dry run."""
    from ppma.study.estimate import left

    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "folder"):
        table.add_column(heading, overflow="fold")
    for run, state in zip(planned.runs, planned.states):
        table.add_row(run.title, state, run.folder.name)
    console.print(table)
    try:
        text = left(planned.runs, [state == "done" for state in planned.states]).words(price_per_hour)
    except InputError as error:
        text = f"not known before the data is there ({error})"
    console.print(f"\nleft: {text}", soft_wrap=True, markup=False)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder against a second study in it, which would train the same runs."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{out}: another `ppma study` is at work there; wait for it, or choose another --out"
            ) from None
        yield


def _only(options: StudyConfig, name: str) -> int:
    planned = plan(options, draw=name == "data")
    if name == "data":
        return DONE
    for run, state in zip(planned.runs, planned.states):
        if run.folder.name == name:
            if state != "done":
                do(run)
            return DONE
    raise InputError(f"--only {name}: the study has no such run; `--dry-run` lists them")


def _all(options: StudyConfig) -> int:
    with _alone(options.out):
        planned = plan(options, draw=True)
        file = write_listing(planned, options.out)
        work_through(planned.runs, planned.states, options.price_per_hour)
    log.info("all runs are there; the table: ppma report %s --out report", file)
    return DONE


def main(argv: list[str]) -> int:
    """Run `ppma study ARGV`."""
    options = parse(StudyConfig, argv, prog="ppma study")
    if options.dry_run:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = WIDE  # folder names are there to be copied
        show(plan(options, draw=False), options.price_per_hour, console)
        return DONE
    from ppma.train import Stopped

    try:
        return _all(options) if options.only is None else _only(options, options.only)
    except Stopped:
        sys.stderr.write("ppma study: stopped cleanly; run the same command again to continue\n")
        return RUN_AGAIN
