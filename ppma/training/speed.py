"""What a line of metrics says of all ranks: throughput, waiting, bad files, and which rank holds up the others.

    seconds, data wait, forward time, memory, bad files of each rank  --one exchange per line-->  perf/*, data/*, a warning

A second exchange follows when a rank has met a new bad file: several ranks may meet the same one, which counts once.

Every step ends with an exchange of gradients, so all ranks take the same time for it; what differs is the part of it that
a rank needs itself. That is its wait for data and its computing, which is taken as a multiple of its forward pass: the
rank that holds up the others waits for no other rank, and gives the factor. (Sharded models exchange weights in the
forward pass: there only slow data tells a rank from the others.)
"""

import logging
import socket
import statistics
import time
from collections.abc import Sequence

import torch

from ppma.loaders.batch import LoaderCounters
from ppma.training import distributed
from ppma.training.compute import Stopwatch
from ppma.training.distributed import Ranks
from ppma.training.monitor import resident_bytes

log = logging.getLogger(__name__)

SLOWER = 0.2
"""A rank that needs so much more time than the median rank, in two lines of metrics in a row, is named."""


def own_seconds(seconds_R: Sequence[float], waited_R: Sequence[float], forward_R: Sequence[float]) -> list[float]:
    """Return the time of an interval that each rank needed itself.

    Args:
        seconds_R: The interval on each rank.
        waited_R: The part of it for which the rank waited for data.
        forward_R: The part of it in which the rank computed forward passes.
    """
    factor = min((s - w) / max(f, 1e-9) for s, w, f in zip(seconds_R, waited_R, forward_R, strict=True))
    return [w + factor * f for w, f in zip(waited_R, forward_R, strict=True)]


class Speed:
    """Measures the steps between lines of metrics; the first interval includes compilation and worker start."""

    def __init__(
        self, ranks: Ranks, forward: Stopwatch, *, batch: int, step: int, step_flops: float, peak_flops: float
    ) -> None:
        """Start measuring.

        Args:
            ranks: The processes that train together; each calls `values` at the same steps.
            forward: Measures the forward passes.
            batch: Global batch in rows.
            step: Step that the run starts from.
            step_flops: Floating-point operations of a step on one rank.
            peak_flops: What its device reaches in a second.
        """
        self._forward = forward
        self._ranks, self._batch, self._utilization = ranks, batch, step_flops / peak_flops
        self._began, self._step, self._waited = time.perf_counter(), step, 0.0
        self._first = True
        self._slow, self._named = set[int](), set[int]()
        self.bad: dict[str, str] = {}
        """{path: reason} of the files that could not be decoded on any rank."""
        self._counted = 0.0

    def values(self, step: int, counters: LoaderCounters) -> dict[str, float]:
        """Return perf/* since the last call, and data/*. Call it after reading the loss, which waits for the device."""
        now, steps = time.perf_counter(), step - self._step
        on_gpu = self._ranks.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if on_gpu else resident_bytes()
        waited = counters.wait_seconds - self._waited
        mine = (now - self._began, waited, self._forward.take(), memory, counters.bad_files)
        self._began, self._step, self._waited = now, step, counters.wait_seconds
        row = torch.tensor([mine], dtype=torch.float64, device=self._ranks.device)
        seconds_R, waited_R, forward_R, memory_R, bad_R = distributed.gather_rows(row, self._ranks).T.tolist()
        if sum(bad_R) != self._counted:
            self._counted = sum(bad_R)
            of_ranks = distributed.gather_objects(dict(counters.bad), self._ranks)
            self.bad = {path: reason for bad in of_ranks for path, reason in bad.items()}
        seconds = max(seconds_R)
        values = {
            "perf/clips_per_s": steps * self._batch / seconds,
            "perf/stall_percent": 100 * max(w / s for w, s in zip(waited_R, seconds_R, strict=True)),
            "perf/mfu": steps * self._utilization / seconds,
            "perf/memory_gib": max(memory_R) / 2**30,
            "data/bad_files": len(self.bad),
        }
        if self._ranks.world_size > 1:
            values |= self._slowest(own_seconds(seconds_R, waited_R, forward_R), waited_R, steps)
        return values

    def _slowest(self, own_R: list[float], waited_R: list[float], steps: int) -> dict[str, float]:
        """Return which rank is slowest and by how much; log a rank that begins or ceases to hold up the others."""
        median = statistics.median_low(own_R)
        excess = {rank: 100 * (own / median - 1) for rank, own in enumerate(own_R)}
        slow = set() if self._first else {rank for rank, percent in excess.items() if percent > 100 * SLOWER}
        named, before, self._slow, self._first = slow & self._slow, self._named, slow, False
        if named != before:
            self._named = named
            hosts = distributed.gather_objects(socket.gethostname(), self._ranks)
            for rank in sorted(named - before) if self._ranks.is_main else ():
                log.warning(
                    "rank %d on %s is %.0f %% slower than the median rank: %.3g s a step, %.3g s of them waiting for data",
                    rank, hosts[rank], excess[rank], own_R[rank] / steps, waited_R[rank] / steps,
                )  # fmt: skip
            for rank in sorted(before - named) if self._ranks.is_main else ():
                log.info("rank %d on %s is as fast as the others again", rank, hosts[rank])
        slowest = max(excess, key=excess.__getitem__)
        return {"perf/slowest_rank": slowest, "perf/slowest_rank_percent": excess[slowest]}
