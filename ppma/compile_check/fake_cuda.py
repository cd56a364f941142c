"""Load the C++ half of `ppma.compile_check.fake_gpu`: CUDA hooks and a device guard that do nothing, before torch.

    fake_cuda.cpp  ->  g++, once for each torch  ->  a shared library in ~/.cache/ppma  ->  load

Imports torch only in `load`: torch looks for its CUDA hooks while it is imported, and keeps what it finds.
"""

import ctypes
import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from ppma.config.cache import cache_folder
from ppma.config.errors import InputError


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise InputError("torch is not installed")
    return Path(spec.origin).parent


def guard_library() -> Path:
    """Return the shared library for this torch, compiled on the first call and kept in ~/.cache/ppma (XDG_CACHE_HOME
    moves it).

    Raises:
        InputError: there is no C++ compiler.
    """
    source, home = Path(__file__).with_suffix(".cpp"), _torch_folder()
    key = hashlib.sha256(source.read_bytes() + f"{metadata.version('torch')} {home}".encode()).hexdigest()[:16]
    library = cache_folder() / f"fake_cuda-{key}.so"
    if library.exists():
        return library
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise InputError(
            "compiling for a GPU that is not present needs a C++ compiler: apt-get install g++, or set CXX"
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        options = ["-shared", "-fPIC", "-O1", "-std=c++20"]
        options += [f"-I{home}/include", f"-L{home}/lib", f"-Wl,-rpath,{home}/lib"]
        command = [compiler, *options, str(source), "-o", str(made), "-lc10", "-ltorch_cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} cannot compile {source.name}: {done.stderr[-2000:]}")
        made.replace(library)
    return library


def load() -> None:
    """Load the library and import torch, in this order, and give the process a CUDA device without memory."""
    if "torch" in sys.modules:
        raise RuntimeError("the fake device is loaded before torch, and torch is imported already")
    library = ctypes.CDLL(str(guard_library()))
    library.install_fake_cuda_hooks()
    importlib.import_module("torch")
    library.install_fake_cuda_guard()
