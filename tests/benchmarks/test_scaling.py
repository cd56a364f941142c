"""The scaling model: exact values, the limit at many GPUs, and a run of the whole benchmark on a tiny step."""

import json

import processes  # noqa: F401  # its fork server has imported torch
import pytest

from benchmarks import scaling
from benchmarks.scaling import (
    ScalingConfig,
    all_reduce_seconds,
    demands,
    lost_share,
    operations_per_clip,
    predict,
    simulate,
)

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


@pytest.mark.parametrize(
    ("gpus", "changes", "first"),
    [
        (8, {"loader_clips_per_s": 200.0}, "loader"),
        (512, {}, "file system bandwidth"),
        (512, {"clip_kb": 350.0, "clip_reads": 16.0}, "file system operations"),
        (512, {"clip_kb": 10.0, "shuffle": "shards", "workers": 64}, "start-up"),
        (
            1100,
            {"clip_kb": 10.0, "start_calls": 0, "workers": 0, "clip_reads": 0.1, "hop_us": 0.0},
            "open files of rank 0",
        ),
        (8, {"failures_per_node_day": 500.0}, "failures"),
        (64, {"card_gb_per_s": 0.1}, "network"),
    ],
)
def test_what_breaks_first(gpus, changes, first):
    config = ScalingConfig(**changes)
    needed = demands(config, gpus, predict(config, gpus, 0.05, 4e8))
    assert max(needed, key=needed.get) == first and needed[first] > 1, needed


def test_a_clip_costs_its_reads_and_the_opening_of_its_shard():
    assert operations_per_clip(ScalingConfig(clips=1000)) == 2
    assert operations_per_clip(ScalingConfig(clips=10_000_000)) == pytest.approx(5, abs=0.1)
    assert operations_per_clip(ScalingConfig(clips=10_000_000, shuffle="shards")) == 2


def test_a_simulated_run_agrees_with_the_expected_loss():
    config = ScalingConfig(hours=24 * 365, failures_per_node_day=1.0, restart_seconds=300.0)
    week = simulate(config, 64, 0.5)
    assert week.failures == pytest.approx(8 * 365, rel=0.1) and week.lost_steps > week.failures
    assert 1 - week.ettr == pytest.approx(lost_share(config, 64), rel=0.1)
    quiet = simulate(ScalingConfig(hours=1, failures_per_node_day=1e-9, save_seconds=0.0), 8, 0.5)
    assert (quiet.steps, quiet.failures, quiet.ettr) == (7200, 0, 1.0)


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
