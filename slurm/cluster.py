"""Where a run goes: the facts of a cluster or of this machine, and the submitit executor that takes jobs there.

ClusterConfig -> Allocation (nodes, GPUs, processes) -> executor, or the sbatch script as text for a dry run
"""

import os
import re
import shlex
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from ppma.config.errors import InputError

NEVER = 1_000_000
"""Time-outs after which submitit would give up."""
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the run goes and what it takes there. A site's usual values stand in its TOML file (--site)."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm: submit with sbatch and return; local: run here, in the foreground, through the same job; debug: in this very process."""
    site: Path | None = None
    """Settings of the site, any of these flags by name; none: $XDG_CONFIG_HOME/ppma/site.toml where it exists."""
    nodes: int = 1
    """Machines; 1 with --cluster local."""
    gpus_per_node: int | None = None
    """GPUs of each node. Default: 1 on slurm, as in the paper; all of this machine with --cluster local; 0 trains on the CPU."""
    tasks_per_node: int | None = None
    """Processes of each node. Default: one for each GPU, one without."""
    gpus_per_task: int | None = None
    """GPUs of each process in place of gpus_per_node, for clusters that bind them: a process sees no other. More than 1 is of no use."""
    cpus_per_task: int = 12
    """CPU cores of each process on slurm, its loader workers included."""
    cpus_per_gpu: int | None = None
    """The same for each GPU, in place of cpus_per_task; goes with gpus_per_task."""
    mem_gib: int | None = None
    """Memory of each node on slurm in GiB. Default: the cluster's."""
    time: str = "1-00:00:00"
    """Time limit as SLURM writes it: minutes, hours:minutes:seconds or days-hours[:minutes[:seconds]]."""
    job_name: str | None = None
    """Name of the jobs in the queue. Default: the recipe's, or the verb."""
    partition: str | None = None
    """Partition (queue) of the cluster."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features the nodes must have."""
    nodelist: str | None = None
    """Nodes the job must have."""
    exclude: str | None = None
    """Nodes the job must not have."""
    gres: str | None = None
    """Generic resources other than the GPUs."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    mem_per_cpu: str | None = None
    """Memory of each core, with its unit, in place of mem_gib."""
    mem_per_gpu: str | None = None
    """Memory for each GPU, with its unit, in place of mem_gib."""
    comment: str | None = None
    """Remark on the job."""
    mail_type: str | None = None
    """Events that send a mail."""
    mail_user: str | None = None
    """Who gets it."""
    wckey: str | None = None
    """Workload characterisation key."""
    dependency: str | None = None
    """Jobs that the first job waits for, as sbatch takes it."""
    array_parallelism: int = 256
    """Tasks of an array that run at a time."""
    signal_delay_s: int = 120
    """Seconds before the end of the time at which the run is told to save; 60 more than a checkpoint takes."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the job, such as `module load cuda`."""
    teardown: tuple[str, ...] = ()
    """Lines of shell after it."""
    srun_args: tuple[str, ...] = ()
    """More arguments of srun, such as --container-image=FILE."""
    slurm: tuple[str, ...] = ()
    """Everything else that sbatch takes, KEY=VALUE each."""
    python: str | None = None
    """Command that starts Python on the nodes, for containers: "apptainer exec --nv ppma.sif python". Default: this Python."""
    stage_to: Path | None = None
    """Folder on the nodes' own disks: manifests and packed stores are copied there before a training starts, once a node."""
    warm: bool = False
    """Read manifests and packed stores into each node's memory before a training starts, once a node, as far as they fit."""
    max_restarts: int = 5
    """How often a job that stopped with 75 runs again without a newer checkpoint."""

    def __post_init__(self) -> None:
        lowest = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "gpus_per_task": 1, "cpus_per_task": 1, "cpus_per_gpu": 1,
                  "mem_gib": 1, "array_parallelism": 1, "signal_delay_s": 1, "max_restarts": 0}  # fmt: skip
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
        minutes(self.time)
        if self.gpus_per_task and self.gpus_per_node is not None:
            raise InputError("--gpus-per-node and --gpus-per-task are both given; give one of the two")
        if self.cpus_per_gpu and not self.gpus_per_task:
            raise InputError("--cpus-per-gpu goes with --gpus-per-task; else give --cpus-per-task")
        if self.cluster != "slurm" and self.nodes > 1:
            raise InputError(
                f"--nodes is {self.nodes}; --cluster {self.cluster} has one node: use --tasks-per-node, or --cluster slurm"
            )
        if bad := [word for word in self.slurm if not re.fullmatch(r"[a-zA-Z][\w-]*(=.*)?", word)]:
            raise InputError(f"--slurm {bad[0]!r}; give KEY=VALUE, a flag of sbatch without its dashes")

    @property
    def cpus(self) -> int:
        """CPU cores of each process."""
        return (
            self.cpus_per_gpu * self.gpus_per_task if self.cpus_per_gpu and self.gpus_per_task else self.cpus_per_task
        )


def minutes(time: str) -> int:
    """A time limit in minutes, rounded up; InputError when it is not one that SLURM knows."""
    found = _TIME.fullmatch(time)
    if not found:
        raise InputError(f"--time is {time!r}; write minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, *rest = (int(part) if part else None for part in found.groups())
    parts = [part for part in rest if part is not None]
    if days is not None or len(parts) == 3:
        hours, mins, seconds = (*parts, 0, 0)[:3]
    else:
        hours, mins, seconds = 0, *(*parts, 0)[:2]
    total = ((days or 0) * 24 + hours) * 60 + mins + (seconds > 0)
    if total < 1:
        raise InputError(f"--time is {time!r}; it must be at least a minute")
    return total


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a job gets: nodes, GPUs and processes (tasks) of each node."""

    nodes: int
    gpus: int
    tasks: int

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks


def allocate(config: ClusterConfig) -> Allocation:
    """Fill in what the command line left open."""
    gpus = config.gpus_per_node
    if config.gpus_per_task:
        gpus = config.gpus_per_task * (config.tasks_per_node or 1)
    elif gpus is None:
        gpus = 1 if config.cluster == "slurm" else len(_local_gpus())
    if config.cluster != "slurm" and gpus > 0 and gpus > len(_local_gpus()):
        raise InputError(f"--gpus-per-node is {gpus}; torch can use {len(_local_gpus())} GPUs of this machine")
    tasks = config.tasks_per_node or (1 if config.cluster == "debug" or config.gpus_per_task else max(gpus, 1))
    if gpus and tasks > gpus:
        raise InputError(
            f"--tasks-per-node is {tasks}, more than the {gpus} GPUs of a node; allowed: 1 to {gpus}, or --gpus-per-node 0"
        )
    if config.cluster == "debug" and tasks > 1:
        raise InputError(f"--tasks-per-node is {tasks}; --cluster debug has one process: use --cluster local")
    return Allocation(nodes=config.nodes, gpus=gpus, tasks=tasks)


def _local_gpus() -> list[int]:
    """Numbers of the GPUs that a process on this machine may use, CUDA_VISIBLE_DEVICES respected."""
    import torch

    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if torch.cuda.is_available() and all(word.isdigit() for word in visible):
        return [int(word) for word in visible]
    return list(range(torch.cuda.device_count()))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def require_slurm() -> None:
    """InputError where jobs cannot be submitted from."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise InputError(
            "there is no sbatch on PATH: --cluster local runs it here, --dry-run shows what would be submitted"
        )


SAME = (
    "partition", "account", "qos", "constraint", "nodelist", "exclude", "gres", "mem_per_cpu", "mem_per_gpu", "comment", "mail_type",
    "mail_user", "wckey", "array_parallelism", "signal_delay_s",
)  # fmt: skip
"""Fields that submitit knows by the same name."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the job's script needs to know beside the cluster's parameters."""

    name: str
    logs: Path
    """Folder of logs, pickles and results."""
    after: tuple[str, ...] = ()
    """Jobs that must end well first."""
    run_dir: Path | None = None
    """Run folder of a training, which is run again on exit code 75."""
    code: Path | None = None
    """Copy of the code that the job imports."""


def _additional(config: ClusterConfig) -> dict[str, Any]:
    """What submitit has no parameter for: --slurm, and what a run that is queued again needs."""
    given = {word.partition("=")[0]: word.partition("=")[2] or True for word in config.slurm}
    return {"requeue": True, "kill-on-invalid-dep": "yes", **given}


def _setup(config: ClusterConfig, script: Script) -> list[str]:
    """The site's lines, and what the tasks must find in their environment."""
    lines = [
        *config.setup,
        f"export SRUN_CPUS_PER_TASK={config.cpus}",
    ]  # srun no longer inherits it (SLURM 22.05)
    if script.code:  # PYTHONSAFEPATH: `python -m` must not find the package in the folder where it was submitted
        lines += [f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(script.code))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    return lines


def _teardown(config: ClusterConfig, script: Script) -> list[str]:
    """Keep srun's exit code over the site's lines, and let `restart` decide about it."""
    if script.run_dir is None:
        return ["code=$?", *config.teardown, "exit $code"]
    paths = f"--logs {shlex.quote(str(script.logs))} --run-dir {shlex.quote(str(script.run_dir))}"
    restart = f"{_python(config)} -m ppma.slurm.restart {paths} --max-restarts {config.max_restarts} --code $code"
    return ["code=$?", *config.teardown, f"exec {restart}"]


def _python(config: ClusterConfig) -> str:
    return config.python or shlex.quote(sys.executable)


def _task(config: ClusterConfig) -> str:
    """Python for the tasks: a preemption announced before submitit listens would kill them, and with that fail the job."""
    return f"env --ignore-signal=USR2 {_python(config)}"


def slurm_parameters(config: ClusterConfig, script: Script) -> dict[str, Any]:
    """sbatch's parameters under submitit's names."""
    allocation = allocate(config)
    waits = [config.dependency] if config.dependency and not script.after else []
    asked = {
        "job_name": config.job_name or script.name,
        "nodes": allocation.nodes,
        "ntasks_per_node": allocation.tasks,
        "gpus_per_node": None if config.gpus_per_task else allocation.gpus or None,
        "gpus_per_task": config.gpus_per_task,
        "cpus_per_task": None if config.cpus_per_gpu else config.cpus_per_task,
        "cpus_per_gpu": config.cpus_per_gpu,
        "mem": f"{config.mem_gib}GB" if config.mem_gib else None,
        "time": minutes(config.time),
        "exclusive": config.exclusive or None,
        "dependency": ",".join([*waits, *(f"afterok:{job}" for job in script.after)]) or None,
        "stderr_to_stdout": True,
        "setup": _setup(config, script),
        "teardown": _teardown(config, script),
        "srun_args": ["--kill-on-bad-exit=1", *config.srun_args],  # or the peers of a killed task hang
        "additional_parameters": _additional(config),
        **{name: getattr(config, name) for name in SAME},
    }
    return {key: value for key, value in asked.items() if value is not None}


def sbatch_script(config: ClusterConfig, script: Script, *, tasks_of_array: int = 1) -> str:
    """The script that would be submitted; needs no cluster."""
    command = f"{_task(config)} -u -m submitit.core._submit {shlex.quote(str(script.logs))}"
    parameters = slurm_parameters(config, script)
    if tasks_of_array > 1:
        parameters["map_count"] = tasks_of_array
    return str(_make_sbatch_string(command=command, folder=script.logs, **parameters))


def executor(config: ClusterConfig, script: Script) -> submitit.Executor:
    """The executor that takes a job to the cluster, or runs it here."""
    if config.cluster == "slurm":
        # submitit's own bound on time-outs would also count preemptions of short jobs; `restart` bounds what gets nowhere.
        slurm = submitit.SlurmExecutor(folder=script.logs, max_num_timeout=NEVER, python=_task(config))
        slurm.update_parameters(**slurm_parameters(config, script))
        return slurm
    allocation = allocate(config)
    local = submitit.LocalExecutor(folder=script.logs)
    local.update_parameters(
        tasks_per_node=allocation.tasks,
        gpus_per_node=allocation.gpus,
        visible_gpus=_local_gpus()[: allocation.gpus] if allocation.gpus else (),
        timeout_min=minutes(config.time),
        stderr_to_stdout=True,
    )
    return local
