"""Which readers can serve a run on this machine, and how fast each is.

    config, sources, device  ->  readers that could serve  ->  a throw-away stream of each, for a few seconds  ->  clips per second

NVDEC or nvJPEG through DALI is not always the fastest: long GOPs cost the decoder frames that are not used, and a node may have many
cores per GPU. What the readers deliver differs by the rounding of decoders and resizes, never in which samples and draws.
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
from ppma.loaders.sources.store import is_packed
from ppma.loaders.stream import ClipStream

log = logging.getLogger(__name__)

START_SECONDS = 12.0
"""Limit for the first batch of a reader: workers start, DALI builds its graph, FFCV compiles."""
MEASURED_SECONDS = 3.0
"""How long a reader is measured, once it has started."""
WARM_BATCHES = 2
"""Batches before the clock starts."""
APART_STEPS = 64
"""Readers are measured on different steps, so that none reads what another has put into the page cache."""


def servable(config: LoaderConfig, sources: Sequence[Manifest], device: torch.device) -> list[Reader]:
    """Return the readers that can serve these sources, the preferred one first; on a CPU only `plain`."""
    if device.type == "cpu":
        return ["plain"]
    from ppma.loaders.decode import dali as pipeline

    found: list[Reader] = ["dali"] if pipeline.available("gpu")[0] else []
    if not config.randaugment_ops and importlib.util.find_spec("ffcv") and all(_fits_ffcv(config, s) for s in sources):
        found.append("ffcv")
    return [*found, "plain"]


def _fits_ffcv(config: LoaderConfig, source: Manifest) -> bool:
    """True for a packed store whose frames need no scaling."""
    short_sides = np.minimum(source.heights, source.widths)
    return is_packed(source.file(0)) and bool((short_sides == config.short_side).all())


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
    """Read for a few seconds and throw the batches away. Bad files count as clips; the run itself names and replaces them.

    Args:
        reader: What reads.
        batches: The run's sampler. It has no state, so measuring changes no sample.
        sources: The manifests that the sampler's draws refer to.
        config: The run's loader; its `implementation` does not matter.
        device: Where batches go.
        rank: Of this process.
        world_size: Number of ranks, which read at the same time.
        first_step: Step of the run, counted from its beginning, to begin with.

    Returns:
        Clips of this rank per second; 0 for a reader that fails or gives nothing in time.
    """
    start = divmod(first_step, batches.steps_per_epoch)
    config = replace(config, implementation=reader)
    try:
        with ClipStream(
            batches, sources, config, device=device, rank=rank, world_size=world_size, epochs=1 << 30, start=start, on_bad="mark",
        ) as stream:  # fmt: skip
            for _ in range(WARM_BATCHES):
                stream.take(START_SECONDS)
            return _rate(stream, batches.views)
    except (RuntimeError, InputError, TimeoutError) as error:
        log.warning("loader.implementation auto leaves out %s: %s", reader, error)
        return 0.0


def _rate(stream: ClipStream, views: int) -> float:
    synchronize = torch.cuda.synchronize if stream.device.type == "cuda" else lambda _: None
    synchronize(stream.device)
    clips, began = 0, time.perf_counter()
    with contextlib.suppress(TimeoutError):  # a batch takes longer than what is left
        while (left := began + MEASURED_SECONDS - time.perf_counter()) > 0:
            batch = stream.take(left)
            assert batch is not None
            clips += len(batch.label_B) // views
    synchronize(stream.device)
    return clips / (time.perf_counter() - began)
