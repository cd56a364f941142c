"""`ppma doctor --compile-gpu`: compile the three training steps for this GPU, or for an H100 or H200 if there is none.

architecture  ->  compile_check.check_steps  ->  a row per step: kernels, launches, registers, spills, or what went wrong
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import get_args

from rich.console import Console
from rich.table import Column, Table

from ppma.compile_check.check import CompileError, Phase, Settings, StepReport, check_steps
from ppma.config.command import DONE

FAULTY = 1
NAMES = {"mae": "stage 1", "align": "stage 2", "probe": "linear probe"}
"""What users call the phases."""
REMEDY = "`ppma train RECIPE --compile off` trains without torch.compile, more slowly; the versions in constraints.txt are known to compile"
DEFAULT_ARCH = 90
COLUMNS = ("step", "batch", "graphs", "kernels", "launches", "most registers", "kernels that spill", "seconds")


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
        NAMES[report.phase], str(report.batch), str(report.graphs), str(len(report.kernels)), str(report.launches),
        str(max(kernel.registers for kernel in report.kernels)), str(sum(kernel.spill_bytes > 0 for kernel in report.kernels)),
        f"{report.seconds:.0f}",
    )  # fmt: skip


def _compile(phases: Sequence[Phase], arch: int) -> list[StepReport | CompileError]:
    """Compile the phases and show the current one on stderr: with its kernels on a terminal, as one line elsewhere."""
    console = Console(stderr=True, highlight=False)
    with console.status("starting the compilers") as status:

        def show(phase: str, kernels: int) -> None:
            number = list(NAMES).index(phase) + 1
            what = f"compiling the {NAMES[phase]} step for sm_{arch} ({number} of {len(NAMES)})"
            status.update(f"{what}: {kernels} kernels")
            if kernels == 0 and not console.is_terminal:
                console.print(what)

        return check_steps(phases, Settings(arch=arch), on_kernel=show)


def compile_gpu(*, as_json: bool) -> int:
    """Compile every phase, print a table or JSON, and return the exit code: 1 if a step does not compile, breaks or
    spills."""
    arch, phases = architecture(), get_args(Phase)
    results = _compile(phases, arch)
    reports = [result for result in results if isinstance(result, StepReport)]
    problems = [str(result) for result in results if isinstance(result, CompileError)]
    problems += [f"{report.phase}: {problem}" for report in reports for problem in report.problems]
    code = FAULTY if problems else DONE
    if as_json:
        found = {"arch": arch, "reports": [dataclasses.asdict(report) for report in reports], "problems": problems}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return code
    columns = [Column(name, justify="left" if name == "step" else "right") for name in COLUMNS]
    title = f"The training steps, compiled for sm_{arch}"
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for phase, result in zip(phases, results, strict=True):
        failed = (NAMES[phase], *["-"] * (len(COLUMNS) - 2), "does not compile")
        table.add_row(*(row(result) if isinstance(result, StepReport) else failed))
    console = Console(highlight=False)
    console.print(table)
    for problem in problems:
        console.print(problem, markup=False)
    verdict = REMEDY if problems else "All steps compile: one graph each way, no kernel spills."
    console.print(f"\n{verdict}", markup=False)
    return code
