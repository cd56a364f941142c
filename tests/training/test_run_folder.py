"""A run folder has one owner at a time, also after kills and across machines, and its metrics survive a cut line."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict, replace

import pytest
from waiting import has_ended, wait_until

from ppma.config.command import RUN_AGAIN
from ppma.config.errors import InputError
from ppma.training import run_folder
from ppma.training.run_folder import Owner, living_owner, owned, read_metrics, rewind_metrics, step_seconds

HOLD = """
import sys, time
from pathlib import Path
from ppma.training.run_folder import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that owns tmp_path/run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def quick(monkeypatch):
    """Owners on another machine are gone after half a second."""
    monkeypatch.setattr(run_folder, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(run_folder, "BEAT_SECONDS", 0.1)


@pytest.mark.promise("R20")
def test_a_folder_in_use_is_refused_until_its_owner_has_ended(other, tmp_path):
    with pytest.raises(InputError, match=f"in use by process {other.pid} on"), owned(tmp_path / "run"):
        pass
    other.kill()
    wait_until(lambda: has_ended(other.pid))  # its exit code is not asked for: a zombie owns nothing
    with owned(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / "owner.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / "owner.json").exists()


def write_owner(folder, **changes):
    """Write owner.json as a process of another machine would."""
    folder.mkdir(exist_ok=True)
    owner = replace(Owner.here(), host="node7", machine="node7 elsewhere", **changes)
    (folder / "owner.json").write_text(json.dumps(asdict(owner)))
    return folder / "owner.json"


def test_an_owner_on_another_machine_is_gone_when_it_touches_its_file_no_more(quick, tmp_path, monkeypatch):
    file, over = write_owner(tmp_path), threading.Event()

    def beat():
        while not over.wait(0.1):
            os.utime(file)

    alive = threading.Thread(target=beat)
    alive.start()
    try:
        with monkeypatch.context() as patch, pytest.raises(InputError, match="node7"):
            patch.setattr(run_folder, "STALE_SECONDS", 60.0)  # the first touch answers
            with owned(tmp_path):
                pass
    finally:
        over.set()
        alive.join()
    with owned(tmp_path):
        pass


def test_a_later_start_of_the_same_slurm_job_waits_for_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write_owner(tmp_path, job="17", job_restarts=0)
    began = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - began < run_folder.STALE_SECONDS / 2


def test_a_claim_that_was_never_finished_does_not_block_for_ever(quick, tmp_path):
    (tmp_path / "owner.json").touch()
    with owned(tmp_path):
        pass


def test_an_owner_file_that_is_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / run_folder.OWNER).symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="link to nothing"), owned(tmp_path):
        pass


def test_an_owner_that_stood_still_leaves_when_another_has_taken_over(quick, tmp_path):
    codes = []
    with owned(tmp_path, codes.append):
        write_owner(tmp_path)
        wait_until(lambda: codes)
    assert codes == [RUN_AGAIN] and (tmp_path / "owner.json").exists()  # it is the other's


def test_a_folder_made_for_nothing_is_removed(tmp_path):
    with owned(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


RACE = """
import json, os, sys, time
from dataclasses import asdict, replace
from pathlib import Path
from ppma.config.errors import InputError
from ppma.training import run_folder
from ppma.training.run_folder import Owner, owned

read = Path.read_text

def read_slowly(path, **how):  # as on a busy machine: each at its own pace
    text = read(path, **how)
    time.sleep(os.getpid() % 6 * 0.004)
    return text

Path.read_text = read_slowly
run_folder.BEAT_SECONDS = 0.1  # who reads a claim that is just being written waits for its owner's next sign of life

def contend(folder, go, done, answer):
    os.read(go, 1)
    try:
        with owned(folder):
            os.write(answer, b"1")
            os.read(done, 1)
    except InputError:
        os.write(answer, b"0")
    os._exit(0)

winners = []
for number in range(int(sys.argv[2])):
    folder = Path(sys.argv[1], str(number))
    folder.mkdir()
    if number % 2:  # a stale one is there
        (folder / "owner.json").write_text(json.dumps(asdict(replace(Owner.here(), started="1"))))
    (go, start), (done, end), (answers, answer) = os.pipe(), os.pipe(), os.pipe()
    children = [child for child in (os.fork() or contend(folder, go, done, answer) for _ in range(6))]
    os.write(start, b"x" * 6)
    found = b""
    while len(found) < 6:
        found += os.read(answers, 6)
    os.write(end, b"x" * 6)
    for child in children:
        os.waitpid(child, 0)
    winners.append(found.count(b"1"))
print(json.dumps(winners))
"""


@pytest.mark.promise("R20")
@pytest.mark.parametrize("folders", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_of_six_that_start_at_once_one_gets_the_folder(folders, tmp_path, figure):
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(tmp_path), str(folders)]
    winners = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert winners == [1] * folders
    figure("R20", f"{winners.count(1)} of {len(winners)} folders: 1 owner of 6 starts at once, the others refused")


@pytest.mark.parametrize(
    "tail", ['{"step": 3, "train/lo', '{"step": 3}', '{"step": 3, "a": 1}{"step": 4}\n', "\0" * 40, "\n\n", '"x"\n']
)
def test_a_cut_line_of_metrics_is_left_out_and_repaired(tail, tmp_path):
    file, whole = tmp_path / "metrics.jsonl", '{"step": 1, "loss": 0.1}\n{"step": 2, "loss": NaN}\n'
    file.write_text(whole + tail)
    assert [row["step"] for row in read_metrics(tmp_path)][:2] == [1, 2]
    rewind_metrics(tmp_path, 2)
    assert file.read_text() == whole
    rewind_metrics(tmp_path, 1)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_seconds_of_steps_are_steps_over_speed():
    rows = [
        {"step": 10, "perf/clips_per_s": 20.0},
        {"step": 30, "perf/clips_per_s": 40.0},
        {"step": 30, "eval/top1": 0.5},
    ]
    assert step_seconds([], 8) == 0
    assert step_seconds(rows, 8) == 10 * 8 / 20 + 20 * 8 / 40
    assert step_seconds(rows, 8, after=25) == 5 * 8 / 40  # what a resume at step 25 repeats


def test_an_owner_that_has_not_touched_its_file_for_a_minute_is_not_running(tmp_path):
    with owned(tmp_path / "run"):
        assert living_owner(tmp_path / "run") is not None
        os.utime(tmp_path / "run" / "owner.json", (0, time.time() - 100))
        assert living_owner(tmp_path / "run") is None
    assert living_owner(tmp_path / "run") is None
