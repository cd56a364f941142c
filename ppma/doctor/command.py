"""`ppma doctor`: what this machine has, which fast paths a run will use and why not the others, and which wrong pairs to mend.

    probe -> Machine (plain facts) -> facts, fast_paths, faults -> a table, or JSON with --json

Everything but `probe` is a pure function of the facts. Exit code 0, or 1 when a wrong pair was found: training would fail or be wrong.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ppma.config.command import DONE, parse
from ppma.doctor.compile import compile_gpu

FAULTY = 1

PAIRS: dict[str, tuple[str, str]] = {"2.11": ("0.26", "3.6.0"), "2.13": ("0.28", "3.7.1")}
"""torch: (its torchvision, its triton), the pairs that were tested. Sources: torchvision's README, the requirements of torch's wheels."""
DRIVER_OF_DALI = {"nvidia-dali-cuda130": 580, "nvidia-dali-cuda120": 525}
"""The oldest driver of each DALI build: CUDA 13 and 12 compatibility tables of NVIDIA."""
BFLOAT16_FROM = 80
"""The first compute capability with bfloat16 matrix units."""
CROWDED = 0.25
"""Share of a GPU's memory above which other processes are in the way; the context of `ppma doctor` itself takes under 1 GiB."""
PACKAGES = (
    *(
        "torch",
        "torchvision",
        "triton",
        *DRIVER_OF_DALI,
        "nvidia-dali",
        "timm",
        "numpy",
        "einops",
        "av",
        "opencv-python",
    ),
    *("opencv-python-headless", "ffcv", "numba", "setuptools", "submitit", "tensorboard", "safetensors", "pyarrow"),
    *("torchcodec", "decord2", "onnxruntime"),
)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what this machine has, which fast paths it will use and why not the others, and what to mend.

    Exit code 1 when two packages do not fit together.
    """

    json: bool = False
    """Write one JSON object in place of the tables."""
    compile_gpu: bool = False
    """Only compile the training steps for this machine's GPU, or for an H100 or H200 where there is none, and show their kernels.
    Minutes on one core; exit code 1 when a step does not compile."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Plain facts about a machine. Versions are those of the installed packages; a package that is not there has no entry."""

    versions: dict[str, str]
    python: str = ""
    cuda_build: str | None = None
    """CUDA version torch was built for; None: a CPU build."""
    gpus: tuple[str, ...] = ()
    """Name and memory of each GPU that torch can use."""
    capabilities: tuple[int, ...] = ()
    """Compute capability of each of them, for example 90."""
    built_for: tuple[int, ...] = ()
    """Compute capabilities that this torch has code for."""
    gpu_used_gib: tuple[float, ...] = ()
    """GiB of each GPU's memory that is taken now."""
    gpu_gib: tuple[float, ...] = ()
    """GiB of memory of each GPU."""
    driver: str | None = None
    """NVIDIA driver version, whether torch can use it or not."""
    dali_cpu: tuple[str, ...] = ()
    dali_gpu: tuple[str, ...] = ()
    """Codecs that DALI decoded just now."""
    ffmpeg: str = ""
    av_codecs: tuple[str, ...] = ()
    """Codecs that PyAV can decode."""
    kernels: tuple[tuple[str, str, str], ...] = ()
    """(work, what `ppma.kernels` runs for it, why)."""
    torchvision: str = ""
    """How torchvision imports: "by itself", "with the shim", or the reason why it does not."""
    broken: dict[str, str] = field(default_factory=dict)
    """package: why its import fails."""
    compiler: bool = False
    sbatch: bool = False
    cores: int = 0
    memory_gib: float = 0.0
    disk_free_gib: float = 0.0


@dataclass(frozen=True)
class FastPath:
    """A piece of work, what does it here, and why not something faster."""

    work: str
    chosen: str
    reason: str


@dataclass(frozen=True)
class Fault:
    """Two parts that do not fit, and the command that mends it."""

    what: str
    mend: str


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _torch_faults(machine: Machine) -> list[Fault]:
    versions, found = machine.versions, []
    torch = versions.get("torch")
    if torch is None:
        return [Fault("torch is not installed", "make venv")]
    if _minor(torch) not in PAIRS:
        return []
    torchvision, triton = PAIRS[_minor(torch)]
    if "torchvision" in versions and _minor(versions["torchvision"]) != torchvision:
        what = f"torchvision {versions['torchvision']} does not go with torch {torch}, which wants {torchvision}"
        found.append(Fault(what, f"pip install 'torchvision=={torchvision}.*'"))
    if "triton" in versions and versions["triton"].split("+")[0] != triton:
        what = f"triton {versions['triton']} does not go with torch {torch}, which wants {triton}"
        found.append(Fault(what, f"pip install triton=={triton}"))
    if machine.driver and machine.cuda_build is None:
        what = f"there is an NVIDIA driver ({machine.driver}), but torch {torch} is a build for the CPU"
        found.append(
            Fault(
                what,
                f"pip install --force-reinstall torch=={torch.split('+')[0]}, from an index that has its CUDA build",
            )
        )
    elif machine.driver and not machine.gpus:
        what = f"torch {torch} (CUDA {machine.cuda_build}) cannot use the driver {machine.driver}"
        found.append(Fault(what, "update the driver, or see `nvidia-smi` and CUDA_VISIBLE_DEVICES"))
    return found


def _gpu_faults(machine: Machine) -> list[Fault]:
    """GPUs that are too old for this torch or for bfloat16, and memory that others hold."""
    found = []
    for gpu, capability in zip(machine.gpus, machine.capabilities):
        if machine.built_for and capability < min(machine.built_for):
            what = f"{gpu} (sm_{capability}) is too old for torch {machine.versions.get('torch')}, built for sm_{min(machine.built_for)} on"
            found.append(Fault(what, "take a newer GPU, or ppma train --device cpu"))
        elif capability < BFLOAT16_FROM:
            what = f"{gpu} (sm_{capability}) has no bfloat16, which runs compute in by default"
            found.append(Fault(what, "ppma train --precision fp16"))
    for index, (used, whole) in enumerate(zip(machine.gpu_used_gib, machine.gpu_gib)):
        if used > CROWDED * whole:
            what = f"{used:.0f} of {whole:.0f} GiB of GPU {index} are taken by other processes"
            found.append(Fault(what, f"see `nvidia-smi`, or choose another by CUDA_VISIBLE_DEVICES (not {index})"))
    return found


def _dali_faults(machine: Machine) -> list[Fault]:
    versions, found = machine.versions, []
    builds = [name for name in DRIVER_OF_DALI if name in versions]
    if not builds:
        found.append(Fault("DALI is not installed", "pip install nvidia-dali-cuda130==2.4.0"))
    if len(builds) > 1:
        found.append(
            Fault("two builds of DALI overwrite each other: " + ", ".join(builds), f"pip uninstall {builds[1]}")
        )
    if "nvidia-dali" in versions:
        found.append(Fault("the package nvidia-dali is a placeholder without DALI in it", "pip uninstall nvidia-dali"))
    if len(builds) == 1 and machine.driver and int(machine.driver.split(".")[0]) < DRIVER_OF_DALI[builds[0]]:
        what = f"{builds[0]} {versions[builds[0]]} wants driver {DRIVER_OF_DALI[builds[0]]} or newer, here is {machine.driver}"
        fitting = (
            builds[0] != "nvidia-dali-cuda120"
            and int(machine.driver.split(".")[0]) >= DRIVER_OF_DALI["nvidia-dali-cuda120"]
        )
        mend = (
            f"pip uninstall {builds[0]}; pip install nvidia-dali-cuda120=={versions[builds[0]]}"
            if fitting
            else "update the driver"
        )
        found.append(Fault(what, mend))
    return found


def _other_faults(machine: Machine) -> list[Fault]:
    versions, found = machine.versions, []
    if {"opencv-python", "opencv-python-headless"} <= set(versions):
        what = "opencv-python and opencv-python-headless overwrite each other"
        mend = "pip uninstall opencv-python-headless; pip install --force-reinstall --no-deps opencv-python==4.11.0.86"
        found.append(Fault(what, mend))
    if (
        "ffcv" in versions
        and machine.python.startswith("3.12")
        and int(versions.get("setuptools", "0").split(".")[0]) not in range(1, 82)
    ):
        what = f"FFCV on Python 3.12 imports distutils, which setuptools below 82 brings; here is {versions.get('setuptools', 'none')}"
        found.append(Fault(what, "pip install 'setuptools<82'"))
    if "numpy" in versions and versions["numpy"].startswith(("0.", "1.")):
        found.append(Fault(f"numpy {versions['numpy']} is too old", "pip install 'numpy>=2'"))
    return found + [Fault(f"{name} does not import: {reason}", "make venv") for name, reason in machine.broken.items()]


def faults(machine: Machine) -> list[Fault]:
    """What does not fit together on this machine, each with the command that mends it."""
    return _torch_faults(machine) + _gpu_faults(machine) + _dali_faults(machine) + _other_faults(machine)


def fast_paths(machine: Machine) -> list[FastPath]:
    """What each piece of work will run on here."""
    gpu = bool(machine.gpus)
    no_gpu = (
        "no GPU that torch can use" if not machine.driver else f"torch cannot use the GPU (driver {machine.driver})"
    )
    rows = []
    nvdec = [codec for codec in machine.dali_gpu if codec != "jpeg"]
    if nvdec:
        rows.append(FastPath("video decoding", "NVDEC through DALI", f"for {', '.join(nvdec)}; PyAV for the rest"))
    else:
        why = no_gpu if not gpu else "DALI decodes no video on this GPU"
        rows.append(FastPath("video decoding", "PyAV in worker processes", f"not NVDEC: {why}"))
    if "jpeg" in machine.dali_gpu:
        rows.append(FastPath("JPEG frames", "nvJPEG through DALI", "DALI decoded a JPEG on this GPU"))
    else:
        rows.append(
            FastPath(
                "JPEG frames",
                "OpenCV in worker processes",
                f"not nvJPEG: {no_gpu if not gpu else 'DALI decodes no JPEG on this GPU'}",
            )
        )
    if gpu and machine.dali_cpu:
        rows.append(FastPath("crops and augmentation", "the DALI graph on the GPU", "loader.implementation=auto"))
    else:
        why = no_gpu if not gpu else "DALI does not work here"
        rows.append(
            FastPath(
                "crops and augmentation",
                "OpenCV in worker processes",
                f"not DALI on a GPU: {why}; faster than DALI on a CPU",
            )
        )
    rows += [FastPath(*row) for row in machine.kernels]
    if machine.compiler:
        rows.append(FastPath("torch.compile", "can be used", "a C++ compiler is there"))
    else:
        rows.append(FastPath("torch.compile", "cannot be used", "no C++ compiler: apt-get install g++"))
    cluster = "SLURM" if machine.sbatch else "this machine (--cluster local)"
    rows.append(
        FastPath("several nodes", cluster, "sbatch is there" if machine.sbatch else "not SLURM: no sbatch on PATH")
    )
    return rows


def facts(machine: Machine) -> list[tuple[str, str]]:
    """(part, what was found) in reading order."""
    versions = machine.versions

    def packages(*names: str) -> str:
        return ", ".join(f"{name} {versions[name]}" for name in names if name in versions) or "not installed"

    cuda = f"built for CUDA {machine.cuda_build}" if machine.cuda_build else "a build for the CPU"
    return [
        ("Python", machine.python),
        ("torch", f"{packages('torch')}, {cuda}"),
        ("GPU", "; ".join(machine.gpus) or "none that torch can use"),
        ("NVIDIA driver", machine.driver or "none"),
        ("DALI", packages(*DRIVER_OF_DALI)),
        ("DALI decodes on the CPU", ", ".join(machine.dali_cpu) or "nothing"),
        (
            "DALI decodes on the GPU",
            ", ".join(machine.dali_gpu) or ("nothing" if machine.gpus else "not tried, no GPU"),
        ),
        ("PyAV", f"{packages('av')}, {machine.ffmpeg}, decodes {', '.join(machine.av_codecs)}"),
        ("Triton", packages("triton")),
        ("timm, torchvision", f"{packages('timm', 'torchvision')}; torchvision imports {machine.torchvision}"),
        ("OpenCV", packages("opencv-python", "opencv-python-headless")),
        ("FFCV", packages("ffcv")),
        ("other decoders", packages("torchcodec", "decord2")),
        ("submitit, SLURM", f"{packages('submitit')}, {'sbatch is there' if machine.sbatch else 'no sbatch'}"),
        (
            "machine",
            f"{machine.cores} cores, {machine.memory_gib:.0f} GiB memory, {machine.disk_free_gib:.0f} GiB free here",
        ),
    ]


def _installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _driver() -> str | None:
    """From nvidia-smi; None where there is none or it fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return answer.stdout.split()[0] if answer.returncode == 0 and answer.stdout.strip() else None


def _built_for() -> tuple[int, ...]:
    """From names such as sm_90, sm_90a and compute_120."""
    import torch

    names = torch.cuda.get_arch_list() if torch.cuda.is_available() else []
    return tuple(sorted({int("".join(filter(str.isdigit, name))) for name in names}))


def _dali(device: str) -> tuple[str, ...]:
    command = [sys.executable, "-m", "ppma.doctor.codecs", device]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return tuple(json.loads(answer.stdout)) if answer.returncode == 0 else ()


def _av_codecs() -> tuple[str, tuple[str, ...]]:
    import av

    wanted = ("h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mjpeg", "wmv2")
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"libavcodec {version}", tuple(name for name in wanted if name in av.codecs_available)


def _torchvision() -> str:
    try:
        from ppma.models.torchvision_shim import ensure_torchvision

        return (
            "with the shim (ppma/models/torchvision_shim.py): its compiled library wants CUDA"
            if ensure_torchvision()
            else "by itself"
        )
    except (ImportError, RuntimeError, OSError) as error:
        return f"not at all: {str(error).splitlines()[0]}"


def probe() -> Machine:
    """Look at this machine; about 6 seconds, most of them imports, and some more on a GPU whose attention no run has measured."""
    import torch

    from ppma.doctor.kernels import chosen_kernels

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
    memory = [torch.cuda.mem_get_info(i) for i in range(len(properties))]
    versions, torchvision, (ffmpeg, av_codecs) = _installed(), _torchvision(), _av_codecs()
    broken = {"torchvision": torchvision} if torchvision.startswith("not at all") else {}
    has_dali = importlib.util.find_spec("nvidia.dali") is not None
    return Machine(
        versions=versions,
        python=platform.python_version(),
        cuda_build=torch.version.cuda,
        gpus=tuple(f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in properties),
        capabilities=tuple(10 * p.major + p.minor for p in properties),
        built_for=_built_for(),
        gpu_used_gib=tuple((whole - free) / 2**30 for free, whole in memory),
        gpu_gib=tuple(whole / 2**30 for _, whole in memory),
        driver=_driver(),
        dali_cpu=_dali("cpu") if has_dali else (),
        dali_gpu=_dali("gpu") if has_dali and cuda else (),
        ffmpeg=ffmpeg,
        av_codecs=av_codecs,
        kernels=chosen_kernels(device),
        torchvision=torchvision,
        broken=broken,
        compiler=shutil.which("g++") is not None or shutil.which("clang++") is not None,
        sbatch=shutil.which("sbatch") is not None,
        cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        disk_free_gib=shutil.disk_usage(Path.cwd()).free / 2**30,
    )


def _table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def main(argv: list[str]) -> int:
    """Run `ppma doctor [--json] [--compile-gpu]`: 0 when everything fits, 1 when a wrong pair was found or a step does not compile."""
    config = parse(Doctor, argv, prog="ppma doctor")
    if config.compile_gpu:
        return compile_gpu(as_json=config.json)
    machine = probe()
    wrong, paths = faults(machine), fast_paths(machine)
    code = FAULTY if wrong else DONE
    if config.json:
        report = {
            "machine": asdict(machine),
            "fast_paths": [asdict(p) for p in paths],
            "faults": [asdict(f) for f in wrong],
        }
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return code
    console = Console(highlight=False)
    console.print(_table("What is there", facts(machine)))
    console.print(_table("\nWhat will be used", [(p.work, p.chosen, p.reason) for p in paths]))
    if wrong:
        console.print(_table("\nWhat does not fit", [(f.what, f.mend) for f in wrong]))
    else:
        console.print("\nNothing that does not fit was found.")
    return code
