"""What a phase trains, for the one loop that trains every phase.

    RunConfig, manifests  ->  Task: a model whose forward is the loss, a stream of batches, and which tensors of a batch the model takes

The loop in `train` knows nothing of masks, labels or features; a task knows nothing of ranks, precision or checkpoints.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.loaders.batch import ClipBatch, LoaderCounters
from ppma.loaders.sampler import TrainingSampler
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream
from ppma.models import flops, pictures
from ppma.models.classify import Classifier, check_labels
from ppma.models.mae import MaskedAutoencoder
from ppma.models.mixing import check_group
from ppma.models.vit import Encoder
from ppma.training.distributed import Ranks
from ppma.training.reader_choice import choose_reader


class Batch(Protocol):
    """What a stream gives: its place in the run, and counters."""

    epoch: int
    step: int
    counters: LoaderCounters


class Task(Protocol):
    """A phase as the loop sees it."""

    config: RunConfig
    """The run's; where the task chose a rate of a grid, with that rate."""

    @property
    def model(self) -> Encoder:
        """`model(*inputs(batch))` is the loss; its state dict is the checkpoint."""

    steps_per_epoch: int
    splits_over_ranks: bool
    """True: each rank has its own part of the batch and gradients are averaged; False: every rank does the same work."""
    step_flops: float
    """Floating-point operations of a training step, for the whole global batch."""

    def stream(self, ranks: Ranks, start: tuple[int, int]) -> AbstractContextManager[Any]:
        """The batches of one rank from (epoch, step) on."""

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Tensors for the model, rows first."""

    def pictures(self, batch: Any, *, due: bool) -> dict[str, np.ndarray]:
        """RGB pictures by tag: all that there are when they are due, later those that a batch could not yet give."""

    def facts(self) -> dict[str, Any]:
        """What the run found out besides its weights, for state.json and result.json."""


def read_sources(config: RunConfig, split: str = "train") -> list[Manifest]:
    """The manifests that a run names, from the data catalog in force."""
    data = catalog.find(config.data)
    return [data.manifest(name, split) for name in config.sources]


def label_spaces(config: RunConfig, sources: Sequence[Manifest]) -> dict[str, int]:
    """Classes of each source. Every row must have a label."""
    spaces = {}
    for source in sources:
        if source.n_classes == 0:
            raise InputError(f"source {source.name} has no labels, and recipe {config.recipe} needs them")
        check_labels(source.labels, source.n_classes, source.name)
        spaces[source.name] = source.n_classes
    return spaces


class _ClipTask:
    """What stage 1 and everything with labels share: clips come from the loader."""

    model: Encoder
    splits_over_ranks = True

    def __init__(self, config: RunConfig, sources: Sequence[Manifest]) -> None:
        self.config, self.sources = config, sources
        clips = sum(len(source) for source in sources)
        views = config.loader.views
        if clips < config.batch:
            most = max(clips // views, 1) * views
            raise InputError(
                f"{', '.join(config.sources)}: {clips} clips in all, fewer than a batch of {config.batch}; choose --batch {most} or less"
            )
        # An epoch is as many views as there are clips: with V views a V-th of the clips is decoded (PAPER.md, stage 1).
        self.sampler = TrainingSampler(
            sources,
            config.loader,
            seed=config.seed,
            batch_clips=config.batch_clips,
            epoch_clips=max(clips // views, config.batch_clips),
            weights=config.weights,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self._unseen: set[int] = set()

    def stream(self, ranks: Ranks, start: tuple[int, int]) -> ClipStream:
        """The loader, writing `quarantine.csv` into the run folder."""
        config, steps = self.config, self.steps_per_epoch
        loader = choose_reader(
            self.sampler, self.sources, config.loader.for_cores(ranks.cores), ranks, step=start[0] * steps + start[1],
            total_steps=config.optim.epochs * steps,
        )  # fmt: skip
        return ClipStream(
            self.sampler, self.sources, loader, device=ranks.device, rank=ranks.rank, world_size=ranks.world_size,
            epochs=config.optim.epochs, start=start, quarantine=config.run_dir / "quarantine.csv",
        )  # fmt: skip

    def pictures(self, batch: ClipBatch, *, due: bool) -> dict[str, np.ndarray]:
        """The clips of each source as the model gets them; a source that is not in this batch is shown from the next that has it."""
        if due:
            self._unseen = set(range(len(self.sources)))
        shown = self._unseen & batch.sources
        self._unseen -= shown
        names = self.config.sources
        return {
            f"clips/{names[i]}": pictures.clips_of_source(batch.frames_BTHWC, batch.source_B, i) for i in sorted(shown)
        }

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}


class MaeTask(_ClipTask):
    """Stage 1."""

    def __init__(self, config: RunConfig, sources: Sequence[Manifest]) -> None:
        super().__init__(config, sources)
        self.model = self.autoencoder = MaskedAutoencoder(config.vit, config.mae, seed=config.seed)
        self.step_flops = 3 * config.batch * flops.mae_flops(config.vit, config.mae)

    def inputs(self, batch: ClipBatch) -> tuple[Tensor, ...]:
        """Frames and row keys."""
        return batch.frames_BTHWC, batch.key_B

    def pictures(self, batch: ClipBatch, *, due: bool) -> dict[str, np.ndarray]:
        """Also originals, what was visible of them, and reconstructions."""
        grids = super().pictures(batch, due=due)
        if not due:
            return grids
        caption, strip = pictures.reconstructions(self.autoencoder, batch.frames_BTHWC, batch.key_B)
        return grids | {f"reconstruction/{caption}": strip}


class ClassifyTask(_ClipTask):
    """Align, fine-tuning, and linear probing with the encoder in the loop."""

    def __init__(
        self, config: RunConfig, sources: Sequence[Manifest], model_class: Callable[..., Classifier] = Classifier
    ) -> None:
        super().__init__(config, sources)
        spaces = label_spaces(config, sources)
        self.model: Classifier = model_class(
            config.vit, spaces, config.classifier, source_spaces=config.sources, seed=config.seed
        )
        passes = 1 if config.classifier.freeze_encoder and not config.average else 3
        one = flops.classifier_flops(config.vit, sum(spaces.values()), config.classifier.token_drop)
        self.step_flops = passes * config.batch * one

    def facts(self) -> dict[str, Any]:
        """What the model itself reports."""
        return self.model.facts()

    def check_world(self, world_size: int) -> None:
        """InputError unless mixing groups fit into what a rank gets at a time."""
        if self.config.classifier.mix.mixes:
            check_group(self.config.batch // world_size // self.config.accumulate, self.config.classifier.mix.group)

    def inputs(self, batch: ClipBatch) -> tuple[Tensor, ...]:
        """Frames, row keys, labels, sources and erasing boxes."""
        common = (batch.frames_BTHWC, batch.key_B, batch.label_B, batch.source_B)
        return (*common, batch.erase_B4) if self.config.loader.erase_probability > 0 else common
