"""`ppma doctor`: what this machine has, which fast paths a run takes and why, and which parts do not fit together.

    probe  ->  Machine  ->  overview, fast_paths, problems  ->  tables, or JSON with --json

Everything but `probe` is a pure function of a Machine. Exit code 0, or 1 when parts do not fit: training would fail or
be wrong.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ppma.common.packages import find_compiler, installed_versions
from ppma.config.command import DONE, parse
from ppma.doctor.compile import FAULTY, compile_gpu

PAIRS: dict[str, tuple[str, str]] = {"2.11": ("0.26", "3.6.0"), "2.13": ("0.28", "3.7.1")}
"""torch: (its torchvision, its triton), as tested. Sources: torchvision's README, the requirements of torch's
wheels."""
DALI_DRIVERS = {"nvidia-dali-cuda130": 580, "nvidia-dali-cuda120": 525}
"""The oldest driver that each DALI build supports. Source: NVIDIA's CUDA 13 and 12 compatibility tables."""
BFLOAT16_FROM = 80
"""The first compute capability with bfloat16 matrix units."""
CROWDED = 0.25
"""Share of a GPU's memory in use above which other processes are a problem; `ppma doctor` itself uses under 1 GiB."""
PACKAGES = (  # noqa: SIM905  # a list literal would take 22 lines
    "torch torchvision triton nvidia-dali-cuda130 nvidia-dali-cuda120 nvidia-dali timm numpy einops av opencv-python "
    "opencv-python-headless ffcv numba setuptools submitit tensorboard safetensors pyarrow torchcodec decord2 onnxruntime"
).split()


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Report this machine's hardware, the fast paths that a run takes on it, and problems with their fixes.

    For example:
      ppma doctor --json

    Exit code 1 when parts do not fit together.
    """

    json: bool = False
    """Write one JSON object instead of tables."""
    compile_gpu: bool = False
    """Only compile the training steps for this machine's GPU, or for an H100 or H200 if it has none, and list their
    kernels. Takes minutes on one core; exit code 1 when a step does not compile."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found on a machine."""

    versions: dict[str, str]
    """Installed packages with their versions."""
    python: str = ""
    cuda_build: str | None = None
    """CUDA version that torch was built for; None for a CPU build."""
    gpus: tuple[str, ...] = ()
    """Name and memory of each GPU that torch can use."""
    capabilities: tuple[int, ...] = ()
    """Compute capability of each GPU, for example 90."""
    built_for: tuple[int, ...] = ()
    """Compute capabilities that this torch has code for."""
    gpu_used_gib: tuple[float, ...] = ()
    """Memory in use on each GPU."""
    gpu_gib: tuple[float, ...] = ()
    """Memory of each GPU."""
    driver: str | None = None
    """NVIDIA driver version, whether torch can use it or not."""
    dali_cpu: tuple[str, ...] = ()
    """Codecs that DALI has just decoded on the CPU."""
    dali_gpu: tuple[str, ...] = ()
    """Codecs that DALI has just decoded on the GPU."""
    ffmpeg: str = ""
    av_codecs: tuple[str, ...] = ()
    """Codecs that PyAV can decode."""
    kernels: tuple[tuple[str, str, str], ...] = ()
    """(task, selected backend of `ppma.kernels`, reason)."""
    torchvision: str = ""
    """How torchvision imports: "by itself", "with the shim" or "not at all"."""
    broken: dict[str, str] = field(default_factory=dict)
    """package: why its import fails."""
    compiler: bool = False
    sbatch: bool = False
    cores: int = 0
    memory_gib: float = 0.0
    disk_free_gib: float = 0.0

    @property
    def driver_major(self) -> int:
        """The major version of the driver; 0 without one."""
        return int(self.driver.split(".")[0]) if self.driver else 0

    @property
    def no_gpu(self) -> str:
        """Why torch has no GPU."""
        return f"torch cannot use the GPU (driver {self.driver})" if self.driver else "no GPU that torch can use"


@dataclass(frozen=True)
class FastPath:
    """A task, its selected backend, and why it was selected or faster ones are unavailable."""

    task: str
    backend: str
    reason: str


@dataclass(frozen=True)
class Problem:
    """Parts that do not fit together, and the command that fixes it."""

    what: str
    fix: str


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _torch_problems(machine: Machine) -> Iterator[Problem]:
    versions, torch = machine.versions, machine.versions.get("torch")
    if torch is None or _minor(torch) not in PAIRS:
        return
    torchvision, triton = PAIRS[_minor(torch)]
    if "torchvision" in versions and _minor(versions["torchvision"]) != torchvision:
        what = f"torchvision {versions['torchvision']} does not fit torch {torch}, which needs {torchvision}"
        yield Problem(what, f"pip install 'torchvision=={torchvision}.*'")
    if "triton" in versions and versions["triton"].split("+")[0] != triton:
        what = f"triton {versions['triton']} does not fit torch {torch}, which needs {triton}"
        yield Problem(what, f"pip install triton=={triton}")


def _driver_problems(machine: Machine) -> Iterator[Problem]:
    torch = machine.versions.get("torch")
    if torch is None or "torch" in machine.broken or not machine.driver:
        return
    if machine.cuda_build is None:
        what = f"this machine has an NVIDIA driver ({machine.driver}), but torch {torch} is a CPU build"
        version = torch.split("+")[0]
        yield Problem(what, f"pip install --force-reinstall torch=={version}, from an index that has its CUDA build")
    elif not machine.gpus:
        what = f"torch {torch} (CUDA {machine.cuda_build}) cannot use the driver {machine.driver}"
        yield Problem(what, "update the driver, or check `nvidia-smi` and CUDA_VISIBLE_DEVICES")


def _gpu_problems(machine: Machine) -> Iterator[Problem]:
    for gpu, capability in zip(machine.gpus, machine.capabilities):
        if machine.built_for and capability < min(machine.built_for):
            torch = f"torch {machine.versions.get('torch')}, built for sm_{min(machine.built_for)} and newer"
            what = f"{gpu} (sm_{capability}) is too old for {torch}"
            yield Problem(what, "use a newer GPU, or ppma train --device cpu")
        elif capability < BFLOAT16_FROM:
            what = f"{gpu} (sm_{capability}) has no bfloat16, the default precision of a run"
            yield Problem(what, "ppma train --precision fp16")
    for index, (used, total) in enumerate(zip(machine.gpu_used_gib, machine.gpu_gib)):
        if used > CROWDED * total:
            what = f"{used:.0f} of {total:.0f} GiB of GPU {index} are in use by other processes"
            yield Problem(what, f"check `nvidia-smi`, or choose another GPU with CUDA_VISIBLE_DEVICES (not {index})")


def _dali_problems(machine: Machine) -> Iterator[Problem]:
    versions = machine.versions
    builds = [name for name in DALI_DRIVERS if name in versions]
    if not builds:
        yield Problem("DALI is not installed", "pip install nvidia-dali-cuda130==2.4.0")
    if len(builds) > 1:
        yield Problem(f"two DALI builds overwrite each other: {', '.join(builds)}", f"pip uninstall {builds[1]}")
    if "nvidia-dali" in versions:
        yield Problem("the package nvidia-dali is an empty placeholder, not DALI", "pip uninstall nvidia-dali")
    if len(builds) == 1 and machine.driver and machine.driver_major < DALI_DRIVERS[builds[0]]:
        build, older = builds[0], "nvidia-dali-cuda120"
        driver = f"driver {DALI_DRIVERS[build]} or newer; this machine has {machine.driver}"
        what = f"{build} {versions[build]} needs {driver}"
        replaces = build != older and machine.driver_major >= DALI_DRIVERS[older]
        reinstall = f"pip uninstall {build}; pip install {older}=={versions[build]}"
        yield Problem(what, reinstall if replaces else "update the driver")


def _package_problems(machine: Machine) -> Iterator[Problem]:
    versions = machine.versions
    opencv = {name: versions[name] for name in ("opencv-python", "opencv-python-headless") if name in versions}
    if len(set(opencv.values())) > 1:
        what = f"{' and '.join(f'{name} {version}' for name, version in opencv.items())} overwrite each other"
        yield Problem(what, f"pip uninstall {' '.join(opencv)}; pip install opencv-python-headless==4.11.0.86")
    setuptools = versions.get("setuptools", "0")
    lacks_distutils = machine.python.startswith(("3.12", "3.13")) and not 1 <= int(setuptools.split(".")[0]) < 82
    if "ffcv" in versions and lacks_distutils:
        what = f"FFCV on Python {machine.python} imports distutils, which only setuptools below 82 provides; installed: {setuptools}"
        yield Problem(what, "pip install 'setuptools<82'")
    if versions.get("numpy", "2").startswith(("0.", "1.")):
        yield Problem(f"numpy {versions['numpy']} is too old", "pip install 'numpy>=2'")
    for name, reason in machine.broken.items():
        yield Problem(f"{name} does not import: {reason}", "make venv")


def problems(machine: Machine) -> list[Problem]:
    """Return what does not fit together on a machine, each with the command that fixes it."""
    checks = (_torch_problems, _driver_problems, _gpu_problems, _dali_problems, _package_problems)
    return [problem for check in checks for problem in check(machine)]


def fast_paths(machine: Machine) -> list[FastPath]:
    """Return the backend of every task on a machine."""
    video = [codec for codec in machine.dali_gpu if codec != "jpeg"]
    cpu = "OpenCV in worker processes"

    def lacks(what: str) -> str:
        return what if machine.gpus else machine.no_gpu

    nvdec = ("NVDEC through DALI", f"for {', '.join(video)}; PyAV for the rest")
    pyav = ("PyAV in worker processes", f"not NVDEC: {lacks('DALI decodes no video on this GPU')}")
    nvjpeg = ("nvJPEG through DALI", "DALI decoded a JPEG on this GPU")
    opencv = (cpu, f"not nvJPEG: {lacks('DALI decodes no JPEG on this GPU')}")
    graph = ("the DALI graph on the GPU", "loader.implementation=auto")
    plain = (cpu, f"not DALI on a GPU: {lacks('DALI does not work here')}; faster than DALI on a CPU")
    compiles, compiles_not = (
        ("available", "a C++ compiler is installed"),
        ("unavailable", "no C++ compiler: apt-get install g++"),
    )
    slurm, local = ("SLURM", "sbatch is on PATH"), ("this machine (--cluster local)", "not SLURM: no sbatch on PATH")
    return [
        FastPath("video decoding", *(nvdec if video else pyav)),
        FastPath("JPEG frames", *(nvjpeg if "jpeg" in machine.dali_gpu else opencv)),
        FastPath("crops and augmentation", *(graph if machine.gpus and machine.dali_cpu else plain)),
        *(FastPath(*row) for row in machine.kernels),
        FastPath("torch.compile", *(compiles if machine.compiler else compiles_not)),
        FastPath("several nodes", *(slurm if machine.sbatch else local)),
    ]


def overview(machine: Machine) -> list[tuple[str, str]]:
    """Return (part, what was found) in reading order."""

    def packages(*names: str) -> str:
        found = [f"{name} {machine.versions[name]}" for name in names if name in machine.versions]
        return ", ".join(found) or "not installed"

    build = f"built for CUDA {machine.cuda_build}" if machine.cuda_build else "CPU build"
    build = "does not import" if "torch" in machine.broken else build
    not_tried = "nothing" if machine.gpus else "not tried, no GPU"
    resources = f"{machine.cores} cores, {machine.memory_gib:.0f} GiB memory, {machine.disk_free_gib:.0f} GiB free in this folder"
    return [
        ("Python", machine.python),
        ("torch", f"{packages('torch')}, {build}"),
        ("GPU", "; ".join(machine.gpus) or "none that torch can use"),
        ("NVIDIA driver", machine.driver or "none"),
        ("DALI", packages(*DALI_DRIVERS)),
        ("DALI decodes on the CPU", ", ".join(machine.dali_cpu) or "nothing"),
        ("DALI decodes on the GPU", ", ".join(machine.dali_gpu) or not_tried),
        ("PyAV", f"{packages('av')}, {machine.ffmpeg}, decodes {', '.join(machine.av_codecs)}"),
        ("Triton", packages("triton")),
        ("timm, torchvision", f"{packages('timm', 'torchvision')}; torchvision imports {machine.torchvision}"),
        ("OpenCV", packages("opencv-python", "opencv-python-headless")),
        ("FFCV", packages("ffcv")),
        ("other decoders", packages("torchcodec", "decord2")),
        ("submitit, SLURM", f"{packages('submitit')}, {'sbatch on PATH' if machine.sbatch else 'no sbatch'}"),
        ("machine", resources),
    ]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _output(command: Sequence[str], seconds: float) -> str:
    """Return what a command prints; nothing if it is missing, fails or takes longer, as with a broken driver."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _driver() -> str | None:
    """Return the driver version that nvidia-smi prints; None if it prints none."""
    versions = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], seconds=60)
    return next(iter(versions.split()), None)


def _torch() -> dict[str, Any]:
    """Return the fields of Machine that torch fills; only `broken` if it does not import."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that torch links is missing
        return {"broken": {"torch": _first_line(error)}}
    from ppma.doctor.kernels import chosen_kernels

    cuda = torch.cuda.is_available()
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
    memory = [torch.cuda.mem_get_info(i) for i in range(len(properties))]
    built_for = torch.cuda.get_arch_list() if cuda else []  # for example sm_90, sm_90a, compute_120
    return {
        "cuda_build": torch.version.cuda,
        "gpus": tuple(f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in properties),
        "capabilities": tuple(10 * p.major + p.minor for p in properties),
        "built_for": tuple(sorted({int("".join(filter(str.isdigit, name))) for name in built_for})),
        "gpu_used_gib": tuple((total - free) / 2**30 for free, total in memory),
        "gpu_gib": tuple(total / 2**30 for _, total in memory),
        "kernels": chosen_kernels(torch.device("cuda", 0) if cuda else torch.device("cpu")),
    }


def _dali(device: str) -> tuple[str, ...]:
    codecs = _output([sys.executable, "-m", "ppma.doctor.codecs", device], seconds=300)
    return tuple(json.loads(codecs or "[]"))


def _av_codecs() -> tuple[str, tuple[str, ...]]:
    import av

    wanted = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mjpeg", "wmv2")
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"libavcodec {version}", tuple(name for name in wanted if name in av.codecs_available)


def _torchvision() -> tuple[str, dict[str, str]]:
    """Return the fields `torchvision` and `broken` of Machine."""
    try:
        from ppma.models.torchvision_shim import ensure_torchvision

        shim = "with the shim (ppma/models/torchvision_shim.py): its compiled library needs CUDA"
        return (shim if ensure_torchvision() else "by itself"), {}
    except (ImportError, RuntimeError, OSError) as error:
        return "not at all", {"torchvision": _first_line(error)}


def probe() -> Machine:
    """Examine this machine. Takes about 6 seconds, mostly imports, and longer on a GPU whose attention backends were
    never measured."""
    found, versions = _torch(), installed_versions(PACKAGES)
    (torchvision, broken), (ffmpeg, av_codecs) = _torchvision(), _av_codecs()
    has_dali = any(build in versions for build in DALI_DRIVERS)
    return Machine(
        **found | {"broken": found.get("broken", {}) | broken},
        versions=versions, python=platform.python_version(), driver=_driver(),
        dali_cpu=_dali("cpu") if has_dali else (), dali_gpu=_dali("gpu") if has_dali and found.get("gpus") else (),
        ffmpeg=ffmpeg, av_codecs=av_codecs, torchvision=torchvision,
        compiler=find_compiler("cuda" if found.get("gpus") else "cpu") is not None,
        sbatch=shutil.which("sbatch") is not None, cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        disk_free_gib=shutil.disk_usage(Path.cwd()).free / 2**30,
    )  # fmt: skip


def _table(title: str, rows: Iterable[Iterable[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def main(argv: list[str]) -> int:
    """Run `ppma doctor ARGV`; return 1 when parts do not fit together or a step does not compile."""
    config = parse(Doctor, argv, prog="ppma doctor")
    if config.compile_gpu:
        return compile_gpu(as_json=config.json)
    machine = probe()
    found, paths = problems(machine), fast_paths(machine)
    code = FAULTY if found else DONE
    if config.json:
        report = {"machine": asdict(machine), "fast_paths": [asdict(path) for path in paths]}
        report["problems"] = [asdict(problem) for problem in found]
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return code
    console = Console(highlight=False)
    console.print(_table("This machine", overview(machine)))
    console.print(_table("\nFast paths", map(astuple, paths)))
    console.print(_table("\nProblems and fixes", map(astuple, found)) if found else "\nNo problems found.")
    return code
