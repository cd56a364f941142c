"""The rows of the kernel benchmark: the fields that are promised, and arithmetic that fits them."""

import pytest
import torch

from benchmarks import kernel_speed
from benchmarks.kernel_speed import BenchmarkConfig, Measurement, measure, row_of

FIELDS = {"kernel", "implementation", "shape", "dtype", "pass", "microseconds", "gb_per_s", "tflop_per_s", "of_ceiling"}


def test_rates_follow_from_the_time():
    common = {
        "kernel": "attention",
        "implementation": "seam",
        "shape": "1",
        "dtype": torch.float32,
        "run": lambda: None,
    }
    moved = row_of(Measurement(direction="forward", bytes_moved=2e9, **common), [0.5, 1.0, 4.0], ceiling=8e9)
    assert (moved["gb_per_s"], moved["of_ceiling"], moved["microseconds"]) == (2.0, 0.25, 1e6)
    counted = row_of(Measurement(direction="forward", flops=3e12, **common), [1.0], ceiling=4e12)
    assert (counted["tflop_per_s"], counted["of_ceiling"], counted["gb_per_s"]) == (3.0, 0.75, None)
    assert set(counted) > FIELDS


def test_patchify_is_measured_here(monkeypatch, capsys):
    monkeypatch.setattr(kernel_speed, "copy_bandwidth", lambda device: 1e10)
    made = measure(BenchmarkConfig(kernel=("patchify",), repeats=1), torch.device("cpu"))
    assert {row["implementation"] for row in made} == {"reference", "torch"} and len(made) == 8
    assert all(row["gb_per_s"] > 0 for row in made)


def test_what_cannot_run_is_said_and_left_out(monkeypatch, capsys):
    def cannot():
        raise RuntimeError("No available kernel.\nmore")

    case = Measurement(
        kernel="attention", implementation="cudnn", shape="1", dtype=torch.float32, direction="forward", run=cannot,
        bytes_moved=1.0,
    )  # fmt: skip
    monkeypatch.setattr(kernel_speed, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setitem(kernel_speed.CASES, "attention", lambda batch, device: [case])
    assert measure(BenchmarkConfig(kernel=("attention",), repeats=1), torch.device("cpu")) == []
    assert "attention cudnn 1: No available kernel.\n" in capsys.readouterr().err


@pytest.mark.cuda
def test_goals_on_a_gpu():
    """patchify and pixel_loss at 80 % of copy bandwidth over the bytes they must move; the seam of attention is the
    best of its candidates (5 %: the spread of a measurement)."""
    made = measure(BenchmarkConfig(), torch.device("cuda"))
    moved = [
        row for row in made if row["implementation"] == "triton" and row["gb_per_s"] and row["dtype"] == "bfloat16"
    ]
    assert min(row["of_ceiling"] for row in moved) >= 0.8
    times = {(r["shape"], r["dtype"], r["pass"], r["implementation"]): r["microseconds"] for r in made}
    for (shape, dtype, direction, name), took in times.items():
        if name in ("cudnn", "flash", "efficient") and direction == "forward+backward":
            assert times[shape, dtype, direction, "seam"] <= 1.05 * took
