"""Write the result of an evaluation: `result.json`, `scores.npz` and `confusion.csv`.

scores_VC, manifest, facts of the run  ->  scores as float32, saved  ->  every figure, computed from the saved scores

So a reader of `scores.npz` computes exactly what `result.json` says.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ppma.common.files import atomic_path, write_csv, write_text
from ppma.common.statistics import calibration, class_accuracies, confusion, top_k
from ppma.config.run import RunConfig
from ppma.loaders.sources.manifest import Manifest

log = logging.getLogger(__name__)

RESULT, SCORES, CONFUSION = "result.json", "scores.npz", "confusion.csv"


def softmax_over_views(logits_VWC: Tensor, average: str) -> Tensor:
    """Return float64 probabilities of views, (V, W, C), or (V, 1, C) of the mean logits where `average` is "logits"."""
    logits_VWC = logits_VWC.double()
    return (logits_VWC.mean(dim=1, keepdim=True) if average == "logits" else logits_VWC).softmax(dim=-1)


def mean_over_views(scores_VWC: Tensor, decoded_V: Tensor, classes: int = 0) -> np.ndarray:
    """Return (V, C) scores averaged over W views; NaN for videos that could not be decoded.

    Args:
        scores_VWC: Scores of the classes that the head has.
        decoded_V: bool, False for a video that could not be decoded.
        classes: Number of classes of the videos; those behind the head's have the score -inf.
    """
    scores_VC = F.pad(scores_VWC.mean(dim=1), (0, max(0, classes - scores_VWC.shape[2])), value=-torch.inf)
    scores_VC[~decoded_V] = torch.nan
    return scores_VC.cpu().numpy()


def class_names(scores: Path) -> list[str]:
    """Return the names of the columns of a scores.npz, "" for a class without a name."""
    with np.load(scores) as found:
        return list(map(str, found["class_name"])) if "class_name" in found else [""] * found["scores"].shape[1]


def figures(scores_VC: np.ndarray, manifest: Manifest, labels_V: np.ndarray) -> dict[str, Any]:
    """Return every figure that scores and labels give, as plain JSON values."""
    accuracies = {f"top{k}": top_k(scores_VC, labels_V, k) for k in (1, 5)}
    by_class_C = class_accuracies(confusion(scores_VC, labels_V))
    error, bins = calibration(scores_VC, labels_V)
    videos_C = np.bincount(labels_V, minlength=len(by_class_C))
    return {
        "n_videos": len(labels_V),
        "n_undecodable": int(np.isnan(scores_VC[:, 0]).sum()),
        **{name: accuracy.value for name, accuracy in accuracies.items()},
        "ci95": {name: [accuracy.low, accuracy.high] for name, accuracy in accuracies.items()},
        "interval": "Wilson, over videos",
        "mean_class_top1": float(by_class_C[videos_C > 0].mean()),
        "ece": error,
        "ece_bins": [asdict(found) for found in bins],
        "per_class": [
            {"label": c, "name": manifest.class_names.get(c, ""), "videos": int(videos_C[c]), "top1": float(by_class_C[c])}
            for c in np.flatnonzero(videos_C).tolist()
        ],
    }  # fmt: skip


def write_result(
    config: RunConfig, manifest: Manifest, scores_VC: np.ndarray, *, protocol: str, weights: str, writes: bool,
    step: int | None, draws: int = 1, more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compute the figures of an evaluation and write them into the run folder.

    Args:
        config: Gives split, seed and run folder.
        manifest: The V tested videos, with the labels of the head (`ppma.loaders.sources.labels`).
        scores_VC: (draws * V, C) scores, all videos of the first draw first; NaN for undecodable videos.
        protocol: How the scores were made, in words.
        weights: Name of the checkpoint.
        writes: False on the ranks that only need the figures.
        step: Step of that checkpoint; None where there is none.
        draws: Number of times the videos were tested.
        more: Entries that are added to the figures or replace them.

    Returns:
        The content of result.json.
    """
    scores_VC = scores_VC.astype(np.float32)
    labels_V = np.tile(manifest.labels, draws)
    result: dict[str, Any] = {
        "dataset": manifest.name,
        "split": config.evaluation.split,
        "protocol": protocol,
        "checkpoint": weights,
        "step": step,
        "seed": config.seed,
        **figures(scores_VC, manifest, labels_V),
        "manifest_sha256": manifest.sha256,
        **(more or {}),
    }
    if writes:
        _write(config.run_dir, result, manifest, scores_VC, labels_V)
        low, high = result["ci95"]["top1"]
        log.info(
            "%s %s: top-1 %.4f (95 %%: %.4f to %.4f), top-5 %.4f, mean over classes %.4f, calibration error %.4f, %d videos",
            manifest.name, config.evaluation.split, result["top1"], low, high, result["top5"], result["mean_class_top1"],
            result["ece"], len(manifest),
        )  # fmt: skip
    return result


def _write(
    folder: Path, result: dict[str, Any], manifest: Manifest, scores_VC: np.ndarray, labels_V: np.ndarray
) -> None:
    """Write `result.json` last: a folder that has it has the others too."""
    videos = np.tile([manifest.clip(i).path for i in range(len(manifest))], len(labels_V) // len(manifest))
    with atomic_path(folder / SCORES) as temp_path:
        classes = [manifest.class_names.get(label, "") for label in range(scores_VC.shape[1])]
        np.savez_compressed(temp_path, video=videos, scores=scores_VC, label=labels_V, class_name=np.array(classes))
    counts_CC = confusion(scores_VC, labels_V)
    rows = [
        [label, manifest.class_names.get(label, ""), *counts.tolist()]
        for label, counts in enumerate(counts_CC)
        if counts.any()
    ]
    head = ["label", "name", *range(len(counts_CC)), "undecodable"]
    write_csv(folder / CONFUSION, [head, *rows])
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
