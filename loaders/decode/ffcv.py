"""Read a packed store with FFCV's compiled threads, on samples that the sampler has chosen.

    Samples of some batches  ->  plan: a row per sample with the addresses of its frames, crops, flips
                             ->  FFCV Loader  ->  views_BVTHWC

FFCV knows images, not clips: `ClipField` is its field for a sample of our store, and its compiler turns the operation
`PlannedViews` into machine code. FFCV seeds only its order and takes augmentations from numba's generator; here the
table of samples that it hands to the operation is the plan, so nothing random is left. A plan may point into any shard:
it holds addresses in memory of files mapped here.

Importing ffcv takes ten seconds and sets torch's threads to one: import this file late. JPEG is decoded with
libjpeg-turbo's fast DCT, within 5 levels of the accurate one; resizing is bilinear with half-pixel centers.
"""

import mmap
from collections.abc import Iterable, Iterator, Sequence
from ctypes import c_int32, c_void_p
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

_threads = torch.get_num_threads()
from ffcv.fields.base import ARG_TYPE, Field  # noqa: E402
from ffcv.libffcv import ctypes_imdecode, lib  # noqa: E402
from ffcv.loader import Loader, OrderOption  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402

torch.set_num_threads(_threads)

from ppma.config.errors import InputError  # noqa: E402
from ppma.config.loader import LoaderConfig  # noqa: E402
from ppma.loaders.samples import Sample, check_crops, choose_frames, scaled_size  # noqa: E402
from ppma.loaders.sources.store import CLIP, StoreError, locate_packed  # noqa: E402

# FFCV's `resize_crop` knows INTER_AREA only. Its library is linked with OpenCV 4, whose C functions numba can call.
_cv_resize, _cv_flip = lib.cvResize, lib.cvFlip
_cv_resize.argtypes = _cv_flip.argtypes = [c_void_p, c_void_p, c_int32]
_MATRIX = 0x42420000 | 16
"""Type of a CvMat of CV_8UC3. Its header as 64-bit words: type and step, 0, 0, address, rows and columns."""
_HEADER = 5
PLANNED_STEPS = 64
"""Batches of a plan: FFCV's threads run dry between two. A row takes 0.4 kB with 16 frames and 4 views."""


class ClipField(Field):
    """FFCV's field for a clip of a packed store; FFCV's DatasetWriter writes it from `PackedClip`s."""

    @property
    def metadata_type(self) -> np.dtype:
        """Return the type of a row in the table of samples."""
        return CLIP

    @staticmethod
    def from_binary(binary: np.ndarray) -> "ClipField":
        """Return the field; it has no arguments."""
        return ClipField()

    def to_binary(self) -> np.ndarray:
        """Return no arguments."""
        return np.zeros(1, dtype=ARG_TYPE)

    def encode(self, destination: np.ndarray, clip: Any, malloc: Any) -> None:
        """Write one sample."""
        pointer, blob = malloc(len(clip.blob))
        blob[:] = np.frombuffer(clip.blob, np.uint8)
        destination[0] = (clip.frames, clip.height, clip.width, len(clip.blob), pointer)

    def get_decoder_class(self) -> type[Operation]:
        """Return the operation that makes views of a clip."""
        return PlannedViews


def plan_type(frames: int, views: int) -> np.dtype:
    """Return the type of a row of a plan."""
    frame_fields = [("address", "<u8", (frames,)), ("size", "<u8", (frames,)), ("height", "<i8"), ("width", "<i8")]
    return np.dtype([*frame_fields, ("box", "<i8", (views, 4)), ("flip", "<i8", (views,)), ("bad", "<i8")])


def _view(source, width, box, flip, header, view, size):  # type: ignore[no-untyped-def]  # numba infers the types
    """Crop the frame at address `source`, resize it into `view` as the other readers do, and flip it if asked."""
    top, left, rows, columns = box
    header[0, 0], header[0, 3] = _MATRIX | (3 * width << 32), source + 3 * (top * width + left)
    header[0, 4] = rows | (columns << 32)
    header[1, 0], header[1, 3], header[1, 4] = _MATRIX | (3 * size << 32), view, size | (size << 32)
    into = header.ctypes.data + 8 * _HEADER
    _cv_resize(header.ctypes.data, into, 1)  # CV_INTER_LINEAR
    if flip:
        _cv_flip(into, into, 1)


class PlannedViews(Operation):
    """Decode the frames of a planned sample and make its views: uint8 (B, V, T, size, size, 3)."""

    def __init__(self, frames: int, views: int, size: int, pixels: int) -> None:
        """Set the shape of the views; `pixels` is the most that a frame of the plan has."""
        super().__init__()
        self.shape, self.pixels = (views, frames, size, size, 3), pixels

    def declare_state_and_memory(self, previous_state: Any) -> Any:
        """Return a sample's buffers: its views, one decoded frame, the headers of two matrices."""
        state = replace(previous_state, jit_mode=True, shape=self.shape, dtype=np.dtype("<u1"))
        scratch = AllocationQuery((3 * self.pixels,), np.dtype("<u1"))
        headers = AllocationQuery((2, _HEADER), np.dtype("<i8"))
        return state, (AllocationQuery(self.shape, np.dtype("<u1")), scratch, headers)

    def generate_code(self) -> Any:
        """Return the function that FFCV compiles; it gets the plan as its table of samples."""
        views, frames, view_size = self.shape[:3]
        my_range, make_view = Compiler.get_iterator(), Compiler.compile(_view)

        def decode(batch_indices, memory, plan, storage_state):  # type: ignore[no-untyped-def]
            views_BVTHWC, pixels_BP, headers = memory
            for i in my_range(len(batch_indices)):
                sample, header, frame = plan[batch_indices[i]], headers[i], pixels_BP[i].ctypes.data
                header[:] = 0
                h, w = np.uint32(sample["height"]), np.uint32(sample["width"])
                for t in range(0 if sample["bad"] else frames):
                    jpeg, size = sample["address"][t], sample["size"][t]
                    if ctypes_imdecode(jpeg, size, h, w, frame, h, w, 0, 0, 1, 1, False, False) != 0:
                        plan[batch_indices[i]]["bad"] = 1
                    for v in range(views):
                        view = views_BVTHWC[i, v, t].ctypes.data
                        make_view(frame, sample["width"], sample["box"][v], sample["flip"][v], header, view, view_size)
            return views_BVTHWC[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


@cache
def _mapped(shard: Path) -> tuple[mmap.mmap, int]:
    """Map a shard into memory; return the mapping and its address."""
    with shard.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped, np.frombuffer(mapped, np.uint8).ctypes.data


class FfcvViews:
    """Make the views of planned samples, batch after batch, in FFCV's threads."""

    def __init__(self, shard: Path, config: LoaderConfig, *, batch_clips: int, views: int, pixels: int) -> None:
        """Compile the loader.

        Args:
            shard: Any shard of the stores to read.
            config: Frames and size of the views, workers and prefetching.
            batch_clips: Samples of a batch.
            views: Views of a sample.
            pixels: Most pixels of a frame.
        """
        self.config, self.views = config, views
        operation = PlannedViews(config.frames, views, config.size, pixels)
        threads = torch.get_num_threads()
        self._loader = Loader(
            str(shard),
            batch_size=batch_clips,
            num_workers=config.workers,
            order=OrderOption.SEQUENTIAL,
            drop_last=False,
            batches_ahead=config.prefetch_batches,
            custom_fields={"clip": ClipField},
            pipelines={"clip": [operation], "label": None, "row": None},
        )
        torch.set_num_threads(threads)

    def run(self, addresses: Sequence[Path], samples: Sequence[Sample]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (views_BVTHWC uint8, bad_B) of the samples in order; FFCV overwrites the buffers some batches later.

        Raises:
            InputError: A store's frames are not of `config.short_side`.
        """
        plan = np.zeros(len(samples), plan_type(self.config.frames, self.views))
        for row, address, sample in zip(plan, addresses, samples):
            self._fill(row, address, sample)
        self._loader.reader.metadata = {"f0": plan}
        self._loader.indices = self._loader.traversal_order.indices = np.arange(len(plan), dtype=np.uint64)
        self._loader.first_traversal_order = self._loader.indices
        threads, done = torch.get_num_threads(), 0
        for (views_BVTHWC,) in self._loader:
            torch.set_num_threads(threads)
            yield views_BVTHWC, plan["bad"][done : done + len(views_BVTHWC)] != 0
            done += len(views_BVTHWC)

    def follow(self, steps: Iterable[list[tuple[Path, Sample]]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield what `run` yields for the (address, sample)s of each step; a step shorter than a batch ends a plan."""
        steps = iter(steps)
        while planned := list(islice(steps, PLANNED_STEPS)):
            while planned:
                whole = next((n for n, step in enumerate(planned) if len(step) < self._loader.batch_size), len(planned))
                now, planned = planned[: whole + 1], planned[whole + 1 :]
                pairs = [pair for step in now for pair in step]
                yield from self.run([address for address, _ in pairs], [sample for _, sample in pairs])

    def _fill(self, row: np.ndarray, address: Path, sample: Sample) -> None:
        """Write the row of a sample."""
        try:
            shard, place = locate_packed(address)
            offsets, times = shard.table(place)
        except StoreError:  # the stream has a worker read it again, which says what is wrong
            row["bad"] = 1
            return
        chosen = choose_frames(times, sample.start_seconds, sample.end_seconds, self.config.frames)
        height, width = shard.size(place)
        if scaled_size(height, width, self.config.short_side) != (height, width):
            raise InputError(
                f"{shard.path} holds frames of {width} x {height}, not of loader.short_side {self.config.short_side}; "
                f"FFCV does not scale: pack with --short-side {self.config.short_side}, or take implementation plain"
            )
        check_crops(sample.views, height, width)
        row["address"] = offsets[chosen] + np.uint64(_mapped(shard.path)[1])
        row["size"] = offsets[np.array(chosen) + 1] - offsets[chosen]
        row["height"], row["width"] = height, width
        row["box"] = [view.crop for view in sample.views]
        row["flip"] = [view.flip for view in sample.views]
