"""Compare a linear probe on cached features with the same protocol that runs the encoder in every epoch.

    python benchmarks/probe_speed.py
    python benchmarks/probe_speed.py --epochs 50 --clips 64 --model tiny --size 112

Both train the same head on the same plain views for the same number of epochs, with `ppma train`'s own loop, one after
the other in one process. Start-up, decoding, checkpoints and logging count for both; the final test, which is the same,
for neither. The probe starts without cached features. `ratio` is the time with the encoder in every epoch over the
probe's; `later_ratio` is over a second probe on the same encoder, which finds the features of the first.
"""

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from benchmarks.natural_clips import make_clips
from ppma.config.command import DONE, parse, run
from ppma.config.flags import resolve
from ppma.config.model import ClassifierConfig, MixConfig
from ppma.config.run import RunConfig
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.phases import train

VIDEOS, FRAMES, SECONDS = 4, 150, 1.5
"""Number of generated videos, frames of each, and length in seconds of the pieces that count as clips."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Measure a probe against the same protocol with the encoder in every epoch."""

    epochs: int = 50
    """Epochs of both."""
    clips: int = 64
    """Training clips."""
    classes: int = 8
    """Number of classes."""
    model: str = "tiny"
    """Encoder size."""
    size: int = 112
    """Height and width of a view in pixels."""
    batch: int = 32
    """Clips per step."""
    workers: int = 2
    """Loader processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""


def make_data(folder: Path, config: BenchmarkConfig) -> Path:
    """Generate videos, index pieces of them as source `made`, and return the data catalog."""
    videos = make_clips(folder / "videos", clips=VIDEOS, frames=FRAMES, contents=("h264_gop250",))["h264_gop250"]
    latest = FRAMES / 25 - SECONDS
    clips = []
    for number in range(config.clips):
        start = latest * (number // VIDEOS) / max(1, (config.clips - 1) // VIDEOS)
        piece = replace(videos.clip(number % VIDEOS), label=number % config.classes)
        clips.append(replace(piece, start_seconds=start, end_seconds=start + SECONDS, domain="synthetic"))
    Manifest.write(folder / "made.csv", clips)
    catalog.add(folder / "data.toml", name="made", split="train", manifest=folder / "made.csv", root=folder / "videos")
    return folder / "data.toml"


def protocols(folder: Path, data: Path, config: BenchmarkConfig) -> tuple[RunConfig, RunConfig]:
    """Return the config of the probe, and one that differs only in where the encoder runs."""
    flags = f"--dataset made --model {config.model} --size {config.size} --batch {config.batch} --optim.epochs {config.epochs}"
    flags += f" --device {config.device} --loader.workers {config.workers} --data {data} --run-dir {folder}/probe"
    probe = resolve("probe", flags.split())
    probe = replace(probe, pictures_every=0, evaluation=replace(probe.evaluation, at_end=False))
    frozen = ClassifierConfig(freeze_encoder=True, mix=MixConfig(probability=0.0, smoothing=0.0))
    return probe, replace(probe, phase="classify", classifier=frozen, run_dir=folder / "every_epoch")


def seconds_of(config: RunConfig) -> float:
    """Return the wall time of a run from its config to its last checkpoint."""
    began = time.perf_counter()
    train(config)
    return time.perf_counter() - began


def measure(config: BenchmarkConfig, folder: Path) -> rows.Row:
    """Measure all three runs and return the row."""
    probe, every_epoch = protocols(folder, make_data(folder, config), config)
    first = seconds_of(probe)
    again = seconds_of(replace(probe, run_dir=folder / "again"))
    slow = seconds_of(every_epoch)
    return {
        "model": config.model, "size": config.size, "clips": config.clips, "epochs": config.epochs, "batch": config.batch,
        "every_epoch_s": slow, "probe_s": first, "later_probe_s": again, "ratio": slow / first, "later_ratio": slow / again,
        "spread": rows.spread([slow / first]),
    }  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(BenchmarkConfig, argv, prog="benchmarks/probe_speed.py")
    with tempfile.TemporaryDirectory() as folder:
        row = measure(config, Path(folder))
    rows.report([row], config, benchmark="probe_speed", measure="ratio")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="benchmarks/probe_speed.py"))
