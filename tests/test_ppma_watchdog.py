"""The watchdog: quiet while steps are done, stacks and exit code 75 when they are not."""

import subprocess
import sys
import time

from ppma.command import RUN_AGAIN
from ppma.watchdog import Watchdog

HANG = """
import threading
from ppma.watchdog import Watchdog

def the_place_where_it_hangs():
    threading.Event().wait(60)

with Watchdog(0.3):
    the_place_where_it_hangs()
"""


def test_a_hang_ends_with_75_and_says_where():
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == RUN_AGAIN
    assert "no step for 0 s" in done.stderr and "the_place_where_it_hangs" in done.stderr


def test_steps_keep_it_quiet():
    left = []
    with Watchdog(0.5, left.append) as watchdog:
        for _ in range(10):
            time.sleep(0.1)
            watchdog.beat()
    time.sleep(0.6)  # outside its block it does not watch
    assert left == []
