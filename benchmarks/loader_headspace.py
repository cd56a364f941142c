"""Say which store, reader and number of workers feed the training step of this machine, from measurements.

    the step's clips/s (committed row of this machine, else measured now)  ->  windows/s that it needs
    every store x reader x number of workers  ->  windows/s  ->  the least effort that is enough

`python benchmarks/loader_throughput.py --headspace` calls it. A window gives VIEWS rows of a batch, as in stage 1.
"""

import importlib.util
import os
from dataclasses import asdict, dataclass

import torch

from benchmarks import rows, train_step
from benchmarks.loader_readers import sampler_of
from ppma.config.loader import LoaderConfig, Reader
from ppma.loaders.readers import clips_per_second, servable
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import is_packed_as_jpeg

VIEWS, WINDOW_SECONDS, BATCH_CLIPS = 4, 2.44, 8
ENOUGH = 1.2
"""Times the need: less leaves a step that waits whenever a file is slow."""
EFFORT = ("manifest", "h264_gop250", "h264_gop12", "jpeg_folder", "packed", "packed_hevc")
"""Contents by what it takes to have them: as they came, encoded again, unpacked, packed."""


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One store, read in one way."""

    store: str
    reader: Reader
    workers: int
    windows_per_s: float
    times_needed: float


def step_rate(device: str) -> tuple[float, str]:
    """Return the clips/s of stage 1 with ViT-B on this machine, and where the figure is from."""
    case = {"phase": "mae", "implementation": "ours", "model": "base"}
    kept = [
        row for row in rows.history("train_step") if row["machine"] == rows.machine() and case.items() <= row.items()
    ]
    if kept:
        return kept[-1]["clips_per_s"], f"committed row of {kept[-1]['date'][:10]}"
    batch = 128 if device == "cuda" else 4
    made = train_step.Case(**case, batch=batch, device=device)
    (row,) = train_step.measure([made], 3 if device == "cuda" else 1)
    return row["clips_per_s"], "measured now"


def readers_of(manifest: Manifest, config: LoaderConfig, device: torch.device) -> list[Reader]:
    """Return the readers of a content; on a CPU a run may ask for FFCV, too."""
    able = servable(config, [manifest], device)
    on_cpu: list[Reader] = ["ffcv"] if is_packed_as_jpeg(manifest.file(0)) and importlib.util.find_spec("ffcv") else []
    return able + [reader for reader in on_cpu if reader not in able]


def choose(found: list[Alternative]) -> tuple[Alternative, str]:
    """Return the alternative of least effort that is enough, else the fastest, and what to expect of it."""
    enough = [one for one in found if one.times_needed >= ENOUGH]
    if not enough:
        best = max(found, key=lambda one: one.times_needed)
        return best, f"the step waits: it gets {best.times_needed:.2f} of the windows it could use; add cores"
    best = min(enough, key=lambda one: (EFFORT.index(one.store), one.workers, -one.windows_per_s))
    return best, f"{best.times_needed:.3g} times what the step needs"


def advice(manifests: dict[str, Manifest], *, on_gpu: bool) -> str:
    """Measure every alternative and return the table and the choice as text."""
    device = torch.device("cuda" if on_gpu else "cpu")
    rate, origin = step_rate(device.type)
    needed, cores = rate / VIEWS, len(os.sched_getaffinity(0))
    found = []
    for store in (name for name in EFFORT if name in manifests):
        for workers in sorted({1, 2, 4, 8, 16, cores} & set(range(1, cores + 1))):
            config = LoaderConfig(views=VIEWS, window_seconds=WINDOW_SECONDS, workers=workers)
            for reader in readers_of(manifests[store], config, device):
                batches = sampler_of(manifests[store], config, BATCH_CLIPS)
                speed = clips_per_second(reader, batches, [manifests[store]], config, device=device)
                found.append(
                    Alternative(
                        store=store, reader=reader, workers=workers, windows_per_s=speed, times_needed=speed / needed
                    )
                )
    best, expect = choose(found)
    head = (
        f"stage 1 with ViT-B takes {rate:.3g} clips/s ({origin}), {VIEWS} of a window: it needs {needed:.3g} windows/s"
    )
    use = f"use {best.store} with reader {best.reader} and {best.workers} workers: {expect}"
    return "\n".join([head, rows.table([asdict(one) for one in found]), use])
