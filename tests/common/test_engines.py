"""Engines: the same results on Ray as on this machine although actors are killed, and refusals in one line."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from ppma.common import engines
from ppma.common.workers import Engine, parallel_map
from ppma.config.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Engine]:
    """The engine of a Ray cluster on this machine."""
    ray = pytest.importorskip("ray", reason="needs the extra [ray]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield engines.find("ray")
        ray.shutdown()


def misbehave(job: Path) -> str:
    """Do what the job's name says, and leave a file for each try."""
    tries = len(list(job.parent.glob(f"{job.name}.*")))
    job.with_suffix(f".{tries}").touch()
    what = job.name.partition("-")[0]
    if what == "lost" and tries == 0:
        os.kill(os.getppid(), signal.SIGKILL)  # the actor
        time.sleep(60)
    if what == "killed" and tries == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(60)
    return f"did {job.name}"


def refuse(job: str) -> str:
    raise InputError(f"{job} is refused")


def lost(job: Path, reason: str) -> str:
    return f"{job.name}: {reason}"


@pytest.mark.slow
def test_ray_gives_each_result_once_although_actors_and_workers_die(on_ray, tmp_path):
    names = [*(f"job-{n}" for n in range(12)), "lost-1", "killed-1", "crash", "lost-2", "exit", "hang", "job-last"]
    jobs = [tmp_path / name for name in names]
    found = sorted(parallel_map(misbehave, jobs, 2, on_lost=lost, timeout_seconds=3, engine=on_ray))
    blamed = {"crash": "SIGSEGV", "exit": "exit code 3", "hang": "took longer than 3 s"}
    assert found == sorted(f"{name}: {blamed[name]}" if name in blamed else f"did {name}" for name in names)
    assert (tmp_path / "lost-1.1").exists() and (tmp_path / "lost-2.1").exists(), "the actors were killed"


@pytest.mark.slow
def test_more_seats_than_cores_finish_and_an_error_of_a_job_is_raised(on_ray, tmp_path):
    jobs = [tmp_path / f"job-{n}" for n in range(2 * (os.cpu_count() or 1) + 1)]
    assert len(set(parallel_map(misbehave, jobs, len(jobs), engine=on_ray))) == len(jobs)
    with pytest.raises(InputError, match="a is refused") as error:
        list(parallel_map(refuse, ["a"], 1, engine=on_ray))
    assert any("in refuse" in note for note in error.value.__notes__), "the worker's traceback"


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


def without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = ModuleType("ray")
    ray.__spec__, ray.is_initialized = ModuleSpec("ray", None), lambda: False
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


@pytest.mark.parametrize(("broken", "named"), [(without_ray, r"ppma\[ray\]"), (without_a_cluster, "RAY_ADDRESS")])
def test_an_engine_that_cannot_run_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None], named: str
) -> None:
    broken(monkeypatch)
    with pytest.raises(InputError, match=named):
        engines.find("ray")
