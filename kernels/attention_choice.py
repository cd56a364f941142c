"""Which form of attention is the fastest for a shape on this GPU: measured once, remembered on disk.

    (batch, tokens, heads, head width, type, device)  ->  "cudnn", "flash", "efficient" or "triton"

One measurement is a forward and a backward pass of each candidate, well under a second for a shape. The answers lie in
~/.cache/ppma/attention.json (XDG_CACHE_HOME moves it) under the names of the GPU and the versions of torch and triton:
another card or release measures anew. The choice and the times go to the log.
"""

import json
import logging
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ppma.kernels import choice

log = logging.getLogger(__name__)

Form = Literal["pytorch", "cudnn", "flash", "efficient", "triton"]
"""pytorch: whatever scaled_dot_product_attention takes by itself."""
CANDIDATES: tuple[Form, ...] = ("cudnn", "flash", "efficient", "triton")
REPEATS = 10

_chosen: dict[str, Form] = {}
"""Answers of this process."""


class Shape(NamedTuple):
    """What an answer depends on, in plain values."""

    batch: int
    tokens: int
    heads: int
    head_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def name(self) -> str:
        """Its key in the cache."""
        return f"B{self.batch} N{self.tokens} H{self.heads} D{self.head_width} {str(self.dtype).removeprefix('torch.')}"


def machine_name(device: torch.device) -> str:
    """GPU and versions, the upper key in the cache."""
    versions = [f"torch {torch.__version__}"]
    if choice.INSTALLED:
        versions.append(f"triton {metadata.version('triton')}")
    return ", ".join([torch.cuda.get_device_name(device), *versions])


def cache_file() -> Path:
    """Where answers are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppma" / "attention.json"


def read_cache(file: Path) -> dict[str, dict[str, Form]]:
    """{machine: {shape: form}}; empty where there is none, or a file that was cut off or holds other things."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {
        machine: {shape: form for shape, form in shapes.items() if form in CANDIDATES}
        for machine, shapes in known.items()
        if isinstance(shapes, dict)
    }


def remember(file: Path, machine: str, shape: str, form: Form) -> None:
    """Add an answer; the file is replaced whole, so that a reader never sees half of one. A full disk costs the memory only."""
    known = read_cache(file)
    known.setdefault(machine, {})[shape] = form
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
            json.dump(known, new, indent=1, sort_keys=True)
        Path(new.name).replace(file)
    except OSError as error:
        log.warning("attention: the choice is not kept, %s", error)


def milliseconds(shape: Shape, form: Form) -> float | None:
    """Median time of a forward and a backward pass; None where the form cannot run on this shape."""
    from ppma.kernels.attention import attend

    width = 3 * shape.heads * shape.head_width
    qkv = torch.randn(shape.batch, shape.tokens, width, dtype=shape.dtype, device=shape.device, requires_grad=True)
    gradient = torch.randn(shape.batch, shape.tokens, width // 3, dtype=shape.dtype, device=shape.device)
    times = []
    try:
        for _ in range(REPEATS + 2):  # the first two compile and warm up
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            attend(qkv, shape.heads, form).backward(gradient)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    except RuntimeError as error:  # PyTorch's "no available kernel", or a block that exceeds this GPU's shared memory
        log.info("attention: %s cannot run %s: %s", form, shape.name, str(error).splitlines()[0])
        return None
    return sorted(times[2:])[REPEATS // 2]


def candidates(shape: Shape) -> list[Form]:
    """The forms worth a try; our kernel takes 16-bit types on a GPU (float32 there would run without tensor cores)."""
    ours = choice.LOADED and shape.dtype in (torch.float16, torch.bfloat16) and shape.head_width <= 128
    return [form for form in CANDIDATES if form != "triton" or ours]


def measure(shape: Shape) -> Form:
    """Time all candidates and say which is the fastest; "pytorch" where none can run."""
    with torch.enable_grad(), torch.utils._python_dispatch._disable_current_modes():
        timed = {form: milliseconds(shape, form) for form in candidates(shape)}
    times = {form: took for form, took in timed.items() if took is not None}
    if not times:
        log.warning("attention: no fused kernel runs %s, PyTorch's own choice is used", shape.name)
        return "pytorch"
    best = min(times, key=times.__getitem__)
    listed = ", ".join(f"{form} {took:.3f} ms" for form, took in sorted(times.items(), key=lambda item: item[1]))
    log.info("attention: %s for %s, forward and backward: %s", best, shape.name, listed)
    return best


def fastest_form(
    batch: int, tokens: int, heads: int, head_width: int, dtype: torch.dtype, device: torch.device
) -> Form:
    """The answer, from memory, from disk, or measured now. A constant to torch.compile, which calls it while it traces."""
    shape = Shape(batch, tokens, heads, head_width, dtype, device)
    key = f"{device} {shape.name}"
    if key not in _chosen:
        file, machine = cache_file(), machine_name(device)
        known = read_cache(file).get(machine, {}).get(shape.name)
        if known in candidates(shape):
            log.info("attention: %s for %s, as measured before (%s)", known, shape.name, file)
            _chosen[key] = known
        else:
            _chosen[key] = measure(shape)
            if _chosen[key] != "pytorch":
                remember(file, machine, shape.name, _chosen[key])
    return _chosen[key]


# What torch.compiler.assume_constant_result does, without the import of torch._dynamo that it costs everyone (1.3 s).
fastest_form._dynamo_marked_constant = True  # type: ignore[attr-defined]


def explain(shape: Shape) -> tuple[Form, str]:
    """The form that runs on this shape, and the reason in words; on a GPU it may have to be measured first."""
    if shape.device.type != "cuda":
        return (
            "pytorch",
            f"scaled_dot_product_attention as it is on a {shape.device.type} device, never the N x N scores",
        )
    return fastest_form(*shape), f"the fastest of {', '.join(candidates(shape))} for {shape.name}; {cache_file()}"
