"""Tasks: what a phase trains, for the one loop that trains every phase.

    RunConfig, manifests        ->  Task: a model whose forward is the loss, a stream of batches, and its inputs in a batch
    loader.implementation auto  ->  the reader with the highest throughput on the slowest rank

The trainer knows nothing of masks, labels or features; a task knows nothing of ranks, precision or checkpoints.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ppma.config.errors import counted, require
from ppma.config.loader import LoaderConfig, Reader
from ppma.config.run import RunConfig, check_clips
from ppma.loaders import readers
from ppma.loaders.batch import ClipBatch, LoaderCounters
from ppma.loaders.sampler import Batches, TrainingSampler
from ppma.loaders.sources import labels
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream
from ppma.models import flops, pictures
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.models.vit import Encoder
from ppma.training import checkpoint, distributed, lineage
from ppma.training.checkpoint import Saved
from ppma.training.distributed import Ranks

log = logging.getLogger(__name__)

WORTH_STEPS = 200
"""Steps below which a run is too short to be worth measuring readers."""


class Batch(Protocol):
    """A batch of any stream: its place in the run, and counters."""

    epoch: int
    step: int
    counters: LoaderCounters


class Task(Protocol):
    """A phase as the trainer sees it."""

    sources: Sequence[Manifest]
    config: RunConfig
    """The run; with the chosen learning rate if the task chose one from a grid."""

    @property
    def model(self) -> Encoder:
        """Model whose `model(*inputs(batch))` is the loss and whose state dict is the checkpoint."""

    steps_per_epoch: int
    splits_over_ranks: bool
    """True if each rank trains on its own part of a batch; False if every rank does the same work."""
    step_flops: float
    """Floating-point operations of a training step, for the whole global batch."""

    def stream(self, ranks: Ranks, start: tuple[int, int]) -> AbstractContextManager[Any]:
        """Return the batches of one rank, from `start` = (epoch, step) on."""

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the arguments of the model's forward, each with the rows of the batch first."""

    def pictures(self, batch: Any, *, due: bool) -> dict[str, np.ndarray]:
        """Return RGB uint8 (H, W, 3) pictures by tag: all when `due`, later those that earlier batches lacked."""

    def facts(self) -> dict[str, Any]:
        """Return results of the training other than weights, for state.json and result.json."""


def label_spaces(sources: Sequence[Manifest]) -> dict[str, tuple[str, ...]]:
    """Return the class names of each source by label; InputError for a source or a row without a label."""
    return {source.name: labels.class_names(source) for source in sources}


def newest(config: RunConfig) -> Saved | None:
    """Return the checkpoint that a run would resume from; None if it starts from step 0."""
    return checkpoint.newest(config.run_dir / "checkpoints") if config.resume else None


def on_resume(config: RunConfig, sources: Sequence[Manifest], saved: Saved | None) -> list[Manifest]:
    """Return the sources of a run, with the labels of the heads of the checkpoint that it resumes from.

    Args:
        config: The run.
        sources: Its manifests.
        saved: The checkpoint; None for a run that starts from step 0.

    Raises:
        InputError: The manifests are not those of the checkpoint and `allow_changed_data` is not set, or a head lacks a
            class.
    """
    if saved is None:
        return list(sources)
    before = lineage.read(saved.folder / checkpoint.MODEL, check_files=False)
    heads = {space: names for space, names in saved.state.get("label_spaces", {}).items() if isinstance(names, list)}
    if changes := [line for source in sources for line in lineage.changes(source, before, heads.get(source.name))]:
        found = f"{saved.folder} was trained on other data: {'; '.join(changes)}"
        remedy = "restore the manifests, use another --run-dir, or go on with these data with --allow-changed-data"
        require(config.allow_changed_data, f"{found}; {remedy}")
        log.warning("%s", found)
    remedy = "leave these clips out, or start another run with --run-dir"
    return [
        labels.by_name(source, heads[source.name], head=str(saved.folder), remedy=remedy)
        if source.name in heads
        else source
        for source in sources
    ]


class _ClipTask:
    """A task whose clips come from the loader."""

    model: Encoder
    splits_over_ranks = True

    def __init__(self, config: RunConfig, sources: Sequence[Manifest]) -> None:
        self.config, self.sources = config, sources
        clips, views = sum(len(source) for source in sources), config.loader.views
        check_clips(config, clips)
        # An epoch has as many views as there are clips, so with V views per clip it decodes 1 / V of the clips.
        self.sampler = TrainingSampler(
            sources,
            config.loader,
            seed=config.seed,
            batch_clips=config.batch_clips,
            unit_clips=config.unit_rows // views,
            epoch_clips=max(clips // views, config.batch_clips),
            weights=config.weights,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self._unseen: set[int] = set()

    def stream(self, ranks: Ranks, start: tuple[int, int]) -> ClipStream:
        """Return the loader, which writes `quarantine.csv` into the run folder."""
        self.model.rows = self.sampler.rows(ranks.rank, ranks.world_size)
        config, steps = self.config, self.steps_per_epoch
        loader = choose_reader(
            self.sampler, self.sources, config.loader.for_cores(ranks.cores), ranks, step=start[0] * steps + start[1],
            total_steps=config.optim.epochs * steps,
        )  # fmt: skip
        log.info("%s", counted(loader.workers, "loader worker"))
        return ClipStream(
            self.sampler, self.sources, loader, device=ranks.device, rank=ranks.rank, world_size=ranks.world_size,
            epochs=config.optim.epochs, start=start, quarantine=config.run_dir / "quarantine.csv",
        )  # fmt: skip

    def pictures(self, batch: ClipBatch, *, due: bool) -> dict[str, np.ndarray]:
        """Return clips of each source as the model gets them; a source that a batch lacks follows with a later one."""
        if due:
            self._unseen = set(range(len(self.sources)))
        shown = self._unseen & batch.sources
        self._unseen -= shown
        names = self.config.sources
        frames_BTHWC, source_B = batch.frames_BTHWC, batch.source_B
        return {f"clips/{names[i]}": pictures.clips_of_source(frames_BTHWC, source_B, i) for i in sorted(shown)}

    def facts(self) -> dict[str, Any]:
        """Return no results: stage 1 has only weights."""
        return {}


class MaeTask(_ClipTask):
    """Stage 1: masked autoencoding."""

    def __init__(self, config: RunConfig, sources: Sequence[Manifest]) -> None:
        super().__init__(config, sources)
        self.model = self.autoencoder = MaskedAutoencoder(config.vit, config.mae, seed=config.seed)
        self.step_flops = 3 * config.batch * flops.mae_flops(config.vit, config.mae)

    def inputs(self, batch: ClipBatch) -> tuple[Tensor, ...]:
        """Return frames and row keys."""
        return batch.frames_BTHWC, batch.key_B

    def pictures(self, batch: ClipBatch, *, due: bool) -> dict[str, np.ndarray]:
        """Return clips, and when `due` reconstructions next to originals and visible patches."""
        grids = super().pictures(batch, due=due)
        if not due:
            return grids
        caption, strip = pictures.reconstructions(self.autoencoder, batch.frames_BTHWC, batch.key_B)
        return grids | {f"reconstruction/{caption}": strip}


class ClassifyTask(_ClipTask):
    """Align, fine-tuning, and linear probes that run the encoder in every step."""

    def __init__(
        self, config: RunConfig, sources: Sequence[Manifest], model_class: Callable[..., Classifier] = Classifier
    ) -> None:
        super().__init__(config, sources)
        spaces = label_spaces(sources)
        self.model: Classifier = model_class(
            config.vit, spaces, config.classifier, source_spaces=config.sources, seed=config.seed
        )
        passes = 1 if config.classifier.freeze_encoder and not config.average else 3
        one = flops.classifier_flops(config.vit, sum(self.model.label_spaces.values()), config.classifier.token_drop)
        self.step_flops = passes * config.batch * one

    def facts(self) -> dict[str, Any]:
        """Return what the model reports."""
        return self.model.facts()

    def inputs(self, batch: ClipBatch) -> tuple[Tensor, ...]:
        """Return frames, row keys, labels, sources and, with erasing, boxes."""
        common = (batch.frames_BTHWC, batch.key_B, batch.label_B, batch.source_B)
        return (*common, batch.erase_B4) if self.config.loader.erase_probability > 0 else common


def choose_reader(
    batches: Batches, sources: Sequence[Manifest], config: LoaderConfig, ranks: Ranks, *, step: int, total_steps: int
) -> LoaderConfig:
    """Return the config with `auto` replaced by the reader whose slowest rank is fastest. Every rank calls it.

    All ranks measure at the same time, because the ranks of a node share its cores, disks and network, and every step
    waits for the slowest. Nothing is measured if the config names a reader, fewer than WORTH_STEPS steps remain, or
    only one reader can serve.
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
    log.info("loader.implementation auto is %s; clips/s of the slowest rank: %s", chosen, figures)
    return replace(config, implementation=chosen)
