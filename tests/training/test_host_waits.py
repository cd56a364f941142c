"""A training step never waits for the device: nothing is read back, copied from pageable memory or indexed by the host."""

import contextlib
from dataclasses import fields, replace

import numpy as np
import pytest
import tiny
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppma.loaders import stream
from ppma.loaders.prefetch import Transfer
from ppma.loaders.sources.manifest import Manifest
from ppma.training.compute import Compute
from ppma.training.distributed import choose_device
from ppma.training.optim import parameter_groups
from ppma.training.run_folder import read_metrics
from ppma.training.tasks import ClassifyTask, MaeTask
from ppma.training.trainer import Trainer
from ppma.transfer.features import TokenRows, feature_batches
from tests.loaders.test_stream import row

READS = {
    "item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "is_nonzero", "equal",
}  # fmt: skip
"""Methods of a tensor that make the host wait for the device."""
WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
"""Operators that read a value back, or whose result has a shape that the host needs to know."""


class Methods(TorchFunctionMode):
    """Notes every read in Python."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READS:
            self.seen.append(func.__name__)
        return func(*args, **kwargs or {})


class Operators(TorchDispatchMode):
    """Notes every read below Python, the backward pass and the optimizer among them."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        copy = kwargs or {}
        if name in WAITS or (name == "_to_copy" and copy.get("device") is not None and not copy.get("non_blocking")):
            self.seen.append(name)
        return func(*args, **kwargs or {})


class Crossings(TorchDispatchMode):
    """Notes every operator with tensors both on the host and on the device: copies, and tables of indices that have to be copied."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        scalars = func.overloadpacket.__name__ != "_to_copy"  # a number of the host travels with the kernel's launch
        if len({t.device.type for t in tensors if t.dim() or not scalars}) > 1:
            self.seen.append(str(func))
        return result


def looping(name, folder, monkeypatch, outside, **changes):
    """A tiny trainer on made clips, ready to run; `outside` is entered around lines of metrics and checkpoints, which may wait."""
    device = choose_device(changes.get("device", "cpu"))
    ranks, how = replace(tiny.ALONE, device=device), {"checkpoint_every": 100, "precision": "fp32"}
    trainer = tiny.trainer(name, folder, ranks, **how, **changes)
    with trainer.task.stream(ranks, (0, 0)) as stream:
        batches = [batch_on(batch, device) for batch, _ in zip(stream, range(8), strict=False)]
    trainer.task.stream = lambda ranks, start: contextlib.nullcontext(batches)
    trainer.total_steps = len(batches)
    for method in ("_log", "save"):
        there = getattr(trainer, method)

        def apart(*arguments, there=there):
            with outside():
                return there(*arguments)

        monkeypatch.setattr(trainer, method, apart)
    return trainer


def batch_on(batch, device):
    """The batch with its tensors where the training is."""
    moved = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{n: v.to(device) for n, v in moved.items() if isinstance(v, torch.Tensor)})


@pytest.mark.parametrize("name", ["mae_nohuman", "align_nohuman_synthetic"])
def test_nothing_is_read_from_the_device_between_two_lines_of_metrics(name, tmp_path, monkeypatch):
    seen, allowed = [], []

    @contextlib.contextmanager
    def outside():
        before = len(seen)
        yield
        allowed.extend(seen[before:])
        del seen[before:]

    trainer = looping(name, tmp_path, monkeypatch, outside)
    with Methods(seen), Operators(seen):
        tiny.loop(trainer)
    assert [row["step"] for row in read_metrics(tmp_path)] == [4, 8]
    assert {"item", "_local_scalar_dense"} <= set(allowed), "the count sees what a line of metrics reads"
    assert not seen, f"8 steps read {seen}"


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_a_scaled_loss_is_not_read_back_either(tmp_path, monkeypatch, clip_grad):
    """The fused AdamW takes scale and overflow as tensors; any other would have GradScaler read the overflow at every step."""
    seen = []

    @contextlib.contextmanager
    def outside():
        before = len(seen)
        yield
        del seen[before:]

    trainer = looping("mae_nohuman", tmp_path, monkeypatch, outside)
    trainer.config = replace(trainer.config, optim=replace(trainer.config.optim, clip_grad=clip_grad))
    trainer.scaler = torch.amp.GradScaler("cpu")
    with Methods(seen), Operators(seen):
        tiny.loop(trainer)
    assert not seen, f"8 steps read {seen}"


META = torch.device("meta")
"""A device that has shapes and no values: whatever reads from it raises."""


class PlainAdamW(torch.optim.AdamW):
    """Takes the place of the fused one, which META has not; it cannot skip a step."""

    found_inf = property(lambda self: None, lambda self, value: None)


class ShapesOnly(Transfer):
    """Hands over to META as CudaTransfer does to a GPU."""

    def send(self, host):
        return host.to(META)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_clip):
    """A manifest of eight clips, labeled 0 and 1."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(8):
        write_clip(root / f"{number}.mp4", frames=24)
    return Manifest.from_clips([row(f"{n}.mp4", n % 2) for n in range(8)], root=root, name="made")


def real_loop(name, manifest, run_dir, device, *, implementation="plain"):
    """A tiny trainer whose stream is a ClipStream over real clips."""
    config = tiny.shrink(name, log_every=100, pictures_every=0, checkpoint_every=100, run_dir=run_dir)
    loader = replace(config.loader, implementation=implementation, window_seconds=1.0, workers=2)
    optim = replace(config.optim, clip_grad=1.0, epochs=4)
    config = replace(config, precision="fp32", compile="off", sources=("made",), loader=loader, optim=optim)
    task = {"mae": MaeTask, "classify": ClassifyTask}[config.phase](config, [manifest])
    compute = Compute(device=device, weight_dtype=torch.float32, autocast_dtype=torch.float32)
    return Trainer(config, task, replace(tiny.ALONE, device=device), compute)


@pytest.mark.parametrize("name", ["mae_nohuman", "align_nohuman_synthetic"])
def test_hand_over_and_step_leave_the_device_alone(name, clips, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(stream, "transfer_to", ShapesOnly)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # there is no autocast for META,
    monkeypatch.setattr(
        "ppma.training.trainer.build_optimizer", lambda model, _: PlainAdamW(parameter_groups(model, _), lr=0.0)
    )
    trainer = real_loop(name, clips, tmp_path, META)
    monkeypatch.setattr(trainer, "_log", lambda *_: None)  # they may read
    monkeypatch.setattr(trainer, "save", lambda: None)
    with Crossings(seen):
        tiny.loop(trainer)
    assert trainer.step == trainer.total_steps >= 4
    assert not seen, f"{trainer.step} steps: {seen}"


def test_cached_tokens_are_fetched_without_asking_the_device(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(12 * 3 * 2, dtype=np.float16).reshape(12, 3, 2))
    for device in (torch.device("cpu"), META):
        rows, labels = TokenRows(tmp_path / "tokens.npy", device, torch.float32), torch.arange(12).to(device)
        batches = list(feature_batches(rows, labels, batch=4, epochs=1, seed=0, start=(0, 0)))
        assert len(batches) == 3 and all(batch.features_BD.device == device for batch in batches)
        if device != META:
            found = torch.cat([batch.features_BD for batch in batches])[:, 0, 0] / 6
            assert torch.equal(found, torch.cat([batch.label_B for batch in batches]).float())


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["mae_nohuman", "align_nohuman_synthetic"])
def test_a_gpu_is_waited_for_at_lines_of_metrics_only(name, tmp_path, monkeypatch):
    """Any other synchronization raises; the first steps, which may measure kernels, are taken before."""

    @contextlib.contextmanager
    def outside():
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode(0)
        yield
        torch.cuda.set_sync_debug_mode(before)

    trainer = looping(name, tmp_path, monkeypatch, outside, device="cuda", compile="off")
    with trainer.task.stream(trainer.ranks, (0, 0)) as stream:
        trainer.train_step(stream[0])
    trainer.step = 0
    torch.cuda.set_sync_debug_mode("error")
    try:
        tiny.loop(trainer)
    finally:
        torch.cuda.set_sync_debug_mode(0)


@pytest.mark.cuda
@pytest.mark.parametrize("implementation", ["plain", "dali"])
def test_a_gpu_is_not_waited_for_with_the_real_loader(implementation, clips, tmp_path, monkeypatch):
    """Any synchronization between the second step and the last raises, in the producer's thread too."""
    if implementation == "dali":
        pytest.importorskip("nvidia.dali")
    trainer = real_loop("mae_nohuman", clips, tmp_path, choose_device("cuda"), implementation=implementation)
    monkeypatch.setattr(trainer, "_log", lambda *_: None)
    monkeypatch.setattr(trainer, "save", lambda: torch.cuda.set_sync_debug_mode(0))  # after the last step
    taken = trainer.train_step

    def step(batch):
        norm = taken(batch)  # the first one chooses kernels
        torch.cuda.set_sync_debug_mode("error")
        return norm

    monkeypatch.setattr(trainer, "train_step", step)
    try:
        tiny.loop(trainer)
    finally:
        torch.cuda.set_sync_debug_mode(0)
    assert trainer.step == trainer.total_steps >= 4
