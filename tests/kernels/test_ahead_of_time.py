"""Every Triton kernel compiles for GPUs that are not present, fits them, and uses their fast instructions."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")
from ppma.kernels import ahead_of_time

KERNELS = Path(ahead_of_time.__file__).parent
SMS, ISSUES_PER_SECOND, BYTES_PER_SECOND = 132, 4 * 1.755e9, 4.3e12
"""An H200: multiprocessors, instructions that one issues per second, and the bandwidth of a large copy."""


def test_every_kernel_compiles_without_a_problem(compiled_kernels):
    found = [
        f"{k.capability} {k.kernel} {k.case} {k.dtype} {k.constants}: {p}" for k in compiled_kernels for p in k.problems
    ]
    assert found == []
    assert {k.capability for k in compiled_kernels} == set(ahead_of_time.CAPABILITIES)


def test_every_kernel_is_in_the_table(compiled_kernels):
    defined = {
        line.removeprefix("def ").split("(")[0]
        for file in KERNELS.glob("*_triton.py")
        for line in file.read_text().splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
    assert {f"{k.kernel}_kernel" for k in compiled_kernels if k.capability == 90} == defined


def test_patches_move_16_bytes_at_a_time_where_they_are_aligned(compiled_kernels):
    """The JIT checks alignment at each launch and compiles another kernel, with narrow loads, for unaligned frames."""
    patches = [k for k in compiled_kernels if "WIDE" in k.constants]
    aligned = [k for k in patches if k.case == "aligned"]
    assert len(aligned) >= 4 * len(ahead_of_time.CAPABILITIES)
    for kernel in aligned:
        assert kernel.accesses["load 128"] >= 3
        assert kernel.constants.get("GRADIENT") is False or kernel.accesses["store 128"] >= 6  # the loss stores one sum
    assert all(k.accesses["load 8"] for k in patches if k.case == "unaligned")


def test_the_gradient_of_gelu_moves_16_bytes_at_a_time(compiled_kernels):
    kernels = [k for k in compiled_kernels if k.kernel == "gelu_gradient"]
    assert len(kernels) == len(ahead_of_time.CAPABILITIES)
    for kernel in kernels:
        assert {"load 128", "store 128"} <= set(kernel.accesses) and "store 16" not in kernel.accesses


def test_memory_bound_kernels_are_not_limited_by_instructions(compiled_kernels):
    """A program is one warp with one patch: issuing its instructions must take less time than moving its bytes."""
    for kernel in compiled_kernels:
        if kernel.capability == 90 and kernel.case == "aligned" and kernel.dtype == "bfloat16":
            issue = kernel.warps * sum(kernel.instructions.values()) / (SMS * ISSUES_PER_SECOND)
            patch_bytes = 1536 + 3072 * (1 + bool(kernel.constants.get("GRADIENT")))
            assert issue < patch_bytes / BYTES_PER_SECOND, kernel


@pytest.mark.slow
def test_every_config_of_attention_compiles_without_a_problem():
    found = [f"{k.capability} {k}: {p}" for k in ahead_of_time.table(thorough=True) for p in k.problems]
    assert found == []


def test_problems_are_named():
    fine = ahead_of_time.CompiledKernel(
        capability=90, kernel="forward", case="aligned", dtype="bfloat16", constants={"WIDE": True},
        warps=4, stack_bytes=0, shared_bytes=1024, multiplies=True,
        instructions={"HGMMA": 8}, accesses={"load 128": 3},
    )  # fmt: skip
    assert fine.problems == []
    for change in (
        {"shared_bytes": 228 * 1024},
        {"stack_bytes": 8},
        {"instructions": {"HMMA": 64}},
        {"accesses": {"load 128": 3, "store 16": 4}},
        {"accesses": {"load 32": 12}},
    ):
        assert len(replace(fine, **change).problems) == 1, change
