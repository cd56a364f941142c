"""Look up the versions of installed packages without importing them, and the compiler that torch.compile calls."""

import os
import shutil
from collections.abc import Iterable
from importlib import metadata


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return {name: version} of those of the packages that are installed, in the given order."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def find_compiler(device: str) -> str | None:
    """Return the compiler that torch.compile calls on a device: for a CPU inductor's, for a GPU Triton's; None for none."""
    named, names = ("CC", ("gcc", "clang")) if device == "cuda" else ("CXX", ("g++",))
    return next(filter(None, map(shutil.which, [os.environ[named]] if named in os.environ else names)), None)
