"""The training step with the real loader: how much of its speed on a cached batch is left.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --manifest train.csv --root /data/videos --model base --batch 64

Each source is one kind of file, made on the spot unless a manifest is named. `clips_per_s` counts views, as batches do;
`stall_percent` is the share of the time in which the step waited for a batch; `of_cached` the speed over that of the
same step on one batch that stays on the device. The step is stage 1's, as `train_step.py` measures it.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import rows
from ppma import compiling
from ppma.command import DONE, parse, run
from ppma.compute import choose
from ppma.loaders.batch import ClipBatch
from ppma.loaders.config import LoaderConfig
from ppma.loaders.errors import InputError
from ppma.loaders.manifest import Manifest
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.stream import ClipStream
from ppma.mae import MaskedAutoencoder
from ppma.model_config import MAEConfig, OptimConfig, preset
from ppma.optim import build_optimizer, set_learning_rate

WARM_UP = 3
"""Steps that are not counted: workers start, kernels are chosen and compiled."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Training speed with the loader in the loop."""

    source: tuple[Literal["h264_gop250", "h264_gop12", "vp9", "mpeg4", "jpeg_folder", "packed"], ...] = (
        "h264_gop250",
        "packed",
    )
    """Kinds of files that are made here."""
    manifest: Path | None = None
    """Measure on these clips instead."""
    root: Path | None = None
    """What the paths of the manifest are relative to."""
    model: str = ""
    """Default: base on a GPU, tiny on a CPU."""
    batch: int = 0
    """Views of a batch; default: 128 on a GPU, 4 on a CPU."""
    views: int = 4
    """Views of a decoded clip."""
    workers: int = 2
    """Worker processes of the loader."""
    steps: int = 20
    """Steps of each measurement."""
    size: int = 224
    """Height and width of a view; smaller ones are for tests."""
    clips: Path = Path("~/.cache/ppma/benchmark-clips")
    """Folder for the made clips, kept for the next run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "batch")
        self.at_least(1, "views", "workers", "steps")
        preset(self.model or "base", size=self.size)
        if self.batch % self.views or (self.batch == 0 and 4 % self.views):
            raise InputError(f"--batch {self.batch or 4} is no multiple of {self.views} views")


def make_step(model_name: str, size: int, device: torch.device) -> Callable[[ClipBatch], None]:
    """A function that trains on one batch, in the precision and form that `ppma train` chooses for the device."""
    compute = choose("auto", device)
    model = MaskedAutoencoder(preset(model_name, size=size), MAEConfig()).to(device)
    optimizer = build_optimizer(model, OptimConfig())
    set_learning_rate(optimizer, 1e-5)
    mode = compiling.choose("auto", device)
    module = compiling.compiled(model, mode) if mode != "off" else model

    def step(batch: ClipBatch) -> None:
        with compute.autocast():
            loss = module(batch.frames_BTHWC, batch.key_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def synchronise(device: torch.device) -> None:
    """Wait until the device has caught up."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(manifest: Manifest, config: BenchmarkConfig, device: torch.device) -> rows.Row:
    """The row of one source."""
    on_gpu = device.type == "cuda"
    model = config.model or ("base" if on_gpu else "tiny")
    batch = config.batch or (128 if on_gpu else 4)
    loader = LoaderConfig(views=config.views, workers=config.workers, size=config.size)
    clips = batch // config.views
    epoch_clips = clips * (WARM_UP + config.steps)
    sampler = TrainingSampler([manifest], loader, seed=0, batch_clips=clips, epoch_clips=epoch_clips)
    step = make_step(model, config.size, device)
    with ClipStream(sampler, [manifest], loader, device=device) as stream:
        for number, cached in enumerate(stream, 1):
            step(cached)
            if number == WARM_UP:
                synchronise(device)
                began, waited = time.perf_counter(), cached.counters.wait_seconds
        synchronise(device)
        streamed = time.perf_counter() - began
        waited = cached.counters.wait_seconds - waited
    began = time.perf_counter()
    for _ in range(config.steps):
        step(cached)
    synchronise(device)
    alone = time.perf_counter() - began
    return {
        "source": manifest.name,
        "model": model,
        "batch": batch,
        "views": config.views,
        "workers": config.workers,
        "device": device.type,
        "clips_per_s": batch * config.steps / streamed,
        "stall_percent": 100 * waited / streamed,
        "of_cached": alone / streamed,
        "repeats": config.steps,
    }


def manifests(config: BenchmarkConfig) -> list[Manifest]:
    """The sources to measure."""
    if config.manifest is not None:
        return [Manifest.read(config.manifest, root=config.root, name=config.manifest.stem)]
    from benchmarks.natural_clips import make_clips

    made = make_clips(config.clips.expanduser(), contents=config.source)
    return [made[name] for name in config.source]


def main(argv: list[str]) -> int:
    """The command."""
    config = parse(BenchmarkConfig, argv, prog="end_to_end")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = [measure(manifest, config, device) for manifest in manifests(config)]
    rows.report(made, benchmark="end_to_end", json=config.json, compare=config.compare, plot=config.plot)
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="end_to_end"))
