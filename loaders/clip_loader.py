"""The loader for any PyTorch program: batches of clips from videos, without a recipe.

    for batch in ClipLoader("videos"): ...

source (manifest, folder, list, paths, packed store, name in data.toml)  ->  Manifest  ->  sampler  ->  ClipStream  ->  ClipBatch

It is a sampler and a stream, so what they guarantee holds here: an epoch has each clip once, in an order that depends on the
seed alone; a resume continues with the next batch at any number of ranks; files that cannot be decoded are named and counted.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from ppma.config.errors import InputError, first_few, require
from ppma.config.loader import LoaderConfig
from ppma.loaders.batch import ClipBatch, LoaderCounters
from ppma.loaders.sampler import EvaluationSampler, TrainingSampler
from ppma.loaders.sources import catalog
from ppma.loaders.sources.listing import probe_rows, read_clips, rows_of
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.remote import Url, as_path
from ppma.loaders.sources.store import MANIFEST, SUFFIX, Store, read_index
from ppma.loaders.stream import ClipStream, OnBad

log = logging.getLogger(__name__)

Source: TypeAlias = str | Path | Manifest | Sequence[Path | str | tuple[Path | str, int | None]]
FOREVER = sys.maxsize
PROBE_WORKERS = 4
"""Processes that open the videos of a folder or a list."""


class ClipLoader:
    """Iterate over ClipBatches: one epoch for each `for` loop, `len` is its number of batches.

    `state_dict` and `load_state_dict` follow the protocol of torchdata's StatefulDataLoader: a loader that was given the
    state goes on with the batch after the last one that was taken. A context manager; `close` ends its processes.
    """

    def __init__(
        self,
        source: Source,
        *,
        frames: int = 16,
        size: int = 224,
        views: int = 1,
        batch_size: int = 32,
        train: bool = True,
        windows: int = 1,
        seed: int = 0,
        root: Path | str | None = None,
        split: str = "train",
        data: Path | str | None = None,
        device: torch.device | str = "cpu",
        rank: int | None = None,
        world_size: int | None = None,
        on_bad: OnBad | None = None,
        **settings: Any,
    ) -> None:
        """Read the source and lay out the epochs. Processes start with the first batch.

        Args:
            source: A manifest FILE.csv of `ppma index`, a folder <class>/<video>, a list file, videos as paths or as
                (path, label) pairs, a packed store, or a name in the data catalog. Folders, lists and videos are probed
                now; a manifest is faster. A manifest or a packed store may be a URL (docs/remote.md).
            frames: Frames per clip, evenly spaced in a window of `window_seconds`.
            size: Height and width of a view in pixels.
            views: Views of each clip, adjacent in the batch; without `train` 1 (center) or 3 (both ends and the center).
            batch_size: Clips of a step over all ranks, so that any number of ranks reads the same clips. A rank gets
                batch_size / world_size clips, views rows each.
            train: Shuffle, and take a random window and random crops; False: every clip once and in order, evenly spaced
                windows and fixed crops. The last batch may then be short, and that of a rank empty.
            windows: Windows of each clip, without `train`.
            seed: Seed of the order, the windows and the crops.
            root: Folder that the paths of a manifest or a list are relative to; None: its own.
            split: Split of a name in the data catalog.
            data: The data catalog; None: $PPMA_DATA, else ./data.toml.
            device: Where batches go; on a GPU, DALI decodes there.
            rank: Of this process; None: from torch.distributed where it is initialized, else 0.
            world_size: Number of ranks; None: likewise, else 1.
            on_bad: For a file that cannot be decoded, replace (by another clip), fail, or mark (black frames, decoded_B
                False); None: replace in training, else mark.
            settings: Other fields of LoaderConfig: window_seconds, short_side, crop, flip_probability, randaugment_ops,
                workers, implementation, ...

        Raises:
            InputError: The source cannot be read, a setting does not exist, or the numbers do not fit each other.
        """
        self._stream: ClipStream | None = None
        known = {field.name for field in fields(LoaderConfig)}
        if unknown := sorted(settings.keys() - known):
            raise InputError(f"{unknown[0]} is no setting of a loader; they are {', '.join(sorted(known))}")
        joined = dist.is_available() and dist.is_initialized()
        self.rank = (dist.get_rank() if joined else 0) if rank is None else rank
        self.world_size = (dist.get_world_size() if joined else 1) if world_size is None else world_size
        fits = batch_size >= 1 and batch_size % self.world_size == 0
        require(fits, f"batch_size {batch_size} is not divisible by {self.world_size} ranks; use a multiple of it")
        self.manifest = open_source(source, root=root, split=split, data=data)
        """The clips; `class_names` has the names of their labels."""
        self.train, self.device, self.on_bad = train, device, on_bad or ("replace" if train else "mark")
        fixed = {} if train else {"crop": "center", "short_side": size}
        self.config = LoaderConfig(frames=frames, size=size, views=views, **{**fixed, **settings})
        self._sampler: TrainingSampler | EvaluationSampler
        if train:
            require(windows == 1, f"windows is {windows}; it goes with train=False")
            self._sampler = TrainingSampler([self.manifest], self.config, seed=seed, batch_clips=batch_size)
        else:
            share = batch_size // self.world_size
            self._sampler = EvaluationSampler(
                self.manifest, self.config, batch_clips=share, windows=windows, crops=views, seed=seed
            )
        self._same = {"seed": seed, "batch_size": batch_size, "manifest": self.manifest.sha256, "train": train}
        if not train:
            self._same["world_size"] = self.world_size
        self._epoch, self._step, self._resumed = 0, 0, False

    def __len__(self) -> int:
        return -(-self._sampler.steps_per_epoch // (1 if self.train else self.world_size))

    def __iter__(self) -> Iterator[ClipBatch]:
        if self._step and not self._resumed:  # the last loop was left: the next one is another epoch
            self.close()
            self._epoch, self._step = self._epoch + 1, 0
        self._resumed = False
        while self._step < len(self):
            batch = self._open().take()
            assert batch is not None
            self._step += 1
            yield batch
            del batch  # its memory is free when the consumer has dropped it
        self._epoch, self._step = self._epoch + 1, 0
        if not self.train:
            self.close()

    def _open(self) -> ClipStream:
        if self._stream is None:
            self._stream = ClipStream(
                self._sampler, [self.manifest], self.config, device=self.device, rank=self.rank, world_size=self.world_size,
                epochs=FOREVER // self._sampler.steps_per_epoch if self.train else 1,
                start=(self._epoch if self.train else 0, self._step), on_bad=self.on_bad,
            )  # fmt: skip
        return self._stream

    @property
    def counters(self) -> LoaderCounters:
        """Totals of this rank since its processes started; `bad` has {path: reason} of files that cannot be decoded."""
        return self._stream.counters if self._stream else LoaderCounters()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was taken, as plain values."""
        return {"epoch": self._epoch, "step": self._step, **self._same}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position: the next loop begins with the batch after it. InputError for that of another loader."""
        other = [
            f"{name} {state.get(name)} -> {value}" for name, value in self._same.items() if state.get(name) != value
        ]
        require(not other, f"the state is of another loader: {first_few(other, 3)}; use the source and numbers it had")
        self.close()
        self._epoch, self._step, self._resumed = int(state["epoch"]), int(state["step"]), True

    def close(self) -> None:
        """End the processes; the next loop starts them again. Idempotent."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __del__(self) -> None:  # a loader whose name is given to another one keeps no processes
        self.close()

    def __enter__(self) -> "ClipLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(
    source: Source, *, root: Path | str | None = None, split: str = "train", data: Path | str | None = None
) -> Manifest:
    """Return the manifest of a source; the arguments are those of ClipLoader.

    Raises:
        InputError: There is no such source, or none of its clips can be read.
    """
    if isinstance(source, Manifest):
        return source
    if not isinstance(source, str | Path):
        place, rows = rows_of(source)
        clips, refused = probe_rows(rows, place, PROBE_WORKERS)
        require(bool(clips), f"none of {len(rows)} clips can be read; the first: {refused[:1]}")
        return _made(clips, refused, place, "list")
    path = as_path(source)
    if path.suffix == SUFFIX:
        if not (path / MANIFEST).exists():
            read_index(path)  # its error says how a store is made
            raise InputError(f"{path} has no {MANIFEST}: copy the store as a whole, or pack it again")
        manifest = Manifest.read(path / MANIFEST, root=root or path, name=path.stem)
        return manifest.packed_in(Store(path, manifest_sha256=manifest.sha256))
    if isinstance(path, Url):
        require(path.suffix.lower() == ".csv", f"{path}: a URL names a manifest FILE.csv or a packed store DIR{SUFFIX}")
        return Manifest.read(path, root=root)
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        return catalog.find(Path(data) if data else None).manifest(path.name, split)
    if path.is_file() and path.suffix.lower() == ".csv":
        return Manifest.read(path, root=root)
    place, clips, refused = read_clips(path, Path(root) if root else None, PROBE_WORKERS)
    return _made(clips, refused, place, path.stem)


def _made(clips: Sequence[Any], refused: Sequence[tuple[str, str]], root: Path, name: str) -> Manifest:
    if refused:
        listed = first_few([f"{path}: {reason}" for path, reason in refused], 3)
        log.warning("%d of %d clips cannot be read: %s", len(refused), len(refused) + len(clips), listed)
    return Manifest.from_clips(clips, root=root, name=name)
