"""Whole training steps compile for a GPU that is not present, and planted faults are detected."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pytest

from benchmarks.time_budget import kept_work
from ppma.compile_check.check import (
    Kernel,
    Phase,
    Settings,
    StepReport,
    cache_environment,
    check,
    check_steps,
    relocate,
)
from ppma.config.errors import InputError


@pytest.fixture(scope="module")
def steps(compile_cache) -> dict[str, StepReport]:
    """Compile the three steps at full width and batch, with one block of each kind: all blocks use the same kernels."""
    seen: dict[str, list[int]] = {}
    reports = check_steps(
        get_args(Phase),
        Settings(depth=1),
        folder=compile_cache,
        on_kernel=lambda phase, n: seen.setdefault(phase, []).append(n),
    )
    assert not (errors := [report for report in reports if isinstance(report, Exception)]), errors
    assert seen == {report.phase: [*range(report.compiled + report.found + 1)] for report in reports}
    return {report.phase: report for report in reports if isinstance(report, StepReport)}


@pytest.mark.parametrize("phase", get_args(Phase))
def test_step_compiles_without_break_and_spill(steps, phase):
    report = steps[phase]
    assert report.graphs == 2 and report.problems == ()
    assert report.batch == (32 if phase == "probe" else 128) and report.compiled + report.found > 20
    assert report.compiled + report.found < 1.1 * len(report.kernels), "one configuration of each"
    assert all(0 < kernel.registers <= 255 for kernel in report.kernels)
    backward = [kernel for kernel in report.kernels if kernel.backward]
    assert backward and len(backward) < len(report.kernels)


def test_own_kernels_and_products_of_stage_1(steps):
    """Our kernels run, and matrix products have the paper's shapes: 157 of 1568 tokens, 128 rows."""
    report = steps["mae"]
    names = {kernel.name for kernel in report.kernels if kernel.bytes_moved is None}
    assert {"patchify_kernel", "forward_kernel", "query_gradient_kernel", "fused_gradient_kernel"} <= names
    products = {(call.operator, call.shapes[-2:], call.backward): call for call in report.calls}
    assert products["aten::addmm", ((128 * 157, 768), (768, 3 * 768)), False].dtype == "bfloat16"
    assert ("aten::mm", ((128 * 1568, 384), (384, 4 * 384)), True) in products
    assert report.launches > len(report.kernels) > 50 and report.bytes_moved > 1e9 and report.saved_bytes > 1e9


def test_the_time_budget_counts_the_bytes_of_this_step(steps):
    """The file is written by `python benchmarks/time_budget.py --compile`; torch releases differ a little."""
    assert steps["mae"].bytes_moved == pytest.approx(kept_work().shallow_bytes, rel=0.05)


def test_the_probe_has_no_backward_pass_through_the_encoder(steps):
    assert not any(call.backward and call.shapes[-1][-1] >= 768 * 3 for call in steps["probe"].calls)


def run_on_fake_gpu(folder, code):
    """Run code with a fake GPU `gpu` and a function `compiled(function of keys)`, and return the JSON it prints."""
    head = """
import json
from ppma.compile_check import check
gpu = check.start(check.Settings())
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

def compiled(function):
    with FakeTensorMode():
        torch.compile(function, dynamic=False, fullgraph=True)(torch.empty(128, dtype=torch.int64, device="cuda"))

def refusal(work, *given):
    torch._dynamo.reset()
    try:
        work(*given)
    except RuntimeError as error:
        return str(error)
    return ""
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | cache_environment(folder)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", head + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


PLANTED = """
import inspect
from ppma.kernels import philox
from ppma.models.vit import Block

def draw(key_B):
    return philox.uniform(key_B, philox.DevicePurpose.MASK, 16)

found = {"masked": refusal(compiled, draw), "compiled": gpu.recording.compiled, "launches": len(gpu.recording.launches)}

source = inspect.getsource(philox.philox4x32)
assert "(c & _LOW for c in counter_4)" in source
exec(source.replace("(c & _LOW for c in counter_4)", "counter_4"), vars(philox))
found["unmasked"] = refusal(compiled, draw)

forward = Block.forward
def broken(self, *given):
    torch._dynamo.graph_break()
    return forward(self, *given)
Block.forward = broken
found["break"] = refusal(check.compile_step, gpu, "probe", check.Settings(depth=1))

gpu.recording.launches.clear()
from greedy import greedy_kernel
with FakeTensorMode():
    x = torch.empty(128, 128, device="cuda", dtype=torch.bfloat16)
    greedy_kernel[(1,)](x, x, num_warps=1)
((kernel, _),) = gpu.recording.launches
found |= {"registers": kernel.registers, "spill_bytes": kernel.spill_bytes}
print(json.dumps(found))
"""

GREEDY = """
import triton
import triton.language as tl

@triton.jit
def greedy_kernel(x, y):
    rows, columns = tl.arange(0, 128)[:, None], tl.arange(0, 128)[None, :]
    tile = tl.load(x + rows * 128 + columns)
    total = tl.zeros((128, 128), tl.float32)
    for _ in range(8):
        total += tl.dot(tile, tile)
    tl.store(y + rows * 128 + columns, tl.trans(total) + total)
"""

AGAIN = """
from ppma.kernels import philox
torch._inductor.config.benchmark_kernel = False  # as on a GPU
compiled(lambda key_B: philox.uniform(key_B, philox.DevicePurpose.MASK, 16))
print(json.dumps({"compiled": gpu.recording.compiled, "launches": len(gpu.recording.launches)}))
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Compile planted faults; return what was found, and the folder of the caches."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "greedy.py").write_text(GREEDY)
    return run_on_fake_gpu(folder, PLANTED), folder


def test_planted_faults_are_refused(planted):
    """A graph break in a block, and a Philox counter that is an index, which inductor multiplies in int32."""
    found, _ = planted
    assert found["masked"] == "" and found["launches"] > 0
    assert "int32" in found["unmasked"] or "out of range" in found["unmasked"]
    assert "graph_break" in found["break"]


def test_spilled_registers_are_read_from_the_machine_code(planted):
    """One warp holds a tile of 128 x 128 sums: 512 registers per thread, where 255 exist."""
    found, _ = planted
    assert found["registers"] <= 255 and found["spill_bytes"] > 100


def test_a_run_finds_what_was_compiled_in_another_place(planted, tmp_path):
    first, folder = planted
    moved = folder.rename(tmp_path / "moved")
    relocate(moved)
    second = run_on_fake_gpu(moved, AGAIN)
    assert first["compiled"] > 0 and second == {"compiled": 0, "launches": first["launches"]}


def report_of(**changes):
    kernel = Kernel(
        name="k", registers=255, spill_bytes=0, shared_bytes=0, bytes_moved=None, launches=1, backward=False
    )
    return StepReport(
        phase="mae", arch=90, batch=1, depth=1, torch="", triton="", graphs=2, saved_bytes=0, compiled=1, found=0,
        seconds=0.0, kernels=(replace(kernel, **changes),), calls=(),
    )  # fmt: skip


def test_spills_and_breaks_are_problems():
    assert report_of().problems == ()
    assert len(report_of(spill_bytes=4).problems) == 1
    assert len(replace(report_of(), graphs=4).problems) == 1


@pytest.mark.parametrize(("phase", "settings"), [("nothing", Settings()), ("mae", Settings(batch=0))])
def test_wrong_input_is_named(phase, settings):
    with pytest.raises(InputError):
        check(phase, settings)
