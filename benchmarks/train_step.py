"""Measure time and memory of a training step: ours against the published step, in one run.

    python benchmarks/train_step.py --phase mae --model base --batch 4
    python benchmarks/train_step.py --phase align --model base --batch 2

Each implementation runs in its own process, so that peak memory is its own. On a CPU the processes take turns, one step
each, so that load on the machine affects all of them alike; CPU time is compared, and `ratio_to_published` is the
median ratio of neighboring measurements. On a GPU they run one after the other, 30 steps between synchronizations, and
milliseconds are compared.

`ours` is the step of `ppma train`: compiled on a GPU, fused AdamW. A step is forward, backward and optimizer on random
clips, without mixing, erasing and drop path, which the published baseline lacks. Peak memory is the maximum beyond what
the imports use (resident memory on a CPU, allocated memory on a GPU).
"""

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import rows
from ppma.config.command import DONE, parse, run
from ppma.config.errors import InputError
from ppma.config.model import preset


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one worker process measures."""

    phase: str
    implementation: str
    model: str
    batch: int
    size: int = 224
    """Height and width of a clip in pixels; smaller ones are for tests."""
    frames: int = 16
    threads: int = 0
    """CPU threads; 0 for torch's default."""
    device: str = "cpu"


IMPLEMENTATIONS = {
    "cpu": {"mae": ("ours", "published", "published_without_recompute"), "align": ("ours", "published")},
    "cuda": {
        "mae": ("ours", "ours_graphs", "ours_eager", "published", "published_without_recompute", "published_fp16"),
        "align": ("ours", "ours_graphs", "ours_eager", "published", "published_fp16"),
    },
}
"""Measured by default. `huggingface` is added if transformers is installed; `ours_compiled` on a CPU only by name."""
KNOWN = (*IMPLEMENTATIONS["cuda"]["mae"], "ours_compiled", "huggingface")
"""Names that --implementation accepts."""


STEPS = {"cpu": 1, "cuda": 30}
"""Steps per measurement, between two synchronizations."""


class Worker:
    """A process that runs training steps on request."""

    def __init__(self, case: Case) -> None:
        self.case = case
        environment = dict(os.environ)
        if case.threads:
            environment["OMP_NUM_THREADS"] = str(case.threads)
        command = [sys.executable, str(Path(__file__).with_name("step_worker.py")), json.dumps(asdict(case))]
        # In a new session: Ctrl-C must reach only the benchmark, which ends this process.
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.steps: list[dict[str, float]] = []
        self.failure = ""
        self.facts: dict = {}

    def ask(self, word: str) -> dict | None:
        """Send one request and return the answer; None once the process has failed, with the reason in `failure`."""
        assert self.process.stdin and self.process.stdout
        if self.failure:
            return None
        with contextlib.suppress(BrokenPipeError):  # it has ended; what it left to read says how
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"failure": f"the process ended with {self.process.wait()}"}
        self.failure = answer.get("failure", "")
        return None if self.failure else answer

    def step(self) -> None:
        """Take one measurement."""
        if answer := self.ask(str(STEPS[self.case.device])):
            self.steps.append(answer)

    def close(self) -> None:
        """Collect the metadata of the whole process and end it."""
        self.facts = self.ask("end") or {}
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def measure(cases: list[Case], repeats: int) -> list[rows.Row]:
    """Return one row for every case that could run. The cases differ only in the implementation."""
    alone = cases[0].device == "cuda"
    together = [[case] for case in cases] if alone else [cases]
    workers: list[Worker] = []
    try:
        for group in together:
            running = [Worker(case) for case in group]
            workers += running
            for _ in range(repeats):
                for worker in running:
                    worker.step()
            for worker in running:
                worker.close()
    finally:
        for worker in workers:
            worker.process.kill()  # which does nothing to one that has ended
            worker.process.wait()
    for worker in workers:
        if worker.failure:
            print(f"{worker.case.implementation} is left out: {worker.failure}", file=sys.stderr)
    ran = [worker for worker in workers if not worker.failure]
    published = next((worker for worker in ran if worker.case.implementation == "published"), None)
    return [row_of(worker, published) for worker in ran]


def row_of(worker: Worker, published: Worker | None) -> rows.Row:
    """Return the fields of a row in display order."""
    case, facts = worker.case, worker.facts
    compared = "ms" if case.device == "cuda" else "cpu_s"
    ratio = None
    if published is not None:
        ratio = statistics.median(
            theirs[compared] / ours[compared] for theirs, ours in zip(published.steps, worker.steps, strict=True)
        )
    ms = statistics.median(step["ms"] for step in worker.steps)
    cpu_s = statistics.median(step["cpu_s"] for step in worker.steps)
    return {
        "phase": case.phase,
        "implementation": case.implementation,
        "model": case.model,
        "batch": case.batch,
        "precision": facts["precision"],
        "ms_per_step": ms,
        "cpu_s_per_step": cpu_s,
        "clips_per_s": case.batch / ms * 1000,
        "peak_memory_mb": facts["peak_memory_mb"],
        "mfu": facts["step_flops"] / (ms / 1000) / facts["peak_flops"],
        "ratio_to_published": ratio,
        "memory_to_published": facts["peak_memory_mb"] / published.facts["peak_memory_mb"] if published else None,
        "repeats": len(worker.steps),
        "threads": facts["threads"],
        "spread": rows.spread([step[compared] for step in worker.steps]),
    }


def default_implementations(device: str, phase: str) -> list[str]:
    """Return the implementations that can run on this machine."""
    names = list(IMPLEMENTATIONS[device][phase])
    return names + ["huggingface"] * (importlib.util.find_spec("transformers") is not None)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(rows.ReportConfig):
    """Measure time and memory of a training step against the published one."""

    phase: tuple[Literal["mae", "align"], ...] = ("mae", "align")
    model: tuple[str, ...] = ("base",)
    """Any of tiny, small, base, large, huge."""
    batch: tuple[int, ...] = ()
    """Clips per step (default: 4 mae, 2 align; on a GPU 64, 128 and 256 mae, 16 and 64 align)."""
    implementation: tuple[str, ...] = ()
    """Implementations (default: all that can run on this machine)."""
    repeats: int = 5
    """Measurements per implementation after warm-up: of one step on a CPU, of 30 on a GPU."""
    threads: int = 0
    """CPU threads per process; 0 for torch's default."""
    size: int = 224
    """Height and width of a clip in pixels."""
    frames: int = 16
    """Frames per clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "batch", "repeats")
        self.at_least(0, "threads")
        for model in self.model:
            preset(model, size=self.size, frames=self.frames)
        for name in self.implementation:
            if name not in KNOWN:
                raise InputError(f"--implementation has {name!r}; it may have {', '.join(KNOWN)}")


def cases(config: BenchmarkConfig, device: str) -> list[list[Case]]:
    """Return groups of cases that differ only in the implementation."""
    batches = {"cpu": {"mae": (4,), "align": (2,)}, "cuda": {"mae": (64, 128, 256), "align": (16, 64)}}[device]
    return [
        [
            Case(
                phase=phase, implementation=name, model=model, batch=batch, size=config.size, frames=config.frames,
                threads=config.threads, device=device,
            )
            for name in config.implementation or default_implementations(device, phase)
        ]
        for phase in config.phase
        for model in config.model
        for batch in config.batch or batches[phase]
    ]  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    import torch

    config = parse(BenchmarkConfig, argv, prog="train_step")
    groups = cases(config, "cuda" if torch.cuda.is_available() else "cpu")
    made = [row for group in groups for row in measure(group, config.repeats)]
    if not made:
        return 1
    measure_by = "ms_per_step" if torch.cuda.is_available() else "cpu_s_per_step"  # as the ratios are
    rows.report(made, config, benchmark="train_step", measure=measure_by)
    return DONE


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], prog="train_step"))
