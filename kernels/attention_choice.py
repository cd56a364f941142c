"""Measure which attention backend is the fastest for a shape on this GPU, and remember it on disk.

    (batch, tokens, heads, head width, type, device)  ->  backend, and for our kernel the config of each of its parts

Each backend and each config of our kernel is timed as a CUDA graph of a forward and a backward pass over rotating
inputs (`timing`). Choices are kept in ~/.cache/ppma/attention.json (XDG_CACHE_HOME moves it) by GPU and by version of
torch and triton, so another card or release measures again. Choices and times are logged.

| backend | kernel |
|---|---|
| pytorch | the one that scaled_dot_product_attention selects |
| cudnn, flash, efficient | cuDNN, FlashAttention 2 and memory-efficient attention in PyTorch |
| flash3, flash4 | FlashAttention 3 and 4, if the package flash-attn-3 or flash-attn-4 is installed |
| triton | our kernel for packed projections, 16-bit types and head widths up to 128 |
"""

import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppma.kernels import attention_flash, choice, timing

if choice.LOADED:
    from ppma.kernels import attention_triton

log = logging.getLogger(__name__)

Backend = Literal["pytorch", "cudnn", "flash", "efficient", "flash3", "flash4", "triton"]
CANDIDATES: tuple[Backend, ...] = ("cudnn", "flash", "efficient", "flash3", "flash4", "triton")
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PARTS = ("forward", "query_gradient", "key_value_gradient", "fused_gradient")
"""The kernels of our implementation, in the order of a plan. The last replaces the two before it, unless its config is
`attention_triton.TWO_PASSES`."""
Plan = tuple[int, ...]
"""Index into `attention_triton.configs` for each of PARTS."""
FIRST_PLAN: Plan = (0, 0, 0, 0)
TWO_PASS_PLAN: Plan = (0, 0, 0, -1)
"""FIRST_PLAN without the fused kernel, whose last config is TWO_PASSES."""
REPEATS = 10


class Shape(NamedTuple):
    """The problem size, type and device that a choice depends on."""

    batch: int
    tokens: int
    heads: int
    head_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def name(self) -> str:
        """The key of this shape in the cache."""
        return f"B{self.batch} N{self.tokens} H{self.heads} D{self.head_width} {str(self.dtype).removeprefix('torch.')}"


Choice = tuple[Backend, Plan]
"""(backend, plan of our kernel). A plain tuple, because torch 2.11 cannot trace the unpacking of a NamedTuple."""

_chosen: dict[str, Choice] = {}
"""Choices made or read in this process."""


def attend(
    qkv_BNC3: Tensor, heads: int, backend: Backend, plan: Plan = FIRST_PLAN, bias_C3: Tensor | None = None
) -> Tensor:
    """Compute attention with one backend.

    Args:
        qkv_BNC3: Packed projection.
        heads: Number of heads.
        backend: Backend to run.
        plan: Configs of our kernel; ignored by other backends.
        bias_C3: Bias whose gradient our kernel sums, see `attention_triton`; ignored by other backends.

    Returns:
        out_BNC.

    Raises:
        RuntimeError: The backend cannot run on these tensors.
    """
    B, N, C3 = qkv_BNC3.shape
    if backend == "triton":
        shape = Shape(B, N, heads, C3 // (3 * heads), qkv_BNC3.dtype, qkv_BNC3.device)
        if not supports_triton(shape):
            raise RuntimeError(f"our attention kernel does not run {shape.name} on a {qkv_BNC3.device.type} device")
        return attention_triton.attention_triton(qkv_BNC3, bias_C3, heads, plan)[0]
    if backend in ("flash3", "flash4"):
        return attention_flash.flash_attention(qkv_BNC3, heads, backend)[0]
    q, k, v = qkv_BNC3.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    if backend == "pytorch":
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        with sdpa_kernel(BACKENDS[backend]):
            out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(B, N, C3 // 3)


def supports_triton(shape: Shape) -> bool:
    """True if our kernel supports the shape. Not float32 on a GPU: it has no tensor cores for it and would spill."""
    sixteen_bits = shape.dtype in (torch.float16, torch.bfloat16)
    return choice.LOADED and shape.head_width <= 128 and (sixteen_bits or shape.device.type != "cuda")


def candidates(shape: Shape) -> list[Backend]:
    """Return the backends worth measuring."""
    sixteen_bits = shape.dtype in (torch.float16, torch.bfloat16)
    available = {name: sixteen_bits and attention_flash.installed(name) for name in attention_flash.IMPLEMENTATIONS}
    available["triton"] = supports_triton(shape)
    return [backend for backend in CANDIDATES if available.get(backend, True)]


def can_measure() -> bool:
    """True if there is a GPU to measure on."""
    return torch.cuda.is_available()


def machine_name(device: torch.device) -> str:
    """Return the GPU and the versions of torch and triton, the top-level key of the cache."""
    versions = [f"torch {torch.__version__}"]
    if choice.INSTALLED:
        versions.append(f"triton {metadata.version('triton')}")
    return ", ".join([torch.cuda.get_device_name(device), *versions])


def cache_file() -> Path:
    """Return the file that keeps choices between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppma" / "attention.json"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    shapes_by_machine = known.items() if isinstance(known, dict) else ()
    return {machine: shapes for machine, shapes in shapes_by_machine if isinstance(shapes, dict)}


def read_cache(file: Path, machine: str, shape: Shape) -> Choice | None:
    """Return the cached choice for a shape; None if there is none, it is damaged, or it cannot run any more."""
    kept = _read_json(file).get(machine, {}).get(shape.name)
    if not isinstance(kept, dict) or kept.get("backend") not in candidates(shape):
        return None
    if kept["backend"] != "triton":
        return kept["backend"], FIRST_PLAN
    offered = [attention_triton.configs(part, shape.head_width, shape.dtype) for part in PARTS]
    try:
        configs = [attention_triton.Config(*config) for config in kept["configs"]]
        return "triton", tuple(known.index(config) for known, config in zip(offered, configs, strict=True))
    except (KeyError, TypeError, ValueError):  # written by a version with other configs
        return None


def write_cache(file: Path, machine: str, shape: Shape, chosen: Choice) -> None:
    """Write a choice to the cache atomically; if that fails, the next run measures again."""
    backend, plan = chosen
    entry: dict[str, Any] = {"backend": backend}
    if backend == "triton":
        offered = [attention_triton.configs(part, shape.head_width, shape.dtype) for part in PARTS]
        entry["configs"] = [known[index] for known, index in zip(offered, plan, strict=True)]
    known = _read_json(file)
    known.setdefault(machine, {})[shape.name] = entry
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
            json.dump(known, new, indent=1, sort_keys=True)
        Path(new.name).replace(file)
    except OSError as error:
        log.warning("attention: cannot cache the choice: %s", error)


def median_ms(what: str, shape: Shape, work: Callable[..., object], sets: Sequence[Any]) -> float | None:
    """Return the median milliseconds of `work(*inputs)` over the input sets; None if it cannot run, which is logged."""

    def call(inputs: Any) -> None:  # returns nothing, so the next call may reuse the memory of the outputs
        work(*inputs)

    try:
        return 1000 * statistics.median(timing.seconds_per_call(call, sets, shape.device, REPEATS))
    except timing.cannot_run() as error:  # "no available kernel", or more shared memory than this GPU has
        log.info("attention: %s cannot run %s: %s", what, shape.name, str(error).splitlines()[0])
        return None


def input_sets(shape: Shape) -> list[tuple[Tensor, Tensor]]:
    """Return enough sets of (qkv_BNC3, gradient_BNC) to exceed the L2 cache."""
    B, N, C = shape.batch, shape.tokens, shape.heads * shape.head_width

    def random(width: int) -> Tensor:
        return torch.randn(B, N, width, dtype=shape.dtype, device=shape.device)

    count = timing.sets_needed(4 * B * N * C * shape.dtype.itemsize, shape.device)
    return [(random(3 * C).requires_grad_(), random(C)) for _ in range(count)]


def milliseconds(shape: Shape, backend: Backend, plan: Plan = FIRST_PLAN) -> float | None:
    """Return the milliseconds of a forward and a backward pass; None if the backend cannot run the shape."""

    def both(qkv_BNC3: Tensor, gradient_BNC: Tensor) -> None:
        torch.autograd.grad(attend(qkv_BNC3, shape.heads, backend, plan), qkv_BNC3, gradient_BNC)

    return median_ms(backend, shape, both, input_sets(shape))


def agree(plan: Sequence[int], other: Sequence[int], inputs: Sequence[Tensor], heads: int) -> bool:
    """True if two plans give the same gradient within 1 % of its norm, so that a kernel with a race is never chosen.

    Args:
        plan: Config of each of PARTS.
        other: Another plan.
        inputs: qkv_BNC3, the gradient of the output, the output and lse.
        heads: Number of heads.
    """
    qkv_BNC3, gradient_BNC, *kept = inputs
    first, second = (
        attention_triton.attention_backward_triton(gradient_BNC, qkv_BNC3, *kept, heads, tried)[0].float()
        for tried in (plan, other)
    )
    if (first - second).norm() <= 1e-2 * first.norm():
        return True
    log.warning("attention: the gradients of plans %s and %s differ; not using %s", plan, other, other)
    return False


def fastest_plan(shape: Shape) -> Plan | None:
    """Return the fastest config of each part of our kernel, measured in order; None if no config of a part runs."""
    sets: list[Any] = [(qkv.detach(), gradient) for qkv, gradient in input_sets(shape)]
    plan = list(TWO_PASS_PLAN)
    for place, part in enumerate(PARTS):
        times: dict[int, float] = {}
        for index, config in enumerate(attention_triton.configs(part, shape.head_width, shape.dtype)):
            tried = [*plan[:place], index, *plan[place + 1 :]]

            def work(qkv_BNC3: Tensor, gradient_BNC: Tensor, *kept: Tensor, tried: Sequence[int] = tried) -> None:
                if kept:
                    attention_triton.attention_backward_triton(gradient_BNC, qkv_BNC3, *kept, shape.heads, tried)
                else:
                    attention_triton.attention_triton(qkv_BNC3, None, shape.heads, tried)

            took = median_ms(f"{part} {tuple(config)}", shape, work, sets)
            if took is not None and (part != "fused_gradient" or agree(plan, tried, sets[0], shape.heads)):
                times[index] = took
        if not times:
            return None
        plan[place] = min(times, key=times.__getitem__)
        if place == 0:
            sets = [(qkv, g, *attention_triton.attention_triton(qkv, None, shape.heads, plan)) for qkv, g in sets]
    return tuple(plan)


def measure(shape: Shape) -> Choice:
    """Time all candidates and return the fastest; "pytorch" if none can run."""
    plan, times = FIRST_PLAN, {}
    # The first call may come while dynamo traces, or inside inference_mode, which records no gradients.
    with torch.inference_mode(False), torch.enable_grad(), torch.utils._python_dispatch._disable_current_modes():
        for backend in candidates(shape):
            if backend == "triton":
                measured = fastest_plan(shape)
                if measured is None:
                    continue
                plan = measured
            times[backend] = milliseconds(shape, backend, plan)
    ran = {backend: took for backend, took in times.items() if took is not None}
    if not ran:
        log.warning("attention: no fused kernel runs %s; using PyTorch's own choice", shape.name)
        return "pytorch", FIRST_PLAN
    best = min(ran, key=ran.__getitem__)
    listed = ", ".join(f"{backend} {took:.3f} ms" for backend, took in sorted(ran.items(), key=lambda item: item[1]))
    log.info("attention: %s for %s, forward and backward: %s", best, shape.name, listed)
    return best, plan if best == "triton" else FIRST_PLAN


def fastest_backend(
    batch: int, tokens: int, heads: int, head_width: int, dtype: torch.dtype, device: torch.device
) -> Choice:
    """Return the choice for a shape on a GPU: from memory, from disk, or measured now.

    torch.compile calls this while it traces and treats the result as a constant. Without a GPU (when a step is compiled
    ahead of time) it is our kernel with its first configs, if that supports the shape.
    """
    shape = Shape(batch, tokens, heads, head_width, dtype, device)
    if not can_measure():
        return "triton" if supports_triton(shape) else "pytorch", FIRST_PLAN
    key = f"{device} {shape.name}"
    if key not in _chosen:
        file, machine = cache_file(), machine_name(device)
        kept = read_cache(file, machine, shape)
        if kept is not None:
            log.info("attention: %s for %s, measured earlier (%s)", kept[0], shape.name, file)
            _chosen[key] = kept
        else:
            _chosen[key] = measure(shape)
            if _chosen[key][0] != "pytorch":
                write_cache(file, machine, shape, _chosen[key])
    return _chosen[key]


# Same as torch.compiler.assume_constant_result, without its import of torch._dynamo (1.3 s).
fastest_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def explain(shape: Shape) -> tuple[Backend, str]:
    """Return the backend for a shape, and why; on a GPU this may measure."""
    if shape.device.type != "cuda":
        return "pytorch", f"scaled_dot_product_attention on a {shape.device.type} device, without the N x N scores"
    backend, _ = fastest_backend(*shape)
    return backend, f"the fastest of {', '.join(candidates(shape))} for {shape.name}; {cache_file()}"
