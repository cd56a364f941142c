"""Where a run goes: the facts of a cluster or of this machine, and the submitit executor that takes jobs there.

ClusterConfig -> Allocation (nodes, GPUs, processes) -> executor, or the sbatch script as text for a dry run
"""

import os
import shlex
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from ppma.loaders.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the run goes and what it takes there."""

    cluster: Literal["slurm", "local"] = "slurm"
    """slurm: submit with sbatch and return; local: run here, in the foreground, through the same job."""
    nodes: int = 1
    """Machines; 1 with --cluster local."""
    gpus: int | None = None
    """GPUs of each node. Default: 1 on slurm, as in the paper; all of this machine with --cluster local; 0 trains on the CPU."""
    processes: int | None = None
    """Processes of each node. Default: one for each GPU, one without."""
    cpus: int = 12
    """CPU cores of each process on slurm, its loader workers included."""
    memory_gib: int | None = None
    """Memory of each node on slurm in GiB. Default: the cluster's."""
    hours: float = 24.0
    """Time limit in hours."""
    partition: str | None = None
    """Partition (queue) of the cluster."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features the nodes must have."""

    def __post_init__(self) -> None:
        for name, lowest in (("nodes", 1), ("gpus", 0), ("processes", 1), ("cpus", 1), ("memory_gib", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least {lowest}")
        if self.hours <= 0:
            raise InputError(f"--hours is {self.hours}; it must be above 0")
        if self.cluster == "local" and self.nodes > 1:
            raise InputError(
                f"--nodes is {self.nodes}; --cluster local has one node: use --processes, or --cluster slurm"
            )


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a job gets: nodes, GPUs and processes of each node."""

    nodes: int
    gpus: int
    processes: int

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes


def allocate(config: ClusterConfig) -> Allocation:
    """Fill in what the command line left open."""
    gpus = config.gpus
    if gpus is None:
        gpus = 1 if config.cluster == "slurm" else len(_local_gpus())
    if config.cluster == "local" and gpus > 0 and gpus > len(_local_gpus()):
        raise InputError(f"--gpus is {gpus}; torch can use {len(_local_gpus())} GPUs of this machine")
    processes = config.processes or max(gpus, 1)
    if gpus and processes > gpus:
        raise InputError(
            f"--processes is {processes}, more than the {gpus} GPUs of a node; allowed: 1 to {gpus}, or --gpus 0"
        )
    return Allocation(nodes=config.nodes, gpus=gpus, processes=processes)


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


def slurm_parameters(config: ClusterConfig, *, name: str, after: str | None = None) -> dict[str, Any]:
    """sbatch's parameters under submitit's names. `after` is a job that must end well first."""
    allocation = allocate(config)
    asked = {
        "job_name": name,
        "nodes": allocation.nodes,
        "ntasks_per_node": allocation.processes,
        "gpus_per_node": allocation.gpus or None,
        "cpus_per_task": config.cpus,
        "mem": f"{config.memory_gib}GB" if config.memory_gib else None,
        "time": round(config.hours * 60),
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "dependency": f"afterok:{after}" if after else None,
        "stderr_to_stdout": True,
        "setup": [f"export SRUN_CPUS_PER_TASK={config.cpus}"],  # srun no longer inherits --cpus-per-task (SLURM 22.05)
        "srun_args": ["--kill-on-bad-exit=1"],  # or the peers of a killed task hang
    }
    return {key: value for key, value in asked.items() if value is not None}


def sbatch_script(config: ClusterConfig, *, folder: Path, name: str, after: str | None = None) -> str:
    """The script that would be submitted; needs no cluster."""
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **slurm_parameters(config, name=name, after=after)))


def executor(config: ClusterConfig, *, folder: Path, name: str, after: str | None = None) -> submitit.Executor:
    """The executor that takes a job to the cluster, or runs it here. Logs and results go to `folder`."""
    if config.cluster == "slurm":
        slurm = submitit.SlurmExecutor(folder=folder)
        slurm.update_parameters(**slurm_parameters(config, name=name, after=after))
        return slurm
    allocation = allocate(config)
    local = submitit.LocalExecutor(folder=folder)
    local.update_parameters(
        tasks_per_node=allocation.processes,
        gpus_per_node=allocation.gpus,
        visible_gpus=_local_gpus()[: allocation.gpus] if allocation.gpus else (),
        timeout_min=config.hours * 60,
        stderr_to_stdout=True,
    )
    return local
