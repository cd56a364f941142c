"""What runs on every task of a job: tell torch.distributed who we are, then do the work.

    submitit's JobEnvironment (SLURM or local)  ->  RANK, WORLD_SIZE, ... ->  ppma.distributed, inside the work

Pickled on the login node and loaded on the nodes, so it holds plain data only; the work is named, and imported where it runs.
"""

import importlib
import os
import random
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

PORTS = (20_000, 60_000)
"""Range of the rendezvous port on a cluster; every task draws the same one from the job's number."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call of `work` with one config, on every task. Callable, and able to continue after a time limit or a preemption."""

    work: str
    """module:function, for example ppma.train:train."""
    config: Any
    """The function's one argument: a plain-data config. Where to resume is found in its run folder, never in the pickle."""
    port: int | None = None
    """Rendezvous port on this machine for --cluster local; None on a cluster."""

    def __call__(self) -> str:
        """Do the work; returns what it returns, as text (the run folder)."""
        export_ranks(submitit.JobEnvironment(), port=self.port)
        module, function = self.work.split(":")
        return str(getattr(importlib.import_module(module), function)(self.config))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again after a time limit: the same job, which resumes from its run folder."""
        return DelayedSubmission(self)


def export_ranks(environment: submitit.JobEnvironment, *, port: int | None) -> None:
    """Set the variables that `ppma.distributed` reads; CUDA_VISIBLE_DEVICES stays as the cluster set it.

    With a `port` all tasks are on this machine. A SLURM job meets on its first node, at a port that follows from the job's number.
    """
    address = "127.0.0.1" if port else environment.hostnames[0]
    os.environ.update(
        RANK=str(environment.global_rank),
        WORLD_SIZE=str(environment.num_tasks),
        LOCAL_RANK=str(environment.local_rank),
        LOCAL_WORLD_SIZE=str(environment.num_tasks // environment.num_nodes),
        MASTER_ADDR=address,
        MASTER_PORT=str(port or random.Random(environment.job_id).randint(*PORTS)),
    )
