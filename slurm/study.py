"""A study on a cluster: its missing runs as arrays, one array for each step of the way from random weights to a test.

    launch.py study SPEC --out DIR  ->  level 0: runs that need nothing, level 1: those that start from them, ...  ->  a Stage each

A level waits for the one before. Runs that are there already are left out, so launching again after a failure submits what is missing.
"""

from pathlib import Path

from ppma.config.command import parse
from ppma.config.errors import InputError
from ppma.config.run import check_ranks
from ppma.slurm.cluster import ClusterConfig, allocate
from ppma.slurm.estimate import hours_left
from ppma.slurm.job import Job, command, train
from ppma.study.plan import Run
from ppma.study.work import Planned, StudyConfig, plan, write_listing


def levels(planned: Planned) -> list[list[Run]]:
    """The runs that are not there, in arrays: each needs only runs that are there or stand in an array before its own."""
    level: dict[Path, int] = {}
    for run, state in zip(planned.runs, planned.states):
        if state != "done":
            level[run.folder] = 1 + max((level.get(parent.folder, -1) for parent in run.needs), default=-1)
    deepest = max(level.values(), default=-1)
    return [[run for run in planned.runs if level.get(run.folder) == depth] for depth in range(deepest + 1)]


def study_jobs(
    flags: list[str], cluster: ClusterConfig, *, writes: bool, prog: str
) -> list[tuple[str, tuple[Job, ...], dict[str, str]]]:
    """(name, jobs, facts) of each array. `writes`: also leave the listing that `ppma report` reads."""
    options = parse(StudyConfig, flags, prog=prog)
    planned = plan(options, draw=False)
    if any(not run.config.data or not run.config.data.exists() for run in planned.runs if run.config):
        raise InputError(
            f"the data of {options.spec} is not drawn yet: ppma study {options.spec} --out {options.out} --only data"
        )
    arrays = levels(planned)
    if not arrays:
        raise InputError(f"all {len(planned.runs)} runs are there already; the table: ppma report {options.out}")
    allocation = allocate(cluster)
    ranks, on_gpu = allocation.ranks, allocation.gpus > 0
    made = []
    for depth, runs in enumerate(arrays):
        jobs = tuple(_job(run, options, cluster, ranks) for run in runs)
        times = list(dict.fromkeys(hours_left(run.config, ranks, on_gpu=on_gpu) for run in runs if run.config))
        facts = {
            "runs": str(len(runs)),
            "which": ", ".join(run.title for run in runs),
            "estimated time of each": "; ".join(times),
        }
        made.append((f"study-{depth}", jobs, facts))
    if writes:
        write_listing(planned, options.out)
    return made


def _job(run: Run, options: StudyConfig, cluster: ClusterConfig, ranks: int) -> Job:
    """A training over all ranks of its allocation; an average is a copy of files, which the first of them does."""
    if run.config is None:
        only = ["study", str(options.spec.absolute()), "--out", str(options.out.absolute()), "--only", run.folder.name]
        return Job(work=command, config=only, ranks=ranks)
    check_ranks(run.config, ranks)
    return Job(work=train, config=run.config, ranks=ranks, stage_to=cluster.stage_to)
