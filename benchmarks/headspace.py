"""Which of the two waits for the other: the training step or the loader. Called by `loader_throughput.py --headspace`.

    step on one cached batch  |  loader alone  |  both together   ->   clips/s of each, and one sentence

The step is stage 1's as `ppma train` runs it: on a GPU ViT-B, 128 rows, compiled, in bf16; on a CPU ViT-tiny on 4 clips. Both together
can at best reach the slower of the two; on a CPU they also share the cores.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from benchmarks import rows
from benchmarks.loader_readers import BATCH_CLIPS, sampler_of
from benchmarks.training import make_trainer, run_config, synchronize
from ppma.config.loader import LoaderConfig
from ppma.loaders.batch import ClipBatch
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream

CLOSE = 0.97
"""Share of the step's rate from which on the loader counts as fast enough."""
GPU_ROWS = 128
"""Rows of a batch on a GPU: the recipe's."""
WARM_UP, ROUNDS = 3, 3


def rate(device: torch.device, seconds: float, one: Callable[[], object], *, ahead: int, rows: int) -> float:
    """Clips/s of calls of `one`, each a batch of `rows`, for about `seconds`, after `ahead` calls that take what was ready already."""
    for _ in range(ahead):
        one()
    synchronize(device)
    began, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < seconds:
        one()
        calls += 1
    synchronize(device)
    return rows * calls / (time.perf_counter() - began)


def sentence(step: float, loader: float, both: float, *, cpu: bool) -> str:
    """What is the bottleneck, and what would help."""
    if both >= CLOSE * step:
        return f"The training step is the bottleneck: with the loader it keeps {min(both / step, 1):.0%} of its speed."
    if loader < step:
        return (
            f"The loader is the bottleneck: it gives {loader:.1f} clips/s where the step could take {step:.1f}; "
            "more workers, more views of a clip, or `ppma pack` would help."
        )
    why = "they share the cores; give the loader cores of its own or pack the data" if cpu else "give it more workers"
    return f"Each alone is fast enough (step {step:.1f}, loader {loader:.1f} clips/s), together they give {both:.1f}: {why}."


def headspace(
    manifest: Manifest,
    *,
    device: Literal["cpu", "gpu"],
    workers: int,
    views: int,
    seconds: float = 10.0,
    size: int = 224,
) -> list[dict[str, Any]]:
    """Rows with the three rates, each the median of rounds in turn of `seconds` in all; prints the sentence."""
    where = torch.device("cuda" if device == "gpu" else "cpu")
    clips = GPU_ROWS // views if device == "gpu" else BATCH_CLIPS
    config = LoaderConfig(views=views, workers=workers, size=size)
    name, batch = "base" if device == "gpu" else "tiny", clips * views
    trainer = make_trainer(run_config("mae", model=name, batch=batch, size=size), where)
    sampler = sampler_of(manifest, config, clips)
    with ClipStream(sampler, [manifest], config, device=where, epochs=1 << 30) as stream:
        flow: Iterator[ClipBatch] = iter(stream)
        cached = next(flow)
        for _ in range(WARM_UP if device == "gpu" else 1):
            trainer.train_step(cached)
        works: dict[str, Callable[[], object]] = {
            "step on a cached batch": lambda: trainer.train_step(cached),
            "loader alone": lambda: next(flow),
            "both": lambda: trainer.train_step(next(flow)),
        }
        found: dict[str, list[float]] = {what: [] for what in works}
        for _ in range(ROUNDS):
            for what, one in works.items():
                ready = 0 if "cached" in what else config.prefetch_batches
                found[what].append(rate(where, seconds / ROUNDS, one, ahead=ready, rows=batch))
    middle = {what: statistics.median(rates) for what, rates in found.items()}
    print(sentence(*(middle[what] for what in works), cpu=device == "cpu"))
    common = {
        "content": manifest.name,
        "model": name,
        "batch": batch,
        "views": views,
        "workers": workers,
        "device": device,
    }
    return [
        {"what": what, **common, "clips_per_s": round(value, 2), "rounds": ROUNDS, "spread": rows.spread(found[what])}
        for what, value in middle.items()
    ]
