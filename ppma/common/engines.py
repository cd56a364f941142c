"""Choose where jobs run: in processes of this machine, or on the actors of a Ray cluster.

    --engine local  ->  workers.parallel_events
    --engine ray    ->  ray_events: seats on the cluster, each an actor with a worker process of its own
    --engine slurm  ->  read by `ppma` itself, which hands the command to the launcher (--parts N)

An engine is a function like `parallel_events`; commands pass it on and do not know which one it is. A bad file kills the
worker process of a seat and gets the same reason as on one machine. What kills an actor is a lost node or a preemption:
Ray starts the actor on another node and repeats its job, and no file is blamed. The events of a job arrive together or
not at all.
"""

import importlib.util
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ppma.common.workers import Engine, JobT, Lost, ResultT, parallel_events
from ppma.config.errors import InputError, KilledError

EngineName = Literal["local", "slurm", "ray"]

MOST_RETRIES = 10
"""How often Ray repeats a job whose actor died; then it is repeated as often alone, and then the command ends."""
CONNECT_SECONDS = 10.0


def check(name: EngineName) -> None:
    """Raise InputError if the engine of that name cannot run here; starts nothing."""
    if name == "slurm":
        raise InputError("--engine slurm goes with `ppma COMMAND --parts N`; the launcher itself needs no --engine")
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray: Ray is not installed; pip install ray on every node")


def find(name: EngineName) -> Engine:
    """Return the engine of that name, connected to the Ray cluster of $RAY_ADDRESS, or to a new one of this machine."""
    check(name)
    if name == "local":
        return parallel_events
    import ray

    if not ray.is_initialized():
        _check_address(os.environ.get("RAY_ADDRESS", "auto"))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray reports to its makers over the network
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray_events


def _check_address(address: str) -> None:
    """Raise InputError unless the head of the cluster answers; Ray would try for five minutes, then exit."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"RAY_ADDRESS is {address}: {error}; give HOST:PORT of the cluster's head") from None


class _Seat:
    """One core of the cluster, which runs one job at a time in a worker process. Models stay loaded between jobs."""

    def __init__(self, work: Callable[[Any], Iterable[Any]], timeout_seconds: float, folder: Path) -> None:
        os.chdir(folder)  # of the command: paths may be relative to it
        self.jobs: deque[Any] = deque()
        self.alone: deque[Any] = deque()
        work_and_end = partial(_work_and_end, work)
        self.events = parallel_events(work_and_end, self.jobs, self.alone, 1, timeout_seconds=timeout_seconds)

    def run(self, job: Any, alone: bool) -> list[Any]:
        """Return all events of a job; the last one is `Lost` if its worker died."""
        (self.alone if alone else self.jobs).append(job)
        found: list[Any] = []
        for which, event in self.events:
            if which is not job:  # the worker died after the job before this one
                continue
            if isinstance(event, Lost):
                return [*found, event]
            if not event:
                break
            found += event
        return found


def _work_and_end(work: Callable[[JobT], Iterable[ResultT]], job: JobT) -> Iterable[tuple[ResultT, ...]]:
    """Yield each event in a tuple, and an empty tuple at the end."""
    for event in work(job):
        yield (event,)
    yield ()


def ray_events(
    work: Callable[[JobT], Iterable[ResultT]],
    jobs: deque[JobT],
    alone: deque[JobT],
    workers: int,
    *,
    timeout_seconds: float = float("inf"),
    kill: bool = True,
) -> Generator[tuple[JobT, ResultT | Lost], None, None]:
    """Do what `parallel_events` does, on `workers` cores of a Ray cluster. All events of a job come when it ends."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    new_seat: Any = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=MOST_RETRIES)(_Seat).remote
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, JobT, bool]] = {}
    try:
        while busy or jobs or alone:
            while len(busy) < workers and (jobs or (alone and not busy)):
                by_itself = not jobs
                job = (alone if by_itself else jobs).popleft()
                seat: Any = idle.pop() if idle else new_seat(work, timeout_seconds, Path.cwd())
                busy[seat.run.remote(job, by_itself)] = seat, job, by_itself
            while idle:  # their cores may be what other seats wait for
                ray.kill(idle.pop())
            done = ray.wait(list(busy))[0][0]
            seat, job, by_itself = busy.pop(done)
            idle.append(seat)
            try:
                events = ray.get(done)
            except RayTaskError as error:
                raise error.cause from None
            except RayActorError as error:
                if error.actor_init_failed:
                    why = str(error).strip().rpartition("\n")[2]
                    raise InputError(f"--engine ray: a node cannot run ppma here ({why}); install it there") from None
                if by_itself:
                    raise KilledError(f"{job}: its Ray actors died, {MOST_RETRIES + 1} times in a row") from None
                events = [Lost("its Ray actor died", guilty=False, events=0)]
            for event in events:
                yield job, event
    finally:
        for seat in idle + [seat for seat, *_ in busy.values() if kill]:
            ray.kill(seat)
        while busy:  # with kill: until Ray has ended them
            ray.kill(busy.pop(ray.wait(list(busy))[0][0])[0])
