"""Fake a CUDA device that has shapes but no memory, to compile and "run" GPU code without a GPU.

    fake_cuda.load(), install(arch)  ->  FakeGpu
    torch.compile(...) under FakeTensorMode  ->  every kernel as machine code, every launch recorded

Dynamo, autograd and inductor generate what they generate for a real GPU, Triton compiles it to a cubin, and the
generated Python runs with fake tensors: launches and library calls are recorded and do nothing. Works with a CPU build
of torch and with a CUDA build that finds no GPU. `install` patches torch for the life of the process, so use a separate
process: `ppma.compile_check.check` starts one.
"""

import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppma.config.errors import InputError
from ppma.kernels.ahead_of_time import SHARED_BYTES, resource_usage

KIB, GIB = 2**10, 2**30
GPUS: dict[int, dict[str, Any]] = {
    80: {"name": "NVIDIA A100-SXM4-80GB", "processors": 108, "memory": 80 * GIB, "l2": 40},
    86: {"name": "NVIDIA A10", "processors": 72, "memory": 24 * GIB, "l2": 6},
    89: {"name": "NVIDIA L40S", "processors": 142, "memory": 48 * GIB, "l2": 96},
    90: {"name": "NVIDIA H200", "processors": 132, "memory": 141 * GIB, "l2": 50},
    100: {"name": "NVIDIA B200", "processors": 148, "memory": 180 * GIB, "l2": 126},
}  # fmt: skip
"""What inductor and Triton ask of a device, by compute capability: multiprocessors, bytes of memory, MiB of L2 cache.
Sources: NVIDIA's data sheets; limits of threads, registers and shared memory from the CUDA C++ Programming Guide."""


@dataclass(eq=False)
class LoadedKernel:
    """A compiled kernel, read instead of loaded. It takes the place of a CUDA function handle."""

    name: str
    registers: int
    spill_bytes: int
    """Bytes of local memory a thread: registers that did not fit, or local arrays."""
    shared_bytes: int
    bytes_moved: int | None = None
    """Bytes a launch reads and writes by inductor's estimate; None for our own kernels."""


@dataclass
class Recording:
    """What the compiled code did, in order."""

    launches: list[tuple[LoadedKernel, bool]] = field(default_factory=list)
    """Each launch and whether it belongs to the backward pass."""
    calls: list[tuple[str, tuple[tuple[int, ...], ...], str, bool]] = field(default_factory=list)
    """Each library call: operator, shapes of its tensors, type of the first, backward pass."""
    graphs: int = 0
    saved_bytes: int = 0
    """Bytes that the forward pass keeps for the backward pass, parameters and inputs not counted."""
    compiled: int = 0
    """Kernels that Triton compiled."""
    found: int = 0
    """Kernels that Triton found in its cache."""
    backward: bool = False
    inputs: set[int] = field(default_factory=set)


def _properties(arch: int) -> SimpleNamespace:
    """Return the attributes of torch's device properties that inductor reads."""
    gpu = GPUS[arch]
    return SimpleNamespace(
        name=gpu["name"], major=arch // 10, minor=arch % 10, multi_processor_count=gpu["processors"], total_memory=gpu["memory"],
        warp_size=32, max_threads_per_block=1024, max_threads_per_multi_processor=1536 if arch in (86, 89) else 2048,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=48 * KIB, shared_memory_per_block_optin=SHARED_BYTES[arch],
        shared_memory_per_multiprocessor=SHARED_BYTES[arch] + KIB,  # one is reserved per block
        L2_cache_size=gpu["l2"] * KIB * KIB, is_integrated=0,
        is_multi_gpu_board=0, gcnArchName="", uuid="0",
    )  # fmt: skip


class FakeGpu:
    """The installed fake device, with everything recorded on it."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.recording = Recording()
        self.on_kernel: Callable[[int], None] = lambda kernels: None
        """Called after each kernel that Triton compiles or finds, with their number in this recording."""

    def load(self, name: str, cubin: bytes, shared_bytes: int, _: int) -> tuple[object, LoadedKernel, int, int, int]:
        """Replace Triton's load_binary: return (module, function, registers, spilled registers, maximum threads per
        block)."""
        used = resource_usage(cubin)
        kernel = LoadedKernel(name, used["REG"], used["STACK"] + used["LOCAL"], shared_bytes)
        return object(), kernel, kernel.registers, kernel.spill_bytes // 4, 1024

    def launch(self, *given: Any) -> None:
        """Replace Triton's launcher, called with (grid x, y, z, stream, function, ...): record the launch."""
        self.recording.launches.append((given[4], self.recording.backward))

    def run(self, graph: Callable[[Sequence[Any]], Any], inputs: Sequence[Any], *, backward: bool) -> Any:
        """Run inductor's code for a graph and record what it does."""
        recording = self.recording
        recording.graphs += 1
        recording.backward = backward
        sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in inputs if isinstance(t, Tensor)}
        if backward:
            recording.saved_bytes += sum(size for key, size in sizes.items() if key not in recording.inputs)
        else:
            recording.inputs |= set(sizes)
        with _LibraryCalls(recording):
            return graph(inputs)


class _LibraryCalls(TorchDispatchMode):
    """Record operators that are not views; run our opaque operators, so that their kernels compile too."""

    SILENT = (
        "prim::",
        *(f"aten::{name}" for name in ("empty", "detach", "as_strided", "_to_copy", "select", "slice", "view")),
    )

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        from torch._library.custom_ops import OPDEFS

        kwargs, name = kwargs or {}, func._schema.name
        if name in OPDEFS:
            return OPDEFS[name]._init_fn(*args, **kwargs)
        if not func.is_view and not name.startswith(self.SILENT):
            tensors = [a for a in args if isinstance(a, Tensor)]
            dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
            shapes = tuple(tuple(t.shape) for t in tensors)
            self.recording.calls.append((name, shapes, dtype, self.recording.backward))
        return func(*args, **kwargs)


def install(arch: int = 90) -> FakeGpu:
    """Give this process a fake GPU of that compute capability, after `fake_cuda.load` and before anything imports
    torch._dynamo.

    Raises:
        InputError: the architecture is not in GPUS, or Triton would interpret its kernels.
    """
    if arch not in GPUS:
        raise InputError(
            f"no properties are known of sm_{arch}; there are {', '.join(f'sm_{known}' for known in GPUS)}"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET is 1: kernels would be interpreted, not compiled; unset it")
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
    gpu = FakeGpu(arch)
    _patch_torch(arch)
    _patch_triton(gpu)
    _patch_inductor(gpu)
    return gpu


def _patch_torch(arch: int) -> None:
    """Give torch one device, always current, with the properties of GPUS. Python only: the guard answers C++."""
    torch.version.cuda = torch.version.cuda or "13.0"  # our kernels are registered where torch has CUDA

    cuda: Any = torch.cuda
    low_level: Any = torch._C
    for name, answer in {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "_exchange_device": 0,
                         "_maybe_exchange_device": 0, "get_device_properties": _properties(arch), "is_bf16_supported": True,
                         "current_stream": SimpleNamespace(cuda_stream=0)}.items():  # fmt: skip
        setattr(cuda, name, _constant(answer))
    for name in ("_lazy_init", "set_device", "synchronize"):
        setattr(cuda, name, _constant(None))
    # Dynamo takes these when it is imported; a CPU build has none of them.
    for name, answer in {"_cuda_getDeviceCount": 1, "_cuda_getDevice": 0, "_cuda_getCurrentRawStream": 0}.items():
        setattr(low_level, name, _constant(answer))
    torch.accelerator.is_available = _constant(False)  # else dynamo asks the CUDA runtime for streams, in a CUDA build
    # AOT autograd keeps the state of the device's generator around tracing; ours draw from keys.
    random: Any = importlib.import_module("torch.cuda.random")
    for place in (cuda, random):
        place.get_rng_state, place.set_rng_state = _constant(torch.zeros(16, dtype=torch.uint8)), _constant(None)
    # Generated code allocates and reinterprets past the dispatcher, where fake tensors are not known.
    guards: Any = low_level._dynamo.guards
    empty_strided = torch.empty_strided
    guards._empty_strided_cuda = lambda size, stride, dtype: empty_strided(size, stride, dtype=dtype, device="cuda")
    guards._reinterpret_tensor = lambda t, size, stride, at=0: t.as_strided(size, stride, t.storage_offset() + at)
    fakes: Any = importlib.import_module("torch._subclasses.fake_tensor")
    # Triton specializes kernels by the divisibility of addresses; those of a real allocator are multiples of 512.
    fakes.FakeTensor.data_ptr = _constant(0)
    fakes.init_gpu_context = _constant(None)  # makes a context on the device, in a CUDA build


def _constant(answer: Any) -> Callable[..., Any]:
    """Return a new function at every call: dynamo rejects one function under two names."""
    return lambda *_, **__: answer


def _patch_triton(gpu: FakeGpu) -> None:
    """Install a Triton driver that reads binaries instead of loading them, and records launches instead of making
    them."""
    import triton
    from triton.backends.nvidia.driver import CudaDriver

    properties = {
        "max_shared_mem": SHARED_BYTES[gpu.arch],
        "max_num_regs": 65536,
        "multiprocessor_count": GPUS[gpu.arch]["processors"],
        "warpSize": 32,
    }

    class Driver(CudaDriver):
        """CudaDriver without its C extension, which links the CUDA driver."""

        def __init__(self) -> None:
            self.get_device_capability = _constant((gpu.arch // 10, gpu.arch % 10))
            self.get_current_device = self.get_current_stream = _constant(0)
            self.utils = SimpleNamespace(load_binary=gpu.load, get_device_properties=_constant(properties))
            self.launcher_cls = _constant(gpu.launch)

    triton.runtime.driver.set_active(Driver())

    def count(*, cache_hit: bool, **_: Any) -> None:
        """Count compiled and cached kernels, as Triton's compilation listener."""
        gpu.recording.found += cache_hit
        gpu.recording.compiled += not cache_hit
        gpu.on_kernel(gpu.recording.found + gpu.recording.compiled)

    triton.knobs.compilation.listener = count


def _patch_inductor(gpu: FakeGpu) -> None:
    """Keep inductor from running anything on the device while it compiles: constants, timings, pattern examples."""
    config: Any = importlib.import_module("torch._inductor.config")
    config.compile_threads = 1  # worker processes would have no fake GPU
    config.joint_graph_constant_folding = False  # makes constants on the device
    config.shape_padding = False  # times products on the device
    for name in ("use_static_cuda_launcher", "use_static_triton_launcher"):  # loads kernels past Triton's driver
        if hasattr(config, name):
            setattr(config, name, False)
    patterns: Any = importlib.import_module("torch._inductor.fx_passes.fuse_attention")
    patterns._sfdp_init = _constant(None)  # traces its patterns on the device; our attention is fused already
    # Triton's cache key holds the line where a kernel begins, which lines of imports for a benchmark would move.
    triton_code: Any = importlib.import_module("torch._inductor.codegen.triton")
    triton_code.TritonKernel.imports_for_benchmark_kernel = _constant("")
    padding: Any = importlib.import_module("torch._inductor.fx_passes.pad_mm")
    padding._pad_mm_init = _constant(None)  # the same
    heuristics: Any = importlib.import_module("torch._inductor.runtime.triton_heuristics")
    # Of several configurations a GPU takes the fastest; here the first that spills least.
    heuristics.CachingAutotuner.bench = lambda self, launcher, *_, **__: float(launcher.n_spills)
    graph: Any = importlib.import_module("torch._inductor.output_code").CompiledFxGraph
    call = graph.__call__
    graph.__call__ = lambda self, inputs: gpu.run(
        lambda given: call(self, given), inputs, backward=bool(self.fx_kwargs["is_backward"])
    )


def compile_first_fitting() -> None:
    """Have inductor compile the configurations of a kernel in order, until one does not spill; a GPU compiles all."""
    config: Any = importlib.import_module("torch._inductor.config")
    config.dynamic_scale_rblock = False  # compiles more of them
    heuristics: Any = importlib.import_module("torch._inductor.runtime.triton_heuristics")
    compile_all = heuristics.CachingAutotuner._precompile_worker

    def compile_in_order(self: Any) -> None:
        for offered in self.configs or ():  # None once a kernel of the same code is compiled
            with suppress(heuristics.OutOfResources, heuristics.PTXASError):
                result = self._precompile_config(offered)
                self.compile_results.append(result)
                result.kernel._init_handles()  # reads the spills
                if not result.kernel.n_spills:
                    self.compile_results = [result]
                    break
        compile_all(self)  # keeps the results
        self.configs = None

    heuristics.CachingAutotuner._precompile_worker = compile_in_order


def note_bytes_moved() -> None:
    """Store inductor's estimate of the bytes per launch in its kernels; requires config.benchmark_kernel."""
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    tuners = [v for module in PyCodeCache.modules for v in vars(module).values() if isinstance(v, CachingAutotuner)]
    for tuner in tuners:
        gigabytes = tuner.inductor_meta.get("kernel_num_gb")
        for result in tuner.compile_results:
            loaded: Any = result.kernel.function
            if isinstance(loaded, LoadedKernel) and gigabytes is not None:
                loaded.bytes_moved = round(gigabytes * 1e9)
