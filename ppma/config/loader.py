"""What the loader does with a clip, as plain data. Imports no torch: configs are read on login nodes and in loader workers."""

from dataclasses import dataclass, replace
from typing import Literal

from ppma.config.errors import InputError

Reader = Literal["dali", "plain", "ffcv"]
Implementation = Literal["auto", "dali", "plain", "ffcv"]

MOST_WORKERS = 32
"""Upper limit of the default number of workers; each takes about 100 MB."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """From a video to uint8 views. Defaults are stage 1 of the paper (PPMA, NeurIPS 2023)."""

    frames: int = 16
    """Frames of a clip, uniformly spaced in the window (paper: 16)."""
    size: int = 224
    """Height and width of a view in pixels (paper: 224)."""
    short_side: int = 256
    """Short side in pixels to which a decoded frame is scaled before it is cropped (paper: 256 in training, 224 in evaluation)."""
    window_seconds: float = 2.7
    """Length of the window that the frames are taken from, in seconds (paper: 2.7)."""
    views: int = 4
    """Crops made of one decoded window, adjacent in the batch (paper: 4 in stage 1, 1 elsewhere)."""
    crop: Literal["random", "center"] = "random"
    """random: RandomResizedCrop; center: the middle square of the scaled frame (features of plain views)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the frame's area that a random crop takes (paper: 0.08 to 1)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random crop before it is scaled to a square (paper: 3/4 to 4/3)."""
    flip_probability: float = 0.0
    """Probability of a horizontal flip (paper: none, actions have sides)."""
    randaugment_ops: int = 0
    """Operations drawn a view, without replacement, out of 14 (paper: 4 in Align, FT and LP, 0 in stage 1)."""
    randaugment_probability: float = 0.5
    """Probability that a drawn operation is applied (paper: 0.5)."""
    randaugment_magnitude: float = 7.0
    """Mean level, 0 to 10 (paper: 7)."""
    randaugment_std: float = 0.5
    """Standard deviation of the Gaussian jitter of the level (paper: 0.5)."""
    erase_probability: float = 0.0
    """Probability that a box is replaced by noise, the same box in every frame (paper: 0.25 in Align, FT and LP)."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Share of the view's area that the box takes."""
    erase_ratio: tuple[float, float] = (0.3, 3.3)
    """Height over width of the box."""
    mix: Literal["sample", "batch"] = "sample"
    """How sources mix: a source drawn for each sample, or one source for each global batch (the published stage 2)."""
    implementation: Implementation = "auto"
    """dali: the DALI graph; plain: OpenCV in the worker processes; ffcv: FFCV's compiled threads, on packed stores of `short_side`, crops
    and flips only; auto: plain on a CPU, on a GPU the fastest, measured for a few seconds when a training run of some length starts."""
    workers: int = 0
    """Worker processes of each rank; 0: one for each CPU core of the rank. They change the speed and nothing else."""
    prefetch_batches: int = 2
    """Batches of a rank that are read ahead."""
    read_ahead_batches: int = 0
    """Further batches whose files the kernel is asked to fetch already, for network file systems; 0: none."""
    max_bad_fraction: float = 0.01
    """Share of samples whose file cannot be decoded, above which the run stops with the list of files."""
    stall_seconds: float = 60.0
    """A file that takes longer than this is named in the log."""

    def __post_init__(self) -> None:
        for name in ("frames", "size", "short_side", "views", "prefetch_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"loader.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("workers", "read_ahead_batches"):
            if getattr(self, name) < 0:
                raise InputError(f"loader.{name} is {getattr(self, name)}; it must be at least 0")
        if self.short_side < self.size and self.crop == "center":
            raise InputError(
                f"loader.short_side {self.short_side} is less than loader.size {self.size}: no centre crop fits"
            )
        for name in ("flip_probability", "randaugment_probability", "erase_probability", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"loader.{name} is {getattr(self, name)}; it must be between 0 and 1")
        if self.window_seconds <= 0:
            raise InputError(f"loader.window_seconds is {self.window_seconds}; it must be above 0")
        if self.implementation == "ffcv" and self.randaugment_ops:
            raise InputError("loader.implementation ffcv crops and flips only; for RandAugment take plain or dali")
        if not 0 <= self.randaugment_ops <= 14:
            raise InputError(f"loader.randaugment_ops is {self.randaugment_ops}; it must be between 0 and 14")

    def for_cores(self, cores: int) -> "LoaderConfig":
        """Return the config with `workers` 0 replaced by a number: one for each of `cores`, at most MOST_WORKERS."""
        return replace(self, workers=self.workers or max(1, min(cores, MOST_WORKERS)))
