"""Batches reach the step: the thread ends when it must, memory is never overwritten too early, no step waits."""

import itertools
import mmap
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from waiting import wait_until

from ppma.config.errors import InputError
from ppma.loaders import prefetch, stream
from ppma.loaders.decode import dali
from ppma.loaders.prefetch import DEPTH, BufferPool, CudaTransfer, Prefetcher, Transfer
from ppma.loaders.sampler import EvaluationSampler, TrainingSampler
from ppma.loaders.sources.manifest import Manifest
from ppma.loaders.stream import ClipStream
from tests.loaders.test_stream import CONFIG, collect, row, same


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, write_clip):
    """Eight clips of different colors."""
    root = tmp_path_factory.mktemp("prefetch")
    for number in range(8):
        write_clip(root / f"{number}.mp4", frames=24, color=(30 * number, 128, 128))
    return Manifest.from_clips([row(f"{n}.mp4", n % 3) for n in range(8)], root=root, name="made")


@pytest.fixture(scope="module")
def expected(manifest):
    """The batches of six epochs."""
    return collect(manifest, epochs=6)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ppma-batches")]


def make_stream(manifest, *, config=CONFIG, epochs=4, **more):
    sampler = TrainingSampler([manifest], config, seed=5, batch_clips=4)
    return ClipStream(sampler, [manifest], config, epochs=epochs, **more)


# ------------------------------------------------------------------------------------------------------ the thread


def wait_until_full(clip_stream):
    """Wait until DEPTH batches of 4 clips follow the one that was taken."""
    wait_until(lambda: clip_stream.counters.samples >= 4 * (1 + DEPTH))


def test_items_come_in_order_and_at_most_depth_ahead():
    made = []
    prefetcher = Prefetcher(number for number in range(9) if not made.append(number))
    for expected in range(9):
        wait_until(lambda seen=expected: len(made) == min(seen + DEPTH, 9))
        assert prefetcher.take() == expected
    assert prefetcher.take() is None and prefetcher.take() is None
    prefetcher.close()


def test_a_failure_arrives_after_the_finished_items_with_its_traceback():
    def failing():
        yield 1
        raise InputError("too many bad files")

    prefetcher = Prefetcher(failing())
    assert prefetcher.take() == 1
    for _ in range(2):
        with pytest.raises(InputError, match="too many bad files") as caught:
            prefetcher.take()
        assert "in failing" in "".join(traceback.format_exception(caught.value))
    prefetcher.close()


def test_waiting_can_have_a_limit():
    go_on = threading.Event()
    prefetcher = Prefetcher(iter(go_on.wait, None))
    with pytest.raises(TimeoutError, match="no batch"):
        prefetcher.take(timeout=0.01)
    go_on.set()
    assert prefetcher.take() is True
    prefetcher.close()


@pytest.mark.parametrize("state", ["never started", "full", "abandoned", "done", "waits for a file"])
def test_a_stream_closes_in_every_state(manifest, tmp_path, state):
    if state == "waits for a file":
        manifest = stalled_manifest(tmp_path)
    made = make_stream(manifest)
    if state == "full":
        made.take()
        wait_until_full(made)
    elif state == "abandoned":
        next(iter(made))
    elif state == "done":
        assert len(list(made)) == 8
    elif state == "waits for a file":
        with pytest.raises(TimeoutError):
            made.take(timeout=0.3)
    began = time.monotonic()
    made.close()
    made.close()
    assert time.monotonic() - began < 60  # the pool kills a worker after 2 s


def test_an_exception_in_the_step_ends_thread_and_workers(manifest):
    with pytest.raises(ZeroDivisionError), make_stream(manifest) as made:
        pids = made._pool.pids
        for _ in made:
            raise ZeroDivisionError
    assert pids and not any(psutil.pid_exists(pid) for pid in pids)


def stalled_manifest(root):
    """Return eight rows of one folder of frames whose only frame is a pipe: whoever opens it waits forever."""
    (root / "stalled").mkdir()
    os.mkfifo(root / "stalled" / "000001.jpg")
    return Manifest.from_clips([row("stalled", 0, codec="jpeg")] * 8, root=root, name="stalled")


def test_streams_that_are_never_closed_do_not_keep_the_process(manifest, tmp_path):
    """One has finished all batches that it may, the other waits for a file."""
    (tmp_path / "made").write_bytes(pickle.dumps((manifest, stalled_manifest(tmp_path), CONFIG)))
    program = f"""
        import pickle
        from pathlib import Path
        from ppma.loaders.sampler import TrainingSampler
        from ppma.loaders.stream import ClipStream
        *sources, config = pickle.loads(Path({str(tmp_path / "made")!r}).read_bytes())
        full, waits = [
            ClipStream(TrainingSampler([one], config, seed=5, batch_clips=4), [one], config) for one in sources
        ]
        print(len(full.take().label_B))
        try:
            waits.take(0.3)
        except TimeoutError:
            print("late")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\nlate\n", "")


def test_only_waiting_is_counted_as_waiting(manifest):
    with make_stream(manifest) as made:
        first = made.take().counters
        wait_until_full(made)
        time.sleep(first.wait_seconds)  # a step
        second = made.take().counters
    assert first.samples >= 4 and first.wait_seconds > 0.05  # the workers had to start
    assert second.samples >= 8 and second.wait_seconds < 1.25 * first.wait_seconds


# ------------------------------------------------------------------------------------------------------ the memory


def test_a_buffer_is_reused_only_when_nothing_refers_to_it():
    buffers = BufferPool()
    held = buffers.empty((4, 8))
    held[:] = 7
    view, address = held[1:].flatten(), held.data_ptr()
    other = buffers.empty((4, 8))
    assert other.data_ptr() != address
    del held
    assert buffers.empty((4, 8)).data_ptr() not in (address, other.data_ptr())
    assert (view == 7).all()
    del view
    assert buffers.empty((2, 8)).data_ptr() == address


def test_kept_batches_stay_as_they_were_and_dropped_ones_free_their_memory(manifest, expected):
    held, copies, addresses = [], [], set()
    with make_stream(manifest, epochs=10) as made:
        for number, batch in enumerate(made):
            if number < 6:
                held.append(batch)
                copies.append(batch.frames_BTHWC.clone())
            else:
                addresses.add(batch.frames_BTHWC.data_ptr())
    assert all(torch.equal(batch.frames_BTHWC, copy) for batch, copy in zip(held, copies, strict=True))
    assert all(same(batch, theirs) for batch, theirs in zip(held, expected[:6], strict=True))
    assert len(addresses) <= DEPTH + 3  # the queue, one in the making, one in use, one not yet dropped


def test_columns_begin_at_aligned_addresses(manifest):
    batch = collect(manifest, config=CONFIG, rank=0, world_size=4)[0]  # 2 rows of int64, 16 bytes each if packed
    columns = [t for t in batch.tensors() if t.dtype == torch.int64]
    assert len(columns) == 6
    for column in columns:
        assert column.storage_offset() * 8 % 128 == 0 and column.is_contiguous()


@pytest.mark.parametrize("bad", [(), (1, 2)])
def test_only_a_batch_with_undecodable_clips_is_copied(manifest, monkeypatch, bad):
    made = []

    class Fake:
        def __init__(self, *_, **__):
            pass

        def __call__(self, inputs, samples):
            made.append(torch.full((3 * len(inputs), 4, 32, 32, 3), 7, dtype=torch.uint8))
            return made[-1]

    monkeypatch.setattr(dali, "DaliViews", Fake)
    rows = [row("gone.mp4", 0) if n in bad else manifest.clip(n) for n in range(4)]
    source = Manifest.from_clips(rows, root=manifest.root, name="made")
    config = replace(CONFIG, implementation="dali", short_side=32, randaugment_ops=0)
    sampler = EvaluationSampler(source, config, batch_clips=4, windows=1)
    with ClipStream(sampler, [source], config, on_bad="mark") as there:
        (batch,) = there
    assert (batch.frames_BTHWC.data_ptr() == made[0].data_ptr()) == (not bad)
    assert batch.decoded_B.tolist() == [n not in bad for n in range(4) for _ in range(3)]
    assert [bool((frames == 7).all()) for frames in batch.frames_BTHWC] == batch.decoded_B.tolist()
    assert not batch.frames_BTHWC[~batch.decoded_B].any()


class LateDevice(Transfer):
    """A device that copies as late as possible: when the copy is waited for."""

    def __init__(self, device):
        super().__init__(device)
        self.copies, self.done, self.guard = [], 0, threading.Lock()

    def pin(self, memory):
        return True

    def send(self, host):
        if host.dtype != torch.uint8:
            return host
        there = torch.zeros_like(host)
        self.copies.append((there, host))
        return there

    def record_event(self):
        return SimpleNamespace(synchronize=partial(self.catch_up, len(self.copies)))

    def catch_up(self, count):
        with self.guard:
            for there, host in self.copies[self.done : count]:
                there.copy_(host)
            self.done = max(self.done, count)

    def receive(self, tensors, event):
        event.synchronize()


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_shared_memory_is_overwritten_only_after_the_device_has_read_it(manifest, expected, monkeypatch, batches):
    monkeypatch.setattr(stream, "transfer_to", LateDevice)
    late = []
    with make_stream(manifest, config=replace(CONFIG, prefetch_batches=batches), epochs=6) as made:
        for batch in made:
            late.append(batch)
            time.sleep(0.01)  # the workers write meanwhile
    assert all(same(a, b) for a, b in zip(expected, late, strict=True))


# -------------------------------------------------------------------------------------------------------- the GPU


class Recorder:
    """Replaces torch.cuda and its objects; notes every call as `name.method`, with its arguments."""

    def __init__(self, calls, name="", answers=()):
        self.calls, self.name, self.answers = calls, name, dict(answers)

    def __getattr__(self, method):
        def call(*arguments, **_):
            self.calls.append((f"{self.name}.{method}".lstrip("."), arguments))
            return self.answers.get(method)

        return call


@pytest.fixture
def fake_cuda(monkeypatch):
    """The calls of CudaTransfer, in order, on a machine without a GPU."""
    calls = []
    side, consumer = Recorder(calls, "side"), Recorder(calls, "consumer")
    runtime = Recorder(calls, "runtime", {"cudaHostRegister": 0, "cudaHostUnregister": 0})
    runtime.cudaError = SimpleNamespace(success=0)
    cuda = Recorder(calls, "cuda", {"Stream": side, "current_stream": consumer, "current_device": 1, "cudart": runtime})
    start = {"__init__": lambda self, blocking: Recorder.__init__(self, calls, "event")}
    cuda.Event = type("Event", (Recorder,), start)
    monkeypatch.setattr(prefetch.torch, "cuda", cuda)
    return SimpleNamespace(calls=calls, side=side, consumer=consumer, runtime=runtime)


def test_the_consumers_stream_waits_for_the_event_and_the_allocator_for_the_consumer(fake_cuda):
    transfer = CudaTransfer(torch.device("cuda"))
    transfer.prepare_thread()
    event = transfer.record_event()
    frames, labels = (Recorder(fake_cuda.calls, name) for name in ("frames", "labels"))
    transfer.receive([frames, labels], event)
    assert fake_cuda.calls == [
        ("cuda.current_device", ()),
        ("cuda.Stream", (torch.device("cuda", 1),)),
        ("cuda.set_device", (torch.device("cuda", 1),)),
        ("cuda.set_stream", (fake_cuda.side,)),
        ("event.record", (fake_cuda.side,)),
        ("cuda.current_stream", (torch.device("cuda", 1),)),
        ("consumer.wait_event", (event,)),
        ("frames.record_stream", (fake_cuda.consumer,)),
        ("labels.record_stream", (fake_cuda.consumer,)),
    ]


def test_memory_is_unpinned_once_after_the_last_copy(fake_cuda):
    memory = mmap.mmap(-1, 1 << 16)
    transfer = CudaTransfer(torch.device("cuda"))
    assert transfer.pin(memory)
    transfer.unpin()
    transfer.unpin()
    address = np.frombuffer(memory, np.uint8).ctypes.data
    assert [call for call in fake_cuda.calls if not call[0].startswith("cuda.")] == [
        ("runtime.cudaHostRegister", (address, 1 << 16, 0)),
        ("event.record", (fake_cuda.side,)),
        ("event.synchronize", ()),
        ("runtime.cudaHostUnregister", (address,)),
    ]


def test_memory_that_cannot_be_pinned_is_logged_and_the_error_is_cleared(fake_cuda, monkeypatch, caplog):
    launched = []
    monkeypatch.setattr(prefetch.torch, "ones", lambda *_, device: launched.append(device))
    fake_cuda.runtime.answers["cudaHostRegister"] = 304
    transfer = CudaTransfer(torch.device("cuda"))
    assert not transfer.pin(mmap.mmap(-1, 1 << 16))
    assert "304" in caplog.text and launched == [torch.device("cuda", 1)]
    transfer.unpin()
    assert not any(name == "runtime.cudaHostUnregister" for name, _ in fake_cuda.calls)


@pytest.mark.cuda
@pytest.mark.parametrize("pinnable", [True, False])
def test_a_gpu_gets_the_cpus_batches_without_a_host_wait(manifest, expected, monkeypatch, pinnable):
    """The consumer is busy with each batch for a while: memory that came back too early would be overwritten."""
    if not pinnable:
        monkeypatch.setattr(CudaTransfer, "pin", Transfer.pin)
    sums = []
    with make_stream(manifest, epochs=6, device="cuda") as there:
        first = there.take()
        assert there._pinned == pinnable
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in there:  # dropped before the GPU has read it
                torch.cuda._sleep(10_000_000)
                sums.append([tensor.double().sum() for tensor in batch.tensors()])
        finally:
            torch.cuda.set_sync_debug_mode(before)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(first.tensors(), expected[0].tensors(), strict=True))
    found = [[float(value) for value in row] for row in sums]
    assert found == [[float(tensor.double().sum()) for tensor in batch.tensors()] for batch in expected[1:]]


@pytest.mark.cuda
def test_a_gpu_stream_can_be_left_at_any_time(manifest):
    for taken in (0, 1, 3):
        with make_stream(manifest, device="cuda", epochs=20) as made:
            assert len(list(itertools.islice(made, taken))) == taken
    torch.cuda.synchronize()
