"""Ranks: who runs what, and the few things they tell each other. The only file that reads RANK and WORLD_SIZE.

Whoever starts the processes (torchrun, `slurm.job`, or nobody for a single one) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT. NCCL on GPUs, gloo on CPUs.
"""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import IntEnum
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ppma.config.errors import InputError

log = logging.getLogger(__name__)

T = TypeVar("T")

JOIN_SECONDS = 300
"""How long ranks wait for each other at the start, where $PPMA_JOIN_SECONDS does not say otherwise."""
EXCHANGE_SECONDS = 7200
"""How long an exchange may take. The watchdog of a training run (hang_seconds) speaks earlier; this is for all that it does not see."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all of them."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """CPU cores that this rank may use without taking any from another rank of the same machine."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0


def _environment() -> tuple[int, int, int]:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "WORLD_SIZE" not in os.environ and tasks != "1":
        raise InputError(
            f"this is one of {tasks} tasks of a SLURM step, and WORLD_SIZE is not set: each would train a model of its own; "
            "start with `python slurm/launch.py`, or with torchrun in one task a node (docs/clusters.md)"
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
    """auto, cpu or cuda as a device; InputError when a GPU is asked for and there is none."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no GPU; `ppma doctor` says why")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _join(rank: int, world_size: int, device: torch.device) -> None:
    """Meet the other ranks, all of them, or raise ConnectionError with what there is to know."""
    backend, why = ("nccl", "GPUs") if device.type == "cuda" else ("gloo", "no GPU")
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    me = f"rank {rank} of {world_size} on {socket.gethostname()}"
    seconds = int(os.environ.get("PPMA_JOIN_SECONDS") or JOIN_SECONDS)
    log.info("%s joins at %s over %s (%s)", me, where, backend, why)
    device_id = device if device.type == "cuda" else None
    try:
        # A store of our own, because init_process_group has one time-out for the meeting and for every exchange after it.
        store, rank, world_size = next(dist.rendezvous("env://", rank, world_size, timeout=timedelta(seconds=seconds)))
        store.set_timeout(timedelta(seconds=seconds))
        exchange = timedelta(seconds=EXCHANGE_SECONDS)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=exchange, device_id=device_id
        )
        hosts: list[str] = [""] * world_size
        dist.all_gather_object(hosts, socket.gethostname())
    except (
        RuntimeError,
        ValueError,
    ) as error:  # torch's DistError is a RuntimeError; a port that is no number a ValueError
        first = str(error).strip().splitlines()[0]
        raise ConnectionError(
            f"{me} could not meet the others at {where} within {seconds} s: {first}. Look in the logs of the other ranks for one "
            "that failed earlier; the nodes must reach each other at that address"
        ) from error
    if rank == 0:
        log.info("%d ranks on %d nodes: %s", world_size, len(set(hosts)), ", ".join(dict.fromkeys(hosts)))


@contextlib.contextmanager
def session(device: str = "auto") -> Iterator[Ranks]:
    """Join the other ranks, and leave them at the end. A rank that cannot join raises; it never goes on alone."""
    rank, world_size, local_rank = _environment()
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1:
        _join(rank, world_size, chosen)
    try:
        alone = Ranks(rank=rank, world_size=world_size, local_rank=local_rank, device=chosen)
        yield replace(alone, cores=_own_cores(alone))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _own_cores(ranks: Ranks) -> int:
    """The cores of this rank, divided by the ranks that may run on the same ones: torchrun binds none, SLURM may bind each."""
    mine = (socket.gethostname(), os.sched_getaffinity(0))
    sharing = sum(host == mine[0] and not mine[1].isdisjoint(cores) for host, cores in gather_objects(mine, ranks))
    return max(1, len(mine[1]) // sharing)


def barrier(ranks: Ranks) -> None:
    """Wait for all ranks."""
    if ranks.world_size > 1:
        dist.barrier()


def mean_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """The mean of a tensor over the ranks, on all of them."""
    if ranks.world_size > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= ranks.world_size
    return value


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Rows of all ranks, rank 0's first; ranks may hold different numbers of them, also none."""
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
    """What every rank has, rank 0's first; anything that can be pickled."""
    if ranks.world_size == 1:
        return [mine]
    parts: list[T] = [mine] * ranks.world_size
    dist.all_gather_object(parts, mine)
    return parts


def mean_in_rank_order(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's exchange on CPUs: gather the gradients of all ranks and add them in the order of the ranks.

    all_reduce adds each element in an order that follows from its place in a bucket, and DDP lays its buckets out anew after the first
    step it takes. A resumed run would differ from one that never stopped in the last bit of its first step.
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
    """What the ranks were asked for; the highest of all ranks counts."""

    NO = 0
    SAVE = 1
    """SIGTERM or SIGINT: save and end."""
    HAND_OVER = 2
    """SIGUSR2, which announces a preemption or the end of the time: save and be queued again."""


class Stopped(Exception):
    """The run was asked to stop; all that it has is saved, and it wants to be run again with resume."""

    def __init__(self, why: Stop) -> None:
        super().__init__(why.name)
        self.why = why


class StopFlag:
    """Whether any rank was asked to stop, agreed on by all at the same step.

    The flags of one step are reduced while the next one computes, and read there: no step waits for it. They travel over gloo also where
    gradients do over NCCL: reading a flag on a GPU would wait for all that the GPU has yet to do.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.asked = Stop.NO
        self._at_once = False
        self._work: dist.Work | None = None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._group = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        self._before = {number: signal.signal(number, self._ask) for number in numbers}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:  # a second Ctrl-C means it
            raise KeyboardInterrupt
        known = self.asked
        self.asked = max(self.asked, Stop.HAND_OVER if number == signal.SIGUSR2 else Stop.SAVE)
        log.warning("%s: stopping %s", signal.Signals(number).name, "at once" if self._at_once else "after this step")
        if self._at_once and not known:  # asked again while it stops, it goes on stopping
            raise Stopped(self.asked)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises Stopped on the rank that gets it: for the work after the last step, which starts anew in the next run."""
        self._at_once = True
        try:
            if self.asked:
                raise Stopped(self.asked)
            yield
        finally:
            self._at_once = False

    def agreed(self) -> Stop:
        """Call once a step, on every rank; the same answer on all ranks at the same call."""
        if self._ranks.world_size == 1:
            return self.asked
        stop = Stop.NO
        if self._work is not None:
            self._work.wait()
            stop = Stop(int(self._flag.item()))
        self._flag.fill_(int(self.asked))
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return stop

    def close(self) -> None:
        """Put the old signal handlers back."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        for number, handler in self._before.items():
            signal.signal(number, handler)
