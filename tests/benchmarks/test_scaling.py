"""The scaling model: exact values, the limit at many GPUs, and a run of the whole benchmark on a tiny step."""

import json

import pytest

from benchmarks import scaling
from benchmarks.scaling import ScalingConfig, all_reduce_seconds, predict

QUIET = ScalingConfig(scatter=0.0, hop_us=0.0)


def test_an_all_reduce_inside_and_between_nodes():
    size = 4.5e9
    assert all_reduce_seconds(QUIET, 8, size) == pytest.approx(2 * 7 / 8 * 4.5 / 450)
    between = 2 * 7 / 8 * (4.5 / 8) / 50
    assert all_reduce_seconds(QUIET, 64, size) == pytest.approx(2 * 7 / 8 * 4.5 / 450 + between)


def test_efficiency_falls_with_gpus_and_never_passes_one():
    steps = [predict(ScalingConfig(), gpus, 0.05, 4e8).step for gpus in (1, 8, 64, 512)]
    assert steps == sorted(steps) and steps[0] >= 0.05


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, "GPU"),
        ({"loader_clips_per_s": 100.0}, "loader"),
        ({"file_system_gb_per_s": 1.0}, "file system"),
        ({"card_gb_per_s": 0.1}, "network"),
    ],
)
def test_what_is_the_limit_at_64_gpus(changes, limit):
    assert predict(ScalingConfig(**changes), 64, 0.05, 4e8).limit == limit


def test_the_whole_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling.rows, "report", lambda made, *_, **__: (tmp_path / "rows").write_text(json.dumps(made)))
    flags = "--model tiny --size 32 --frames 4 --repeats 1 --measure-batch 2 --gpus 8 512"
    assert scaling.main(flags.split()) == 0
    rows = json.loads((tmp_path / "rows").read_text())
    assert [row["gpus"] for row in rows] == [8, 512]
    assert all(
        0 < row["efficiency"] <= 1 and row["stop_flag_us"] > 0 and row["all_reduce_measured_ms"] > 0 for row in rows
    )


@pytest.mark.slow
def test_the_stop_flag_costs_less_than_a_hundredth_of_a_step(tmp_path, monkeypatch):
    """Of a step here, and of the much shorter one estimated for a GPU (64 views in 41 ms)."""
    monkeypatch.setattr(scaling.rows, "report", lambda made, *_, **__: (tmp_path / "rows").write_text(json.dumps(made)))
    assert scaling.main(["--model", "base", "--repeats", "1", "--measure-batch", "4", "--gpus", "8"]) == 0
    (row,) = json.loads((tmp_path / "rows").read_text())
    assert row["stop_flag_percent"] < 1 and row["stop_flag_us"] < 0.01 * 1e3 * row["compute_ms"], row
