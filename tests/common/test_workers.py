"""Jobs on several processes: every result comes, errors and dead workers are reported, and no worker is left behind."""

import errno
import inspect
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain
from multiprocessing import active_children, resource_tracker
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from waiting import has_ended, wait_until

from ppma.common import workers
from ppma.common.workers import Lost, parallel_events, parallel_map, parse_shard
from ppma.config.errors import DiskFullError, InputError, KilledError, watch_disk


def leave_mark(path: Path) -> str:
    path.write_text("done")
    return path.name


def refuse_the_first(path: Path) -> str:
    """Fail in job 0 while job 1 runs."""
    running = path.with_name("running")
    if path.name == "0":
        wait_until(running.exists)
        raise ValueError("refused")
    running.touch()
    time.sleep(0.5)
    return leave_mark(path)


def take_turns(path: Path) -> Iterator[str]:
    """Give the first result while the second job runs, the second when the caller has the first; say when it is sent."""
    if path.name == "second":
        path.with_name("running").touch()
    wait_until(path.with_name("running" if path.name == "first" else "received").exists)
    yield path.name
    path.touch()


def misbehave(job: str) -> str:
    if job == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "exit":
        os._exit(3)
    if job == "hang":
        time.sleep(600)
    return f"did {job}"


def count_up(job: tuple[int, int | None]):
    """Yield 0, 1, 2 and die before the number that is given."""
    for number in range(3):
        if number == job[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        yield number


def die_at_first(path: Path) -> tuple[str, tuple[float, float]]:
    """Return when the job ran; one that is "killed" or too "large" fails at its first try, while others run."""
    began = time.monotonic()
    time.sleep(0.3)
    if path.name == "killed" and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name == "large" and not path.exists():
        path.touch()
        raise MemoryError
    return path.name, (began, time.monotonic())


class Needy(Exception):
    def __init__(self, place: int, *, reason: str) -> None:
        super().__init__(f"at {place}: {reason}")


def raise_needy(job: str) -> str:
    raise Needy(3, reason=job)


def lose_connection(job: str) -> str:
    raise ConnectionResetError(job)


def die_at_start(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_the_result(connection, work) -> None:
    """Serve one job, and die between its result and the request for the next one."""
    connection.send(("ready", None))
    for result in work(connection.recv()):
        connection.send(("result", result))
    os.kill(os.getpid(), signal.SIGKILL)


def send_half(job: str):
    """Die in the middle of a message, as a worker that the kernel kills while it sends frames."""
    connection = inspect.currentframe().f_back.f_locals["connection"]
    os.write(connection.fileno(), (1000).to_bytes(4, "big") + job.encode())
    os.kill(os.getpid(), signal.SIGKILL)
    yield job


@pytest.mark.parametrize("count", [1, 2])
def test_each_job_gives_its_result(tmp_path, count):
    jobs = [tmp_path / str(n) for n in range(5)]
    assert sorted(parallel_map(leave_mark, jobs, count)) == ["0", "1", "2", "3", "4"]
    assert all(job.is_file() for job in jobs) and not active_children()


@pytest.mark.parametrize("count", [1, 2])
def test_a_job_is_asked_for_only_when_a_worker_is_free(tmp_path, count):
    """So that another process may take what no worker of this one has begun."""
    asked = []
    jobs = (asked.append(n) or tmp_path / str(n) for n in range(6))
    for done, _ in enumerate(parallel_map(leave_mark, jobs, count), 1):
        assert len(asked) <= done + count
    assert asked == list(range(6))


def test_an_error_drops_waiting_jobs_and_finishes_running_ones(tmp_path):
    jobs = [tmp_path / str(n) for n in range(40)]
    with pytest.raises(ValueError, match="refused") as error:
        list(parallel_map(refuse_the_first, jobs, 2))
    assert jobs[1].is_file() and not jobs[-1].is_file() and not active_children()
    assert any("refuse_the_first" in note for note in error.value.__notes__), "the worker's traceback"


def test_lost_jobs_get_a_result_and_the_others_their_own():
    jobs = ["a", "segfault", "b", "hang", "c", "exit", "d"]
    found = sorted(parallel_map(misbehave, jobs, 2, timeout_seconds=3, on_lost="{}: {}".format))
    lost = ["exit: exit code 3", "hang: took longer than 3 s", "segfault: SIGSEGV"]
    assert found == ["did a", "did b", "did c", "did d", *lost] and not active_children()


def test_without_a_result_for_lost_jobs_a_job_that_kills_two_workers_stops_the_command():
    results = parallel_map(misbehave, ["a", "segfault", "b"], 2)
    assert {next(results), next(results)} == {"did a", "did b"}
    with pytest.raises(KilledError, match="segfault"):
        next(results)


@pytest.mark.promise("R24")
@pytest.mark.parametrize("first", ["killed", "large"])
def test_a_killed_job_is_repeated_alone(tmp_path, first):
    """One kill is not the job's fault: the memory may have been used up by the others."""
    spans = dict(parallel_map(die_at_first, [tmp_path / name for name in (first, "a", "b", "c")], 2))
    began, ended = spans.pop(first)
    assert set(spans) == {"a", "b", "c"} and not active_children()
    assert all(end <= began or ended <= begin for begin, end in spans.values())


def test_an_error_that_cannot_be_pickled_is_raised_all_the_same():
    with pytest.raises(RuntimeError, match="Needy: at 3") as error:
        list(parallel_map(raise_needy, ["a", "b"], 2))
    assert any("raise_needy" in note for note in error.value.__notes__)


def test_a_connection_that_a_job_loses_is_its_error():
    """A network file system may reset one; that is no sign that the parent is gone."""
    with pytest.raises(ConnectionResetError):
        list(parallel_map(lose_connection, ["a", "b"], 2))


def test_workers_killed_before_their_first_job_blame_no_job(monkeypatch):
    monkeypatch.setattr(workers, "_serve", die_at_start)
    monkeypatch.setattr(workers, "START_DEATHS", 3)
    with pytest.raises(KilledError):
        list(parallel_map(misbehave, ["a", "b"], 2))


def test_a_job_whose_result_came_is_not_repeated(monkeypatch):
    monkeypatch.setattr(workers, "_serve", die_after_the_result)
    assert sorted(parallel_map(misbehave, ["a", "b", "c"], 2)) == ["did a", "did b", "did c"]


def test_a_result_that_waits_for_the_caller_is_not_late(tmp_path, monkeypatch):
    """The caller takes longer over the first result than the second job may take."""
    found, passed = [], [0.0]
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))
    jobs = [tmp_path / name for name in ("first", "second")]
    for _, name in parallel_events(take_turns, deque(jobs), deque(), 2, timeout_seconds=600):
        found.append(name)
        (tmp_path / "received").touch()
        wait_until(jobs[1].exists)
        passed[0] = 1000.0
    assert found == ["first", "second"]


def test_leaving_early_kills_jobs_that_hang():
    results = parallel_map(misbehave, ["a", "hang"], 2, timeout_seconds=60, on_lost="{}: {}".format)
    assert next(results) == "did a" and active_children()
    results.close()
    assert not active_children()


def test_a_lost_job_can_be_repeated_without_what_killed_it():
    jobs, alone, seen = deque([(0, None), (1, 2)]), deque(), []
    for job, event in parallel_events(count_up, jobs, alone, 2):
        seen.append((*job, event))
        if isinstance(event, Lost):
            alone.append((job[0], None))
    assert {(1, 2, 0), (1, 2, 1), (1, 2, Lost("SIGKILL", guilty=False, events=2))} < set(seen)
    again = [event for number, dies, event in seen if number == 1 and dies is None]
    assert again == [0, 1, 2] and not active_children()


def test_a_worker_killed_in_the_middle_of_a_result_is_lost():
    found = dict(parallel_events(send_half, deque(["a"]), deque(), 1))
    assert found == {"a": Lost("SIGKILL", guilty=False, events=0)}


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, PermissionError)])
def test_only_a_full_disk_is_a_disk_full_error(tmp_path, number, kind):
    with pytest.raises(kind), watch_disk(tmp_path):
        raise OSError(number, "no")


PARENT = """
import sys
from pathlib import Path
from ppma.common.workers import parallel_map
from tests.common.test_workers import write_pid_and_sleep

if __name__ == "__main__":
    list(parallel_map(write_pid_and_sleep, [Path(sys.argv[1], name) for name in "ab"], 2))
"""


def write_pid_and_sleep(path: Path) -> None:
    temp_path = path.with_suffix(".tmp")
    temp_path.write_text(str(os.getpid()))
    temp_path.replace(path)
    time.sleep(600)


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    files = [tmp_path / name for name in "ab"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path], env=environment)
    wait_until(lambda: all(path.exists() for path in files))
    parent.kill()
    parent.wait()
    for path in files:
        wait_until(partial(has_ended, int(path.read_text())))


def test_ctrl_c_waits_until_a_worker_has_started(monkeypatch, capfd):
    """Press it between the start of the process and what is written to it; a thread that does not block it takes it."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    spawn, started = multiprocessing.util.spawnv_passfds, []

    def pressed(*arguments):
        started.append(psutil.Process(pid := spawn(*arguments)))
        signal.pthread_kill(thread.ident, signal.SIGINT)
        time.sleep(0.1)
        return pid

    resource_tracker.ensure_running()  # else it is what is spawned first
    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", pressed)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(parallel_map(misbehave, ["a"], 1, timeout_seconds=60))
    finally:
        over.set()
    assert started and not psutil.wait_procs(started, timeout=60)[1]
    assert not capfd.readouterr().err and not active_children()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_kills_jobs_that_run(tmp_path):
    files, pressed = [tmp_path / name for name in "ab"], []

    def press():
        wait_until(lambda: all(path.exists() for path in files))
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(parallel_map(write_pid_and_sleep, files, 2))
    assert time.monotonic() - pressed[0] < 60, "a job takes 600 s"
    assert not active_children()


def test_every_job_belongs_to_one_shard():
    assert parse_shard(None) == (0, 1)
    shards = [list(range(10))[first::step] for first, step in (parse_shard(f"{i}/3") for i in range(3))]
    assert sorted(chain(*shards)) == list(range(10)) and [len(shard) for shard in shards] == [4, 3, 3]


@pytest.mark.parametrize(
    "flags", [(shard,) for shard in ("3/3", "0/0", "-1/2", "1", "1/", "a/b", "0/2/3")] + [("0/2", 2), (None, 0)]
)
def test_other_shards_are_refused(flags):
    with pytest.raises(InputError):
        parse_shard(*flags)
