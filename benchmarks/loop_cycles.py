"""Estimate the cycles of attention's inner loops from their machine code, without a GPU.

    python benchmarks/loop_cycles.py
    python benchmarks/loop_cycles.py --capability 80 --all-configs

The pipes of a multiprocessor overlap, so the busiest one bounds the time of a loop from below. Figures are cycles for
64 scores per thread (2048 per warp), for any block size. Latencies, bank conflicts and waits for memory are not
included.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppma.config.command import DONE, parse, run
from ppma.kernels import ahead_of_time

ALU = ("FMNMX", "FSEL", "FSETP", "LOP3", "IADD3", "SEL", "ISETP", "SHF", "PRMT", "F2FP", "LEA", "VIADD", "MOV", "PLOP3")
PIPES: dict[str, tuple[str, int]] = {
    **dict.fromkeys(("FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2"), ("fma", 1)),
    "IMAD": ("fma", 2),
    **dict.fromkeys(ALU, ("alu", 2)),
    "MUFU": ("exp2", 8),
    "HMMA": ("tensor", 8),
}
"""{opcode: (pipe, cycles)} of a warp on a quarter of a multiprocessor. Rates per cycle and multiprocessor, compute capability 9.0
(CUDA C++ Programming Guide, arithmetic throughput): 128 float32, 64 integer and conversions, 16 special functions, 2048 16-bit
multiply-adds by wgmma. HMMA is Ampere's 16 x 8 x 16 at 1024."""


@dataclass(frozen=True, kw_only=True)
class LoopCyclesConfig:
    """Estimate the cycles of attention's inner loops."""

    capability: int = 90
    """Compute capability to compile for."""
    all_configs: bool = False
    """Every config of a kernel, not only the first."""


def shared_cycles(instruction: str) -> int:
    """Return the cycles of shared memory, 128 bytes each, for one warp on each quarter of a multiprocessor.

    wgmma reads the operand with its columns, and that with its rows unless it is in registers, once for four warps.
    Loads of one word by many lanes take a cycle, so loads other than LDSM count as one.
    """
    if shape := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\S* R\d+, (R\d+)?", instruction):
        rows, columns, depth = map(int, shape.groups()[:3])
        return 2 * depth * (columns + (0 if shape[4] else rows)) // 128
    if matrices := re.match(r"(?:LDSM|STSM)\S*?\.(2|4) ", instruction):
        return 4 * int(matrices[1])
    if wide := re.match(r"(?:STS|LDGSTS)\S*?\.(64|128)\b", instruction):
        return 4 * int(wide[1]) // 32
    return 4 if re.match(r"(?:LDS|STS|LDGSTS|LDSM|STSM)[. ]", instruction) else 0


def pipe_cycles(codes: Sequence[str]) -> Counter[str]:
    """Return the cycles that a warp's instructions keep each pipe busy, and one per instruction for the issue slot.

    Wide loads from shared memory that match a store of that width change a layout and count with their whole width.
    """
    pipes = Counter(issue=len(codes))
    for words in (2, 4):
        stores, loads = (sum(code.startswith(f"{name}.{32 * words} ") for code in codes) for name in ("STS", "LDS"))
        if both := min(stores, loads):
            pipes["shared"] += 4 * (words - 1) * both
    for code in codes:
        name = re.split("[. ]", code)[0]
        if shared := shared_cycles(code):
            pipes["shared"] += shared
        if name == "HGMMA":
            m, n, k = map(int, re.search(r"(\d+)x(\d+)x(\d+)", code).groups())  # type: ignore[union-attr]
            pipes["tensor"] += m * n * k // 2048
        elif name in PIPES:
            pipe, cycles = PIPES[name]
            pipes[pipe] += cycles
    return pipes


def split_loops(sass: str) -> tuple[list[list[str]], list[list[str]]]:
    """Return the instructions before, between and after the innermost loops, and those of each of these loops."""
    labels: dict[str, int] = {}
    codes: list[str] = []
    spans: list[tuple[int, int]] = []
    for line in sass.splitlines():
        if label := re.match(r"\s*\.(L_x_\d+):", line):
            labels[label[1]] = len(codes)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z].*?) ?;", line):
            codes.append(found[1])
            target = re.search(r"BRA.*\(\.(L_x_\d+)\)", line)
            if target and target[1] in labels and labels[target[1]] < len(codes) - 1:
                spans.append((labels[target[1]], len(codes)))
    inner = [s for s in spans if not any(s != other and s[0] <= other[0] and other[1] <= s[1] for other in spans)]
    ends = [0, *(edge for span in inner for edge in span), len(codes)]
    return [codes[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True)], [codes[a:b] for a, b in inner]


def attention_loops(kernel: ahead_of_time.CompiledKernel) -> tuple[list[list[str]], list[list[str]]]:
    """Return `split_loops` of an attention kernel: its main loop and its masked tail.

    The fused backward pass has six loops: preparation, main loop and tail of full blocks of keys, both again for the
    last keys, and the gradient of q.

    Raises:
        RuntimeError: The machine code has another number of loops.
    """
    outside, loops = split_loops(kernel.sass)
    if len(loops) != (6 if kernel.kernel == "fused_gradient" else 2):
        raise RuntimeError(f"{kernel.kernel}: {len(loops)} loops in the machine code")
    return outside, loops


def main_loop(kernel: ahead_of_time.CompiledKernel) -> list[str]:
    """Return the instructions of the loop in which an attention kernel spends its time."""
    _, loops = attention_loops(kernel)
    return loops[1 if kernel.kernel == "fused_gradient" else 0]


def warp_cycles(kernel: ahead_of_time.CompiledKernel, tokens: int) -> int:
    """Return the cycles of a warp of an attention program: the sum of the busiest pipe's cycles of each piece."""
    outside, loops = ([max(pipe_cycles(codes).values()) for codes in pieces] for pieces in attention_loops(kernel))
    constants = kernel.constants
    rows, columns = constants["ROWS"], constants["COLUMNS"]
    if kernel.kernel != "fused_gradient":
        step = rows if kernel.kernel == "key_value_gradient" else columns
        return sum(outside) + tokens // step * loops[0] + -(-(tokens % step) // constants["TAIL"]) * loops[1]
    # The code between two loops counts once for each block of keys that runs it.
    main, tail = tokens // rows, -(-(tokens % rows) // constants["TAIL"])
    full, last = tokens // columns, -(-(tokens % columns) // constants["KEY_TAIL"])
    begin, end = outside[0] + -(-tokens // columns) * loops[0], -(-tokens // columns) * loops[5] + outside[6]
    full_block = sum(outside[1:4]) + main * loops[1] + tail * loops[2]
    last_block = sum(outside[3:6]) + main * loops[3] + tail * loops[4]
    return begin + full * full_block + last * last_block + end


def attention_kernels(capability: int, *, case: str = "", thorough: bool = False) -> list[ahead_of_time.CompiledKernel]:
    """Compile the bfloat16 kernels of attention; the arguments are those of `ahead_of_time.table`."""
    table = ahead_of_time.table((capability,), case=case, thorough=thorough)
    return [kernel for kernel in table if kernel.dtype == "bfloat16" and kernel.constants.get("D", 0) >= 16]


def main(argv: list[str]) -> int:
    """Print a line for each kernel and config."""
    given = parse(LoopCyclesConfig, argv, prog="loop_cycles")
    for kernel in attention_kernels(given.capability, thorough=given.all_configs):
        D, rows, columns = (kernel.constants[name] for name in ("D", "ROWS", "COLUMNS"))
        share = 64 * 32 * kernel.warps / (rows * columns)
        pipes = {pipe: used * share for pipe, used in pipe_cycles(main_loop(kernel)).items()}
        name = f"{kernel.kernel} D{D} {rows}x{columns} warps {kernel.warps}"
        listed = "  ".join(f"{pipe} {used:.0f}" for pipe, used in pipes.items())
        print(f"{name:45} {max(pipes.values()):5.0f}  ({listed})", flush=True)
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="loop_cycles"))
