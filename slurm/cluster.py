"""Describe a cluster or this machine, and build submitit's executor for it.

ClusterConfig -> Allocation (nodes, GPUs, processes) -> executor, or the sbatch script as text for a dry run
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from ppma.common.ports import FIRST_PORT, PORTS
from ppma.config.errors import InputError, require

USUAL_CORES = 12
"""CPU cores of a process without a GPU, or where no sinfo says what the nodes have."""
NO_ANSWER = 124
"""Exit code of a command that takes too long, as that of `timeout`."""
UNLIMITED = 1_000_000
"""Time-outs after which submitit gives up; its own bound also counts preemptions of short jobs (see `restart`)."""
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where a run goes and what it takes there. A site's usual values are set in a TOML file (--site)."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm: submit with sbatch and return; local: run here, in the foreground; debug: run in this process."""
    site: Path | None = None
    """TOML file with defaults for these flags (default: $XDG_CONFIG_HOME/ppma/site.toml, if it exists)."""
    nodes: int = 1
    """Number of nodes; 1 with --cluster local."""
    gpus_per_node: int | Literal["auto"] = "auto"
    """GPUs per node; auto: all that the partition's nodes have, or this machine with --cluster local; 0: train on the
    CPU."""
    tasks_per_node: int | None = None
    """Processes per node (default: one per GPU, or one)."""
    gpus_per_task: int | None = None
    """GPUs per process instead of gpus_per_node, for clusters that bind them; each process uses one."""
    cpus_per_task: int | Literal["auto"] = "auto"
    """CPU cores per process on slurm, loader workers included; auto: the cores of a node divided by its GPUs, for each
    GPU of the process, or 12 without a GPU."""
    cpus_per_gpu: int | None = None
    """CPU cores per GPU instead of cpus_per_task; requires gpus_per_task."""
    mem_gib: int | None = None
    """Memory per node on slurm in GiB (default: the cluster's)."""
    time: str = "1-00:00:00"
    """Time limit on slurm: minutes, hours:minutes:seconds or days-hours[:minutes[:seconds]]."""
    job_name: str | None = None
    """Name of the jobs in the queue (default: the recipe or the verb)."""
    partition: str | None = None
    """Partition (queue) of the cluster."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Required node features."""
    nodelist: str | None = None
    """Required nodes."""
    exclude: str | None = None
    """Excluded nodes."""
    gres: str | None = None
    """Generic resources other than GPUs."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    mem_per_cpu: str | None = None
    """Memory per core, with its unit, instead of mem_gib."""
    mem_per_gpu: str | None = None
    """Memory per GPU, with its unit, instead of mem_gib."""
    comment: str | None = None
    """Comment on the job."""
    mail_type: str | None = None
    """Events that send an email."""
    mail_user: str | None = None
    """Recipient of the emails."""
    wckey: str | None = None
    """Workload characterization key."""
    dependency: str | None = None
    """Jobs that the first job waits for, in sbatch's syntax."""
    array_parallelism: int = 256
    """Array tasks that run at the same time."""
    signal_delay_s: int = 120
    """Seconds before the time limit at which the run is asked to save; 60 more than a checkpoint takes."""
    setup: tuple[str, ...] = ()
    """Shell lines before the job, such as `module load cuda`."""
    teardown: tuple[str, ...] = ()
    """Shell lines after the job."""
    srun_args: tuple[str, ...] = ()
    """More arguments of srun, such as --container-image=FILE."""
    slurm: tuple[str, ...] = ()
    """Any other sbatch flag, as KEY=VALUE."""
    python: str | None = None
    """Command that starts Python on the nodes, e.g. "apptainer exec --nv ppma.sif python" (default: this Python)."""
    stage_to: Path | None = None
    """Folder on the nodes' local disks; manifests and packed stores are copied there before a training."""
    stage_gb: int | None = None
    """GB that --stage-to copies for a run; shards beyond them are read where they are (default: everything is copied)."""
    warm: bool = False
    """Read manifests and packed stores into the memory of each node before a training, as far as they fit."""
    max_restarts: int = 5
    """How often in a row a training or a test that stopped or failed is requeued without progress."""

    def __post_init__(self) -> None:
        lowest = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "gpus_per_task": 1, "cpus_per_task": 1, "cpus_per_gpu": 1,
                  "mem_gib": 1, "array_parallelism": 1, "signal_delay_s": 1, "stage_gb": 1, "max_restarts": 0}  # fmt: skip
        for name, least in lowest.items():
            value = getattr(self, name)
            fits = value in (None, "auto") or value >= least
            require(fits, f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
        minutes(self.time)
        both = bool(self.gpus_per_task) and self.gpus_per_node != "auto"
        require(not both, "--gpus-per-node and --gpus-per-task are both given; give one of the two")
        alone = bool(self.cpus_per_gpu) and not self.gpus_per_task
        require(not alone, "--cpus-per-gpu requires --gpus-per-task; otherwise use --cpus-per-task")
        require(self.stage_gb is None or self.stage_to is not None, "--stage-gb requires --stage-to DIR")
        one_node = f"--cluster {self.cluster} has one node: use --tasks-per-node, or --cluster slurm"
        require(self.cluster == "slurm" or self.nodes == 1, f"--nodes is {self.nodes}; {one_node}")
        for word in self.slurm:
            fits = re.fullmatch(r"[a-zA-Z][\w-]*(=.*)?", word) is not None
            require(fits, f"--slurm {word!r}; give KEY=VALUE, a flag of sbatch without its dashes")

    @property
    def cpus(self) -> int:
        """CPU cores per process."""
        per_task = USUAL_CORES if self.cpus_per_task == "auto" else self.cpus_per_task
        return (self.cpus_per_gpu or 0) * (self.gpus_per_task or 0) or per_task


def minutes(time: str) -> int:
    """Convert a time limit in SLURM's syntax to minutes, rounded up.

    Raises:
        InputError: `time` is not a time limit or is below one minute.
    """
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
    require(total >= 1, f"--time is {time!r}; it must be at least a minute")
    return total


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Nodes of a job, and GPUs and processes (tasks) per node."""

    nodes: int
    gpus: int
    tasks: int

    @property
    def ranks(self) -> int:
        """Number of processes over all nodes."""
        return self.nodes * self.tasks


def allocate(config: ClusterConfig) -> Allocation:
    """Fill in the defaults of nodes, GPUs and processes. `site.fit` has replaced `auto` where there is a cluster.

    Raises:
        InputError: This machine has fewer GPUs, or a node gets more processes than GPUs.
    """
    if config.gpus_per_task:
        gpus = config.gpus_per_task * (config.tasks_per_node or 1)
    elif config.gpus_per_node != "auto":
        gpus = config.gpus_per_node
    else:
        gpus = 1 if config.cluster == "slurm" else len(local_gpus())
    if config.cluster != "slurm" and gpus > 0:
        here = len(local_gpus())
        require(gpus <= here, f"--gpus-per-node is {gpus}; torch can use {here} GPUs of this machine")
    tasks = config.tasks_per_node or (1 if config.cluster == "debug" or config.gpus_per_task else max(gpus, 1))
    shared = f"--tasks-per-node is {tasks}, more than the {gpus} GPUs of a node; use 1 to {gpus}, or --gpus-per-node 0"
    require(not gpus or tasks <= gpus, shared)
    one = f"--tasks-per-node is {tasks}; --cluster debug has one process: use --cluster local"
    require(config.cluster != "debug" or tasks == 1, one)
    return Allocation(nodes=config.nodes, gpus=gpus, tasks=tasks)


def local_gpus() -> list[int]:
    """Return the numbers of the GPUs of this machine that CUDA_VISIBLE_DEVICES leaves visible."""
    import torch

    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if torch.cuda.is_available() and all(word.isdigit() for word in visible):
        return [int(word) for word in visible]
    return list(range(torch.cuda.device_count()))


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands; one that is missing, or takes more than a minute, returns 127 or NO_ANSWER and why."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", "it is not on PATH")
    except subprocess.TimeoutExpired:
        why = "no answer within 60 s; is the cluster's controller up?"
        return subprocess.CompletedProcess(command, NO_ANSWER, "", why)


def require_slurm() -> None:
    """Raise InputError on a machine without SLURM's commands."""
    found = bool(shutil.which("sbatch") and shutil.which("srun"))
    fix = "use --cluster local to run here, or --dry-run to see the job script"
    require(found, f"there is no sbatch on PATH; {fix}")


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a job script needs in addition to the settings of the cluster."""

    name: str
    logs: Path
    """Folder of logs, pickled jobs and results."""
    after: tuple[str, ...] = ()
    """Job numbers that must come first."""
    when: str = "afterok"
    """afterok: they must succeed; afterany: they must end."""
    code: Path | None = None
    """Copy of the code that the job imports."""


FREE_PORT = (
    f"while export MASTER_PORT=$(({FIRST_PORT} + RANDOM % {PORTS})); "
    "(: </dev/tcp/127.0.0.1/$MASTER_PORT) 2>/dev/null; do :; done"
)
"""Shell line that does what `free_port` does on the first node, for all tasks, at every start of a job."""


def _python(config: ClusterConfig, *, task: bool = False) -> str:
    """Return Python; for a task it ignores USR2, so that a preemption before submitit listens does not kill it."""
    return f"{'env --ignore-signal=USR2 ' if task else ''}{config.python or shlex.quote(sys.executable)}"


def slurm_parameters(config: ClusterConfig, script: Script) -> dict[str, Any]:
    """Return the parameters of sbatch under submitit's names."""
    allocation = allocate(config)
    first = [config.dependency] if config.dependency and not script.after else []
    given = {word.partition("=")[0]: word.partition("=")[2] or True for word in config.slurm}
    # 1. lines before srun, which no longer passes on --cpus-per-task (SLURM 22.05), and after it
    setup = [FREE_PORT, *config.setup, f"export SRUN_CPUS_PER_TASK={config.cpus}"]
    if script.code:  # PYTHONSAFEPATH: `python -m` must not find the package in the folder of the submission
        setup += [f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(script.code))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    decide = f"exec {_python(config)} -m ppma.slurm.restart --logs {shlex.quote(str(script.logs))} --code $code"
    # 2. fields to which submitit gives the same name, then the others
    parameters = {name: getattr(config, name, None) for name in signature(_make_sbatch_string).parameters} | {
        "job_name": config.job_name or script.name,
        "nodes": allocation.nodes,
        "ntasks_per_node": allocation.tasks,
        "gpus_per_node": None if config.gpus_per_task else allocation.gpus or None,
        "cpus_per_task": None if config.cpus_per_gpu else config.cpus,
        "mem": f"{config.mem_gib}GB" if config.mem_gib else None,
        "time": minutes(config.time),
        "exclusive": config.exclusive or None,
        "dependency": ",".join([*first, *(f"{script.when}:{job}" for job in script.after)]) or None,
        "stderr_to_stdout": True,
        "setup": setup,
        "teardown": ["code=$?", *config.teardown, decide],
        "srun_args": ["--kill-on-bad-exit=1", *config.srun_args],  # otherwise the peers of a killed task hang
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **given},
    }
    return {key: value for key, value in parameters.items() if value is not None}


def sbatch_script(config: ClusterConfig, script: Script, *, array_tasks: int = 1) -> str:
    """Return the script that would be submitted; needs no cluster."""
    command = f"{_python(config, task=True)} -u -m submitit.core._submit {shlex.quote(str(script.logs))}"
    parameters = slurm_parameters(config, script)
    if array_tasks > 1:
        parameters["map_count"] = array_tasks
    return str(_make_sbatch_string(command=command, folder=script.logs, **parameters))


def executor(config: ClusterConfig, script: Script) -> submitit.SlurmExecutor:
    """Return the executor that submits jobs to SLURM."""
    slurm = submitit.SlurmExecutor(folder=script.logs, max_num_timeout=UNLIMITED, python=_python(config, task=True))
    slurm.update_parameters(**slurm_parameters(config, script))
    return slurm
