"""Engines: the same results on Ray as on this machine although actors are killed, and refusals in one line."""

import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from ppma.cli import main
from ppma.common import engines
from ppma.common.workers import Engine, parallel_map
from ppma.config.errors import InputError, KilledError

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
    if (what == "lost" and tries == 0) or what == "doomed":
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
def test_actors_that_die_again_and_again_end_the_command_and_blame_no_job(on_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "MOST_RETRIES", 0)
    results = parallel_map(misbehave, [tmp_path / "doomed", tmp_path / "job"], 2, on_lost=lost, engine=on_ray)
    assert next(results) == "did job"
    with pytest.raises(KilledError, match="doomed"):
        next(results)


@pytest.mark.slow
def test_more_seats_than_cores_finish_and_an_error_of_a_job_is_raised(on_ray, tmp_path):
    jobs = [tmp_path / f"job-{n}" for n in range(2 * (os.cpu_count() or 1) + 1)]
    assert len(set(parallel_map(misbehave, jobs, len(jobs), engine=on_ray))) == len(jobs)
    with pytest.raises(InputError, match="a is refused") as error:
        list(parallel_map(refuse, ["a"], 1, engine=on_ray))
    assert any("in refuse" in note for note in error.value.__notes__), "the worker's traceback"


COMMANDS = """
index ../videos --root ../videos --out clips.csv --name made --data data.toml
pack made --data data.toml --out made.beton
remove-humans ../videos --out removed --method downsample
audit removed --originals ../videos --out report --frames 1 --makers none
"""
KILLS = 2
"""Most actors that are killed in each command; at least one is."""
DATED = {"data.toml", "audit.json", "report.html", "datasheet.md", "croissant.json", "manifest.csv.audit"}
"""Files that hold the time or the folder of a run."""
CPU_SECONDS = re.compile(rb'"cpu_seconds": [-+.e0-9]+')
"""What a record of `ppma remove-humans` says of its cost."""


def run_all(folder: Path, engine: str) -> tuple[list[int], dict[Path, bytes]]:
    """Run COMMANDS in a new folder; return their exit codes and the files that they wrote."""
    folder.mkdir()
    os.chdir(folder)
    codes = []
    for line in COMMANDS.strip().split("\n"):
        killed: list[int] = []
        if engine == "ray":
            threading.Thread(target=kill_actors, args=(killed,), daemon=True).start()
        codes.append(main([*line.split(), "--engine", engine, "--workers", "2"]))
        assert engine == "local" or killed, f"{line}: no actor was killed"
    found = (path for path in folder.rglob("*") if path.is_file() and path.name not in DATED)
    return codes, {path.relative_to(folder): CPU_SECONDS.sub(b"", path.read_bytes()) for path in found}


def kill_actors(killed: list[int]) -> None:
    """Kill KILLS actors that work on a job, one a second, and list them."""
    while len(killed) < KILLS:
        time.sleep(1 if killed else 0.05)
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process().children(recursive=True):
                if process.cmdline()[:1] == ["ray::_Seat.run"]:
                    process.kill()
                    killed.append(process.pid)
                    break


@pytest.mark.slow
def test_commands_write_the_same_files_on_ray(on_ray, clip_tree, audit_weights, tmp_path, monkeypatch):
    """While its actors are killed."""
    monkeypatch.setattr("ppma.data.shard_writer.SHARD_FRAMES", 60)
    monkeypatch.chdir(tmp_path)
    for path in sorted(clip_tree.glob("*/*.mp4"))[:3]:
        (tmp_path / "videos" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "videos" / path.parent.name)
    (tmp_path / "videos" / "bad").mkdir()
    (tmp_path / "videos" / "bad" / "cut.mp4").write_bytes(path.read_bytes()[:3000])

    here = run_all(tmp_path / "here", "local")
    there = run_all(tmp_path / "there", "ray")
    assert there[0] == here[0] and there[1].keys() == here[1].keys()
    assert not [name for name, content in here[1].items() if there[1][name] != content]


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


def without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = ModuleType("ray")
    ray.__spec__, ray.is_initialized = ModuleSpec("ray", None), lambda: False
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


@pytest.mark.parametrize(("broken", "named"), [(without_ray, "pip install ray"), (without_a_cluster, "RAY_ADDRESS")])
def test_an_engine_that_cannot_run_here_is_refused(monkeypatch, broken, named):
    broken(monkeypatch)
    with pytest.raises(InputError, match=named):
        engines.find("ray")
