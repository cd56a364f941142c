"""Jobs on several processes: every result comes, an error stops what waits, a full disk has a name of its own."""

import errno
import time
from pathlib import Path

import pytest

from ppma.fanout import DiskFullError, spread, watch_disk


def leave_mark(path: Path) -> str:
    path.write_text("done")
    return path.name


def refuse_the_first(path: Path) -> str:
    if path.name == "0":
        raise ValueError("refused")
    time.sleep(0.05)  # long enough for the refusal to reach the parent before the other worker has done all
    return leave_mark(path)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_job_gives_its_result(tmp_path, workers):
    jobs = [tmp_path / str(n) for n in range(5)]
    assert sorted(spread(leave_mark, jobs, workers)) == ["0", "1", "2", "3", "4"]
    assert all(job.is_file() for job in jobs)


def test_an_error_in_a_worker_drops_what_waits(tmp_path):
    jobs = [tmp_path / str(n) for n in range(40)]
    with pytest.raises(ValueError, match="refused"):
        list(spread(refuse_the_first, jobs, 2))
    assert sum(job.is_file() for job in jobs) < 39


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, PermissionError)])
def test_only_a_full_disk_is_one(tmp_path, number, kind):
    with pytest.raises(kind), watch_disk(tmp_path):
        raise OSError(number, "no")
