"""Commands and ranks of this machine as processes, forked from a server that has imported torch and ppma, so a start costs no import.

One test starts ranks with torchrun (training/test_distributed.py), and many start `python -m ppma`, as users do.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import torch

from ppma.common.ports import free_port

T = TypeVar("T")
_SERVER = multiprocessing.get_context("forkserver")
_LIBRARIES = ["pytest", "torch._dynamo", "torch.distributed.fsdp", "ppma.models.torchvision_shim"]  # the last one: timm
_SERVER.set_forkserver_preload([*_LIBRARIES, "ppma.cli", "ppma.phases", "ppma.transfer.evaluate"])


def _enter(out: Path, environment: Mapping[str, str], work: Callable[..., int | None], *given: object) -> None:
    """In the new process: write to OUT.out and OUT.err, and exit with what `work` returns."""
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with out.with_name(f"{out.name}.{name}").open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, pytest and what it starts would ignore it
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # the server has loaded torch under another OMP_NUM_THREADS
    sys.exit(work(*given))


def _script(path: Path, *argv: str) -> None:
    sys.argv = [str(path), *argv]
    runpy.run_path(str(path), run_name="__main__")


def _command(argv: list[str]) -> int:
    from ppma.cli import main

    return main(argv)


def _start(
    out: Path, place: Mapping[str, object], work: Callable[..., int | None], *given: object
) -> ForkServerProcess:
    out.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in place.items()}}
    process = _SERVER.Process(target=_enter, args=(out, environment, work, *given))
    process.start()
    return process


def _start_ranks(folder: Path, world_size: int, *work: object) -> list[ForkServerProcess]:
    meeting = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    places = [meeting | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(world_size)]
    return [_start(folder / str(rank), place, *work) for rank, place in enumerate(places)]


def _codes(processes: list[ForkServerProcess], seconds: float) -> list[int | None]:
    """Wait for all; kill those that are not done in time, whose code is -9."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _call(work: Callable[..., Any], *given: object) -> None:
    from ppma.training.distributed import session

    with session("cpu") as ranks:
        sys.stdout.write(json.dumps(work(ranks, *given)))


def on_ranks(world_size: int, work: Callable[..., Any], folder: Path, *given: object) -> list[Any]:
    """Call work(ranks, *given), a function of a test module, on so many ranks; returns what each returned, through JSON."""
    logs = folder / "logs"
    codes = _codes(_start_ranks(logs, world_size, _call, work, *given), 300)
    assert codes == [0] * world_size, (codes, [(logs / f"{rank}.err").read_text() for rank in range(world_size)])
    return [json.loads((logs / f"{rank}.out").read_text()) for rank in range(world_size)]


def ppma_on_ranks(world_size: int, argv: list[str], folder: Path) -> tuple[list[int | None], list[str]]:
    """Run a ppma command on so many ranks; returns their exit codes, and what each wrote to its stderr into `folder`."""
    codes = _codes(_start_ranks(folder, world_size, _command, argv), 300)
    return codes, [(folder / f"{rank}.err").read_text() for rank in range(world_size)]


def start_script(code: str, argv: list[str], folder: Path) -> ForkServerProcess:
    """Start code with arguments, which writes to FOLDER/script.out and FOLDER/script.err."""
    (folder / "script.py").write_text(textwrap.dedent(code))
    return _start(folder / "script", {}, _script, folder / "script.py", *argv)


def run_script(code: str, argv: list[str], folder: Path, *, seconds: float = 120) -> tuple[int | None, str]:
    """Run code with arguments; returns its exit code and what it wrote to its stderr."""
    (code_of_exit,) = _codes([start_script(code, argv, folder)], seconds)
    return code_of_exit, (folder / "script.err").read_text()


def _one_thread() -> None:
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def in_new_process(work: Callable[..., T], *given: object) -> T:
    """Call `work` where CPU times can be compared: in one thread, since threads that wait for others spin, and before other tests have
    changed what allocating memory costs. On two busy cores a step of two threads took eight times its CPU time."""
    with ProcessPoolExecutor(1, _SERVER, initializer=_one_thread) as pool:
        return pool.submit(work, *given).result()
