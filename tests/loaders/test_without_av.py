"""Tests of kernels and of GPUs run on machines without PyAV: only code that opens a video imports it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FOR_GPUS = [
    path
    for path in sorted(TESTS.rglob("test_*.py"))
    if re.search(r"mark\.cuda|triton_device", path.read_text()) and path.name != "test_throughput.py"
]
"""Tests for GPUs; test_throughput measures decoding itself."""


def imported_early(path: Path) -> set[str]:
    """Return the modules that a file imports before anything in it is called."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", [TESTS / "conftest.py", *FOR_GPUS], ids=lambda path: path.stem)
def test_no_test_for_gpus_imports_av_early(path):
    names = imported_early(path)
    for name in list(names):
        helper = TESTS / f"{name.removeprefix('tests.').replace('.', '/')}.py"
        names |= imported_early(helper) if helper.exists() else set()
    assert not names & {"av", "ppma.loaders.decode.fetch", "ppma.loaders.decode.remux", "ppma.loaders.sources.probe"}


def test_training_imports_no_av():
    modules = "ppma.phases, ppma.transfer.evaluate, ppma.loaders.stream, ppma.loaders.decode.dali, ppma.loaders.readers"
    code = f"import sys; sys.modules['av'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
