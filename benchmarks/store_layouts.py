"""Compare what a packed store may hold: JPEG, or H.264 or HEVC in short groups.

    clips  ->  packed in each layout, at the rate of --fps auto  ->  windows read and decoded to RGB, the layouts in turn
           ->  kB a frame, ms of CPU a window, pictures decoded for each that is shown, PSNR and SSIM

    python benchmarks/store_layouts.py [--manifest FILE.csv --root DIR]

Quality is against the frames that were packed, before they are encoded. The decoder is PyAV's on one thread; NVDEC's
rates are items of gpu_day.py.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from benchmarks.natural_clips import make_clips, store_of
from ppma.config.cache import cache_folder
from ppma.config.command import DONE, OutFolder, parse, run
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.data.encoders import packed_size
from ppma.data.frame_rates import kept_rates
from ppma.loaders.decode.fetch import all_frames, read_window
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.samples import choose_frames
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import Codec, PackParameters, read_packed

LAYOUTS: tuple[tuple[Codec, int, int], ...] = (
    *(("jpeg", quality, 1) for quality in (80, 90)),
    *((codec, 14, gop) for codec in ("hevc", "h264") for gop in (8, 1)),
)  # fmt: skip
"""Codec, quality and GOP; the first of each codec is its default."""
CHECKED = 8
"""Frames of a clip whose quality is measured."""


@dataclass(frozen=True, kw_only=True)
class LayoutConfig(rows.ReportConfig):
    """Measure CPU time, size and quality of the layouts that a packed store may have."""

    manifest: Path | None = None
    """Measure these clips instead of generated ones."""
    root: Path | None = None
    """Folder that the paths in --manifest are relative to."""
    windows: int = 24
    """Measured windows of each layout."""
    clips: OutFolder = field(default_factory=lambda: cache_folder() / "benchmark-clips")
    """Folder for the generated clips, reused by the next run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "windows")


def similarity(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return PSNR in dB of two RGB frames, and SSIM of their luma (Wang et al. 2004: Gaussian of 1.5, 11 x 11)."""
    error = float(np.mean((one.astype(float) - other) ** 2))
    x, y = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(float) for frame in (one, other))

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    mx, my = mean(x), mean(y)
    spread, product = mean(x * x) - mx * mx + mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mx * my + c1) * (2 * product + c2) / ((mx * mx + my * my + c1) * (spread + c2))
    return 10 * np.log10(255**2 / max(error, 1e-9)), float(ssim[5:-5, 5:-5].mean())


def quality(manifest: Manifest, packed: Manifest, parameters: PackParameters) -> tuple[float, float]:
    """Return mean PSNR and SSIM of some frames of each clip against what was encoded."""
    found, rates = [], kept_rates(manifest, parameters)
    for row, rate in enumerate(rates.tolist()):
        window = float(manifest.starts[row]), float(manifest.ends[row])
        frames = [
            frame for _, frame in all_frames(manifest.file(row), *window, fps=rate if np.isfinite(rate) else None)
        ]
        height, width = packed_size(*frames[0].shape[:2], parameters)
        chosen = choose_frames(np.arange(len(frames)), 0, len(frames), CHECKED)
        for number, shown in zip(chosen, read_window(packed.file(row), *window, CHECKED), strict=True):
            found.append(similarity(cv2.resize(frames[number], (width, height)), shown))
    psnr, ssim = np.mean(found, axis=0).tolist()
    return psnr, ssim


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(LayoutConfig, argv, prog="store_layouts")
    cv2.setNumThreads(1)
    if config.manifest is not None:
        source = Manifest.read(config.manifest, root=config.root)
    else:
        source = make_clips(config.clips, contents=("h264_gop250",))["h264_gop250"]
    loader = LoaderConfig(views=1)
    sampler = TrainingSampler([source], loader, seed=0, batch_clips=config.windows, epoch_clips=config.windows)
    stores, spent, made = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        # 1. pack
        for codec, number, gop in LAYOUTS:
            name = f"{codec} {number}" + f", GOP {gop}" * (codec != "jpeg")
            window = loader.frames, loader.window_seconds
            own = PackParameters(short_side=256, fps=None, quality=number, codec=codec, gop=gop, window=window)
            began = time.process_time()
            store = store_of(source, Path(folder) / f"{codec}{number}-{gop}.beton", own)
            for _, path, reason in store.index.shards[0].rejected:
                raise InputError(f"{path}: {reason}; leave it out of --manifest")
            stores[name] = source.packed_in(store), own
            spent[name] = [1e3 * (time.process_time() - began)]
        # 2. read windows, the layouts in turn
        decoded = dict.fromkeys(stores, 0)
        for one in sampler.samples(0, 0):
            for name, (packed, _) in stores.items():
                window = one.start_seconds, one.end_seconds
                began = time.thread_time()
                read_window(packed.file(one.clip), *window, loader.frames)
                spent[name].append(1e3 * (time.thread_time() - began))
                chosen = read_packed(
                    packed.file(one.clip), lambda times, w=window: choose_frames(times, *w, loader.frames)
                )
                decoded[name] += len(chosen.pictures)
        # 3. size and quality
        for name, (packed, own) in stores.items():
            [shard] = packed.store.index.shards
            psnr, ssim = quality(source, packed, own)
            made.append(
                {
                    "layout": name,
                    "kb_per_frame": shard.bytes / shard.frames / 1e3,
                    "cpu_ms_per_window": statistics.median(spent[name][1:]),
                    "decoded_per_frame": decoded[name] / config.windows / loader.frames,
                    "psnr_db": psnr,
                    "ssim": ssim,
                    "pack_ms_per_frame": spent[name][0] / shard.frames,
                    "spread": rows.spread(spent[name][1:]),
                }
            )
    rows.report(made, config, benchmark="store_layouts", measure="cpu_ms_per_window")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="store_layouts"))
