"""List registers, spills, shared memory and instructions of every Triton kernel, compiled without a GPU.

    python benchmarks/kernel_table.py
    python benchmarks/kernel_table.py --capability 90 --thorough

Exits with 1 if a kernel spills, does not fit, or misses the tensor cores.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from ppma.config.command import DONE, parse, run
from ppma.config.errors import InputError
from ppma.kernels import ahead_of_time

HEAD = ("sm", "kernel", "case", "type", "block", "warps", "registers", "shared", "products", "accesses", "problems")
HIDDEN = ("D", "DP", "PT", "PH", "PW", "TAIL", "WIDEN", "FOLDED", "NORMALIZE", "HAS_IDX", "PURPOSE")
"""Constants that other columns show."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Compile every kernel ahead of time and print its resources."""

    capability: tuple[int, ...] = ahead_of_time.CAPABILITIES
    """Compute capabilities without the point."""
    thorough: bool = False
    """Compile all configs of attention, not only the first."""

    def __post_init__(self) -> None:
        if unknown := set(self.capability) - set(ahead_of_time.CAPABILITIES):
            allowed = ", ".join(map(str, ahead_of_time.CAPABILITIES))
            raise InputError(f"--capability {sorted(unknown)[0]}: choose among {allowed}")


def cells(kernel: ahead_of_time.CompiledKernel) -> tuple[str, ...]:
    """Return the cells of a kernel's row."""
    width = f" D{kernel.constants['D']}" if "D" in kernel.constants else ""
    block = " ".join(f"{name.lower()} {value}" for name, value in kernel.constants.items() if name not in HIDDEN)
    products = kernel.instructions.get(ahead_of_time.TENSOR_CORE[kernel.capability], 0)
    accesses = ", ".join(f"{count} {access}" for access, count in sorted(kernel.accesses.items()))
    numbers = (kernel.warps, kernel.registers, kernel.shared_bytes, products or "-")
    return (
        str(kernel.capability), kernel.kernel + width, kernel.case, kernel.dtype, block, *map(str, numbers),
        accesses, "; ".join(kernel.problems),
    )  # fmt: skip


def main(argv: list[str]) -> int:
    """Print the table."""
    config = parse(TableConfig, argv, prog="kernel_table")
    made = ahead_of_time.table(config.capability, thorough=config.thorough)
    print(rows.table([dict(zip(HEAD, cells(kernel), strict=True)) for kernel in made]))
    return 1 if any(kernel.problems for kernel in made) else DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="kernel_table"))
