"""Estimate the cycles of attention's inner loops from their machine code, without a GPU.

    python benchmarks/loop_cycles.py
    python benchmarks/loop_cycles.py --capability 80 --all-configs

A quarter of a Hopper multiprocessor issues one instruction a cycle. For a warp the special-function unit (exp2) takes
8 cycles, the ALU (maximum, integers, conversions) 2, the FMA pipe 1, and the tensor cores 512 multiply-adds a cycle.
The pipes overlap, so the largest of the five is the least a loop can take. Figures are for 64 scores a thread (2048 a
warp), whatever the block size. Latencies, bank conflicts and waits for memory are not in them.
"""

import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from ppma.command import DONE, parse, run

FMA = {"FFMA", "FMUL", "FADD", "IMAD", "HFMA2"}
ALU = {"FMNMX", "FSEL", "FSETP", "LOP3", "IADD3", "SEL", "ISETP", "SHF", "PRMT", "F2FP", "MOV", "PLOP3", "LEA", "VIADD"}
SHAPES = ((1568, 16, 24), (1568, 12, 64), (1568, 16, 80))
"""Tokens, heads and head width: stage 1's decoder, stage 2, and the huge model."""


@dataclass(frozen=True, kw_only=True)
class LoopCyclesConfig:
    """Options."""

    capability: int = 90
    """Compute capability to compile for."""
    widths: tuple[int, ...] = (24, 64, 80)
    """Head widths."""
    all_configs: bool = False
    """Every config of a kernel, not only the first."""


def main_loop(sass: str) -> list[str]:
    """Return the instructions of the first loop that multiplies matrices."""
    places: dict[str, int] = {}
    code: list[str] = []
    for line in sass.splitlines():
        if label := re.match(r"\s*\.(L_x_\d+):", line):
            places[label[1]] = len(code)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?(.*?);", line):
            code.append(instruction[1])
            jump = re.search(r"BRA.*`\(\.(L_x_\d+)\)", code[-1])
            body = code[places[jump[1]] :] if jump and jump[1] in places else []
            if any(re.match(r"HG?MMA|UTCHMMA", text) for text in body):
                return body
    raise ValueError("no loop multiplies matrices")


def tensor_cycles(instruction: str) -> float:
    """Return the cycles of a matrix instruction on a quarter of a multiprocessor; 0 for others."""
    if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", instruction):  # of four warps together
        return int(shape[1]) / 4 * int(shape[2]) * int(shape[3]) / 512
    return 8.0 if instruction.startswith("HMMA.16816") else 0.0  # Ampere: 256 multiply-adds a cycle


def cycles(sass: str, scores: float) -> dict[str, float]:
    """Return the cycles of the main loop on each pipe for 64 scores a thread.

    Args:
        sass: Disassembled kernel.
        scores: Scores that a thread computes in one pass of the loop.
    """
    body = main_loop(sass)
    counts = Counter(re.split(r"[. ]", text)[0] for text in body)
    pipes = {
        "issue": len(body),
        "exp2": 8 * counts["MUFU"],
        "fma": sum(counts[name] for name in FMA),
        "alu": 2 * sum(counts[name] for name in ALU),
        "tensor": sum(map(tensor_cycles, body)),
    }
    return {pipe: used * 64 / scores for pipe, used in pipes.items()}


def main(argv: list[str]) -> int:
    """Print a line for each kernel and config."""
    given = parse(LoopCyclesConfig, argv, prog="loop_cycles")
    os.environ.pop("TRITON_INTERPRET", None)  # read when kernels are defined, so before they are imported
    from ppma.kernels import ahead_of_time

    for shape in (shape for shape in SHAPES if shape[2] in given.widths):
        with ahead_of_time.recorded(given.capability) as made:
            ahead_of_time.attention_launches([shape], dtype=torch.bfloat16, all_configs=given.all_configs)
        for function, compiled, _ in made.values():
            values = {function.arg_names[place[0]]: value for place, value in compiled.src.constants.items()}
            warps = compiled.metadata.num_warps
            sass = ahead_of_time.disassemble(compiled.asm["cubin"])
            pipes = cycles(sass, values["ROWS"] * values["COLUMNS"] / (32 * warps))
            name = f"{function.__name__.removesuffix('_kernel')} D{shape[2]} {values['ROWS']}x{values['COLUMNS']} warps {warps}"
            listed = "  ".join(f"{pipe} {used:.0f}" for pipe, used in pipes.items())
            print(f"{name:45} {max(pipes.values()):5.0f}  ({listed})", flush=True)
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="loop_cycles"))
