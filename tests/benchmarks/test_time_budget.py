"""The estimate of the stage 1 step and of attention's loops: its arithmetic, and its value for the current code."""

import re

import pytest

pytest.importorskip("triton")
from benchmarks import time_budget
from benchmarks.loop_cycles import attention_kernels, main_loop, pipe_cycles, split_loops
from ppma.compile_check.check import Kernel, LibraryCall, StepReport
from ppma.kernels import ahead_of_time

SASS = """
        /*0000*/ MOV R1, c[0x0][0x28] ;
        /*0010*/ @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/ HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4] ;
        /*0030*/ MUFU.EX2 R2, R3 ;
        /*0040*/ FFMA R2, R3, R4, R5 ;
        /*0050*/ @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0060*/ EXIT ;
.L_x_2:
        /*0070*/ BRA `(.L_x_2) ;
"""

CEILING_MS = 65.0
"""The goal: the current estimate (64.9), rounded up. Lower it when the code gets faster."""


def report(depth, block_bytes, rest_bytes):
    """A step whose encoder blocks move `block_bytes`, and decoder blocks in proportion to their tokens and width."""
    ratio = 1568 * 384 / (157 * 768)
    moved = round(rest_bytes + block_bytes * (depth + min(depth, 4) * ratio))
    kernel = Kernel(name="k", registers=1, spill_bytes=0, shared_bytes=0, bytes_moved=moved, launches=1, backward=False)
    call = LibraryCall(operator="aten::mm", shapes=((8, 4), (4, 2)), dtype="bfloat16", calls=depth, backward=False)
    return StepReport(
        phase="mae", arch=90, batch=128, depth=depth, torch="", triton="", kernels=(kernel,),
        calls=(call,), graphs=2, saved_bytes=0, compiled=1, found=0, seconds=0.0,
    )  # fmt: skip


def test_two_depths_separate_encoder_and_decoder_blocks():
    work = time_budget.count_work(report(1, 1e9, 3e8), report(12, 1e9, 3e8))
    assert work.encoder_block_bytes == pytest.approx(1e9) and work.rest_bytes == pytest.approx(3e8)
    assert work.products == ((8, 2, 4, 12),)


def test_instructions_are_split_by_loop_and_counted_by_pipe():
    """The jump to itself at the end of every kernel does not count as a loop."""
    outside, loops = split_loops(SASS)
    assert [[re.split("[. ]", code)[0] for code in loop] for loop in loops] == [["HGMMA", "MUFU", "FFMA", "BRA"]]
    assert pipe_cycles(loops[0]) == {"issue": 4, "tensor": 64, "exp2": 8, "fma": 1, "shared": 48}
    stored = ["HGMMA.64x32x16.F32.BF16 R200, R36, gdesc[UR24].tnspB, R200", "STS.64 [R1], R2", "LDSM.16.M88.4 R4, [R8]"]
    assert pipe_cycles(stored)["shared"] == 8 + 8 + 16
    assert pipe_cycles(["FMNMX", "IMAD.MOV.U32", "HMMA.16816.F32"]) == {"issue": 3, "alu": 2, "fma": 2, "tensor": 8}
    assert [len(codes) for codes in outside] == [2, 2]
    moved = pipe_cycles(["STS.64 [R1], R2", "LDS.64 R2, [R1]", "LDS.64 R4, [R3]"])["shared"]
    assert moved == 8 + 8 + 4  # the second load may be of one word for all


def test_large_products_reach_the_measured_rate_and_short_sums_do_not():
    assert time_budget.product_efficiency(8192, 8192, 8192) == pytest.approx(1, abs=0.05)
    assert time_budget.product_efficiency(200704, 1152, 384) < 0.75


@pytest.fixture
def kernels(compiled_kernels, monkeypatch):
    """The attention kernels of the paper's shapes on an H200."""
    found = [kernel for kernel in compiled_kernels if kernel.capability == 90 and kernel.case == "paper"]
    monkeypatch.setattr(ahead_of_time, "table", lambda *_, **__: found)
    return attention_kernels(90, case="paper")


def test_the_loops_of_stage_1s_decoder_stay_short(kernels):
    """Without peeled masks, sums by the product and exp2 by polynomial it was 606, 658 and 660 cycles."""
    found = {}
    for kernel in (kernel for kernel in kernels if kernel.constants["D"] == 24):
        scores = kernel.constants["ROWS"] * kernel.constants["COLUMNS"] / (32 * kernel.warps)
        found[kernel.kernel] = max(pipe_cycles(main_loop(kernel)).values()) * 64 / scores
    assert found.keys() == {"forward", "query_gradient", "key_value_gradient", "fused_gradient"}
    assert 0 < found["forward"] <= 450  # a release of Triton may move a few instructions
    assert 0 < found["query_gradient"] <= 430
    assert 0 < found["key_value_gradient"] <= 570
    assert 0 < found["fused_gradient"] <= 690  # in place of the two before it


@pytest.mark.usefixtures("kernels")
def test_the_estimate_of_the_current_code():
    parts = time_budget.budget()
    names = [part.name for part in parts]
    assert len(names) == len(set(names)) and all(part.estimate_ms >= part.floor_ms for part in parts)
    assert sum(part.estimate_ms for part in parts) <= CEILING_MS
    half = time_budget.budget(64)
    share = [sum(p.floor_ms for p in made if "attention" not in p.name and p.name != "AdamW") for made in (half, parts)]
    assert share[0] == pytest.approx(share[1] / 2, rel=0.1)
    lines = time_budget.table(parts, 128).splitlines()
    assert len(lines) == len(parts) + 3 and float(lines[-2].split()[-1]) == pytest.approx(
        sum(part.estimate_ms for part in parts), abs=0.01
    )
