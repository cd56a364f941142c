"""The loader from end to end: batches of one rank, in order, from any step of any epoch.

    sampler --draws--> tasks --> worker processes --> views in shared memory ------------> ClipBatch
                                       \\--> bytes or frames --> DALI graph (device) --/
            \\--draws--> FFCV's threads over a packed store ------------------------------/

A thread makes the batches, two ahead of the consumer (`handover`); the tasks of the `prefetch_batches` after those are always out. What a
batch holds depends on the sampler alone; workers and prefetching change when it arrives. A file that cannot be decoded is named in
quarantine.csv, counted, and replaced by the sampler's next choice for that place.
"""

import atexit
import csv
import importlib.util
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import torch

from ppma.config.errors import InputError
from ppma.config.loader import LoaderConfig, Reader
from ppma.loaders.batch import ClipBatch, LoaderCounters
from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, DALI_GPU_CODECS, Codecs
from ppma.loaders.decode.pool import WorkerPool
from ppma.loaders.decode.workers import Product, Reply, Task
from ppma.loaders.prefetch import Mark, Prefetcher, transfer_to
from ppma.loaders.sampler import Batches
from ppma.loaders.samples import Sample
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.store import is_packed

log = logging.getLogger(__name__)

OnBad = Literal["replace", "fail", "mark"]
"""replace: training; fail: stop with the file's name; mark: a black clip with decoded_B False (evaluation, counted as wrong)."""
MAX_REPLACEMENTS = 64
ALIGNED_ROWS = 16
"""Columns of labels and keys begin at multiples of 128 bytes: kernels are compiled for aligned addresses."""


def choose_implementation(config: LoaderConfig, device: torch.device) -> tuple[Reader, str]:
    """Return the reader that serves a config without measuring, and the reason in words for the log."""
    if config.implementation == "plain":
        return "plain", "asked for"
    if config.implementation == "ffcv":
        if importlib.util.find_spec("ffcv") is None:
            raise InputError("loader.implementation is ffcv, which is not installed: pip install ppma[ffcv]")
        return "ffcv", "asked for"
    if config.implementation == "auto" and device.type == "cpu":
        return "plain", "on a CPU OpenCV in the workers takes less time than the DALI graph"
    from ppma.loaders.decode import dali as pipeline

    works, why = pipeline.available("gpu" if device.type == "cuda" else "cpu")
    if works:
        return "dali", "asked for" if config.implementation == "dali" else "a GPU and DALI are there"
    if config.implementation == "dali":
        raise InputError(f"loader.implementation is dali, but {why}")
    log.warning("the loader decodes on the CPU: %s", why)
    return "plain", why


DECODE_ENGINES = {
    "H100": 7, "H200": 7, "B200": 7, "A100": 5, "A30": 4, "L4": 4, "L40": 3, "L40S": 3, "A10": 2, "A40": 2, "T4": 2,
}  # fmt: skip
"""Number of NVDEC engines by product. Source: NVIDIA's data sheets of these GPUs."""
UNKNOWN_ENGINES = 2


def decode_threads(config: LoaderConfig, device: torch.device) -> int:
    """Return how many threads DALI gets: on a GPU one for each decode engine, since more decode nothing faster."""
    if device.type == "cpu":
        return config.workers
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((DECODE_ENGINES[word] for word in words if word in DECODE_ENGINES), UNKNOWN_ENGINES)


@dataclass
class _Pending:
    """A batch under way."""

    epoch: int
    step: int
    draws: list[Sample]
    replies: list[Reply | None]
    attempts: list[int] = field(default_factory=list)
    slot: int = 0
    """Where in the shared memory its views go."""
    made: torch.Tensor | None = None
    """Views (samples, V, T, size, size, 3) of FFCV; a sample that it could not decode is in the shared memory."""
    in_memory: set[int] = field(default_factory=set)
    """Samples of `made` that a worker had to decode again."""

    @property
    def complete(self) -> bool:
        return all(reply is not None for reply in self.replies)

    @property
    def decoded(self) -> list[bool]:
        """Which samples of a complete batch have frames."""
        return [reply is not None and not reply.reason for reply in self.replies]


class ClipStream:
    """Iterate over the ClipBatches of one rank, from `start` (epoch, step) until `epochs` are done. A context manager.

    The consumer may keep a batch as long as it likes: its memory is used again only when no tensor refers to it. `sources` are the
    manifests that the sampler's draws refer to. With `device` a GPU the DALI graph decodes and crops there.
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
        config = config.for_cores(len(os.sched_getaffinity(0)))
        self.batches, self.sources, self.config = batches, sources, config
        self.device = torch.device(device)
        self.rank, self.world_size, self.epochs = rank, world_size, epochs
        self.on_bad, self.quarantine = on_bad, quarantine
        self.counters = LoaderCounters()
        self.bad_files: dict[str, str] = {}
        self.implementation, self.reason = choose_implementation(config, self.device)
        log.info("%d loader workers", config.workers)
        self._next = start
        self._view_bytes = config.frames * config.size**2 * 3
        self._most_samples = max((len(batches.samples(0, 0, r, world_size)) for r in range(world_size)), default=1)
        region = self._most_samples * batches.views * self._view_bytes if self.implementation != "dali" else 0
        self._pool = WorkerPool(config, region * config.prefetch_batches)
        self._region_bytes = region
        self._pending: deque[_Pending] = deque()
        self._tickets: dict[int, tuple[_Pending, int]] = {}
        self._issued = 0
        self._fallbacks: set[str] = set()
        self._refused: set[str] = set()
        self._batch_number = 0
        self._transfer = transfer_to(self.device)
        self._locked = False
        self._copied: dict[int, Mark | None] = {}
        self._ahead: Prefetcher[tuple[ClipBatch, Mark | None]] | None = None
        self._dali = self._make_dali() if self.implementation == "dali" else None
        self._ffcv = self._make_ffcv() if self.implementation == "ffcv" else None

    def _make_dali(self):  # type: ignore[no-untyped-def]  # DALI is imported only where it is used
        from ppma.loaders.decode.dali import DaliViews

        kind: Literal["cpu", "gpu"] = "gpu" if self.device.type == "cuda" else "cpu"
        views = replace(self.config, views=self.batches.views)
        threads = decode_threads(self.config, self.device)
        return DaliViews(views, self._most_samples, device=kind, device_id=self.device.index or 0, threads=threads)

    def _make_ffcv(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Views of every step's samples, from the first step on."""
        for source in self.sources:
            if not is_packed(source.file(0)):
                raise InputError(
                    f"loader.implementation ffcv reads packed stores, and {source.name} is none: "
                    f"ppma pack {source.name} --short-side {self.config.short_side}, or take another implementation"
                )
        from ppma.loaders.decode.ffcv import FfcvViews  # late: importing ffcv takes ten seconds

        (epoch, step), batches = self._next, self.batches
        first = self.sources[0].file(0)
        views = FfcvViews(
            first.with_name(first.name.rpartition("#")[0]),
            self.config,
            batch_clips=len(batches.samples(0, 0, self.rank, self.world_size)) or 1,
            views=batches.views,
            pixels=max(int((source.widths * source.heights).max()) for source in self.sources),
        )
        places = (
            (e, s) for e in range(epoch, self.epochs) for s in range(step if e == epoch else 0, batches.steps_per_epoch)
        )
        draws = (batches.samples(e, s, self.rank, self.world_size) for e, s in places)
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
        """End the thread and the worker processes. Idempotent."""
        if self._ahead is not None:
            self._ahead.close(self._pool.close)
            atexit.unregister(self.close)
        self._ffcv = None
        self._transfer.unlock()
        self._pool.close()

    def __iter__(self) -> Iterator[ClipBatch]:
        while (batch := self.take()) is not None:
            yield batch
            del batch  # so that its memory is free when the consumer has dropped it

    def take(self, timeout: float | None = None) -> ClipBatch | None:
        """Wait for the next batch and return it, ready to use on the current CUDA stream; None after the last one.

        Raises:
            TimeoutError: No batch was ready within `timeout` seconds.
            InputError: Files cannot be decoded, as `on_bad` and `max_bad_fraction` say.
        """
        if self._ahead is None:
            self._ahead = Prefetcher(self._produce(), prepare=self._prepare_thread)
            atexit.register(self.close)  # the thread of a stream that was never closed must not outlive the interpreter
        began = time.perf_counter()
        item = self._ahead.take(timeout)
        self.counters.wait_seconds += time.perf_counter() - began
        if item is None:
            return None
        batch, mark = item
        self._transfer.receive(batch.tensors(), mark)
        batch.counters.wait_seconds = self.counters.wait_seconds
        return batch

    def _prepare_thread(self) -> None:
        self._transfer.prepare_thread()
        if self._region_bytes:
            self._locked = self._transfer.lock(self._pool.memory)

    def _produce(self) -> Iterator[tuple[ClipBatch, Mark | None]]:
        """Make batch after batch, each with the mark that the consumer's work has to wait for. Runs in the thread."""
        while True:
            self._top_up()
            if not self._pending:
                return
            batch = self._completed(self._pending[0])
            mark = self._transfer.mark()
            slot = self._pending.popleft().slot
            if self._locked:
                self._copied[slot] = mark
            self._top_up()  # before the queue is full, so that the workers have something to do meanwhile
            self.counters.worker_restarts = self._pool.restarts
            batch.counters = replace(self.counters)
            yield batch, mark
            del batch, mark

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
                self._refuse(self._path(pending.draws[place]))
                pending.replies[place] = None
                self._submit(pending, place)

    def _path(self, draw: Sample) -> str:
        return str(self.sources[draw.source].file(draw.clip))

    def _refuse(self, path: str) -> None:
        """Remember that DALI does not decode a clip: for the rest of the run it goes to the CPU at once."""
        if path not in self._refused:
            self._refused.add(path)
            log.warning("DALI cannot decode %s; PyAV does, from now on", path)

    def _take_ffcv(self, pending: _Pending, views_BVTHWC: np.ndarray, bad_B: np.ndarray) -> None:
        """Take a batch from FFCV's threads. A worker retries what they cannot decode: it delivers the clip, or the reason."""
        pending.made = self._transfer.empty(views_BVTHWC.shape)
        np.copyto(pending.made.numpy(), views_BVTHWC)  # FFCV writes over its buffer
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
            draws = self.batches.samples(epoch, step, self.rank, self.world_size)
            slot = self._batch_number % self.config.prefetch_batches
            if (copied := self._copied.pop(slot, None)) is not None:
                copied.synchronize()  # the device has read what the workers write over now
            pending = _Pending(epoch, step, draws, [None] * len(draws), [0] * len(draws), slot)
            self._batch_number += 1
            self._pending.append(pending)
            for place in range(len(draws) if self._ffcv is None else 0):
                self._submit(pending, place)
            ahead = epoch * self.batches.steps_per_epoch + step + self.config.read_ahead_batches
            self._read_ahead(*divmod(ahead, self.batches.steps_per_epoch))

    def _submit(self, pending: _Pending, place: int) -> None:
        """Submit the task of one place. DALI gets what it takes undecoded, except for clips that it has refused."""
        draw = pending.draws[place]
        codecs: Codecs = DALI_GPU_CODECS if self.device.type == "cuda" else DALI_CPU_CODECS
        if self._path(draw) in self._refused:
            codecs = {}
        product: Product = "input" if self.implementation == "dali" else "views"
        offset = pending.slot * self._region_bytes + place * self.batches.views * self._view_bytes
        task = self._task(draw, product, codecs, offset)
        self._tickets[task.ticket] = (pending, place)
        self._pool.submit(task)

    def _task(self, draw: Sample, product: Product, codecs: Codecs | None = None, offset: int = 0) -> Task:
        self._issued += 1
        return Task(
            ticket=self._issued, path=self._path(draw), draw=draw, product=product, codecs=codecs or {}, offset=offset
        )

    def _read_ahead(self, epoch: int, step: int) -> None:
        """Have the files of a later batch fetched by the kernel."""
        if not self.config.read_ahead_batches or epoch >= self.epochs:
            return
        for draw in self.batches.samples(epoch, step, self.rank, self.world_size):
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

    def _note_bad(self, draw: Sample, reason: str) -> None:
        """Name a bad file once; stop when there are too many."""
        path = self._path(draw)
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
        from ppma.loaders.decode.dali import UndecodableError

        good = [place for place, fine in enumerate(decoded) if fine]
        if not good:
            return torch.zeros(self._shape(pending), dtype=torch.uint8, device=self.device).flatten(0, 1), []
        clips = [reply.clip for reply in pending.replies if reply is not None and not reply.reason]
        try:
            made = self._dali(clips, [pending.draws[place] for place in good])
        except UndecodableError as error:
            return None, [good[i] for i in error.indices]
        if len(good) == len(decoded):
            return made, []
        frames = torch.zeros(self._shape(pending), dtype=torch.uint8, device=self.device)
        for place, views in zip(good, made.unflatten(0, (len(good), -1))):
            frames[place] = views  # a list of places as the index would be copied, and waited for
        return frames.flatten(0, 1), []

    def _shape(self, pending: _Pending) -> tuple[int, ...]:
        """(samples, V, T, size, size, 3) of a batch."""
        config = self.config
        return len(pending.draws), self.batches.views, config.frames, config.size, config.size, 3

    def _shared_views(self, pending: _Pending, decoded: list[bool]) -> torch.Tensor:
        """Send the batch from the shared memory, which later tasks overwrite, to the device."""
        shape = self._shape(pending)
        shared = np.frombuffer(
            self._pool.memory, np.uint8, count=int(np.prod(shape)), offset=pending.slot * self._region_bytes
        ).reshape(shape)
        if pending.made is not None:
            for place in pending.in_memory:
                pending.made.numpy()[place] = shared[place]
            host = pending.made
        elif self._locked:
            host = torch.from_numpy(shared)
        else:
            host = self._transfer.empty(shape)
            np.copyto(host.numpy(), shared)
        frames = self._transfer.send(host)
        for place, fine in enumerate(decoded):
            if not fine:
                frames[place].zero_()
        return frames.flatten(0, 1)

    def _with_facts(self, frames_BTHWC: torch.Tensor, pending: _Pending) -> ClipBatch:
        """Add labels, keys and boxes, which travel in one copy."""
        views, draws = self.batches.views, pending.draws
        drawn = [draw.views[view] for draw in draws for view in range(views)]
        rows = len(drawn)
        table = self._transfer.table((10, -(-rows // ALIGNED_ROWS) * ALIGNED_ROWS))
        numbers = table.numpy()
        numbers[0, :rows] = np.repeat([int(self.sources[draw.source].labels[draw.clip]) for draw in draws], views)
        numbers[1, :rows] = np.repeat([draw.source for draw in draws], views)
        numbers[2, :rows] = np.repeat([draw.clip for draw in draws], views)
        numbers[3, :rows] = np.tile(np.arange(views), len(draws))
        numbers[4, :rows] = [view.key for view in drawn]
        numbers[5, :rows] = np.repeat(pending.decoded, views)
        numbers[6:].ravel()[: 4 * rows] = np.array([view.erase for view in drawn], np.int64).ravel()
        sent = self._transfer.send(table)
        label_B, source_B, sample_id_B, view_B, key_B, decoded_B = sent[:6, :rows]
        return ClipBatch(
            frames_BTHWC=frames_BTHWC,
            label_B=label_B,
            source_B=source_B,
            sample_id_B=sample_id_B,
            view_B=view_B,
            key_B=key_B,
            erase_B4=sent[6:].flatten()[: 4 * rows].view(rows, 4),
            decoded_B=decoded_B != 0,
            sources=frozenset(draw.source for draw in draws),
            epoch=pending.epoch,
            step=pending.step,
        )
