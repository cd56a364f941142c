"""The implementations of each fused operation that gpu_day.py compares: our kernels, the references, PyTorch's best.

    kernel, batch, device  ->  Measurements (work, rotating inputs, ideal bytes or products)  ->  seconds of a call

On a GPU, times are CUDA-graph replays over rotating inputs (`ppma.kernels.timing`), so they contain kernels only.
Bytes are those of an ideal implementation:

- `patchify`: each pixel of the chosen patches read once (1 byte), each value written once, each index (8 bytes) read once.
- `pixel_loss`, forward and backward: each pixel of the masked patches and each predicted value read once, each gradient value written
  once. The gradient is known up to a factor when the loss is, so neither pixels nor predictions need to be read again. An
  implementation that keeps the difference for its backward pass moves two more values.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppma.config.model import PIXEL_MEAN, PIXEL_STD
from ppma.kernels import choice, reference
from ppma.kernels.attention import attention
from ppma.kernels.attention_choice import FIRST_PLAN, Shape, attend, candidates, fastest_plan
from ppma.kernels.patchify import patchify
from ppma.kernels.pixel_loss import pixel_loss
from ppma.kernels.timing import cannot_run, seconds_per_call, sets_needed

PATCH = (2, 16, 16)
ATTENTION_SHAPES = ((157, 12, 64), (1568, 16, 24), (1568, 12, 64))
"""(tokens, heads, head width) of stage 1's encoder and decoder, and of stage 2."""
COLORS = {"patch": PATCH, "mean": PIXEL_MEAN, "std": PIXEL_STD}
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One implementation of an operation at one shape."""

    implementation: str
    shape: str
    run: Callable[[Inputs], object]
    """Called with one of the `sets`."""
    sets: list[Inputs]
    bytes_moved: float = 0.0
    flops: float = 0.0


def copy_bandwidth(device: torch.device) -> float:
    """Return bytes per second of a large copy, counting reads and writes."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = seconds_per_call(lambda pair: pair[1].copy_(pair[0]), [(source, target)], device, 10)
    return 2 * source.numel() / statistics.median(copies)


def rotating(make: Callable[[], Inputs], device: torch.device) -> list[Inputs]:
    """Return enough sets of inputs to exceed the cache."""
    first = make()
    return [first, *(make() for _ in range(sets_needed(sum(t.nbytes for t in first), device) - 1))]


def clips(batch: int, device: torch.device, *, tiny: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return random clips of the paper's size, or tiny ones, with the indices of their visible and masked tokens."""
    frames, side = (2, 32) if tiny else (16, 224)
    tokens = frames // 2 * (side // 16) ** 2
    clip = torch.randint(0, 256, (batch, frames, side, side, 3), dtype=torch.uint8, device=device)
    order, masked = torch.rand(batch, tokens, device=device).argsort(dim=1), int(0.9 * tokens)
    return clip, order[:, :-masked].sort().values, order[:, -masked:].sort().values


def contenders(
    plain: Callable[..., Tensor],
    seam: Callable[..., Tensor],
    work: Callable[[Callable[..., Tensor], Inputs], object],
    device: torch.device,
    **common: Any,
) -> Iterator[Measurement]:
    """Yield `work` with the reference, with the compiled reference on a GPU (PyTorch's best), and with each
    implementation of ours that can be timed on the device."""

    def forced(implementation: choice.Implementation, inputs: Inputs) -> object:
        with choice.use(implementation):
            return work(seam, inputs)

    yield Measurement(implementation="reference", run=partial(work, plain), **common)
    yield Measurement(implementation="torch", run=partial(forced, "torch"), **common)
    if device.type == "cuda":
        compiled = torch.compile(plain, dynamic=False)
        yield Measurement(implementation="reference_compiled", run=partial(work, compiled), **common)
        if choice.LOADED:
            yield Measurement(implementation="triton", run=partial(forced, "triton"), **common)


def patchify_cases(batch: int, device: torch.device, *, tiny: bool) -> Iterator[Measurement]:
    """Yield the visible tenth of stage 1, and all patches of stage 2, in bfloat16."""
    sets = rotating(lambda: clips(batch, device, tiny=tiny), device)
    for all_tokens in (False, True):

        def work(patches: Callable[..., Tensor], inputs: Inputs, all_tokens: bool = all_tokens) -> Tensor:
            frames, visible, _ = inputs
            return patches(frames, None if all_tokens else visible, **COLORS, dtype=torch.bfloat16)

        tokens = sets[0][1].shape[1] + all_tokens * sets[0][2].shape[1]
        moved = batch * tokens * (1536 * 3 + 8 * (not all_tokens))
        shape = f"{batch} x {tokens} x 1536"
        yield from contenders(reference.patchify, patchify, work, device, shape=shape, sets=sets, bytes_moved=moved)


def pixel_loss_cases(batch: int, device: torch.device, *, tiny: bool) -> Iterator[Measurement]:
    """Yield the stage 1 loss of the masked nine tenths of the patches in bfloat16, forward and backward."""

    def work(loss: Callable[..., Tensor], inputs: Inputs) -> object:
        frames, _, masked, prediction = inputs
        return torch.autograd.grad(loss(prediction, frames, masked, patch=PATCH), prediction)

    def make() -> Inputs:
        frames, visible, masked = clips(batch, device, tiny=tiny)
        prediction = torch.randn(*masked.shape, 1536, device=device).bfloat16().requires_grad_()
        return frames, visible, masked, prediction

    sets = rotating(make, device)
    tokens = sets[0][2].shape[1]
    shape, moved = f"{batch} x {tokens} x 1536", batch * tokens * (1536 * 5 + 8)
    yield from contenders(reference.pixel_loss, pixel_loss, work, device, shape=shape, sets=sets, bytes_moved=moved)


def attention_cases(
    batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> Iterator[Measurement]:
    """Yield forward and backward passes of our `attention` and every candidate backend at one shape; on a CPU of the
    reference too, whose scores would take gigabytes on a GPU."""

    def make() -> Inputs:
        qkv = torch.randn(batch, tokens, 3 * heads * width, device=device).to(dtype).requires_grad_()
        return qkv, torch.randn(batch, tokens, heads * width, device=device).to(dtype)

    def both(work: Callable[[Tensor, int], Tensor], inputs: Inputs) -> object:
        return torch.autograd.grad(work(inputs[0], heads), inputs[0], inputs[1])

    works: dict[str, Callable[..., Tensor]] = {"seam": attention}
    shape = Shape(batch, tokens, heads, width, dtype, device)
    if device.type != "cuda":
        works["reference"] = reference.attention
    for backend in candidates(shape) if device.type == "cuda" else []:
        plan = fastest_plan(shape) if backend == "triton" else None
        works[backend] = partial(attend, backend=backend, plan=plan or FIRST_PLAN)
    flops, sets = 14 * batch * tokens**2 * heads * width, rotating(make, device)
    name = f"{batch} x {tokens} x {heads} x {width}"
    for implementation, work in works.items():
        yield Measurement(implementation=implementation, shape=name, run=partial(both, work), sets=sets, flops=flops)


MEMORY_BOUND = {"patchify": patchify_cases, "pixel_loss": pixel_loss_cases}


def seconds(case: Measurement, device: torch.device, repeats: int) -> list[float] | None:
    """Return the times of a call; None, with the reason on stderr, if it cannot run."""
    try:
        return seconds_per_call(case.run, case.sets, device, repeats)
    except cannot_run() as error:  # a backend that does not take the shape, or the reference out of memory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{case.implementation} {case.shape}: {reason}", file=sys.stderr)
        return None
