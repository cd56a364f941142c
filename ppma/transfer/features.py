"""Features of every clip of a manifest, computed once: the training data of probes and the input of every evaluation.

manifest, encoder  ->  features_VWD, W = windows x crops views of each of V clips, tokens pooled, before the final norm
                   ->  or all tokens of plain views, averaged over cells and normalized, float16 (V, N, D) in a memory-mapped file
features, labels   ->  batches of a probe

A file of features is named after a hash of everything that they depend on: weights and shape of the encoder, manifest, a sample of the
files' bytes, views, precision. So every protocol finds what another one cached in the same folder, and of several processes that need the
same features one computes them while the others wait.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppma.common.files import atomic_path
from ppma.common.philox import Purpose, generator
from ppma.common.progress import Progress
from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig
from ppma.config.run import EvaluationConfig, RunConfig
from ppma.loaders.batch import LoaderCounters
from ppma.loaders.prefetch import upload
from ppma.loaders.sampler import EvaluationSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import is_packed
from ppma.loaders.stream import ClipStream, choose_implementation
from ppma.models.attentive import cells_of, normed_cells
from ppma.models.vit import TRUNK, Encoder
from ppma.training import checkpoint, distributed
from ppma.training.compute import Compute
from ppma.training.distributed import Ranks, gather_rows
from ppma.training.run_folder import SCORED
from ppma.training.watchdog import Watchdog

log = logging.getLogger(__name__)

PLAIN_VIEWS = EvaluationConfig(split="train", windows=1, crops=1)
"""The views that a probe trains on: the middle window of a clip and its center square."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of a whole manifest in its order, on every rank."""

    features_VWD: Tensor
    decoded_V: Tensor
    """bool; False for a clip that could not be decoded, whose features are those of black frames."""


def evaluation_loader(loader: LoaderConfig, views: EvaluationConfig) -> LoaderConfig:
    """Return a run's loader without randomness: short side equal to the view (paper: 224), fixed crops."""
    return replace(
        loader, views=views.crops, short_side=loader.size, crop="center", flip_probability=0.0, randaugment_ops=0, erase_probability=0.0
    )  # fmt: skip


@dataclass
class Encoded:
    """Tokens of the clips of one batch; the windows x crops views of a clip are adjacent rows."""

    number: int
    """Of the batch, counted over the manifest."""
    ids_C: Tensor
    """Row numbers in the manifest."""
    decoded_C: Tensor
    tokens_BND: Tensor


def encoded(
    model: Encoder, manifest: Manifest, loader: LoaderConfig, views: EvaluationConfig, *, ranks: Ranks, compute: Compute,
    hang_seconds: float = RunConfig.hang_seconds, done: Collection[int] = (),
) -> Iterator[Encoded]:  # fmt: skip
    """Run the encoder, in evaluation mode, over this rank's clips, each once.

    Args:
        model: The encoder, on the device of `ranks`.
        manifest: The clips.
        loader: The run's loader; `evaluation_loader` takes the randomness out.
        views: Windows and crops; `batch_clips` changes the speed, and results in their last bits.
        ranks: The processes that share the clips.
        compute: Precision.
        hang_seconds: A process that finishes no batch for so long writes its stacks and exits with 75.
        done: Numbers of the batches to leave out.
    """
    config = evaluation_loader(loader, views).for_cores(ranks.cores)
    sampler = EvaluationSampler(
        manifest, config, batch_clips=views.batch_clips, windows=views.windows, last_window=views.last_window, crops=views.crops,
        done=done,
    )  # fmt: skip
    steps = -(-sampler.steps_per_epoch // ranks.world_size)
    stream = ClipStream(
        sampler, [manifest], config, device=ranks.device, rank=ranks.rank, world_size=ranks.world_size, on_bad=views.on_bad
    )  # fmt: skip
    per_clip, was_training = views.windows * views.crops, model.training
    model.eval()
    log.info("encoding %s %s", manifest.name, views.split)
    shown = Progress("batches") if ranks.is_main else contextlib.nullcontext(lambda done, total: None)
    with Watchdog(hang_seconds) as watchdog, stream, shown as progress:
        for step, batch in enumerate(islice(stream, steps)):
            watchdog.beat()
            progress(step, steps)
            if len(batch.frames_BTHWC) == 0:
                continue
            with compute.autocast():
                tokens_BND = model.tokens(model.patches(batch.frames_BTHWC), None)
            decoded_C = batch.decoded_B.unflatten(0, (-1, per_clip)).all(dim=1)
            number = sampler.samples(0, step, ranks.rank, ranks.world_size)[0].clip // views.batch_clips
            yield Encoded(number, batch.sample_id_B[::per_clip], decoded_C, tokens_BND)
    model.train(was_training)


@torch.inference_mode()
def compute_features(
    model: Encoder, manifest: Manifest, loader: LoaderConfig, views: EvaluationConfig, *, ranks: Ranks, compute: Compute,
    hang_seconds: float = RunConfig.hang_seconds, kept: Path | None = None, reduce: Callable[[Tensor], Tensor] | None = None,
) -> Features:  # fmt: skip
    """Return the pooled tokens of every clip.

    Args:
        model: As for `encoded`, like all that are not named here.
        kept: Folder for finished batches, one file each. Those that a killed pass left there are not computed again.
        reduce: Maps tokens_BND to what is returned for each view; None: the pooling of the model.
    """
    done = distributed.on_main(ranks, lambda: sorted(int(path.stem) for path in kept.glob("[0-9]*"))) if kept else []
    if done:
        log.info("%s: %d batches were finished before", kept, len(done))
    device, dtype = ranks.device, compute.weight_dtype
    none = torch.empty(0, model.config.tokens, model.config.width, device=device, dtype=dtype)
    shape = (views.windows * views.crops, *((model.config.width,) if reduce is None else reduce(none).shape[1:]))
    empty = {
        "ids_C": torch.zeros(0, dtype=torch.int64, device=device),
        "features_CWD": torch.zeros(0, *shape, device=device, dtype=dtype),
        "decoded_C": torch.zeros(0, dtype=torch.int64, device=device),
    }
    parts = [empty]
    if kept:
        parts += [_read(_file_of(kept, number), ranks, *empty) for number in done[ranks.rank :: ranks.world_size]]
    for batch in encoded(
        model, manifest, loader, views, ranks=ranks, compute=compute, hang_seconds=hang_seconds, done=frozenset(done)
    ):
        with compute.autocast():
            pooled_BD = (reduce or model.pool)(batch.tokens_BND)
        features_CWD = pooled_BD.to(dtype).unflatten(0, (-1, shape[0]))
        parts.append({"ids_C": batch.ids_C, "features_CWD": features_CWD, "decoded_C": batch.decoded_C.long()})
        if kept:
            _write(_file_of(kept, batch.number), parts[-1])
    ids_V, features_VWD, decoded_V = (gather_rows(torch.cat([part[name] for part in parts]), ranks) for name in empty)
    order = ids_V.argsort()
    assert len(order) == len(manifest)
    return Features(features_VWD=features_VWD[order], decoded_V=decoded_V[order].bool())


def _file_of(kept: Path, number: int) -> Path:
    return kept / f"{number:08d}.safetensors"


SAMPLED_FILES, SAMPLED_BYTES = 32, 65536
"""Sample of a manifest's files: enough to tell a blurred or re-encoded copy from its original, and fast to read."""


def _bytes_of(path: Path) -> bytes:
    """Return size and first bytes of a file, of the first file of a folder of frames, or of the shard of a packed clip."""
    file = path.with_name(path.name.partition("#")[0]) if is_packed(path) else path
    try:
        if file.is_dir():
            file = min(file.iterdir(), default=file)
        with file.open("rb") as content:
            return f"{path.name} {file.stat().st_size}".encode() + content.read(SAMPLED_BYTES)
    except OSError as error:
        return f"{path.name} {error.errno}".encode()  # the loader reports a missing file


def address(
    model: Encoder, manifest: Manifest, loader: LoaderConfig, views: EvaluationConfig, compute: Compute, *,
    before: tuple[str, ...] | None = None,
) -> str:  # fmt: skip
    """Return a hash of everything that features depend on.

    Args:
        model: The encoder.
        manifest: The clips.
        loader: The run's loader.
        views: Windows and crops.
        compute: Precision.
        before: Prefixes of the parameters that count; None: those that pooled features depend on.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(before or model.before_features):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for row in np.unique(np.linspace(0, len(manifest) - 1, SAMPLED_FILES).astype(int)):
        digest.update(_bytes_of(manifest.file(int(row))))
    plan = evaluation_loader(loader, views)
    shape = asdict(replace(model.config, drop_path=0.0, recompute=False))
    pixels = {name: getattr(plan, name) for name in ("frames", "size", "short_side", "window_seconds", "assumed_fps")}
    backend, _ = choose_implementation(plan, compute.device)
    precision = [str(compute.autocast_dtype), str(compute.weight_dtype)]
    placed = (views.windows, views.last_window, views.crops, views.on_bad)
    facts = [shape, pixels, backend, *placed, manifest.sha256, precision]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:24]


def folder_of(config: RunConfig, *, learned: bool = False) -> Path:
    """Return the folder of a run's features: shared by all runs while the encoder is frozen, else the run's own.

    Args:
        config: The run. Under --privacy strict it has its own folder: features of clips that it has checked.
        learned: The features depend on more than the encoder.
    """
    own = learned or config.average or config.privacy == "strict"
    if own or not config.classifier.freeze_encoder:
        return config.run_dir / "features"
    shared = config.features or os.environ.get("PPMA_FEATURES")
    return Path(shared) if shared else config.run_dir.absolute().parent / "features"


@contextlib.contextmanager
def lock(path: Path, ranks: Ranks) -> Iterator[bool]:
    """Lock a file that is about to be written, while other processes wait; yield True on all ranks if it exists.

    The kernel releases the lock when a process ends, however it ends.
    """
    with contextlib.ExitStack() as stack:
        if ranks.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            file_lock = FileLock(path.with_name(f".{path.name}.lock"))
            try:
                stack.enter_context(file_lock.acquire(blocking=False))
            except Timeout:
                log.info("%s is being made by another process; waiting for it", path)
                stack.enter_context(file_lock.acquire())
        distributed.barrier(ranks)
        exists = gather_rows(torch.tensor([int(path.is_file())], device=ranks.device), ranks)
        yield bool(exists[0])
        distributed.barrier(ranks)


def cached_features(
    model: Encoder, manifest: Manifest, config: RunConfig, views: EvaluationConfig, *, ranks: Ranks, compute: Compute
) -> Features:
    """Return the features of `compute_features`, from the cache if any run has stored them.

    Finished batches are kept in the run folder meanwhile, under the hash of everything that they depend on: a start after
    a kill goes on with them, at any world size and with the same bits.

    Raises:
        InputError: The cached file is damaged, or a clip cannot be decoded and `views.on_bad` is "fail".
    """
    key = address(model, manifest, config.loader, views, compute)
    folder = folder_of(config, learned=model.before_features != TRUNK)
    path = folder / f"{manifest.name}-{views.split}-{key}.safetensors"
    kept = config.run_dir / SCORED / f"{key}-{views.batch_clips}"
    with lock(path, ranks) as exists:
        if exists:
            log.info("features of %s %s: read from %s", manifest.name, views.split, path)
            found = Features(**_read(path, ranks, "features_VWD", "decoded_V"))
        else:
            found = compute_features(
                model, manifest, config.loader, views, ranks=ranks, compute=compute, hang_seconds=config.hang_seconds, kept=kept
            )  # fmt: skip
        if ranks.is_main:
            if not exists:
                _write(path, {"features_VWD": found.features_VWD, "decoded_V": found.decoded_V})
            shutil.rmtree(kept, ignore_errors=True)
            with contextlib.suppress(OSError):  # it does not exist, or holds batches of another pass
                kept.parent.rmdir()
    return found


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic_path(path) as temp_path:
        checkpoint.save_tensors(temp_path, tensors)


def _read(path: Path, ranks: Ranks, *names: str) -> dict[str, Tensor]:
    try:
        stored = load_file(path, device=str(ranks.device))
        return {name: stored[name] for name in names}
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it, and it is computed again") from None


# ------------------------------------------------------------------------- tokens, the cache of attentive probes


class TokenRows:
    """The memory-mapped file of tokens: row numbers on the host give (B, N, D) on the device.

    A normalized token has no value above sqrt(D), so float16 holds it to 1 part in 2048.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._tokens_VND = np.load(path, mmap_mode="r")
        self._to, self._dtype = device, dtype

    def __len__(self) -> int:
        return len(self._tokens_VND)

    def __getitem__(self, row_B: Tensor) -> Tensor:
        return upload(torch.from_numpy(self._tokens_VND[row_B.numpy()]), self._to).to(self._dtype)


def _check_room(folder: Path, size: int, name: str) -> None:
    """Raise InputError where `size` bytes would fill the disk."""
    present = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(present).free
    if size > free:
        raise InputError(
            f"the tokens of {name} take {size / 1e9:.3g} GB, {folder} has {free / 1e9:.3g} GB free; average them over cells with "
            "--attentive.cells 2 2 2, or choose another disk with --features DIR"
        )


@torch.inference_mode()
def _fill(
    path: Path, shape: tuple[int, int, int], model: Encoder, manifest: Manifest, config: RunConfig, ranks: Ranks,
    compute: Compute,
) -> None:  # fmt: skip
    """Write the rows of this rank's clips. By plain writes: ranks on several nodes cannot share the pages of a mapping."""
    if ranks.is_main:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    distributed.barrier(ranks)
    start = np.load(path, mmap_mode="r").offset
    row_bytes = shape[1] * shape[2] * np.dtype(np.float16).itemsize
    parts = encoded(
        model, manifest, config.loader, PLAIN_VIEWS, ranks=ranks, compute=compute, hang_seconds=config.hang_seconds
    )
    with path.open("r+b", buffering=0) as file:
        for part in parts:
            kept_CND = normed_cells(part.tokens_BND.float(), model.config, config.attentive.cells).half().cpu().numpy()
            for row, kept_ND in zip(part.ids_C.tolist(), kept_CND):
                file.seek(start + row * row_bytes)
                file.write(kept_ND.tobytes())
    distributed.barrier(ranks)


def cached_tokens(
    model: Encoder, manifest: Manifest, config: RunConfig, *, ranks: Ranks, compute: Compute
) -> TokenRows:
    """Return the tokens of plain views of every clip, from the cache or computed now.

    Raises:
        InputError: The disk has no room for them, or the cells do not divide the encoder's grid.
    """
    cells = config.attentive.cells
    tokens = cells_of(torch.empty(1, model.config.tokens, 1, device="meta"), model.config, cells).shape[1]
    shape = (len(manifest), tokens, model.config.width)
    trunk = address(model, manifest, config.loader, PLAIN_VIEWS, compute, before=TRUNK)
    key = hashlib.sha256(f"{trunk} {cells}".encode()).hexdigest()
    path = folder_of(config) / f"{manifest.name}-train-tokens-{key[:24]}.npy"
    with lock(path, ranks) as exists:
        if exists:
            log.info("tokens of %s: read from %s", manifest.name, path)
        else:
            _check_room(path.parent, 2 * shape[0] * shape[1] * shape[2], manifest.name)
            temp_path = path.with_name(f".{path.name}.tmp")  # one name for all ranks; the lock keeps others away
            _fill(temp_path, shape, model, manifest, config, ranks, compute)
            if ranks.is_main:
                temp_path.replace(path)
    return TokenRows(path, ranks.device, compute.weight_dtype)


# -------------------------------------------------------------------------------------------- batches of the cache


@dataclass
class FeatureBatch:
    """Rows of cached features."""

    features_BD: Tensor
    label_B: Tensor
    epoch: int
    step: int
    counters: LoaderCounters


def feature_batches(
    features_VD: Tensor | TokenRows, labels_V: Tensor, *, batch: int, epochs: int, seed: int, start: tuple[int, int]
) -> Generator[FeatureBatch, None, None]:
    """Yield batches of cached rows: every row once per epoch, in an order drawn from (seed, epoch).

    Args:
        features_VD: The cache; rows of tokens, (V, N, D), work as well.
        labels_V: Labels of the rows.
        batch: Rows of a batch; an incomplete last batch is left out.
        epochs: Length of the run.
        seed: Seed of the order.
        start: (epoch, step) of the first batch.
    """
    counters = LoaderCounters()
    for epoch in range(start[0], epochs):
        order = torch.from_numpy(generator(seed, Purpose.CLIP_ORDER, epoch=epoch).permutation(len(labels_V)))
        of_features, of_labels = (upload(order, rows.device) for rows in (features_VD, labels_V))
        for step in range(start[1] if epoch == start[0] else 0, len(order) // batch):
            part = slice(step * batch, (step + 1) * batch)
            yield FeatureBatch(features_VD[of_features[part]], labels_V[of_labels[part]], epoch, step, counters)
