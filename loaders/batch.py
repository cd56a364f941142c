"""What the loader hands to the training step."""

from dataclasses import dataclass, field, fields

from torch import Tensor


@dataclass(kw_only=True)
class LoaderCounters:
    """Totals of one rank since the stream was made."""

    samples: int = 0
    bytes_read: int = 0
    decode_seconds: float = 0.0
    """Summed over the workers: CPU work, not elapsed time."""
    wait_seconds: float = 0.0
    """Time the consumer waited for a batch."""
    bad_files: int = 0
    """Distinct files that could not give what was asked of them."""
    fallbacks: int = 0
    """Clips that DALI could not decode and PyAV could."""
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
    """int64, which view of its clip a row is."""
    key_B: Tensor
    """int64, Philox key of the row: token masks, mixing, drop path and erasing noise are drawn from it."""
    erase_B4: Tensor
    """int64 top, left, height, width of the box to erase after normalization; height 0: none."""
    decoded_B: Tensor
    """bool; False only in an evaluation that counts undecodable clips as wrong. Such frames are black and must not be scored."""
    sources: frozenset[int]
    """Which sources have rows here; known on the host."""
    epoch: int
    step: int
    """The loader's state: a stream started at (epoch, step) yields this batch first."""
    counters: LoaderCounters = field(default_factory=LoaderCounters)

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the batch."""
        values = (getattr(self, column.name) for column in fields(self))
        return [value for value in values if isinstance(value, Tensor)]
