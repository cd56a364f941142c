"""Measure the fused operations against their references and PyTorch's best, relative to the machine's ceilings.

    python benchmarks/kernel_speed.py
    python benchmarks/kernel_speed.py --kernel attention --batch 32

Ceilings are measured first: copy bandwidth (bytes read plus written) for `patchify` and `pixel_loss`, the rate of a
large matrix product for `attention`. On a GPU, times are CUDA-graph replays over rotating inputs
(`ppma.kernels.timing`), so they contain kernels only. On a CPU the shapes are small and Triton kernels are skipped:
they would run in an interpreter.

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
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import rows
from ppma.config.command import DONE, parse, run
from ppma.config.model import PIXEL_MEAN, PIXEL_STD
from ppma.kernels import choice, reference
from ppma.kernels.attention import attention
from ppma.kernels.attention_choice import FIRST_PLAN, Shape, attend, candidates, fastest_plan
from ppma.kernels.patchify import patchify
from ppma.kernels.pixel_loss import pixel_loss
from ppma.kernels.timing import cannot_run, seconds_per_call, sets_needed
from ppma.models.flops import measured_peak_flops

PATCH = (2, 16, 16)
ATTENTION_SHAPES = ((157, 12, 64), (1568, 16, 24), (1568, 12, 64), (1568, 16, 80))
"""(tokens, heads, head width) of stage 1's encoder and decoder, stage 2, and the huge model's encoder."""
COLORS = {"patch": PATCH, "mean": PIXEL_MEAN, "std": PIXEL_STD}
Kernel = Literal["patchify", "pixel_loss", "attention"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Measure the speed of the fused operations."""

    kernel: tuple[Kernel, ...] = ("patchify", "pixel_loss", "attention")
    batch: int = 0
    """Clips; 0 for 64 on a GPU and 1 on a CPU."""
    repeats: int = 0
    """Repeats per measurement; 0 for 50 on a GPU and 5 on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "batch", "repeats")


Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One implementation of an operation at one shape."""

    kernel: Kernel
    implementation: str
    shape: str
    dtype: torch.dtype
    direction: Literal["forward", "forward+backward"]
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


def forced(implementation: choice.Implementation, work: Callable[[Inputs], object]) -> Callable[[Inputs], object]:
    """Return `work` with the implementation of our kernels fixed."""

    def forced_work(inputs: Inputs) -> object:
        with choice.use(implementation):
            return work(inputs)

    return forced_work


def rotating(make: Callable[[], Inputs], device: torch.device) -> list[Inputs]:
    """Return enough sets of inputs to exceed the cache."""
    first = make()
    return [first, *(make() for _ in range(sets_needed(sum(t.nbytes for t in first), device) - 1))]


def implementations(device: torch.device) -> list[choice.Implementation]:
    """Return the implementations that can be timed on the device."""
    return ["torch", "triton"] if device.type == "cuda" and choice.LOADED else ["torch"]


def clips(batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return random clips of the paper's size with the indices of their visible and masked tokens."""
    frames = torch.randint(0, 256, (batch, 16, 224, 224, 3), dtype=torch.uint8, device=device)
    order = torch.rand(batch, 1568, device=device).argsort(dim=1)
    return frames, order[:, :157].sort().values, order[:, 157:].sort().values


def contenders(
    plain: Callable[..., Tensor],
    seam: Callable[..., Tensor],
    work: Callable[[Callable[..., Tensor], Inputs], object],
    device: torch.device,
    common: dict[str, Any],
) -> Iterator[Measurement]:
    """Yield `work` with the reference, with the compiled reference on a GPU (PyTorch's best), and with each
    implementation of ours."""
    yield Measurement(implementation="reference", run=partial(work, plain), **common)
    if device.type == "cuda":
        compiled = torch.compile(plain, dynamic=False)
        yield Measurement(implementation="reference_compiled", run=partial(work, compiled), **common)
    for implementation in implementations(device):
        yield Measurement(implementation=implementation, run=forced(implementation, partial(work, seam)), **common)


def patchify_cases(batch: int, device: torch.device) -> Iterator[Measurement]:
    """Yield the visible tenth of stage 1, and all patches of stage 2."""
    sets = rotating(lambda: clips(batch, device), device)
    for dtype in (torch.bfloat16, torch.float32):
        for all_tokens in (False, True):
            tokens = 1568 if all_tokens else sets[0][1].shape[1]
            moved = batch * tokens * (1536 * (1 + dtype.itemsize) + 8 * (not all_tokens))
            common = {"kernel": "patchify", "shape": f"{batch} x {tokens} x 1536", "dtype": dtype, "sets": sets}
            common |= {"direction": "forward", "bytes_moved": moved}

            def work(
                patches: Callable[..., Tensor],
                inputs: Inputs,
                all_tokens: bool = all_tokens,
                dtype: torch.dtype = dtype,
            ) -> Tensor:
                frames, visible, _ = inputs
                return patches(frames, None if all_tokens else visible, **COLORS, dtype=dtype)

            yield from contenders(reference.patchify, patchify, work, device, common)


def pixel_loss_cases(batch: int, device: torch.device) -> Iterator[Measurement]:
    """Yield the stage 1 loss of the masked nine tenths of the patches, forward and backward."""

    def work(loss: Callable[..., Tensor], inputs: Inputs) -> object:
        frames, _, masked, prediction = inputs
        return torch.autograd.grad(loss(prediction, frames, masked, patch=PATCH), prediction)

    for dtype in (torch.bfloat16, torch.float32):

        def make(dtype: torch.dtype = dtype) -> Inputs:
            prediction = torch.randn(batch, 1411, 1536, device=device).to(dtype).requires_grad_()
            return (*clips(batch, device), prediction)

        moved = batch * 1411 * (1536 * (1 + 2 * dtype.itemsize) + 8)
        common = {
            "kernel": "pixel_loss",
            "shape": f"{batch} x 1411 x 1536",
            "dtype": dtype,
            "sets": rotating(make, device),
        }
        common |= {"direction": "forward+backward", "bytes_moved": moved}
        yield from contenders(reference.pixel_loss, pixel_loss, work, device, common)


def attention_cases(batch: int, device: torch.device) -> Iterator[Measurement]:
    """Yield stage 1's encoder and decoder, stage 2's encoder, and on a GPU the huge model's encoder."""
    on_gpu = device.type == "cuda"
    for dtype in (torch.bfloat16, torch.float16) if on_gpu else (torch.float32,):
        for tokens, heads, width in ATTENTION_SHAPES if on_gpu else ATTENTION_SHAPES[:3]:
            yield from attention_shape(batch, tokens, heads, width, dtype, device)


def attention_shape(
    batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> Iterator[Measurement]:
    """Yield the reference, our `attention` and every candidate backend at one shape."""

    def make() -> Inputs:
        qkv = torch.randn(batch, tokens, 3 * heads * width, device=device).to(dtype).requires_grad_()
        return qkv, torch.randn(batch, tokens, heads * width, device=device).to(dtype)

    def alone(work: Callable[[Tensor, int], Tensor], inputs: Inputs) -> object:
        return work(inputs[0].detach(), heads)

    def both(work: Callable[[Tensor, int], Tensor], inputs: Inputs) -> object:
        return torch.autograd.grad(work(inputs[0], heads), inputs[0], inputs[1])

    works: dict[str, Callable[..., Tensor]] = {"reference": reference.attention, "seam": attention}
    shape = Shape(batch, tokens, heads, width, dtype, device)
    for backend in candidates(shape) if device.type == "cuda" else []:
        plan = fastest_plan(shape) if backend == "triton" else None
        works[backend] = partial(attend, backend=backend, plan=plan or FIRST_PLAN)
    products = 4 * batch * tokens**2 * heads * width
    common: dict[str, Any] = {"kernel": "attention", "shape": f"{batch} x {tokens} x {heads} x {width}", "dtype": dtype}
    common |= {"sets": rotating(make, device)}
    for name, work in works.items():
        run = partial(alone, work)
        yield Measurement(implementation=name, direction="forward", run=run, flops=products, **common)
        run, flops = partial(both, work), 3.5 * products
        yield Measurement(implementation=name, direction="forward+backward", run=run, flops=flops, **common)


CASES = {"patchify": patchify_cases, "pixel_loss": pixel_loss_cases, "attention": attention_cases}


def row_of(case: Measurement, took: list[float], ceiling: float) -> rows.Row:
    """Return the fields of a row."""
    middle = statistics.median(took)
    rate = (case.bytes_moved or case.flops) / middle
    return {
        "kernel": case.kernel,
        "implementation": case.implementation,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "pass": case.direction,
        "microseconds": middle * 1e6,
        "gb_per_s": case.bytes_moved / middle / 1e9 if case.bytes_moved else None,
        "tflop_per_s": case.flops / middle / 1e12 if case.flops else None,
        "of_ceiling": rate / ceiling,
        "repeats": len(took),
        "spread": rows.spread(took),
    }


def seconds(case: Measurement, device: torch.device, repeats: int) -> list[float] | None:
    """Return the times of a call; None, with the reason on stderr, if it cannot run."""
    try:
        return seconds_per_call(case.run, case.sets, device, repeats)
    except cannot_run() as error:  # a backend that does not take the shape, or the reference out of memory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{case.kernel} {case.implementation} {case.shape}: {reason}", file=sys.stderr)
        return None


def measure(config: BenchmarkConfig, device: torch.device) -> list[rows.Row]:
    """Return a row for everything that can run, and print what cannot."""
    bandwidth, peaks = copy_bandwidth(device), dict[torch.dtype, float]()
    on_gpu = device.type == "cuda"
    batch, repeats = config.batch or (64 if on_gpu else 1), config.repeats or (50 if on_gpu else 5)
    print(f"copy {bandwidth / 1e9:.1f} GB/s", flush=True)
    made = []
    for kernel in config.kernel:
        for case in CASES[kernel](batch, device):
            if case.flops and case.dtype not in peaks:
                peaks[case.dtype] = measured_peak_flops(device, case.dtype)
                print(f"matrix product in {case.dtype} {peaks[case.dtype] / 1e12:.2f} TFLOP/s", flush=True)
            if took := seconds(case, device, repeats):
                made.append(row_of(case, took, peaks[case.dtype] if case.flops else bandwidth))
    return made


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    config = parse(BenchmarkConfig, argv, prog="kernel_speed")
    made = measure(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rows.report(made, config, benchmark="kernel_speed", measure="microseconds")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="kernel_speed"))
