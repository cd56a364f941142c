"""What runs on every task of a job: tell torch.distributed who we are, do the work, leave the exit code where others find it.

    submitit's JobEnvironment (SLURM or local)  ->  RANK, WORLD_SIZE, ...  ->  work(config)  ->  exit code

Pickled on the login node and loaded on the nodes, so it holds plain data and a function by name; torch is imported where it runs.

Preemption. SLURM sends SIGUSR2 to every task before it takes the nodes away or the time is over. submitit's handler would save on rank 0
alone, inside a signal handler. Here the training's StopFlag takes the signal: all ranks save the same step and meet, then rank 0 calls
submitit's handler, which queues the job again, and the others wait for SLURM to end them. Where to go on is found on disk, never in the
pickle: after a lost node or an administrator's requeue the first pickle comes back.
"""

import faulthandler
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import JobPaths, UncompletedJobError
from submitit.helpers import DelayedSubmission

from ppma.config.command import DONE, RUN_AGAIN, run
from ppma.config.run import RunConfig
from ppma.loaders.sources import catalog
from ppma.slurm.restart import count
from ppma.slurm.staging import stage, warm

PORTS = (20_000, 60_000)
"""Range of the rendezvous port on a cluster; every task draws the same one from the job's number."""
PREPARE_SECONDS = 24 * 3600
"""How long a node waits for others that still copy or read their data; a task that fails at it ends the job anyway."""
END_SECONDS = 120.0
"""How long a task waits to be ended after the job was queued again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call of `work` with one argument, on every task. Callable, and able to continue after a time limit or a preemption."""

    work: Callable[[Any], int]
    """A function of this module, which returns an exit code: `train`, `evaluate` or `command`."""
    config: Any
    """Its argument, plain data."""
    ranks: int = 1
    """Tasks that the job was submitted for."""
    stage_to: Path | None = None
    """Folder on the nodes' own disks to which the stores of a training are copied first."""
    warm: bool = False
    """Read the data of a training into the node's memory first."""
    max_restarts: int = 5
    """How often a training is queued again without a newer checkpoint, whatever stopped it."""
    port: int | None = None
    """Rendezvous port on this machine for --cluster local; None on a cluster."""

    def __call__(self) -> None:
        """Do the work. A code other than 0 ends the process with it, so that SLURM counts the task as failed and ends its peers."""
        faulthandler.enable()  # a crash in compiled code leaves its last stack in the log too
        environment = submitit.JobEnvironment()
        exit_file(environment.paths).unlink(missing_ok=True)
        logging.getLogger("submitit").propagate = False  # it has a handler of its own
        code = run(lambda _: self._work(environment), [], prog=self.work.__name__)
        leave(code)

    def _work(self, environment: submitit.JobEnvironment) -> int:
        if environment.num_tasks != self.ranks:
            raise ConnectionError(
                f"this job was submitted for {self.ranks} tasks and sees {environment.num_tasks}: the variables of SLURM do not reach "
                "the process; a container must pass on SLURM_* (docs/clusters.md)"
            )
        export_ranks(environment, port=self.port)
        return self.work(self._staged())

    def _staged(self) -> Any:
        """The argument, its data read from the node's own disk or memory where that was asked for."""
        if not isinstance(self.config, RunConfig) or not (self.stage_to or self.warm):
            return self.config
        os.environ["PPMA_JOIN_SECONDS"] = str(PREPARE_SECONDS)
        data, sources, splits = (
            catalog.locate(self.config.data),
            self.config.sources,
            ("train", self.config.evaluation.split),
        )
        if self.stage_to:
            data = stage(data, sources, splits, self.stage_to)
        if self.warm and os.environ["LOCAL_RANK"] == "0":  # the others wait where the ranks meet
            warm(data, sources, splits)
        return replace(self.config, data=data)

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit queues again at a preemption or the end of the time: the same job, which resumes from its run folder.

        None when it got nowhere `max_restarts` times: a time too short to begin with would hold its nodes for ever.
        """
        if isinstance(self.config, RunConfig) and count(self.config.run_dir) - 1 > self.max_restarts:
            log.error(
                "%d restarts without a newer checkpoint: not queued again; is --time too short?", self.max_restarts
            )
            return None
        return DelayedSubmission(self)


def train(config: RunConfig) -> int:
    """Work: run a recipe; 75 when it was stopped in good order. The launcher made the run folder, so the run goes on with what is there."""
    from ppma.train import train as train_run
    from ppma.training.distributed import Stop, Stopped

    try:
        train_run(config, leave=_leave_at_once)
    except Stopped as stopped:
        if stopped.why is Stop.HAND_OVER:
            hand_over()
        return RUN_AGAIN
    return DONE


def evaluate(argv: list[str]) -> int:
    """Work: `ppma evaluate` with these flags."""
    from ppma.transfer.evaluate import main

    return main(argv)


def command(argv: list[str]) -> int:
    """Work: `ppma ARGV`."""
    from ppma.cli import main

    return main(argv)


def hand_over() -> None:
    """Let submitit queue the job again; every task calls it after the last exchange with the others. Returns where that is not possible."""
    handler = signal.getsignal(signal.SIGUSR2)
    environment = submitit.JobEnvironment()
    if not callable(handler) or environment.cluster != "slurm":
        return
    if environment.global_rank == 0:
        try:
            handler(signal.SIGUSR2, None)  # ends this process
        except (UncompletedJobError, subprocess.SubprocessError) as error:
            log.error("cannot queue the job again from here, the job script will try: %s", error)
            return
    time.sleep(END_SECONDS)


def exit_file(paths: JobPaths) -> Path:
    """Where a task leaves its exit code. A task that was killed or met a defect leaves none."""
    return paths.result_pickle.with_suffix(".exit")


def leave(code: int) -> None:
    """Leave the exit code in its file, and the process if it is not 0."""
    signal.signal(
        signal.SIGUSR2, signal.SIG_IGN
    )  # all is done; Python's own end would let it kill the process, and fail the job
    exit_file(submitit.JobEnvironment().paths).write_text(str(code))
    if code:
        sys.exit(code)


def _leave_at_once(code: int) -> None:
    """The same for a process whose main thread hangs."""
    exit_file(submitit.JobEnvironment().paths).write_text(str(code))
    os._exit(code)


def export_ranks(environment: submitit.JobEnvironment, *, port: int | None) -> None:
    """Set the variables that `ppma.training.distributed` reads; CUDA_VISIBLE_DEVICES stays as the cluster set it.

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
