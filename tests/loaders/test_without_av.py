"""Tests of kernels and of the GPU run on machines without PyAV: only what opens a video imports it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FOR_GPUS = [
    path.stem for path in sorted(TESTS.glob("test_*.py")) if re.search(r"mark\.cuda|triton_device", path.read_text())
]
DECODING = {"test_throughput"}
"""What these measure is decoding, with every reader."""


def imported_early(path: Path) -> set[str]:
    """The modules that a file imports before anything in it is called."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", ["conftest", *sorted(set(FOR_GPUS) - DECODING)])
def test_no_test_for_gpus_imports_av_early(name):
    names = imported_early(TESTS / f"{name}.py")
    for helper in [n for n in names if (TESTS / f"{n}.py").exists()]:
        names |= imported_early(TESTS / f"{helper}.py")
    opening = {"av", "ppma.loaders.decode.fetch", "ppma.loaders.sources.probe"}
    assert not names & opening


def test_training_imports_no_av():
    modules = (
        "ppma.train, ppma.transfer.evaluate, ppma.loaders.stream, ppma.loaders.decode.dali, ppma.loaders.decode.readers"
    )
    code = f"import sys; sys.modules['av'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
