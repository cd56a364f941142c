"""Probes on cached features: the encoder runs once over the data, then a head trains in seconds.

    encoder, manifest  ->  features (or all tokens) of plain views  ->  fc_norm and a linear head (behind attentive pooling)

The published protocol runs the encoder in every epoch on augmented clips; recipe `probe_published` does that.
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.config.errors import InputError
from ppma.config.run import RunConfig, check_clips
from ppma.loaders.sources.manifest import Manifest
from ppma.models.attentive import AttentiveProbe
from ppma.models.classify import Classifier, LabelSpaces
from ppma.training import checkpoint
from ppma.training.compute import Compute, choose
from ppma.training.distributed import Ranks
from ppma.training.tasks import label_spaces
from ppma.transfer.features import PLAIN_VIEWS, FeatureBatch, TokenRows, cached_features, cached_tokens, feature_batches
from ppma.transfer.frozen import only_source
from ppma.transfer.grid import choose_rate

log = logging.getLogger(__name__)


class Probe(Classifier):
    """A classifier whose training step starts at pooled features; it has the same parameters, so the same checkpoint."""

    def forward(self, pooled_BD: Tensor, label_B: Tensor) -> Tensor:  # type: ignore[override]  # features, not clips
        """Return the cross-entropy of the head, without mixing or smoothing."""
        (logits_BK,) = self.logits_of_heads(self.fc_norm(pooled_BD))
        return F.cross_entropy(logits_BK, label_B)


class ProbeTask:
    """Train the head of one data set. Every rank does the same work: it takes seconds and needs no communication."""

    splits_over_ranks = False

    def __init__(self, config: RunConfig, sources: Sequence[Manifest], ranks: Ranks) -> None:
        source = only_source(config, sources)
        spaces = label_spaces(sources)
        self.config, self.sources, self._facts = config, sources, dict[str, Any]()
        self.model: Classifier = self._make_model(spaces)
        if config.init is not None:
            mean_pooled = config.phase != "attentive"  # the norm of a mean is not that of attention
            checkpoint.load_encoder(self.model, config.init, keep_norm=mean_pooled)
        compute = choose(config.precision, ranks.device)
        self.model.to(ranks.device, compute.weight_dtype)
        self._labels_V = torch.from_numpy(source.labels.copy()).to(ranks.device)
        self.steps_per_epoch = len(self._labels_V) // config.batch
        check_clips(config, len(self._labels_V))
        self._rows = self._encode(source, ranks, compute)
        self.step_flops = 6.0 * config.batch * config.vit.width * max(self.model.label_spaces.values())

    def _make_model(self, spaces: LabelSpaces) -> Classifier:
        return Probe(self.config.vit, spaces, self.config.classifier, seed=self.config.seed)

    def _encode(self, source: Manifest, ranks: Ranks, compute: Compute) -> Tensor | TokenRows:
        """Return the features of all clips; with a grid, also choose the rate on some of them."""
        found = cached_features(self.model, source, self.config, PLAIN_VIEWS, ranks=ranks, compute=compute)
        features_VD = found.features_VWD[:, 0].clone()  # inference tensors may not enter a training step
        if self.config.grid.rates:
            optim, grid = choose_rate(features_VD, self._labels_V, self.model, self.config)
            self.config, self._facts = replace(self.config, optim=optim), {"grid": grid}
            log.info("chosen on %d held-out clips: %s", grid["held_out_clips"], grid["chosen"])
        return features_VD

    def stream(self, ranks: Ranks, start: tuple[int, int]) -> closing[Generator[FeatureBatch, None, None]]:
        """Return shuffled batches of cached rows from (epoch, step) on."""
        config, epochs = self.config, self.config.optim.epochs
        return closing(
            feature_batches(
                self._rows, self._labels_V, batch=config.batch, epochs=epochs, seed=config.seed, start=start
            )
        )

    def inputs(self, batch: FeatureBatch) -> tuple[Tensor, ...]:
        """Return features and labels."""
        return batch.features_BD, batch.label_B

    def pictures(self, batch: FeatureBatch, *, due: bool) -> dict[str, np.ndarray]:
        """Return nothing: features have no picture."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return the grid and the chosen rate and weight decay; empty without a grid."""
        return self._facts


class AttentiveTask(ProbeTask):
    """Train attentive pooling and a head on the tokens of the frozen encoder."""

    def _make_model(self, spaces: LabelSpaces) -> Classifier:
        config = self.config
        return AttentiveProbe(config.vit, spaces, config.classifier, config.attentive, seed=config.seed)

    def _encode(self, source: Manifest, ranks: Ranks, compute: Compute) -> Tensor | TokenRows:
        """Return the tokens of all clips, on disk."""
        if self.config.grid.rates:
            raise InputError("grid.rates are for the linear probe; recipe attentive_probe takes --optim.peak-lr")
        return cached_tokens(self.model, source, self.config, ranks=ranks, compute=compute)
