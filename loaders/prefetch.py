"""Hand finished batches from the thread that makes them to the step that uses them, without stopping the step.

    producer thread, side stream: host memory --async copy--> device, event  -->  queue of DEPTH  -->  consumer: its stream waits

The host waits nowhere on the consumer's side except for a batch that is not ready. `Transfer` is the CPU form, `CudaTransfer`
the GPU form of everything that depends on the device; `Prefetcher` is the thread and the queue.
"""

import contextlib
import logging
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

DEPTH = 2
"""Batches that are finished or in the making while the consumer computes."""

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Run an iterator in its own thread, up to `depth` items ahead of the consumer."""

    def __init__(self, items: Iterator[T], *, depth: int = DEPTH, prepare: Callable[[], None] = lambda: None) -> None:
        """Start the thread.

        Args:
            items: What to hand over, in order. Only the new thread advances it.
            depth: Number of items that may be ready or in the making.
            prepare: Called first in the new thread, for what belongs to a thread (device, CUDA stream).
        """
        self._items, self._depth, self._prepare = items, depth, prepare
        self._changed = threading.Condition()
        self._ready: deque[T] = deque()
        self._failure: BaseException | None = None
        self._ended = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ppma-batches", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self._end)
            self._prepare()
            while self._has_room():
                try:
                    item = next(self._items)
                except StopIteration:
                    return
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
                del item  # the queue alone holds it: its memory is free when the consumer is done

    def _has_room(self) -> bool:
        """Wait for room in the queue; False once the consumer has closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
            return not self._closed

    def _end(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Keep what ended the producer for the consumer, who raises it with the producer's traceback."""
        with self._changed:
            self._failure = failure
            self._ended = True
            self._changed.notify_all()
        return True

    def take(self, timeout: float | None = None) -> T | None:
        """Wait for the next item and return it; None after the last one.

        Raises:
            TimeoutError: Nothing was ready within `timeout` seconds.
            BaseException: Whatever ended the producer, after all items that it had finished.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._ready or self._ended, timeout):
                raise TimeoutError(f"no batch within {timeout} s")
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        if self._failure is not None:
            raise self._failure
        return None

    def close(self, unblock: Callable[[], None] = lambda: None) -> None:
        """End the thread and wait for it. Idempotent.

        Args:
            unblock: Makes the iterator fail where it waits; the failure is discarded.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        unblock()
        self._thread.join()
        self._ready.clear()


class BufferPool:
    """Host buffers that are used again as soon as no tensor refers to them.

    Fresh memory costs a page fault for every 4 kB: copying 128 rows of 16 x 224 x 224 into it takes four times the CPU time of a copy
    into memory that is kept. A batch that the consumer keeps is never overwritten; it only costs a further buffer.
    """

    def __init__(self, keep: int = DEPTH + 2) -> None:
        """`keep` is the number of free buffers that are kept."""
        self._free: deque[np.ndarray] = deque(maxlen=keep)

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Return a uint8 tensor with arbitrary content."""
        size = int(np.prod(shape))
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(size, np.uint8)
        if len(buffer) < size:
            buffer = np.empty(size, np.uint8)
        lent = buffer[:size]  # a new array object, freed with the last tensor that refers to it
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent).view(tuple(shape))


class Mark(Protocol):
    """A point in the work that was handed to the device."""

    def synchronize(self) -> None:
        """Wait until the device has passed it."""


class Transfer:
    """Move what was made in host memory to a CPU device: nothing is left to move."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers = BufferPool()

    def prepare_thread(self) -> None:
        """Set what belongs to the producer's thread."""

    def lock(self, memory: mmap.mmap) -> bool:
        """Page-lock memory that workers write to; True if `send` may read it later than it returns."""
        return False

    def unlock(self) -> None:
        """Undo `lock` after all copies. Idempotent."""

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Return host memory (uint8) to fill and `send`."""
        return self._buffers.empty(shape)

    def table(self, shape: Sequence[int]) -> Tensor:
        """Return host memory (int64) to fill and `send`."""
        return torch.empty(tuple(shape), dtype=torch.int64)

    def send(self, host: Tensor) -> Tensor:
        """Return `host` on the device; on a GPU the copy may still be under way."""
        return host

    def mark(self) -> Mark | None:
        """Return a mark behind everything sent and computed so far; None where it is all done."""
        return None

    def receive(self, tensors: Sequence[Tensor], mark: Mark | None) -> None:
        """Make tensors usable in the consumer's thread: its work waits for the mark, the host does not."""


class CudaTransfer(Transfer):
    """Move batches to a GPU on a side stream.

    Host memory comes from PyTorch's pinned allocator and device memory from its caching allocator. Both use a block again only after
    the copies and kernels that touch it, so there is no ring to get wrong.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        super().__init__(torch.device("cuda", index))
        self._stream = torch.cuda.Stream(self.device)
        self._locked = 0

    def prepare_thread(self) -> None:
        """Use the right GPU and the side stream in this thread: both are per thread."""
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(self._stream)

    def lock(self, memory: mmap.mmap) -> bool:
        """Page-lock the workers' shared memory, so that copies go straight from it; False where the system refuses."""
        array = np.frombuffer(memory, np.uint8)
        cudart = torch.cuda.cudart()
        result = cudart.cudaHostRegister(array.ctypes.data, array.nbytes, 0)
        if result == cudart.cudaError.success:
            self._locked = array.ctypes.data
            return True
        log.warning(
            "%.3g GB of shared memory cannot be page-locked (CUDA error %d); batches are first copied to pinned buffers",
            array.nbytes / 1e9, int(result),
        )  # fmt: skip
        with contextlib.suppress(RuntimeError):  # clear the error, which CUDA would report at the next launch
            torch.ones(1, device=self.device)
        return False

    def unlock(self) -> None:
        """Wait for all copies, then give the pages back."""
        if self._locked:
            self.mark().synchronize()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._locked))
            self._locked = 0

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Return pinned uint8 memory."""
        return torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=True)

    def table(self, shape: Sequence[int]) -> Tensor:
        """Return pinned int64 memory."""
        return torch.empty(tuple(shape), dtype=torch.int64, pin_memory=True)

    def send(self, host: Tensor) -> Tensor:
        """Enqueue the copy on the side stream."""
        return host.to(self.device, non_blocking=True)

    def mark(self) -> Mark:
        """Record an event on the side stream. Who waits for it sleeps instead of spinning."""
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return event

    def receive(self, tensors: Sequence[Tensor], mark: Mark | None) -> None:
        """Have the consumer's stream wait for the event, and the allocator for the consumer's stream."""
        current = torch.cuda.current_stream(self.device)
        assert isinstance(mark, torch.cuda.Event)
        current.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(current)


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Return a small tensor on the device without waiting for what the device has yet to do."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def transfer_to(device: torch.device) -> Transfer:
    """Return the Transfer of a device."""
    return CudaTransfer(device) if device.type == "cuda" else Transfer(device)
