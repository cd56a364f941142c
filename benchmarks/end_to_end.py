"""Measure the training step with the real loader: what share of its speed on a cached batch remains.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --manifest train.csv --root /data/videos --model base --batch 64

Each source is one kind of file, generated unless --manifest names one, and is read by every --implementation that
supports it. `clips_per_s` counts views. `stall_percent` is the share of time the step waited for a batch. `of_cached`
is the speed relative to the same step on one batch that stays on the device. The step is stage 1's, as `ppma train`
runs it. A GOP of 250 costs 125 decoded frames to reach a frame in the middle, so such files limit the loader; packed
clips must not.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import rows
from benchmarks.training import make_trainer, run_config
from ppma.config.cache import cache_folder
from ppma.config.command import DONE, OutFolder, parse, run
from ppma.config.errors import InputError
from ppma.config.loader import Implementation, LoaderConfig
from ppma.config.model import preset
from ppma.kernels.timing import synchronize
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import is_packed_as_jpeg
from ppma.loaders.stream import ClipStream
from ppma.training.trainer import Trainer

WARM_UP = 6
"""Steps that are not counted: workers start, the step compiles, and prefetched batches are used up."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Measure training speed with the loader in the loop."""

    source: tuple[Literal["h264_gop250", "h264_gop12", "vp9", "mpeg4", "jpeg_folder", "packed"], ...] = (
        "h264_gop250",
        "packed",
    )
    """Kinds of files to generate."""
    implementation: tuple[Implementation, ...] = ("auto",)
    """Readers: dali, plain, ffcv (packed clips only), or auto."""
    manifest: Path | None = None
    """Measure these clips instead."""
    root: Path | None = None
    """Folder that the paths in --manifest are relative to."""
    model: str = ""
    """Encoder size (default: base on a GPU, tiny on a CPU)."""
    batch: int = 0
    """Views per batch (default: 128 on a GPU, 4 on a CPU)."""
    views: int = 4
    """Views per decoded clip."""
    workers: int = 2
    """Worker processes of the loader."""
    steps: int = 20
    """Steps per measurement."""
    size: int = 224
    """Height and width of a view in pixels; smaller ones are for tests."""
    clips: OutFolder = field(default_factory=lambda: cache_folder() / "benchmark-clips")
    """Folder for the generated clips, reused by the next run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "batch")
        self.at_least(1, "views", "workers", "steps")
        preset(self.model or "base", size=self.size)
        if self.root is not None and not self.root.is_dir():
            raise InputError(
                f"--root {self.root}: no such folder; give the one that the paths of --manifest start from"
            )


def make_step(config: BenchmarkConfig, device: torch.device) -> Trainer:
    """Build the trainer of stage 1 for batches of the config's size, which `views` must divide."""
    on_gpu = device.type == "cuda"
    model, batch = config.model or ("base" if on_gpu else "tiny"), config.batch or (128 if on_gpu else 4)
    if batch % config.views:
        raise InputError(f"--batch {batch} is not a multiple of {config.views} views")
    return make_trainer(run_config("mae", model=model, batch=batch, size=config.size), device)


def measure(
    manifest: Manifest, config: BenchmarkConfig, trainer: Trainer, implementation: Implementation = "auto"
) -> rows.Row:
    """Measure one source with one reader and return the row."""
    device, batch = trainer.ranks.device, trainer.config.batch
    shape = {"size": trainer.config.vit.size, "frames": trainer.config.vit.frames}
    loader = LoaderConfig(views=config.views, workers=config.workers, implementation=implementation, **shape)
    clips = batch // config.views
    epoch_clips = clips * (WARM_UP + config.steps)
    sampler = TrainingSampler([manifest], loader, seed=0, batch_clips=clips, epoch_clips=epoch_clips)
    with ClipStream(sampler, [manifest], loader, device=device) as stream:
        for number, cached in enumerate(stream, 1):
            trainer.train_step(cached)
            if number == WARM_UP:
                synchronize(device)
                began, waited = time.perf_counter(), cached.counters.wait_seconds
        synchronize(device)
        streamed = time.perf_counter() - began
        waited = cached.counters.wait_seconds - waited
    began = time.perf_counter()
    for _ in range(config.steps):
        trainer.train_step(cached)
    synchronize(device)
    alone = time.perf_counter() - began
    return {
        "source": manifest.name,
        "reader": stream.implementation,
        "model": config.model or ("base" if device.type == "cuda" else "tiny"),
        "batch": batch,
        "views": config.views,
        "workers": config.workers,
        "device": device.type,
        "clips_per_s": batch * config.steps / streamed,
        "stall_percent": 100 * waited / streamed,
        "of_cached": alone / streamed,
        "fallback_percent": 100 * cached.counters.fallbacks / max(cached.counters.samples, 1),
        "repeats": config.steps,
    }


def cases(sources: Sequence[Manifest], config: BenchmarkConfig) -> Iterator[tuple[Manifest, Implementation]]:
    """Yield every source with every reader that supports it."""
    for manifest in sources:
        for implementation in config.implementation:
            if implementation != "ffcv" or is_packed_as_jpeg(manifest.file(0)):
                yield manifest, implementation


def manifests(config: BenchmarkConfig) -> list[Manifest]:
    """Return the sources to measure, generated unless a manifest is given."""
    if config.manifest is not None:
        return [Manifest.read(config.manifest, root=config.root, name=config.manifest.stem)]
    from benchmarks.natural_clips import make_clips

    made = make_clips(config.clips, contents=config.source)
    return [made[name] for name in config.source]


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(BenchmarkConfig, argv, prog="end_to_end")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = make_step(config, device)
    sources = manifests(config)
    made = [measure(manifest, config, trainer, reader) for manifest, reader in cases(sources, config)]
    rows.report(made, config, benchmark="end_to_end")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="end_to_end"))
