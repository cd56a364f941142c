"""Run a job on every task: set the variables of torch.distributed, do the work, record the exit code.

    submitit's environment, or a rank of this machine  ->  RANK, WORLD_SIZE, ...  ->  work(config)  ->  exit code

A job is pickled on the login node and loaded on the nodes, so it holds plain data and a function by name; torch is
imported on the nodes.

Preemption: SLURM sends SIGUSR2 to every task before it takes the nodes away or the time ends. submitit would save on
rank 0 alone, inside a signal handler. Instead the training's StopFlag handles the signal: all ranks save the same
step, then rank 0 calls submitit's handler, which requeues the job, and the others wait for SLURM to end them. The
step to resume from is found on disk, never in the pickle: after a lost node or an administrator's requeue SLURM
starts the first pickle again.
"""

import faulthandler
import logging
import os
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
from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from ppma.config.command import DONE, RUN_AGAIN, run
from ppma.config.errors import Stopped
from ppma.config.run import RunConfig
from ppma.loaders.sources import catalog
from ppma.privacy import verdict
from ppma.slurm.restart import record, without_progress
from ppma.slurm.staging import stage, warm

PREPARE_SECONDS = 24 * 3600
"""How long ranks wait for nodes that still copy or read their data; a task that fails at it ends the job anyway."""
END_SECONDS = 120.0
"""How long a task waits for SLURM to end it after the job was requeued."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call of `work` with one argument on every task, which submitit can requeue."""

    work: Callable[[Any], int]
    """`train`, `evaluate` or `command`; returns an exit code."""
    config: Any
    """Its argument, plain data."""
    ranks: int = 1
    """Number of tasks that the job was submitted with."""
    stage_to: Path | None = None
    """Folder on the nodes' local disks to which the stores of a training are copied first."""
    stage_gb: int | None = None
    """Size of the copies in GB; None: everything is copied."""
    warm: bool = False
    """Read the data of a training into the node's memory first."""
    max_restarts: int = 5
    """How often in a row a training or a test is requeued without progress, whatever stopped it."""
    results: Path | None = None
    """Folder of the results of a test, or of the record of a data job's failures."""

    @property
    def retries(self) -> int:
        """How often a data job is run again after a failure; a preemption or time limit is none."""
        return self.max_restarts if self.work is command and self.results is not None else 0

    @property
    def run_dir(self) -> Path | None:
        """Folder of a training, a test or a data job's failures, by which it is requeued; None for other jobs."""
        return self.config.run_dir if isinstance(self.config, RunConfig) else self.results

    def __call__(self) -> None:
        """Do the work as a task of SLURM; exit with its code, so that SLURM ends the peers of a failed task."""
        environment = submitit.JobEnvironment()
        exit_file(environment.paths).unlink(missing_ok=True)
        # What a full disk or a kill left of submitit's result: with it there, submitit fails at the end of the run.
        environment.paths.result_pickle.with_suffix(".pkl.save_tmp").unlink(missing_ok=True)
        logging.getLogger("submitit").propagate = False  # it has a handler already
        if environment.num_tasks != self.ranks:
            raise ConnectionError(
                f"this job was submitted with {self.ranks} tasks and sees {environment.num_tasks}: SLURM's variables do not "
                "reach the process; a container must pass on SLURM_* (docs/clusters.md)"
            )
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        leave(self.run())

    def run(self) -> int:
        """Do the work in this process, whose variables name its rank, and return the exit code."""
        faulthandler.enable()  # a crash in compiled code writes its stack to the log
        return run(lambda _: self.work(self._staged()), [], prog=self.work.__name__)

    def _staged(self) -> Any:
        """Return the argument, with its data on the node's disk or in its memory if requested."""
        if not isinstance(self.config, RunConfig) or not (self.stage_to or self.warm):
            return self.config
        os.environ["PPMA_JOIN_SECONDS"] = str(PREPARE_SECONDS)
        data, splits = catalog.locate(self.config.data), ("train", self.config.evaluation.split)
        if self.stage_to:
            data = stage(data, self.config.sources, splits, self.stage_to, most_gb=self.stage_gb)
        if self.warm and os.environ["LOCAL_RANK"] == "0":  # the others wait where the ranks meet
            warm(data, self.config.sources, splits)
        return replace(self.config, data=data, policy=verdict.policy_path(self.config))

    def checkpoint(self) -> DelayedSubmission | None:
        """Return what submitit requeues after a preemption or a time limit: the same job, which then resumes.

        None after `max_restarts` restarts without progress, as a too short time limit would requeue for ever.
        """
        counted = self.run_dir if self.work is not command else None
        if counted and without_progress(record(counted, RUN_AGAIN)) > self.max_restarts:
            log.error("%d restarts without progress, not requeued; is --time too short?", self.max_restarts)
            return None
        return DelayedSubmission(self)


def train(config: RunConfig) -> int:
    """Run a recipe and return the exit code; 75 when it was stopped cleanly."""
    from ppma.phases import train as train_run

    return _handing_over(lambda: train_run(config, leave=_exit_now))


def evaluate(argv: list[str]) -> int:
    """Run `ppma evaluate ARGV` and return the exit code; 75 when it was stopped cleanly."""
    from ppma.transfer.evaluate import main

    return _handing_over(lambda: main(argv))


def _handing_over(work: Callable[[], object]) -> int:
    """Do some work that stops cleanly; requeue the job if the nodes are about to be taken away."""
    from ppma.training.distributed import Stop

    try:
        work()
    except Stopped as stopped:
        if stopped.why is Stop.HAND_OVER:
            requeue()
        return RUN_AGAIN
    return DONE


def command(argv: list[str]) -> int:
    """Run `ppma ARGV`."""
    from ppma.cli import main

    return main(argv)


def requeue() -> None:
    """Requeue the job through submitit. Every task calls it after its last collective; does nothing outside SLURM."""
    handler = signal.getsignal(signal.SIGUSR2)
    if not callable(handler) or not _in_slurm_job():
        return
    if submitit.JobEnvironment().global_rank == 0:
        try:
            handler(signal.SIGUSR2, None)  # ends this process
        except (UncompletedJobError, subprocess.SubprocessError) as error:
            log.error("cannot requeue the job from here, the job script will try: %s", error)
            return
    time.sleep(END_SECONDS)


def _in_slurm_job() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def exit_file(paths: JobPaths) -> Path:
    """Return the file in which a task records its exit code; a task that was killed or crashed has none."""
    return paths.result_pickle.with_suffix(".exit")


def _record(code: int) -> None:
    try:
        exit_file(submitit.JobEnvironment().paths).write_text(str(code))
    except OSError as error:  # a full disk: srun's exit code counts instead
        log.error("exit code %d cannot be recorded: %s", code, error)


def leave(code: int) -> None:
    """Record the exit code, and exit with it if it is not 0."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # while Python exits, it would kill the process and fail the job
    _record(code)
    if code:
        sys.exit(code)


def _exit_now(code: int) -> None:
    """Exit a process whose main thread hangs."""
    if _in_slurm_job():
        _record(code)
    os._exit(code)


def local_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the variables that `ppma.training.distributed` reads, for one of several ranks of this machine."""
    names = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
