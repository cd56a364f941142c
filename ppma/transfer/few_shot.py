"""A linear head from 1, 5, 10 clips a class: how much of a data set an encoder needs.

    training features  ->  n clips of each class, drawn D times  ->  one convex problem each  ->  accuracy of each draw, mean and interval

The head minimises mean cross-entropy + penalty / 2 |W|^2 with a free bias. That has one solution, so there is no rate, no schedule and no
seed but that of the draws; the clips of one draw of few are the first of the same draw of more.
"""

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.common.philox import Purpose, generator
from ppma.common.statistics import Accuracy, student_interval, top_k
from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.transfer.frozen import Frozen, Scored

log = logging.getLogger(__name__)

GRADIENT = 1e-7
"""Largest entry of the gradient at which a head counts as found."""


def draw_rows(labels_V: np.ndarray, shots: int, draw: int, seed: int) -> np.ndarray:
    """Rows of `shots` clips of each class that occurs. InputError names a class that has fewer."""
    rows = []
    for label in np.unique(labels_V):
        own = np.flatnonzero(labels_V == label)
        if len(own) < shots:
            raise InputError(
                f"class {label} has {len(own)} training clips, and few_shot.shots asks for {shots} of each; choose smaller numbers"
            )
        order = generator(seed, Purpose.SHOTS, epoch=draw, sample=int(label)).permutation(len(own))
        rows.append(own[order[:shots]])
    return np.concatenate(rows)


def fit(features_ND: Tensor, labels_N: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """(weight_CD, bias_C) in float64 of the head with the least penalised loss, by L-BFGS until the gradient vanishes."""
    x_ND = features_ND.double()
    weight_CD = torch.zeros(classes, x_ND.shape[1], dtype=torch.float64, device=x_ND.device, requires_grad=True)
    bias_C = torch.zeros(classes, dtype=torch.float64, device=x_ND.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_CD, bias_C], max_iter=1000, tolerance_grad=GRADIENT, tolerance_change=0.0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x_ND, weight_CD, bias_C), labels_N) + penalty / 2 * weight_CD.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight_CD.detach(), bias_C.detach()


def scores(frozen: Frozen, weight_CD: Tensor, bias_C: Tensor) -> np.ndarray:
    """(T, C): softmax of each view's logits, averaged over the views."""
    found_TC = F.linear(frozen.test_TWD.double(), weight_CD, bias_C).softmax(dim=-1).mean(dim=1)
    found_TC[~frozen.decoded_T] = torch.nan
    return found_TC.cpu().numpy()


def score(frozen: Frozen, config: RunConfig) -> Scored:
    """All draws of all numbers of clips. The result's own figures are those of the last number, counted over its draws."""
    asked, labels_V = config.few_shot, frozen.labels_V.cpu().numpy()
    draw_rows(labels_V, max(asked.shots), 0, config.seed)  # too few clips are told now, not after the smaller numbers
    found: list[dict[str, Any]] = []
    for shots in asked.shots:
        drawn = []
        for draw in range(asked.draws):
            rows = torch.from_numpy(draw_rows(labels_V, shots, draw, config.seed)).to(frozen.labels_V.device)
            head = fit(frozen.train_VD[rows], frozen.labels_V[rows], frozen.classes, asked.penalty)
            drawn.append(scores(frozen, *head))
        found.append({"clips_per_class": shots, **_over(drawn, frozen.tested.labels)})
        log.info("%d clips a class: top-1 %.4f over %d draws", shots, found[-1]["top1"], asked.draws)
    more: dict[str, Any] = {"draws": asked.draws, "few_shot": found}
    if asked.draws > 1:
        more |= {"ci95": found[-1]["ci95"], "interval": "Student's t, over draws"}
    protocol = f"{asked.shots[-1]} clips a class, {asked.draws} draws"
    return Scored(scores=np.concatenate(drawn), protocol=protocol, draws=asked.draws, more=more)


def _over(drawn: list[np.ndarray], labels_T: np.ndarray) -> dict[str, Any]:
    """Means over draws, their intervals where there are two draws, and each draw's own top-1."""
    each = {f"top{k}": [top_k(scores_TC, labels_T, k).value for scores_TC in drawn] for k in (1, 5)}
    means: dict[str, Accuracy] = {name: student_interval(values) for name, values in each.items()}
    found: dict[str, Any] = {name: mean.value for name, mean in means.items()}
    if len(drawn) > 1:
        found["ci95"] = {name: [max(0.0, mean.low), min(1.0, mean.high)] for name, mean in means.items()}
    return found | {"top1_of_draws": each["top1"]}
