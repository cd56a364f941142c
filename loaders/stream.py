"""The loader from end to end: batches of one rank, in order, from any step of any epoch.

    sampler --draws--> tasks --> worker processes --> views in shared memory ------------> ClipBatch
                                       \\--> bytes or frames --> DALI graph (device) --/
            \\--draws--> FFCV's threads over a packed store ------------------------------/

Tasks of the next `prefetch_batches` are always out. What a batch holds depends on the sampler alone; workers and prefetching change when
it arrives. A file that cannot be decoded is named in quarantine.csv, counted, and replaced by the sampler's next choice for that place.
"""

import csv
import importlib.util
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch

from ppma.loaders.batch import ClipBatch, LoaderCounters
from ppma.loaders.config import LoaderConfig
from ppma.loaders.draws import SampleDraw
from ppma.loaders.errors import InputError
from ppma.loaders.fetch import DALI_CPU_CODECS, DALI_GPU_CODECS
from ppma.loaders.manifest import Manifest
from ppma.loaders.pool import WorkerPool
from ppma.loaders.sampler import Batches
from ppma.loaders.store import is_packed
from ppma.loaders.worker import Product, Reply, Task

log = logging.getLogger(__name__)

OnBad = Literal["replace", "fail", "mark"]
"""replace: training; fail: stop with the file's name; mark: a black clip with decoded_B False (evaluation, counted as wrong)."""
MAX_REPLACEMENTS = 64


def choose_implementation(config: LoaderConfig, device: torch.device) -> tuple[Literal["dali", "plain", "ffcv"], str]:
    """Which form of the views runs, and why, in words for the log."""
    if config.implementation == "plain":
        return "plain", "asked for"
    if config.implementation == "ffcv":
        if importlib.util.find_spec("ffcv") is None:
            raise InputError("loader.implementation is ffcv, which is not installed: pip install ppma[ffcv]")
        return "ffcv", "asked for"
    if config.implementation == "auto" and device.type == "cpu":
        return "plain", "on a CPU OpenCV in the workers takes less time than the DALI graph"
    from ppma.loaders import pipeline

    works, why = pipeline.available("gpu" if device.type == "cuda" else "cpu")
    if works:
        return "dali", "asked for" if config.implementation == "dali" else "a GPU and DALI are there"
    if config.implementation == "dali":
        raise InputError(f"loader.implementation is dali, but {why}")
    log.warning("the loader decodes on the CPU: %s", why)
    return "plain", why


@dataclass
class _Pending:
    """A batch under way."""

    epoch: int
    step: int
    draws: list[SampleDraw]
    replies: list[Reply | None]
    attempts: list[int] = field(default_factory=list)
    first_offset: int = 0
    made: torch.Tensor | None = None
    """Views (samples, V, T, size, size, 3) of FFCV; a sample that it could not decode is in the shared memory."""
    in_memory: set[int] = field(default_factory=set)
    """Samples of `made` that a worker has produced anew."""

    @property
    def complete(self) -> bool:
        return all(reply is not None for reply in self.replies)

    @property
    def decoded(self) -> list[bool]:
        """Which samples of a complete batch have frames."""
        return [reply is not None and not reply.reason for reply in self.replies]


class ClipStream:
    """Iterate over the ClipBatches of one rank, from `start` (epoch, step) until `epochs` are done. A context manager.

    `sources` are the manifests that the sampler's draws refer to. With `device` a GPU the DALI graph decodes and crops there.
    """

    def __init__(
        self,
        batches: Batches,
        sources: Sequence[Manifest],
        config: LoaderConfig,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        epochs: int = 1,
        start: tuple[int, int] = (0, 0),
        on_bad: OnBad = "replace",
        quarantine: Path | None = None,
    ) -> None:
        self.batches, self.sources, self.config = batches, sources, config
        self.device = torch.device(device)
        self.rank, self.world_size, self.epochs = rank, world_size, epochs
        self.on_bad, self.quarantine = on_bad, quarantine
        self.counters = LoaderCounters()
        self.bad_files: dict[str, str] = {}
        self.implementation, self.reason = choose_implementation(config, self.device)
        self._next = start
        self._view_bytes = config.frames * config.size**2 * 3
        self._most_samples = max((len(batches.draws(0, 0, r, world_size)) for r in range(world_size)), default=1)
        region = self._most_samples * batches.views * self._view_bytes if self.implementation != "dali" else 0
        self._pool = WorkerPool(config, region * config.prefetch_batches)
        self._region_bytes = region
        self._pending: deque[_Pending] = deque()
        self._tickets: dict[int, tuple[_Pending, int]] = {}
        self._issued = 0
        self._fallbacks: set[str] = set()
        self._batch_number = 0
        self._dali = self._make_dali() if self.implementation == "dali" else None
        self._ffcv = self._make_ffcv() if self.implementation == "ffcv" else None

    def _make_dali(self):  # type: ignore[no-untyped-def]  # DALI is imported only where it is used
        from ppma.loaders.pipeline import DaliViews

        kind: Literal["cpu", "gpu"] = "gpu" if self.device.type == "cuda" else "cpu"
        views = replace(self.config, views=self.batches.views)
        return DaliViews(
            views, self._most_samples, device=kind, device_id=self.device.index or 0, threads=self.config.workers
        )

    def _make_ffcv(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Views of every step's samples, from the first step on."""
        for source in self.sources:
            if not is_packed(source.file(0)):
                raise InputError(
                    f"loader.implementation ffcv reads packed stores, and {source.name} is none: "
                    f"ppma pack {source.name} --short-side {self.config.short_side}, or take another implementation"
                )
        from ppma.loaders.ffcv_field import FfcvViews  # late: importing ffcv takes ten seconds

        (epoch, step), batches = self._next, self.batches
        first = self.sources[0].file(0)
        views = FfcvViews(
            first.with_name(first.name.rpartition("#")[0]),
            self.config,
            batch_clips=len(batches.draws(0, 0, self.rank, self.world_size)) or 1,
            views=batches.views,
            pixels=max(int((source.widths * source.heights).max()) for source in self.sources),
        )
        places = (
            (e, s) for e in range(epoch, self.epochs) for s in range(step if e == epoch else 0, batches.steps_per_epoch)
        )
        draws = (batches.draws(e, s, self.rank, self.world_size) for e, s in places)
        return views.follow(
            [(self.sources[draw.source].file(draw.clip), draw) for draw in made] for made in draws if made
        )

    def __enter__(self) -> "ClipStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes. Idempotent."""
        self._ffcv = None
        self._pool.close()

    def __iter__(self) -> Iterator[ClipBatch]:
        while True:
            self._top_up()
            if not self._pending:
                return
            began = time.perf_counter()
            batch = self._completed(self._pending[0])
            self._pending.popleft()
            self.counters.wait_seconds += time.perf_counter() - began
            self.counters.worker_restarts = self._pool.restarts
            self._top_up()  # before the consumer computes, so that the workers have something to do meanwhile
            batch.counters = replace(self.counters)
            yield batch

    def _completed(self, pending: _Pending) -> ClipBatch:
        """Wait for the replies of a batch and make it. Clips that DALI cannot decode come back decoded by PyAV, visibly."""
        if self._ffcv is not None and pending.draws:
            self._take_ffcv(pending, *next(self._ffcv))
        while True:
            while not pending.complete:
                for reply in self._pool.replies():
                    self._take(reply)
            frames_BTHWC, undecoded = self._frames(pending)
            if frames_BTHWC is not None:
                return self._with_facts(frames_BTHWC, pending)
            for place in undecoded:
                draw = pending.draws[place]
                log.warning("DALI cannot decode %s; PyAV does", self.sources[draw.source].file(draw.clip))
                pending.replies[place] = None
                self._submit(pending, place, codecs=())

    def _take_ffcv(self, pending: _Pending, views_BVTHWC: np.ndarray, bad_B: np.ndarray) -> None:
        """A batch from FFCV's threads. What they cannot decode a worker reads anew: it replaces it, or says what is wrong with it."""
        pending.made = torch.from_numpy(views_BVTHWC.copy())
        for place, bad in enumerate(bad_B):
            if bad:
                pending.in_memory.add(place)
                self._submit(pending, place)
            else:
                self.counters.samples += 1
                pending.replies[place] = Reply(ticket=0)

    def _top_up(self) -> None:
        """Have the tasks of `prefetch_batches` batches out."""
        while len(self._pending) < self.config.prefetch_batches:
            epoch, step = self._next
            if step >= self.batches.steps_per_epoch:
                epoch, step = epoch + 1, 0
            if epoch >= self.epochs:
                return
            self._next = (epoch, step + 1)
            draws = self.batches.draws(epoch, step, self.rank, self.world_size)
            offset = (self._batch_number % self.config.prefetch_batches) * self._region_bytes
            pending = _Pending(epoch, step, draws, [None] * len(draws), [0] * len(draws), offset)
            self._batch_number += 1
            self._pending.append(pending)
            for place in range(len(draws) if self._ffcv is None else 0):
                self._submit(pending, place)
            ahead = epoch * self.batches.steps_per_epoch + step + self.config.read_ahead_batches
            self._read_ahead(*divmod(ahead, self.batches.steps_per_epoch))

    def _submit(self, pending: _Pending, place: int, codecs: tuple[str, ...] | None = None) -> None:
        """Give out the task of one place; `codecs` are handed to DALI undecoded, by default those that it takes."""
        draw = pending.draws[place]
        if codecs is None:
            codecs = DALI_GPU_CODECS if self.device.type == "cuda" else DALI_CPU_CODECS
        product: Product = "input" if self.implementation == "dali" else "views"
        task = self._task(draw, product, codecs, pending.first_offset + place * self.batches.views * self._view_bytes)
        self._tickets[task.ticket] = (pending, place)
        self._pool.submit(task)

    def _task(self, draw: SampleDraw, product: Product, codecs: tuple[str, ...] = (), offset: int = 0) -> Task:
        self._issued += 1
        path = str(self.sources[draw.source].file(draw.clip))
        return Task(ticket=self._issued, path=path, draw=draw, product=product, codecs=codecs, offset=offset)

    def _read_ahead(self, epoch: int, step: int) -> None:
        """Have the files of a later batch fetched by the kernel."""
        if not self.config.read_ahead_batches or epoch >= self.epochs:
            return
        for draw in self.batches.draws(epoch, step, self.rank, self.world_size):
            self._pool.submit(self._task(draw, "read_ahead"))

    def _take(self, reply: Reply) -> None:
        if reply.ticket not in self._tickets:
            return  # of a read_ahead
        pending, place = self._tickets.pop(reply.ticket)
        if reply.fallback:
            self.counters.fallbacks += 1
            if reply.fallback not in self._fallbacks:
                self._fallbacks.add(reply.fallback)
                log.warning("PyAV decodes what DALI does not take: %s", reply.fallback)
        self.counters.samples += 1
        self.counters.bytes_read += reply.bytes_read
        self.counters.decode_seconds += reply.seconds
        if reply.reason:
            self._note_bad(pending.draws[place], reply.reason)
            if self.on_bad == "replace":
                self._replace(pending, place)
                return
        pending.replies[place] = reply

    def _replace(self, pending: _Pending, place: int) -> None:
        attempt = pending.attempts[place]
        other = self.batches.replacement(pending.draws[place], attempt)
        if other is None or attempt >= MAX_REPLACEMENTS:
            raise InputError(
                f"{attempt} clips in a row could not be decoded; the last: {next(reversed(self.bad_files))}"
            )
        pending.attempts[place] += 1
        pending.draws[place] = other
        self._submit(pending, place)

    def _note_bad(self, draw: SampleDraw, reason: str) -> None:
        """Name a bad file once; stop when there are too many."""
        path = str(self.sources[draw.source].file(draw.clip))
        if self.on_bad == "fail":
            raise InputError(
                f"{path}: {reason}; mend or remove it from the manifest, or have it counted as wrong (--on-bad mark)"
            )
        if path in self.bad_files:
            return
        self.bad_files[path] = reason
        self.counters.bad_files = len(self.bad_files)
        log.warning("bad file %s: %s", path, reason)
        if self.quarantine is not None:
            new = not self.quarantine.exists()
            with self.quarantine.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["path", "reason", "epoch", "index"])
                writer.writerow([path, reason, draw.epoch, draw.index])
        clips = sum(len(source) for source in self.sources)
        if self.on_bad == "replace" and len(self.bad_files) > self.config.max_bad_fraction * clips:
            listed = "; ".join(f"{p}: {r}" for p, r in list(self.bad_files.items())[:20])
            raise InputError(
                f"{len(self.bad_files)} of {clips} files cannot be decoded, more than loader.max_bad_fraction"
                f" {self.config.max_bad_fraction}: {listed}"
            )

    def _frames(self, pending: _Pending) -> tuple[torch.Tensor | None, list[int]]:
        """The rows of a complete batch, or None and the places that DALI's decoder refused."""
        decoded = pending.decoded
        if self._dali is None:
            return self._shared_views(pending, decoded), []
        from ppma.loaders.pipeline import UndecodableError

        views, config = self.batches.views, self.config
        shape = (len(decoded), views, config.frames, config.size, config.size, 3)
        frames = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        good = [place for place, fine in enumerate(decoded) if fine]
        if good:
            clips = [reply.clip for reply in pending.replies if reply is not None and not reply.reason]
            try:
                made = self._dali(clips, [pending.draws[place] for place in good])
            except UndecodableError as error:
                return None, [good[i] for i in error.indices]
            frames[good] = made.unflatten(0, (len(good), views))
        return frames.flatten(0, 1), []

    def _shared_views(self, pending: _Pending, decoded: list[bool]) -> torch.Tensor:
        """Copy the batch out of the shared memory, which the next tasks will overwrite."""
        config, views = self.config, self.batches.views
        shape = (len(pending.draws), views, config.frames, config.size, config.size, 3)
        shared = np.frombuffer(self._pool.memory, np.uint8, count=int(np.prod(shape)), offset=pending.first_offset)
        views_BVTHWC = torch.from_numpy(shared.reshape(shape))
        if pending.made is None:
            frames = views_BVTHWC.clone()
        else:
            frames = pending.made
            for place in pending.in_memory:
                frames[place] = views_BVTHWC[place]
        for place, fine in enumerate(decoded):
            if not fine:
                frames[place] = 0
        return frames.flatten(0, 1).to(self.device, non_blocking=True)

    def _with_facts(self, frames_BTHWC: torch.Tensor, pending: _Pending) -> ClipBatch:
        rows = [(draw, view) for draw in pending.draws for view in range(self.batches.views)]

        def column(values: list, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device, non_blocking=True)

        return ClipBatch(
            frames_BTHWC=frames_BTHWC,
            label_B=column([int(self.sources[draw.source].labels[draw.clip]) for draw, _ in rows]),
            source_B=column([draw.source for draw, _ in rows]),
            sample_id_B=column([draw.clip for draw, _ in rows]),
            view_B=column([view for _, view in rows]),
            key_B=column([draw.views[view].key for draw, view in rows]),
            erase_B4=column([draw.views[view].erase for draw, view in rows]).reshape(-1, 4),
            decoded_B=column([fine for fine in pending.decoded for _ in range(self.batches.views)], torch.bool),
            sources=frozenset(draw.source for draw in pending.draws),
            epoch=pending.epoch,
            step=pending.step,
        )
