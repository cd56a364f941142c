"""Jobs on several processes: every result comes, an error stops what waits, a full disk has a name of its own."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ppma.common.workers import parallel_map
from ppma.config.errors import DiskFullError, watch_disk


def leave_mark(path: Path) -> str:
    path.write_text("done")
    return path.name


def refuse_the_first(path: Path) -> str:
    if path.name == "0":
        raise ValueError("refused")
    time.sleep(0.05)  # long enough for the refusal to reach the parent before the other worker has done all
    return leave_mark(path)


def tell_and_idle(path: Path) -> None:
    beside = path.with_suffix(".made")
    beside.write_text(str(os.getpid()))
    beside.replace(path)
    time.sleep(120)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_job_gives_its_result(tmp_path, workers):
    jobs = [tmp_path / str(n) for n in range(5)]
    assert sorted(parallel_map(leave_mark, jobs, workers)) == ["0", "1", "2", "3", "4"]
    assert all(job.is_file() for job in jobs)


def test_an_error_in_a_worker_drops_what_waits(tmp_path):
    jobs = [tmp_path / str(n) for n in range(40)]
    with pytest.raises(ValueError, match="refused"):
        list(parallel_map(refuse_the_first, jobs, 2))
    assert sum(job.is_file() for job in jobs) < 39


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, PermissionError)])
def test_only_a_full_disk_is_one(tmp_path, number, kind):
    with pytest.raises(kind), watch_disk(tmp_path):
        raise OSError(number, "no")


PARENT = """
import sys
from pathlib import Path
from ppma.common.workers import parallel_map
from tests.common.test_workers import tell_and_idle

if __name__ == "__main__":
    list(parallel_map(tell_and_idle, [Path(sys.argv[1], name) for name in "ab"], 2))
"""


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    told = [tmp_path / name for name in "ab"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path], env=environment)
    until = time.monotonic() + 60
    while not all(path.exists() for path in told) and time.monotonic() < until:
        time.sleep(0.1)
    workers = [psutil.Process(int(path.read_text())) for path in told]
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(workers, timeout=10)[1]
