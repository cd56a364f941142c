"""Ranks: the processes of a run, their collectives, and stopping them together.

The launcher (torchrun or `slurm.job`) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; a single process
needs none of them. No other module reads these variables. NCCL on GPUs, gloo on CPUs.
"""

import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import IntEnum
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ppma.config.command import STOP_SIGNALS, name_rank
from ppma.config.errors import DiskFullError, InputError, Stopped, UnreachableError

log = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_SECONDS = 300
"""Seconds that ranks wait for each other at the start; $PPMA_JOIN_SECONDS overrides it."""
OPEN_FILES = 128
"""Files that rank 0 may have open besides its connections to the other ranks, one each; measured: 40 + 5 log2(ranks)."""
EXCHANGE_SECONDS = 7200
"""Timeout of a collective. In a training run the watchdog (hang_seconds) acts earlier."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process and its place among all of them."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """CPU cores per rank: cores available to this process, divided by the ranks that share them."""
    nodes: int = 1
    """Machines of the run."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes shared files."""
        return self.rank == 0


def _environment() -> tuple[int, int, int]:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" not in os.environ and tasks != "1":
        raise InputError(
            f"this is one of {tasks} tasks of a SLURM step, and WORLD_SIZE is not set, so each would train its own model; "
            "start with `python slurm/launch.py`, or with torchrun in one task per node (docs/clusters.md)"
        )
    try:
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise InputError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from None
    if not 0 <= rank < world_size:
        raise InputError(f"RANK {rank} is not below WORLD_SIZE {world_size}; unset both, or start with torchrun")
    return rank, world_size, local_rank


def choose_device(asked: str, local_rank: int = 0) -> torch.device:
    """Return the device for auto, cpu or cuda; InputError for cuda without a GPU."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no GPU; `ppma doctor` says why")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _check_open_files(world_size: int) -> None:
    """Raise InputError on rank 0 if it may not open a file for every rank."""
    needed, most = OPEN_FILES + world_size, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most < needed:
        raise InputError(
            f"rank 0 of {world_size} needs {needed} open files, and its limit is {most}; raise it: `ulimit -n 65536`"
        )


def _join(rank: int, world_size: int, device: torch.device) -> None:
    """Initialize the process group; ConnectionError if not all ranks arrive in time."""
    if rank == 0:
        _check_open_files(world_size)
    # Otherwise each gloo group connects every rank to every other one, and uses few of these connections.
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    backend, why = ("nccl", "GPUs") if device.type == "cuda" else ("gloo", "no GPU")
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    me = f"rank {rank} of {world_size} on {socket.gethostname()}"
    seconds = int(os.environ.get("PPMA_JOIN_SECONDS") or JOIN_SECONDS)
    log.info("%s joins at %s over %s (%s)", me, where, backend, why)
    device_id = device if device.type == "cuda" else None
    try:
        # A separate store, because init_process_group has a single timeout for the rendezvous and for all collectives.
        store, rank, world_size = next(dist.rendezvous("env://", rank, world_size, timeout=timedelta(seconds=seconds)))
        store.set_timeout(timedelta(seconds=seconds))
        exchange = timedelta(seconds=EXCHANGE_SECONDS)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=exchange, device_id=device_id
        )
        hosts: list[str] = [""] * world_size
        dist.all_gather_object(hosts, socket.gethostname())
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError; an invalid port is a ValueError
        first = str(error).strip().splitlines()[0]
        raise ConnectionError(
            f"{me} could not meet the others at {where} within {seconds} s: {first}. Check the logs of the other ranks for an "
            "earlier failure; the nodes must reach each other at that address"
        ) from error
    if rank == 0:
        log.info("%d ranks on %d nodes: %s", world_size, len(set(hosts)), ", ".join(dict.fromkeys(hosts)))


@contextlib.contextmanager
def session(device: str = "auto") -> Iterator[Ranks]:
    """Initialize the process group; destroy it on exit. A rank that cannot join raises ConnectionError."""
    rank, world_size, local_rank = _environment()
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1:
        name_rank(rank)
        _join(rank, world_size, chosen)
    try:
        alone = Ranks(rank=rank, world_size=world_size, local_rank=local_rank, device=chosen)
        yield _located(alone)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _located(ranks: Ranks) -> Ranks:
    """Return the ranks with the number of their nodes and this rank's share of the cores.

    These are the cores that it may run on, and those of its SLURM task: torchrun does not bind ranks to cores, and not every
    cluster binds tasks. $SLURM_CPUS_PER_TASK says what was asked for.
    """
    mine = (socket.gethostname(), os.sched_getaffinity(0), os.environ.get("SLURM_PROCID"))
    places = gather_objects(mine, ranks)
    here = [(cores, task) for host, cores, task in places if host == mine[0]]
    cores = len(mine[1]) // sum(not mine[1].isdisjoint(others) for others, _ in here)
    if asked := os.environ.get("SLURM_CPUS_PER_TASK"):
        cores = min(cores, int(asked) // sum(task == mine[2] for _, task in here))
    return replace(ranks, cores=max(1, cores), nodes=len({host for host, *_ in places}))


def barrier(ranks: Ranks) -> None:
    """Wait for all ranks."""
    if ranks.world_size > 1:
        dist.barrier()


def mean_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """Return the mean of a tensor over all ranks, on every rank."""
    if ranks.world_size > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= ranks.world_size
    return value


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Return the rows of all ranks, in rank order; ranks may hold different numbers of rows, also none."""
    if ranks.world_size == 1:
        return rows
    counts = torch.zeros(ranks.world_size, dtype=torch.int64, device=rows.device)
    counts[ranks.rank] = len(rows)
    dist.all_reduce(counts)
    padded = rows.new_zeros((int(counts.max()), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts)])


def gather_objects(mine: T, ranks: Ranks) -> list[T]:
    """Return the picklable object of every rank, in rank order."""
    if ranks.world_size == 1:
        return [mine]
    parts: list[T] = [mine] * ranks.world_size
    dist.all_gather_object(parts, mine)
    return parts


def on_all_ranks(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """Return the results of all ranks. Raise wrong input, a full disk or bad numbers of one rank on all, so that none waits forever."""
    mine: tuple[list[T], Exception | None]
    try:
        mine = [work()], None
    except (InputError, DiskFullError, UnreachableError, OSError, FloatingPointError) as error:
        mine = [], error
    parts = gather_objects(mine, ranks)
    for _, refusal in parts:
        if refusal is not None:
            raise refusal
    return [result for results, _ in parts for result in results]


def on_main(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do something on rank 0 and return its result on every rank, as `on_all_ranks` does."""
    return on_all_ranks(ranks, lambda: [work()] if ranks.is_main else [])[0][0]


def mean_in_rank_order(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a gradient bucket over the ranks, adding in rank order: DDP's communication hook on CPUs.

    all_reduce adds each element in an order that depends on its place in the bucket, and DDP rebuilds its buckets after
    the first step. With it, the first step of a resumed run would differ in the last bit from that of an uninterrupted
    run.
    """
    gradient = bucket.buffer()
    parts = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]
    work = dist.all_gather(parts, gradient, async_op=True)
    assert work is not None

    def add(_: object) -> Tensor:
        gradient.copy_(parts[0])
        for part in parts[1:]:
            gradient.add_(part)
        return gradient.div_(len(parts))

    return work.get_future().then(add)


class Stop(IntEnum):
    """A request to save, or to save and stop; the highest of all ranks counts."""

    NO = 0
    CHECKPOINT = 1
    """A checkpoint is due by time: save and go on."""
    SAVE = 2
    """SIGTERM, SIGINT, SIGHUP or SIGUSR1: save and exit."""
    HAND_OVER = 3
    """SIGUSR2, which announces a preemption or the time limit: save, exit and requeue the job."""


class StopFlag:
    """Turns signals into a stop that all ranks agree on at the same step.

    The flags of a step are reduced during the next step and read after it, so no step waits for them. They use gloo
    even where gradients use NCCL: reading a flag on a GPU would wait for all queued work.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.asked = Stop.NO
        self._at_once = False
        self._work: dist.Work | None = None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._group = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        hung_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # nohup ignores it: the run outlives its terminal
        numbers = [number for number in STOP_SIGNALS if hung_up or number != signal.SIGHUP]
        self._before = {number: signal.signal(number, self._ask) for number in numbers}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:  # a second Ctrl-C stops at once
            raise KeyboardInterrupt
        known = self.asked
        self.asked = max(self.asked, Stop.HAND_OVER if number == signal.SIGUSR2 else Stop.SAVE)
        if self.asked != known:  # a launcher repeats its signal until the ranks have stopped
            when = "at once" if self._at_once else "after this step"
            log.warning("%s: stopping %s", signal.Signals(number).name, when)
        if self._at_once and not known:  # a further signal does not interrupt the stop itself
            raise Stopped(self.asked)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Stopped in the block as soon as a signal arrives: for work that a resumed run repeats."""
        self._at_once = True
        try:
            if self.asked:
                raise Stopped(self.asked)
            yield
        finally:
            self._at_once = False

    def agreed(self, asked: Stop = Stop.NO) -> Stop:
        """Return the request that all ranks agree on: the highest of their signals and of what they ask for.

        Every rank calls it once per step. With several ranks, a request is returned at the step after it.
        """
        asked = max(asked, self.asked)
        if self._ranks.world_size == 1:
            return asked
        stop = Stop.NO
        if self._work is not None:
            self._work.wait()
            stop = Stop(int(self._flag.item()))
        self._flag.fill_(int(asked))
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return stop

    def close(self) -> None:
        """Restore the previous signal handlers."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stopped_at_once(ranks: Ranks) -> Iterator[None]:
    """Raise Stopped in the block as soon as a signal arrives: for work that keeps what it has finished."""
    with contextlib.closing(StopFlag(ranks)) as stop, stop.at_once():
        yield
