"""`python slurm/launch.py VERB`: take a run to a cluster, or run it here through the same job.

    verb, flags -> plan: stages with resolved configs -> a table of what will happen -> checks -> copy of the code -> submitit

Nothing is submitted by halves: all that can be wrong is looked at first, and when SLURM refuses a stage the ones before it are cancelled.
Imports no torch for a training: a login node resolves and shows a run without it. Exit codes as everywhere: see ppma.config.command.
"""

import contextlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from submitit.core.utils import FailedJobError, FailedSubmissionError

from ppma.config.command import DONE, WRONG_INPUT, run
from ppma.config.errors import InputError
from ppma.slurm import snapshot
from ppma.slurm.cluster import Script, allocate, executor, free_port, require_slurm, sbatch_script
from ppma.slurm.foreground import follow
from ppma.slurm.plan import VERBS, Stage, Verb, check_inputs, plan
from ppma.slurm.site import check, explain_refusal
from ppma.slurm.status import LAUNCH, active_jobs
from ppma.slurm.status import main as status


def _show(stages: Sequence[Stage], cluster: Verb, console: Console) -> None:
    """The table of what will happen, a column for each stage."""
    allocation = allocate(cluster)
    size = {"nodes x GPUs": f"{allocation.nodes} x {allocation.gpus}", "processes": str(allocation.ranks)}
    table = Table(box=None, pad_edge=False)
    for heading in ("", *(stage.name for stage in stages)):
        table.add_column(heading, overflow="fold")
    for name in (*size, *stages[0].facts):
        table.add_row(name, *((size | stage.facts)[name] for stage in stages))
    console.print(table)


def _script(stage: Stage, after: tuple[str, ...] = ()) -> Script:
    run_dir = stage.folder if stage.config else None
    return Script(name=stage.name, logs=stage.logs, after=after, code=stage.folder / snapshot.CODE, run_dir=run_dir)


def _prepare(stage: Stage, cluster: Verb) -> None:
    """Copy the code and write down what is about to be submitted."""
    copied = snapshot.take(stage.folder)
    if stage.config:
        (stage.folder / "config.json").write_text(stage.config.to_json())
    record = {
        "command": [sys.executable, *sys.argv],
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "code": asdict(copied) | {"folder": str(copied.folder)},
        "cluster": asdict(cluster),
        "jobs": [],
    }
    file = stage.folder / LAUNCH
    before = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*before, record], indent=2, default=str) + "\n")


def _note_jobs(stage: Stage, jobs: list[str]) -> None:
    file = stage.folder / LAUNCH
    records = json.loads(file.read_text())
    records[-1]["jobs"] = jobs
    file.write_text(json.dumps(records, indent=2) + "\n")


def _withdraw(stages: Sequence[Stage], made: Sequence[Path], jobs: Sequence[str]) -> None:
    """Take back what was submitted and written before a stage was refused."""
    if jobs:
        subprocess.run(["scancel", *jobs], check=False)
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def _submit_all(stages: Sequence[Stage], cluster: Verb, console: Console) -> list[list[str]]:
    """Job ids of each stage, which waits for the one before."""
    ids: list[list[str]] = []
    made = [stage.folder for stage in stages if not stage.folder.exists()]
    try:
        for stage in stages:
            _prepare(stage, cluster)
            target = executor(cluster, _script(stage, tuple({job.split("_")[0] for job in ids[-1]} if ids else ())))
            with (
                contextlib.redirect_stderr(io.StringIO()),
                target.batch(),
            ):  # sbatch's complaint comes with the exception
                jobs = [target.submit(job) for job in stage.jobs]
            ids.append([job.job_id for job in jobs])
            _note_jobs(stage, ids[-1])
            console.print(f"submitted {stage.name} as job {ids[-1][0].split('_')[0]}", soft_wrap=True)
    except (FailedJobError, FailedSubmissionError) as error:
        _withdraw(stages, made, [job for jobs in ids for job in jobs])
        raise InputError(explain_refusal(str(error))) from None
    except BaseException:
        _withdraw(stages, made, [job for jobs in ids for job in jobs])
        raise
    return ids


def _submit(stages: Sequence[Stage], cluster: Verb, console: Console) -> int:
    """Check, hand the stages to SLURM, and say what one needs next."""
    check_inputs(stages)
    check(cluster)
    for stage in stages:
        if active := active_jobs(stage.folder):
            raise InputError(f"{stage.folder} is in the queue as job {', '.join(active)}; scancel it first")
    if cluster.require_clean:
        snapshot.require_clean(snapshot.source_root())
    ids = _submit_all(stages, cluster, console)
    log, first = stages[0].logs, ids[0][0]
    jobs = " ".join(dict.fromkeys(job.split("_")[0] for stage in ids for job in stage))
    console.print("\nfollow the log:  " + shlex.join(["tail", "-F", f"{log}/{first}_0_log.out"]), soft_wrap=True)
    console.print(
        "see the curves:  " + shlex.join(["tensorboard", "--logdir", str(cluster.runs.absolute())]), soft_wrap=True
    )
    console.print(f"cancel:          scancel {jobs}", soft_wrap=True)
    return DONE


def _run_here(stages: Sequence[Stage], cluster: Verb, console: Console) -> int:
    """One stage after the other, in the foreground; the first that does not end well ends it all."""
    check_inputs(stages)
    for stage in stages:
        for job in stage.jobs:
            console.print(f"\n{stage.name}", soft_wrap=True)
            if cluster.cluster == "debug":
                code = job.work(job.config)
            else:
                code = follow(executor(cluster, _script(stage)), replace(job, port=free_port()))
            if code != DONE:
                return code
    return DONE


def _dry_run(stages: Sequence[Stage], cluster: Verb) -> int:
    """Write what would be submitted."""
    for number, stage in enumerate(stages):
        if cluster.cluster == "slurm":
            script = _script(stage, ("JOB_OF_STAGE_1",) if number else ())
            text = sbatch_script(cluster, script, tasks_of_array=len(stage.jobs))
        else:
            text = (
                f"{allocate(cluster).tasks} x {shlex.quote(sys.executable)} -u -m submitit.core._submit {stage.logs}\n"
            )
        sys.stdout.write(f"\n# {stage.name}\n{text}")
    return DONE


def _launch(verb: str, argv: list[str]) -> int:
    cluster, stages = plan(verb, argv)
    if cluster.cluster == "slurm" and not cluster.dry_run:
        require_slurm()
    console = Console(highlight=False)
    _show(stages, cluster, console)
    if cluster.dry_run:
        return _dry_run(stages, cluster)
    return (_submit if cluster.cluster == "slurm" else _run_here)(stages, cluster, console)


def main(argv: list[str] | None = None) -> int:
    """Run `launch.py ARGV` and return its exit code."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        lines = [f"  {name:<14} {purpose}" for name, (_, purpose) in VERBS.items()]
        lines.append(f"  {'status':<14} state, step, speed, time left and restarts of a run: status RUN")
        sys.stdout.write(
            "usage: launch.py VERB [--cluster slurm|local|debug] [--nodes N] [--dry-run] [FLAGS OF THE RECIPE]\n\n"
        )
        sys.stdout.write("\n".join(lines) + "\n\nStart with: python slurm/launch.py pretrain --nodes 8 --dry-run\n")
        return DONE
    if verb == "status":
        return run(status, rest, prog="launch.py status")
    if verb not in VERBS:
        sys.stderr.write(f"launch.py: there is no verb {verb!r}; verbs: {', '.join([*VERBS, 'status'])}\n")
        return WRONG_INPUT
    return run(lambda argv: _launch(verb, argv), rest, prog=f"launch.py {verb}")


if __name__ == "__main__":
    sys.exit(main())
