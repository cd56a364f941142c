"""Each fused operation against its plain meaning and PyTorch's best, in the units of the machine's ceilings.

    python benchmarks/kernel_speed.py
    python benchmarks/kernel_speed.py --kernel attention --batch 32

Ceilings are measured first: bytes a second of a copy (read and written) for `patchify` and `pixel_loss`, operations a
second of a large matrix product for `attention`. Bytes are those that an operation must move, not those that it does:
the wanted patches once, the result once. Without a GPU the shapes are small and our Triton kernels are left out: there
they run only in an interpreter, whose speed says nothing.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import rows
from ppma.command import DONE, parse, run
from ppma.flops import measured_peak_flops
from ppma.kernels import choice, reference
from ppma.kernels.attention import attend, attention
from ppma.kernels.attention_choice import CANDIDATES
from ppma.kernels.patchify import patchify
from ppma.kernels.pixel_loss import pixel_loss
from ppma.model_config import PIXEL_MEAN, PIXEL_STD

PATCH = (2, 16, 16)
COLOURS = {"patch": PATCH, "mean": PIXEL_MEAN, "std": PIXEL_STD}
Kernel = Literal["patchify", "pixel_loss", "attention"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Speed of the fused operations."""

    kernel: tuple[Kernel, ...] = ("patchify", "pixel_loss", "attention")
    batch: int = 0
    """Clips; 0: 64 on a GPU, 1 on a CPU."""
    repeats: int = 0
    """Of each measurement; 0: 50 on a GPU, 5 on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "batch", "repeats")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One thing to time."""

    kernel: Kernel
    implementation: str
    shape: str
    dtype: torch.dtype
    direction: Literal["forward", "forward+backward"]
    run: Callable[[], object]
    bytes_moved: float = 0.0
    flops: float = 0.0


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Elapsed time of every repetition, after two that are not counted."""
    took = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            took.append(start.elapsed_time(end) / 1000)
        else:
            began = time.perf_counter()
            work()
            took.append(time.perf_counter() - began)
    return took[2:]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, counted once for reading and once for writing."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(seconds(lambda: target.copy_(source), device, 10))


def forced(implementation: choice.Implementation, work: Callable[[], object]) -> Callable[[], object]:
    """The same work with one implementation of the seam."""

    def forced_work() -> object:
        with choice.use(implementation):
            return work()

    return forced_work


def forms(device: torch.device) -> list[choice.Implementation]:
    """The implementations of a seam that have a speed here."""
    return ["torch", "triton"] if device.type == "cuda" and choice.LOADED else ["torch"]


def clips(batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Clips of the paper's size, and their visible and masked tokens."""
    frames = torch.randint(0, 256, (batch, 16, 224, 224, 3), dtype=torch.uint8, device=device)
    order = torch.rand(batch, 1568, device=device).argsort(dim=1)
    return frames, order[:, :157].sort().values, order[:, 157:].sort().values


def contenders(
    plain: Callable[..., Tensor],
    stated: Callable[[Callable[..., Tensor]], object],
    seam: Callable[[], object],
    device: torch.device,
    common: dict,
) -> Iterator[Measurement]:
    """`stated` with the plain meaning, on a GPU also with what torch.compile makes of it (PyTorch's best); and the seam's forms."""
    yield Measurement(implementation="reference", run=partial(stated, plain), **common)
    if device.type == "cuda":
        compiled = torch.compile(plain, dynamic=False)
        yield Measurement(implementation="reference_compiled", run=partial(stated, compiled), **common)
    for form in forms(device):
        yield Measurement(implementation=form, run=forced(form, seam), **common)


def patchify_cases(batch: int, device: torch.device) -> Iterator[Measurement]:
    """The visible tenth of stage 1, and all patches of stage 2."""
    frames, visible, _ = clips(batch, device)
    for dtype in (torch.bfloat16, torch.float32):
        for idx in (visible, None):
            tokens = 1568 if idx is None else idx.shape[1]
            values = batch * tokens * 1536
            common = {"kernel": "patchify", "shape": f"{batch} x {tokens} x 1536", "dtype": dtype}
            common |= {"direction": "forward", "bytes_moved": values * (1 + dtype.itemsize)}

            def seam(idx: Tensor | None = idx, dtype: torch.dtype = dtype) -> Tensor:
                return patchify(frames, idx, **COLOURS, dtype=dtype)

            def stated(work: Callable[..., Tensor], idx: Tensor | None = idx, dtype: torch.dtype = dtype) -> Tensor:
                return work(frames, idx, **COLOURS, dtype=dtype)

            yield from contenders(reference.patchify, stated, seam, device, common)


def pixel_loss_cases(batch: int, device: torch.device) -> Iterator[Measurement]:
    """The masked nine tenths; the gradient is written whether or not a backward pass follows."""
    frames, _, masked = clips(batch, device)
    for dtype in (torch.bfloat16, torch.float32):
        prediction = torch.randn(batch, 1411, 1536, device=device).to(dtype).requires_grad_()
        common = {"kernel": "pixel_loss", "shape": f"{batch} x 1411 x 1536", "dtype": dtype}
        common |= {"direction": "forward+backward", "bytes_moved": prediction.numel() * (1 + 2 * dtype.itemsize)}

        def seam(prediction: Tensor = prediction) -> object:
            return torch.autograd.grad(pixel_loss(prediction, frames, masked, patch=PATCH), prediction)

        def stated(work: Callable[..., Tensor], prediction: Tensor = prediction) -> object:
            return torch.autograd.grad(work(prediction, frames, masked, patch=PATCH), prediction)

        yield from contenders(reference.pixel_loss, stated, seam, device, common)


def attention_cases(batch: int, device: torch.device) -> Iterator[Measurement]:
    """The encoder of stage 1, the decoder, the encoder of stage 2, and on a GPU that of the huge model."""
    on_gpu = device.type == "cuda"
    huge = ((1568, 16, 80),) if on_gpu else ()
    for tokens, heads, width in ((157, 12, 64), (1568, 16, 24), (1568, 12, 64), *huge):
        for dtype in (torch.bfloat16, torch.float16) if on_gpu else (torch.float32,):
            qkv = torch.randn(batch, tokens, 3 * heads * width, device=device).to(dtype).requires_grad_()
            gradient = torch.randn(batch, tokens, heads * width, device=device).to(dtype)
            works: dict[str, Callable[[Tensor], Tensor]] = {
                "reference": lambda x, heads=heads: reference.attention(x, heads),
                "seam": lambda x, heads=heads: attention(x, heads),
            }
            for form in CANDIDATES if on_gpu else ():
                if form != "triton" or choice.LOADED:
                    works[form] = lambda x, heads=heads, form=form: attend(x, heads, form)
            products = 4 * batch * tokens**2 * heads * width
            common = {"kernel": "attention", "shape": f"{batch} x {tokens} x {heads} x {width}", "dtype": dtype}
            for name, work in works.items():
                both = lambda work=work, qkv=qkv, gradient=gradient: torch.autograd.grad(work(qkv), qkv, gradient)  # noqa: E731
                alone = lambda work=work, qkv=qkv: work(qkv.detach())  # noqa: E731
                yield Measurement(implementation=name, direction="forward", run=alone, flops=products, **common)
                yield Measurement(
                    implementation=name, direction="forward+backward", run=both, flops=3.5 * products, **common
                )


CASES = {"patchify": patchify_cases, "pixel_loss": pixel_loss_cases, "attention": attention_cases}


def row_of(case: Measurement, took: list[float], ceiling: float) -> rows.Row:
    """The fields of a row."""
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


def measure(config: BenchmarkConfig, device: torch.device) -> list[rows.Row]:
    """A row for everything that can run; what cannot is said."""
    bandwidth, peaks = copy_bandwidth(device), {}
    on_gpu = device.type == "cuda"
    batch, repeats = config.batch or (64 if on_gpu else 1), config.repeats or (50 if on_gpu else 5)
    print(f"copy {bandwidth / 1e9:.1f} GB/s", flush=True)
    made = []
    for kernel in config.kernel:
        for case in CASES[kernel](batch, device):
            if case.flops and case.dtype not in peaks:
                peaks[case.dtype] = measured_peak_flops(device, case.dtype)
                print(f"matrix product in {case.dtype} {peaks[case.dtype] / 1e12:.2f} TFLOP/s", flush=True)
            try:
                took = seconds(case.run, device, repeats)
            except RuntimeError as error:  # a back end that does not take the shape, or the reference out of memory
                print(f"{kernel} {case.implementation} {case.shape}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            made.append(row_of(case, took, peaks[case.dtype] if case.flops else bandwidth))
    return made


def main(argv: list[str]) -> int:
    """The command."""
    config = parse(BenchmarkConfig, argv, prog="kernel_speed")
    made = measure(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rows.report(
        made,
        benchmark="kernel_speed",
        json=config.json,
        compare=config.compare,
        plot=config.plot,
        measure="microseconds",
    )
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="kernel_speed"))
