"""`ppma evaluate`: test a classifier on exactly the listed videos.

checkpoint, data set  ->  2 x 3 views a video, averaged  ->  result.json, scores.npz, confusion.csv

Each video counts once at any world size. `scores.npz` has one row a video, so that two runs can be compared video by video.
A stop or a kill loses the batches at work; the same command goes on with the rest, and its scores are the same to the bit.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppma.config.command import DONE, OutFolder, as_flags, parse
from ppma.config.errors import InputError
from ppma.config.model import ClassifierConfig
from ppma.config.recipes import published_rate, published_views
from ppma.config.run import EvaluationConfig, RunConfig
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.models.classify import Classifier
from ppma.training import distributed, seal
from ppma.training.compute import Compute, choose
from ppma.training.distributed import Ranks
from ppma.training.inputs import tested_by_name
from ppma.training.run import DataOptions, open_run, trained_steps
from ppma.transfer.features import cached_features
from ppma.transfer.result import mean_over_views, softmax_over_views, write_result


@torch.inference_mode()
def scores(
    model: Classifier, manifest: Manifest, space: str, config: RunConfig, ranks: Ranks, compute: Compute
) -> np.ndarray:
    """Return (V, C) float64 probabilities of the head's classes, averaged over the views; NaN for an undecodable video."""
    found = cached_features(model, manifest, config, config.evaluation, ranks=ranks, compute=compute)
    logits_VWC = model.logits_of_space(found.features_VWD, space)
    probabilities_VWC = softmax_over_views(logits_VWC, config.evaluation.average)
    return mean_over_views(probabilities_VWC, found.decoded_V, manifest.n_classes)


def evaluate(
    model: Classifier, manifest: Manifest, space: str, config: RunConfig, ranks: Ranks, compute: Compute, *, weights: str,
    step: int | None, facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score a data set and write result.json, scores.npz and confusion.csv into the run folder.

    Args:
        model: The classifier, on the device of `ranks`.
        manifest: The tested videos, all labeled.
        space: The label space whose classes they show, matched by name.
        config: Gives the views, the run folder and the folder of cached features.
        ranks: The processes that share the videos.
        compute: Precision.
        weights: Name of the checkpoint for the record.
        step: Its step, likewise.
        facts: More entries for result.json.

    Returns:
        The content of result.json.

    Raises:
        InputError: The head lacks a class and `on_unknown_class` is "fail", or a video cannot be decoded and `on_bad` is
            "fail".
    """
    manifest = tested_by_name(manifest, model.class_names[space], config)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    return write_result(
        config, manifest, scores(model, manifest, space, config, ranks, compute),
        protocol=f"{config.recipe}, {config.evaluation.protocol}", weights=weights, writes=ranks.is_main, step=step,
        more=facts,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataOptions):
    """Test the classifier of a finished run on a data set: 2 x 3 views, top-1 and top-5 with 95 % intervals.

    For example:
      ppma evaluate --checkpoint runs/finetune-ucf101 --dataset ucf101
    """

    checkpoint: Path
    """Run folder of any recipe that trains a classifier, or one of its checkpoint folders."""
    dataset: str
    """Name in the data catalog; the run must have been trained on the classes of this data set."""
    out: OutFolder | None = None
    """Folder for the results (default: evaluate-DATASET-SPLIT inside the run folder)."""
    published: bool = False
    """Test as the authors' code does (docs/published.md): average logits, place windows as pytorchvideo 0.1.5, and read
    the five data sets that they have as folders of frames at 25 frames/s. Overrides evaluation.average and last_window."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The views."""

    def results(self, run: Path) -> Path:
        """Return the folder for the results of a run."""
        published = "-published" if self.published else ""
        return self.out or run / f"evaluate-{self.dataset}-{self.evaluation.split}{published}"


def evaluate_run(checkpoint: Path | str, dataset: str, **flags: object) -> dict[str, Any]:
    """Test a finished run on a data set as `ppma evaluate` does, and return the content of result.json.

    Args:
        checkpoint: Run folder of any recipe that trains a classifier, or one of its checkpoint folders.
        dataset: Name in the data catalog.
        flags: Other flags of `ppma evaluate`, with _ for -: data="data.toml", evaluation={"windows": 1, "crops": 1}.

    Raises:
        InputError: There is no such run, data set or flag, or a video cannot be decoded.
        Stopped: A signal asked to stop; the same call continues.
    """
    words = as_flags({"checkpoint": checkpoint, "dataset": dataset, **flags})
    return run_options(parse(EvaluateOptions, words, prog="ppma evaluate"))


def run_options(options: EvaluateOptions) -> dict[str, Any]:
    """Test the run of the options; return the content of result.json."""
    began = time.monotonic()
    manifest = catalog.find(options.data).manifest(options.dataset, options.evaluation.split)
    run = open_run(options.checkpoint, device="cpu", precision="fp32", workers=options.workers)
    model, trained = run.classifier(), run.config
    if options.dataset not in model.label_spaces:
        raise InputError(
            f"{run.folder} has no head for {options.dataset}; it has heads for {', '.join(model.label_spaces)}"
        )
    out = options.results(run.folder)
    frozen = trained.classifier.freeze_encoder and not trained.average
    loader, views = run.loader, options.evaluation
    if options.published:
        loader, views = published_rate(loader, (options.dataset,)), published_views(views)
    config = RunConfig(
        recipe=trained.recipe, phase=trained.phase, sources=(options.dataset,), run_dir=out, seed=trained.seed, batch=1,
        features=run.folder.absolute().parent / "features" if frozen else None, vit=trained.vit, loader=loader,
        classifier=ClassifierConfig(freeze_encoder=frozen), evaluation=views,
    )  # fmt: skip
    with distributed.session(options.device) as ranks, distributed.stopped_at_once(ranks):
        compute = choose(options.precision, ranks.device)
        step = trained_steps(run.weights)
        model.to(ranks.device, compute.weight_dtype)
        result = evaluate(
            model, manifest, options.dataset, config, ranks, compute, weights=str(options.checkpoint), step=step
        )
        if ranks.is_main:
            tested = {f"{manifest.name}.{options.evaluation.split}": manifest.sha256}
            seal.write(out, manifests=tested, init=seal.sha256(run.weights), seconds=time.monotonic() - began)
    return result


def main(argv: list[str]) -> int:
    """Run `ppma evaluate`."""
    run_options(parse(EvaluateOptions, argv, prog="ppma evaluate"))
    return DONE
