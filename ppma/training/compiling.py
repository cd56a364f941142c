"""torch.compile of the training step: its results are kept between runs, and the log says what it took.

    module  ->  compiled module;   seconds, graphs found in the cache  ->  a line in the log

Shapes never change during a run, so nothing is compiled for shapes in general. The results lie in ~/.cache/ppma/compiled: inductor's
own folder is in /tmp, which clusters empty with each job. XDG_CACHE_HOME or inductor's TORCHINDUCTOR_CACHE_DIR move it.
"""

import logging
import os
import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ppma.config.errors import InputError
from ppma.config.run import Compile
from ppma.models.vit import Block

log = logging.getLogger(__name__)

Mode = Literal["on", "graphs", "off"]

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""Where inductor, and Triton through it, read where their caches are."""


def keep_results() -> None:
    """Say to inductor where the results go; the user's own TORCHINDUCTOR_CACHE_DIR is left as it is."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(FOLDER, default_cache_dir()) != default_cache_dir():  # which it enters when it is imported
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppma" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # to compile anew at every start is better than no start
        log.warning("what torch.compile makes is not kept between runs: %s", error)
        return
    os.environ[FOLDER] = str(folder)
    # Also for our own kernels, which run before inductor sets it.
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


class Clock:
    """Seconds that this process has spent in torch.compile, the outermost of nested calls counted once."""

    def __init__(self) -> None:
        from torch._dynamo.callback import on_compile_end, on_compile_start

        self.seconds, self._told, self._began, self._breaks = 0.0, 0.0, 0.0, 0
        on_compile_start(self._start)
        on_compile_end(self._end)

    def _start(self, _: object) -> None:
        self._began = time.perf_counter()

    def _end(self, _: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def report(self) -> None:
        """Log what was compiled since the last call, if anything was, and warn of graph breaks."""
        from torch._dynamo.utils import counters

        if self.seconds == self._told:
            return
        hits, misses = (counters["inductor"][f"fxgraph_cache_{what}"] for what in ("hit", "miss"))
        took, self._told = self.seconds - self._told, self.seconds
        log.info("torch.compile took %.1f s; %d of %d graphs from %s", took, hits, hits + misses, os.environ[FOLDER])
        breaks = counters["graph_break"]
        if (count := sum(breaks.values())) > self._breaks:
            self._breaks = count
            reason = " ".join(next(iter(breaks)).split())[:300]
            log.warning(
                "torch.compile breaks the step into pieces at %d places, which makes it slower: %s", count, reason
            )


@cache
def clock() -> Clock:
    """The one of this process, started with the first call."""
    return Clock()


def choose(asked: Compile, device: torch.device) -> Mode:
    """auto: on a GPU. InputError for CUDA graphs without one."""
    if asked == "graphs" and device.type != "cuda":
        raise InputError(f"compile graphs records CUDA graphs, and the device is {device.type}: take --compile on")
    if asked == "auto":
        return "on" if device.type == "cuda" else "off"
    return asked


def compiled(module: nn.Module, mode: Mode = "on", *, fullgraph: bool = False) -> nn.Module:
    """Return the module, compiled when it is first called; `fullgraph` makes a graph break an error.

    Under DDP dynamo cuts the graph where a bucket ends, so gradients travel while the backward pass goes on. Of a module that FSDP2 has
    spread, each block is compiled by itself: weights come and go between the blocks.
    """
    keep_results()
    clock()
    if hasattr(module, "unshard"):
        for block in [part for part in module.modules() if isinstance(part, Block)]:
            block.forward = torch.compile(block.forward, dynamic=False)  # type: ignore[method-assign]
        return module
    name = "reduce-overhead" if mode == "graphs" else None
    return torch.compile(module, dynamic=False, mode=name, fullgraph=fullgraph)  # type: ignore[return-value]  # an OptimizedModule is a Module
