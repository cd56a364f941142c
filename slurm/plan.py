"""A verb and its flags as the jobs they mean.

    pretrain --nodes 8  ->  Stage(mae), Stage(align, after mae)        each with resolved configs, a folder for logs and what to say of it

The flags of the cluster and the verb are read here; all others go to the recipe, or to the `ppma` command that a verb runs.
"""

import importlib
import itertools
import shlex
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ppma.cli import COMMANDS
from ppma.config.command import DONE, parse, parse_known, run
from ppma.config.errors import InputError
from ppma.config.flags import resolve
from ppma.config.run import RunConfig, check_ranks, check_run_folder
from ppma.loaders.sources import catalog
from ppma.slurm.cluster import ClusterConfig, allocate
from ppma.slurm.estimate import hours_left
from ppma.slurm.job import Job, command, evaluate, train
from ppma.slurm.site import with_site
from ppma.slurm.study import study_jobs


@dataclass(frozen=True, kw_only=True)
class Verb(ClusterConfig):
    """What all verbs take."""

    runs: Path = Path("runs")
    """Folder in which run folders are made."""
    dry_run: bool = False
    """Show what would be submitted, and submit nothing; needs no cluster."""
    require_clean: bool = False
    """Refuse to submit code that is not committed."""


@dataclass(frozen=True, kw_only=True)
class Launch(Verb):
    """Start a run on a cluster, or here with --cluster local. All other flags go to the recipe."""

    recipe: str
    """Name of the recipe."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(Verb):
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


@dataclass(frozen=True, kw_only=True)
class Evaluate(Verb):
    """Test finished runs: an array over data sets and seeds. All other flags go to `ppma evaluate`.

    launch.py evaluate --checkpoint "runs/finetune-{dataset}-{seed}" --dataset ucf101 hmdb51 --seed 0 1 2
    """

    checkpoint: str = ""
    """Run folder or checkpoint; {dataset} and {seed} stand for the values of the other two flags."""
    dataset: tuple[str, ...] = ()
    """Names in the data catalog."""
    seed: tuple[int, ...] = ()
    """Seeds whose runs are tested."""


@dataclass(frozen=True, kw_only=True)
class Shards(Verb):
    """Run a `ppma` command on the cluster, in parts that are merged when all are there. All other flags go to the command."""

    parts: int = 1
    """Tasks of the array, each with --part I/N; the last job runs the command with --merge N."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts < 1:
            raise InputError(f"--parts is {self.parts}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job, or an array of them: what it is called, what it does, where its logs go, and what to say about it beforehand."""

    name: str
    jobs: tuple[Job, ...]
    folder: Path
    """Run folder of a training; else a folder of this submission's own. Copy of the code and logs lie in it."""
    facts: dict[str, str]

    @property
    def logs(self) -> Path:
        """Folder of logs and pickles."""
        return self.folder / "jobs"

    @property
    def config(self) -> RunConfig | None:
        """Of a training."""
        config = self.jobs[0].config
        return config if isinstance(config, RunConfig) and config.run_dir == self.folder else None


VERBS: dict[str, tuple[str, str]] = {
    "pretrain": ("", "stage 1, then stage 2"),
    "align": ("align_nohuman_synthetic", "stage 2 alone: --init RUN"),
    "finetune": ("finetune", "transfer by fine-tuning: --dataset NAME --init RUN"),
    "probe": ("probe", "transfer by a linear probe: --dataset NAME --init RUN"),
    "evaluate": ("", "test finished runs: --checkpoint RUN --dataset NAME..."),
    "study": ("", "a matrix of runs, the missing ones as arrays: SPEC --out DIR"),
    "pack": ("", "write a packed store: SOURCE --out DIR"),
    "synthesize": ("", "make clips of virtual people: --out DIR"),
    "remove-humans": ("", "remove the people from videos: SOURCE --out DIR --parts N"),
}
"""verb: (its default recipe, what it does). pack and those after it run the `ppma` command of their name."""
COMMAND_VERBS = tuple(name for name, command in COMMANDS.items() if command.shards)


def _place(config: RunConfig, runs: Path) -> RunConfig:
    """The same run with absolute paths. `runs` takes the place of the recipe's own parent folder."""
    folder = runs / config.run_dir.name if config.run_dir.parent == Path("runs") else config.run_dir
    init = config.init.absolute() if config.init else None
    average = None if config.average is None else tuple(path.absolute() for path in config.average)
    return replace(config, run_dir=folder.absolute(), init=init, average=average, data=catalog.locate(config.data))


def _pretrain_runs(launch: Pretrain, flags: Sequence[str], prog: str) -> list[RunConfig]:
    mae = _place(resolve(launch.mae, [*flags, *shlex.split(launch.mae_flags)], prog=prog), launch.runs)
    align = _place(resolve(launch.align, [*flags, *shlex.split(launch.align_flags)], prog=prog), launch.runs)
    if mae.run_dir == align.run_dir:
        raise InputError(
            f"both stages would write to {mae.run_dir}; --runs names the folder in which each gets its own"
        )
    if launch.stage == "both" or align.init is None:
        align = replace(align, init=mae.run_dir / "checkpoints" / "latest")
    return {"mae": [mae], "align": [align], "both": [mae, align]}[launch.stage]


def _training(config: RunConfig, cluster: ClusterConfig) -> Stage:
    allocation = allocate(cluster)
    ranks = allocation.ranks
    check_ranks(config, ranks)
    check_run_folder(config)
    rate = config.optim.peak_lr * config.batch / config.optim.reference_batch
    facts = {
        "global batch": f"{config.batch} ({config.batch // ranks} a process)",
        "peak rate at this batch": f"{rate:.3g}",
        "epochs": str(config.optim.epochs),
        "estimated time": hours_left(config, ranks, on_gpu=allocation.gpus > 0),
        "sources": ", ".join(config.sources),
        "starts from": ", ".join(map(str, config.starts)) or "scratch",
        "run folder": str(config.run_dir),
    }
    job = Job(
        work=train, config=replace(config, resume=True), ranks=ranks, stage_to=cluster.stage_to, warm=cluster.warm,
        max_restarts=cluster.max_restarts,
    )  # fmt: skip
    return Stage(name=config.recipe, jobs=(job,), folder=config.run_dir, facts=facts)


def check_inputs(stages: Sequence[Stage]) -> None:
    """InputError when a source, its store or a checkpoint to start from is not there; a checkpoint of a stage before may be to come."""
    coming = {stage.folder for stage in stages}
    for config in (stage.config for stage in stages if stage.config):
        data = catalog.read(catalog.locate(config.data))
        wanted = [(name, "train") for name in config.sources]
        wanted += [(config.sources[0], config.evaluation.split)] if config.evaluation.at_end else []
        for name, split in wanted:
            entry = data.entry(name, split)
            for what, path in (("manifest", entry.manifest), ("root", entry.root), ("store", entry.store)):
                if path is not None and not path.exists():
                    raise InputError(f"{data.path}, [{name}.{entry.split}]: {what} {path} does not exist")
        for start in config.starts:
            if not start.exists() and not any(start.is_relative_to(run) for run in coming):
                flag = "--average" if config.average else "--init"
                raise InputError(f"{flag} {start}: there is no such run or checkpoint")
        if config.privacy == "strict":
            _look_strictly(config, coming)


def _look_strictly(config: RunConfig, coming: Collection[Path]) -> None:
    """What --privacy strict would refuse on the nodes and can be seen from here: rows, audits, weights that are there. Imports torch."""
    from ppma.privacy import strict
    from ppma.training.tasks import read_sources

    to_come = config.init is not None and any(config.init.is_relative_to(run) for run in coming)
    strict.precheck(replace(config, init=None) if to_come else config, read_sources(config))


def _own_folder(verb: str, runs: Path) -> Path:
    """A new folder for a submission that belongs to no single run."""
    return (runs / time.strftime(f"{verb}-%Y%m%d-%H%M%S")).absolute()


def _evaluation(test: Evaluate, flags: list[str], prog: str) -> Stage:
    """The flags are read here once, so that a wrong one is told at once; that imports torch."""
    from ppma.transfer.evaluate import Options, run_folder

    if not test.checkpoint or not test.dataset:
        raise InputError("evaluate needs --checkpoint RUN and --dataset NAME")
    if len(test.seed) > 1 and "{seed}" not in test.checkpoint:
        raise InputError(
            f'--checkpoint {test.checkpoint} names one run for {len(test.seed)} seeds; write "{{seed}}" in it'
        )
    calls = []
    for dataset, seed in itertools.product(test.dataset, test.seed or ("",)):
        checkpoint = test.checkpoint.replace("{dataset}", dataset).replace("{seed}", str(seed))
        options = parse(Options, ["--checkpoint", checkpoint, "--dataset", dataset, *flags], prog=prog)
        run_folder(options.checkpoint)
        catalog.find(options.data).entry(dataset, options.evaluation.split)
        data = ["--data", str(catalog.locate(options.data))]
        calls.append(["--checkpoint", str(Path(checkpoint).absolute()), "--dataset", dataset, *flags, *data])
    ranks = allocate(test).ranks
    jobs = tuple(Job(work=evaluate, config=call, ranks=ranks) for call in calls)
    facts = {"tests": str(len(calls)), "checkpoint": test.checkpoint, "data sets": ", ".join(test.dataset)}
    return Stage(name="evaluate", jobs=jobs, folder=_own_folder("evaluate", test.runs), facts=facts)


def _study(cluster: Verb, flags: list[str], prog: str) -> list[Stage]:
    """One stage for each step of the way to a test; see ppma.slurm.study."""
    folder = _own_folder("study", cluster.runs)
    arrays = study_jobs(flags, cluster, writes=not cluster.dry_run, prog=prog)
    return [Stage(name=name, jobs=jobs, folder=folder / name, facts=facts) for name, jobs, facts in arrays]


def _command(verb: str, shards: Shards, flags: list[str]) -> list[Stage]:
    """One job, or an array of parts and a job that merges them. The command's own dry run tells a wrong flag beforehand."""
    if allocate(shards).ranks > 1:
        raise InputError(f"--nodes {shards.nodes}: {verb} runs in one task; --parts N spreads it over N of them")
    if (code := _try(verb, flags)) != DONE:
        raise InputError(f"`ppma {verb}` refuses these flags, see above (exit code {code})")
    folder = _own_folder(verb, shards.runs)
    facts = {"command": shlex.join(["ppma", verb, *flags]), "parts": str(shards.parts)}
    parts = [[verb, *flags, "--part", f"{i}/{shards.parts}"] for i in range(shards.parts)]
    calls = parts if shards.parts > 1 else [[verb, *flags]]
    stages = [
        Stage(name=verb, jobs=tuple(Job(work=command, config=call) for call in calls), folder=folder, facts=facts)
    ]
    if shards.parts > 1:
        merge = Job(work=command, config=[verb, *flags, "--merge", str(shards.parts)])
        stages.append(Stage(name=f"{verb}-merge", jobs=(merge,), folder=folder / "merge", facts=facts))
    return stages


def _try(verb: str, flags: list[str]) -> int:
    main = importlib.import_module(COMMANDS[verb].module).main
    return run(main, [*flags, "--dry-run"], prog=f"ppma {verb}")


def plan(verb: str, argv: list[str]) -> tuple[Verb, list[Stage]]:
    """The cluster's settings and the jobs of a verb, one after the other."""
    prog = f"launch.py {verb}"
    if verb == "pretrain":
        pretrain, flags = parse_known(with_site(Pretrain(), argv), argv, prog=prog)
        return pretrain, [_training(config, pretrain) for config in _pretrain_runs(pretrain, flags, prog)]
    if verb == "evaluate":
        test, flags = parse_known(with_site(Evaluate(), argv), argv, prog=prog)
        return test, [_evaluation(test, flags, prog)]
    if verb == "study":
        verb_config, flags = parse_known(with_site(Verb(), argv), argv, prog=prog)
        return verb_config, _study(verb_config, flags, prog)
    if verb in COMMAND_VERBS:
        shards, flags = parse_known(with_site(Shards(gpus_per_node=0), argv), argv, prog=prog)
        return shards, _command(verb, shards, flags)
    launch, flags = parse_known(with_site(Launch(recipe=VERBS[verb][0]), argv), argv, prog=prog)
    return launch, [_training(_place(resolve(launch.recipe, flags, prog=prog), launch.runs), launch)]
