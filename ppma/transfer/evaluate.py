"""`ppma evaluate`: the transfer score of a checkpoint, over exactly the listed videos.

    checkpoint, data set  ->  2 x 3 views a video, softmax averaged  ->  result.json, scores.npz, confusion.csv

Every video counts once at any world size. `scores.npz` holds one row a video, so that two runs can be compared video by video.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ppma.config.command import DONE, parse
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.config.model import ClassifierConfig, ViTConfig
from ppma.config.protocols import AttentiveConfig
from ppma.config.run import EvaluationConfig, Precision, RunConfig
from ppma.loaders.sources import catalog
from ppma.loaders.sources.manifest import Manifest
from ppma.models.attentive import AttentiveClassifier
from ppma.models.classify import Classifier, check_labels
from ppma.training import checkpoint, distributed, seal
from ppma.training.compute import Compute, choose
from ppma.training.distributed import Ranks
from ppma.transfer.adaptive import MIXING
from ppma.transfer.features import cached_features
from ppma.transfer.result import write_result


def scores(
    model: Classifier, manifest: Manifest, space: str, config: RunConfig, ranks: Ranks, compute: Compute
) -> np.ndarray:
    """(V, C) float64 class probabilities: softmax of each view's logits, averaged over the views. NaN for an undecodable video."""
    found = cached_features(model, manifest, config, config.evaluation, ranks=ranks, compute=compute)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        classes = model.label_spaces[space]
        index = 0 if hasattr(model, "head") else list(model.label_spaces).index(space)
        logits_VWC = model.logits_of_heads(model.fc_norm(found.features_VWD))[index][..., :classes]
        scores_VC = logits_VWC.double().softmax(dim=-1).mean(dim=1)
        scores_VC[~found.decoded_V] = torch.nan
    model.train(was_training)
    return scores_VC.cpu().numpy()


def evaluate(
    model: Classifier,
    manifest: Manifest,
    space: str,
    config: RunConfig,
    ranks: Ranks,
    compute: Compute,
    *,
    weights: str,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a data set and write `result.json`, `scores.npz` and `confusion.csv` into the run folder; returns the result.

    `space` is the label space of the data set, `weights` the checkpoint's name for the record, `facts` what else belongs there.
    """
    views = config.evaluation
    check_labels(manifest.labels, model.label_spaces[space], manifest.name)
    return write_result(
        config, manifest, scores(model, manifest, space, config, ranks, compute),
        protocol=f"{config.recipe}, {views.windows} windows x {views.crops} crops", weights=weights, writes=ranks.is_main,
        more=facts,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """Test the classifier of a finished run on a data set: 2 x 3 views, top-1 and top-5 with 95 % intervals.

    For example: ppma evaluate --checkpoint runs/finetune-ucf101 --dataset ucf101
    """

    checkpoint: Path
    """Run folder of a finetune, probe or align run, or one of its checkpoint folders."""
    dataset: str
    """Name in the data catalog. Its label space must be one that the run was trained on."""
    out: Path | None = None
    """Folder for result.json and scores.npz; none: evaluate-DATASET-SPLIT inside the run folder."""
    data: Path | None = None
    """The data catalog; none: $PPMA_DATA, else ./data.toml."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The views."""
    workers: int = 2
    """Loader processes of each rank."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    precision: Precision = "auto"
    """auto: bf16 products on a GPU, float32 on a CPU."""


def run_folder(path: Path) -> Path:
    """The run folder that a path to a run, a checkpoint or a weight file lies in."""
    for folder in (path, *path.absolute().parents):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(f"{path}: neither a run folder nor inside one (no config.json)")


def load_classifier(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of a run with its trained weights, and the run's config.json."""
    folder = run_folder(path)
    saved = json.loads((folder / "config.json").read_text())
    if saved["phase"] == "mae":
        raise InputError(
            f"{folder} is a stage 1 run and has no head; run `ppma train probe --init {folder}` or finetune"
        )
    weights = checkpoint.locate_model(path)
    spaces = json.loads((weights.parent / checkpoint.STATE).read_text())["label_spaces"]
    vit = ViTConfig(**{**saved["vit"], "patch": tuple(saved["vit"]["patch"])})
    head = ClassifierConfig(shared_head=saved["classifier"]["shared_head"])
    if saved["phase"] == "attentive":
        pooling = saved["attentive"] | {"cells": tuple(saved["attentive"]["cells"])}
        model: Classifier = AttentiveClassifier(vit, spaces, head, AttentiveConfig(**pooling))
    else:
        model = Classifier(vit, spaces, head)
    checkpoint.load_model(model, path, without=(MIXING,))
    return model, saved


def main(argv: list[str]) -> int:
    """The command."""
    began = time.monotonic()
    options = parse(Options, argv, prog="ppma evaluate")
    manifest = catalog.find(options.data).manifest(options.dataset, options.evaluation.split)
    model, saved = load_classifier(options.checkpoint)
    if options.dataset not in model.label_spaces:
        raise InputError(
            f"the checkpoint has no head for {options.dataset}; it has one for {', '.join(model.label_spaces)}"
        )
    out = options.out or run_folder(options.checkpoint) / f"evaluate-{options.dataset}-{options.evaluation.split}"
    loader, frozen = saved["loader"], saved["classifier"]["freeze_encoder"] and not saved.get("average")
    config = RunConfig(
        recipe=saved["recipe"],
        phase=saved["phase"],
        sources=(options.dataset,),
        run_dir=out,
        features=run_folder(options.checkpoint).absolute().parent / "features" if frozen else None,
        classifier=ClassifierConfig(freeze_encoder=frozen),
        seed=saved["seed"],
        batch=1,
        vit=model.config,
        loader=LoaderConfig(
            frames=loader["frames"], size=loader["size"], short_side=loader["size"], views=1, crop="center",
            window_seconds=loader["window_seconds"], workers=options.workers,
        ),
        evaluation=options.evaluation,
    )  # fmt: skip
    with distributed.session(options.device) as ranks:
        compute = choose(options.precision, ranks.device)
        out.mkdir(parents=True, exist_ok=True)
        model.to(ranks.device, compute.weights)
        evaluate(model, manifest, options.dataset, config, ranks, compute, weights=str(options.checkpoint))
        if ranks.is_main:
            tested = {f"{manifest.name}.{options.evaluation.split}": manifest.sha256}
            weights = seal.sha256(checkpoint.locate_model(options.checkpoint))
            seal.write(out, manifests=tested, init=weights, seconds=time.monotonic() - began)
    return DONE
