"""`python slurm/launch.py pretrain|align|finetune|probe|evaluate`: take a run to a cluster, or run it here through the same job.

    verb, flags -> stages, each with its resolved config -> a table of what will happen -> submitit -> ppma.slurm.job.Job on every task

The flags of the cluster and the verb are read here; all others go to the recipe (`ppma train RECIPE --help` lists them).
Imports no torch: a login node resolves and shows a run without it. Exit codes as everywhere: see ppma.command.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from ppma.command import DONE, WRONG_INPUT, parse, parse_known, run
from ppma.config import RunConfig
from ppma.loaders.errors import InputError
from ppma.recipes import resolve
from ppma.slurm.cluster import ClusterConfig, allocate, executor, free_port, require_slurm, sbatch_script
from ppma.slurm.foreground import follow
from ppma.slurm.job import Job, evaluate, train


@dataclass(frozen=True, kw_only=True)
class Launch(ClusterConfig):
    """Start a run on a cluster, or here with --cluster local. All other flags go to the recipe."""

    recipe: str
    """Name of the recipe."""
    runs: Path = Path("runs")
    """Folder in which the run folder is made."""
    dry_run: bool = False
    """Show what would be submitted, and submit nothing; needs no cluster."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(ClusterConfig):
    """Test a finished run on a cluster, or here with --cluster local. All other flags go to `ppma evaluate`."""

    dry_run: bool = False
    """Show what would be submitted, and submit nothing; needs no cluster."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job: what it is called, what it does, where its logs go, and what to say about it beforehand."""

    name: str
    job: Job
    logs: Path
    facts: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Pretrain(ClusterConfig):
    """Pre-train: stage 1 (MAE) and then stage 2 (Align), which starts from its checkpoint. All other flags go to both recipes."""

    stage: Literal["mae", "align", "both"] = "both"
    """Which stage. align alone starts from the newest checkpoint of stage 1 in --runs."""
    mae: str = "mae_nohuman"
    """Recipe of stage 1."""
    align: str = "align_nohuman_synthetic"
    """Recipe of stage 2."""
    mae_flags: str = ""
    """Flags for stage 1 only, in one string: --mae-flags="--optim.epochs 2"."""
    align_flags: str = ""
    """Flags for stage 2 only, in one string."""
    runs: Path = Path("runs")
    """Folder in which the run folders are made."""
    dry_run: bool = False
    """Show what would be submitted, and submit nothing; needs no cluster."""


VERBS: dict[str, tuple[str, str]] = {
    "pretrain": ("", "stage 1, then stage 2"),
    "align": ("align_nohuman_synthetic", "stage 2 alone: --init RUN"),
    "finetune": ("finetune", "transfer by fine-tuning: --dataset NAME --init RUN"),
    "probe": ("probe", "transfer by a linear probe: --dataset NAME --init RUN"),
    "evaluate": ("", "test a finished run: --checkpoint RUN --dataset NAME"),
}
"""verb: (its default recipe, what it does)."""


def _place(config: RunConfig, runs: Path) -> RunConfig:
    """The same run, its folder made absolute: a job may start elsewhere. `runs` takes the place of the recipe's own parent folder."""
    folder = runs / config.run_dir.name if config.run_dir.parent == Path("runs") else config.run_dir
    return replace(config, run_dir=folder.absolute(), init=config.init.absolute() if config.init else None)


def _pretrain_stages(launch: Pretrain, flags: Sequence[str], prog: str) -> list[RunConfig]:
    mae = _place(resolve(launch.mae, [*flags, *shlex.split(launch.mae_flags)], prog=prog), launch.runs)
    align = _place(resolve(launch.align, [*flags, *shlex.split(launch.align_flags)], prog=prog), launch.runs)
    if mae.run_dir == align.run_dir:
        raise InputError(
            f"both stages would write to {mae.run_dir}; --runs names the folder in which each gets its own"
        )
    if launch.stage == "both" or align.init is None:
        align = replace(align, init=mae.run_dir / "checkpoints" / "latest")
    return {"mae": [mae], "align": [align], "both": [mae, align]}[launch.stage]


def _check(config: RunConfig, cluster: ClusterConfig) -> None:
    """A global batch must divide among the processes; better said here than by a job that waited for an hour."""
    ranks = allocate(cluster).ranks
    if config.batch % (config.loader.views * config.accumulate * ranks):
        raise InputError(
            f"{config.recipe}: a batch of {config.batch} is {config.batch_clips} clips of {config.loader.views} views in"
            f" {config.accumulate} micro-batches, which {ranks} processes cannot share evenly; change --batch, --nodes or --processes"
        )


def _training(config: RunConfig, cluster: ClusterConfig) -> Stage:
    _check(config, cluster)
    rate = config.optim.peak_lr * config.batch / config.optim.reference_batch
    facts = {
        "global batch": str(config.batch),
        "peak rate at this batch": f"{rate:.3g}",
        "epochs": str(config.optim.epochs),
        "sources": ", ".join(config.sources),
        "starts from": str(config.init or "scratch"),
        "run folder": str(config.run_dir),
    }
    return Stage(name=config.recipe, job=Job(work=train, config=config), logs=config.run_dir / "jobs", facts=facts)


def _evaluation(flags: list[str], prog: str) -> Stage:
    """The flags are read here once, so that a wrong one is told at once; that imports torch."""
    from ppma.evaluate import Options, run_folder

    options = parse(Options, flags, prog=prog)
    facts = {"checkpoint": str(options.checkpoint), "data set": options.dataset, "split": options.evaluation.split}
    logs = run_folder(options.checkpoint).absolute() / "jobs"
    return Stage(name="evaluate", job=Job(work=evaluate, config=flags), logs=logs, facts=facts)


def _plan(verb: str, argv: list[str]) -> tuple[Launch | Pretrain | Evaluate, list[Stage]]:
    prog = f"launch.py {verb}"
    if verb == "pretrain":
        pretrain, flags = parse_known(Pretrain(), argv, prog=prog)
        return pretrain, [_training(config, pretrain) for config in _pretrain_stages(pretrain, flags, prog)]
    if verb == "evaluate":
        test, flags = parse_known(Evaluate(), argv, prog=prog)
        return test, [_evaluation(flags, prog)]
    launch, flags = parse_known(Launch(recipe=VERBS[verb][0]), argv, prog=prog)
    return launch, [_training(_place(resolve(launch.recipe, flags, prog=prog), launch.runs), launch)]


def _show(stages: Sequence[Stage], cluster: ClusterConfig, console: Console) -> None:
    """The table of what will happen, a column for each stage."""
    allocation = allocate(cluster)
    size = {"nodes x GPUs": f"{allocation.nodes} x {allocation.gpus}", "processes": str(allocation.ranks)}
    table = Table(box=None, pad_edge=False)
    for heading in ("", *(stage.name for stage in stages)):
        table.add_column(heading, overflow="fold")
    for name in (*size, *stages[0].facts):
        table.add_row(name, *((size | stage.facts)[name] for stage in stages))
    console.print(table)


def _submit(stages: Sequence[Stage], cluster: ClusterConfig, console: Console) -> int:
    """Hand the stages to SLURM, each waiting for the one before."""
    before = None
    for stage in stages:
        job = executor(cluster, folder=stage.logs, name=stage.name, after=before).submit(stage.job)
        console.print(f"submitted {stage.name} as job {job.job_id}; its log: {job.paths.stdout}", soft_wrap=True)
        before = job.job_id
    return DONE


def _run_here(stages: Sequence[Stage], cluster: ClusterConfig, console: Console) -> int:
    """One stage after the other, in the foreground; the first that does not end well ends it all."""
    for stage in stages:
        console.print(f"\n{stage.name}", soft_wrap=True)
        code = follow(executor(cluster, folder=stage.logs, name=stage.name), replace(stage.job, port=free_port()))
        if code != DONE:
            return code
    return DONE


def _dry_run(stages: Sequence[Stage], cluster: ClusterConfig) -> int:
    """Write what would be submitted."""
    for number, stage in enumerate(stages):
        if cluster.cluster == "slurm":
            text = sbatch_script(
                cluster, folder=stage.logs, name=stage.name, after="JOB_OF_STAGE_1" if number else None
            )
        else:
            text = f"{allocate(cluster).processes} x {shlex.quote(sys.executable)} -u -m submitit.core._submit {stage.logs}\n"
        sys.stdout.write(f"\n# {stage.name}\n{text}")
    return DONE


def _launch(verb: str, argv: list[str]) -> int:
    cluster, stages = _plan(verb, argv)
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
        lines = [f"  {name:<10} {purpose}" for name, (_, purpose) in VERBS.items()]
        sys.stdout.write(
            "usage: launch.py VERB [--cluster slurm|local] [--nodes N] [--dry-run] [FLAGS OF THE RECIPE]\n\n"
        )
        sys.stdout.write("\n".join(lines) + "\n\nStart with: python slurm/launch.py pretrain --nodes 8 --dry-run\n")
        return DONE
    if verb not in VERBS:
        sys.stderr.write(f"launch.py: there is no verb {verb!r}; verbs: {', '.join(VERBS)}\n")
        return WRONG_INPUT
    return run(lambda argv: _launch(verb, argv), rest, prog=f"launch.py {verb}")


if __name__ == "__main__":
    sys.exit(main())
