"""Hand finished batches from the thread that makes them to the training step, without stopping the step.

    producer thread, side stream: host memory --async copy--> device, event  ->  queue  ->  consumer's stream waits

The consumer's host thread waits only for a batch that is not ready. `Prefetcher` is the thread; `Transfer` (CPU) and
`CudaTransfer` hold everything that depends on the device.
"""

import contextlib
import logging
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

DEPTH = 2
"""Batches that are finished or in the making while the consumer computes."""

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Advance an iterator in its own thread, up to DEPTH items ahead of the consumer."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._requests: SimpleQueue[Future[T | None] | None] = SimpleQueue()
        self._futures: deque[Future[T | None]] = deque(self._request() for _ in range(DEPTH))
        # A daemon: Python waits for the threads of an executor before a stream that was never closed can end its own.
        self._thread = threading.Thread(target=self._run, name="ppma-batches", daemon=True)
        self._thread.start()

    def _request(self) -> "Future[T | None]":
        future: Future[T | None] = Future()
        self._requests.put(future)
        return future

    def _run(self) -> None:
        """Make an item for each request, until `close`; after an error the iterator has no more items."""
        while (future := self._requests.get()) is not None and future.set_running_or_notify_cancel():
            try:
                future.set_result(next(self._items, None))
            except BaseException as error:  # noqa: BLE001 - raised again by `take`
                future.set_exception(error)
            del future  # the queue alone holds the item: its memory is free when the consumer is done

    def take(self, timeout: float | None = None) -> T | None:
        """Wait for the next item and return it; None after the last one.

        Raises:
            TimeoutError: Nothing was ready within `timeout` seconds.
            BaseException: What ended the producer, after all items that it had finished, at every call.
        """
        if not wait([self._futures[0]], timeout).done:
            raise TimeoutError(f"no batch within {timeout} s")
        item = self._futures[0].result()
        self._futures.popleft()
        self._futures.append(self._request())
        return item

    def close(self, unblock: Callable[[], None] = lambda: None) -> None:
        """End the thread and wait for it. Idempotent.

        Args:
            unblock: Makes the iterator fail where it waits; that failure is discarded.
        """
        for future in self._futures:
            future.cancel()
        self._requests.put(None)
        unblock()
        self._thread.join()
        self._futures.clear()


class BufferPool:
    """Host buffers that are reused as soon as no tensor refers to them.

    Fresh memory costs a page fault for every 4 kB: copying 128 rows of 16 x 224 x 224 into it takes four times the CPU
    time of a copy into a reused buffer. A batch that the consumer keeps is never overwritten; it costs one more buffer.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=DEPTH + 2)

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


class Transfer:
    """Give batches host memory and bring them to a CPU device: there is nothing to copy."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers = BufferPool()

    def prepare_thread(self) -> None:
        """Set up the producer's thread for the device."""

    def pin(self, memory: mmap.mmap) -> bool:
        """Page-lock memory that workers write to; return True if `send` may still read it after it returns."""
        return False

    def unpin(self) -> None:
        """Undo `pin` after all copies. Idempotent."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return host memory to fill and `send`."""
        return self._buffers.empty(shape) if dtype == torch.uint8 else torch.empty(tuple(shape), dtype=dtype)

    def send(self, host: Tensor) -> Tensor:
        """Return `host` on the device; on a GPU the copy may still be running."""
        return host

    def record_event(self) -> torch.cuda.Event | None:
        """Return an event after everything sent and computed so far; None if that is done."""
        return None

    def receive(self, tensors: Sequence[Tensor], event: torch.cuda.Event | None) -> None:
        """Make the consumer's device work wait for the event before it uses the tensors; the host does not wait."""


class CudaTransfer(Transfer):
    """Copy batches to a GPU on a side stream.

    Host memory comes from PyTorch's pinned allocator and device memory from its caching allocator. Both reuse a block
    only after the copies and kernels that touch it.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        super().__init__(torch.device("cuda", index))
        self._stream = torch.cuda.Stream(self.device)
        self._pinned = 0

    def prepare_thread(self) -> None:
        """Select the GPU and the side stream in the calling thread; PyTorch keeps both per thread."""
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(self._stream)

    def pin(self, memory: mmap.mmap) -> bool:
        """Page-lock the workers' shared memory, so that copies read it directly; False if the system refuses."""
        array = np.frombuffer(memory, np.uint8)
        cudart = torch.cuda.cudart()
        result = cudart.cudaHostRegister(array.ctypes.data, array.nbytes, 0)
        if result == cudart.cudaError.success:
            self._pinned = array.ctypes.data
            return True
        message = "%.3g GB of shared memory cannot be page-locked (CUDA error %d); batches go through pinned buffers"
        log.warning(message, array.nbytes / 1e9, int(result))
        with contextlib.suppress(RuntimeError):  # clear the error, which CUDA would report at the next launch
            torch.ones(1, device=self.device)
        return False

    def unpin(self) -> None:
        """Wait for all copies, then unlock the pages."""
        if self._pinned:
            self.record_event().synchronize()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._pinned))
            self._pinned = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return pinned memory."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def send(self, host: Tensor) -> Tensor:
        """Enqueue the copy on the side stream."""
        return host.to(self.device, non_blocking=True)

    def record_event(self) -> torch.cuda.Event:
        """Record an event on the side stream; waiting for it sleeps instead of spinning."""
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return event

    def receive(self, tensors: Sequence[Tensor], event: torch.cuda.Event | None) -> None:
        """Make the consumer's stream wait for the event, and the allocator for the consumer's stream."""
        current = torch.cuda.current_stream(self.device)
        assert event is not None, "CudaTransfer records one for each batch"
        current.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(current)


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Return a small tensor on the device without waiting for the device's earlier work."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def transfer_to(device: torch.device) -> Transfer:
    """Return the Transfer for a device."""
    return CudaTransfer(device) if device.type == "cuda" else Transfer(device)
