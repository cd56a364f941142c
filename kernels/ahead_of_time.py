"""Compile every Triton kernel of the project for a GPU that is not present, exactly as a launch on that GPU would.

    operator on a CPU tensor  ->  Triton's JIT, stopped before the launch  ->  machine code  ->  CompiledKernel

The operators themselves run, so block sizes, warps and the JIT's specialization (divisibility by 16, arguments equal to
1) are those of a real launch. The machine code gives spills, shared memory, matrix instructions, and the
width of every access to global memory.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

CAPABILITIES = (80, 90, 100)
"""A100, H100 and H200, B200."""
SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Shared memory available to one block, by compute capability (CUDA C++ Programming Guide)."""
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
"""The instruction for 16-bit matrix products at the full rate of the tensor cores (wgmma on 9.0), by capability."""
PATCH = (2, 16, 16)
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True, kw_only=True)
class CompiledKernel:
    """A kernel compiled for one launch."""

    capability: int
    kernel: str
    case: str
    dtype: str
    constants: dict[str, Any]
    warps: int
    stack_bytes: int
    """Local memory of a thread, where spilled registers go."""
    shared_bytes: int
    multiplies: bool
    """True if the kernel contains a matrix product of 16-bit values."""
    instructions: dict[str, int]
    """Counts by opcode."""
    accesses: dict[str, int]
    """Accesses to global memory: {"load 128": n}, by bits per thread."""
    sass: str = dataclasses.field(repr=False, default="")

    @property
    def problems(self) -> list[str]:
        """Reasons why the kernel cannot run, or not at full speed."""
        found = []
        limit = SHARED_BYTES[self.capability]
        if self.shared_bytes > limit:
            found.append(f"{self.shared_bytes} bytes of shared memory, more than {limit}")
        if self.stack_bytes:
            found.append(f"{self.stack_bytes} bytes of spilled registers")
        if self.multiplies and not self.instructions.get(TENSOR_CORE[self.capability]):
            found.append(f"no {TENSOR_CORE[self.capability]}")
        if self.constants.get("WIDE") and self.case == "aligned":
            narrow = [access for access in self.accesses if int(access.split()[1]) < 32]
            if narrow or not self.accesses.get("load 128"):
                found.append(f"narrow accesses: {self.accesses}")
        return found


def packed_projection(tokens: int, heads: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return a packed projection of two clips."""
    return torch.zeros(2, tokens, 3 * heads * width, dtype=dtype, requires_grad=True)


def attention_launches(shapes: Sequence[tuple[int, int, int]], *, dtype: torch.dtype, all_configs: bool) -> None:
    """Launch attention at (tokens, heads, width) with the first or all configs: forward and every backward pass."""
    from ppma.kernels.attention_triton import KERNELS, attention_triton, configs

    for tokens, heads, width in shapes:
        *offered, fused = [len(configs(kernel, width, dtype)) for kernel in KERNELS]
        plans = [[*(min(i, n - 1) for n in offered), -1] for i in range(max(offered) if all_configs else 1)]
        plans += [[0, 0, 0, i] for i in range(fused - 1 if all_configs else min(fused - 1, 1))]
        for plan in plans:
            out_BNC, _ = attention_triton(packed_projection(tokens, heads, width, dtype), None, heads, plan)
            out_BNC.sum().backward()


def clip_inputs(*, aligned: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return frames_BTHWC at the paper's size, with visible and masked indices; unaligned frames start at (1, 1)."""
    margin = 0 if aligned else 1
    frames = torch.zeros(2, 16, 224 + margin, 224 + margin, 3, dtype=torch.uint8)[:, :, margin:, margin:]
    order = torch.arange(1568).expand(2, -1)
    return frames, order[:, :157].contiguous(), order[:, 157:].contiguous()


def patch_launches(*, dtype: torch.dtype, aligned: bool) -> None:
    """Launch patchify on visible and on all patches, and the pixel loss forward and backward."""
    from ppma.kernels.patchify_triton import patchify_triton
    from ppma.kernels.pixel_loss_triton import pixel_loss_triton

    frames, visible, masked = clip_inputs(aligned=aligned)
    for idx in (visible, None):
        patchify_triton(frames, idx, PATCH, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), dtype)
    prediction = torch.zeros(2, masked.shape[1], 1536, dtype=dtype, requires_grad=True)
    pixel_loss_triton(prediction, frames, masked, PATCH, True, 1e-6).backward()


def erase_launches(*, dtype: torch.dtype) -> None:
    """Launch random erasing on the patches of whole clips."""
    from ppma.kernels.erase_triton import erase_triton

    patches = torch.zeros(2, 1568, 1536, dtype=dtype)
    box, key = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    erase_triton(patches, box, key, (8, 14, 14), PATCH)


def gelu_launches(*, dtype: torch.dtype) -> None:
    """Launch the backward pass of an MLP's GELU at the decoder's width."""
    from ppma.kernels.gelu_triton import gelu_gradient_triton

    gelu_gradient_triton(*(torch.zeros(2 * 1568, 1536, dtype=dtype) for _ in range(2)))


def randaugment_launches() -> None:
    """Launch a warp and a lookup table on two views."""
    from ppma.kernels.randaugment_program import Operation, write_program
    from ppma.kernels.randaugment_triton import randaugment_triton

    operations = [(Operation.WARP, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)), (Operation.EQUALIZE, ())]
    randaugment_triton(torch.zeros(2, 16, 224, 224, 3, dtype=torch.uint8), write_program([operations] * 2))


PAPER = ((157, 12, 64), (1568, 16, 24))
"""Attention of stage 1's encoder and decoder: tokens, heads, head width. Stage 2 uses the kernels of the encoder."""
OTHER = ((1568, 16, 80), (5, 1, 7))
"""The huge model, and sizes that are divisible by no block."""


def launches(capability: int, *, thorough: bool) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Yield (case, type, launching function).

    The paper's sizes are compiled for every GPU, other sizes and types for Hopper only. float32 attention is left out,
    because PyTorch's runs on a GPU. `thorough` adds all configs of attention.
    """

    def of(dtype: torch.dtype, case: str, launch: Callable[..., None], *args: Any, **settings: Any) -> Any:
        return case, str(dtype).removeprefix("torch."), lambda: launch(*args, dtype=dtype, **settings)

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    yield of(bf16, "paper", attention_launches, PAPER, all_configs=thorough)
    yield of(bf16, "aligned", patch_launches, aligned=True)
    yield of(bf16, "paper", erase_launches)
    yield of(bf16, "paper", gelu_launches)
    if capability == 90:
        yield "paper", "uint8", randaugment_launches
        yield of(bf16, "other", attention_launches, OTHER, all_configs=thorough)
        yield of(fp16, "paper", attention_launches, PAPER[1:], all_configs=thorough)
        yield of(fp32, "aligned", patch_launches, aligned=True)
        yield of(bf16, "unaligned", patch_launches, aligned=False)


class _Driver:
    """Replace Triton's GPU driver: a target to compile for, without a device."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def recorded(capability: int) -> Iterator[dict[str, tuple[JITFunction, Any]]]:
    """Inside the block, compile kernels instead of launching them.

    Yields:
        {hash: (function, compiled kernel)}, filled as kernels are compiled.
    """
    made: dict[str, tuple[JITFunction, Any]] = {}
    run = JITFunction.run

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        made.setdefault(compiled.hash, (self, compiled))
        return compiled

    triton.runtime.driver.set_active(_Driver(capability))
    JITFunction.run = record
    try:
        yield made
    finally:
        JITFunction.run = run


def _run_tool(tool: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(BINARIES / tool), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def fill_attention(capability: int, shapes: Sequence[tuple[int, int, int]]) -> None:
    """Fill Triton's cache with attention: all configs in bfloat16, from which a GPU chooses, and the first in float16.

    Args:
        capability: Compute capability without the point, such as 90.
        shapes: (tokens, heads, head width) of each.
    """
    with recorded(capability):
        attention_launches(shapes, dtype=torch.bfloat16, all_configs=True)
        attention_launches(shapes, dtype=torch.float16, all_configs=False)


def disassemble(cubin: bytes) -> str:
    """Return machine code as assembly text (SASS)."""
    # -ndf: dataflow analysis takes a third longer and changes nothing
    return _run_tool("nvdisasm", "-c", "-ndf", cubin=cubin)


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Return registers (REG) and bytes of stack (STACK) and local memory (LOCAL) per thread."""
    usage = _run_tool("cuobjdump", "-res-usage", cubin=cubin)
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", usage)}


def opcodes(sass: str) -> list[str]:
    """Return the opcodes with modifiers, without predicates, in order."""
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)", sass)


def access(opcode: str) -> str | None:
    """Return "load 128" for a load of 128 bits from global memory, None for other instructions."""
    name, *modifiers = opcode.split(".")
    if name not in ("LDG", "STG", "LDGSTS"):
        return None
    bits = next((m.lstrip("US") for m in modifiers if m.lstrip("US") in ("8", "16", "64", "128", "256")), "32")
    return f"{'store' if name == 'STG' else 'load'} {bits}"


def compile_kernels(capability: int, *, case: str = "", thorough: bool = False) -> list[CompiledKernel]:
    """Compile all cases, or one, for a compute capability, in a process that does not interpret Triton."""
    found = []
    seen: set[str] = set()
    for name, dtype, launch in launches(capability, thorough=thorough):
        if case not in ("", name):
            continue
        with recorded(capability) as made:
            launch()
        for key, (function, compiled) in made.items():
            if key in seen:
                continue
            seen.add(key)
            sass, used = disassemble(compiled.asm["cubin"]), resource_usage(compiled.asm["cubin"])
            codes = opcodes(sass)
            constants = {function.arg_names[p[0]]: v for p, v in compiled.src.constants.items()}
            found.append(
                CompiledKernel(
                    capability=capability,
                    kernel=function.__name__.removesuffix("_kernel"),
                    case=name,
                    dtype=dtype,
                    constants={name: v for name, v in constants.items() if name.isupper()},
                    warps=compiled.metadata.num_warps,
                    stack_bytes=used["STACK"] + used["LOCAL"],
                    shared_bytes=compiled.metadata.shared,
                    multiplies="tt.dot" in compiled.asm["ttir"] and dtype != "float32",
                    instructions=dict(Counter(code.split(".")[0] for code in codes)),
                    accesses=dict(Counter(a for a in map(access, codes) if a)),
                    sass=sass,
                )
            )
    return found


def table(
    capabilities: Sequence[int] = CAPABILITIES, *, case: str = "", thorough: bool = False
) -> list[CompiledKernel]:
    """Compile every kernel, in a process that does not interpret Triton.

    Args:
        capabilities: Compute capabilities without the point, such as 90.
        case: One case of `launches`; all by default.
        thorough: Compile all configs of attention, not only the first.

    Raises:
        RuntimeError: A kernel does not compile.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        asked = [json.dumps(capabilities), case, str(int(thorough)), file.name]
        command = [sys.executable, "-m", "ppma.kernels.ahead_of_time", *asked]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ahead-of-time compilation failed: {done.stderr[-3000:]}")
        return [CompiledKernel(**row) for row in json.loads(file.read().decode())]


if __name__ == "__main__":
    rows = [
        dataclasses.asdict(kernel)
        for capability in json.loads(sys.argv[1])
        for kernel in compile_kernels(capability, case=sys.argv[2], thorough=sys.argv[3] == "1")
    ]
    Path(sys.argv[4]).write_text(json.dumps(rows))
