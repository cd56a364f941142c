"""What runs on every task of a job: tell torch.distributed who we are, do the work, leave the exit code where the launcher finds it.

    submitit's JobEnvironment (SLURM or local)  ->  RANK, WORLD_SIZE, ...  ->  work(config)  ->  exit code

Pickled on the login node and loaded on the nodes, so it holds plain data and a function by name; torch is imported where it runs.
"""

import logging
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import JobPaths
from submitit.helpers import DelayedSubmission

from ppma.command import DONE, RUN_AGAIN, run
from ppma.config import RunConfig

PORTS = (20_000, 60_000)
"""Range of the rendezvous port on a cluster; every task draws the same one from the job's number."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call of `work` with one argument, on every task. Callable, and able to continue after a time limit or a preemption."""

    work: Callable[[Any], int]
    """A function of a module, which returns an exit code: `train` or `evaluate` of this one."""
    config: Any
    """Its argument, plain data. Where to resume is found in the run folder, never in the pickle."""
    port: int | None = None
    """Rendezvous port on this machine for --cluster local; None on a cluster."""

    def __call__(self) -> None:
        """Do the work. A code other than 0 ends the process with it, so that SLURM counts the task as failed and ends its peers."""
        environment = submitit.JobEnvironment()
        export_ranks(environment, port=self.port)
        logging.getLogger("submitit").propagate = False  # it has a handler of its own
        code = run(lambda _: self.work(self.config), [], prog=self.work.__name__)
        exit_file(environment.paths).write_text(str(code))
        if code:
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again after a time limit: the same job, which resumes from its run folder."""
        return DelayedSubmission(self)


def train(config: RunConfig) -> int:
    """Work: run a recipe; 75 when it was stopped in good order."""
    from ppma.train import Stopped
    from ppma.train import train as train_run

    try:
        train_run(config)
    except Stopped:
        return RUN_AGAIN
    return DONE


def evaluate(argv: list[str]) -> int:
    """Work: `ppma evaluate` with these flags."""
    from ppma.evaluate import main

    return main(argv)


def exit_file(paths: JobPaths) -> Path:
    """Where a task leaves its exit code. A task that was killed or met a defect leaves none."""
    return paths.result_pickle.with_suffix(".exit")


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
