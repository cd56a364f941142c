"""Items of a measuring day that need no GPU and behave badly in every way that one can."""

import os
import signal
import subprocess
import time

from benchmarks.day import Figure, Part

CHILD = "child"
"""File that holds the process id of what `deaf` starts."""


def one(value=1.0, **bound):
    return lambda: [Figure(what="figure", value=value, unit="clips/s", **bound)]


def good(day):
    yield Part(what="one", measure=one(1500.0, least=1400, goal=2170))


def partly(day):
    """The first of two parts fails."""

    def wrong():
        yield Figure(what="before", value=1.0, unit="")
        raise RuntimeError("No kernel image\nand more")

    yield Part(what="wrong", measure=wrong)
    yield Part(what="right", measure=one())


def unprepared(day):
    raise ValueError("no such clip")
    yield


def crashing(day):
    yield Part(what="first", measure=one())
    yield Part(what="crash", measure=lambda: os.kill(os.getpid(), signal.SIGSEGV))


def deaf(day):
    """Starts a process, ignores SIGTERM and never ends."""

    def forever():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        started = subprocess.Popen(["sleep", "1000"])
        (day.out / CHILD).write_text(str(started.pid))
        yield Figure(what="kept", value=1.0, unit="")
        time.sleep(1000)

    yield Part(what="forever", measure=forever)


def gpu_alone(day):
    yield Part(what="graphs", measure=one(), gpu_only="there are none")
