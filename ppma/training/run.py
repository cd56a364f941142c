"""Open finished runs: the only code that reads a run folder back.

run folder, checkpoint folder or weight file  ->  open_run  ->  FinishedRun: config, model with its weights, label spaces, metadata
"""

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppma.config.errors import InputError, reading, require
from ppma.config.loader import LoaderConfig
from ppma.config.records import restore
from ppma.config.run import UNTRAINED, Precision, RunConfig, read_config
from ppma.loaders.sources.manifest import MOST_CLASSES
from ppma.models.attentive import AttentiveClassifier
from ppma.models.classify import Classifier
from ppma.models.mae import MaskedAutoencoder
from ppma.training import checkpoint
from ppma.training.compute import Compute, choose
from ppma.training.distributed import Ranks, choose_device

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Flags that every command on a finished run and data sets takes."""

    workers: int = 2
    """Loader processes of each rank."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    precision: Precision = "auto"
    """auto: bf16 products on a GPU, float32 on a CPU."""
    data: Path | None = None
    """The data.toml (default: $PPMA_DATA, else ./data.toml)."""

    def open(self, path: Path) -> "FinishedRun":
        """Open a run on the device, in the precision and with the loader workers of the flags."""
        return open_run(path, device=self.device, precision=self.precision, workers=self.workers)


MIXING = "mixing"
"""Checkpoint name of the shares that adaptive averaging learns; no model needs them after the training."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run with its trained model on a device."""

    folder: Path
    config: RunConfig
    weights: Path
    """The model.safetensors that was opened."""
    metadata: dict[str, Any]
    """Its state.json: step, label spaces, and what the training found out."""
    model: Classifier | MaskedAutoencoder
    """In evaluation mode; an AttentiveClassifier for recipe attentive_probe."""
    loader: LoaderConfig
    """Plain views at the frames, size and window of the run."""
    ranks: Ranks
    """One process on the device of the model."""
    compute: Compute

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Class names of each label space by label; empty for a stage 1 run."""
        return {} if isinstance(self.model, MaskedAutoencoder) else self.model.class_names

    def classifier(self) -> Classifier:
        """Return the model of a run with labels; InputError for a stage 1 run."""
        if isinstance(self.model, MaskedAutoencoder):
            raise InputError(
                f"{self.folder} is a stage 1 run without a classification head; "
                f"run `ppma train probe --init {self.folder}` or finetune"
            )
        return self.model


def find_run(path: Path | str) -> Path | None:
    """Return the run folder that contains a path, or None."""
    path = Path(path)
    return next((folder for folder in (path, *path.absolute().parents) if (folder / "config.json").is_file()), None)


def run_folder(path: Path | str) -> Path:
    """Return the run folder that contains a path; raise InputError where there is none."""
    if folder := find_run(path):
        return folder
    raise InputError(
        f"{path}: neither a run folder nor inside one (no config.json); give the --run-dir of `ppma train`"
    )


def open_run(path: Path | str, *, device: str = "auto", precision: Precision = "auto", workers: int = 2) -> FinishedRun:
    """Open a finished run of any recipe that trains weights.

    Args:
        path: A run folder (its newest checkpoint is opened), one of its checkpoint folders, or a weight file in one.
        device: cpu, cuda, or auto for the GPU where there is one.
        precision: Types of the weights and the matrix products.
        workers: Loader processes of `FinishedRun.loader`.

    Raises:
        InputError: The path is in no run, the run has no weights, or they do not fit its config.
    """
    folder = run_folder(path)
    config = read_config(folder)
    if config.phase in UNTRAINED:
        start = f"; give the encoder that it tested, {config.init}" if config.init else ""
        raise InputError(f"{folder} is a {config.recipe} run, which has a result and no weights{start}")
    weights = checkpoint.locate_model(Path(path))
    metadata = _read_metadata(weights)
    model = _build(config, metadata, weights)
    encoder_only = isinstance(model, MaskedAutoencoder) and model.decoder is None
    checkpoint.load_model(model, weights, without=(MIXING, "decoder.") if encoder_only else (MIXING,))
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=choose_device(device))
    compute = choose(precision, ranks.device)
    vit = config.vit
    loader = LoaderConfig(
        frames=vit.frames, size=vit.size, short_side=vit.size, window_seconds=config.loader.window_seconds, views=1,
        crop="center", workers=workers,
    )  # fmt: skip
    return FinishedRun(
        folder=folder, config=config, weights=weights, metadata=metadata, loader=loader, ranks=ranks, compute=compute,
        model=model.to(ranks.device, compute.weight_dtype).eval(),
    )  # fmt: skip


def trained_steps(path: Path) -> int | None:
    """Return the step of a checkpoint that is about to be tested, with a warning if its run has not reached its last step.

    Args:
        path: Run folder, checkpoint folder or weight file; None is returned for weights of no run.
    """
    weights = checkpoint.locate_model(path)
    state = _read_metadata(weights) if (weights.parent / checkpoint.STATE).is_file() else {}
    step, per_epoch, folder = state.get("step"), state.get("steps_per_epoch"), find_run(weights)
    if not isinstance(step, int):
        return None
    last = step
    if folder and isinstance(per_epoch, int):
        with contextlib.suppress(InputError):  # the config of an older ppma, whose encoders can still be tested
            last = per_epoch * read_config(folder).optim.epochs
    if step < last:
        log.warning(
            "%s is from step %d of %d: the run is not finished; --resume continues it", weights.parent, step, last
        )
    return step


def _read_metadata(weights: Path) -> dict[str, Any]:
    note = weights.parent / checkpoint.STATE
    with reading(note, f"the state of the checkpoint {weights}"):
        return dict(json.loads(note.read_text(encoding="utf-8")))


def _build(config: RunConfig, metadata: dict[str, Any], weights: Path) -> Classifier | MaskedAutoencoder:
    """Return the model that a run trains, without its weights. An adaptive average ends as a plain classifier."""
    if config.phase == "mae":
        return MaskedAutoencoder(config.vit, config.mae)
    if "label_spaces" not in metadata:
        raise InputError(
            f"{weights} is not a checkpoint of a {config.recipe} run: {checkpoint.STATE} names no label spaces"
        )
    with reading(weights.parent / checkpoint.STATE, "the state of a checkpoint of this ppma"):
        spaces = restore(dict[str, int | tuple[str, ...]], metadata["label_spaces"], "label_spaces")
        counts = [classes for classes in spaces.values() if isinstance(classes, int)]
        require(max(counts, default=0) <= MOST_CLASSES, f"label_spaces has a head of more than {MOST_CLASSES} classes")
    if config.phase == "attentive":
        return AttentiveClassifier(config.vit, spaces, config.classifier, config.attentive)
    return Classifier(config.vit, spaces, config.classifier)
