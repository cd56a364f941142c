"""Precision and torch.compile of a training step.

    precision, device  ->  Compute;   module  ->  compiled module;   compile time, cache hits  ->  a line in the log

Shapes never change during a run, so everything is compiled for fixed shapes. Compiled code is cached in
~/.cache/ppma/compiled, since clusters empty inductor's default folder in /tmp after each job; XDG_CACHE_HOME or
TORCHINDUCTOR_CACHE_DIR move it.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn

from ppma.common.packages import find_compiler
from ppma.config.cache import cache_folder
from ppma.config.errors import InputError, require
from ppma.config.run import Compile, Precision
from ppma.models.vit import Block

log = logging.getLogger(__name__)

CompileMode = Literal["on", "graphs", "off"]

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable with inductor's cache folder, which Triton's is in too."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Precision on a device."""

    device: torch.device
    weight_dtype: torch.dtype
    """Type of weights, gradients and optimizer state."""
    autocast_dtype: torch.dtype
    """Type of the matrix products; autocast is on where it differs from `weight_dtype`."""

    @property
    def scales_loss(self) -> bool:
        """True for fp16, whose gradients underflow without loss scaling."""
        return self.autocast_dtype == torch.float16

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of every forward pass."""
        if self.autocast_dtype == self.weight_dtype:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


class Stopwatch:
    """Measures work on a device without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu, self._seconds = device.type == "cuda", 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measure the work of the block."""
        if self._on_gpu:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._events.append(events)
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def take(self) -> float:
        """Return the seconds measured since the last call. The device has done the work: call it after reading a result."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._seconds = 0.0
        self._events.clear()
        return seconds


def choose(precision: Precision, device: torch.device) -> Compute:
    """Return the precision for a device; auto: bf16 autocast on a GPU, fp32 on a CPU. InputError for fp16 on a CPU."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    require(precision != "fp16" or device.type == "cuda", "precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    weight_dtype = torch.float64 if precision == "fp64" else torch.float32
    autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, weight_dtype)
    return Compute(device=device, weight_dtype=weight_dtype, autocast_dtype=autocast_dtype)


def compile_mode(asked: Compile, device: torch.device) -> CompileMode:
    """Return how to compile; auto is on for a GPU and off for a CPU.

    Raises:
        InputError: CUDA graphs are for a GPU, or the compiler that torch.compile calls is missing.
    """
    if asked == "graphs" and device.type != "cuda":
        raise InputError(f"compile graphs needs a GPU, and the device is {device.type}; use --compile on")
    mode: CompileMode = ("on" if device.type == "cuda" else "off") if asked == "auto" else asked
    if mode != "off" and find_compiler(device.type) is None:
        raise InputError(
            "--compile on needs a C++ compiler and there is none: `apt-get install g++`, name one in $CXX and $CC, or use --compile off"
        )
    return mode


def compiled(module: nn.Module, mode: CompileMode = "on", *, fullgraph: bool = False) -> nn.Module:
    """Return a module that is compiled at its first call.

    Under DDP, dynamo splits the graph at bucket boundaries, so that gradients are exchanged during the backward pass. A
    module sharded by FSDP2 is compiled block by block, because the weights of a block are gathered between blocks.

    Args:
        module: Plain, DDP or FSDP2 module.
        mode: "graphs" also records CUDA graphs.
        fullgraph: Make a graph break an error.
    """
    set_cache_folder()
    compile_clock()
    if hasattr(module, "unshard"):
        for block in [part for part in module.modules() if isinstance(part, Block)]:
            block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
        return module
    name = "reduce-overhead" if mode == "graphs" else None
    return torch.compile(module, dynamic=False, mode=name, fullgraph=fullgraph)  # type: ignore[return-value]  # an OptimizedModule is a Module


def set_cache_folder() -> None:
    """Keep compiled code in a folder that outlives the job, unless the user's TORCHINDUCTOR_CACHE_DIR names one."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    default = default_cache_dir()  # inductor sets it when it is imported
    if os.environ.get(CACHE_VARIABLE, default) != default:
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # the run still works, it only compiles again at every start
        log.warning("compiled code is not kept between runs: %s", error)
        return
    os.environ[CACHE_VARIABLE] = str(folder)
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))  # our own kernels may run before inductor sets it


class CompileClock:
    """Seconds that this process has spent in torch.compile; nested calls count once."""

    def __init__(self) -> None:
        from torch._dynamo.callback import on_compile_end, on_compile_start

        self.seconds, self._reported, self._began, self._breaks = 0.0, 0.0, 0.0, 0
        on_compile_start(self._start)
        on_compile_end(self._end)

    def _start(self, _: object) -> None:
        self._began = time.perf_counter()

    def _end(self, _: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def report(self) -> None:
        """Log the compilations since the last call, if there were any, and warn of graph breaks."""
        from torch._dynamo.utils import counters

        if self.seconds == self._reported:
            return
        hits, misses = (counters["inductor"][f"fxgraph_cache_{what}"] for what in ("hit", "miss"))
        took, self._reported = self.seconds - self._reported, self.seconds
        folder = os.environ[CACHE_VARIABLE]
        log.info("torch.compile took %.1f s; %d of %d graphs from %s", took, hits, hits + misses, folder)
        breaks = counters["graph_break"]
        if (count := sum(breaks.values())) > self._breaks:
            self._breaks = count
            reason = " ".join(next(iter(breaks)).split())[:300]
            log.warning("torch.compile breaks the step at %d places, which slows it down: %s", count, reason)


@cache
def compile_clock() -> CompileClock:
    """Return the clock of this process, which starts at the first call."""
    return CompileClock()
