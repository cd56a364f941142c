"""Compile a whole training step for a GPU that is not present, and report every kernel.

    phase  ->  the recipe's own model, precision and batch  ->  dynamo, AOT autograd, inductor, Triton  ->  StepReport

    >>> report = check("mae", Settings(arch=90))
    >>> report.launches, report.problems
    (780, ())

The step is compiled as in training, with fullgraph, forward and backward, in a separate process on the fake GPU of
`ppma.compile_check.fake_gpu`. Inductor's kernels and ours become machine code. The generated code runs with shapes
only, so launches and library calls are counted, not estimated. Nothing is timed and no values are computed.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ppma.config.errors import InputError
from ppma.config.run import RunConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ppma.compile_check.fake_gpu import FakeGpu

Phase = Literal["mae", "align", "probe"]
RECIPES: dict[str, str] = {"mae": "mae_nohuman", "align": "align_nohuman_synthetic", "probe": "probe_published"}
"""The recipe whose step each phase compiles: stage 1, stage 2, and the linear probe with the frozen encoder in every
step."""
KERNEL_MARK = "kernel: "
"""Begins the lines that the compiling process writes to stdout: phase and number of kernels so far."""
CLASSES = 150
"""Classes of every source (paper: 150)."""


class CompileError(Exception):
    """Raised for a step that does not compile; the message is the compiler's."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A Triton kernel of a step, as it is launched."""

    name: str
    registers: int
    spill_bytes: int
    """Bytes of local memory a thread."""
    shared_bytes: int
    bytes_moved: int | None
    """Bytes that one launch reads and writes, by inductor's estimate; None for the kernels of `ppma.kernels`."""
    launches: int
    backward: bool


@dataclass(frozen=True, kw_only=True)
class LibraryCall:
    """An operator that PyTorch's libraries run: a matrix product, a sort, a sum."""

    operator: str
    """For example aten::addmm."""
    shapes: tuple[tuple[int, ...], ...]
    """Of its tensors, in order: for aten::mm (m, k) and (k, n); for aten::addmm (n,), (m, k), (k, n)."""
    dtype: str
    """Of the first tensor, for example bfloat16."""
    calls: int
    backward: bool


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One compiled training step, without the optimizer."""

    phase: str
    arch: int
    batch: int
    depth: int
    torch: str
    triton: str
    kernels: tuple[Kernel, ...]
    calls: tuple[LibraryCall, ...]
    graphs: int
    """Compiled graphs that ran: 2, forward and backward, where there is no graph break."""
    saved_bytes: int
    """Bytes kept from the forward for the backward pass, parameters and inputs not counted."""
    compiled: int
    """Kernels that Triton compiled; 0 when all were found in its cache."""
    found: int
    """Kernels that Triton found in its cache."""
    seconds: float

    @property
    def launches(self) -> int:
        """Kernels and library calls of a step; a library call may launch more than one kernel."""
        return sum(kernel.launches for kernel in self.kernels) + sum(call.calls for call in self.calls)

    @property
    def bytes_moved(self) -> int:
        """Bytes that inductor's kernels read and write in a step, by inductor's estimate."""
        return sum((kernel.bytes_moved or 0) * kernel.launches for kernel in self.kernels)

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons why this step does not run well, one line each; empty if there are none."""
        spills = tuple(
            f"{kernel.name} spills {kernel.spill_bytes} bytes per thread"
            for kernel in self.kernels
            if kernel.spill_bytes
        )
        broken = (f"{self.graphs} graphs instead of 2: the step breaks",) if self.graphs != 2 else ()
        return broken + spills

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "StepReport":
        """Read what `dataclasses.asdict` wrote through JSON."""
        kernels = tuple(Kernel(**kernel) for kernel in values.pop("kernels"))
        calls = tuple(
            LibraryCall(**call | {"shapes": tuple(map(tuple, call["shapes"]))}) for call in values.pop("calls")
        )
        return cls(kernels=kernels, calls=calls, **values)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compile; None means the recipe's value."""

    arch: int = 90
    """Compute capability, for example 90."""
    batch: int | None = None
    """Rows on the GPU."""
    depth: int | None = None
    """Blocks of the encoder, and at most as many of the decoder. All blocks are the same kernels, so that a small depth
    proves as much in less time; launches and bytes are those of the given depth."""
    all_configs: bool = False
    """Compile every configuration of a kernel, from which a GPU chooses, to fill its cache; else the first that does not spill."""


def check(phase: Phase, settings: Settings | None = None, *, folder: Path | None = None) -> StepReport:
    """Compile one training step in a new process, in about half a minute, and report it: `check_steps` of one phase.

    Raises:
        CompileError: dynamo, inductor or Triton refuses the step.
        InputError: the phase, the architecture or a size is unknown or wrong, or there is no C++ compiler.
    """
    (report,) = check_steps((phase,), settings, folder=folder)
    if isinstance(report, CompileError):
        raise report
    return report


def check_steps(
    phases: Sequence[Phase],
    settings: Settings | None = None,
    *,
    folder: Path | None = None,
    on_kernel: Callable[[str, int], None] = lambda phase, kernels: None,
) -> list[StepReport | CompileError]:
    """Compile the steps of several phases in one process, which saves the imports.

    Args:
        phases: mae (stage 1), align (stage 2) or probe.
        settings: What to compile.
        folder: The compilers' cache folder; a temporary one by default, so that everything is compiled.
        on_kernel: Called with the phase and its number of kernels so far: 0 when it starts, then after each kernel.

    Returns:
        For each phase its report, or the error that replaced it.

    Raises:
        InputError: As in `check`.
    """
    with tempfile.TemporaryDirectory(prefix="ppma-compile-") as scratch:
        asked = {"phases": list(phases), **dataclasses.asdict(settings or Settings())}
        answer, log = Path(scratch) / "reports.json", Path(scratch) / "log.txt"
        environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TORCH_LOGS")}
        environment |= cache_environment(folder or Path(scratch)) | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "ppma.compile_check.check", json.dumps(asked), str(answer)]
        code = _follow(command, environment, log, on_kernel)
        if not answer.exists():
            error = CompileError(f"the compiling process ended with {code}: {log.read_text()[-3000:]}")
            return [error] * len(phases)
        values = json.loads(answer.read_text())
    if "wrong" in values:
        raise InputError(values["wrong"])
    return [
        CompileError(f"{phase}: {value['error']}") if "error" in value else StepReport.from_json(value)
        for phase, value in zip(phases, values["reports"], strict=True)
    ]


def _follow(command: list[str], environment: dict[str, str], log: Path, on_kernel: Callable[[str, int], None]) -> int:
    """Run the compiling process with its stderr in `log`, pass on what `_announce` writes, and return the exit code."""
    with (
        log.open("w") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            for line in process.stdout or ():
                if line.startswith(KERNEL_MARK):
                    phase, kernels = line.removeprefix(KERNEL_MARK).split()
                    on_kernel(phase, int(kernels))
        except BaseException:
            process.kill()
            raise
    return process.returncode


def cache_environment(folder: Path) -> dict[str, str]:
    """Return the environment variables that make inductor and Triton keep their caches in this folder.

    A run on a GPU that starts with them compiles less. Triton reuses a kernel if the versions of torch and triton, the
    architecture, the kernel's source (so the recipe, the batch and the attention backend) and Triton's environment
    variables are equal. Inductor's cache of graphs also depends on the build of torch, the name of the GPU and
    inductor's settings, which `fake_gpu` changes: graphs are generated again on the GPU, and their kernels are found
    where the code is the same. Call `relocate` if the folder has moved.
    """
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}


def relocate(folder: Path) -> None:
    """Make the kernels of a folder that was filled in another place usable: Triton keeps the whole path of each
    file."""
    for group in (folder / "triton").glob("*/__grp__*.json"):
        names = json.loads(group.read_text())["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: str(group.with_name(name)) for name in names}}))


# ------------------------------------------------------------------ in the compiling process: everything below imports torch


def step_config(phase: str, settings: Settings) -> RunConfig:
    """Return the recipe of a phase with the sizes asked for."""
    from ppma.config.recipes import recipe

    if phase not in get_args(Phase):
        raise InputError(f"no phase {phase!r}; there are {', '.join(get_args(Phase))}")
    config = recipe(RECIPES[phase])()
    depth = settings.depth or config.vit.depth
    vit = replace(config.vit, depth=depth)
    mae = replace(config.mae, decoder_depth=min(depth, config.mae.decoder_depth))
    return replace(config, vit=vit, mae=mae, batch=config.batch if settings.batch is None else settings.batch)


def _model(config: RunConfig) -> "nn.Module":
    """Return the module that a run of this config trains."""
    from ppma.models.classify import Classifier
    from ppma.models.mae import MaskedAutoencoder

    if config.phase == "mae":
        return MaskedAutoencoder(config.vit, config.mae)
    spaces = dict.fromkeys(config.sources, CLASSES)
    return Classifier(config.vit, spaces, config.classifier, source_spaces=config.sources)


def _inputs(config: RunConfig) -> "tuple[Tensor, ...]":
    """Return a batch of shapes, as the task of the phase passes it to the model."""
    import torch

    B, vit = config.batch, config.vit
    frames_BTHWC = torch.empty(B, vit.frames, vit.size, vit.size, 3, dtype=torch.uint8, device="cuda")
    key_B, label_B, source_B = (torch.empty(B, dtype=torch.int64, device="cuda") for _ in range(3))
    if config.phase == "mae":
        return frames_BTHWC, key_B
    erase_B4 = torch.empty(B, 4, dtype=torch.int64, device="cuda")
    return frames_BTHWC, key_B, label_B, source_B, erase_B4


def _move(model: "nn.Module") -> None:
    """Put the shapes of parameters and buffers on the fake device; called under its FakeTensorMode."""
    import torch
    from torch import nn

    for part in model.modules():
        for name, parameter in part.named_parameters(recurse=False):
            moved = torch.empty_like(parameter, device="cuda", requires_grad=False)
            part.register_parameter(name, nn.Parameter(moved, requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty_like(buffer, device="cuda"))


def compile_step(gpu: "FakeGpu", phase: str, settings: Settings) -> StepReport:
    """Compile a step on the fake GPU of this process and run it with shapes."""
    import torch
    import triton
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ppma.compile_check import fake_gpu
    from ppma.training import compute

    began = time.monotonic()
    torch._dynamo.reset()
    gpu.recording = recorded = fake_gpu.Recording()
    config = step_config(phase, settings)
    model = _model(config)
    device = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _move(model)
        step = compute.compiled(model.train(), fullgraph=True)
        with compute.choose(config.precision, device).autocast():
            loss = step(*_inputs(config))
        loss.backward()
    fake_gpu.note_bytes_moved()
    kernels, calls = Counter(recorded.launches), Counter(recorded.calls)
    return StepReport(
        phase=phase, arch=settings.arch, batch=config.batch, depth=config.vit.depth,
        torch=torch.__version__, triton=triton.__version__, graphs=recorded.graphs, saved_bytes=recorded.saved_bytes,
        compiled=recorded.compiled, found=recorded.found, seconds=round(time.monotonic() - began, 1),
        kernels=tuple(
            Kernel(name=k.name, registers=k.registers, spill_bytes=k.spill_bytes, shared_bytes=k.shared_bytes,
                   bytes_moved=k.bytes_moved, launches=count, backward=backward)
            for (k, backward), count in kernels.items()
        ),
        calls=tuple(
            LibraryCall(operator=operator, shapes=shapes, dtype=dtype, calls=count, backward=backward)
            for (operator, shapes, dtype, backward), count in calls.items()
        ),
    )  # fmt: skip


def start(settings: Settings) -> "FakeGpu":
    """Give this process a fake GPU; torch must not be imported yet."""
    from ppma.compile_check import fake_cuda

    fake_cuda.load()
    from ppma.compile_check import fake_gpu

    gpu = fake_gpu.install(settings.arch)
    if not settings.all_configs:
        fake_gpu.compile_first_fitting()
    from torch._inductor import config as inductor

    from ppma.kernels import attention_choice

    inductor.benchmark_kernel = True  # writes an estimate of the bytes moved into each kernel
    attention_choice.can_measure = lambda: False
    return gpu


def _announce(phase: str, kernels: int) -> None:
    """Write the progress of the compiling process to its stdout."""
    sys.stdout.write(f"{KERNEL_MARK}{phase} {kernels}\n")
    sys.stdout.flush()


def _reason(error: BaseException) -> str:
    """Return the first lines of a compiler's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:6])[:600]}"


def main(argv: list[str]) -> int:
    """Run the compiling process: a JSON object of phases and settings, and the file that takes the reports."""
    asked, answer = json.loads(argv[0]), Path(argv[1])
    phases, settings = asked.pop("phases"), Settings(**asked)
    reports: list[dict[str, Any]] = []
    try:
        for phase in phases:
            step_config(phase, settings)
        gpu = start(settings)
    except InputError as error:
        answer.write_text(json.dumps({"wrong": str(error)}))
        return 0
    from triton.errors import TritonError

    for phase in phases:
        gpu.on_kernel = partial(_announce, phase)
        gpu.on_kernel(0)
        try:
            reports.append(dataclasses.asdict(compile_step(gpu, phase, settings)))
        except (RuntimeError, TritonError) as error:  # what dynamo, inductor and Triton raise
            reports.append({"error": _reason(error)})
    answer.write_text(json.dumps({"reports": reports}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
