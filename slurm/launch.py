"""`python slurm/launch.py pretrain|align|finetune|probe`: take a run to a cluster, or run it here through the same job.

    verb, flags -> stages, each a resolved RunConfig -> a table of what will happen -> submitit -> ppma.slurm.job.Job on every task

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

from ppma.command import DONE, WRONG_INPUT, parse_known, run
from ppma.config import RunConfig
from ppma.loaders.errors import InputError
from ppma.recipes import resolve
from ppma.slurm.cluster import ClusterConfig, allocate, executor, free_port, require_slurm, sbatch_script
from ppma.slurm.foreground import follow
from ppma.slurm.job import Job

TRAIN = "ppma.train:train"


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


def _show(stages: Sequence[RunConfig], cluster: ClusterConfig, console: Console) -> None:
    """The table of what will happen, a column for each stage."""
    allocation = allocate(cluster)
    rates = [config.optim.peak_lr * config.batch / config.optim.reference_batch for config in stages]
    rows: dict[str, list[object]] = {
        "nodes x GPUs": [f"{allocation.nodes} x {allocation.gpus}"] * len(stages),
        "processes": [allocation.ranks] * len(stages),
        "global batch": [config.batch for config in stages],
        "peak rate at this batch": [f"{rate:.3g}" for rate in rates],
        "epochs": [config.optim.epochs for config in stages],
        "sources": [", ".join(config.sources) for config in stages],
        "starts from": [config.init or "scratch" for config in stages],
        "run folder": [config.run_dir for config in stages],
    }
    table = Table(box=None, pad_edge=False)
    for heading in ("", *(config.recipe for config in stages)):
        table.add_column(heading, overflow="fold")
    for name, values in rows.items():
        table.add_row(name, *map(str, values))
    console.print(table)


def _logs(config: RunConfig) -> Path:
    return config.run_dir / "jobs" / "%j"


def _submit(stages: Sequence[RunConfig], cluster: ClusterConfig, console: Console) -> int:
    """Hand the stages to SLURM, each waiting for the one before."""
    before = None
    for config in stages:
        job = executor(cluster, folder=_logs(config), name=config.recipe, after=before).submit(
            Job(work=TRAIN, config=config)
        )
        console.print(f"submitted {config.recipe} as job {job.job_id}; its log: {job.paths.stdout}", soft_wrap=True)
        before = job.job_id
    return DONE


def _run_here(stages: Sequence[RunConfig], cluster: ClusterConfig, console: Console) -> int:
    """One stage after the other, in the foreground; the first that does not end well ends it all."""
    for config in stages:
        console.print(f"{config.recipe} starts, run folder {config.run_dir}", soft_wrap=True)
        code = follow(
            executor(cluster, folder=_logs(config), name=config.recipe),
            Job(work=TRAIN, config=config, port=free_port()),
        )
        if code != DONE:
            return code
    return DONE


def _dry_run(stages: Sequence[RunConfig], cluster: ClusterConfig) -> int:
    """Write what would be submitted."""
    for number, config in enumerate(stages):
        after = "JOB_OF_STAGE_1" if number else None
        if cluster.cluster == "slurm":
            text = sbatch_script(cluster, folder=_logs(config), name=config.recipe, after=after)
        else:
            text = f"{allocate(cluster).processes} x {shlex.quote(sys.executable)} -u -m submitit.core._submit {_logs(config)}\n"
        sys.stdout.write(f"\n# {config.recipe}\n{text}")
    return DONE


def _plan(verb: str, argv: list[str]) -> tuple[Launch | Pretrain, list[RunConfig]]:
    prog = f"launch.py {verb}"
    if verb == "pretrain":
        pretrain, flags = parse_known(Pretrain(), argv, prog=prog)
        return pretrain, _pretrain_stages(pretrain, flags, prog)
    launch, flags = parse_known(Launch(recipe=VERBS[verb][0]), argv, prog=prog)
    return launch, [_place(resolve(launch.recipe, flags, prog=prog), launch.runs)]


def _launch(verb: str, argv: list[str]) -> int:
    cluster, stages = _plan(verb, argv)
    if cluster.cluster == "slurm" and not cluster.dry_run:
        require_slurm()
    for config in stages:
        _check(config, cluster)
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
