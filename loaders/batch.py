"""What the loader hands to the training step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from ppma.config.model import PIXEL_MEAN, PIXEL_STD


@dataclass(kw_only=True)
class LoaderCounters:
    """Totals of one rank since its stream was created."""

    samples: int = 0
    bytes_read: int = 0
    decode_seconds: float = 0.0
    """Summed over the workers: CPU work, not elapsed time."""
    wait_seconds: float = 0.0
    """Time for which the consumer waited for batches."""
    bad_files: int = 0
    """Distinct files that could not give their frames."""
    bad: dict[str, str] = field(default_factory=dict)
    """{path: reason} of the bad files; the stream goes on adding to it."""
    fallbacks: int = 0
    """Clips that PyAV decoded in place of DALI."""
    worker_restarts: int = 0


@dataclass(kw_only=True)
class ClipBatch:
    """B rows = clips x views, the views of a clip adjacent. All tensors are on the training device."""

    frames_BTHWC: Tensor
    """uint8 RGB, contiguous."""
    label_B: Tensor
    """int64, -1 without a label."""
    source_B: Tensor
    """int64, index into the run's sources."""
    sample_id_B: Tensor
    """int64, row of the source's manifest."""
    view_B: Tensor
    """int64, index of the view in its clip."""
    key_B: Tensor
    """int64, Philox key of the row: the device draws token masks, mixing, drop path and erasing noise from it."""
    erase_B4: Tensor
    """int64 top, left, height, width of the box to erase after normalization; height 0 for none."""
    decoded_B: Tensor
    """bool; False for a clip that cannot be decoded and counts as wrong (evaluation). Its frames are black."""
    sources: frozenset[int]
    """Sources that have rows here, known on the host."""
    epoch: int
    step: int
    """The loader's state: a stream started at (epoch, step) yields this batch first."""
    counters: LoaderCounters = field(default_factory=LoaderCounters)

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the batch."""
        values = (getattr(self, column.name) for column in fields(self))
        return [value for value in values if isinstance(value, Tensor)]

    def as_float(
        self,
        layout: Literal["BCTHW", "BTCHW"] = "BCTHW",
        *,
        mean: Sequence[float] = PIXEL_MEAN,
        std: Sequence[float] = PIXEL_STD,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return the frames as normalized floats.

        Args:
            layout: Order of the axes: BCTHW for torchvision's and pytorchvideo's models, BTCHW for those of transformers.
            mean: Of each color, red, green and blue, for pixels in [0, 1] (ImageNet's).
            std: Of each color, likewise.
            dtype: Type of the result.
        """
        axes = ["BTHWC".index(axis) for axis in layout]
        mean_C, std_C = (torch.tensor(values, dtype=dtype, device=self.frames_BTHWC.device) for values in (mean, std))
        return ((self.frames_BTHWC.to(dtype) / 255 - mean_C) / std_C).permute(axes).contiguous()
