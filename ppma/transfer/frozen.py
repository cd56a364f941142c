"""Shared by the tests of a frozen encoder: cached features of a data set's two splits, and rows drawn from each class.

    RunConfig  ->  encoder  ->  train features_VD of plain views, labels_V;  test features_VWD of 2 x 3 views

Features are normalized to mean 0 and variance 1 each, as a new `fc_norm` does, whatever the norm of the checkpoint.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.common.philox import Purpose, generator
from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.loaders.sources.manifest import Manifest
from ppma.models.classify import Classifier
from ppma.training import checkpoint
from ppma.training.compute import Compute
from ppma.training.distributed import Ranks
from ppma.training.inputs import read_sources, tested_by_name
from ppma.training.tasks import label_spaces
from ppma.transfer.features import PLAIN_VIEWS, cached_features


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Features of a data set: V training clips, T test videos, W views, D width."""

    train_VD: Tensor
    labels_V: Tensor
    classes: int
    test_TWD: Tensor
    decoded_T: Tensor
    tested: Manifest
    """The test videos, with the labels of the training clips."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The outcome of a protocol without a training loop."""

    scores: np.ndarray
    """(draws * T, C), all videos of the first draw first."""
    protocol: str
    draws: int = 1
    more: dict[str, Any] = field(default_factory=dict)
    """More entries for result.json."""


def only_source(config: RunConfig, sources: Sequence[Manifest]) -> Manifest:
    """Return the one data set of a protocol; InputError for more."""
    if len(sources) != 1:
        raise InputError(f"{config.recipe} takes one data set, not {len(sources)}: {', '.join(config.sources)}")
    return sources[0]


def load_frozen(config: RunConfig, ranks: Ranks, compute: Compute) -> Frozen:
    """Read or compute the features of both splits.

    Raises:
        InputError: Labels are missing, or the test split has classes that the training split lacks.
    """
    trained, (tested,) = only_source(config, read_sources(config)), read_sources(config, config.evaluation.split)
    spaces = label_spaces([trained])
    tested = tested_by_name(tested, spaces[trained.name], config)
    model = Classifier(config.vit, spaces, config.classifier, seed=config.seed)
    if config.init is not None:
        checkpoint.load_encoder(model, config.init)
    model.to(ranks.device, compute.weight_dtype)
    train = cached_features(model, trained, config, PLAIN_VIEWS, ranks=ranks, compute=compute)
    test = cached_features(model, tested, config, config.evaluation, ranks=ranks, compute=compute)
    return Frozen(
        train_VD=normed(train.features_VWD[:, 0]), labels_V=torch.from_numpy(trained.labels.copy()).to(ranks.device),
        classes=trained.n_classes, test_TWD=normed(test.features_VWD), decoded_T=test.decoded_V, tested=tested,
    )  # fmt: skip


def normed(features_D: Tensor) -> Tensor:
    """Return features with mean 0 and variance 1 over the last axis, as a tensor outside inference mode."""
    return F.layer_norm(features_D.clone(), features_D.shape[-1:], eps=1e-6)


def shuffled_classes(
    labels_V: np.ndarray, seed: int, purpose: Purpose, draw: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each label that occurs with the rows of its clips, shuffled by (seed, purpose, draw, label)."""
    for label in np.unique(labels_V).tolist():
        rows = np.flatnonzero(labels_V == label)
        yield label, generator(seed, purpose, epoch=draw, sample=label).permutation(rows)
