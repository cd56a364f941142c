"""Turn a verb of the launcher and its flags into stages of jobs, each stage waiting for the one before.

    pretrain --nodes 2     ->  Stage(mae), Stage(align)
    study SPEC --out DIR   ->  one array of missing runs for each step from random weights to a test
    pack SOURCE --parts N  ->  an array of N parts, then a job that merges them

Flags of the cluster and of the verb are read here; the cluster's nodes give what they leave open. All other flags go to
the recipe or to the verb's `ppma` command.
"""

import contextlib
import importlib
import itertools
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from ppma.cli import COMMANDS
from ppma.config.command import DONE, OutFolder, parse, parse_known
from ppma.config.errors import InputError, require, require_at_least
from ppma.config.flags import resolve
from ppma.config.run import ENCODED_ONCE, RunConfig, check_ranks, check_run_folder, ranks_per_unit
from ppma.loaders.sources import catalog
from ppma.slurm.cluster import ClusterConfig, allocate
from ppma.slurm.job import Job, command, evaluate, train
from ppma.slurm.site import NoClusterError, fit, with_site
from ppma.study.plan import Run
from ppma.study.work import Planned, StudyConfig, write_listing
from ppma.study.work import plan as plan_study
from ppma.training import inputs


@dataclass(frozen=True, kw_only=True)
class Verb(ClusterConfig):
    """Flags of every verb."""

    runs: OutFolder = Path("runs")
    """Folder in which run folders are created."""
    dry_run: bool = False
    """Show what would be submitted and what is refused (exit code 2); submit nothing. Needs no cluster."""
    require_clean: bool = False
    """Refuse to submit uncommitted code."""


VerbT = TypeVar("VerbT", bound=Verb)


@dataclass(frozen=True, kw_only=True)
class Launch(Verb):
    """Start a run on a cluster, or here with --cluster local. All other flags go to the recipe."""

    recipe: str
    """Name of the recipe."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(Verb):
    """Pre-train: stage 1 (MAE), then stage 2 (Align) from its checkpoint. All other flags go to both recipes."""

    stage: Literal["mae", "align", "both"] = "both"
    """Stages to run. `align` alone starts from the newest checkpoint of stage 1 in --runs."""
    mae: str = "mae_nohuman"
    """Recipe of stage 1."""
    align: str = "align_nohuman_synthetic"
    """Recipe of stage 2."""
    mae_flags: str = ""
    """Flags for stage 1 only, in one string: --mae-flags="--optim.epochs 2"."""
    align_flags: str = ""
    """Flags for stage 2 only, in one string."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Verb):
    """Test finished runs as an array over data sets and seeds. All other flags go to `ppma evaluate`.

    launch.py evaluate --checkpoint "runs/finetune-{dataset}-{seed}" --dataset ucf101 hmdb51 --seed 0 1 2
    """

    checkpoint: str = ""
    """Run folder or checkpoint; {dataset} and {seed} are replaced by the values of the other two flags."""
    dataset: tuple[str, ...] = ()
    """Names in the data catalog."""
    seed: tuple[int, ...] = ()
    """Seeds whose runs are tested."""


@dataclass(frozen=True, kw_only=True)
class Shards(Verb):
    """Run a `ppma` command as an array of shards that a last job merges. All other flags go to the command."""

    parts: int = 1
    """Tasks of the array, each with --part I/N; the last job runs the command with --merge N."""
    retries: int = 2
    """How often a part that failed is run again; not after wrong input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "--", "parts")
        require_at_least(0, self, "--", "retries")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job, or an array of jobs."""

    name: str
    jobs: tuple[Job, ...]
    folder: Path
    """The run folder of a training, otherwise a new folder for this submission. Holds logs and a copy of the code."""
    summary: dict[str, str]
    """Rows of the table that is shown before submission."""
    needs: tuple[tuple[tuple[int, int], ...], ...] | None = None
    """For each job those that must succeed first, as (stage, job); None: all jobs of the stage before."""
    when: Literal["afterok", "afterany"] = "afterok"
    """afterany: those jobs need only end. A merge checks itself that all is done: other parts may have done it."""

    @property
    def logs(self) -> Path:
        """Folder of logs and pickled jobs."""
        return self.folder / "jobs"

    @property
    def config(self) -> RunConfig | None:
        """The run of a stage that trains in its own folder; None for arrays and commands."""
        config = self.jobs[0].config
        return config if isinstance(config, RunConfig) and config.run_dir == self.folder else None


SHARDED = {name: f"{command.purpose} [--parts N]" for name, command in COMMANDS.items() if command.shards}
"""`ppma` commands that run as job arrays, and what they do."""
RECIPES = {"align": "align_nohuman_synthetic", "finetune": "finetune", "probe": "probe"}
"""Default recipe of each verb that runs one recipe."""
VERBS = {
    "pretrain": "stage 1, then stage 2",
    "align": "stage 2 alone: --init RUN",
    "finetune": "transfer by fine-tuning: --dataset NAME --init RUN",
    "probe": "transfer by a linear probe: --dataset NAME --init RUN",
    "evaluate": "test finished runs: --checkpoint RUN --dataset NAME...",
    "study": "the missing runs of a study, as arrays: SPEC --out DIR",
} | SHARDED
"""What each verb does."""


def plan(verb: str, argv: list[str]) -> tuple[Verb, list[Stage]]:
    """Return the cluster's settings and the stages of a verb, in order."""
    prog = f"launch.py {verb}"
    if verb == "pretrain":
        pretrain, flags = _parse(Pretrain(), argv, prog)
        return pretrain, [_training(config, pretrain) for config in _pretrain_runs(pretrain, flags, prog)]
    if verb == "evaluate":
        test, flags = _parse(Evaluate(gpus_per_node=1), argv, prog)
        return test, [_evaluation(test, flags, prog)]
    if verb == "study":
        cluster, flags = _parse(Verb(gpus_per_node=1), argv, prog)
        return cluster, _study(cluster, flags, prog)
    if verb in SHARDED:
        shards, flags = _parse(Shards(), argv, prog, gpus=0)
        return shards, _command(verb, shards, flags)
    launch, flags = _parse(Launch(recipe=RECIPES[verb]), argv, prog)
    return launch, [_training(_with_absolute_paths(resolve(launch.recipe, flags, prog=prog), launch.runs), launch)]


def _parse(default: VerbT, argv: list[str], prog: str, *, gpus: int | None = None) -> tuple[VerbT, list[str]]:
    """Return the settings of a verb and the flags for others; with `gpus` the site does not decide how many a node has."""
    usual = with_site(default, argv)
    config, flags = parse_known(usual if gpus is None else replace(usual, gpus_per_node=gpus), argv, prog=prog)
    with contextlib.suppress(NoClusterError):  # a dry run says what it assumes then, and nothing can be submitted
        config = fit(config)
    return config, flags


# ------------------------------------------------------------------------------------------------------------ trainings


def _with_absolute_paths(config: RunConfig, runs: Path) -> RunConfig:
    """Return the run with absolute paths; a run folder directly in `runs/` moves to the folder `runs`."""
    folder = runs / config.run_dir.name if config.run_dir.parent == Path("runs") else config.run_dir
    init = config.init.absolute() if config.init else None
    average = None if config.average is None else tuple(path.absolute() for path in config.average)
    return replace(config, run_dir=folder.absolute(), init=init, average=average, data=catalog.locate(config.data))


def _pretrain_runs(launch: Pretrain, flags: Sequence[str], prog: str) -> list[RunConfig]:
    mae, align = (
        _with_absolute_paths(resolve(recipe, [*flags, *shlex.split(more)], prog=prog), launch.runs)
        for recipe, more in ((launch.mae, launch.mae_flags), (launch.align, launch.align_flags))
    )
    apart = mae.run_dir != align.run_dir
    require(apart, f"both stages would write to {mae.run_dir}; use --runs, in which each gets its own folder")
    if launch.stage == "both" or align.init is None:
        align = replace(align, init=mae.run_dir / "checkpoints" / "latest")
    return {"mae": [mae], "align": [align], "both": [mae, align]}[launch.stage]


def _training(config: RunConfig, cluster: ClusterConfig) -> Stage:
    ranks = allocate(cluster).ranks
    check_ranks(config, ranks)
    check_run_folder(config)
    summary = {
        "batch": _batch(config, ranks),
        "peak learning rate": _peak(config),
        **_length(config),
        "starts from": ", ".join(map(str, config.starts)) or "scratch",
    }
    job = _train_job(replace(config, resume=True), cluster, ranks)
    return Stage(name=config.recipe, jobs=(job,), folder=config.run_dir, summary=summary)


def _batch(config: RunConfig, ranks: int) -> str:
    """Return the global batch, which does not follow the number of processes, and what one of them gets of it."""
    rows, shared = config.batch // ranks, ranks_per_unit(config, ranks)
    if shared < 2 or config.phase in ENCODED_ONCE:
        return f"{config.batch} ({rows} per process)"
    return f"{config.batch} ({rows} per process, every {shared} of which load the same clips; a larger --batch needs its own rate)"


def _peak(config: RunConfig) -> str:
    """Return the peak rate, and how it follows from the batch."""
    optim, times = config.optim, config.batch / config.optim.reference_batch
    of = f" ({times:.3g} x {optim.peak_lr:g}, for batch {optim.reference_batch})" if times != 1 else ""
    return f"{optim.peak_lr * times:.3g}{of}"


def _length(config: RunConfig) -> dict[str, str]:
    """Return the rows on steps and data; what is wrong with the data is reported by the checks."""
    epochs = config.optim.epochs
    try:
        sources = inputs.read_sources(config)
    except InputError:
        return {"steps": f"{epochs} epochs of unknown length", "data": f"{', '.join(config.sources)}: not found"}
    an_epoch = sum(len(source) for source in sources) // config.batch
    shown = [f"{source.name}: {len(source):,} clips{' (packed)' if source.store else ''}" for source in sources]
    return {"steps": f"{epochs * an_epoch:,} ({epochs} epochs of {an_epoch:,})", "data": ", ".join(shown)}


def _train_job(config: RunConfig, cluster: ClusterConfig, ranks: int) -> Job:
    return Job(
        work=train, config=config, ranks=ranks, stage_to=cluster.stage_to, stage_gb=cluster.stage_gb, warm=cluster.warm,
        max_restarts=cluster.max_restarts
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- arrays


def _new_folder(verb: str, runs: Path) -> Path:
    """Return a new folder for a submission that belongs to no single run."""
    return (runs / time.strftime(f"{verb}-%Y%m%d-%H%M%S")).absolute()


def _evaluation(test: Evaluate, flags: list[str], prog: str) -> Stage:
    """Parse the flags of `ppma evaluate` here, so that a wrong one is reported before submission. Imports torch."""
    from ppma.training.run import run_folder
    from ppma.transfer.evaluate import EvaluateOptions

    require(bool(test.checkpoint and test.dataset), "evaluate needs --checkpoint RUN and --dataset NAME")
    one_run = f'--checkpoint {test.checkpoint} names one run for {len(test.seed)} seeds; write "{{seed}}" in it'
    require(len(test.seed) < 2 or "{seed}" in test.checkpoint, one_run)
    calls, folders = [], []
    for dataset, seed in itertools.product(test.dataset, test.seed or ("",)):
        checkpoint = test.checkpoint.replace("{dataset}", dataset).replace("{seed}", str(seed))
        options = parse(EvaluateOptions, ["--checkpoint", checkpoint, "--dataset", dataset, *flags], prog=prog)
        folders.append(options.results(run_folder(options.checkpoint)).absolute())
        data = catalog.find(options.data)
        inputs.check_entry(data.path, data.entry(dataset, options.evaluation.split))
        words = ["--checkpoint", str(Path(checkpoint).absolute()), "--dataset", dataset]
        calls.append([*words, *flags, "--data", str(data.path)])
    ranks, most = allocate(test).ranks, test.max_restarts
    jobs = tuple(
        Job(work=evaluate, config=call, ranks=ranks, max_restarts=most, results=out)
        for call, out in zip(calls, folders)
    )
    summary = {"tests": str(len(calls)), "checkpoint": test.checkpoint, "data sets": ", ".join(test.dataset)}
    return Stage(name="evaluate", jobs=jobs, folder=_new_folder("evaluate", test.runs), summary=summary)


def _study(cluster: Verb, flags: list[str], prog: str) -> list[Stage]:
    """Plan the missing runs of a study; launching again after a failure submits only what is still missing."""
    options = parse(StudyConfig, flags, prog=prog)
    planned = plan_study(options, make_data=False)
    there = all(run.config.data and run.config.data.exists() for run in planned.runs if run.config)
    render = f"ppma study {options.spec} --out {options.out} --only data"
    require(there, f"the data of {options.spec} is not rendered yet; run: {render}")
    levels = study_levels(planned)
    require(bool(levels), f"all {len(planned.runs)} runs are done; for the table: ppma report {options.out}")
    ranks, folder, stages = allocate(cluster).ranks, _new_folder("study", cluster.runs), []
    place = {run.folder: (level, job) for level, runs in enumerate(levels) for job, run in enumerate(runs)}
    for number, runs in enumerate(levels):
        name = f"study-{number}"
        needs = tuple(tuple(place[p.folder] for p in run.needs if p.folder in place) for run in runs)
        jobs = tuple(_study_job(run, flags, cluster, ranks) for run in runs)
        summary = {"runs": str(len(runs)), "which": ", ".join(run.title for run in runs)}
        stages.append(Stage(name=name, jobs=jobs, folder=folder / name, summary=summary, needs=needs))
    if not cluster.dry_run:
        write_listing(planned, options.out)
    return stages


def study_levels(planned: Planned) -> list[list[Run]]:
    """Group the unfinished runs so that each needs only finished runs or runs of an earlier group."""
    level: dict[Path, int] = {}
    for todo, state in zip(planned.runs, planned.states):
        if state != "done":
            level[todo.folder] = 1 + max((level.get(parent.folder, -1) for parent in todo.needs), default=-1)
    depth = max(level.values(), default=-1) + 1
    return [[run for run in planned.runs if level.get(run.folder) == number] for number in range(depth)]


def _study_job(run: Run, flags: list[str], cluster: ClusterConfig, ranks: int) -> Job:
    """Train on all ranks. An average only copies files: `ppma study --only` does it on the first rank."""
    if run.config is None:
        return Job(work=command, config=["study", *flags, "--only", run.folder.name], ranks=ranks)
    check_ranks(run.config, ranks)
    return _train_job(run.config, cluster, ranks)


def _command(verb: str, shards: Shards, flags: list[str]) -> list[Stage]:
    """Return one job, or an array of shards and a job that merges them, after a dry run of the command here."""
    one_task = allocate(shards).ranks == 1
    require(one_task, f"--nodes {shards.nodes}: {verb} runs in one task; use --parts N for N tasks")
    code = importlib.import_module(COMMANDS[verb].module).main([*flags, "--dry-run"])
    require(code == DONE, f"`ppma {verb} --dry-run` with these flags exits with {code}")
    folder = _new_folder(verb, shards.runs)
    summary = {"command": shlex.join(["ppma", verb, *flags]), "parts": str(shards.parts)}

    def stage(name: str, folder: Path, calls: list[list[str]]) -> Stage:
        jobs = tuple(
            Job(work=command, config=[verb, *flags, *more], results=folder / f"failures-{number}", max_restarts=shards.retries)
            for number, more in enumerate(calls)
        )  # fmt: skip
        return Stage(name=name, jobs=jobs, folder=folder, summary=summary, when="afterany")

    if shards.parts == 1:
        return [stage(verb, folder, [[]])]
    parts = [["--part", f"{i}/{shards.parts}"] for i in range(shards.parts)]
    merge = [["--merge", str(shards.parts)]]
    return [stage(verb, folder, parts), stage(f"{verb}-merge", folder / "merge", merge)]
