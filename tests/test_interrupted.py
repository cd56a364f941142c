"""A command that is interrupted anywhere, by Ctrl-C, SIGTERM or SIGKILL, and run again writes what an uninterrupted one writes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from full_disk import content
from privacy_stand_ins import write_walk
from waiting import wait_until

from ppma.cli import main as ppma

ROOT = Path(__file__).parents[1]
STILL = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SYNTHESIZE = "synthesize --classes walk wave --clips 3 --size 64 --seconds 1 --masks --empty"


@pytest.fixture
def commands(clip_tree, tmp_path):
    """Arguments of each command, without its output; the last one names it."""
    for name in ("to/one", "to/two", "fro/three"):
        write_walk(tmp_path / "people" / f"{name}.mp4", length=30)
    manifest = tmp_path / "in.csv"
    assert run(["index", clip_tree, "--out", manifest]).returncode == 0
    return {
        "pack": ["pack", manifest, "--root", clip_tree, "--workers", "2", "--out", tmp_path / "packed.beton"],
        "index": ["index", clip_tree, "--workers", "2", "--out", tmp_path / "index/made.csv"],
        "remove-humans": [
            *("remove-humans", tmp_path / "people", "--method", "downsample", "--workers", "2"),
            *("--out", tmp_path / "removed"),
        ],
        "synthesize": [*SYNTHESIZE.split(), "--workers", "2", "--out", tmp_path / "virtual"],
    }


def start(argv) -> subprocess.Popen:
    how = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "ppma", *map(str, argv)], start_new_session=True, text=True, **how)


def run(argv) -> subprocess.CompletedProcess:
    process = start(argv)
    said = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def written(out: Path) -> dict[str, str]:
    """Return what a command has written, without the caches beside it."""
    return content(out.parent if out.suffix == ".csv" else out)


def interrupt(argv, seconds: float, number: int, rng: random.Random) -> int:
    """Send the signal to the command, or to its whole group as a terminal does, after so many seconds; return its exit code."""
    process = start(argv)
    time.sleep(seconds)
    if process.poll() is None:
        (os.killpg if rng.random() < 0.5 else os.kill)(process.pid, number)
    process.communicate(timeout=300)
    return process.returncode


def check(name: str, argv, times: int) -> str:
    """Interrupt the command that often at random times; return the figure."""
    out, rng = argv[-1], random.Random(name)
    out.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    assert run(argv).returncode == 0
    duration, expected = time.monotonic() - began, written(out)
    interrupted = 0
    for number in range(times):
        subprocess.run(["rm", "-r", out], check=True)
        for path in out.parent.glob("*") if name == "index" else ():
            path.unlink()
        code = 1
        while code:  # a command may be interrupted more than once, until it is done
            code = interrupt(argv, rng.uniform(0.1, 1.0) * duration, SIGNALS[number % 3], rng)
            interrupted += code != 0
        assert written(out) == expected
    assert interrupted
    return f"{name}: {interrupted} interrupts, 0 of {len(expected)} files differ"


@pytest.mark.slow
@pytest.mark.promise("R29")
@pytest.mark.parametrize("name", ["pack", "index", "remove-humans", "synthesize"])
def test_an_interrupted_command_that_runs_again_writes_the_same_bytes(name, commands, figure):
    figure("R29", check(name, commands[name], 10))


def kill_while_it_writes(argv, out):
    """Start `synthesize` until SIGKILL meets it in the middle of a clip: it is stopped to look for a temporary file."""
    for _ in range(20):
        process = start(argv)
        while process.poll() is None:
            os.kill(process.pid, signal.SIGSTOP)
            wait_until(lambda pid=process.pid: psutil.Process(pid).status() in STILL)
            if list(out.glob("*/.*.tmp.mp4")):
                process.kill()
                process.communicate()
                return
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.002)
        process.communicate()
        assert process.returncode == 0
        shutil.rmtree(out)
    pytest.fail("it was never met in the middle of a clip")


@pytest.mark.promise("R29")
def test_a_killed_synthesize_that_runs_again_writes_the_same_bytes(tmp_path, figure):
    whole, killed = [
        [*SYNTHESIZE.split(), "--workers", "1", "--out", f"{tmp_path}/{name}"] for name in ("whole", "killed")
    ]
    assert ppma(whole) == 0
    kill_while_it_writes(killed, tmp_path / "killed")
    assert ppma(killed) == 0
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    figure("R29", "synthesize: 1 SIGKILL, 0 bytes differ")
