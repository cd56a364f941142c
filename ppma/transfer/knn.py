"""Nearest neighbors: what an encoder's features are worth with nothing learned on top.

    features of training clips and of 2 x 3 views of the test videos  ->  k nearest by cosine  ->  exp(similarity / T) votes  ->  scores

The votes of a view sum to 1; a video's scores are their mean over its views. Sources: Wu et al. (CVPR 2018); DINO.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.config.protocols import KNNConfig
from ppma.config.run import RunConfig
from ppma.transfer.frozen import Frozen, Scored
from ppma.transfer.result import mean_over_views

ROWS_AT_A_TIME = 4096
"""Rows of the similarity matrix in memory at once: 4096 x 90,000 clips are 1.5 GB."""


def votes(query_BD: Tensor, bank_VD: Tensor, labels_V: Tensor, classes: int, config: KNNConfig) -> Tensor:
    """Return (B, C) float64 votes for B queries among V labeled clips; each row sums to 1."""
    bank_VD = F.normalize(bank_VD, dim=1)
    scores = []
    for part_BD in F.normalize(query_BD, dim=1).split(ROWS_AT_A_TIME):
        similar_BK, nearest_BK = (part_BD @ bank_VD.T).topk(min(config.k, len(bank_VD)), dim=1)
        weight_BK = (similar_BK.double() / config.temperature).softmax(dim=1)
        empty_BC = weight_BK.new_zeros(len(part_BD), classes)
        scores.append(empty_BC.scatter_add_(1, labels_V[nearest_BK], weight_BK))
    return torch.cat(scores)


def score(frozen: Frozen, config: RunConfig) -> Scored:
    """Return the scores of the test videos."""
    flat_BC = votes(frozen.test_TWD.flatten(0, 1), frozen.train_VD, frozen.labels_V, frozen.classes, config.knn)
    scores_TC = mean_over_views(
        flat_BC.unflatten(0, frozen.test_TWD.shape[:2]), frozen.decoded_T, frozen.tested.n_classes
    )
    return Scored(scores=scores_TC, protocol=f"k {config.knn.k}, temperature {config.knn.temperature}")
