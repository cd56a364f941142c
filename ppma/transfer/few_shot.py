"""Few-shot test: a linear head from 1, 5 and 10 clips per class, for several draws of the clips.

    training features  ->  n clips of each class, drawn D times  ->  one convex problem each  ->  accuracy of each draw, mean and interval

The head minimizes mean cross-entropy + penalty / 2 |W|^2 with a free bias. The problem has one solution, so there is no rate, no schedule
and no randomness except the draws; the clips of a draw of few are the first of the same draw of more.
"""

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.common.philox import Purpose
from ppma.common.statistics import student_interval, top_k
from ppma.config.errors import InputError
from ppma.config.run import RunConfig
from ppma.transfer.frozen import Frozen, Scored, shuffled_classes
from ppma.transfer.result import mean_over_views, softmax_over_views

log = logging.getLogger(__name__)

GRADIENT = 1e-7
"""Largest entry of the gradient at which L-BFGS stops."""


def draw_rows(labels_V: np.ndarray, shots: int, draw: int, seed: int) -> np.ndarray:
    """Return the rows of `shots` clips of each class that occurs; InputError names a class that has fewer."""
    rows = []
    for label, shuffled in shuffled_classes(labels_V, seed, Purpose.SHOTS, draw):
        if len(shuffled) < shots:
            raise InputError(
                f"class {label} has {len(shuffled)} training clips, and few_shot.shots asks for {shots} of each; "
                "choose smaller numbers"
            )
        rows.append(shuffled[:shots])
    return np.concatenate(rows)


def fit(features_ND: Tensor, labels_N: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Return (weight_CD, bias_C) in float64 of the head with the smallest penalized loss, found by L-BFGS."""
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


def scores(frozen: Frozen, weight_CD: Tensor, bias_C: Tensor, average: str = "softmax") -> np.ndarray:
    """Return (T, C) probabilities, averaged over the views as `softmax_over_views` does."""
    scores_TWC = softmax_over_views(F.linear(frozen.test_TWD.double(), weight_CD, bias_C), average)
    return mean_over_views(scores_TWC, frozen.decoded_T, frozen.tested.n_classes)


def score(frozen: Frozen, config: RunConfig) -> Scored:
    """Score every draw of every number of clips; the result's own figures are those of the last number, over its draws."""
    asked, labels_V = config.few_shot, frozen.labels_V.cpu().numpy()
    draw_rows(labels_V, max(asked.shots), 0, config.seed)  # fail on a class that is too small before any work
    found: list[dict[str, Any]] = []
    for shots in asked.shots:
        drawn = []
        for draw in range(asked.draws):
            rows = torch.from_numpy(draw_rows(labels_V, shots, draw, config.seed)).to(frozen.labels_V.device)
            head = fit(frozen.train_VD[rows], frozen.labels_V[rows], frozen.classes, asked.penalty)
            drawn.append(scores(frozen, *head, config.evaluation.average))
        found.append({"clips_per_class": shots, **_over_draws(drawn, frozen.tested.labels)})
        log.info("%d clips per class: top-1 %.4f over %d draws", shots, found[-1]["top1"], asked.draws)
    more: dict[str, Any] = {"draws": asked.draws, "few_shot": found}
    if asked.draws > 1:
        more |= {"ci95": found[-1]["ci95"], "interval": "Student's t, over draws"}
    protocol = f"{asked.shots[-1]} clips per class, {asked.draws} draws"
    return Scored(scores=np.concatenate(drawn), protocol=protocol, draws=asked.draws, more=more)


def _over_draws(drawn: list[np.ndarray], labels_T: np.ndarray) -> dict[str, Any]:
    """Return means over draws, their intervals where there are two draws or more, and the top-1 of each draw."""
    each = {f"top{k}": [top_k(scores_TC, labels_T, k).value for scores_TC in drawn] for k in (1, 5)}
    means = {name: student_interval(values) for name, values in each.items()}
    found: dict[str, Any] = {name: mean.value for name, mean in means.items()}
    if len(drawn) > 1:
        found["ci95"] = {name: [max(0.0, mean.low), min(1.0, mean.high)] for name, mean in means.items()}
    return found | {"top1_of_draws": each["top1"]}
