"""What a run ran on, for `environment.json`: versions, device, ranks, precision, fast paths."""

import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ppma.config.run import RunConfig
from ppma.kernels import choice
from ppma.loaders.stream import choose_implementation
from ppma.training.compute import Compute
from ppma.training.distributed import Ranks

PACKAGES = (
    "ppma",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "nvidia-dali-cuda130",
    "av",
    "opencv-python",
    "ffcv",
    "triton",
)


def versions() -> dict[str, str]:
    """Installed versions of the packages a result may depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def resident_bytes() -> int:
    """Memory of this process in RAM (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def implementations(config: RunConfig, ranks: Ranks) -> dict[str, str]:
    """Which fast paths run here, and why, in words: the loader's form and the kernels'."""
    loader, why = choose_implementation(config.loader, ranks.device)
    if config.loader.implementation == "auto" and ranks.device.type == "cuda":
        why += "; a training run measures the others and may take one of them, see its log"
    kernels, because = choice.explain(ranks.device)
    return {"loader": f"{loader} ({why})", "kernels": f"{kernels} ({because})"}


def describe(config: RunConfig, ranks: Ranks, compute: Compute) -> dict[str, Any]:
    """The facts."""
    on_gpu = ranks.device.type == "cuda"
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "versions": versions(),
        "host": platform.node(),
        "cpu_count": os.cpu_count(),
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else "cpu",
        "cuda": torch.version.cuda,
        "world_size": ranks.world_size,
        "weights": str(compute.weights),
        "products": str(compute.products),
        "implementations": implementations(config, ranks),
    }


def write(path: Path, config: RunConfig, ranks: Ranks, compute: Compute) -> None:
    """Add the facts of this start to the file: a resumed run has a line for each machine it was on."""
    before = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*before, describe(config, ranks, compute)], indent=2) + "\n")
