"""loader.implementation auto on a GPU: every rank measures the readers that could serve, and all take the same one.

    servable readers  ->  clips per second of each, on all ranks at the same time  ->  the one whose slowest rank is fastest

Ranks of a node share its cores, its disks and its network, so they measure together. A step waits for the slowest rank.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from ppma.config.loader import LoaderConfig, Reader
from ppma.loaders import readers
from ppma.loaders.sampler import Batches
from ppma.loaders.sources.manifest import Manifest
from ppma.training import distributed
from ppma.training.distributed import Ranks

log = logging.getLogger(__name__)

WORTH_STEPS = 200
"""A shorter run would be over before the choice has paid for itself."""


def choose_reader(
    batches: Batches, sources: Sequence[Manifest], config: LoaderConfig, ranks: Ranks, *, step: int, total_steps: int
) -> LoaderConfig:
    """Return the config with `auto` replaced by the fastest reader; every rank calls it.

    A config that names a reader, a run with fewer than WORTH_STEPS steps ahead, and a machine where only one reader could serve
    are left as they are: nothing is measured.
    """
    if config.implementation != "auto" or total_steps - step < WORTH_STEPS:
        return config
    offered = distributed.gather_objects(readers.servable(config, sources, ranks.device), ranks)
    names = [name for name in offered[0] if all(name in others for others in offered)]
    if len(names) < 2:
        return config
    rates: dict[Reader, float] = {}
    for number, name in enumerate(names):
        distributed.barrier(ranks)
        rates[name] = readers.clips_per_second(
            name, batches, sources, config, device=ranks.device, rank=ranks.rank, world_size=ranks.world_size,
            first_step=step + number * readers.APART_STEPS,
        )  # fmt: skip
    measured = distributed.gather_objects(rates, ranks)
    slowest = {name: min(of_rank[name] for of_rank in measured) for name in names}
    chosen = max(names, key=slowest.__getitem__)
    figures = ", ".join(f"{name} {rate:.0f}" for name, rate in slowest.items())
    log.info("loader.implementation auto takes %s; clips/s of the slowest rank: %s", chosen, figures)
    return replace(config, implementation=chosen)
