"""Tasks that share units: each unit is done once, slow and dead tasks lose theirs to the others, and any number may merge."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict

import pytest
from waiting import wait_until

from ppma.common import shares
from ppma.common.shares import Share
from ppma.config.errors import InputError

NAMES = [f"to/{n}" for n in range(9)]


@pytest.fixture(autouse=True)
def short_leases(monkeypatch):
    monkeypatch.setattr(shares, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(shares, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(shares, "POLL_SECONDS", 0.05)


def do(share, names=NAMES):
    """Do every unit that the share gives; return them in order."""
    did = []
    for units in share.rounds(names):
        for name in units:
            did.append(name)
            share.finish(name, {"by": share.part[0]})
    return did


@pytest.mark.parametrize("parts", [1, 2, 4, 20])
def test_one_task_alone_does_the_units_of_all_parts(tmp_path, parts):
    did = do(Share(tmp_path, (0, parts)))
    assert did[: len(NAMES[::parts])] == NAMES[::parts], "its own first"
    assert sorted(did) == NAMES and do(Share(tmp_path, (parts - 1, parts))) == []
    assert sorted(Share(tmp_path).records(NAMES)) == NAMES and not list(tmp_path.rglob("*.lease"))


def test_units_that_another_task_does_are_left_to_it_while_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(shares, "LEASE_SECONDS", lease_seconds := 3.0)  # 30 touches
    slow = Share(tmp_path, (1, 3))
    begun = next(next(slow.rounds(NAMES)))
    began = time.monotonic()
    assert sorted([*do(Share(tmp_path, (0, 3))), begun]) == NAMES and begun == "to/1"
    assert time.monotonic() - began > lease_seconds, "it has watched the owner for longer than a lease"
    with pytest.raises(InputError, match="to/1"):
        Share(tmp_path).require_all(NAMES)
    slow.finish(begun, {})
    Share(tmp_path).require_all(NAMES)
    assert do(slow) == []


def test_two_tasks_that_alternate_do_each_unit_once(tmp_path):
    units = [next(Share(tmp_path, (part, 2)).rounds(NAMES)) for part in (0, 1, 0)]
    taken = [name for _ in NAMES for one in units if (name := next(one, None))]
    assert sorted(taken) == NAMES


DIE = """
import os, sys
from pathlib import Path
from ppma.common import shares
shares.LEASE_SECONDS, shares.BEAT_SECONDS = 0.4, 0.1
units = next(shares.Share(Path(sys.argv[1]), (1, 3)).rounds(sys.argv[3:]))
print(next(units), next(units), flush=True)
os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.promise("R24")
@pytest.mark.parametrize(("how", "elsewhere"), [("KILL", False), ("KILL", True), ("STOP", True)])
def test_the_units_of_a_dead_task_are_taken_over(tmp_path, how, elsewhere):
    """On the same machine by the end of its process; elsewhere, here a stopped process, because it no longer touches its leases."""
    command = [sys.executable, "-c", DIE, str(tmp_path), str(int(signal.Signals[f"SIG{how}"])), *NAMES]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    begun = process.stdout.readline().split()
    if how == "KILL":
        process.wait()
    for lease in tmp_path.rglob("*.lease") if elsewhere and how == "KILL" else ():
        lease.write_text("".join("host=other\n" if "host=" in line else line for line in lease.open()))
    try:
        did = do(Share(tmp_path, (0, 3)))
    finally:
        process.kill()
        process.wait()
    assert begun == ["to/1", "to/4"] and sorted(did) == NAMES
    assert (sorted(did[-2:]) == begun) == elsewhere, "units of owners elsewhere are watched first"


WORK = """
import os, sys, time
from pathlib import Path
from ppma.common.shares import Share
share, log = Share(Path(sys.argv[1]), (int(sys.argv[2]), 4)), os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for units in share.rounds([str(n) for n in range(400)]):
    for name in units:
        time.sleep(0.003)
        os.write(log, f"{name} {os.getpid()}\\n".encode())
        share.finish(name, {})
"""


@pytest.mark.slow
@pytest.mark.promise("R24")
def test_processes_that_are_killed_and_started_again_do_each_unit_once(tmp_path, figure):
    """Four at a time, and five kills; only a unit whose process was killed before its record was written is done again."""

    def start(part):
        command = [sys.executable, "-c", WORK, str(tmp_path / "parts"), str(part), str(tmp_path / "log")]
        return subprocess.Popen(command)

    tasks = [start(part) for part in range(4)]
    killed = []
    for number in range(5):
        wait_until(lambda wanted=40 * (number + 1): len(list((tmp_path / "parts").glob("*.json"))) >= wanted)
        tasks[number % 4].kill()
        tasks[number % 4].wait()
        killed.append(str(tasks[number % 4].pid))
        tasks[number % 4] = start(number % 4)
    assert [task.wait(timeout=120) for task in tasks] == [0] * 4
    by_unit = defaultdict(list)
    for line in (tmp_path / "log").read_text().splitlines():
        name, process = line.split()
        by_unit[name].append(process)
    assert by_unit.keys() == {str(n) for n in range(400)} and not list((tmp_path / "parts").glob("*.lease"))
    again = [name for name, processes in by_unit.items() if len(processes) > 1]
    assert {process for name in again for process in by_unit[name][:-1]} <= set(killed) and len(again) <= 5
    figure("R24", f"5 of 9 tasks killed, 0 of 400 units lost, {len(again)} begun twice")


def test_an_empty_lease_of_a_killed_task_is_taken_over(tmp_path):
    """filelock waits for one for ever; it is left where a kill comes between creating a lease and writing its owner."""
    lease = tmp_path / "to" / "4.lease"
    lease.parent.mkdir()
    lease.touch()
    assert "to/4" not in do(Share(tmp_path)), "it may have been created just now"
    os.utime(lease, (time.time() - 2 * shares.EMPTY_SECONDS,) * 2)
    assert do(Share(tmp_path)) == ["to/4"]


def test_units_with_complete_files_need_no_record(tmp_path):
    assert sorted(do(Share(tmp_path, done={"to/3"}.__contains__))) == [name for name in NAMES if name != "to/3"]
    Share(tmp_path, done={"to/3"}.__contains__).require_all(NAMES)


def test_a_task_that_shares_with_no_other_writes_nothing(tmp_path):
    assert do(Share(None)) == NAMES and not list(tmp_path.iterdir())


def test_units_of_another_job_are_refused(tmp_path):
    Share(tmp_path / "parts").claim({"size": 1})
    Share(tmp_path / "parts").claim({"size": 1})
    with pytest.raises(InputError, match="size"):
        Share(tmp_path / "parts").claim({"size": 2})
    Share(tmp_path / "parts").clear()
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_is_named(tmp_path):
    do(Share(tmp_path))
    (tmp_path / "to/4.json").write_text("{")
    with pytest.raises(InputError, match=r"to/4\.json"):
        Share(tmp_path).records(NAMES)
