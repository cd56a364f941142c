"""List the readers that can serve a run on this machine, and measure how fast each is.

    config, sources, device  ->  readers  ->  a temporary stream of each for a few seconds  ->  clips per second

NVDEC or nvJPEG through DALI is not always the fastest: with long GOPs the decoder also decodes frames that are not
used, and a node may have many cores per GPU. Readers differ by the rounding of decoders and resizes, never in their
samples.
"""

import contextlib
import importlib.util
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig, Reader
from ppma.loaders.sampler import Batches
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.remote import Url
from ppma.loaders.sources.store import is_packed_as_jpeg
from ppma.loaders.stream import ClipStream

log = logging.getLogger(__name__)

START_SECONDS = 12.0
"""Limit for a reader's first batch: workers start, DALI builds its graph, FFCV compiles."""
MEASURED_SECONDS = 3.0
"""Length of a measurement."""
WARM_BATCHES = 2
"""Batches before the clock starts."""
APART_STEPS = 64
"""Steps between the readers' measurements, so that none reads what another has put into the page cache."""


def servable(config: LoaderConfig, sources: Sequence[Manifest], device: torch.device) -> list[Reader]:
    """Return the readers that can serve these sources, the preferred one first; on a CPU only `plain`."""
    if device.type == "cpu":
        return ["plain"]
    from ppma.loaders.decode import dali

    found: list[Reader] = ["dali"] if dali.available("gpu")[0] else []
    if not config.randaugment_ops and importlib.util.find_spec("ffcv") and all(_fits_ffcv(config, s) for s in sources):
        found.append("ffcv")
    return [*found, "plain"]


def _fits_ffcv(config: LoaderConfig, source: Manifest) -> bool:
    """Return True for a local packed store of JPEG frames that need no scaling."""
    short_sides = np.minimum(source.heights, source.widths)
    first = source.file(0)
    return not isinstance(first, Url) and is_packed_as_jpeg(first) and bool((short_sides == config.short_side).all())


def clips_per_second(
    reader: Reader,
    batches: Batches,
    sources: Sequence[Manifest],
    config: LoaderConfig,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    first_step: int = 0,
) -> float:
    """Read for a few seconds and discard the batches. Bad files count as clips.

    Args:
        reader: The reader to measure.
        batches: The run's sampler. It has no state, so measuring changes no sample.
        sources: Manifests that its samples refer to.
        config: The run's loader; `implementation` is ignored.
        device: Where batches go.
        rank: Of this process.
        world_size: Number of ranks, which read at the same time.
        first_step: Step of the run to begin with, counted from its start.

    Returns:
        Clips per second of this rank; 0 for a reader that fails or gives nothing in time.
    """
    config = replace(config, implementation=reader)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    try:
        start = divmod(first_step, batches.steps_per_epoch)
        with ClipStream(
            batches, sources, config, device=device, rank=rank, world_size=world_size,
            epochs=1 << 30, start=start, on_bad="mark",
        ) as stream:  # fmt: skip
            for _ in range(WARM_BATCHES):
                stream.take(START_SECONDS)
            synchronize(device)
            rows, began = 0, time.perf_counter()
            with contextlib.suppress(TimeoutError):  # a batch takes longer than the time left
                while (left := began + MEASURED_SECONDS - time.perf_counter()) > 0:
                    batch = stream.take(left)
                    assert batch is not None
                    rows += len(batch.label_B)
            synchronize(device)
            return rows / batches.views / (time.perf_counter() - began)
    except (RuntimeError, InputError, TimeoutError) as error:
        log.warning("loader.implementation auto skips %s: %s", reader, error)
        return 0.0
