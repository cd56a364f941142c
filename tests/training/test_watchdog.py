"""The watchdog: silent while there is progress, then the stacks of all threads and exit code 75."""

import threading
import time

import pytest
import tiny
from processes import run_script

from ppma.config.command import RUN_AGAIN
from ppma.training.watchdog import Watchdog

HANG = """
import ctypes, threading
from ppma.training import watchdog
from ppma.training.watchdog import Watchdog

watchdog.GRACE_SECONDS = 0.2

def the_place_where_it_hangs():
    {call}

with Watchdog(1):
    the_place_where_it_hangs()
    threading.Event().wait(60)
"""
CALLS = {
    "in Python": "threading.Event().wait(60)",
    "in C, without releasing the interpreter lock": "ctypes.PyDLL(None).sleep(6)",
}


@pytest.mark.promise("R16")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_hang_ends_with_75_and_shows_where(call, tmp_path):
    code, written = run_script(HANG.format(call=call), [], tmp_path)
    assert code == RUN_AGAIN
    assert "no step for 1 s" in written and "the_place_where_it_hangs" in written


def test_steps_keep_it_silent():
    left = []
    with Watchdog(2, left.append) as watchdog:
        for _ in range(30):
            time.sleep(0.1)
            watchdog.beat()
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"], "it watches inside its block"
    assert left == []


HANGING_PASS = """
import sys, threading
from ppma.training import watchdog
from ppma.models.classify import Classifier
from ppma.config.flags import resolve
from ppma.phases import train

watchdog.GRACE_SECONDS = 0.2
whole, calls = Classifier.tokens, []

def the_place_where_it_hangs(self, *inputs):
    calls.append(1)
    if not self.training and len(calls) > 1:
        threading.Event().wait(60)
    return whole(self, *inputs)

Classifier.tokens = the_place_where_it_hangs
train(resolve(sys.argv[1], sys.argv[2:]))
"""


@pytest.mark.promise("R16")
@pytest.mark.parametrize("recipe", ["knn", "finetune", pytest.param("attentive_probe", marks=pytest.mark.slow)])
def test_a_pass_over_clips_that_hangs_ends_with_75(recipe, tiny_runs, tmp_path):
    """Before the steps where features are cached, and after them where the run is tested."""
    shape = [*tiny.FLAGS, "--dataset", "made", "--batch", "4", "--data", str(tiny_runs / "data.toml")]
    flags = [*shape, "--run-dir", str(tmp_path / "run"), "--hang-seconds", "12", "--evaluation.batch-clips", "1"]
    flags += [] if recipe == "knn" else ["--optim.epochs", "1"]
    code, written = run_script(HANGING_PASS, [recipe, *flags], tmp_path)
    assert code == RUN_AGAIN, written
    assert "no step for 12 s" in written and "the_place_where_it_hangs" in written
    assert "in encoded" in written
