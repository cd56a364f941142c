"""Ranks of this machine as processes, forked from a server that has imported torch and ppma: a start costs no import.

One test starts ranks with torchrun (training/test_distributed.py), and others with `python -m ppma`, as users do.
"""

import multiprocessing
import os
import runpy
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from ppma.slurm.cluster import free_port

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.fsdp", "ppma.cli", "ppma.phases", "ppma.transfer.evaluate"]
)


def _enter(out: Path, environment: Mapping[str, str], work: Callable[..., int | None], *given: object) -> None:
    """In the new process: write to OUT.out and OUT.err, and exit with what `work` returns."""
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with out.with_name(f"{out.name}.{name}").open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(work(*given))


def _script(path: Path) -> None:
    sys.argv = [str(path)]
    runpy.run_path(str(path), run_name="__main__")


def _command(argv: list[str]) -> int:
    from ppma.cli import main

    return main(argv)


def _start(folder: Path, world_size: int, work: Callable[..., int | None], *given: object) -> list[ForkServerProcess]:
    folder.mkdir(parents=True, exist_ok=True)
    port, processes = free_port(), []
    for rank in range(world_size):
        place = {
            "RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        process = _SERVER.Process(target=_enter, args=(folder / str(rank), environment, work, *given))
        process.start()
        processes.append(process)
    return processes


def _codes(processes: list[ForkServerProcess], seconds: float) -> list[int | None]:
    """Wait for all; kill those that are not done in time, whose code is -9."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def on_ranks(world_size: int, code: str, folder: Path, *, seconds: float = 120) -> list[str]:
    """Run code on so many ranks; returns what each wrote to its stdout."""
    script, logs = folder / "ranks.py", folder / "logs"
    script.write_text(textwrap.dedent(code))
    codes = _codes(_start(logs, world_size, _script, script), seconds)
    assert codes == [0] * world_size, (codes, [(logs / f"{rank}.err").read_text() for rank in range(world_size)])
    return [(logs / f"{rank}.out").read_text() for rank in range(world_size)]


def ppma_on_ranks(world_size: int, argv: list[str], folder: Path) -> tuple[list[int | None], list[str]]:
    """Run a ppma command on so many ranks; returns their exit codes, and what each wrote to its stderr into `folder`."""
    codes = _codes(_start(folder, world_size, _command, argv), 300)
    return codes, [(folder / f"{rank}.err").read_text() for rank in range(world_size)]
