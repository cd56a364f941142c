"""`ppma doctor --compile-gpu`: compile the three training steps for a GPU, here or not, and show what came out.

architecture  ->  compile_check.check for each phase  ->  a row for each: kernels, launches, registers, spills, or what went wrong
"""

import dataclasses
import json
import sys
import time
from typing import get_args

from rich.console import Console
from rich.table import Table

from ppma.command import DONE
from ppma.compile_check import CompileError, Phase, StepReport, check

FAULTY = 1
REMEDY = "`ppma train RECIPE --compile off` trains without torch.compile, more slowly; the versions in constraints.txt are known to compile"
DEFAULT_ARCH = 90


def architecture() -> int:
    """Return the compute capability of this machine's first GPU as a number, 90 where there is none."""
    import torch

    if not torch.cuda.is_available():
        return DEFAULT_ARCH
    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


def row(report: StepReport) -> tuple[str, ...]:
    """Return the cells of a step's row."""
    return (
        report.phase, str(report.batch), str(report.graphs), str(len(report.kernels)), str(report.launches),
        str(max(kernel.registers for kernel in report.kernels)), str(sum(kernel.spill_bytes > 0 for kernel in report.kernels)),
        f"{report.seconds:.0f}",
    )  # fmt: skip


def compile_gpu(*, as_json: bool, depth: int | None = None) -> int:
    """Compile every phase, print a table or JSON, and return the exit code: 1 where a step does not compile, breaks or spills."""
    arch, console = architecture(), Console(highlight=False)
    table = Table(title=f"The training steps, compiled for sm_{arch}", title_justify="left", box=None, pad_edge=False)
    for name in ("step", "rows", "graphs", "kernels", "launches", "most registers", "kernels that spill", "seconds"):
        table.add_column(name, justify="left" if name == "step" else "right")
    reports: list[StepReport] = []
    problems: list[str] = []
    for phase in get_args(Phase):
        began = time.monotonic()
        try:
            report = check(phase, arch=arch, depth=depth)
        except CompileError as error:
            problems.append(str(error))
            table.add_row(phase, *["-"] * 5, "does not compile", f"{time.monotonic() - began:.0f}")
            continue
        reports.append(report)
        problems += [f"{phase}: {problem}" for problem in report.problems]
        table.add_row(*row(report))
    code = FAULTY if problems else DONE
    if as_json:
        found = {"arch": arch, "reports": [dataclasses.asdict(report) for report in reports], "problems": problems}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return code
    console.print(table)
    for problem in problems:
        console.print(problem, markup=False)
    console.print(
        f"\n{REMEDY}" if problems else "\nAll steps compile: one graph each way, no kernel spills.", markup=False
    )
    return code
