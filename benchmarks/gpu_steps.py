"""Run the compute items of gpu_day.py: kernels, attention, training steps and their profile.

Day  ->  Parts, each of which yields Figures. With `day.tiny` the same code runs with small shapes on a CPU.
"""

import json
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from benchmarks import kernel_speed, step_worker
from benchmarks.day import Day, Figure, Part
from benchmarks.training import Phase, made_batch, make_trainer, run_config
from ppma.config.run import Compile, Precision, RunConfig
from ppma.kernels import choice, reference
from ppma.kernels.attention_choice import TWO_PASS_PLAN, Backend, Plan, attend
from ppma.kernels.erase import erase_
from ppma.kernels.gelu import linear_gelu
from ppma.kernels.patchify import patchify
from ppma.kernels.pixel_loss import pixel_loss
from ppma.kernels.timing import synchronize
from ppma.models.flops import measured_peak_flops
from ppma.training.trainer import Trainer

ERRORS = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest relative error of a kernel by type: some units in the last place, 2^-8 and 2^-11, in norm."""
LOSS_ERROR = 1e-2
"""Largest relative difference of losses in bfloat16 and float32, and of those compiled and not."""


def device_of(day: Day) -> torch.device:
    """Return the device that the day measures on."""
    return torch.device("cuda", 0) if day.device == "cuda" else torch.device("cpu")


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak rate of matrix products, measured once per process."""
    return measured_peak_flops(device, dtype)


def on_h200(**bounds: float) -> dict[str, float]:
    """Return the bounds on an H200, for which they were set, and none elsewhere."""
    return bounds if torch.cuda.is_available() and "H200" in torch.cuda.get_device_name() else {}


# ---------------------------------------------------------------------------------------------------------- environment


def environment(day: Day) -> Iterator[Part]:
    """Measure the card and the two ceilings that everything is compared with."""
    yield Part(what="card", measure=card, gpu_only="it is about the card")
    yield Part(what="ceilings", measure=partial(ceilings, device_of(day)))


def card() -> Iterator[Figure]:
    """Report the card as nvidia-smi and PyTorch describe it."""
    found = torch.cuda.get_device_properties(0)
    asked = "driver_version,power.limit,clocks.max.sm,clocks.max.mem"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    note = f"{found.name}; {said.stdout.strip()}"
    yield Figure(what="memory", value=found.total_memory / 2**30, unit="GiB", note=note)
    capability = float(f"{found.major}.{found.minor}")
    yield Figure(what="compute capability", value=capability, unit="", note=f"{found.multi_processor_count} SMs")


def ceilings(device: torch.device) -> Iterator[Figure]:
    """Measure a large copy and large matrix products."""
    yield Figure(what="copy", value=kernel_speed.copy_bandwidth(device) / 1e9, unit="GB/s")
    for dtype in (torch.bfloat16, torch.float16) if device.type == "cuda" else (torch.float32,):
        name = str(dtype).removeprefix("torch.")
        yield Figure(what=f"{name} products", value=peak_flops(device, dtype) / 1e12, unit="TFLOP/s")


# -------------------------------------------------------------------------------------------------------------- kernels


def error_figure(what: str, dtype: torch.dtype, ours: Tensor, exact: Tensor, note: str) -> Figure:
    """Return the norm of the difference over the norm of the exact values, with the bound of the type."""
    ours, exact = ours.detach().double(), exact.detach()
    error = ((ours - exact).norm() / exact.norm()).item()
    return Figure(what=f"{what} {dtype}", value=error, unit="of the norm", most=ERRORS[dtype], note=note)


def poison(like: Tensor) -> None:
    """Fill memory of this size with NaN and free it, so that the next tensor likely exposes what a kernel leaves
    unwritten."""
    torch.full_like(like, float("nan"))


def kernels(day: Day) -> Iterator[Part]:
    """Measure relative errors in bfloat16 and float16, forward and gradients, on random inputs of the paper's
    shapes."""
    device = device_of(day)
    with_triton = choice.LOADED and (device.type == "cuda" or choice.INTERPRETED)
    ours: choice.Implementation = "triton" if with_triton else "torch"
    shapes = ((9, 1, 24),) if day.tiny else ((157, 12, 64), (1568, 16, 24), (1568, 12, 64))
    for dtype in list(ERRORS)[: 1 if day.tiny else None]:
        name = str(dtype).removeprefix("torch.")
        yield Part(what=f"patchify {name}", measure=partial(patchify_error, day, dtype, ours))
        yield Part(what=f"pixel_loss {name}", measure=partial(pixel_loss_error, day, dtype, ours))
        yield Part(what=f"erase {name}", measure=partial(erase_error, device, dtype, ours))
        yield Part(what=f"gelu {name}", measure=partial(gelu_error, day, dtype, ours))
        for shape in shapes:
            backend: Backend = "triton" if with_triton else "pytorch"
            for plan in backward_plans(shape[2], dtype) if with_triton else (TWO_PASS_PLAN,):
                work = partial(attention_error, device, dtype, shape, backend, plan)
                yield Part(what=f"{named(plan)} {name} {shape}", measure=work)


def some_clips(day: Day) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames, visible and masked indices."""
    if not day.tiny:
        return kernel_speed.clips(4, device_of(day))
    frames = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8, device=device_of(day))
    order = torch.rand(2, 4, device=frames.device).argsort(dim=1)
    return frames, order[:, :1], order[:, 1:]


def patchify_error(day: Day, dtype: torch.dtype, implementation: choice.Implementation) -> Iterator[Figure]:
    """Compare the values of some patches, and of all."""
    frames, visible, _ = some_clips(day)
    for what, idx in (("visible", visible), ("all", None)):
        exact = reference.patchify(frames, idx, **kernel_speed.COLORS, dtype=torch.float64)
        poison(exact.to(dtype))
        with choice.use(implementation):
            ours = patchify(frames, idx, **kernel_speed.COLORS, dtype=dtype)
        yield error_figure(f"patchify {what}", dtype, ours, exact, implementation)


def pixel_loss_error(day: Day, dtype: torch.dtype, implementation: choice.Implementation) -> Iterator[Figure]:
    """Compare the loss and the gradient of the prediction."""
    frames, _, masked = some_clips(day)
    prediction = torch.randn(*masked.shape, 1536, device=frames.device).to(dtype)
    given, exact = prediction.clone().requires_grad_(), prediction.double().requires_grad_()
    stated = reference.pixel_loss(exact, frames, masked, patch=kernel_speed.PATCH)
    poison(prediction)
    with choice.use(implementation):
        loss = pixel_loss(given, frames, masked, patch=kernel_speed.PATCH)
        (gradient,) = torch.autograd.grad(loss, given)
    (exact_gradient,) = torch.autograd.grad(stated, exact)
    yield error_figure("pixel_loss loss", dtype, loss, stated, implementation)
    yield error_figure("pixel_loss gradient", dtype, gradient, exact_gradient, implementation)


def erase_error(device: torch.device, dtype: torch.dtype, implementation: choice.Implementation) -> Iterator[Figure]:
    """Compare patches with a box of noise, which is the same in every type up to rounding."""
    grid, patch = (2, 4, 4), (2, 16, 16)
    patches = torch.randn(4, 32, 1536, device=device).to(dtype)
    key, box = torch.arange(4, device=device), torch.tensor([[5, 9, 30, 20]], device=device).expand(4, -1).contiguous()
    exact = erase_(patches.double(), box, key, grid=grid, patch=patch)
    with choice.use(implementation):
        ours = erase_(patches.clone(), box, key, grid=grid, patch=patch)
    yield error_figure("erase", dtype, ours, exact, implementation)


def gelu_error(day: Day, dtype: torch.dtype, implementation: choice.Implementation) -> Iterator[Figure]:
    """Compare the output of a linear layer with its GELU, and the gradients of its input and its bias."""
    rows, hidden = (40, 300) if day.tiny else (4 * 1568, 1536)
    sizes = ((rows, 24), (hidden, 24), (hidden,), (rows, hidden))
    *given, gradient = (torch.randn(size, device=device_of(day)).to(dtype) for size in sizes)
    ours, exact = ([t.to(to, copy=True).requires_grad_() for t in given] for to in (dtype, torch.float64))
    stated = F.gelu(F.linear(*exact))
    with choice.use(implementation):
        out = linear_gelu(*ours)
        found = torch.autograd.grad(out, ours, gradient)
    right = torch.autograd.grad(stated, exact, gradient.double())
    pairs = {"output": (out, stated), "input": (found[0], right[0]), "bias": (found[2], right[2])}
    for what, (mine, other) in pairs.items():
        yield error_figure(f"gelu {what}", dtype, mine, other, implementation)


def backward_plans(width: int, dtype: torch.dtype) -> list[Plan]:
    """Return the plans that differ in the backward pass: two passes, then each fused config."""
    from ppma.kernels.attention_triton import configs

    return [TWO_PASS_PLAN, *((0, 0, 0, fused) for fused in range(len(configs("fused_gradient", width, dtype)) - 1))]


def named(plan: Plan) -> str:
    """Return "attention", and which config of the fused backward pass."""
    return "attention" if plan == TWO_PASS_PLAN else f"attention fused {plan[3]}"


def attention_error(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], backend: Backend, plan: Plan
) -> Iterator[Figure]:
    """Compare the output and the gradient of the packed projection."""
    tokens, heads, width = shape
    qkv = torch.randn(2, tokens, 3 * heads * width, device=device).to(dtype)
    gradient = torch.randn(2, tokens, heads * width, device=device).to(dtype)
    given, exact = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    stated = reference.attention(exact, heads)
    (right,) = torch.autograd.grad(stated, exact, gradient.double())
    poison(qkv)
    out = attend(given, heads, backend, plan)
    (ours,) = torch.autograd.grad(out, given, gradient)
    for what, found, expected in (("output", out, stated), ("gradient", ours, right)):
        yield error_figure(f"{named(plan)} {what} {shape}", dtype, found, expected, backend)


# -------------------------------------------------------------------------------------------------------- compiled step


def config_of(day: Day, phase: Phase, batch: int, **changes: Any) -> RunConfig:
    """Return the paper's config at this batch size, or a tiny one in a rehearsal."""
    if not day.tiny:
        return run_config(phase, model="base", batch=batch, **changes)
    config = run_config(phase, model="tiny", batch=max(4, batch // 32), size=32, frames=4, **changes)
    vit = replace(config.vit, width=48, depth=2, heads=3)
    return replace(config, vit=vit, mae=replace(config.mae, decoder_width=32, decoder_depth=1, decoder_heads=2))


def losses(trainer: Trainer, config: RunConfig, steps: int) -> list[float]:
    """Return the loss of each of the first steps on one batch."""
    batch, found = made_batch(config, trainer.ranks.device), []
    for _ in range(steps):
        before = trainer.loss_sum.item()
        trainer.train_step(batch)
        found.append(trainer.loss_sum.item() - before)
    return found


def compiled_step(day: Day) -> Iterator[Part]:
    """Measure both stages: seconds to the first step, and the losses of four steps compiled, eager, and (the first) on
    the CPU."""
    phases: tuple[tuple[Phase, int], ...] = (("mae", 128), ("align", 64))
    for phase, batch in phases:
        yield Part(what=f"{phase} starts", measure=partial(start, day, config_of(day, phase, batch)))
        yield Part(what=f"{phase} on the CPU", measure=partial(against_cpu, day, config_of(day, phase, 4)))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference; NaN if any loss is NaN."""
    found = torch.tensor(ours, dtype=torch.float64) / torch.tensor(theirs, dtype=torch.float64) - 1
    return found.abs().max().item()


def start(day: Day, config: RunConfig) -> Iterator[Figure]:
    """Compare the first four steps of a compiled run with eager ones."""
    began = time.perf_counter()
    compiled = make_trainer(config, device_of(day))
    first = losses(compiled, config, 1)
    name = f"{config.phase} B{config.batch}"
    yield Figure(what=f"{name} first step", value=time.perf_counter() - began, unit="s", note=f"loss {first[0]:.4f}")
    found = first + losses(compiled, config, 3)
    del compiled
    eager = losses(make_trainer(config, device_of(day), compile="off"), config, 4)
    note = f"{found[-1]:.5f}, eager {eager[-1]:.5f}"
    error = difference(found, eager)
    yield Figure(what=f"{name} compiled / eager - 1", value=error, unit="of the loss", most=LOSS_ERROR, note=note)


def against_cpu(day: Day, config: RunConfig) -> Iterator[Figure]:
    """Compare the first loss in bfloat16 on the GPU with float32 on the CPU."""
    ours = losses(make_trainer(config, device_of(day), compile="off"), config, 1)
    cpu = torch.device("cpu")
    theirs = losses(make_trainer(config, cpu, compile="off", precision="fp32"), config, 1)
    name, error = f"{config.phase} B{config.batch} GPU / CPU - 1", difference(ours, theirs)
    note = f"{ours[0]:.5f}, CPU {theirs[0]:.5f}"
    yield Figure(what=name, value=error, unit="of the loss", most=LOSS_ERROR, note=note)


# ------------------------------------------------------------------------------------------------------------ attention


def attention(day: Day) -> Iterator[Part]:
    """Measure every backend at the three shapes of the paper, and whether `attention` takes the fastest."""
    shapes = ((20, 2, 24),) if day.tiny else kernel_speed.ATTENTION_SHAPES[:3]
    for shape in shapes:
        yield Part(what=f"attention {shape}", measure=partial(attention_times, day, *shape))


def attention_times(day: Day, tokens: int, heads: int, width: int) -> Iterator[Figure]:
    """Measure the forward and backward pass of each backend."""
    device = device_of(day)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch = 2 if day.tiny else 128
    took: dict[str, float] = {}
    for case in kernel_speed.attention_shape(batch, tokens, heads, width, dtype, device):
        # On a GPU the scores of the reference take gigabytes.
        if case.direction == "forward" or (case.implementation == "reference" and device.type == "cuda"):
            continue
        what, times = f"{case.shape} {case.implementation}", kernel_speed.seconds(case, device, 10)
        if times is None:
            yield Figure(what=what, value=None, unit="ms", note="cannot run here; log.txt says why")
            continue
        took[case.implementation] = statistics.median(times)
        rate = case.flops / took[case.implementation] / 1e12
        yield Figure(what=what, value=1e3 * took[case.implementation], unit="ms", note=f"{rate:.1f} TFLOP/s")
    seam = took.pop("seam")
    if took:
        what = f"{tokens} x {heads} x {width} seam / best"
        yield Figure(what=what, value=seam / min(took.values()), unit="", most=1.05)


# -------------------------------------------------------------------------------------------------------- training steps


def rate_of(step: Callable[[], object], batch: int, device: torch.device, steps: int) -> tuple[float, float]:
    """Return (clips/s, peak GiB) of a step: on a GPU the median of three measurements of `steps` steps each."""
    rounds = 3 if device.type == "cuda" else 1
    for _ in range(rounds):
        step()
    times = [step_worker.timed(step, device, steps)["ms"] for _ in range(rounds)]
    return 1000 * batch / statistics.median(times), step_worker.peak_mb(device) / 1024


def step_figures(
    day: Day, name: str, config: RunConfig, compile: Compile = "auto", precision: Precision = "auto", **must: float
) -> Iterator[Figure]:
    """Measure clips/s, memory and utilization of our step."""
    device = device_of(day)
    trainer = make_trainer(config, device, compile=compile, precision=precision)
    batch = made_batch(config, device)
    rate, memory = rate_of(lambda: trainer.train_step(batch), config.batch, device, 1 if day.tiny else 30)
    used = rate / config.batch * trainer.task.step_flops / peak_flops(device, trainer.compute.autocast_dtype)
    loss = (trainer.loss_sum / trainer.loss_steps).item()  # nan: every step was skipped
    note = f"{memory:.1f} GiB, MFU {used:.1%}, loss {loss:.4f}"
    yield Figure(what=name, value=rate, unit="clips/s", note=note, **must)
    if loss != loss:
        raise FloatingPointError(f"{name}: the loss is not a number")


def published_figures(day: Day, config: RunConfig) -> Iterator[Figure]:
    """Measure the published step in fp16, and how much faster ours is at the same batch."""
    device = device_of(day)
    setting, name = step_worker.Setting(config, device), f"{config.phase} B{config.batch}"
    rates = {}
    for implementation in ("ours", "published_fp16" if device.type == "cuda" else "published"):
        step, _ = step_worker.build(setting, implementation)
        rates[implementation], memory = rate_of(step, config.batch, device, 1 if day.tiny else 10)
        what, note = f"{name} {implementation}", f"{memory:.1f} GiB so far"
        yield Figure(what=what, value=rates[implementation], unit="clips/s", note=note)
    ours, published = rates.values()
    yield Figure(what=f"{name} ours / published", value=ours / published, unit="")


def with_share(config: RunConfig, share: float) -> RunConfig:
    """Return the config with this mae.decoder_share."""
    return replace(config, mae=replace(config.mae, decoder_share=share))


def stage1(day: Day) -> Iterator[Part]:
    """Measure B 128, which has bounds; then half of the decoder, B 64 and 256, and the published step."""
    whole = config_of(day, "mae", 128)
    yield Part(what="B128", measure=partial(step_figures, day, "mae B128", whole, **on_h200(least=1400, goal=2170)))
    half = with_share(whole, 0.5)
    measure = partial(step_figures, day, "mae B128 decoder_share 0.5", half, **on_h200(goal=2650))
    yield Part(what="B128 decoder_share 0.5", measure=measure)
    yield Part(what="published", measure=partial(published_figures, day, config_of(day, "mae", 64)))
    yield Part(what="B256", measure=partial(step_figures, day, "mae B256", config_of(day, "mae", 256)))
    narrow = replace(whole, vit=replace(whole.vit, residual="autocast"))
    yield Part(what="residual autocast", measure=partial(step_figures, day, "mae B128 residual autocast", narrow))


def stage2(day: Day) -> Iterator[Part]:
    """Measure B 64, which has bounds; B 64 with mixing, erasing and drop path; and B 16 against the published step."""
    plain = config_of(day, "align", 64)
    yield Part(what="B64", measure=partial(step_figures, day, "align B64", plain, **on_h200(least=390, goal=440)))
    recipe = config_of(day, "align", 64, as_recipe=True)
    yield Part(what="B64 as the recipe", measure=partial(step_figures, day, "align B64 as the recipe", recipe))
    yield Part(what="published", measure=partial(published_figures, day, config_of(day, "align", 16)))


def graphs_fp16(day: Day) -> Iterator[Part]:
    """Measure stage 1 with CUDA graphs, which must not change the loss, and in fp16, against the default step."""
    whole, on_gpu = config_of(day, "mae", 128), day.device == "cuda"
    graphs: Compile = "graphs" if on_gpu else "off"
    fp16: Precision = "fp16" if on_gpu else "bf16"
    yield Part(what="as a run is", measure=partial(step_figures, day, "mae B128 as a run is", whole))
    yield Part(what="CUDA graphs", measure=partial(step_figures, day, "mae B128 graphs", whole, graphs))
    yield Part(what="losses with CUDA graphs", measure=partial(graph_losses, day, whole, graphs))
    yield Part(what="fp16", measure=partial(step_figures, day, "mae B128 fp16", whole, "auto", fp16))


def graph_losses(day: Day, config: RunConfig, mode: Compile) -> Iterator[Figure]:
    """Compare the losses of twelve steps with and without CUDA graphs."""
    steps = 2 if day.tiny else 12
    ours = losses(make_trainer(config, device_of(day), compile=mode), config, steps)
    theirs = losses(make_trainer(config, device_of(day)), config, steps)
    error = difference(ours, theirs)
    yield Figure(what="loss with / without graphs - 1", value=error, unit="of the loss", most=LOSS_ERROR)


# -------------------------------------------------------------------------------------------- bytes moved, and the profile


def memory_bound(day: Day) -> Iterator[Part]:
    """Measure the bandwidth of patchify and pixel_loss, over the bytes they must move, against a copy."""
    device = device_of(day)
    ceiling = kernel_speed.copy_bandwidth(device)
    for kernel in ("patchify", "pixel_loss"):
        yield Part(what=kernel, measure=partial(moved, kernel, device, ceiling, *((1, 1) if day.tiny else (128, 20))))


def moved(
    kernel: kernel_speed.Kernel, device: torch.device, ceiling: float, batch: int, repeats: int
) -> Iterator[Figure]:
    """Measure every implementation in bfloat16."""
    for case in kernel_speed.CASES[kernel](batch, device):
        if case.dtype != torch.bfloat16:
            continue
        what, times = f"{kernel} {case.shape} {case.implementation}", kernel_speed.seconds(case, device, repeats)
        if times is None:
            yield Figure(what=what, value=None, unit="GB/s", note="cannot run here; log.txt says why")
            continue
        rate = case.bytes_moved / statistics.median(times)
        must = {"goal": 0.8} if case.implementation == "triton" else {}
        note = f"{rate / 1e9:.0f} GB/s, {1e3 * statistics.median(times):.3f} ms"
        yield Figure(what=what, value=rate / ceiling, unit="of the copy", note=note, **must)


CLASSES = (
    ("own attention", ("forward_kernel", "query_gradient", "key_value_gradient", "fused_gradient", "ppma::attention")),
    ("own, bound by memory", ("patchify", "pixel_loss", "erase_kernel", "gelu_gradient", "ppma::gelu")),
    ("library attention", ("flash", "fmha", "cudnn", "sdpa", "attention")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "cublas", "splitk", "aten::mm", "aten::addmm", "aten::bmm")),
    ("optimizer", ("multi_tensor", "adam")),
    ("inductor", ("triton_",)),
    ("copies", ("memcpy", "memset", "copy_")),
)
"""(class, substrings of kernel names); a kernel belongs to the first class that matches."""
BUDGETED = {
    "attention": "own attention",
    "products": "matrix products",
    "elementwise": "inductor",
    "AdamW": "optimizer",
    "patchify": "own, bound by memory",
    "pixel loss": "own, bound by memory",
    "GELU gradient": "own, bound by memory",
    "between launches": "between launches",
}
"""The part of `time_budget` before its comma, and the kernel class it estimates."""


def class_of(name: str) -> str:
    """Return the class of a kernel."""
    low = name.lower()
    return next((kind for kind, marks in CLASSES if any(mark in low for mark in marks)), "other")


def profile(day: Day) -> Iterator[Part]:
    """Measure a stage 1 step by kernel class; every kernel is in profile.json."""
    yield Part(what="stage 1", measure=partial(profiled, day, config_of(day, "mae", 128)))
    if not day.tiny:  # the budget is of the full step, and compiles attention for its instructions
        from benchmarks import time_budget  # needs Triton, which a rehearsal does without

        yield Part(what="stage 1", measure=lambda: budgeted(time_budget.budget(128)))


def profiled(day: Day, config: RunConfig, steps: int = 3) -> Iterator[Figure]:
    """Trace some steps and sum their kernels by class."""
    device = device_of(day)
    trainer, batch = make_trainer(config, device), made_batch(config, device)
    for _ in range(3):
        trainer.train_step(batch)
    synchronize(device)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with record(activities=[activity]) as trace:
        for _ in range(steps):
            trainer.train_step(batch)
        synchronize(device)
    found = [
        {"name": e.key, "class": class_of(e.key), "calls": e.count / steps, "ms": own_ms(e, device) / steps}
        for e in trace.key_averages()
    ]
    found = sorted((kernel for kernel in found if kernel["ms"] > 0), key=lambda kernel: -kernel["ms"])
    (day.out / "profile.json").write_text(json.dumps(found, indent=1) + "\n")
    yield from by_class(found)


def own_ms(event: Any, device: torch.device) -> float:
    """Return the milliseconds of a kernel; on a CPU, of an operator without its callees."""
    return (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e3


def by_class(found: Iterable[dict[str, Any]]) -> Iterator[Figure]:
    """Report the milliseconds per step of each class, and of all."""
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for kernel in found:
        total[kernel["class"]] += kernel["ms"]
        calls[kernel["class"]] += kernel["calls"]
    for kind, ms in total.most_common():
        yield Figure(what=kind, value=ms, unit="ms per step", note=f"{calls[kind]:.0f} launches")
    note = f"{sum(calls.values()):.0f} launches"
    yield Figure(what="all kernels", value=sum(total.values()), unit="ms per step", note=note)


def budgeted(parts: Iterable[Any]) -> Iterator[Figure]:
    """Report the estimated milliseconds per step of each class, and of all, from the parts of `time_budget`."""
    total: Counter[str] = Counter()
    for part in parts:
        total[BUDGETED[part.name.split(",")[0]]] += part.estimate_ms
    for kind, ms in total.most_common():
        yield Figure(what=f"budget: {kind}", value=ms, unit="ms per step")
    yield Figure(what="budget: all", value=sum(total.values()), unit="ms per step")
