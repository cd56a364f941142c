"""What the commands that look into a run share: its encoder of any phase, some clips of a source, their plain views and embeddings.

run folder  ->  Look: encoder under a head, loader without chance  ->  embeddings_VD of a manifest
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppma.config.loader import LoaderConfig
from ppma.config.model import ClassifierConfig, ViTConfig
from ppma.config.run import EvaluationConfig, Precision
from ppma.loaders.sampler import EvaluationSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream
from ppma.models.classify import Classifier
from ppma.training import checkpoint
from ppma.training.compute import Compute, choose
from ppma.training.distributed import Ranks
from ppma.transfer.evaluate import run_folder
from ppma.transfer.features import Features, compute_features, evaluation_loader


@dataclass(frozen=True, kw_only=True)
class Look:
    """A run opened for looking."""

    folder: Path
    saved: dict[str, Any]
    """Its config.json."""
    weights: Path
    """The model.safetensors that was meant."""
    model: Classifier
    """In evaluation mode; the heads of a stage 1 run are random, those of others its own."""
    loader: LoaderConfig
    """Plain views of the run's size and window."""
    ranks: Ranks
    compute: Compute

    @property
    def has_heads(self) -> bool:
        """Whether the heads were trained."""
        return self.saved["phase"] != "mae"

    def embed(self, source: Manifest, views: EvaluationConfig) -> Features:
        """The encoder over every clip once: the mean over the tokens of each view, before the final norm."""
        return compute_features(self.model, source, self.loader, views, ranks=self.ranks, compute=self.compute)


def open_run(path: Path, *, device: str = "auto", precision: Precision = "auto", workers: int = 2) -> Look:
    """Open a run folder, one of its checkpoint folders, or a weight file inside one. Called inside no session: one process looks."""
    from ppma.training.distributed import choose_device

    folder = run_folder(path)
    saved = json.loads((folder / "config.json").read_text())
    weights = checkpoint.locate_model(path)
    vit = ViTConfig(**{**saved["vit"], "patch": tuple(saved["vit"]["patch"])})
    if saved["phase"] == "mae":
        model = Classifier(vit, {"none": 1})
        checkpoint.load_encoder(model, weights)
    else:
        spaces = json.loads((weights.parent / checkpoint.STATE).read_text())["label_spaces"]
        model = Classifier(vit, spaces, ClassifierConfig(shared_head=saved["classifier"]["shared_head"]))
        checkpoint.load_model(model, weights)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=choose_device(device))
    compute = choose(precision, ranks.device)
    loader = LoaderConfig(
        frames=vit.frames, size=vit.size, short_side=vit.size, window_seconds=saved["loader"]["window_seconds"], views=1,
        crop="center", workers=workers,
    )  # fmt: skip
    return Look(
        folder=folder, saved=saved, weights=weights, model=model.to(ranks.device, compute.weights).eval(), loader=loader,
        ranks=ranks, compute=compute,
    )  # fmt: skip


def subset(source: Manifest, rows: Sequence[int]) -> Manifest:
    """Some clips of a source, read from their videos."""
    return Manifest.from_clips([source.clip(int(row)) for row in rows], root=source.root, name=source.name)


def spread_rows(source: Manifest, most: int) -> list[int]:
    """At most so many rows, as many of each class as there are, evenly spaced in it; a function of the manifest alone."""
    if len(source) <= most:
        return list(range(len(source)))
    by_class = [np.flatnonzero(source.labels == label) for label in np.unique(source.labels)]
    each = max(1, most // len(by_class))
    chosen = [rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(int))] for rows in by_class]
    return sorted(int(row) for rows in chosen for row in rows)[:most]


def plain_views(source: Manifest, loader: LoaderConfig) -> np.ndarray:
    """(N, T, H, W, 3) uint8: the middle window and the centre square of every clip; black where one cannot be decoded."""
    plain = EvaluationConfig(windows=1, crops=1)
    config = replace(evaluation_loader(loader, plain), workers=min(loader.workers, len(source)))
    sampler = EvaluationSampler(source, config, batch_clips=min(8, len(source)), windows=1, crops=1)
    with ClipStream(sampler, [source], config, device=torch.device("cpu"), on_bad="mark") as stream:
        return np.concatenate([batch.frames_BTHWC.numpy() for batch in stream])
