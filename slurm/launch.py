"""Submit a run to a cluster, or run it here: `python slurm/launch.py VERB`.

    verb, flags -> plan: stages with resolved configs -> summary table -> checks -> copy of the code -> submitit

Submission is all or nothing: inputs are checked first, and when SLURM refuses a stage the earlier ones are canceled.
A training is planned without torch, so a login node needs none. Exit codes: see ppma.config.command.
"""

import sys

if __name__ == "__main__":  # before the imports below, so that Ctrl-C is one line from here on
    from ppma.config.command import run

    sys.exit(run("ppma.slurm.launch", sys.argv[1:], prog="launch.py"))

import contextlib
import io
import json
import shlex
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from submitit.core.utils import FailedJobError, FailedSubmissionError

from ppma.common.files import write_text
from ppma.config.command import DONE, INTERRUPTED, WRONG_INPUT, run
from ppma.config.errors import InputError, require
from ppma.config.run import RunConfig
from ppma.slurm import checks, snapshot
from ppma.slurm.cluster import Script, allocate, executor, require_slurm, sbatch_script
from ppma.slurm.foreground import follow
from ppma.slurm.plan import VERBS, Stage, Verb, plan
from ppma.slurm.site import NoClusterError, explain_refusal
from ppma.slurm.site import check as check_cluster
from ppma.slurm.status import LAUNCH, active_jobs, read_record
from ppma.slurm.status import main as status
from ppma.training import inputs


def _show(stages: Sequence[Stage], cluster: Verb, console: Console) -> None:
    """Print what will happen, with one column per stage."""
    allocation, slurm = allocate(cluster), cluster.cluster == "slurm"
    each = f", each with {cluster.cpus} cores" if slurm else ""
    size = {"nodes x GPUs": f"{allocation.nodes} x {allocation.gpus}", "processes": f"{allocation.ranks}{each}"}
    if slurm:
        per_node = cluster.mem_gib and f"{cluster.mem_gib}G"
        asked = {"node": per_node, "core": cluster.mem_per_cpu, "GPU": cluster.mem_per_gpu}
        given = [f"{memory} a {unit}" for unit, memory in asked.items() if memory]
        size["memory"] = ", ".join(given) or "the cluster's default"
    table = Table(box=None, pad_edge=False)
    for heading in ("", *(stage.name for stage in stages)):
        table.add_column(heading, overflow="fold")
    for name in (*size, *stages[0].summary):
        table.add_row(name, *((size | stage.summary)[name] for stage in stages))
    table.add_row("folder", *(str(stage.folder) for stage in stages))
    console.print(table)
    code = snapshot.describe(snapshot.source_root())
    console.print(f"\nEach folder gets jobs/, the logs, and {snapshot.CODE}/, a copy of {code}.", soft_wrap=True)
    if slurm and "auto" in (cluster.gpus_per_node, cluster.cpus_per_task):
        assumed = f"--gpus-per-node {allocation.gpus} --cpus-per-task {cluster.cpus}"
        console.print(f"No cluster tells here what its nodes have; assumed: {assumed}.", soft_wrap=True)


def _script(stage: Stage, after: tuple[str, ...] = ()) -> Script:
    return Script(name=stage.name, logs=stage.logs, after=after, when=stage.when, code=stage.folder / snapshot.CODE)


def _prepare(stage: Stage, cluster: Verb) -> None:
    """Copy the code, write the config, and record the submission before it happens: no job runs without a record."""
    copied = snapshot.take(stage.folder)
    if stage.config:
        write_text(stage.folder / "config.json", stage.config.to_json())
    record = {
        "command": [sys.executable, *sys.argv],
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code": asdict(copied),
        "cluster": asdict(cluster),
        "jobs": [],
    }
    _write_records(stage, [*read_record(stage.folder / LAUNCH, []), record])


def _write_records(stage: Stage, records: list[dict[str, Any]]) -> None:
    write_text(stage.folder / LAUNCH, json.dumps(records, indent=2, default=str) + "\n")


def _arrays(stage: Stage, ids: Sequence[Sequence[str]]) -> dict[tuple[str, ...], list[int]]:
    """Group the jobs of a stage by the jobs that they wait for, given the job numbers of the stages before.

    Each group is an array: SLURM has one dependency for a whole array, and a failure must cancel only what needs the job.
    """
    before = tuple(dict.fromkeys(job.split("_")[0] for job in ids[-1])) if ids else ()
    groups = defaultdict[tuple[str, ...], list[int]](list)
    for number in range(len(stage.jobs)):
        groups[before if stage.needs is None else tuple(ids[s][j] for s, j in stage.needs[number])].append(number)
    return groups


def _submit_all(stages: Sequence[Stage], cluster: Verb, console: Console) -> list[list[str]]:
    """Submit the stages, each job after those that it needs, and return their job numbers; cancel all on an error."""
    ids: list[list[str]] = []
    created = [stage.folder for stage in stages if not stage.folder.exists()]
    try:
        for stage in stages:
            _prepare(stage, cluster)
            arrays = _arrays(stage, ids)
            ids.append([""] * len(stage.jobs))
            for after, members in arrays.items():
                target = executor(cluster, _script(stage, after))
                # sbatch's errors are in the exception too
                with contextlib.redirect_stderr(io.StringIO()), target.batch():
                    jobs = [target.submit(stage.jobs[number]) for number in members]
                for number, job in zip(members, jobs):
                    ids[-1][number] = job.job_id
            *before, record = read_record(stage.folder / LAUNCH, [])
            _write_records(stage, [*before, record | {"jobs": ids[-1]}])
            numbers = ", ".join(dict.fromkeys(job.split("_")[0] for job in ids[-1]))
            console.print(f"submitted {stage.name} as job {numbers}", soft_wrap=True)
    except BaseException as error:
        if submitted := [job for jobs in ids for job in jobs if job]:
            subprocess.run(["scancel", *submitted], check=False)
        for folder in created:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (FailedJobError, FailedSubmissionError)):
            raise InputError(explain_refusal(str(error))) from None
        raise
    return ids


def _submit(stages: Sequence[Stage], cluster: Verb, console: Console) -> int:
    """Submit the stages, and print the commands to follow and cancel them."""
    ids = _submit_all(stages, cluster, console)
    log = f"{stages[0].logs}/{ids[0][0]}_0_log.out"
    jobs = dict.fromkeys(job.split("_")[0] for stage in ids for job in stage)
    for what, command in (
        ("\nfollow the log:  ", ["tail", "-F", log]),
        ("see the curves:  ", ["tensorboard", "--logdir", str(cluster.runs.absolute())]),
        ("cancel:          ", ["scancel", *jobs]),
    ):
        console.print(what + shlex.join(command), soft_wrap=True)
    return DONE


def _run_here(stages: Sequence[Stage], cluster: Verb, console: Console) -> int:
    """Run the stages one after another in the foreground, up to the first that fails."""
    for stage in stages:
        for job in stage.jobs:
            console.print(f"\n{stage.name}", soft_wrap=True)
            debug = cluster.cluster == "debug"
            for _ in range(1 + job.retries):
                code = job.work(job.config) if debug else follow(job, allocate(cluster), stage.logs)
                if code in (DONE, WRONG_INPUT, INTERRUPTED):
                    break
            if code != DONE:
                return code
    return DONE


def _dry_run(stages: Sequence[Stage], cluster: Verb) -> int:
    """Print what would be submitted, and all that is refused."""
    ids: list[list[str]] = []
    for number, stage in enumerate(stages, 1):
        for after, members in _arrays(stage, ids).items():
            text = f"{allocate(cluster).tasks} processes of this machine, logs in {stage.logs}\n"
            if cluster.cluster == "slurm":
                text = sbatch_script(cluster, _script(stage, after), array_tasks=len(members))
            sys.stdout.write(f"\n# {stage.name}\n{text}")
        ids.append([f"STAGE-{number}_{job}" for job in range(len(stage.jobs))])
    sys.stdout.write("\n")
    sys.stdout.flush()
    refused = inputs.refused(_checks(stages, cluster))
    for line in refused:
        sys.stderr.write(f"this is refused: {line}\n")
    return WRONG_INPUT if refused else DONE


def _checks(stages: Sequence[Stage], cluster: Verb) -> Iterator[Callable[[], None]]:
    """Yield all that is checked before a submission."""
    yield checks.check_checkout
    coming = {stage.folder for stage in stages}
    trainings = [job.config for stage in stages for job in stage.jobs if isinstance(job.config, RunConfig)]
    yield from inputs.data_checks(trainings)
    yield from (partial(checks.check_rate, config) for config in trainings)
    for stage in stages:
        if stage.config:  # the runs of an array start from those of an earlier array
            yield partial(inputs.check_starts, stage.config, coming)
            yield partial(checks.check_privacy, stage.config, coming)
    if cluster.require_clean:
        yield partial(snapshot.require_clean, snapshot.source_root())
    if cluster.cluster == "slurm":
        yield partial(_check_cluster, cluster)
        yield from (partial(_check_idle, stage) for stage in stages)


def _check_cluster(cluster: Verb) -> None:
    """Compare the settings with the cluster. Where none answers, a dry run has said what it assumes."""
    with contextlib.suppress(*[NoClusterError] if cluster.dry_run else []):
        check_cluster(cluster)


def _check_idle(stage: Stage) -> None:
    active = active_jobs(stage.folder)
    require(not active, f"{stage.folder} is in the queue as job {', '.join(active)}; scancel it first")


def _check_name(folder: Path) -> None:
    """Raise InputError for a run folder in which jobs would not find the code or their logs."""
    why = {":": "separates the folders in PYTHONPATH", "%": "starts a placeholder in names of SLURM's logs"}
    for sign, does in why.items():
        message = f"run folder {folder}: its path must not contain {sign!r} on SLURM, because it {does}; rename it"
        require(sign not in str(folder), message)


def _launch(verb: str, argv: list[str]) -> int:
    cluster, stages = plan(verb, argv)
    if cluster.cluster == "slurm":
        for stage in stages:
            _check_name(stage.folder)
        if not cluster.dry_run:
            require_slurm()
    console = Console(highlight=False)
    _show(stages, cluster, console)
    if cluster.dry_run:
        return _dry_run(stages, cluster)
    for check in _checks(stages, cluster):
        check()
    return (_submit if cluster.cluster == "slurm" else _run_here)(stages, cluster, console)


def main(argv: list[str] | None = None) -> int:
    """Run `launch.py ARGV` and return its exit code."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    verbs = VERBS | {"status": "show state, step, last error, restarts and ETTR of a run or an array: status RUN"}
    if verb in ("-h", "--help"):
        usage = "usage: launch.py VERB [--cluster slurm|local|debug] [--nodes N] [--dry-run] [FLAGS OF THE RECIPE]"
        lines = "".join(f"  {name:<14} {purpose}\n" for name, purpose in verbs.items())
        sys.stdout.write(f"{usage}\n\n{lines}\nStart with: python slurm/launch.py pretrain --nodes 2 --dry-run\n")
        return DONE
    if verb not in verbs:
        sys.stderr.write(f"launch.py: there is no verb {verb!r}; verbs: {', '.join(verbs)}\n")
        return WRONG_INPUT
    return run(status if verb == "status" else lambda argv: _launch(verb, argv), rest, prog=f"launch.py {verb}")
