"""The loader from end to end: the batches of one rank, in order, from any step of any epoch.

    sampler --Samples--> tasks --> worker processes --> views in shared memory ------------> ClipBatch
                                        \\--> bytes or frames --> DALI graph (device) --/
            \\--Samples--> FFCV's threads over a packed store -----------------------------/

A thread makes the batches, two ahead of the consumer (`prefetch`), and keeps the tasks of the next `prefetch_batches`
with the workers. What a batch holds depends on the sampler alone; workers and prefetching change when it arrives. A
file that cannot be decoded is named in quarantine.csv, counted, and replaced by the sampler's next choice.
"""

import atexit
import contextlib
import importlib.util
import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ppma.common.files import PatientFile, csv_text
from ppma.config.errors import InputError, require
from ppma.config.loader import LoaderConfig, Reader
from ppma.loaders.batch import ClipBatch, LoaderCounters
from ppma.loaders.decode.dali_input import DALI_CPU_CODECS, DALI_GPU_CODECS, Codecs
from ppma.loaders.decode.workers import Product, Reply, Task, WorkerPool
from ppma.loaders.prefetch import Prefetcher, transfer_to
from ppma.loaders.sampler import Batches
from ppma.loaders.samples import Sample
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.sources.remote import Url
from ppma.loaders.sources.store import is_packed, is_packed_as_jpeg

log = logging.getLogger(__name__)

OnBad = Literal["replace", "fail", "mark"]
"""replace: training; fail: stop with the file's name; mark: a black clip with decoded_B False, counted as wrong."""
MAX_REPLACEMENTS = 64
SHOWN_FILES = 20
"""Bad files that the message of too many names."""
READ_AHEAD = 2
"""Batches of a packed store that are read ahead by default: at 2 ms an operation that keeps 0.83 of the local rate."""
ALIGNED_ROWS = 16
"""Columns of labels and keys begin at multiples of 128 bytes: kernels are compiled for aligned addresses."""


def choose_implementation(config: LoaderConfig, device: torch.device) -> tuple[Reader, str]:
    """Return the reader that serves a config, without measuring, and the reason for the log.

    Raises:
        InputError: The config asks for a reader that is not installed.
    """
    if config.implementation == "plain":
        return "plain", "requested"
    if config.implementation == "ffcv":
        if importlib.util.find_spec("ffcv") is None:
            raise InputError(
                "loader.implementation is ffcv, which is not installed: pip install ffcv==1.0.2 'setuptools<82'"
            )
        return "ffcv", "requested"
    if config.implementation == "auto" and device.type == "cpu":
        return "plain", "on a CPU OpenCV in the workers takes less time than the DALI graph"
    from ppma.loaders.decode import dali

    works, why = dali.available("gpu" if device.type == "cuda" else "cpu")
    if works:
        return "dali", "requested" if config.implementation == "dali" else "a GPU and DALI are available"
    if config.implementation == "dali":
        raise InputError(f"loader.implementation is dali, but {why}")
    log.warning("the loader decodes on the CPU: %s", why)
    return "plain", why


def check_bad_fraction(bad: Mapping[str, str], clips: int, most: float) -> None:
    """Raise InputError, naming them, if more of the clips are bad than a share `most` of all.

    Args:
        bad: {path: reason} of one rank, which stops at once, or of all ranks.
        clips: Number of clips of all sources.
        most: `loader.max_bad_fraction`.
    """
    if len(bad) > most * clips:
        listed = "; ".join(f"{path}: {reason}" for path, reason in itertools.islice(bad.items(), SHOWN_FILES))
        limit = f"more than loader.max_bad_fraction {most}"
        raise InputError(f"{len(bad)} of {clips} files cannot be decoded, {limit}: {listed}")


@dataclass
class _Pending:
    """A batch whose samples are still being decoded."""

    epoch: int
    step: int
    samples: list[Sample]
    slot: int
    """Region of the shared memory in which its views go."""
    replies: list[Reply | None] = field(init=False)
    attempts: list[int] = field(init=False)
    """Replacements tried for each sample."""
    made: torch.Tensor | None = None
    """Views (samples, V, T, size, size, 3) from FFCV."""
    retried: set[int] = field(default_factory=set)
    """Samples of `made` that FFCV could not decode: a worker did, into the shared memory."""

    def __post_init__(self) -> None:
        self.replies, self.attempts = [None] * len(self.samples), [0] * len(self.samples)

    @property
    def complete(self) -> bool:
        return None not in self.replies

    @property
    def decoded(self) -> list[bool]:
        """True for each sample of a complete batch that has frames."""
        return [reply is not None and not reply.reason for reply in self.replies]


class ClipStream:
    """Iterate over the ClipBatches of one rank. A context manager.

    The consumer may keep a batch as long as it likes: memory is reused only when no tensor refers to it.
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
        """Choose the reader and start the workers.

        Args:
            batches: The sampler.
            sources: Manifests that its samples refer to.
            config: Views, reader, workers and prefetching.
            device: Where batches go; on a GPU, DALI decodes and crops there.
            rank: Of this process.
            world_size: Number of ranks.
            epochs: Epoch to stop before.
            start: (epoch, step) of the first batch.
            on_bad: What to do with a file that cannot be decoded.
            quarantine: CSV file that names bad files.

        Raises:
            InputError: The config asks for a reader that cannot serve it.
        """
        for source in sources:
            by_url = isinstance(source.root, Url) and source.store is None
            frames = by_url and bool({"jpeg", "png"} & source.counts("codec").keys())
            require(not frames, f"{source.root} has folders of frames, which no URL lists; pack them: `ppma pack`")
        config = config.for_cores(len(os.sched_getaffinity(0)))
        self.batches, self.sources, self.config = batches, sources, config
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size
        self.on_bad = on_bad
        self._quarantine = PatientFile(quarantine) if quarantine is not None else None
        self.counters = LoaderCounters()
        self.bad_files = self.counters.bad
        self.implementation, self.reason = choose_implementation(config, self.device)
        # 1. shared memory: a region for each batch of tasks
        steps = batches.steps_per_epoch
        self._position, self._end = start[0] * steps + start[1], epochs * steps
        self._view_bytes = config.frames * config.size**2 * 3
        self._most_samples = len(batches.samples(0, 0, rank, world_size))  # no later batch has more
        in_memory = self.implementation != "dali"
        self._region_bytes = self._most_samples * batches.views * self._view_bytes if in_memory else 0
        # 2. batches and tasks under way
        self._pending: deque[_Pending] = deque()
        self._ahead: dict[int, list[Sample]] = {}
        of_packed = READ_AHEAD if any(source.store for source in sources) else 0
        self._ahead_batches = of_packed if config.read_ahead_batches is None else config.read_ahead_batches
        if self.implementation == "ffcv":
            self._ahead_batches = 0  # its threads read, and no reply of a worker would be taken
        self._tickets: dict[int, tuple[_Pending, int]] = {}
        self._issued = 0
        self._fallbacks: set[str] = set()
        self._refused: set[Path] = set()
        # 3. the way to the device
        self._transfer = transfer_to(self.device)
        self._pinned = False
        self._copied: dict[int, torch.cuda.Event | None] = {}
        self._prefetcher: Prefetcher[tuple[ClipBatch, torch.cuda.Event | None]] | None = None
        self._dali = self._make_dali() if self.implementation == "dali" else None
        self._ffcv = self._make_ffcv() if self.implementation == "ffcv" else None
        # 4. the workers, last, so that an error above leaves none behind
        self._pool = WorkerPool(config, self._region_bytes * config.prefetch_batches)

    def _make_dali(self):  # type: ignore[no-untyped-def]  # DALI is imported only where it is used
        from ppma.loaders.decode.dali import DaliViews, decode_threads

        views = replace(self.config, views=self.batches.views)
        kind: Literal["cpu", "gpu"] = "gpu" if self.device.type == "cuda" else "cpu"
        threads = decode_threads(self.config, self.device)
        return DaliViews(views, self._most_samples, device=kind, device_id=self.device.index or 0, threads=threads)

    def _make_ffcv(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Return an iterator over (views, which are bad) of every step, from the first one on."""
        for source in self.sources:
            if isinstance(source.file(0), Url):
                raise InputError(
                    f"loader.implementation ffcv maps local files, and {source.file(0)} is a URL: copy the store, or take "
                    "implementation plain"
                )
            if not is_packed_as_jpeg(source.file(0)):
                raise InputError(
                    f"loader.implementation ffcv reads packed stores of JPEG, and {source.name} is not one: "
                    f"ppma pack {source.name} --short-side {self.config.short_side}, or take another implementation"
                )
        from ppma.loaders.decode.ffcv import FfcvViews  # late: importing ffcv takes ten seconds

        batches, place = self.batches, (self.rank, self.world_size)
        first = self.sources[0].file(0)
        views = FfcvViews(
            first.with_name(first.name.rpartition("#")[0]),
            self.config,
            batch_clips=self._most_samples or 1,
            views=batches.views,
            pixels=max(int((source.widths * source.heights).max()) for source in self.sources),
        )
        positions = range(self._position, self._end)
        by_step = (batches.samples(*divmod(at, batches.steps_per_epoch), *place) for at in positions)
        addressed = ([(self._path(sample), sample) for sample in samples] for samples in by_step if samples)
        return views.follow(addressed)

    def __enter__(self) -> "ClipStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and the worker processes. Idempotent."""
        if self._prefetcher is not None:
            self._prefetcher.close(self._pool.close)
            atexit.unregister(self.close)
        self._ffcv = None
        self._transfer.unpin()
        self._pool.close()
        if self._quarantine is not None:
            with contextlib.suppress(OSError):  # the log has named every file
                self._quarantine.close()

    def __iter__(self) -> Iterator[ClipBatch]:
        while (batch := self.take()) is not None:
            yield batch
            del batch  # its memory is free when the consumer has dropped it

    def take(self, timeout: float | None = None) -> ClipBatch | None:
        """Wait for the next batch and return it, ready to use on the current CUDA stream; None after the last one.

        Raises:
            TimeoutError: No batch was ready within `timeout` seconds.
            InputError: More files cannot be decoded than `on_bad` and `max_bad_fraction` allow.
        """
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._produce())
            atexit.register(self.close)  # a stream that was never closed
        began = time.perf_counter()
        item = self._prefetcher.take(timeout)
        self.counters.wait_seconds += time.perf_counter() - began
        if item is None:
            return None
        batch, event = item
        self._transfer.receive(batch.tensors(), event)
        batch.counters.wait_seconds = self.counters.wait_seconds
        return batch

    # ------------------------------------------------------------------------------------------ the producer's thread

    def _produce(self) -> Iterator[tuple[ClipBatch, torch.cuda.Event | None]]:
        """Yield every batch with the event that the consumer's work has to wait for."""
        self._transfer.prepare_thread()
        if self._region_bytes:
            self._pinned = self._transfer.pin(self._pool.memory)
        while True:
            self._top_up()
            if not self._pending:
                return
            batch = self._finish(self._pending[0])
            event = self._transfer.record_event()
            slot = self._pending.popleft().slot
            if self._pinned:
                self._copied[slot] = event
            self._top_up()  # before the queue is full, so that the workers continue meanwhile
            self.counters.worker_restarts = self._pool.restarts
            batch.counters = replace(self.counters)
            yield batch, event
            del batch, event

    def _top_up(self) -> None:
        """Submit tasks until those of `prefetch_batches` batches are under way."""
        while len(self._pending) < self.config.prefetch_batches and self._position < self._end:
            slot = self._position % self.config.prefetch_batches
            if (copied := self._copied.pop(slot, None)) is not None:
                copied.synchronize()  # the device has read what the workers overwrite now
            epoch, step = divmod(self._position, self.batches.steps_per_epoch)
            samples = self._ahead.pop(self._position, None)
            if samples is None:
                samples = self.batches.samples(epoch, step, self.rank, self.world_size)
            pending = _Pending(epoch, step, samples, slot)
            self._pending.append(pending)
            if self._ffcv is None:
                for place in range(len(pending.samples)):
                    self._submit(pending, place)
            self._read_ahead(self._position + self._ahead_batches)
            self._position += 1

    def _finish(self, pending: _Pending) -> ClipBatch:
        """Wait for the replies of a batch and assemble it. PyAV decodes the clips that DALI cannot."""
        if self._ffcv is not None and pending.samples:
            self._take_ffcv(pending, *next(self._ffcv))
        while True:
            while not pending.complete:
                for reply in self._pool.replies():
                    self._take(reply)
            frames_BTHWC, undecoded = self._frames(pending)
            if frames_BTHWC is not None:
                return self._assemble(frames_BTHWC, pending)
            for place in undecoded:
                path = self._path(pending.samples[place])
                if path not in self._refused:
                    self._refused.add(path)  # for the rest of the run it goes to the CPU at once
                    log.warning("DALI cannot decode %s; PyAV does, from now on", path)
                pending.replies[place] = None
                self._submit(pending, place)

    # ------------------------------------------------------------------------------------------------ tasks and replies

    def _path(self, sample: Sample) -> Path:
        return self.sources[sample.source].file(sample.clip)

    def _submit(self, pending: _Pending, place: int) -> None:
        """Submit the task of one sample. DALI gets it undecoded, unless it has refused the clip before."""
        sample = pending.samples[place]
        codecs: Codecs = DALI_GPU_CODECS if self.device.type == "cuda" else DALI_CPU_CODECS
        if self._refused and self._path(sample) in self._refused:
            codecs = {}
        product: Product = "input" if self.implementation == "dali" else "views"
        offset = pending.slot * self._region_bytes + place * self.batches.views * self._view_bytes
        self._tickets[self._submit_task(sample, product, codecs, offset)] = (pending, place)

    def _submit_task(self, sample: Sample, product: Product, codecs: Codecs, offset: int) -> int:
        self._issued += 1
        path = self._path(sample)
        self._pool.submit(
            Task(ticket=self._issued, path=path, sample=sample, product=product, codecs=codecs, offset=offset)
        )
        return self._issued

    def _read_ahead(self, position: int) -> None:
        """Have the kernel fetch the files of the step at `position`, counted from the start of the run."""
        if self._ahead_batches and position < self._end:
            at = divmod(position, self.batches.steps_per_epoch)
            self._ahead[position] = self.batches.samples(*at, self.rank, self.world_size)
            for sample in self._ahead[position]:
                if self.config.read_ahead_batches is not None or is_packed(
                    self.sources[sample.source].file(sample.clip)
                ):
                    self._submit_task(sample, "read_ahead", {}, 0)

    def _take(self, reply: Reply) -> None:
        """Store a worker's reply; count and replace a bad file."""
        if reply.ticket not in self._tickets:
            return  # of a read_ahead
        pending, place = self._tickets.pop(reply.ticket)
        if reply.failure is not None:
            raise reply.failure
        if reply.fallback:
            self.counters.fallbacks += 1
            if reply.fallback not in self._fallbacks:
                self._fallbacks.add(reply.fallback)
                log.warning("PyAV decodes what DALI does not take: %s", reply.fallback)
        self.counters.samples += 1
        self.counters.bytes_read += reply.bytes_read
        self.counters.decode_seconds += reply.seconds
        if reply.reason:
            self._note_bad(pending.samples[place], reply.reason)
            if self.on_bad == "replace":
                self._replace(pending, place)
                return
        pending.replies[place] = reply

    def _replace(self, pending: _Pending, place: int) -> None:
        attempt = pending.attempts[place]
        other = self.batches.replacement(pending.samples[place], attempt)
        if other is None or attempt >= MAX_REPLACEMENTS:
            last = next(reversed(self.bad_files))
            raise InputError(f"{attempt} clips in a row could not be decoded; the last: {last}")
        pending.attempts[place] += 1
        pending.samples[place] = other
        self._submit(pending, place)

    def _note_bad(self, sample: Sample, reason: str) -> None:
        """Name a bad file once; stop when there are too many."""
        path = str(self._path(sample))
        if self.on_bad == "fail":
            remedy = "repair or remove it from the manifest, or count it as wrong (--on-bad mark)"
            raise InputError(f"{path}: {reason}; {remedy}")
        if path in self.bad_files:
            return
        self.bad_files[path] = reason
        self.counters.bad_files = len(self.bad_files)
        log.warning("bad file %s: %s", path, reason)
        if self._quarantine is not None:
            new = len(self.bad_files) == 1 and not self._quarantine.path.exists()
            head = [["path", "reason", "epoch", "index"]] if new else []
            lines = csv_text([*head, [path, reason, sample.epoch, sample.index]])
            self._quarantine.write(lines.encode(errors="backslashreplace"))
        clips = sum(len(source) for source in self.sources)
        if self.on_bad == "replace":
            check_bad_fraction(self.bad_files, clips, self.config.max_bad_fraction)

    # ----------------------------------------------------------------------------------------------------------- frames

    def _shape(self, pending: _Pending) -> tuple[int, ...]:
        """Return (samples, V, T, size, size, 3) of a batch."""
        config = self.config
        return len(pending.samples), self.batches.views, config.frames, config.size, config.size, 3

    def _frames(self, pending: _Pending) -> tuple[torch.Tensor | None, list[int]]:
        """Return the rows of a complete batch; or None and the places that DALI's decoder refused."""
        if self._dali is None:
            return self._shared_views(pending), []
        from ppma.loaders.decode.dali import UndecodableError

        good = [place for place, fine in enumerate(pending.decoded) if fine]
        if not good:
            return torch.zeros(self._shape(pending), dtype=torch.uint8, device=self.device).flatten(0, 1), []
        clips = [reply.clip for reply in pending.replies if reply is not None and not reply.reason]
        try:
            made = self._dali(clips, [pending.samples[place] for place in good])
        except UndecodableError as error:
            return None, [good[i] for i in error.indices]
        if len(good) == len(pending.samples):
            return made, []
        frames = torch.zeros(self._shape(pending), dtype=torch.uint8, device=self.device)
        for place, views in zip(good, made.unflatten(0, (len(good), -1))):
            frames[place] = views  # indexing by a list of places would be copied to the device, and waited for
        return frames.flatten(0, 1), []

    def _take_ffcv(self, pending: _Pending, views_BVTHWC: np.ndarray, bad_B: np.ndarray) -> None:
        """Take a batch from FFCV's threads; a worker retries what they cannot decode."""
        pending.made = self._transfer.empty(views_BVTHWC.shape)
        np.copyto(pending.made.numpy(), views_BVTHWC)  # FFCV overwrites its buffer
        for place, bad in enumerate(bad_B):
            if bad:
                pending.retried.add(place)
                self._submit(pending, place)
            else:
                self.counters.samples += 1
                pending.replies[place] = Reply(ticket=0)

    def _shared_views(self, pending: _Pending) -> torch.Tensor:
        """Send the views of FFCV, or of the shared memory that later tasks overwrite, to the device."""
        shape, offset = self._shape(pending), pending.slot * self._region_bytes
        shared = np.frombuffer(self._pool.memory, np.uint8, count=int(np.prod(shape)), offset=offset).reshape(shape)
        if pending.made is not None:
            for place in pending.retried:
                pending.made.numpy()[place] = shared[place]
            host = pending.made
        elif self._pinned:
            host = torch.from_numpy(shared)
        else:
            host = self._transfer.empty(shape)
            np.copyto(host.numpy(), shared)
        frames = self._transfer.send(host)
        for place, fine in enumerate(pending.decoded):
            if not fine:
                frames[place].zero_()
        return frames.flatten(0, 1)

    def _assemble(self, frames_BTHWC: torch.Tensor, pending: _Pending) -> ClipBatch:
        """Add labels, keys and boxes, which are copied to the device together."""
        n_views, samples = self.batches.views, pending.samples
        views = [sample.views[view] for sample in samples for view in range(n_views)]
        rows = len(views)
        host = self._transfer.empty((10, -(-rows // ALIGNED_ROWS) * ALIGNED_ROWS), torch.int64)
        table = host.numpy()
        labels = [int(self.sources[sample.source].labels[sample.clip]) for sample in samples]
        table[0, :rows] = np.repeat(labels, n_views)
        table[1, :rows] = np.repeat([sample.source for sample in samples], n_views)
        table[2, :rows] = np.repeat([sample.clip for sample in samples], n_views)
        table[3, :rows] = np.tile(np.arange(n_views), len(samples))
        table[4, :rows] = [view.key for view in views]
        table[5, :rows] = np.repeat(pending.decoded, n_views)
        table[6:].ravel()[: 4 * rows] = np.array([view.erase for view in views], np.int64).ravel()
        sent = self._transfer.send(host)
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
            sources=frozenset(sample.source for sample in samples),
            epoch=pending.epoch,
            step=pending.step,
        )
