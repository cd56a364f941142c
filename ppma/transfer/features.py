"""Features of every clip of a manifest, computed once: what probes train on and what every evaluation scores.

manifest, encoder  ->  features_VWD, W = windows x crops views of each of V clips, the mean over the tokens before `fc_norm`

A file of features is named after the hash of all that they depend on: weights and shape of the encoder, manifest, a sample of the files'
bytes, views, precision. So every protocol finds what another one left in the same folder, and of processes that want the same features one
computes them while the others wait.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppma.common.philox import Purpose, generator
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.config.run import EvaluationConfig, RunConfig
from ppma.loaders.batch import LoaderCounters
from ppma.loaders.prefetch import upload
from ppma.loaders.sampler import EvaluationSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream, choose_implementation
from ppma.models.classify import Classifier
from ppma.models.vit import TRUNK
from ppma.training import distributed
from ppma.training.compute import Compute
from ppma.training.distributed import Ranks, gather_rows
from ppma.training.watchdog import Watchdog

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


@dataclass
class Encoded:
    """Clips of one batch behind the encoder; a clip's windows x crops views are adjacent rows."""

    ids_C: Tensor
    """Rows of the manifest."""
    decoded_C: Tensor
    tokens_BND: Tensor


def encoded(
    model: Classifier,
    manifest: Manifest,
    loader: LoaderConfig,
    views: EvaluationConfig,
    *,
    ranks: Ranks,
    compute: Compute,
    hang_seconds: float = RunConfig.hang_seconds,
) -> Iterator[Encoded]:
    """This rank's clips through the encoder, each once; `views.batch_clips` changes the speed and nothing else.

    A process that gets no batch done for `hang_seconds` ends with its stacks and exit code 75, as a training run does.
    """
    config = evaluation_loader(loader, views).for_cores(ranks.cores)
    sampler = EvaluationSampler(
        manifest, config, batch_clips=views.batch_clips, windows=views.windows, crops=views.crops
    )
    stream = ClipStream(
        sampler,
        [manifest],
        config,
        device=ranks.device,
        rank=ranks.rank,
        world_size=ranks.world_size,
        on_bad=views.on_bad,
    )
    per_clip = views.windows * views.crops
    title = f"features of {manifest.name} {views.split}"
    with Watchdog(hang_seconds) as watchdog, stream:
        for batch in _shown(stream, sampler.steps_per_epoch, title, ranks.is_main):
            watchdog.beat()
            if len(batch.frames_BTHWC) == 0:
                continue
            with compute.autocast():
                tokens_BND = model.tokens(model.patches(batch.frames_BTHWC), None)
            decoded_C = batch.decoded_B.unflatten(0, (-1, per_clip)).all(dim=1)
            yield Encoded(batch.sample_id_B[::per_clip], decoded_C, tokens_BND)


@torch.inference_mode()
def compute_features(
    model: Classifier,
    manifest: Manifest,
    loader: LoaderConfig,
    views: EvaluationConfig,
    *,
    ranks: Ranks,
    compute: Compute,
    hang_seconds: float = RunConfig.hang_seconds,
) -> Features:
    """Run the encoder over every clip once. Ranks share the clips."""
    was_training = model.training
    model.eval()
    shape = (views.windows * views.crops, model.config.width)
    rows = [torch.zeros(0, *shape, device=ranks.device, dtype=compute.weights)]
    ids, decoded = (
        [torch.zeros(0, dtype=torch.int64, device=ranks.device)],
        [torch.zeros(0, device=ranks.device).long()],
    )
    for part in encoded(model, manifest, loader, views, ranks=ranks, compute=compute, hang_seconds=hang_seconds):
        with compute.autocast():
            pooled_BD = model.pool(part.tokens_BND)
        rows.append(pooled_BD.to(compute.weights).unflatten(0, (-1, shape[0])))
        ids.append(part.ids_C)
        decoded.append(part.decoded_C.long())
    model.train(was_training)
    order = gather_rows(torch.cat(ids), ranks).argsort()
    assert len(order) == len(manifest)
    return Features(
        features_VWD=gather_rows(torch.cat(rows), ranks)[order],
        decoded_V=gather_rows(torch.cat(decoded), ranks)[order].bool(),
    )


SAMPLED_FILES, SAMPLED_BYTES = 32, 65536
"""Of a manifest: enough to tell a blurred or re-encoded copy under the same names from its original, and nothing to read."""


def _bytes_of(path: Path) -> bytes:
    """Size and first bytes of a file, of the first file of a folder of frames, or of the shard that holds a packed clip."""
    file = Path(str(path).partition("#")[0]) if "#" in path.name and not path.exists() else path
    try:
        if file.is_dir():
            file = min(file.iterdir(), default=file)
        with file.open("rb") as content:
            return f"{path.name} {file.stat().st_size}".encode() + content.read(SAMPLED_BYTES)
    except OSError as error:
        return f"{path.name} {error.errno}".encode()  # a missing file is met, and told, by the loader


def address(
    model: Classifier,
    manifest: Manifest,
    loader: LoaderConfig,
    views: EvaluationConfig,
    compute: Compute,
    *,
    before: tuple[str, ...] | None = None,
) -> str:
    """What the features depend on, hashed; `before` names the parameters other than those that pooled features depend on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(before or model.before_features):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for row in np.unique(np.linspace(0, len(manifest) - 1, SAMPLED_FILES).astype(int)):
        digest.update(_bytes_of(manifest.file(int(row))))
    plan = evaluation_loader(loader, views)
    shape = asdict(replace(model.config, drop_path=0.0, recompute=False))
    pixels = {name: getattr(plan, name) for name in ("frames", "size", "short_side", "window_seconds")}
    form, _ = choose_implementation(plan, compute.device)
    precision = [str(compute.products), str(compute.weights)]
    facts = [shape, pixels, form, views.windows, views.crops, views.on_bad, manifest.sha256, precision]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:24]


def folder_of(config: RunConfig, *, learned: bool = False) -> Path:
    """Where a run keeps its features: where all runs do while the encoder stays what it was, else in the run's own folder.

    `learned` says that they depend on more than the encoder. Under --privacy strict they are of clips that this run has checked.
    """
    own = learned or config.average or config.privacy == "strict"
    if own or not config.classifier.freeze_encoder:
        return config.run_dir / "features"
    shared = config.features or os.environ.get("PPMA_FEATURES")
    return Path(shared) if shared else config.run_dir.absolute().parent / "features"


@contextlib.contextmanager
def alone(path: Path, ranks: Ranks) -> Iterator[bool]:
    """Hold a file that is to be made against other processes, which wait here; whether it is there already, agreed on by all ranks.

    The kernel gives the lock back when a process ends, however it ends.
    """
    with contextlib.ExitStack() as stack:
        if ranks.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_name(f".{path.name}.lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s is being made by another process; waiting for it", path)
                fcntl.flock(lock, fcntl.LOCK_EX)
        distributed.barrier(ranks)
        there = gather_rows(torch.tensor([int(path.is_file())], device=ranks.device), ranks)
        yield bool(there[0])
        distributed.barrier(ranks)


def cached_features(
    model: Classifier,
    manifest: Manifest,
    config: RunConfig,
    views: EvaluationConfig,
    *,
    ranks: Ranks,
    compute: Compute,
) -> Features:
    """`compute_features`, or what an earlier call, of any run, with the same encoder, clips and views left in the folder of features."""
    key = address(model, manifest, config.loader, views, compute)
    folder = folder_of(config, learned=model.before_features != TRUNK)
    path = folder / f"{manifest.name}-{views.split}-{key}.safetensors"
    with alone(path, ranks) as there:
        if there:
            log.info("features of %s %s: read from %s", manifest.name, views.split, path)
            return _read(path, ranks)
        found = compute_features(
            model, manifest, config.loader, views, ranks=ranks, compute=compute, hang_seconds=config.hang_seconds
        )
        if ranks.is_main:
            _write(path, found)
    return found


def _read(path: Path, ranks: Ranks) -> Features:
    try:
        stored = load_file(path, device=str(ranks.device))
        return Features(features_VWD=stored["features_VWD"], decoded_V=stored["decoded_V"])
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it, and it is computed again") from None


def _write(path: Path, found: Features) -> None:
    """The file appears complete or not at all."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    tensors = {"features_VWD": found.features_VWD, "decoded_V": found.decoded_V}
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, beside)
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException as error:
        Path(beside).unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # safetensors wraps the system's error
            raise OSError(f"cannot write {path}: {error}") from error
        raise


class Rows(Protocol):
    """Features or tokens of every clip: a tensor, or a file that gives tensors."""

    @property
    def device(self) -> torch.device:
        """Device of the row numbers that `__getitem__` takes."""

    def __getitem__(self, row_B: Tensor) -> Tensor:
        """Rows of a batch."""


@dataclass
class FeatureBatch:
    """Rows of cached features."""

    features_BD: Tensor
    label_B: Tensor
    epoch: int
    step: int
    counters: LoaderCounters


class FeatureStream:
    """Batches of cached features: every row once an epoch, in an order drawn from (seed, epoch). A context manager."""

    def __init__(
        self, features_VD: Rows, labels_V: Tensor, *, batch: int, epochs: int, seed: int, start: tuple[int, int]
    ) -> None:
        self.features_VD, self.labels_V = features_VD, labels_V
        self.batch, self.epochs, self.seed, self.start = batch, epochs, seed, start

    def __enter__(self) -> "FeatureStream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[FeatureBatch]:
        counters = LoaderCounters()
        for epoch in range(self.start[0], self.epochs):
            order = torch.from_numpy(
                generator(self.seed, Purpose.CLIP_ORDER, epoch=epoch).permutation(len(self.labels_V))
            )
            of_features, of_labels = (upload(order, rows.device) for rows in (self.features_VD, self.labels_V))
            first = self.start[1] if epoch == self.start[0] else 0
            for step in range(first, len(order) // self.batch):
                part = slice(step * self.batch, (step + 1) * self.batch)
                features_BD, label_B = self.features_VD[of_features[part]], self.labels_V[of_labels[part]]
                yield FeatureBatch(features_BD, label_B, epoch, step, counters)
