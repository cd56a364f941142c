"""The linear probe on cached features: the encoder runs once over the data, then a head learns in seconds.

    encoder, manifests  ->  features of plain views (train), of 2 x 3 views (test)  ->  fc_norm and a linear head

The published protocol runs the encoder in every epoch on augmented clips; recipe `probe_published` does that.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppma import checkpoint
from ppma.classify import Classifier
from ppma.compute import choose
from ppma.config import RunConfig
from ppma.distributed import Ranks
from ppma.features import PLAIN_VIEWS, cached_features
from ppma.loaders.errors import InputError
from ppma.loaders.manifest import Manifest
from ppma.tasks import FeatureBatch, FeatureStream, label_spaces


class Probe(Classifier):
    """A classifier whose training step begins at the pooled features; the same parameters, so the same checkpoint."""

    def forward(self, pooled_BD: Tensor, label_B: Tensor) -> Tensor:  # type: ignore[override]  # rows of features, not clips
        """Cross-entropy of the head, without mixing or smoothing."""
        (logits_BK,) = self.logits_of_heads(self.fc_norm(pooled_BD))
        return F.cross_entropy(logits_BK, label_B)


class ProbeTask:
    """Train the head of one data set. Every rank does the same work: it is seconds, and needs no agreement."""

    splits_over_ranks = False

    def __init__(self, config: RunConfig, sources: Sequence[Manifest], ranks: Ranks) -> None:
        if len(sources) != 1:
            raise InputError(f"a probe takes one data set, not {len(sources)}: {', '.join(config.sources)}")
        spaces = label_spaces(config, sources)
        self.config = config
        self.model = Probe(config.vit, spaces, config.classifier, seed=config.seed)
        if config.init is not None:
            checkpoint.load_encoder(self.model, config.init, keep_norm=config.classifier.keep_norm)
        compute = choose(config.precision, ranks.device)
        self.model.to(ranks.device, compute.weights)
        found = cached_features(self.model, sources[0], config, PLAIN_VIEWS, ranks=ranks, compute=compute)
        self._features_VD = found.features_VWD[:, 0].clone()  # inference tensors may not enter a training step
        self._labels_V = torch.from_numpy(sources[0].labels.copy()).to(ranks.device)
        self.steps_per_epoch = len(self._labels_V) // config.batch
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{config.sources[0]} has {len(self._labels_V)} clips, fewer than a batch; choose --batch {len(self._labels_V)}"
            )
        self.step_flops = 6.0 * config.batch * config.vit.width * max(spaces.values())

    def stream(self, ranks: Ranks, start: tuple[int, int]) -> FeatureStream:
        """Shuffled rows of the cache."""
        config = self.config
        return FeatureStream(
            self._features_VD,
            self._labels_V,
            batch=config.batch,
            epochs=config.optim.epochs,
            seed=config.seed,
            start=start,
        )

    def inputs(self, batch: FeatureBatch) -> tuple[Tensor, ...]:
        """Features and labels."""
        return batch.features_BD, batch.label_B

    def pictures(self, batch: FeatureBatch, *, due: bool) -> dict[str, np.ndarray]:
        """Features have no picture."""
        return {}
