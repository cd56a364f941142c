"""Features of every clip of a manifest, computed once: what probes train on and what every evaluation scores.

manifest, encoder  ->  features_VWD, W = windows x crops views of each of V clips, the mean over the tokens before `fc_norm`
"""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppma.classify import Classifier
from ppma.compute import Compute
from ppma.config import EvaluationConfig, RunConfig
from ppma.distributed import Ranks, gather_rows
from ppma.loaders.config import LoaderConfig
from ppma.loaders.manifest import Manifest
from ppma.loaders.sampler import EvaluationSampler
from ppma.loaders.stream import ClipStream
from ppma.vit import TRUNK

log = logging.getLogger(__name__)

PLAIN_VIEWS = EvaluationConfig(split="train", windows=1, crops=1)
"""The views that a probe trains on: the middle window of a clip and its centre square."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of a whole manifest, on every rank, in the manifest's order."""

    features_VWD: Tensor
    decoded_V: Tensor
    """bool; False for a clip that could not be decoded, whose features are those of black frames and mean nothing."""


def evaluation_loader(loader: LoaderConfig, views: EvaluationConfig) -> LoaderConfig:
    """The run's loader without anything random: short side equal to the view (paper: 224), fixed crops."""
    return replace(
        loader, views=views.crops, short_side=loader.size, crop="center", flip_probability=0.0, randaugment_ops=0, erase_probability=0.0
    )  # fmt: skip


def _shown(stream: ClipStream, steps: int, title: str, shows: bool) -> Iterator:
    """The stream's batches with a progress bar, or a line every ten seconds where there is no terminal."""
    if shows and sys.stderr.isatty():
        with Progress(transient=True) as progress:
            yield from progress.track(stream, total=steps, description=title)
        return
    began = said = time.monotonic()
    for number, batch in enumerate(stream, 1):
        yield batch
        if shows and time.monotonic() - said > 10:
            said = time.monotonic()
            log.info(
                "%s: batch %d of %d, left %.0f s", title, number, steps, (said - began) / number * (steps - number)
            )


@torch.inference_mode()
def compute_features(
    model: Classifier,
    manifest: Manifest,
    loader: LoaderConfig,
    views: EvaluationConfig,
    *,
    ranks: Ranks,
    compute: Compute,
) -> Features:
    """Run the encoder over every clip once. Ranks share the clips; `views.batch_clips` changes the speed and nothing else."""
    was_training = model.training
    model.eval()
    config = evaluation_loader(loader, views)
    sampler = EvaluationSampler(
        manifest, config, batch_clips=views.batch_clips, windows=views.windows, crops=views.crops
    )
    rows, ids, decoded = [], [], []
    stream = ClipStream(
        sampler,
        [manifest],
        config,
        device=ranks.device,
        rank=ranks.rank,
        world_size=ranks.world_size,
        on_bad=views.on_bad,
    )
    with stream:
        for batch in _shown(
            stream, sampler.steps_per_epoch, f"features of {manifest.name} {views.split}", ranks.is_main
        ):
            if len(batch.frames_BTHWC) == 0:
                continue
            with compute.autocast():
                pooled_BD = model.tokens(model.patches(batch.frames_BTHWC), None).mean(dim=1)
            per_clip = views.windows * views.crops
            rows.append(pooled_BD.to(compute.weights).unflatten(0, (-1, per_clip)))
            ids.append(batch.sample_id_B[::per_clip])
            decoded.append(batch.decoded_B.unflatten(0, (-1, per_clip)).all(dim=1))
    model.train(was_training)
    width = (views.windows * views.crops, model.config.width)
    empty = torch.zeros(0, *width, device=ranks.device, dtype=compute.weights)
    none = torch.zeros(0, dtype=torch.int64, device=ranks.device)
    features = gather_rows(torch.cat([empty, *rows]), ranks)
    order = gather_rows(torch.cat([none, *ids]), ranks).argsort()
    fine = gather_rows(torch.cat([none, *[d.long() for d in decoded]]), ranks)
    assert len(order) == len(manifest)
    return Features(features_VWD=features[order], decoded_V=fine[order].bool())


def _key(model: Classifier, manifest: Manifest, loader: LoaderConfig, views: EvaluationConfig, compute: Compute) -> str:
    """What the features depend on, hashed: the encoder's weights, the manifest, the views, the precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(TRUNK):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    plan = evaluation_loader(loader, views)
    facts = [asdict(plan), views.windows, views.crops, manifest.sha256, str(compute.products), views.on_bad]
    digest.update(json.dumps(facts, default=str).encode())
    return digest.hexdigest()[:16]


def cached_features(
    model: Classifier,
    manifest: Manifest,
    config: RunConfig,
    views: EvaluationConfig,
    *,
    folder: Path,
    ranks: Ranks,
    compute: Compute,
) -> Features:
    """`compute_features`, or the file in `folder` that an earlier call with the same encoder, clips and views left there."""
    key = _key(model, manifest, config.loader, views, compute)
    path = folder / f"{manifest.name}-{views.split}-{key}.safetensors"
    if path.is_file():
        log.info("features of %s %s: read from %s", manifest.name, views.split, path)
        stored = load_file(path, device=str(ranks.device))
        return Features(features_VWD=stored["features_VWD"], decoded_V=stored["decoded_V"])
    found = compute_features(model, manifest, config.loader, views, ranks=ranks, compute=compute)
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        tensors = {"features_VWD": found.features_VWD, "decoded_V": found.decoded_V}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, beside)
        beside.replace(path)
    return found
