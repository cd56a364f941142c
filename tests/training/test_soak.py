"""A GPU decodes and trains for minutes: nothing fails, and neither its memory nor that of the processes grows."""

import signal
import statistics
import subprocess
import sys
import time

import psutil
import pytest
import tiny

from ppma.training.run_folder import read_metrics

MINUTES = 10.0
SAMPLE_SECONDS = 5.0


def resident_mib(process: psutil.Process) -> float:
    """Resident memory of a process and its children."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def soak(data, run_dir, device, minutes):
    """Train for so long, stop with SIGTERM; return the rows of the metrics and the resident memory over time."""
    shape = ["--device", device, "--log-every", "20", "--loader.workers", "2", "--optim.epochs", "10000000"]
    flags = [*tiny.FLAGS, "--dataset", "made", "--batch", "4", "--data", str(data), "--run-dir", str(run_dir), *shape]
    command = [sys.executable, "-m", "ppma", "train", "finetune", *flags, "--evaluation.no-at-end"]
    memory, process = [], subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < end and process.poll() is None:
            memory.append(resident_mib(psutil.Process(process.pid)))
            try:
                process.communicate(timeout=SAMPLE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 75, output
    return read_metrics(run_dir), memory


def growth(values: list[float]) -> float:
    """Return how much higher the median of the last quarter is than that of the second."""
    quarter = len(values) // 4
    return statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter])


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.promise("R19")
def test_a_gpu_soak_keeps_its_memory(tmp_path, clip_tree, figure):
    rows, memory = soak(tiny.make_data(tmp_path, clip_tree, "train"), tmp_path / "run", "cuda", MINUTES)
    assert all(row["train/loss"] == row["train/loss"] and row["data/bad_files"] == 0 for row in rows)
    device = growth([1024 * row["perf/memory_gib"] for row in rows])
    assert len(memory) > 40 and growth(memory) < 64 and device < 1
    steps = rows[-1]["step"]
    figure(
        "R19",
        f"{steps} steps in {MINUTES:.0f} min: resident memory {growth(memory):+.0f} MiB, GPU memory {device:+.0f} MiB",
    )
