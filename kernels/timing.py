"""Time device work without the host: replay a CUDA graph over rotating inputs.

    input sets, work  ->  one graph that runs `work` on each set in turn  ->  seconds per call of each replay

A replay launches everything at once, so Python, autograd and launch gaps are not timed. Together the sets exceed the
L2 cache, and all outputs stay allocated, so no call finds its data in the cache. Without a GPU, calls are timed one by
one.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch

Inputs = TypeVar("Inputs")

CALLS = 8
"""Minimum number of calls in a graph, which spreads the few microseconds of its launch."""
WARM_UP = 2
"""Calls on every set before the capture, which compile, choose kernels and allocate."""


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device; a CPU has none to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cannot_run() -> tuple[type[Exception], ...]:
    """Return the exception types of an implementation that does not support a shape or runs out of memory."""
    try:
        from triton.runtime.errors import TritonError
    except ImportError:
        return (RuntimeError,)
    return RuntimeError, TritonError


def sets_needed(set_bytes: float, device: torch.device) -> int:
    """Return how many input sets together take at least twice the L2 cache, two or more; one without a GPU."""
    if device.type != "cuda":
        return 1
    return max(2, 1 + int(2 * torch.cuda.get_device_properties(device).L2_cache_size // max(set_bytes, 1.0)))


def capture(calls: Sequence[Callable[[], object]]) -> tuple[torch.cuda.CUDAGraph, list[object]]:
    """Record the calls in order as one CUDA graph; return it with the outputs, which must outlive it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in [*calls] * WARM_UP:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # thread_local: the loader's thread allocates and copies meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = [call() for call in calls]
    return graph, outputs


def replays(graph: torch.cuda.CUDAGraph, repeats: int) -> list[float]:
    """Return the seconds of each replay; all are queued before the host waits."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    graph.replay()
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]


def seconds_per_call(
    work: Callable[[Inputs], object], sets: Sequence[Inputs], device: torch.device, repeats: int
) -> list[float]:
    """Time `work(inputs)`, cycling through the sets.

    Args:
        work: Function to time; it must leave its result on the device.
        sets: Inputs of equal shape, as many as `sets_needed` says.
        device: A GPU is timed by graph replay, a CPU by the wall clock.
        repeats: Number of measurements after warm-up.

    Returns:
        Seconds per call, one value per measurement.
    """
    if device.type == "cuda":
        rounds = -(-CALLS // len(sets))
        graph, _outputs = capture([partial(work, inputs) for inputs in [*sets] * rounds])
        return [took / (rounds * len(sets)) for took in replays(graph, repeats)]
    took = []
    for number in range(WARM_UP + repeats):
        began = time.perf_counter()
        work(sets[number % len(sets)])
        took.append(time.perf_counter() - began)
    return took[WARM_UP:]
