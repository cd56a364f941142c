"""Config of the loader: what it does with a clip."""

from dataclasses import dataclass, replace
from typing import Literal

from ppma.config.errors import require, require_at_least, require_range, require_share

Reader = Literal["dali", "plain", "ffcv"]
Implementation = Literal["auto", "dali", "plain", "ffcv"]

MOST_WORKERS = 32
"""Upper limit of the default number of workers; each takes about 100 MB."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Turn videos into uint8 views. Defaults are stage 1 of the paper (PPMA, NeurIPS 2023)."""

    frames: int = 16
    """Frames per clip, uniformly spaced in the window (paper: 16)."""
    size: int = 224
    """Height and width of a view in pixels (paper: 224)."""
    short_side: int = 256
    """Short side in pixels of a scaled frame before cropping (paper: 256 in training, 224 in evaluation)."""
    window_seconds: float = 2.7
    """Length of the window that the frames are taken from, in seconds (paper: 2.7)."""
    assumed_fps: float | None = None
    """Take videos for folders of frames at this rate, whatever their own: a window then holds as many frames of each (published: 25
    for UCF101, HMDB51, Diving48, IkeaFA and UAV-Human, Q9). None: the rate of the file, 25 for a folder of frames."""
    views: int = 4
    """Crops per decoded window, adjacent in the batch (paper: 4 in stage 1, 1 elsewhere)."""
    crop: Literal["random", "center"] = "random"
    """random: RandomResizedCrop; center: the middle square of the scaled frame."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of a random crop's share of the frame's area (paper: 0.08 to 1)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of a random crop's width over height, before it is scaled to a square (paper: 3/4 to 4/3)."""
    flip_probability: float = 0.0
    """Probability of a horizontal flip (paper: none, since actions have sides)."""
    randaugment_ops: int = 0
    """Operations per view, drawn without replacement out of 14 (paper: 4 in Align, FT and LP, 0 in stage 1)."""
    randaugment_probability: float = 0.5
    """Probability that a drawn operation is applied (paper: 0.5)."""
    randaugment_magnitude: float = 7.0
    """Mean magnitude, 0 to 10 (paper: 7)."""
    randaugment_std: float = 0.5
    """Standard deviation of the magnitude (paper: 0.5)."""
    erase_probability: float = 0.0
    """Probability that a box, the same in every frame, is replaced by noise (paper: 0.25 in Align, FT and LP)."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Range of the box's share of the view's area."""
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Range of the box's height over width."""
    mix: Literal["sample", "batch"] = "sample"
    """sample: choose a source for each sample; batch: choose one for each global batch (published, Q3 and Q10)."""
    shuffle: Literal["clips", "shards"] = "clips"
    """clips: over the whole source; shards: within 64 shards of a packed store at a time, in an order of shards that each
    pass draws. All ranks then read the same few files, but clips that were packed together stay closer in training."""
    reshuffle: Literal["pass", "epoch"] = "pass"
    """pass: shuffle a source again when each of its clips has been used; epoch: at every epoch, so that an epoch of four
    views takes a new random quarter of the clips (published, Q10)."""
    implementation: Implementation = "auto"
    """dali: the DALI graph; plain: OpenCV in the worker processes; ffcv: FFCV's compiled threads, for packed stores of
    `short_side` with crops and flips only; auto: plain on a CPU, on a GPU the fastest one, measured for a few seconds
    at the start of a long run."""
    workers: int = 0
    """Worker processes per rank; 0: one per CPU core of the rank. Changes no result."""
    prefetch_batches: int = 2
    """Batches that each rank reads ahead."""
    read_ahead_batches: int | None = None
    """Further batches whose files the kernel is asked to fetch in advance, for network file systems; None: 2 of packed
    stores, where that takes 0.05 ms a clip, and none of videos, which would be fetched whole."""
    max_bad_fraction: float = 0.01
    """Share of undecodable samples above which the run stops with a list of the files."""
    stall_seconds: float = 60.0
    """Seconds after which a slow file is named in the log."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "loader.", "frames", "size", "short_side", "views", "prefetch_batches")
        require_at_least(0, self, "loader.", "workers")
        ahead = self.read_ahead_batches
        require(ahead is None or ahead >= 0, f"loader.read_ahead_batches is {ahead}; it must be at least 0")
        fits = self.short_side >= self.size or self.crop == "random"
        sides = f"loader.short_side {self.short_side} is less than loader.size {self.size}"
        require(fits, f"{sides}: a center crop does not fit; use a short_side of at least {self.size}")
        require_share(
            self, "loader.", "flip_probability", "randaugment_probability", "erase_probability", "max_bad_fraction"
        )
        require_range(self, "loader.", "crop_scale", "erase_area", most=1)
        require_range(self, "loader.", "crop_ratio", "erase_ratio")
        require(self.window_seconds > 0, f"loader.window_seconds is {self.window_seconds}; it must be above 0")
        fps = self.assumed_fps
        require(fps is None or fps > 0, f"loader.assumed_fps is {fps}; it must be above 0")
        plain = self.implementation != "ffcv" or not self.randaugment_ops
        require(plain, "loader.implementation ffcv only crops and flips; use plain or dali for RandAugment")
        fits = 0 <= self.randaugment_ops <= 14
        require(fits, f"loader.randaugment_ops is {self.randaugment_ops}; it must be between 0 and 14")

    def for_cores(self, cores: int) -> "LoaderConfig":
        """Return the config with 0 `workers` replaced by one for each of `cores`, at most MOST_WORKERS."""
        return replace(self, workers=self.workers or max(1, min(cores, MOST_WORKERS)))
