"""The inner loops of attention stay short: their machine code is counted, on a machine without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loop_cycles import cycles

pytest.importorskip("triton")
SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "loop_cycles.py"


def test_the_loops_of_stage_1s_decoder_are_as_short_as_they_were_made():
    """Before the mask was peeled, rows were summed by the product and exp2 was shared out: 606, 658 and 660 cycles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), "--widths", "24"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    cycles = {kernel: float(value) for kernel, value in re.findall(r"(?m)^(\w+) .*? (\d+)  \(", printed)}
    assert cycles.keys() == {"forward", "query_gradient", "key_value_gradient"}
    assert 0 < cycles["forward"] <= 450  # a release of Triton may move a few instructions
    assert 0 < cycles["query_gradient"] <= 430
    assert 0 < cycles["key_value_gradient"] <= 530


def test_the_slowest_pipe_is_read_from_the_loop():
    sass = """
        /*0000*/                   MUFU.EX2 R0, R1 ;
    .L_x_1:
        /*0010*/                   MUFU.EX2 R0, R1 ;
        /*0020*/               @P0 FMNMX R0, R1, R2 ;
        /*0030*/                   HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4] ;
        /*0040*/              @!P0 BRA `(.L_x_1) ;
        /*0050*/                   FADD R0, R1, R2 ;
    """
    assert cycles(sass, 64) == {"issue": 4, "exp2": 8, "fma": 0, "alu": 2, "tensor": 16}
    assert cycles(sass, 32)["exp2"] == 16
    with pytest.raises(ValueError, match="no loop"):
        cycles(sass.replace("HGMMA", "LDS"), 64)
